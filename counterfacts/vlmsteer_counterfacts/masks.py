"""Which pixels an edit may touch: from a box, brush strokes, a color, or SAM 2.

A mask is an "L" image of the picture's size: 255 is the object, 0 is never touched, and the pixel or two between are in
proportion. GrabCut (Rother et al., 2004) turns a rough outline into an exact one; it draws random numbers, so its seed
is set before each use, and it looks at 160,000 pixels at most, so that a large photo takes no longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer_counterfacts.color import NAMES, Floats, name_indices, parse_color, to_oklab

Box = Sequence[float]
Stroke = tuple[float, float, float]
Strokes = Image.Image | Sequence[Stroke]

MOST_PIXELS = 400 * 400  # that GrabCut looks at
ROUNDS = 5
HOLE, PART = 0.02, 0.2  # holes up to this share of the object are filled, parts up to this share of the largest dropped


def mask_weights(mask: Image.Image, size: tuple[int, int]) -> Floats:
    """The mask as (height, width) weights from 0 to 1, or the sentence that says what is wrong with it.

    Raises:
        InputError: not a gray or bilevel image of `size` (width, height), or 0 everywhere.
    """
    if not isinstance(mask, Image.Image):
        raise InputError(f"A mask is a PIL image of mode 'L', not {type(mask).__name__}.")
    if mask.mode not in ("L", "1"):
        raise InputError(f"A mask has the mode 'L' (0 to 255), not {mask.mode!r}; use `mask.convert('L')`.")
    if mask.size != size:
        given, wanted = ("{} x {}".format(*pair) for pair in (mask.size, size))
        raise InputError(f"The mask is {given} pixels and the image {wanted}; they must be the same.")
    weights = np.asarray(mask.convert("L"), np.float32) / np.float32(255)
    if not weights.any():
        raise InputError("The mask is empty (0 everywhere); mark the object in it.")
    return weights


def from_box(image: Image.Image, box: Box, refine: bool = True) -> Image.Image:
    """The object in a box.

    Args:
        image: the picture.
        box: left, top, right, bottom in pixels, right and bottom just past the object. A little wider than the object
            is best: all of it inside, not much else.
        refine: find the object in the box with GrabCut; False takes the whole box.

    Returns:
        The mask, 0 outside the box. The same input gives the same mask.

    Raises:
        InputError: the box is inverted, has no area or leaves the image; fills the whole image, so that nothing is left
            to tell the object from; or holds no object that GrabCut can see.
    """
    rgb = open_image(image)
    left, top, right, bottom = _checked_box(box, rgb.size)
    inside = np.zeros((rgb.height, rgb.width), bool)
    inside[top:bottom, left:right] = True
    if not refine:
        return Image.fromarray(inside.astype(np.uint8) * 255)
    if inside.all():
        raise InputError("The box fills the whole image; leave some background around it, or use `refine=False`.")
    import cv2

    # What is far from the box says little about the background that touches the object.
    margin = max(round(0.5 * min(right - left, bottom - top)), 16)
    rows = slice(max(top - margin, 0), bottom + margin)
    columns = slice(max(left - margin, 0), right + margin)
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    found = np.zeros_like(inside)
    found[rows, columns] = _grabcut(np.asarray(rgb)[rows, columns], labels[rows, columns])
    found = _tidy(found & inside)
    if not found.any():
        raise InputError(f"GrabCut sees no object in the box {tuple(box)}; move it, use strokes, or `refine=False`.")
    return _soft(found, inside)


def from_strokes(image: Image.Image, inside: Strokes, outside: Strokes | None = None) -> Image.Image:
    """The object under brush strokes, by GrabCut.

    Args:
        image: the picture.
        inside: what is surely the object: a mask, or dots (x, y, radius) in pixels.
        outside: what is surely not; without it, the border of the picture that `inside` leaves free.

    Raises:
        InputError: strokes that mark nothing, leave the image, or mark a pixel as both.
    """
    import cv2

    rgb = open_image(image)
    pixels = np.asarray(rgb)
    sure = _marked(inside, rgb.size, "inside")
    if outside is None:
        never = np.zeros_like(sure)
        never[[0, -1], :] = never[:, [0, -1]] = True
        never &= ~sure
        if not never.any():
            raise InputError("The strokes cover the border of the image; mark what is not the object with `outside`.")
    else:
        never = _marked(outside, rgb.size, "outside")
        if (sure & never).any():
            raise InputError(f"{int((sure & never).sum())} pixels are marked both inside and outside; mark them once.")
    lab = to_oklab(pixels)
    likely = _distance(lab, lab[sure]) < _distance(lab, lab[never])
    labels = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[sure], labels[never] = cv2.GC_FGD, cv2.GC_BGD
    found = _tidy(_grabcut(pixels, labels) | sure, sure) & ~never
    return _soft(found, ~never)


def from_color(
    image: Image.Image, color: str | Sequence[int], tolerance: float | None = None, box: Box | None = None
) -> Image.Image:
    """Everything of a color.

    Args:
        image: the picture.
        color: a name of the palette, '#rrggbb' or an RGB triple.
        tolerance: the largest distance in OKLab, above 0; 0.1 takes an object's shading in, 0.05 one shade. A name can
            do without: then all that a person would call so.
        box: look only in here (left, top, right, bottom in pixels).

    Raises:
        InputError: no such pixels, an RGB without a tolerance, a tolerance that is not positive, or a bad box.
    """
    rgb = open_image(image)
    wanted = parse_color(color)
    allowed = np.ones((rgb.height, rgb.width), bool)
    if box is not None:
        left, top, right, bottom = _checked_box(box, rgb.size)
        allowed[:] = False
        allowed[top:bottom, left:right] = True
    if tolerance is None:
        if wanted.exact:
            raise InputError(f"A color given as {color!r} needs a tolerance (a distance in OKLab, for example 0.1).")
        found, advice = name_indices(rgb) == NAMES.index(wanted.name), "give a tolerance"
    else:
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise InputError(f"The tolerance is a distance above 0 in OKLab, for example 0.1, not {tolerance}.")
        distance = np.linalg.norm(to_oklab(rgb) - to_oklab(wanted.rgb), axis=-1)
        found, advice = distance <= tolerance, f"the nearest pixel is {distance[allowed].min():.3f} away"
    found = _tidy(found & allowed)
    if not found.any():
        raise InputError(f"Nothing here is {color!r}; {advice}.")
    return _soft(found, allowed)


def from_sam2(image: Image.Image, box_or_points: Box | Sequence[Sequence[float]], model: str | Path) -> Image.Image:
    """The object in a box or at points, by a SAM 2 checkpoint that is on this machine; nothing is downloaded.

    Args:
        image: the picture.
        box_or_points: left, top, right, bottom; or points (x, y) on the object, or (x, y, 0) beside it.
        model: a folder as written by `save_pretrained`, or a hub id that is already in the cache.

    Returns:
        Of the masks that the model offers, the one that it expects to fit best.

    Raises:
        InputError: the checkpoint is not there or is no SAM 2, a box or point outside the image, or nothing found.
    """
    import torch

    rgb = open_image(image)
    network, processor = _sam2(str(model))
    prompt: dict[str, Any]
    if len(box_or_points) == 4 and all(np.isscalar(value) for value in box_or_points):
        prompt = {"input_boxes": [[[float(value) for value in _checked_box(box_or_points, rgb.size)]]]}
    else:
        points = _checked_points(box_or_points, rgb.size)
        prompt = {
            "input_points": [[[[x, y] for x, y, _ in points]]],
            "input_labels": [[[int(label) for _, _, label in points]]],
        }
    inputs = processor(images=rgb, return_tensors="pt", **prompt).to(network.device)
    with torch.inference_mode():
        output = network(**inputs, multimask_output=True)
    masks = processor.post_process_masks(output.pred_masks.float().cpu(), inputs["original_sizes"].cpu())[0][0]
    found = _tidy(masks[int(output.iou_scores[0, 0].argmax())].numpy().astype(bool))
    if not found.any():
        raise InputError(f"The model {str(model)!r} sees no object there; move the box or the points.")
    return _soft(found, np.ones_like(found))


@lru_cache(maxsize=1)
def _sam2(name: str):
    from transformers import AutoConfig, Sam2Model, Sam2Processor

    try:
        kind = AutoConfig.from_pretrained(name, local_files_only=True).model_type
    except (OSError, ValueError) as error:
        raise InputError(f"There is no checkpoint on this machine at {name!r}; pass the folder of a SAM 2.") from error
    if kind not in ("sam2", "sam2_video"):  # the published SAM 2.1 files are saved as the video model
        raise InputError(f"{name!r} is a {kind!r} checkpoint and no SAM 2; pass the folder of a SAM 2.")
    try:
        processor = Sam2Processor.from_pretrained(name, local_files_only=True)
        network = Sam2Model.from_pretrained(name, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"The SAM 2 checkpoint at {name!r} is not complete: {str(error).splitlines()[0]}") from error
    return network.eval(), processor


def _checked_box(box: Sequence[Any], size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        raise InputError(f"A box is four numbers (left, top, right, bottom), not {tuple(box)}.")
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise InputError(
            f"The box {tuple(box)} has no area; it is (left, top, right, bottom) with left < right, top < bottom."
        )
    if left < 0 or top < 0 or right > width or bottom > height:
        raise InputError(f"The box {tuple(box)} leaves the image, which is {width} x {height} pixels.")
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def _checked_points(points: Sequence[Any], size: tuple[int, int]) -> list[Stroke]:
    checked = [(*point, 1.0) if len(point) == 2 else tuple(point) for point in points]
    if not checked or not all(len(point) == 3 and point[2] in (0, 1) for point in checked):
        raise InputError("Points are pairs (x, y), or (x, y, 0) for one beside the object; give at least one.")
    for x, y, _ in checked:
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise InputError(f"The point ({x}, {y}) leaves the image, which is {size[0]} x {size[1]} pixels.")
    return checked


def _marked(strokes: Strokes, size: tuple[int, int], which: str) -> NDArray[np.bool_]:
    if isinstance(strokes, Image.Image):
        return mask_weights(strokes, size) >= 0.5
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    marked = np.zeros((size[1], size[0]), bool)
    for stroke in strokes:
        if len(stroke) != 3 or not all(math.isfinite(value) for value in stroke) or stroke[2] < 0:
            raise InputError(f"A stroke is (x, y, radius) in pixels, not {tuple(stroke)}.")
        if not (0 <= stroke[0] < size[0] and 0 <= stroke[1] < size[1]):
            raise InputError(f"The stroke {tuple(stroke)} leaves the image, which is {size[0]} x {size[1]} pixels.")
        marked |= np.hypot(x - stroke[0], y - stroke[1]) <= max(stroke[2], 0.75)
    if not marked.any():
        raise InputError(f"No stroke marks anything {which} the object; give at least one (x, y, radius).")
    return marked


def _distance(lab: Floats, samples: Floats) -> Floats:
    """How far each pixel (h, w, 3) is from the nearest of the samples' main colors."""
    import cv2

    cv2.setRNGSeed(0)
    count = min(4, len(np.unique(samples, axis=0)))
    stop = (cv2.TERM_CRITERIA_MAX_ITER, 10, 0.0)
    _, _, centers = cv2.kmeans(np.ascontiguousarray(samples), count, None, stop, 1, cv2.KMEANS_PP_CENTERS)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return np.stack([np.linalg.norm(lab - center, axis=-1) for center in centers]).min(axis=0)


