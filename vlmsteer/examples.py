"""What methods learn from: an image, a question, the right answer and a wrong one.

The same record holds a caption beside a hallucinated one, a yes/no question, and a question that an edited picture
answers otherwise. Items that share an image or an object share a `group`, which splits and intervals keep together.
On disk it is one JSON object a line; the public files of VTI (Liu et al., ICLR 2025, arXiv 2410.15778) and of POPE (Li
et al., EMNLP 2023, arXiv 2305.10355) are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.images import open_image

KINDS = ("caption", "presence", "object", "attribute", "relation")
LAYOUTS = "question, right, wrong (vlmsteer); question, value, h_value (VTI); or text, label (POPE)"


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        image: an image or a file, None if the question is asked without one.
        right, wrong: the true answer (a clean caption, "Yes", "red") and an untrue one.
        group: what it shares with others (image or object).
        kind: "caption", "presence", "object", "attribute" or "relation".
        edited: a counterfactual of the image, of which `wrong` is the true answer.
    """

    image: Image.Image | str | None
    question: str
    right: str
    wrong: str
    group: str
    kind: str = "caption"
    edited: Image.Image | str | None = None


def digest(examples: Sequence[Example]) -> str:
    """16 hexadecimal digits that change with any picture, question or answer, and with the order."""
    total = hashlib.sha256()
    for one in examples:
        total.update(json.dumps([one.question, one.right, one.wrong, one.group, one.kind]).encode())
        for image in (one.image, one.edited):
            total.update(b"none" if image is None else _pixels(open_image(image)).digest())
    return total.hexdigest()[:16]


def split_groups(examples: Sequence[Example], share: float, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Two parts that have no group in common; each keeps the order of the examples.

    The groups are ordered by a hash, and the first `share` of them, at least one and not all, make the first part.

    Raises:
        InputError: if there are fewer than two groups, or the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise InputError(f"A part of the examples is a share between 0 and 1, not {share!r}.")
    groups = sorted(
        {example.group for example in examples}, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()
    )
    if len(groups) < 2:
        raise InputError(
            f"{len(examples)} examples of {len(groups)} group cannot be split into two parts without a common group; "
            "at least two groups (images or objects) are needed."
        )
    first = set(groups[: min(max(1, round(share * len(groups))), len(groups) - 1)])
    return [one for one in examples if one.group in first], [one for one in examples if one.group not in first]


def load_examples(path: str | Path) -> list[Example]:
    """Read examples from a file with one JSON object a line, or with one JSON list of them.

    Ours has `image`, `question`, `right`, `wrong` and optionally `group`, `kind` and `edited`; VTI's has `image`,
    `question`, `value` (the clean caption) and `h_value` (the hallucinated one); POPE's has `image`, `text` and
    `label` ("yes" or "no"). A group that is not given is the image's name. Images are files relative to the file's
    folder; only ours may have `"image": null`, a question without one.

    Raises:
        InputError: if the file cannot be read, a line is malformed or its image is missing, with the line's number.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The examples in {str(path)!r} cannot be read: {error}.") from error
    examples = [_example(row, where, path.parent) for where, row in _rows(text, path)]
    if not examples:
        raise InputError(f"{str(path)!r} holds no examples; write one JSON object a line, with image, {LAYOUTS}.")
    return examples


def save_examples(path: str | Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines, and their images as PNG files into a folder of the same name beside them.

    Raises:
        InputError: if an image or the file cannot be written.
    """
    path = Path(path)
    folder = path.with_suffix("")
    if folder == path:
        raise InputError(f"Name the file of examples with an ending, such as {path.name + '.jsonl'!r}.")

    def stored(image: Image.Image | str | None) -> str | None:
        if image is None:
            return None
        opened = open_image(image)
        file = folder / f"{_pixels(opened).hexdigest()[:24]}.png"  # the same picture is written once
        if not file.exists():
            opened.save(file)
        return f"{folder.name}/{file.name}"

    lines = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in examples:
            row = {"image": stored(one.image), "question": one.question, "right": one.right, "wrong": one.wrong}
            row |= {"group": one.group, "kind": one.kind}
            lines.append(json.dumps(row if one.edited is None else row | {"edited": stored(one.edited)}) + "\n")
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"The examples cannot be written to {str(path)!r}: {error}.") from error


def _pixels(image: Image.Image) -> Any:
    return hashlib.sha256(str(image.size).encode() + image.tobytes())


def _rows(text: str, path: Path) -> list[tuple[str, Any]]:
    """(where, value) for each row; some published files are one list although they are named .json."""
    if text.lstrip().startswith("["):
        try:
            return [(f"Entry {i} of {str(path)!r}", row) for i, row in enumerate(json.loads(text), 1)]
        except ValueError as error:
            raise InputError(f"{str(path)!r} is not valid JSON: {error}.") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            where = f"Line {number} of {str(path)!r}"
            try:
                rows.append((where, json.loads(line)))
            except ValueError as error:
                raise InputError(f"{where} is not valid JSON ({error}); write one object a line.") from error
    return rows


def _example(row: Any, where: str, folder: Path) -> Example:
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is not a JSON object; write one with image, {LAYOUTS}.")
    kind = "caption"
    if "label" in row and "text" in row:
        label = _text(row, "label", where).strip().lower()
        if label not in ("yes", "no"):
            raise InputError(f"{where} has the label {row['label']!r}; it is 'yes' or 'no'.")
        right, wrong = ("Yes", "No") if label == "yes" else ("No", "Yes")
        kind, question = "presence", _text(row, "text", where)
    elif "h_value" in row:
        question, right, wrong = (_text(row, key, where) for key in ("question", "value", "h_value"))
    elif "right" in row or "wrong" in row:
        question, right, wrong = (_text(row, key, where) for key in ("question", "right", "wrong"))
        kind = row.get("kind", kind)
    else:
        raise InputError(f"{where} has {', '.join(map(str, row)) or 'nothing'}; it needs image, {LAYOUTS}.")
    if kind not in KINDS:
        raise InputError(f"{where} has the kind {kind!r}{did_you_mean(str(kind), KINDS)}.")
    if right.strip() == wrong.strip():
        raise InputError(f"{where} has the same right and wrong answer, {right!r}; they must differ.")
    if "image" not in row or (row["image"] is None and "right" not in row):
        raise InputError(f"{where} names no image; add 'image', a file relative to {str(folder)!r}.")
    image = _file(row, "image", where, folder)
    group = str(row["group"]) if row.get("group") is not None else str(row["image"] or question)
    edited = _file(row, "edited", where, folder) if "edited" in row else None
    return Example(image, question, right, wrong, group, kind, edited)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} needs a text in {key!r}, and has {value!r}.")
    return value


def _file(row: Mapping[str, Any], key: str, where: str, folder: Path) -> str | None:
    if row[key] is None:
        return None
    file = folder / _text(row, key, where)
    if not file.is_file():
        raise InputError(f"{where} names the {key} {row[key]!r}, which is not in {str(folder)!r}; put it there.")
    return str(file)
