"""The figures of the Evidence tab: the answer as a strip of words, and a word's map over the image as the model saw it.

Pure functions from an `Evidence` and what `tabs.evidence` found beside it, as JSON values, to values of components.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlmsteer.lens.evidence import Evidence
from vlmsteer.lens.overlay import paint
from vlmsteer_ui import templates

STRIP, PICK = templates.read("evidence_strip.html"), templates.read("evidence_strip.js")
SIDE = 480  # pixels of the longer side of a painted map, at least
LARGEST = 4096
COVER = 0.5  # of the image, by the map
METHODS = {"token activation map": "activation", "attention": "attention", "occlusion": "occlusion"}
MEANS = {
    "activation": "Where the image's own states speak for this word (0 to 1).",
    "attention": "Where this word looked: a share of all its attention, mean of heads and layers. Looking is no proof.",
    "occlusion": "What this word cannot do without: how far its log-probability falls while a window is hidden (nats).",
}


def as_json(found: Evidence) -> dict[str, Any]:
    """An evidence as JSON values, which `of_json` takes back."""
    boxes = [[None if np.isnan(edge) else round(float(edge), 5) for edge in box] for box in found.boxes]
    return {
        "method": found.method, "answer": found.answer, "tokens": list(found.tokens),
        "places": [list(place) for place in found.places], "boxes": boxes,
        "maps": [[_short(value) for value in row] for row in found.maps],
        "share": None if found.share is None else [[round(float(part), 4) for part in row] for row in found.share],
    }  # fmt: skip


def of_json(values: Mapping[str, Any]) -> Evidence:
    """The evidence that `as_json` described.

    Raises:
        ValueError: if its numbers do not go together.
    """
    maps, share = np.array(values["maps"], float), values["share"]
    boxes = np.array([[np.nan if edge is None else edge for edge in box] for box in values["boxes"]], float)
    tokens, places = tuple(map(str, values["tokens"])), tuple((int(a), int(b)) for a, b in values["places"])
    if maps.shape != (len(tokens), len(boxes)) or boxes.shape[1:] != (4,) or len(places) != len(tokens):
        raise ValueError("maps, boxes and tokens are not of one answer")
    kept = None if share is None else np.array(share, float)
    return Evidence(str(values["method"]), str(values["answer"]), tokens, places, boxes, maps, kept)


def view(values: Mapping[str, Any]) -> tuple[list[float], list[int]]:
    """Which part of the image the model sees, as fractions, and in how many pixels, width and height.

    Raises:
        ValueError: if that is no part, or no size.
    """
    crop, size = [float(edge) for edge in values["crop"]], [int(side) for side in values["size"]]
    left, top, right, bottom = crop
    width, height = size
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1 and 0 < width <= LARGEST and 0 < height <= LARGEST):
        raise ValueError("this is no part of an image")
    return crop, size


def words(found: Evidence) -> list[tuple[str, list[int]]]:
    """The words of an answer, each with the numbers of its tokens."""
    listed = []
    for word in re.finditer(r"\S+", found.answer):
        at = [i for i, (start, stop) in enumerate(found.places) if start < word.end() and stop > word.start()]
        if at:
            listed.append((word.group(), at))
    return listed


def strip(found: Evidence | None, chosen: int, note: str = "") -> dict[str, Any]:
    """The words to choose from, for `STRIP`."""
    listed = [] if found is None else words(found)
    shown = [{"text": text, "word": i, "on": "true" if i == chosen else "false"} for i, (text, _) in enumerate(listed)]
    return {"words": shown, "note": note}


def seen(image: Image.Image, crop: Sequence[float], size: Sequence[int]) -> Image.Image:
    """The image cut and scaled as the model sees it, enlarged without smoothing where that is small."""
    left, top, right, bottom = (round(edge * side) for edge, side in zip(crop, (*image.size, *image.size), strict=True))
    part = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    width, height = size
    small = part.resize((width, height), Image.Resampling.BICUBIC)
    factor = max(1, -(-SIDE // max(width, height)))
    return small.resize((width * factor, height * factor), Image.Resampling.NEAREST)


def painted(found: Evidence, word: int, image: Image.Image, crop: Sequence[float], size: Sequence[int]) -> Image.Image:
    """A word's map over the image as the model sees it."""
    left, top, right, bottom = crop
    boxes = (found.boxes - [left, top, left, top]) / [right - left, bottom - top, right - left, bottom - top]
    values = found.maps[words(found)[word][1]].mean(0)
    return paint(seen(image, crop, size), boxes.clip(0, 1), values, alpha=COVER)


def said(found: Evidence, chosen: int) -> str:
    """What a word's map means, and how much it looked at the image."""
    word, at = words(found)[chosen]
    values = found.maps[at].mean(0)
    lines = f"“{word}”: {MEANS.get(found.method, '')} Dark is 0, bright {np.nanmax(values):.2g}."
    if found.share is not None:
        share = found.share[at].mean(0)
        most = f"most in layer {int(share.argmax())} ({share.max():.0%})"
        lines += f" {share.mean():.0%} of its attention goes to the image, {most}."
    return lines


def supported(found: Evidence, x: float, y: float, crop: Sequence[float]) -> tuple[int, str] | None:
    """The word that a place of the seen image (fractions) speaks for most, and a sentence; None if it shows no cell."""
    left, top, right, bottom = crop
    at = np.array([left + x * (right - left), top + y * (bottom - top)])
    inside = (found.boxes[:, :2] <= at).all(1) & (at <= found.boxes[:, 2:]).all(1)
    if not inside.any():
        return None
    of = [(float(found.maps[tokens][:, inside].mean()), i) for i, (_, tokens) in enumerate(words(found))]
    (most, best), *others = sorted(of, reverse=True)
    listed = words(found)
    rest = f", then “{listed[others[0][1]][0]}” ({others[0][0]:.2g})" if others else ""
    return best, f"This place supports “{listed[best][0]}” most ({most:.2g}){rest}. "


def _short(value: Any) -> float:
    return float(f"{float(value):.3g}")