def _grabcut(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels (h, w, 3) belong to the object, given GrabCut's labels (h, w)."""
    import cv2

    height, width = labels.shape
    scale = min(1.0, math.sqrt(MOST_PIXELS / (height * width)))
    small = (max(round(width * scale), 1), max(round(height * scale), 1))
    seen = cv2.resize(pixels[..., ::-1], small, interpolation=cv2.INTER_AREA)
    guess = cv2.resize(labels, small, interpolation=cv2.INTER_NEAREST)
    cv2.setRNGSeed(0)
    back, front = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(seen, guess, None, back, front, ROUNDS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    found = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    # GrabCut's outline is ragged by a pixel.
    return cv2.GaussianBlur(cv2.resize(found, (width, height)), (7, 7), 1.5) >= 0.5


def _tidy(found: NDArray[np.bool_], seeds: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Without small loose parts (or those that hold no seed) and small holes."""
    import cv2

    if not found.any():
        return found
    _, parts, stats, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8), connectivity=8)
    if seeds is None:
        areas = stats[:, cv2.CC_STAT_AREA].copy()
        areas[0] = 0
        keep = areas > PART * areas.max()
    else:
        keep = np.isin(np.arange(len(stats)), parts[seeds])
    keep[0] = False
    kept = keep[np.asarray(parts, np.intp)]
    _, gaps, stats, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
    border = np.unique(np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]]))
    holes = stats[:, cv2.CC_STAT_AREA] <= HOLE * kept.sum()
    holes[border] = False
    return kept | holes[np.asarray(gaps, np.intp)]


def _soft(found: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> Image.Image:
    """Edges a pixel or two wide, none of them where it is not allowed."""
    import cv2

    soft = cv2.GaussianBlur(found.astype(np.float32), (5, 5), 0.8) * allowed
    return Image.fromarray((soft * 255 + 0.5).astype(np.uint8))
