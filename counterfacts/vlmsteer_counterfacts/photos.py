"""One counterfactual pair from any picture: find the object, change one thing about it.

What is usual comes from the table of objects; of an object that is not in it, the caller says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.images import open_image
from vlmsteer_counterfacts import edits, inpaint, masks
from vlmsteer_counterfacts.drawn import NO_PRIOR, WORDS, Draft
from vlmsteer_counterfacts.facts import article, facts
from vlmsteer_counterfacts.palette import COLORS
from vlmsteer_counterfacts.recolor import recolor

KEYS = (
    "image", "object", "attribute", "to", "prior", "prior_source", "box", "points", "strokes", "color", "mask", "sam2",
    "factor", "other", "other_box", "inpaint", "instruct", "seed",
)  # fmt: skip
FILES = ("image", "mask")


def resolved(row: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A row of a configuration with its files found from the folder of the configuration.

    Raises:
        InputError: for an unknown key.
    """
    for name in row:
        if name not in KEYS:
            raise InputError(f"A photo has no key {name!r}{did_you_mean(name, KEYS)}.")
    return {name: str(base / value) if name in FILES else value for name, value in row.items()}


def edit(
    image: str | Path | Image.Image,
    object: str,
    attribute: str = "color",
    to: str = "",
    prior: str = "",
    prior_source: str = "",
    factor: float = 0.0,
    other: str = "",
    other_box: Sequence[int] | None = None,
    inpaint: str = "telea",
    instruct: str = "",
    seed: int = 0,
    **where: Any,
) -> Draft:
    """Change one thing about an object in a picture.

    Args:
        object: its name, as people say it.
        attribute: "color" (`to` a color), "size" (`factor`, beside the object called `other`), "presence" (it is
            removed), "relation" (it changes places with `other` in `other_box`), or "texture" (`to` a pattern).
        prior: the usual answer, if the table of objects does not know it; `prior_source` says where it is known from.
        inpaint: how holes are filled: "telea", "navier-stokes", or an inpainting pipeline, which also paints colors.
        instruct: an InstructPix2Pix pipeline that changes the color instead.
        where: one of `box`, `strokes`, `color`, `mask`, `sam2` with `points` or `box`: see `masked`.

    Raises:
        InputError: for what does not fit together.
    """
    picture = open_image(image)
    mask = masked(picture, **where)
    kinds = {"color": _color, "size": _size, "presence": _presence, "relation": _relation, "texture": _texture}
    if attribute not in kinds:
        raise InputError(f"There is no attribute {attribute!r}{did_you_mean(attribute, kinds)}.")
    given = {
        "to": to, "prior": prior, "prior_source": prior_source, "factor": factor, "other": other,
        "other_box": other_box, "inpaint": inpaint, "instruct": instruct, "seed": seed,
    }  # fmt: skip
    return kinds[attribute](picture, object, mask, given)


def masked(
    picture: Image.Image,
    box: Sequence[int] | None = None,
    strokes: Sequence[Sequence[float]] | None = None,
    color: str = "",
    mask: str | Image.Image = "",
    sam2: str = "",
    points: Sequence[Sequence[float]] | None = None,
) -> Image.Image:
    """The mask of an object: a file, SAM 2's from a box or points, GrabCut's from a box or strokes, or a color's."""
    if mask:
        return open_image(mask).convert("L")
    if sam2:
        return masks.from_sam2(picture, points or box, sam2)  # pyright: ignore[reportArgumentType]
    if strokes:
        return masks.from_strokes(picture, [tuple(dot) for dot in strokes])  # pyright: ignore[reportArgumentType]
    if color:
        return masks.from_color(picture, color, box=tuple(box) if box else None)  # pyright: ignore[reportArgumentType]
    if box:
        return masks.from_box(picture, tuple(box))  # pyright: ignore[reportArgumentType]
    raise InputError("Say where the object is: a box, strokes, a color, or a mask.")


def _known(name: str, given: Mapping[str, Any]) -> tuple[str, str]:
    """The usual color and where it is known from."""
    if given["prior"]:
        return given["prior"], given["prior_source"] or "given by the user"
    if name not in facts():
        raise InputError(
            f"Say with prior what color it usually has: the table has no object {name!r}{did_you_mean(name, facts())}."
        )
    return facts()[name].color, facts()[name].color_source


