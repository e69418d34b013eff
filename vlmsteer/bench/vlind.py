"""VLind-Bench: a language prior is only tested where knowledge, sight and following a text have been shown first.

(Lee et al., NAACL Findings 2025, arXiv 2406.08702.) Each instance goes through four stages: commonsense knowledge,
visual perception, commonsense bias (the counterfactual told in words) and language prior (only shown). A stage is
passed if both the true and the false statement are judged right, and later scores count only instances that passed
what comes before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, Published, field, read_rows
from vlmsteer.errors import InputError, did_you_mean

STAGES = ("CK", "VP", "CB", "LP")
TITLED = "VLind-Bench Dataset"  # the folder in the authors' own that holds all of it
STYLES = {"photorealistic": range(4), "illustration": range(4, 8), "cartoon": range(8, 12), "all": range(12)}
_FORGET = "Forget real-world common sense and just follow the information provided in the"
_ONLY = "Only respond in True or False."
PROMPTS = {
    # as the repository asks GPT-4o
    "detailed": {
        "CK": f"Statement: {{statement}}\nBased on the common sense, is the given statement true or false? {_ONLY}",
        "VP": f"Statement: {{statement}}\nBased on the image, is the given statement true or false? {_ONLY}",
        "CB": "Context: {context}\nStatement: {statement}\n"
        f"Based on the context, is the given statement true or false? {_FORGET} context. {_ONLY}",
        "LP": "Statement: {statement}\n"
        f"Based on the image, is the given statement true or false? {_FORGET} image. {_ONLY}",
    },
    # as it asks InstructBLIP
    "reversed": {
        "CK": f"{_ONLY}\nStatement: {{statement}}\nBased on common sense, is the given statement true or false?",
        "VP": f"{_ONLY}\nStatement: {{statement}}\nBased on the image, is the given statement true or false?",
        "CB": f"{_ONLY}\nContext: {{context}}\nStatement: {{statement}}\n"
        "Based on the context, is the given statement true or false?",
        "LP": f"{_ONLY}\nStatement: {{statement}}\nBased on the image, is the given statement true or false?",
    },
}


def load(files: Files, *, prompt: str = "detailed", style: str = "all", votes: int = 2) -> list[Item]:
    """The statements of every instance that has an image with enough votes.

    Args:
        files: the folder with `data.json` and `images/counterfactual` and `images/factual`.
        prompt: of `PROMPTS`.
        style: of the pictures in the last stage, one of `STYLES`.
        votes: how many people must have found a picture good.

    Raises:
        InputError: for a malformed instance, one that stands twice, an unknown option.
    """
    if prompt not in PROMPTS:
        raise InputError(f"VLind-Bench has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    if style not in STYLES:
        raise InputError(f"VLind-Bench has no style {style!r}{did_you_mean(style, STYLES)}.")
    path = files.find("data.json", f"{TITLED}/data.json")
    items: list[Item] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(read_rows(path), 1):
        where = f"Instance {number} of {str(path)!r}"
        text = {name: str(field(row, name, where, (str, int))) for name in TEXTS}
        earlier = seen.setdefault(tuple(text[name] for name in IDENTITY), number)
        if earlier != number:
            raise InputError(f"{where} is instance {earlier} again; remove one of them.")
        items += _instance(files, number, text, _good(row, where, style, votes), PROMPTS[prompt])
    return items


TEXTS = (
    "concept", "context_id", "context", "factual_context", "true_statement", "false_statement", "existent_noun",
    "non-existent_noun", "best_img_id",
)  # fmt: skip
IDENTITY = ("concept", "context_id", "context", "true_statement", "false_statement")


def _good(row: Mapping[str, Any], where: str, style: str, votes: int) -> list[str]:
    given = field(row, "aggregated_human_label_good_images", where, dict)
    if not all(isinstance(count, int) for count in given.values()):
        raise InputError(f"{where} has {given!r} in 'aggregated_human_label_good_images'; votes are whole numbers.")
    return [image for image, count in given.items() if count >= votes and image in map(str, STYLES[style])]


def _instance(
    files: Files, number: int, text: Mapping[str, str], good: Sequence[str], prompts: Mapping[str, str]
) -> list[Item]:
    if not good:
        return []
    name = f"{number:04d}"
    shown = f"{text['concept']}/{text['context_id']}_{text['context']}"
    usual = f"{text['concept']}/{text['context_id']}_{text['factual_context']}/0.jpg"
    true, false = text["true_statement"], text["false_statement"]
    nouns = [f"There is {text[noun]} in the given image." for noun in ("existent_noun", "non-existent_noun")]
    best = text["best_img_id"]
    # (stage, picture, the statement that is true there, the one that is false)
    asked = [("CK", None, false, true), ("VP", best, *nouns), ("CB", best, true, false)]
    asked += [("LP", image, true, false) for image in good]
    items = []
    for stage, image, *statements in asked:
        kind, file = ("factual", usual) if image is None else ("counterfactual", f"{shown}/{image}.jpg")
        path = files.image(file, f"images/{kind}", kind, f"{TITLED}/images/{kind}")
        for truth, statement in zip(("True", "False"), statements, strict=True):
            gold = {"stage": stage, "truth": truth, "concept": text["concept"], "images": len(good)}
            gold["image"] = image if stage == "LP" else None
            part = f"{stage}/{image}" if stage == "LP" else stage
            said = prompts[stage].format(statement=statement, context=text["context"])
            items.append(Item(f"{name}/{part}/{truth}", path, said, name, gold))
    return items


def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    """Counts by instance; one of which an answer is missing is left out."""
    instances: dict[str, list[tuple[Item, str]]] = {}
    for item, answer in zip(items, answers, strict=True):
        instances.setdefault(item.group, []).append((item, yesno.vlind(answer.text)))
    groups: list[str] = []
    counts: dict[str, list[float]] = {name: [] for name in COUNTS}
    for group, parts in instances.items():
        if len(parts) != 2 * (3 + parts[0][0].gold["images"]):
            continue
        passed: dict[tuple[str, str | None], bool] = {}
        for item, said in parts:
            key = (item.gold["stage"], item.gold["image"])
            passed[key] = passed.get(key, True) and said == item.gold["truth"]
        ck, vp, cb = (passed[(stage, None)] for stage in STAGES[:3])
        shown = [right for (stage, _), right in passed.items() if stage == "LP"]
        before = ck and vp and cb
        row = {
            "instances": 1,
            "CK": ck,
            "VP": vp,
            "CB": cb,
            "CB_after": ck and cb,
            "before_LP": before,
            "LP": sum(shown) / len(shown),
            "LP_after": before * sum(shown) / len(shown),
            "images_before": before * len(shown),
            "images_after": before * sum(shown),
            "asked": len(parts),
            "said_true": sum(said == "True" for _, said in parts),
            "unparsed": sum(said == "NA" for _, said in parts),
        }
        groups.append(group)
        for name, value in row.items():
            counts[name].append(float(value))
    return Tally(groups, counts)


COUNTS = (
    "instances", "CK", "VP", "CB", "CB_after", "before_LP", "LP", "LP_after", "images_before", "images_after", "asked",
    "said_true", "unparsed",
)  # fmt: skip


def _metrics(sums: Sums) -> dict[str, np.ndarray]:
    n = sums["instances"]
    exact = {
        "S_LP": _or_zero(share(sums["LP_after"], sums["before_LP"]), n) * 100,
        "S_CK": share(sums["CK"], n) * 100,
        "S_VP": share(sums["VP"], n) * 100,
        "S_CB": _or_zero(share(sums["CB_after"], sums["CK"]), n) * 100,
        "CB_acc": share(sums["CB"] * 100, n),
        "LP_acc": share(sums["LP"] * 100, n),
    }
    shares = {
        "true_ratio": share(sums["said_true"], sums["asked"]),
        "unparsed": share(sums["unparsed"], sums["asked"]),
        "instances_before_LP": np.asarray(sums["before_LP"]),
    }
    return {name: _printed(value) for name, value in exact.items()} | shares


def _or_zero(value: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The script's guard: 0 where no instance passed what comes before."""
    return np.where(np.isnan(value) & (n > 0), 0.0, value)


def _printed(value: np.ndarray) -> np.ndarray:
    """To one decimal, as the script prints."""
    return np.vectorize(lambda one: float(f"{one:.1f}"), otypes=[float])(value)


BENCHMARK = Benchmark(
    name="vlind",
    title="VLind-Bench",
    source="Lee et al. 2025, arXiv 2406.08702; klee972/VLind-Bench",
    load=load,
    scorers=(
        Scorer(
            "reference",
            "klee972/VLind-Bench@62bf96e eval/score_pipeline.py",
            tally,
            _metrics,
            {
                "S_LP": 1,
                "S_CK": 1,
                "S_VP": 1,
                "S_CB": 1,
                "CB_acc": 1,
                "LP_acc": 1,
                "true_ratio": 0,
                "unparsed": -1,
                "instances_before_LP": 1,
            },  # fmt: skip
            frozenset({"S_LP", "S_CK", "S_VP", "S_CB", "CB_acc", "LP_acc"}),
            numbers=frozenset({"instances_before_LP"}),
        ),
    ),
    max_new_tokens=64,
    hub=Published("klee972/VLind-Bench", ("*data.json", "*images/*")),
    notes="S_LP is 0, not undefined, where no instance passes the first stages; read it with instances_before_LP.",
)
