"""Changing one thing in the page's image: a mask from a box or strokes, an edit of the library's, sets of pairs.

One piece of work belongs to a visitor: the picture, where its object is, and what was made of it last.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer_counterfacts import edits, masks, record
from vlmsteer_counterfacts.build import check, scorer_of
from vlmsteer_counterfacts.checks import Check
from vlmsteer_counterfacts.color import NAMES, name_indices
from vlmsteer_counterfacts.drawn import Draft
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.photos import edit
from vlmsteer_counterfacts.recolor import recolor

LONGEST = 1024  # pixels of the longer side that edits work on
MOST_DOTS = 4000  # of all strokes
MOST_PAIRS = 200  # of a set
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")  # of the grid
KINDS = {"color": "Recolor", "size": "Resize", "presence": "Remove"}
SIDES = ("inside", "outside")
SET = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
NO_MASK = "Say where the object is first: drag a box around it, or paint on it with the brush."

_sets = threading.Lock()  # a set is read and written as a whole

Stroke = tuple[float, tuple[tuple[float, float], ...]]  # its width and its points, in fractions of the picture's width


@dataclass(frozen=True)
class Work:
    """One visitor's edit.

    Attributes:
        picture: what is edited, at most `LONGEST` pixels long.
        key: of the page's image that it came from.
        box: left, top, right, bottom in fractions of the picture, or None.
        strokes: what was painted as the object ("inside") and as not the object ("outside").
        mask: where the object is, "L", or None.
        draft: what was made last, or None; `checks` is what was checked of it.
        shown: key of the picture that was made.
    """

    picture: Image.Image
    key: str
    box: tuple[float, float, float, float] | None = None
    strokes: dict[str, tuple[Stroke, ...]] = field(default_factory=dict)
    mask: Image.Image | None = None
    draft: Draft | None = None
    checks: tuple[Check, ...] = ()
    shown: str = ""


def digest(image: Image.Image) -> str:
    """16 hexadecimal digits of a picture's pixels."""
    return hashlib.sha256(str(image.size).encode() + image.tobytes()).hexdigest()[:16]


def begun(image: Any) -> Work:
    """Work on an image.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    if image is None:
        raise InputError("Choose an image at the top first.")
    opened = open_image(image)
    key = digest(opened)
    if max(opened.size) > LONGEST:
        opened.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return Work(opened, key)


def marked(work: Work, said: Any, exact: bool = False) -> Work:
    """The work with what the visitor marked, and the mask that follows.

    Args:
        said: `{"box": [left, top, right, bottom]}`, or `{"stroke": [[x, y], ...], "width": ..., "side": "inside"}`, in
            fractions of the picture (a stroke's width: of the picture's width). It comes from the client.
        exact: take what was marked as it is; else GrabCut finds the object.

    Raises:
        InputError: if it is nothing of the kind, or no object is found.
    """
    if not isinstance(said, dict):
        raise InputError(NO_MASK)
    if "box" in said:
        left, top, right, bottom = _numbers(said["box"], 4)
        box = min(left, right), min(top, bottom), max(left, right), max(top, bottom)
        return _masked(replace(work, box=box, strokes={}), exact)
    side, points = said.get("side", "inside"), said.get("stroke")
    if side not in SIDES or not isinstance(points, list) or not 0 < len(points) <= MOST_DOTS:
        raise InputError("A stroke is a list of points, on the object or beside it.")
    (width,) = _numbers([said.get("width", 0.04)], 1)
    stroke: Stroke = width, tuple((x, y) for x, y in (_numbers(point, 2) for point in points))
    strokes = {**work.strokes, side: (*work.strokes.get(side, ()), stroke)}
    if sum(len(points) for drawn in strokes.values() for _, points in drawn) > MOST_DOTS:
        raise InputError("That is more than enough strokes; clear them and begin again.")
    return _masked(replace(work, box=None, strokes=strokes), exact)


def remasked(work: Work, exact: bool) -> Work:
    """The same marks, taken exactly or by GrabCut."""
    return _masked(work, exact) if work.box or work.strokes.get("inside") else work


def _masked(work: Work, exact: bool) -> Work:
    picture, (width, height) = work.picture, work.picture.size
    if work.box is not None:
        left, top, right, bottom = work.box
        box = left * width, top * height, right * width, bottom * height
        mask = masks.from_box(picture, box, refine=not exact)
    else:
        inside, outside = (_painted(work.strokes.get(side, ()), picture.size) for side in SIDES)
        if inside is None:
            return replace(work, mask=None, draft=None, checks=())
        mask = inside if exact else masks.from_strokes(picture, inside, outside)
    return replace(work, mask=mask, draft=None, checks=(), shown="")


def _painted(strokes: Sequence[Stroke], size: tuple[int, int]) -> Image.Image | None:
    if not strokes:
        return None
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    for width, points in strokes:
        line = [(x * size[0], y * size[1]) for x, y in points]
        thick = max(1.0, width * size[0])
        draw.line(line, fill=255, width=round(thick))
        for x, y in line:
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return mask


def _numbers(values: Any, count: int) -> list[float]:
    right = isinstance(values, list) and len(values) == count
    if not right or not all(type(one) in (int, float) and math.isfinite(one) and 0 <= one <= 1 for one in values):
        raise InputError("Places are fractions of the picture, from 0 to 1.")
    return [float(one) for one in values]


def color_of(work: Work) -> str:
    """What most of the object is called, by its color.

    Raises:
        InputError: if there is no mask yet.
    """
    if work.mask is None:
        raise InputError(NO_MASK)
    inside = np.asarray(work.mask) >= min(128, int(np.asarray(work.mask).max()))
    return NAMES[int(np.bincount(name_indices(np.asarray(work.picture)[inside]), minlength=len(NAMES)).argmax())]


def usual(work: Work, name: str, prior: str) -> tuple[str, str]:
    """The usual color of an object and where it is known from: the table, the page's prior answer, or the picture."""
    if name in facts():
        return facts()[name].color, facts()[name].color_source
    if prior.strip().lower() in NAMES:
        return prior.strip().lower(), "given on the page"
    return color_of(work), "the picture itself"


