"""How much less the model believes in each word of its answer while a window of the image is hidden.

This asks the model itself and not its inner states (Zeiler and Fergus, ECCV 2014), so it needs no grid of patches and
is the same for every family. What fills the window matters: gray is a thing of its own, a blur keeps the colors.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.lens.answered import Answered
from vlmsteer.recipe import Recipe

FILLS = ("mean", "gray", "blur")
FINEST = 1 / 64


def occlusion(
    answer: Answered,
    recipe: Recipe | None = None,
    window: float = 0.25,
    stride: float = 0.125,
    fill: str = "mean",
    batch_size: int = 16,
) -> tuple[Tensor, Tensor]:
    """How far the log-probability of each answer token falls, window by window, and the windows.

    Args:
        window: the window's width and height, as fractions of the image's.
        stride: from one window to the next, as a fraction too.
        fill: "mean" color of the image, "gray", or "blur" of what is there.

    Returns:
        (tokens, windows) in nats, negative where the token becomes more likely, and (windows, 4): left, top, right and
        bottom as fractions of the image. Windows overlap if the stride is smaller than they are.

    Raises:
        InputError: if the window, the stride or the filling is not one of these.
    """
    places = windows(window, stride)
    if fill not in FILLS:
        raise InputError(f"A window cannot be filled with {fill!r}{did_you_mean(fill, FILLS)}")
    (whole,) = _score(answer, [answer.image], recipe)
    drops: list[Tensor] = []
    for part in places.split(batch_size):
        drops += [whole - hidden for hidden in _score(answer, [hide(answer.image, box, fill) for box in part], recipe)]
    return torch.stack(drops, 1), places


def windows(window: float, stride: float) -> Tensor:
    """(windows, 4): square shares of the image, row by row, the last of a row and column at its end.

    Raises:
        InputError: if the window is no part of the image, or the stride is wider than it or finer than 1/64.
    """
    if not 0 < window <= 1 or not FINEST <= stride <= window:
        raise InputError(
            f"A window is a share of the image's sides up to 1, a stride one from 1/64 to the window: not {window:g} "
            f"and {stride:g}."
        )
    starts = np.append(np.arange(0, 1 - window - 1e-9, stride), 1 - window)
    top, left = (axis.ravel() for axis in np.meshgrid(starts, starts, indexing="ij"))
    return torch.tensor(np.stack([left, top, left + window, top + window], 1), dtype=torch.float32)


def hide(image: Image.Image, box: Tensor, fill: str) -> Image.Image:
    """The image with one box (left, top, right, bottom as fractions) filled; at least a pixel of it."""
    width, height = image.size
    left, top = int(box[0] * width), int(box[1] * height)
    right, bottom = max(left + 1, round(float(box[2]) * width)), max(top + 1, round(float(box[3]) * height))
    area = (left, top, right, bottom)
    hidden = image.copy()
    if fill == "blur":
        hidden.paste(image.crop(area).filter(ImageFilter.GaussianBlur(max(right - left, bottom - top) / 2)), area)
    elif fill == "gray":
        hidden.paste((128, 128, 128), area)
    else:
        hidden.paste(tuple(np.asarray(image).mean((0, 1)).round().astype(int).tolist()), area)
    return hidden


def _score(answer: Answered, images: list[Image.Image], recipe: Recipe | None) -> list[Tensor]:
    count = len(images)
    scores = answer.session.score(images, [answer.question] * count, [answer.answer] * count, recipe, count)
    return [score.cpu() for score in scores]
