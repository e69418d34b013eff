"""A map over an image's cells as pixels: where it is largest, and painted over the image.

Cells may overlap, differ in size and leave parts of the image out (tiles, sliding windows, a crop): a pixel has the
mean of the cells that show it, and keeps its color where none does.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from PIL import Image

from vlmsteer.errors import InputError, did_you_mean

SIDE = 256  # pixels of the raster in which the largest value is looked for


def raster(boxes: np.ndarray, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width): the mean value of the cells over each pixel, NaN where there is none.

    Args:
        boxes: (cells, 4), left, top, right and bottom as fractions; cells of NaN are left out.
        values: (cells,).
        size: width and height in pixels.
    """
    total, count = np.zeros(size[::-1], np.float32), np.zeros(size[::-1], np.float32)
    known = ~(np.isnan(boxes).any(1) | np.isnan(values))
    edges = np.rint(boxes[known] * (*size, *size)).astype(int)
    for (left, top, right, bottom), value in zip(edges, values[known], strict=True):
        inside = np.s_[top : max(bottom, top + 1), left : max(right, left + 1)]
        total[inside] += value
        count[inside] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def peak(boxes: np.ndarray, values: np.ndarray) -> tuple[float, float] | None:
    """The middle of the place with the largest value, (x, y) as fractions of the image; None if no value is above 0."""
    pixels = raster(boxes, values, (SIDE, SIDE))
    if not np.nanmax(pixels, initial=0) > 0:
        return None
    rows, columns = np.nonzero(pixels >= np.nanmax(pixels) * (1 - 1e-9))
    return float(columns.mean() + 0.5) / SIDE, float(rows.mean() + 0.5) / SIDE


def paint(
    image: Image.Image,
    boxes: np.ndarray,
    values: np.ndarray,
    colormap: str = "magma",
    alpha: float = 0.6,
    most: float | None = None,
) -> Image.Image:
    """The image with a map over it, from 0 (and what is below) to its largest value.

    Args:
        boxes, values: as in `raster`.
        colormap: a name that matplotlib has; magma, viridis and cividis can be read without color vision.
        alpha: how much the map covers, from 0 to 1.
        most: the value of the last color; by default the map's largest. Give one for maps that are to be compared.

    Raises:
        InputError: if there is no such colormap, or `alpha` or `most` is out of range.
    """
    if colormap not in matplotlib.colormaps:
        raise InputError(f"There is no colormap {colormap!r}{did_you_mean(colormap, list(matplotlib.colormaps))}")
    if not 0 <= alpha <= 1 or (most is not None and not most > 0):
        raise InputError(f"A map covers a share from 0 to 1 and its scale ends above 0, not {alpha:g} and {most}.")
    pixels = raster(boxes, values, image.size)
    top = most or np.nanmax(pixels, initial=0) or 1.0
    colors = matplotlib.colormaps[colormap](np.nan_to_num(pixels / top).clip(0, 1), bytes=True)[..., :3]
    cover = np.where(np.isnan(pixels), 0, alpha)[..., None].astype(np.float32)
    under = np.asarray(image.convert("RGB"))
    return Image.fromarray(np.rint(under * (1 - cover) + colors * cover).astype(np.uint8))
