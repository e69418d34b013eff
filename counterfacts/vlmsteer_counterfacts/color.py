"""Colors of pixels in OKLCh, and the name that a person gives them.

sRGB to OKLCh and back on whole arrays, where `palette.py` has single colors. A name is a region of OKLCh, not the
nearest center: dark orange is brown, light red is pink, dark yellow is brown or (olive) green. A color that a screen
cannot show loses chroma until it can, at the same lightness and hue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts import palette

Floats = NDArray[np.floating]
Pixels = ArrayLike | Image.Image
NAMES = tuple(palette.COLORS)

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)
_FROM_LAB = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]],
    np.float32,
)
_FROM_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ],
    np.float32,
)
_bytes = np.arange(256) / 255
_LINEAR = np.where(_bytes <= 0.04045, _bytes / 12.92, ((_bytes + 0.055) / 1.055) ** 2.4).astype(np.float32)

# The first row that holds a color names it: lightness from and below, chroma from and below, hue from and below, where
# hue runs from -76 (a violet blue) over 0 (rose), 29 (red), 110 (yellow), 143 (green) to 284.
REGIONS: tuple[tuple[str, float, float, float, float, float, float], ...] = (
    ("black", 0.00, 0.19, 0.000, 0.09, -76, 284),
    ("black", 0.00, 0.27, 0.000, 0.05, -76, 284),
    ("black", 0.00, 0.33, 0.000, 0.03, -76, 284),
    ("white", 0.89, 2.00, 0.000, 0.03, -76, 284),
    ("white", 0.95, 2.00, 0.000, 0.04, -76, 284),
    ("gray", 0.00, 2.00, 0.000, 0.03, -76, 284),
    ("gray", 0.00, 2.00, 0.000, 0.035, -76, 12),
    ("gray", 0.00, 2.00, 0.000, 0.035, 117, 284),
    ("purple", 0.00, 2.00, 0.000, 1.00, -76, -34),
    ("pink", 0.66, 2.00, 0.120, 1.00, -34, -20),
    ("pink", 0.72, 2.00, 0.050, 1.00, -27, -20),
    ("purple", 0.00, 2.00, 0.000, 1.00, -34, -20),
    ("purple", 0.00, 0.50, 0.000, 1.00, -20, -4),
    ("pink", 0.50, 2.00, 0.000, 1.00, -20, -4),
    ("pink", 0.60, 2.00, 0.000, 1.00, -4, 12),
    ("pink", 0.50, 0.60, 0.000, 1.00, -4, 6),
    ("purple", 0.00, 0.50, 0.000, 0.08, -4, 12),
    ("red", 0.00, 0.60, 0.000, 1.00, -4, 12),
    ("pink", 0.68, 2.00, 0.000, 0.19, 12, 34),
    ("pink", 0.74, 2.00, 0.000, 1.00, 12, 34),
    ("pink", 0.62, 0.68, 0.000, 0.10, 12, 34),
    ("brown", 0.00, 0.45, 0.000, 0.09, 12, 39),
    ("brown", 0.45, 0.68, 0.000, 0.11, 12, 39),
    ("orange", 0.68, 2.00, 0.000, 1.00, 34, 39),
    ("red", 0.00, 2.00, 0.000, 1.00, 12, 39),
    ("orange", 0.63, 2.00, 0.100, 1.00, 39, 78),
    ("orange", 0.55, 0.63, 0.155, 1.00, 39, 60),
    ("orange", 0.80, 2.00, 0.055, 0.10, 39, 78),
    ("brown", 0.00, 2.00, 0.000, 1.00, 39, 78),
    ("brown", 0.00, 0.84, 0.000, 0.09, 78, 92),
    ("yellow", 0.72, 2.00, 0.000, 1.00, 78, 117),
    ("yellow", 0.66, 0.72, 0.110, 1.00, 84, 108),
    ("brown", 0.00, 0.72, 0.000, 1.00, 78, 98),
    ("yellow", 0.93, 2.00, 0.150, 1.00, 117, 122),
    ("green", 0.00, 2.00, 0.000, 1.00, 98, 190),
    ("blue", 0.00, 2.00, 0.000, 1.00, 190, 284),
)


class Target(NamedTuple):
    """A color to paint with, and the name it goes by. `exact` is true for an RGB, false for a name's typical shade."""

    name: str
    rgb: palette.RGB
    exact: bool


