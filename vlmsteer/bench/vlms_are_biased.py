"""VLMs are Biased: count the legs of a five-legged dog. The wrong answer that memory gives is known beforehand.

(Vo et al., ICLR 2026, arXiv 2505.23941.) Beside accuracy stands the bias rate, how often exactly that answer came. The
authors publish no scorer: `lmms` is the one in use, which reads "2 birds with 3 legs" as 23, `strict` takes the last
braces, which is what the questions ask for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, Published, field
from vlmsteer.bench.rows import read_split
from vlmsteer.errors import InputError, did_you_mean

SPLITS = ("main", "identification", "withtitle", "original", "remove_background_q1q2", "remove_background_q3")
PROMPTS = {"published": "{prompt}"}
_BRACES = re.compile(r"\{([^{}]*)\}")


def lmms(answer: str, truth: str, bias: str) -> tuple[bool, bool]:
    """lmms-eval's rule: (right, biased) by equality without outer braces, else by all digits joined.

    EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/vlms_are_biased/utils.py.
    """
    given, wanted, usual = (str(text).strip().lower().strip("{}").strip() for text in (answer, truth, bias))
    right, biased = given == wanted, given == usual
    if right or biased:
        return right, biased
    digits = _digits(given)
    return (bool(digits) and digits == _digits(wanted)), (bool(digits) and digits == _digits(usual))


def braced(answer: str) -> str | None:
    """Our own rule: what the last {...} holds, in lower case; without braces the answer if it is one word; or None."""
    found = _BRACES.findall(answer)
    word = (found[-1] if found else answer.strip().removesuffix(".")).strip().lower()
    return word if word and (found or len(word.split()) == 1) else None


def strict(answer: str, truth: str, bias: str) -> tuple[bool, bool]:
    """(right, biased) by equality of `braced`; an answer without one is neither."""
    given = braced(answer)
    return (given is not None and given == braced(str(truth))), (given is not None and given == braced(str(bias)))


def load(files: Files, *, split: str = "main", prompt: str = "published") -> list[Item]:
    """The questions of one split, from parquet files (`data/main-*.parquet`) or `main.json`, .jsonl or .csv.

    The same picture at several resolutions, with all its questions, is one group.

    Args:
        files: the folder; images that are not in the rows lie where `image_path` says, in it or in `images/`.
        split: one of `SPLITS`.
        prompt: of `PROMPTS`; the published prompts say themselves how to answer.

    Raises:
        InputError: for a malformed row, an ID that stands twice, an unknown option.
    """
    if split not in SPLITS:
        raise InputError(f"VLMs are Biased has no split {split!r}{did_you_mean(split, SPLITS)}.")
    if prompt not in PROMPTS:
        raise InputError(f"VLMs are Biased has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    items: list[Item] = []
    seen: dict[str, str] = {}
    for where, row in read_split(files, split):
        name = str(field(row, "ID", where, (str, int)))
        if name in seen:
            raise InputError(f"{where} has the ID {name!r} of {seen[name][0].lower()}{seen[name][1:]}.")
        seen[name] = where
        truth, bias = (str(field(row, key, where, (str, int))).strip() for key in ("ground_truth", "expected_bias"))
        if not truth:
            raise InputError(f"{where} has an empty 'ground_truth'.")
        shown = row.get("image_path") or field(row, "image", where)
        image = row["image"] if isinstance(row.get("image"), str) and row["image"] else shown
        gold = {"truth": truth, "bias": bias} | {
            key: row.get(key) for key in ("topic", "sub_topic", "type_of_question")
        }
        text = PROMPTS[prompt].format(prompt=field(row, "prompt", where))
        items.append(Item(name, files.image(image, "images"), text, _picture(shown, row.get("pixel")), gold))
    return items


def _picture(path: str, pixel: object) -> str:
    """The picture whatever its resolution: "a_px384.png" -> "a.png"."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(rf"[_-]?(?:px)?(?<!\d){pixel}(?!\d)(?:px)?", "", name) if pixel else name


def tally(
    items: Sequence[Item], answers: Sequence[Answer], judge: Callable[[str, str, str], tuple[bool, bool]]
) -> Tally:
    """Counts by question."""
    counts: dict[str, list[float]] = {name: [] for name in ("asked", "right", "biased", "unparsed", "words")}
    for item, answer in zip(items, answers, strict=True):
        right, biased = judge(answer.text, item.gold["truth"], item.gold["bias"])
        row = (1, right, biased, braced(answer.text) is None, len(answer.text.split()))
        for name, value in zip(counts, row, strict=True):
            counts[name].append(float(value))
    return Tally([item.group for item in items], counts)


def _metrics(sums: Sums) -> dict[str, np.ndarray]:
    return {
        "accuracy": share(sums["right"], sums["asked"]),
        "bias_ratio": share(sums["biased"], sums["asked"]),
        "unparsed": share(sums["unparsed"], sums["asked"]),
        "words": share(sums["words"], sums["asked"]),
    }


def _digits(text: str) -> str:
    return "".join(one for one in text if one.isdigit())


WANTED = {"accuracy": 1, "bias_ratio": -1, "unparsed": -1, "words": 0}
BENCHMARK = Benchmark(
    name="vlms_are_biased",
    title="VLMs are Biased",
    source="Vo et al. 2025, arXiv 2505.23941; anvo25/vlms-are-biased@9d1afd9",
    load=load,
    scorers=(
        Scorer(
            "lmms",
            "EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/vlms_are_biased/utils.py",
            lambda items, answers: tally(items, answers, lmms),
            _metrics,
            WANTED,
            numbers=frozenset({"words"}),
        ),
        Scorer(
            "strict",
            "ours",
            lambda items, answers: tally(items, answers, strict),
            _metrics,
            WANTED,
            numbers=frozenset({"words"}),
        ),
    ),
    max_new_tokens=32,
    hub=Published("anvo25/vlms-are-biased", ("*.parquet",)),
    notes="`unparsed` is counted by the strict rule under both scorers.",
)
