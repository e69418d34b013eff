"""The named colors of the drawn world: the eleven basic color terms (Berlin and Kay, 1969).

Each name owns a center and a small jitter in OKLCh (lightness 0..1, chroma 0..0.4, hue in degrees), so that
every drawn shade is one that most people would call by that name. sRGB comes from Ottosson's OKLab matrices.
"""

from __future__ import annotations

import math
import random

RGB = tuple[int, int, int]

# name -> (lightness, chroma, hue, lightness jitter, hue jitter)
COLORS: dict[str, tuple[float, float, float, float, float]] = {
    "red": (0.58, 0.220, 27, 0.03, 4),
    "orange": (0.74, 0.175, 58, 0.02, 4),
    "yellow": (0.89, 0.180, 100, 0.02, 4),
    "green": (0.62, 0.180, 143, 0.05, 6),
    "blue": (0.53, 0.190, 260, 0.05, 6),
    "purple": (0.46, 0.185, 305, 0.04, 5),
    "pink": (0.80, 0.120, 355, 0.03, 6),
    "brown": (0.44, 0.080, 55, 0.03, 6),
    "black": (0.20, 0.004, 270, 0.03, 60),
    "white": (0.97, 0.004, 100, 0.015, 60),
    "gray": (0.62, 0.006, 260, 0.05, 60),
}


def oklch_to_rgb(lightness: float, chroma: float, hue: float) -> RGB:
    """sRGB bytes of an OKLCh color, clipped to the gamut by lowering the chroma."""
    while True:
        a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
        l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3  # noqa: E741
        m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
            -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
            -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
        )
        if chroma < 0.002 or all(-0.001 <= value <= 1.001 for value in linear):
            break
        chroma *= 0.95
    return tuple(_encode(value) for value in linear)  # pyright: ignore[reportReturnType]


def _encode(value: float) -> int:
    value = min(max(value, 0.0), 1.0)
    encoded = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    return round(255 * encoded)


def shade(color: str, rng: random.Random) -> RGB:
    """One random shade that goes by the name `color`."""
    lightness, chroma, hue, lightness_jitter, hue_jitter = COLORS[color]
    return oklch_to_rgb(
        lightness + rng.uniform(-lightness_jitter, lightness_jitter),
        chroma * rng.uniform(0.9, 1.1),
        hue + rng.uniform(-hue_jitter, hue_jitter),
    )
