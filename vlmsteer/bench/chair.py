"""CHAIR: how many of the objects that a caption mentions are not in the image.

The metric is of Rohrbach et al., EMNLP 2018, arXiv 1809.02156. What an image shows is what COCO's boxes name and what
people mention in its captions, found as in the model's caption, so it differs by scorer too. CHAIR falls when
captions get shorter: recall, length, repetition and empty captions stand beside it. Every published number has its
own 500 images and prompt, so compare arms of one run, not papers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.chair_truth import SPLITS, Truth, given, image_key, read_list, read_truth
from vlmsteer.bench.chair_words import Mentions, Vocabulary, coco, mentions, vocabulary_of
from vlmsteer.bench.files import Files
from vlmsteer.errors import InputError, did_you_mean

PROMPTS = {
    "opera": "Please describe this image in detail.",  # also EOS and lmms-eval
    "pai": "Please help me describe the image in detail.",  # also VISTA
    "short": "Describe this image.",
}
LIST = "chair-500.jsonl"
TOKENS, IMAGES = 512, 500
MORE = ("precision", "f1", "len")  # metrics that not every scorer has
NUMBERS = frozenset({"words", "objects", "len"})


def load(
    files: Files,
    *,
    prompt: str = "opera",
    images: str | None = None,
    synonyms: str | None = None,
    n: int = 0,
    seed: int = 0,
    max_new_tokens: int = TOKENS,
    finished: bool = False,
) -> list[Item]:
    """One item an image.

    The ground truth is `chair_ground_truth.json` (see `chair_truth.write_ground_truth`), else COCO's
    `annotations/instances_*2014.json` and `captions_*2014.json`. Images are looked for under the name that the list or
    COCO gives, an id alone as `COCO_val2014_<12 digits>.jpg`, in `val2014`, `train2014` and `images`.

    Args:
        prompt: a name in `PROMPTS`.
        images: a JSON or JSONL file of image ids or names, such as the saved captions that are to be scored; by
            default `chair-500.jsonl` where it is there.
        synonyms: a file of an object a line, its name and the words for it, in the published list's format; by default
            `synonyms.txt` where it is there, else COCO's objects.
        n: how many images, from a list the first ones, else drawn by `seed` from the sorted ids (COCO: of val2014). By
            default (0) a list's all, without a list 500 or all if there are fewer.
        max_new_tokens: 512, or 64 in the short protocol.
        finished: score captions up to their last period only, as OPERA does by hand for 64 tokens (OPERA#30). A
            caption without a period then counts as empty.

    Raises:
        InputError: if a file is missing or malformed, an image is not in the ground truth, or an option is unknown.
    """
    if prompt not in PROMPTS:
        raise InputError(f"chair has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    if n < 0:
        raise InputError(f"n is {n}; give the number of images to caption, 0 for all of a list or {IMAGES}.")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; give the longest caption in tokens, 1 or more.")
    truth = read_truth(files, synonyms)
    keys, told = _chosen(files, truth, images, n, seed)
    extra = {} if truth.words is coco() else {"synonyms": [list(row) for row in truth.words.rows]}
    return [
        Item(
            id=key,
            image=files.image(_file(key, truth), *SPLITS, "images"),
            prompt=PROMPTS[prompt],
            group=key,
            gold={
                "objects": truth.objects[key],
                "captions": truth.captions.get(key, []),
                "finished": finished,
                "file": told,
                **extra,
            },
            max_new_tokens=max_new_tokens,
        )
        for key in keys
    ]


def invented(
    caption: str, shown: Iterable[str], way: str, vocabulary: Vocabulary | None = None
) -> tuple[Mentions, list[int]]:
    """What a caption mentions, and which of these mentions (by their place in it) are of objects not shown."""
    found, there = mentions(caption, way, vocabulary), set(shown)
    return found, [place for place, node in enumerate(found.nodes) if node not in there]


def shown(item: Item, way: str) -> set[str]:
    """The objects that an item's image shows, as a scorer of this way sees it."""
    words = _vocabulary(item)
    return {*item.gold["objects"], *(node for one in item.gold["captions"] for node in mentions(one, way, words).nodes)}


def tally(items: Sequence[Item], answers: Sequence[Answer], way: str) -> Tally:
    """Counts by caption; every mention counts, repeated and denied ones too."""
    rows: list[dict[str, float]] = []
    for item, answer in zip(items, answers, strict=True):
        text, there = answer.text, shown(item, way)
        if item.gold.get("finished"):
            text = text[: text.rfind(".") + 1]
        found, wrong = invented(text, there, way, _vocabulary(item))
        words = re.findall(r"\w+", text.lower())
        runs = list(zip(words, words[1:], words[2:], strict=False))
        rows.append(
            {
                "captions": 1,
                "wrong captions": bool(wrong),
                "mentions": len(found.nodes),
                "wrong": len(wrong),
                "recalled": len(there.intersection(found.nodes)),
                "shown": len(there),
                "named": len(set(found.nodes)),
                "tokens": len(found.tokens),
                "words": len(text.split()),
                "repeated": len(runs) - len(set(runs)),
                "runs": len(runs),
                "empty": not text.strip(),
            }
        )
    names = rows[0] if rows else ()
    return Tally([item.group for item in items], {name: [float(row[name]) for row in rows] for name in names})


def metrics(sums: Sums, more: Sequence[str] = ()) -> dict[str, Any]:
    """CHAIR of sums of counts, nan where the references divide by zero.

    Args:
        more: of "precision", "f1" and "len" (a hundredth of the tokens a caption) those that a scorer has.
    """
    captions, recalled = sums["captions"], sums["recalled"]
    precision, recall = share(recalled, sums["named"]), share(recalled, sums["shown"])
    found = {
        "chair_s": share(sums["wrong captions"], captions),
        "chair_i": share(sums["wrong"], sums["mentions"]),
        "recall": recall,
        "precision": precision,
        "f1": share(2 * precision * recall, precision + recall),
        "len": share(0.01 * sums["tokens"], captions),
        "words": share(sums["words"], captions),
        "objects": share(sums["named"], captions),
        "repetition": share(sums["repeated"], sums["runs"]),
        "empty": share(sums["empty"], captions),
    }
    return {name: value for name, value in found.items() if name in more or name not in MORE}


def _chosen(files: Files, truth: Truth, images: str | None, n: int, seed: int) -> tuple[list[str], str]:
    """The keys of the images that are asked about, and which these are, as a phrase."""
    source = images or (LIST if files.has(LIST) else None)
    if source is not None:
        keys = _listed(given(files, source), truth)
    else:
        keys = sorted((key for key in truth.objects if not _trained_on(key, truth)), key=_order)
    wanted = n or (min(IMAGES, len(keys)) if source is None else len(keys))
    if wanted > len(keys):
        raise InputError(f"n is {n}, but there are {len(keys)} images.")
    if wanted == len(keys):
        return keys, f"all {wanted} images"
    if source is not None:
        return keys[:wanted], f"the first {wanted} images of {source}"
    drawn = random.Random(seed).sample(keys, wanted)
    return drawn, f"{wanted} of {len(keys)} images, drawn by seed {seed}; --set images=FILE takes those of a file"


def _listed(path: Path, truth: Truth) -> list[str]:
    names = read_list(path)
    unknown = [name for name in names if image_key(name) not in truth.objects]
    if unknown:
        raise InputError(
            f"The image {unknown[0]!r} of {str(path)!r} ({len(unknown)} such) is not in the ground truth, which has "
            f"{len(truth.objects)} images."
        )
    truth.files.update({image_key(name): name for name in names if "." in name})
    return [image_key(name) for name in names]


def _vocabulary(item: Item) -> Vocabulary:
    rows = item.gold.get("synonyms")
    return coco() if rows is None else vocabulary_of(tuple(map(tuple, rows)))


def _order(key: str) -> tuple[bool, int, str]:
    return (not key.isdecimal(), int(key) if key.isdecimal() else 0, key)


def _trained_on(key: str, truth: Truth) -> bool:
    return truth.files.get(key, "").startswith("COCO_train")


def _file(key: str, truth: Truth) -> str:
    return truth.files.get(key) or (f"COCO_val2014_{int(key):012d}.jpg" if key.isdecimal() else key)


def _scorer(name: str, source: str, more: Sequence[str] = ()) -> Scorer:
    wanted = {"chair_s": -1, "chair_i": -1, "recall": 1, "precision": 1, "f1": 1, "len": 0}
    wanted |= {"words": 0, "objects": 0, "repetition": -1, "empty": -1}
    kept = {one: sign for one, sign in wanted.items() if one in more or one not in MORE}
    count, measure = partial(tally, way=name), partial(metrics, more=tuple(more))
    return Scorer(name, source, count, measure, kept, numbers=NUMBERS & kept.keys())


BENCHMARK = Benchmark(
    name="chair",
    title="CHAIR",
    source="Rohrbach et al., EMNLP 2018, arXiv 1809.02156; LisaAnne/Hallucination@6e4d33c",
    load=load,
    scorers=(
        _scorer("pattern", "Maxlinn/CHAIR-metric-standalone@640c507 chair.py; words as in LisaAnne/Hallucination"),
        _scorer("wordnet", "shikiw/OPERA@61426ef chair.py; its tagger by rules of ours", ("len",)),
        _scorer("vista", "LzVv123456/VISTA@dc62252 chair_ans.py (PAI's); tagger by rules of ours", MORE),
        _scorer("strict", "ours", ("precision", "f1")),
    ),
    max_new_tokens=TOKENS,
    notes=(
        "Papers draw their own 500 images and do not publish which; CHAIR_s of one model moves by 4.4 points (95 %) "
        "with them. Scorers differ: 'pattern' never sees a single bus, 'wordnet' and 'vista' never see men or vases. "
        "Shorter captions have less CHAIR: look at recall and words."
    ),
)
