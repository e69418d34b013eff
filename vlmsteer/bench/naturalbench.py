"""NaturalBench: two questions about two images, so that neither alone gives the answers (Li et al., NeurIPS 2024).

Each question has one answer on the first image and the other on the second, each image one on the first question and
the other on the second: whoever always says yes, or never looks, gets half of the answers and no question, image or
group right (arXiv 2410.14669). The published scorer takes the first question's answer on the first image for yes (or
A) without reading the labels; ours reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, Published, field, read_rows, stored
from vlmsteer.errors import InputError, did_you_mean

KINDS = {
    "yes_no": "Please answer Yes or No.",
    "multiple_choice": "Please output the letter corresponding to the correct option.",
}
PROMPTS = {  # the authors' script puts no blank between the question and what it adds
    "official": "{question}{instruction}",
    "lmms": "{question} {instruction}",
    "bare": "{question}",
}
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # question, image: the order of answers in the authors' script
LABELS = {"yes": ("yes", 1), "no": ("no", 0), "a": ("A", 1), "b": ("B", 0)}
ASSUMED = (1, 0, 0, 1)  # by the published scorer, for every group
COLUMNS = (
    "Question_0", "Question_1", "Image_0", "Image_1", "Question_Type",
    "Image_0_Question_0", "Image_1_Question_0", "Image_0_Question_1", "Image_1_Question_1",
)  # fmt: skip
_LETTER = re.compile(
    r"^\W*(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is)?\W*)*([ab])(?=[\s*_`\"')\]]*(?:[.:,;)\]]|$))",
    re.IGNORECASE,
)


def load(files: Files, *, prompt: str = "official", kind: str = "all") -> list[Item]:
    """Four questions for each group.

    Rows are those of the public data set (`COLUMNS`, and `Index` where it is there): `naturalbench.json` (or .jsonl),
    in which `Image_0` and `Image_1` are names of image files, in `images` or beside it; else the data set's parquet
    files, in the folder or its `data`.

    Args:
        files: the folder and further image folders.
        prompt: a name in `PROMPTS`.
        kind: "yes_no", "multiple_choice" or "all".

    Raises:
        InputError: if there are no such files, a row is malformed, a name is unknown, or pictures cannot be written.
    """
    if prompt not in PROMPTS:
        raise InputError(f"NaturalBench has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    if kind not in (*KINDS, "all"):
        raise InputError(f"NaturalBench has no questions of type {kind!r}{did_you_mean(kind, (*KINDS, 'all'))}.")
    items = []
    for number, (where, row) in enumerate(_rows(files)):
        asked = field(row, "Question_Type", where)
        if asked not in KINDS:
            raise InputError(f"{where} has the question type {asked!r}{did_you_mean(asked, KINDS)}.")
        if kind not in (asked, "all"):
            continue
        group = str(row.get("Index", number))
        images = [_image(files, row[f"Image_{i}"], where) for i in (0, 1)]
        for question, image in CORNERS:
            label, positive = _label(row, f"Image_{image}_Question_{question}", asked, where)
            text = PROMPTS[prompt].format(question=field(row, f"Question_{question}", where), instruction=KINDS[asked])
            gold = {"label": label, "positive": positive, "kind": asked, "corner": f"q{question}_i{image}"}
            items.append(Item(f"{group}/q{question}_i{image}", images[image], text, group, gold))
    return items


def strict(text: str, kind: str) -> int:
    """Our own rule: 1 for yes or A, 0 for no or B, -1 for neither.

    Yes and no are the first whole word (`yesno.strict`); a letter counts only where it stands for itself at the
    beginning ("B", "(b)", "Option A.", "The answer is A: red"), so that "A man" is no answer.
    """
    if kind == "yes_no":
        return {"yes": 1, "no": 0}.get(yesno.strict(text) or "", -1)
    found = _LETTER.search(text)
    return -1 if found is None else int(found[1].lower() == "a")


def _rows(files: Files) -> Iterator[tuple[str, Mapping[str, Any]]]:
    names = ("naturalbench.json", "naturalbench.jsonl", "NaturalBench.json", "NaturalBench.jsonl")
    while True:
        path = next((files.folder / name for name in names if files.has(name)), None)
        tables = sorted(files.folder.glob("*.parquet")) + sorted((files.folder / "data").glob("*.parquet"))
        if path or tables:
            break
        files.fetch(*names, "*.parquet")
    if path is None:
        yield from _table_rows(tables)
        return
    for number, row in enumerate(read_rows(path), 1):
        where = f"Row {number} of {str(path)!r}"
        for column in COLUMNS:
            field(row, column, where)
        yield where, row


def _table_rows(paths: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    for path in paths:
        try:
            table = pyarrow.parquet.ParquetFile(path)
            missing = [name for name in COLUMNS if name not in table.schema_arrow.names]
            if missing:
                raise InputError(f"{str(path)!r} has no column {missing[0]!r}; NaturalBench has {', '.join(COLUMNS)}.")
            for batch in table.iter_batches(32):  # the pictures of all rows would not fit in memory
                for row in batch.to_pylist():
                    yield f"A row of {str(path)!r}", row
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{str(path)!r} cannot be read as parquet: {error}.") from error


def _image(files: Files, value: Any, where: str) -> str:
    if isinstance(value, str):
        return files.image(value, "images")
    data = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(data, bytes):
        raise InputError(f"{where} has no picture: a file name or its bytes.")
    return stored(data)


def _label(row: Mapping[str, Any], column: str, kind: str, where: str) -> tuple[str, int]:
    given = field(row, column, where).strip().lower()
    allowed = ("yes", "no") if kind == "yes_no" else ("a", "b")
    if given not in allowed:
        raise InputError(f"{where} has {row[column]!r} in {column!r}; it is {' or '.join(allowed)}.")
    return LABELS[given]


def _scorer(name: str, source: str, read: Callable[[str, str], int], by_label: bool) -> Scorer:
    def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
        groups: dict[str, dict[str, tuple[Item, int]]] = {}
        for item, answer in zip(items, answers, strict=True):
            groups.setdefault(item.group, {})[item.gold["corner"]] = (item, read(answer.text, item.gold["kind"]))
        whole = {group: corners for group, corners in groups.items() if len(corners) == len(CORNERS)}
        counts: dict[str, list[float]] = {name: [] for name in COUNTS}
        for corners in whole.values():
            four = [corners[f"q{question}_i{image}"] for question, image in CORNERS]
            wanted = [item.gold["positive"] for item, _ in four] if by_label else ASSUMED
            said = [one for _, one in four]
            right = [one == label for one, label in zip(said, wanted, strict=True)]
            found = {
                "groups": 1,
                "right": sum(right),
                "questions": (right[0] and right[1]) + (right[2] and right[3]),
                "images": (right[0] and right[2]) + (right[1] and right[3]),
                "whole": all(right),
                "positive": said.count(1),
                "unparsed": said.count(-1),
            }
            for count in COUNTS:
                counts[count].append(float(found[count]))
        return Tally(list(whole), counts)

    return Scorer(name, source, tally, _metrics, WANTED)


def _metrics(sums: Sums) -> dict[str, np.ndarray]:
    n = sums["groups"]
    return {
        "G_Acc": share(sums["whole"], n),
        "Q_Acc": share(sums["questions"], 2 * n),
        "I_Acc": share(sums["images"], 2 * n),
        "Acc": share(sums["right"], 4 * n),
        "yes": share(sums["positive"], 4 * n),
        "unparsed": share(sums["unparsed"], 4 * n),
    }


COUNTS = ("groups", "right", "questions", "images", "whole", "positive", "unparsed")
WANTED = {"G_Acc": 1, "Q_Acc": 1, "I_Acc": 1, "Acc": 1, "yes": 0, "unparsed": -1}
BENCHMARK = Benchmark(
    "naturalbench",
    "NaturalBench",
    "Li et al., arXiv 2410.14669; huggingface.co/datasets/BaiqiL/NaturalBench",
    load,
    (
        _scorer("official", "Baiqi-Li/NaturalBench@9967605 naturalbench_vqa.py", yesno.naturalbench, False),
        _scorer("strict", "ours", strict, True),
    ),
    16,
    yes_no=True,
    hub=Published("BaiqiL/NaturalBench", ("data/*.parquet",)),
    notes="The authors' prompt has no blank between question and instruction, lmms-eval's has one (--set prompt=lmms). "
    "`official` takes the article 'a' for the option A and holds yes (or A) for right where question and image have "
    "the same number, whatever the file says; `strict` reads the file's answers. `yes` is the share of yes and A.",
)