def _color(picture: Image.Image, name: str, mask: Image.Image, given: Mapping[str, Any]) -> Draft:
    prior, source = _known(name, given)
    if not given["to"]:
        raise InputError(f"Say which color to give it: {', '.join(COLORS)}, or #rrggbb.")
    prompt = f"{article(given['to'] + ' ' + name)}"
    if given["instruct"]:
        shown = _editor(given["instruct"])(picture, f"make the {name} {given['to']}", seed=given["seed"], mask=mask)
    elif given["inpaint"] in inpaint.CLASSICAL:
        shown = recolor(picture, mask, given["to"])
    else:
        shown = _inpainter(given["inpaint"])(picture, mask, prompt, seed=given["seed"])
    return Draft(
        name, "color", prior, given["to"], picture, shown, mask, _said("recolor", given), source,
        (article(f"{prior} {name}"), prompt),
    )  # fmt: skip


def _size(picture: Image.Image, name: str, mask: Image.Image, given: Mapping[str, Any]) -> Draft:
    if not given["factor"] or not given["other"]:
        raise InputError("A size pair needs a factor and the name of the other object that it is compared with.")
    changed = edits.resize(picture, mask, given["factor"], _fill(given))
    other = given["other"]
    sizes = [facts()[one].size_m if one in facts() else None for one in (name, other)]
    if given["prior"]:
        prior, source = given["prior"], given["prior_source"] or "given by the user"
    elif sizes[0] and sizes[1]:
        prior = name if sizes[0] > sizes[1] else other
        source = f"{name}: {facts()[name].size_source}; {other}: {facts()[other].size_source}"
    else:
        raise InputError(f"Which of {name!r} and {other!r} is larger is not in the table; say it with prior.")
    pixel = name if given["factor"] > 1 else other
    texts = [f"{article(a)} larger than {article(b)}" for a, b in ((prior, pixel), (pixel, prior))]
    return Draft(
        name, "size", prior, pixel, picture, changed.image, changed.mask, _said("resize", given), source,
        (texts[0], texts[1]),
    )  # fmt: skip


def _presence(picture: Image.Image, name: str, mask: Image.Image, given: Mapping[str, Any]) -> Draft:
    changed = edits.remove(picture, mask, _fill(given))
    return Draft(
        name, "presence", "yes", "no", picture, changed.image, changed.mask, _said("remove", given),
        given["prior_source"] or NO_PRIOR, (f"a photo of {article(name)}", "a photo"),
    )  # fmt: skip


def _relation(picture: Image.Image, name: str, mask: Image.Image, given: Mapping[str, Any]) -> Draft:
    if not given["other"] or not given["other_box"]:
        raise InputError("A relation needs the other object's name and its other_box.")
    second = masks.from_box(picture, tuple(given["other_box"]))  # pyright: ignore[reportArgumentType]
    changed = edits.swap(picture, mask, second, _fill(given))
    one, two = mask.getbbox() or (0, 0, 0, 0), second.getbbox() or (0, 0, 0, 0)
    along = (two[0] + two[2] - one[0] - one[2], two[1] + two[3] - one[1] - one[3])
    names = ("left", "right") if abs(along[0]) >= abs(along[1]) else ("above", "below")
    before, after = names if max(along, key=abs) > 0 else names[::-1]
    texts = [f"{article(name)} {WORDS[word]} {article(given['other'])}" for word in (before, after)]
    return Draft(
        name, "relation", before, after, picture, changed.image, changed.mask, _said("swap", given), NO_PRIOR,
        (texts[0], texts[1]),
    )  # fmt: skip


def _texture(picture: Image.Image, name: str, mask: Image.Image, given: Mapping[str, Any]) -> Draft:
    if not given["to"]:
        raise InputError(f"Say which pattern to give it: {', '.join(edits.PATTERNS)}.")
    shown = edits.texture(picture, mask, given["to"])
    return Draft(
        name, "texture", given["prior"] or "plain", given["to"], picture, shown, mask, _said("texture", given),
        given["prior_source"] or NO_PRIOR, (article(f"plain {name}"), article(f"{given['to']} {name}")),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _inpainter(name: str) -> inpaint.Inpainter:
    return inpaint.Inpainter.load(name)


@lru_cache(maxsize=1)
def _editor(name: str) -> inpaint.InstructEditor:
    return inpaint.InstructEditor.load(name)


def _fill(given: Mapping[str, Any]) -> edits.Fill:
    method: Any = given["inpaint"]
    if method not in inpaint.CLASSICAL:
        method = _inpainter(method)
    return lambda picture, hole: inpaint.fill(picture, hole, method)


def _said(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, **{name: value for name, value in given.items() if value not in ("", None, 0, 0.0)}}
