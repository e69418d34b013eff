"""PhD: each picture gets one question whose answer is yes and one whose answer is no, with a context that lies or not.

(PhD: A ChatGPT-Prompted Visual hallucination Evaluation Dataset, Liu et al., CVPR 2025, arXiv 2403.11116.) The PhD
index is the harmonic mean of the recall of yes and of no: always saying one of the two gives 0, whatever the share of
questions. The authors publish no parser; the first word of an answer decides here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, field, read_rows
from vlmsteer.errors import InputError, did_you_mean

MODES = ("base", "iac", "icc", "ccs")
CONFLICT = " In case there is an inconsistency between the context and the image content, you should follow the image. "
PROMPTS = {
    "published": "{question}",
    "one_word": "{question}\nAnswer the question using a single word or phrase.",
}


def phd_index(yes_recall: np.ndarray, no_recall: np.ndarray) -> np.ndarray:
    """The harmonic mean of two recalls in 0..1, arrays of one shape: 0 where both are 0, nan where one is undefined."""
    total = yes_recall + no_recall
    return np.where(total == 0, 0.0, share(2 * yes_recall * no_recall, total))


def load(files: Files, *, mode: str = "base", prompt: str = "published") -> list[Item]:
    """Both questions of every row of `data.json`, which the user supplies; its rows have no licence to be passed on.

    Args:
        files: the folder, with pictures as the authors lay them out: `images/train2014`, `images/val2014` (COCO) and
            `images/CCS_images`, or without `images/`.
        mode: "base" asks the question alone; "iac" and "icc" put an inaccurate or an incorrect context before it, and
            the sentence that the picture counts; "ccs" asks it about pictures against common sense (`data_ccs.json`
            is read too).
        prompt: of `PROMPTS`.

    Raises:
        InputError: for a malformed row, one that stands twice, an unknown option, or if no row is of the mode.
    """
    if mode not in MODES:
        raise InputError(f"PhD has no mode {mode!r}{did_you_mean(mode, MODES)}.")
    if prompt not in PROMPTS:
        raise InputError(f"PhD has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    path = files.find("data.json", *(["data_ccs.json"] if mode == "ccs" else []))
    items: list[Item] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(read_rows(path), 1):
        if ("ccs_description" in row) != (mode == "ccs"):
            continue
        where = f"Row {number} of {str(path)!r}"
        questions = {truth: field(row, f"{truth}_question", where) for truth in ("yes", "no")}
        before = _context(row, where, mode)
        image = _image(files, row, where, mode)
        earlier = seen.setdefault((image, *questions.values(), before), number)
        if earlier != number:
            raise InputError(f"{where} is row {earlier} again; remove one of them.")
        for truth, question in questions.items():
            text = PROMPTS[prompt].format(question=before + question)
            gold = {"truth": truth, "mode": mode, "task": row.get("task"), "pair": f"{mode}/{number:06d}"}
            items.append(Item(f"{mode}/{number:06d}/{truth}", image, text, Path(image).name, gold))
    if not items:
        raise InputError(f"{str(path)!r} has no rows of the mode {mode!r}; the modes are {', '.join(MODES)}.")
    return items


def _context(row: Mapping[str, Any], where: str, mode: str) -> str:
    if mode in ("base", "ccs"):
        return ""
    contexts = field(row, "context", where, dict)
    # The dataset on the hub calls the inaccurate context "sec".
    key = "sec" if mode == "iac" and "iac" not in contexts else mode
    return field(contexts, key, f"{where}, 'context',") + CONFLICT


def _image(files: Files, row: Mapping[str, Any], where: str, mode: str) -> str:
    if "image_path" in row:
        return files.image(field(row, "image_path", where))
    number = str(field(row, "image_id", where, (str, int)))
    if mode == "ccs":
        return files.image(f"{number}.png", "images/CCS_images", "CCS_images")
    # A row does not say which part of COCO its picture is in.
    parts = ("val2014", "train2014")
    names = [f"COCO_{part}_{number.zfill(12)}.jpg" for part in parts]
    folders = [f"{root}{part}" for part in parts for root in ("images/", "")]
    return files.image(names[0], *folders, also=names[1:])


def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    """Counts by question."""
    names = ("yes", "no", "right_yes", "right_no", "said_yes", "unparsed")
    counts: dict[str, list[float]] = {name: [] for name in names}
    for item, answer in zip(items, answers, strict=True):
        truth, said = item.gold["truth"], yesno.strict(answer.text)
        right = said == truth
        row = (
            truth == "yes",
            truth == "no",
            right and truth == "yes",
            right and truth == "no",
            said == "yes",
            said is None,
        )
        for name, value in zip(names, row, strict=True):
            counts[name].append(float(value))
    return Tally([item.group for item in items], counts)


def _metrics(sums: Sums) -> dict[str, np.ndarray]:
    asked = sums["yes"] + sums["no"]
    yes_recall, no_recall = share(sums["right_yes"], sums["yes"]), share(sums["right_no"], sums["no"])
    return {
        "PhD_index": phd_index(yes_recall, no_recall),
        "yes_recall": yes_recall,
        "no_recall": no_recall,
        "accuracy": share(sums["right_yes"] + sums["right_no"], asked),
        "yes_ratio": share(sums["said_yes"], asked),
        "unparsed": share(sums["unparsed"], asked),
    }


BENCHMARK = Benchmark(
    name="phd",
    title="PhD",
    source="Liu et al. 2025, arXiv 2403.11116; jiazhen-code/PhD",
    load=load,
    scorers=(
        Scorer(
            "strict",
            "ours; the index as in the paper",
            tally,
            _metrics,
            {"PhD_index": 1, "yes_recall": 1, "no_recall": 1, "accuracy": 1, "yes_ratio": 0, "unparsed": -1},
        ),
    ),
    max_new_tokens=10,
    yes_no=True,
    notes="An answer that begins with neither yes nor no is wrong and no recall; each mode is a benchmark of its own.",
)
