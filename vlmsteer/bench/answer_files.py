"""Answers that other scripts saved, and which question each of them belongs to.

Most published scripts pair answers with questions by their position and cut off silently what is left over. Here an
answer is found by its id or its image and then checked by whatever else its file says (question, image, label);
position counts only where a file says nothing but the questions and every one of them agrees.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import field, read_rows
from vlmsteer.bench.pope import SIZES, plain
from vlmsteer.errors import InputError

_PICTURE = re.compile(r"(?:COCO_\w+?_)?0*(\d+)")


@dataclass(frozen=True)
class Form:
    """How one kind of file calls things; a row always has the answer's text and the first key of id, image, question.

    Attributes:
        name: whose files they are.
        text, id, image, question, label: keys; further than the needed ones are read where they are there. An id may
            be put together from several keys, "set_id/question_id".
        needs: the key, beside the text's, that every row has.
    """

    name: str
    text: str
    needs: str
    id: str = ""
    image: str = ""
    question: str = ""
    label: str = ""


FORMS = (  # the first that fits
    Form("VISTA", "ans", "query", question="query", label="label"),
    Form("questions with a response", "response", "question_id", id="question_id", image="image", question="text"),
    Form("POPE with ids", "answer", "question_id", id="question_id", image="image", question="question"),
    Form("POPE", "answer", "question", image="image", question="question", label="label"),
    Form("LLaVA, VCD, cd_rethink", "text", "question_id", id="question_id", image="image", question="prompt"),
    Form("AMBER", "response", "id", id="id", image="image", question="query"),
    Form("CHAIR and OPERA captions", "caption", "image_id", image="image_id"),
    Form("EOS captions", "text", "image_id", image="image_id"),
    Form(
        "HallusionBench",
        "model_prediction",
        "set_id",
        question="question",
        id="category/subcategory/set_id/figure_id/question_id",
    ),
    Form("MMHal", "model_answer", "question", question="question"),
)


@dataclass(frozen=True)
class Saved:
    """One saved answer; None is what its file does not say. `row` counts from 1."""

    row: int
    text: str
    id: str | None = None
    image: str | None = None
    question: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Joined:
    """Items with their answers, in the items' order, and how they were found, as a phrase."""

    items: list[Item]
    answers: list[Answer]
    how: str


def read(path: Path) -> list[Saved]:
    """Saved answers, in any of `FORMS`.

    Raises:
        InputError: if the file cannot be read, holds no answers or questions without answers, or a row is malformed.
    """
    rows = read_rows(path)
    if not rows:
        raise InputError(f"{str(path)!r} holds no answers.")
    keys = set(rows[0])
    form = next((form for form in FORMS if {form.text, form.needs} <= keys), None)
    if form is not None and form.text == "text" and {"image", "label"} <= keys:
        raise InputError(f"{str(path)!r} holds questions with labels, not answers; give it with --questions.")
    if form is None:
        known = ", ".join(f"{one.needs} and {one.text} ({one.name})" for one in FORMS)
        raise InputError(f"{str(path)!r} has rows with {', '.join(sorted(keys))}. Answer files have {known}.")
    return [_saved(row, form, number, f"Row {number} of {str(path)!r}") for number, row in enumerate(rows, 1)]


def join(items: Sequence[Item], saved: Sequence[Saved], name: str, partial: bool = False) -> Joined:
    """Find each item's answer.

    Args:
        items: of one benchmark. Its files' own ids and images are looked for in an item's gold ("question_id", "id",
            "image_id", "image"), then in its id and image.
        saved: the answers.
        name: of the answer file, for messages.
        partial: keep only the items that have an answer, instead of refusing.

    Raises:
        InputError: if an answer's id, image or question occurs twice or belongs to no item, an item has no answer, an
            answer is to another question, or the number of answers shows that they belong to another question file.
    """
    if not items or not saved:
        raise InputError(f"There is nothing to score: {len(saved)} answers in {name!r}, {len(items)} questions.")
    about = str(items[0].gold.get("file", "of the benchmark"))
    if len(items) != len(saved) and {len(items), len(saved)} <= set(SIZES) and "file" in items[0].gold:
        raise InputError(
            f"{name!r} holds {len(saved)} answers, the number of rows of {SIZES[len(saved)]}, but the questions are "
            f"{about}. The two differ in more than their length, the same id is another question in each; give the "
            f"question file that was answered."
        )
    if all(one.id is not None for one in saved):
        keys, how = [one.id or "" for one in saved], "id"
        own = _best(_ids(items), keys, about, "id")
    elif all(one.image is not None for one in saved):
        named = all(one.question is not None for one in saved)
        keys = [_pair(one.image, one.question if named else None) for one in saved]
        how = "image and question" if named else "image"
        own = _best(_images(items, named), keys, about, how)
    else:
        if len(items) != len(saved):
            raise InputError(
                f"{name!r} has neither ids nor images, and {len(saved)} answers for {len(items)} questions ({about}): "
                f"which answer belongs to which question cannot be known."
            )
        keys, how = [str(number) for number in range(len(saved))], "position"
        own = keys
    _once(keys, saved, name, how)
    found = dict(zip(keys, saved, strict=True))
    missing = [key for key in own if key not in found]
    surplus = sorted(found.keys() - set(own), key=lambda key: found[key].row)
    if surplus:
        raise InputError(
            f"{len(surplus)} answers of {name!r} belong to no question (row {found[surplus[0]].row}, {how} "
            f"{surplus[0]}); the questions are {about}."
        )
    if missing and not partial:
        raise InputError(
            f"{len(missing)} of {len(items)} questions ({about}) have no answer in {name!r}, {how} {missing[0]} among "
            f"them. With --partial only those are scored that have one."
        )
    pairs = [(item, found[key]) for item, key in zip(items, own, strict=True) if key in found]
    checked = [what for what in _check(pairs, name, about) if what not in how]
    kept, answers = [item for item, _ in pairs], [Answer(one.text) for _, one in pairs]
    return Joined(kept, answers, f"by {how}" + (f", checked by {' and '.join(checked)}" if checked else ""))