def to_oklab(rgb: Pixels) -> Floats:
    """OKLab (..., 3) of sRGB bytes (..., 3): lightness 0..1, then a and b, each within about -0.4..0.4."""
    lms = _LINEAR[np.asarray(rgb, np.uint8)] @ _TO_LMS.T
    return np.cbrt(lms) @ _TO_LAB.T


def to_oklch(rgb: Pixels) -> Floats:
    """OKLCh (..., 3) of sRGB bytes (..., 3): lightness 0..1, chroma 0..0.4, hue 0..360 degrees."""
    lab = to_oklab(rgb)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    return np.stack([lab[..., 0], chroma, hue], axis=-1)


def from_oklab(lab: ArrayLike) -> NDArray[np.uint8]:
    """sRGB bytes (..., 3) of OKLab (..., 3); what is out of gamut is cut off channel by channel."""
    linear = _linear(np.asarray(lab, np.float32)).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
    return (encoded * 255 + 0.5).astype(np.uint8)


def from_oklch(lch: ArrayLike) -> NDArray[np.uint8]:
    """sRGB bytes (..., 3) of OKLCh (..., 3); what is out of gamut loses chroma at constant lightness and hue."""
    lch = np.asarray(lch, np.float32)
    lightness, chroma, hue = lch[..., 0].clip(0, 1), lch[..., 1].copy(), lch[..., 2]
    outside = ~_shown(_lab(lightness, chroma, hue))
    chroma[outside] = np.minimum(chroma[outside], gamut_chroma(lightness[outside], hue[outside]))
    return from_oklab(_lab(lightness, chroma, hue))


def gamut_chroma(lightness: ArrayLike, hue: ArrayLike) -> Floats:
    """The largest chroma that sRGB has at each lightness (0..1) and hue (degrees); the two are broadcast."""
    lightness, hue = np.broadcast_arrays(np.asarray(lightness, np.float32), np.asarray(hue, np.float32))
    low, high = np.zeros(lightness.shape, np.float32), np.full(lightness.shape, 0.5, np.float32)
    for _ in range(14):
        middle = (low + high) / 2
        inside = _shown(_lab(lightness, middle, hue))
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return low


def name_indices(rgb: Pixels) -> NDArray[np.intp]:
    """For sRGB bytes (..., 3) the name of each pixel, as an index (...) into `NAMES`."""
    lch = to_oklch(rgb)
    lightness, chroma, hue = lch[..., 0], lch[..., 1], (lch[..., 2] + 76) % 360 - 76
    held = [
        (lightness >= l0) & (lightness < l1) & (chroma >= c0) & (chroma < c1) & (hue >= h0) & (hue < h1)
        for _, l0, l1, c0, c1, h0, h1 in REGIONS
    ]
    return np.select(held, [np.intp(NAMES.index(region[0])) for region in REGIONS])


def color_name(rgb: ArrayLike) -> str:
    """The basic color term for one color, sRGB bytes (3,).

    Example:
        >>> color_name((139, 69, 19)), color_name((255, 165, 0))
        ('brown', 'orange')
    """
    return NAMES[int(name_indices(rgb))]


def parse_color(color: str | Sequence[int] | NDArray[np.integer]) -> Target:
    """A color as a user writes it: a name of the palette, '#rrggbb', or three bytes.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(color, str):
        text = color.strip().lower()
        if text in palette.COLORS:
            return Target(text, palette.oklch_to_rgb(*palette.COLORS[text][:3]), exact=False)
        if not text.startswith("#"):
            raise InputError(f"No named color {color!r}{did_you_mean(color, palette.COLORS)}; or write '#rrggbb'.")
        try:
            rgb = tuple(bytes.fromhex(text[1:])) if " " not in text else ()
        except ValueError:
            rgb = ()
    else:
        rgb = tuple(color)
    if len(rgb) != 3 or not all(isinstance(value, (int, np.integer)) and 0 <= value <= 255 for value in rgb):
        raise InputError(f"{color!r} is no color; write a name, '#rrggbb', or three whole numbers from 0 to 255.")
    return Target(color_name(rgb), (int(rgb[0]), int(rgb[1]), int(rgb[2])), exact=True)


def _lab(lightness: Floats, chroma: Floats, hue: Floats) -> Floats:
    angle = np.radians(hue)
    return np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)


def _shown(lab: Floats) -> NDArray[np.bool_]:
    linear = _linear(lab)
    return np.asarray(((linear >= -0.0005) & (linear <= 1.0005)).all(axis=-1))


def _linear(lab: Floats) -> Floats:
    return (lab @ _FROM_LAB.T) ** 3 @ _FROM_LMS.T
