"""Painting an object in another color so that it stays the same object.

All of it happens in OKLCh. One rising curve of lightness carries the object's typical lightness to the color's (yellow
is light, brown is dark) and keeps its slope near one in between, so shading and texture survive; the hue is the
color's; the chroma follows how saturated each pixel was beside the rest, so that highlights and lettering stay
neutral. Where the mask is partial, the change of the nearest whole pixels is applied in proportion: an edge pixel is a
mixture, and only the object's share of it changes. Where the mask is 0 nothing changes, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmsteer.images import open_image
from vlmsteer_counterfacts.color import Floats, Target, from_oklab, gamut_chroma, parse_color, to_oklab, to_oklch
from vlmsteer_counterfacts.masks import mask_weights

# name -> where the object's median lightness may come to lie, and the band that its bulk should stay in.
ROOM: dict[str, tuple[float, float, float, float]] = {
    "red": (0.54, 0.60, 0.33, 0.70),
    "orange": (0.71, 0.78, 0.62, 0.90),
    "yellow": (0.82, 0.91, 0.70, 0.98),
    "green": (0.54, 0.68, 0.30, 0.90),
    "blue": (0.46, 0.58, 0.28, 0.80),
    "purple": (0.42, 0.52, 0.26, 0.74),
    "pink": (0.76, 0.82, 0.64, 0.94),
    "brown": (0.41, 0.48, 0.24, 0.58),
    "black": (0.17, 0.21, 0.08, 0.28),
    "white": (0.94, 0.97, 0.89, 0.99),
    "gray": (0.56, 0.68, 0.36, 0.85),
}
# Shading is a ratio, so a darker object has smaller differences; within these slopes SSIM stays above 0.95.
SLOPES = (0.8, 1.18)
SLOPES_GRAY = (0.3, 1.25)  # black and white have next to no room
# Degrees of hue per lightness: yellow in the shade turns to gold and not to olive, and bright yellow stays vivid.
TILT = {"yellow": 90.0}
NEUTRAL = 0.05  # saturation that says nothing about a pixel of a colored object; of a gray one, up to four times that


def recolor(image: Image.Image, mask: Image.Image, target: str | Sequence[int]) -> Image.Image:
    """Paint what `mask` covers in another color.

    Args:
        image: the picture; taken as upright RGB, as by `vlmsteer.images.open_image`.
        mask: "L" of the image's size; 255 is the object, 0 is not touched, between is in proportion.
        target: a name of the palette, '#rrggbb' or an RGB triple. A name may come out a little lighter or darker than
            its typical shade, where that keeps more of the object's shading; an RGB is met in the median.

    Returns:
        A new RGB image.

    Raises:
        InputError: a mask that is empty, of another size or mode, or a color that is none.

    Example:
        >>> recolor(photo, from_box(photo, (75, 70, 480, 390)), "blue")
    """
    rgb = open_image(image)
    color = parse_color(target)
    weights = mask_weights(mask, rgb.size)
    rows, columns = np.flatnonzero(weights.any(axis=1)), np.flatnonzero(weights.any(axis=0))
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    result = np.array(rgb)
    weight, pixels = weights[part], result[part]
    solid = weight == 1
    painted = _paint(pixels, np.where(solid, weight, 0) if solid.sum() >= 16 else weight, color)
    if not solid.all():
        change = _spread(painted.astype(np.float32) - pixels, solid) * weight[..., None]
        painted = (pixels + change + 0.5).clip(0, 255).astype(np.uint8)
    result[part] = np.where(weight[..., None] > 0, painted, pixels)
    return Image.fromarray(result)


def _paint(pixels: NDArray[np.uint8], weight: Floats, color: Target) -> NDArray[np.uint8]:
    """Every pixel (h, w, 3) in the color, as part of the object that `weight` (h, w) describes."""
    lab = to_oklab(pixels)
    lightness = lab[..., 0]
    # The chroma of a single dark pixel is mostly noise.
    calm = _mean(lab[..., 1:], weight, 3)
    saturation = np.hypot(calm[..., 0], calm[..., 1]) / (lightness + 0.2)
    typical = _quantiles(saturation, weight, (0.5,))[0]
    unsure = max(NEUTRAL, 4 * NEUTRAL - typical)
    relative = ((saturation + unsure) / (typical + unsure)).clip(0, 1.2)

    goal, full, hue = (float(value) for value in to_oklch(color.rgb))
    low, median, high = _quantiles(lightness, weight, (0.06, 0.5, 0.95))
    new = np.interp(lightness, *_curve(low, median, high, goal, color)).astype(np.float32)
    # On a colored object a near-white spot is the lamp or a letter, a near-black one a pupil or a gap: not its color.
    neutral = ((0.6 - relative) / 0.35).clip(0, 1)
    bright, dark = (((side * (lightness - median)) - 0.08) / 0.12 for side in (1, -1))
    new += neutral * bright.clip(0, 1) * np.maximum(lightness - new, 0)
    new += neutral * dark.clip(0, 1) * np.minimum(lightness - new, 0)

    steps = np.linspace(0, 1, 1024, dtype=np.float32)
    hues = hue + ((steps - goal) * TILT.get(color.name, 0)).clip(-15, 15)
    angles = np.radians(hues)
    step = (new * 1023 + 0.5).astype(np.intp)
    most = gamut_chroma(steps, hues)[step]
    saturated = np.minimum(full * relative * np.minimum(new / goal, 1), most)
    return from_oklab(np.stack([new, saturated * np.cos(angles)[step], saturated * np.sin(angles)[step]], axis=-1))


def _curve(low: float, median: float, high: float, goal: float, color: Target) -> tuple[list[float], list[float]]:
    """Knots of the rising curve from old to new lightness, for an object whose bulk lies between `low` and `high`."""
    if goal > median:
        # Darker than half is a line or a deep shadow and should stay dark, however light the object becomes.
        low = max(low, 0.5 * median)
    low, high = min(low, median - 0.01), max(high, median + 0.01)
    first, last, floor, ceiling = ROOM[color.name]
    if color.exact:
        first, last, floor, ceiling = goal, goal, min(floor, goal - 0.2), min(max(ceiling, goal + 0.2), 0.98)
    least, most = SLOPES_GRAY if color.name in ("black", "white") else SLOPES
    slope = min(max(goal / max(median, 0.01), least), most)
    slope = max(min(slope, (ceiling - floor) / (high - low)), least)
    below, above = slope * (median - low), slope * (high - median)
    room = (floor + below, ceiling - above)
    center = min(max(goal, room[0]), room[1]) if room[0] <= room[1] else (room[0] + room[1]) / 2
    center = min(max(center, first), last)
    bottom, top = max(center - below, 0.01), min(center + above, 0.985)
    # Beyond the bulk the curve heads for black and white, but not so steeply that noise would show.
    black = max(bottom - 1.8 * low, 0.0)
    white = min(top + 1.6 * (1 - high), 1.0)
    return [0.0, low, median, high, 1.0], [black, bottom, center, top, white]


def _quantiles(values: Floats, weight: Floats, shares: Sequence[float]) -> list[float]:
    bins = 1024
    counts = np.bincount((values * bins).astype(np.intp).clip(0, bins - 1).ravel(), weight.ravel(), bins)
    total = np.cumsum(counts)
    return [(int(np.searchsorted(total, share * total[-1])) + 0.5) / bins for share in shares]


def _spread(change: Floats, solid: NDArray[np.bool_]) -> Floats:
    """The change (h, w, 3) of whole pixels carried over to the partial ones within two pixels of them."""
    return np.where(solid[..., None], change, _mean(change, solid.astype(np.float32), 5))


def _mean(values: Floats, weight: Floats, side: int) -> Floats:
    """Weighted means of `values` (h, w, channels) in squares of `side` pixels; the value where all weights are 0."""
    import cv2

    weighted = np.dstack([values * weight[..., None], weight])
    total = cv2.blur(weighted, (side, side), borderType=cv2.BORDER_CONSTANT)
    share = total[..., -1:]
    return np.where(share > 1e-3, total[..., :-1] / np.maximum(share, 1e-3), values)