def _saved(row: dict[str, Any], form: Form, number: int, where: str) -> Saved:
    def optional(key: str) -> str | None:
        return None if row.get(key) in (None, "") else str(row[key])

    field(row, form.needs, where, (str, int))
    parts = [optional(key) for key in form.id.split("/")]
    id = None if None in parts else "/".join(map(str, parts))
    text = field(row, form.text, where)
    return Saved(number, text, id, optional(form.image), optional(form.question), optional(form.label))


def _picture(name: str) -> str:
    """An image's name as files agree on it: 391895, 000000391895.jpg and COCO_val2014_000000391895.jpg are one."""
    stem = re.sub(r"\.(jpe?g|png|webp)$", "", name.replace("\\", "/").rpartition("/")[2], flags=re.IGNORECASE)
    number = _PICTURE.fullmatch(stem)
    return number[1] if number else stem


def _pair(image: str | None, question: str | None) -> str:
    return _picture(image or "") + ("" if question is None else f", {plain(question)!r}")


def _ids(items: Sequence[Item]) -> Iterator[list[str]]:
    for key in ("question_id", "id"):
        if all(key in item.gold for item in items):
            yield [str(item.gold[key]) for item in items]
    yield [item.id for item in items]
    yield [item.id.rpartition("/")[2] for item in items]


def _images(items: Sequence[Item], named: bool) -> Iterator[list[str]]:
    questions = [item.gold.get("question", item.prompt) if named else None for item in items]
    for key in ("image_id", "image"):
        if all(key in item.gold for item in items):
            yield [_pair(str(item.gold[key]), text) for item, text in zip(items, questions, strict=True)]
    yield [_pair(item.image, text) for item, text in zip(items, questions, strict=True)]
    yield [_pair(item.id, text) for item, text in zip(items, questions, strict=True)]


def _best(candidates: Iterator[list[str]], keys: Sequence[str], about: str, how: str) -> list[str]:
    """What the items are called in the answers' file: the names that most answers have."""
    wanted = set(keys)
    own = max(candidates, key=lambda names: len(wanted.intersection(names)))
    shared = next((key for key, count in Counter(own).items() if count > 1 and key in wanted), None)
    if shared is not None:
        raise InputError(
            f"The {how} {shared} stands for more than one question ({about}, and others), so it does not say which was "
            f"answered; score one split at a time."
        )
    return own


def _once(keys: Sequence[str], saved: Sequence[Saved], name: str, how: str) -> None:
    rows: dict[str, int] = {}
    for key, one in zip(keys, saved, strict=True):
        if key in rows:
            raise InputError(f"Rows {rows[key]} and {one.row} of {name!r} both answer the question of {how} {key}.")
        rows[key] = one.row


def _check(pairs: Sequence[tuple[Item, Saved]], name: str, about: str) -> list[str]:
    """Compare what the file says beside the answers; returns what could be compared."""
    compared = {"question": False, "image": False, "label": False}
    odd: list[tuple[Saved, str, object]] = []
    for item, one in pairs:
        asked = item.gold.get("question", item.prompt)
        if one.question is not None:
            compared["question"] = True
            if plain(asked) not in plain(one.question) and plain(one.question) not in plain(item.prompt):
                odd.append((one, f"answers {one.question!r}", asked))
        shown = item.gold.get("image_id", item.gold.get("image", item.image))
        if one.image is not None and shown is not None:
            compared["image"] = True
            if _picture(one.image) != _picture(str(shown)):
                odd.append((one, f"is about {one.image}", shown))
        label = item.gold.get("label")
        if one.label is not None and label in ("yes", "no") and item.gold.get("labels") != "repope":
            compared["label"] = True
            if {"1": "yes", "0": "no"}.get(one.label, one.label.lower()) != label:
                odd.append((one, f"has the label {one.label}", label))
    if odd:
        one, says, own = odd[0]
        raise InputError(
            f"{len({one.row for one, _, _ in odd})} of {len(pairs)} answers of {name!r} are not to these questions: "
            f"row {one.row} {says}, where the questions ({about}) have {own!r}. Give the file that was answered."
        )
    return [what for what, was in compared.items() if was]