def made(
    work: Work,
    name: Any,
    kind: Any,
    to: Any = "",
    factor: Any = 1.0,
    other: Any = "",
    prior: Any = "",
    clip: bool = False,
) -> Work:
    """The work with an edit of the object, checked.

    Args:
        name: what the object is called.
        kind: a key of `KINDS`.
        to: the new color, for "color".
        factor: how many times as large, for "size".
        other: what it is compared with, for "size"; "" if no pair is wanted.
        prior: the page's prior answer, for an object that the table does not know.
        clip: ask the bundled contrastive model too, where it knows the object.

    Raises:
        InputError: for what does not fit together.
    """
    if work.mask is None:
        raise InputError(NO_MASK)
    if kind not in KINDS:
        raise InputError(f"An object can be changed in these ways: {', '.join(KINDS)}.")
    if not all(isinstance(text, str) and len(text) <= 60 for text in (name, to or "", other or "", prior or "")):
        raise InputError("Names and colors are short texts.")
    name, to, other, prior = (text.strip().lower() for text in (name, to or "", other or "", prior or ""))
    if not name:
        raise InputError("Say what the object is called, for example strawberry.")
    if kind == "color":
        color, source = usual(work, name, prior)
        draft = edit(work.picture, name, "color", to=to, prior=color, prior_source=source, mask=work.mask)
    elif kind == "size":
        draft = _resized(work, name, factor, other, prior)
    else:
        draft = edit(work.picture, name, "presence", mask=work.mask)
    return checked(replace(work, draft=draft, shown=digest(draft.counterfactual)), clip)


def _resized(work: Work, name: str, factor: Any, other: str, prior: str) -> Draft:
    if type(factor) not in (int, float) or not math.isfinite(factor) or factor == 1:
        raise InputError("Choose a size other than 1: how many times as large the object becomes.")
    if other:
        given = prior if prior in (name, other) else ""
        return edit(work.picture, name, "size", factor=factor, other=other, prior=given, mask=work.mask)
    assert work.mask is not None
    changed = edits.resize(work.picture, work.mask, factor)
    said = {"kind": "resize", "factor": factor}
    return Draft(name, "size", "", "", work.picture, changed.image, changed.mask, said, "", ("", ""))


