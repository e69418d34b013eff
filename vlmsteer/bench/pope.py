"""POPE: is this object in the image? Half are; those that are not were drawn at random, as popular or as co-occurring.

Three generations of its COCO files circulate and four protocols ask the same questions in other words, so both are
named here. With RePOPE's labels the same questions are asked, and those that it found ambiguous are not scored. (Li,
Du, Zhou, Wang, Zhao and Wen, EMNLP 2023, arXiv 2305.10355; Neuhaus and Hein, 2025, arXiv 2504.15707.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmsteer.bench.benchmark import Benchmark, Item
from vlmsteer.bench.files import Files, field, read_rows, recognized
from vlmsteer.bench.pope_scorers import SCORERS
from vlmsteer.errors import InputError, did_you_mean

SPLITS = ("random", "popular", "adversarial")
PROMPTS = {
    "question": "{question}",  # POPE, OPERA, VISTA
    "llava": "{question}\nAnswer the question using a single word or phrase.",  # LLaVA, lmms-eval
    "cd_rethink": "{question} Answer the question using a single word or phrase.",
    "vcd": "{question} Please answer this question with one word.",
}
IMAGES = {"coco": ("val2014", "images"), "aokvqa": ("val2014", "images"), "gqa": ("images",)}
CURRENT, OLD = "AoiDragon/POPE's current generation", "the older generation of OPERA, VISTA and the LLaVA-1.5 paper"
KNOWN = {  # first digits of a file's SHA-256 -> its split and generation
    "ac25245170b9": "random: AoiDragon/POPE's current generation, the same in VCD",
    "72c1a8ad45d0": f"popular: {CURRENT}",
    "420b3407db1f": f"adversarial: {CURRENT}",
    "fa3a986eb3d5": "popular: the generation of VCD, RePOPE and cd_rethink",
    "185d7eb49958": "adversarial: the generation of VCD, RePOPE and cd_rethink",
    "c16b65d2df6d": f"random: {OLD}",
    "5b16653023bf": f"popular: {OLD}",
    "1d8f0906a9b5": f"adversarial: {OLD}",
}
SIZES = {  # rows by which a generation is known
    3000: "the current files of AoiDragon/POPE, VCD and cd_rethink",
    2910: "the older random file of OPERA, VISTA and the LLaVA-1.5 paper",
}


def load(
    files: Files,
    *,
    split: str = "random",
    dataset: str = "coco",
    labels: str = "pope",
    prompt: str = "question",
    questions: str = "",
) -> list[Item]:
    """The questions of one split or of all.

    Args:
        files: a folder with `coco_pope_random.json` and so on (`aokvqa_pope_seem_random.json`), or one above it.
        split: "random", "popular", "adversarial" or "all".
        dataset: "coco", "aokvqa" or "gqa".
        labels: "pope", or "repope" with `coco_repope_random.json` and so on beside them. RePOPE's rows are joined by id
            and checked by image and question; what it leaves out has the label None and is not scored.
        prompt: one of `PROMPTS`.
        questions: a file of another name; its split is what its content or its name says, else `split`.

    Raises:
        InputError: for an unknown option, a malformed row, a wrong label, an id that occurs twice, a file that is known
            to be another split, or labels that are not to these questions.
    """
    for name, given, possible in (
        ("split", split, (*SPLITS, "all")), ("dataset", dataset, tuple(IMAGES)),
        ("labels", labels, ("pope", "repope")), ("prompt", prompt, tuple(PROMPTS)),
    ):  # fmt: skip
        if given not in possible:
            raise InputError(f"POPE has no {name} {given!r}{did_you_mean(given, possible)}.")
    if labels == "repope" and dataset != "coco":
        raise InputError(f"RePOPE has labels for COCO only, not for {dataset!r}.")
    if questions:
        path = files.find(questions)
        paths = {_named_split(path) or split: path}
        if "all" in paths:
            raise InputError(f"{str(path)!r} is one file; say which split it is: {', '.join(SPLITS)}.")
    else:
        paths = {one: _find(files, dataset, one) for one in (SPLITS if split == "all" else (split,))}
    items = []
    for one, path in paths.items():
        rows = _rows(path)
        is_ = recognized(path, KNOWN)
        if is_ and not is_.startswith(f"{one}:"):
            raise InputError(f"{str(path)!r} should be the {one} split, but by its content it is {is_}.")
        told = f"'{path.name}' ({len(rows)} rows, {is_.partition(': ')[2] if is_ else 'no known generation'})"
        wanted: Mapping[str, str | None] = {number: row["label"] for number, row in rows.items()}
        if labels == "repope":
            wanted = _repope(_find(files, "coco", one, "repope"), rows, told)
        for number, row in rows.items():
            gold = {
                "label": wanted[number], "question": row["text"], "question_id": row["question_id"],
                "image": row["image"], "split": one, "file": told, "labels": labels,
            }  # fmt: skip
            text = PROMPTS[prompt].replace("{question}", row["text"])
            image = files.image(row["image"], *IMAGES[dataset])
            items.append(Item(f"{dataset}/{one}/{number}", image, text, row["image"], gold))
    return items


def plain(question: str) -> str:
    """A question with single blanks and without the "imange" of older generations, which put "an" for every "a"."""
    return " ".join(question.replace("imange", "image").split())


def _find(files: Files, dataset: str, split: str, kind: str = "pope") -> Path:
    stems = (f"{dataset}_{kind}_{split}", f"{dataset}_{kind}_seem_{split}")
    folders = ("", f"{dataset}/", "annotations/")
    names = [f"{folder}{stem}.{ending}" for folder in folders for stem in stems for ending in ("json", "jsonl")]
    return files.find(next((name for name in names if files.has(name)), names[0]))


def _named_split(path: Path) -> str | None:
    said = (recognized(path, KNOWN) or path.name).lower()
    return next((split for split in SPLITS if split in said), None)


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_rows(path), 1):
        where = f"Row {number} of {str(path)!r}"
        one = str(field(row, "question_id", where, (int, str)))
        for name in ("image", "text", "label"):
            field(row, name, where)
        if row["label"] not in ("yes", "no"):
            raise InputError(f"{where} has the label {row['label']!r}; POPE's labels are yes and no.")
        if one in found:
            raise InputError(f"{where} has the question_id {one}, which an earlier row has too.")
        found[one] = row
    return found


def _repope(path: Path, questions: Mapping[str, Mapping[str, Any]], told: str) -> dict[str, str | None]:
    labels: dict[str, str | None] = dict.fromkeys(questions)
    for number, row in _rows(path).items():
        asked = questions.get(number)
        if asked is None or (asked["image"], plain(asked["text"])) != (row["image"], plain(row["text"])):
            raise InputError(
                f"{str(path)!r} is not about the questions of {told}: question_id {number} is {row['text']!r} about "
                f"{row['image']} there. RePOPE's labels go with the 3000-row files of AoiDragon/POPE or VCD."
            )
        labels[number] = row["label"]
    return labels


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    source="Li et al., EMNLP 2023, arXiv 2305.10355; AoiDragon/POPE@08d957b",
    load=load,
    scorers=SCORERS,
    max_new_tokens=32,
    yes_no=True,
    notes=(
        "Published numbers differ by prompt (POPE, OPERA, VISTA: the question alone; LLaVA, lmms-eval: a single word "
        "or phrase; VCD: one word, sampled), by generation of the files (the older random file has 2910 rows) and by "
        "scorer. A gain beside a changed yes-ratio may be a shift of bias: look at strict's phd_index, the harmonic "
        "mean of the recalls of yes and no. Where no answer is a yes the original scripts crash; precision, recall and "
        "F1 are 0 here."
    ),
)
