"""Edits of finished pictures other than color: size, presence, place and texture of what a mask covers.

A piece is cut out along its mask, the hole is filled from its surroundings, and the piece is pasted where it belongs.
Every edit also says what it may have changed: outside that mask the pictures are the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts.color import from_oklch, to_oklch
from vlmsteer_counterfacts.inpaint import fill

PATTERNS = ("striped", "dotted", "checkered")
CONTRAST = 0.2  # of a pattern, in OKLCh lightness
MARGIN = 3  # pixels around an object that its soft edge may have colored
Fill = Callable[[Image.Image, Image.Image], Image.Image]


class Edited(NamedTuple):
    """A picture and the mask ("L") of all that may have changed."""

    image: Image.Image
    mask: Image.Image


def cut(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The masked part as an RGBA piece of the size of its box.

    Raises:
        InputError: if the mask is empty or has another size.
    """
    box = _box(image, mask)
    piece = image.convert("RGB").crop(box)
    piece.putalpha(mask.crop(box))
    return piece


def remove(image: Image.Image, mask: Image.Image, filled: Fill = fill) -> Edited:
    """The picture without what the mask covers, its hole filled from around it."""
    _box(image, mask)
    hole = mask.point(lambda value: 255 if value else 0).filter(ImageFilter.MaxFilter(2 * MARGIN + 1))
    return Edited(filled(image.convert("RGB"), hole), hole)


def insert(image: Image.Image, piece: Image.Image, center: tuple[float, float], side: float) -> Edited:
    """A piece (RGBA) pasted into a picture.

    Args:
        center: of the piece, in fractions of the picture.
        side: the longer side of the piece, as a fraction of the picture's shorter one.
    """
    if not 0 < side <= 1 or not all(0 <= value <= 1 for value in center):
        raise InputError(f"A piece's center and side are fractions of the picture, not {center} and {side}.")
    scale = side * min(image.size) / max(piece.size)
    size = max(1, round(piece.width * scale)), max(1, round(piece.height * scale))
    small = piece.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    place = round(center[0] * image.width - size[0] / 2), round(center[1] * image.height - size[1] / 2)
    mask = Image.new("L", image.size, 0)
    mask.paste(small.getchannel("A"), place)
    if mask.getbbox() is None:
        raise InputError("The piece would lie outside the picture.")
    layer = Image.new("RGB", image.size)
    layer.paste(small.convert("RGB"), place)
    return Edited(Image.composite(layer, image.convert("RGB"), mask), mask)


def resize(image: Image.Image, mask: Image.Image, factor: float, filled: Fill = fill) -> Edited:
    """What the mask covers, `factor` times as large, standing on the same ground."""
    if not 0.05 <= factor <= 20:
        raise InputError(f"A size changes by a factor of 0.05 to 20, not {factor}.")
    left, top, right, bottom = _box(image, mask)
    empty = remove(image, mask, filled)
    width, height = (right - left) * factor, (bottom - top) * factor
    center = (left + right) / 2 / image.width, (bottom - height / 2) / image.height
    side = max(width, height) / min(image.size)
    if side > 1 or not 0 <= center[1] <= 1:
        raise InputError(f"At {factor} times its size the object does not fit into the picture.")
    return _joined(empty, insert(empty.image, cut(image, mask), center, side))


def swap(image: Image.Image, first: Image.Image, second: Image.Image, filled: Fill = fill) -> Edited:
    """Two masked objects, as large as they are, in each other's place."""
    boxes = _box(image, first), _box(image, second)
    if ImageChops.multiply(first, second).getbbox() is not None:
        raise InputError("The two objects' masks overlap; objects that change places stand apart.")
    result = remove(image, ImageChops.lighter(first, second), filled)
    for mask, (left, top, right, bottom) in ((first, boxes[1]), (second, boxes[0])):
        piece = cut(image, mask)
        center = (left + right) / 2 / image.width, (top + bottom) / 2 / image.height
        side = max(piece.size) / min(image.size)
        result = _joined(result, insert(result.image, piece, center, side))
    return result


def compose(larger: Image.Image, smaller: Image.Image, ratio: float = 2.5, pixels: int = 256) -> Image.Image:
    """Two pieces (RGBA) side by side on a plain ground, the first `ratio` times as large: the paper's size task."""
    if ratio < 1:
        raise InputError(f"The first object is at least as large as the second; the ratio is {ratio}.")
    side = 0.58
    ground = Image.new("RGB", (pixels, pixels), (236, 236, 233))
    for piece, x, share in ((larger, 0.33, side), (smaller, 0.82, min(side / ratio, 0.3))):
        height = share * piece.height / max(piece.size)
        ground = insert(ground, piece, (x, 0.86 - height / 2), share).image
    return ground


def texture(image: Image.Image, mask: Image.Image, pattern: str) -> Image.Image:
    """A pattern of lighter and darker parts on what the mask covers, in the colors that are there.

    Raises:
        InputError: for an unknown pattern, or an empty mask.
    """
    if pattern not in PATTERNS:
        raise InputError(f"There is no pattern {pattern!r}{did_you_mean(pattern, PATTERNS)}.")
    left, top, right, bottom = _box(image, mask)
    pixels = np.asarray(image.convert("RGB"))
    y, x = np.mgrid[0 : image.height, 0 : image.width].astype(np.float32)
    pitch = max(6.0, max(right - left, bottom - top) / 7)
    x, y = (x - left) / pitch, (y - top) / pitch
    if pattern == "striped":
        wave = np.sin(math.tau * (x + y) / math.sqrt(2))
    elif pattern == "dotted":
        wave = 0.3 - np.hypot(x % 1 - 0.5, y % 1 - 0.5)
    else:
        wave = np.sin(math.pi * x) * np.sin(math.pi * y)
    dark = np.clip(wave * pitch + 0.5, 0, 1)
    lch = np.array(to_oklch(pixels))
    light = lch[..., 0]
    down = light > 0.45  # light things get dark marks, dark things light ones
    lch[..., 0] = np.clip(light + np.where(down, -CONTRAST, CONTRAST) * dark, 0, 1)
    share = np.asarray(mask, np.float32)[..., None] / 255
    mixed = np.where(share > 0, pixels + (from_oklch(lch).astype(np.float32) - pixels) * share, pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _joined(first: Edited, second: Edited) -> Edited:
    return Edited(second.image, ImageChops.lighter(first.mask, second.mask))


def _box(image: Image.Image, mask: Image.Image) -> tuple[int, int, int, int]:
    if mask.size != image.size:
        raise InputError(f"The mask is {mask.width} x {mask.height}, the picture {image.width} x {image.height}.")
    box = mask.convert("L").getbbox()
    if box is None:
        raise InputError("The mask is empty: nothing would be changed.")
    return box