def knows(draft: Draft) -> bool:
    """Whether the bundled contrastive model can judge an edit: it knows the drawn world's objects in words of color."""
    return draft.object in facts() and draft.attribute == "color"


def checked(work: Work, clip: bool) -> Work:
    """The work with what is measured of its edit."""
    draft = work.draft
    if draft is None:
        return work
    score = scorer() if clip and knows(draft) else None
    return replace(work, checks=tuple(check(draft, (draft.original, draft.counterfactual, draft.mask), score)))


@lru_cache(maxsize=1)
def scorer() -> Any:
    """The bundled contrastive model that judges edits, loaded once."""
    return scorer_of("tiny-clip")


def colored(work: Work, colors: Sequence[str] = COLORS) -> list[tuple[str, Image.Image]]:
    """The picture with the object in each color.

    Raises:
        InputError: if there is no mask yet.
    """
    if work.mask is None:
        raise InputError(NO_MASK)
    return [(color, recolor(work.picture, work.mask, color)) for color in colors]


def sets(folder: Path) -> list[str]:
    """The names of the sets in the workbench's folder."""
    return sorted(path.parent.name for path in (folder / "sets").glob(f"*/{record.METADATA}"))


def place(folder: Path, name: Any) -> Path:
    """The folder of a set, which need not be there.

    Raises:
        InputError: if the name is no plain name.
    """
    if not isinstance(name, str) or not SET.fullmatch(name.strip()):
        raise InputError("A set's name has small letters, digits and dashes, and begins with a letter or a digit.")
    return folder / "sets" / name.strip()


def add(work: Work, folder: Path, name: Any) -> tuple[int, str]:
    """Put what was made into a set, as a pair of the usual and the counterfactual picture.

    Where the picture does not show the usual color, the pair's original is painted in it.

    Returns:
        How many pairs the set has, and a sentence on what was done beyond that, or "".

    Raises:
        InputError: if nothing was made, it is no pair, a check failed, or the set is full.
    """
    draft, root, more = work.draft, place(folder, name), ""
    if draft is None:
        raise InputError("Make an edit first; it is then added to the set.")
    if not draft.prior:
        raise InputError("Say what the object is compared with: a size pair has two objects.")
    checks = work.checks
    if draft.attribute == "color":
        if draft.pixel == draft.prior:
            raise InputError(f"{draft.prior} is the usual color of {draft.object}: a pair needs another one.")
        if color_of(work) != draft.prior:
            assert work.mask is not None
            original = recolor(work.picture, work.mask, draft.prior)
            again = made(replace(work, picture=original), draft.object, "color", draft.pixel, prior=draft.prior)
            assert again.draft is not None
            draft, checks, more = again.draft, again.checks, f"Its usual picture was painted {draft.prior}."
    pictures = [record.png(one) for one in (draft.original, draft.counterfactual, draft.mask)]
    mark = hashlib.sha256(b"".join(pictures)).hexdigest()[:10]
    kept = record.Record(
        id=f"{draft.attribute}-{record.slug(draft.object)}-{record.slug(draft.pixel)}-{mark}", object=draft.object,
        attribute=draft.attribute, prior=draft.prior, pixel=draft.pixel, original=pictures[0],
        counterfactual=pictures[1], mask=pictures[2], edit=draft.edit, prior_source=draft.prior_source,
        texts=draft.texts, checks=tuple(asdict(one) for one in checks),
    )  # fmt: skip
    if not kept.accepted:
        raise InputError(f"Not added, because {'; '.join(kept.reasons)}.")
    with _sets:
        found = record.load_records(root) if (root / record.METADATA).is_file() else []
        if len(found) >= MOST_PAIRS:
            raise InputError(f"This set has {MOST_PAIRS} pairs already; begin another one.")
        record.add(kept, root)
        return len({one.id for one in found} | {kept.id}), more


def guess(question: Any) -> str:
    """The object of the table that a question names, or ""."""
    words = f" {re.sub(r'[^a-z]+', ' ', str(question).lower())} "
    named = [one.name for one in facts().values() if f" {one.name} " in words or f" {one.plural} " in words]
    return max(named, key=len, default="")
