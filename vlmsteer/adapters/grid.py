"""Which part of an image each of its tokens in the prompt shows.

A box is (left, top, right, bottom) as fractions of the image as it was given; a token that shows no part of it, such as
the one that ends a row of tiles, has a box of NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def cells(rows: int, columns: int, newline: bool = False) -> Tensor:
    """Boxes of a grid over the whole image, row by row: (rows * columns, 4); `newline` ends each with an empty box."""
    top, left = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    boxes = torch.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], -1)
    if newline:
        boxes = torch.cat([boxes, torch.full((rows, 1, 4), torch.nan)], 1)
    return boxes.flatten(0, 1)


def through(boxes: Tensor, window: tuple[float, float, float, float]) -> Tensor:
    """Boxes of a grid over a window of the image, as parts of the image; those that show nothing of it are NaN.

    Args:
        boxes: (cells, 4) as parts of the window.
        window: left, top, right, bottom as fractions of the image, which it may exceed.
    """
    corner, end = torch.tensor(window[:2]), torch.tensor(window[2:])
    boxes = (boxes * (end - corner).repeat(2) + corner.repeat(2)).clamp(0, 1)
    boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)] = torch.nan
    return boxes


def square(config: Any, processor: Any, size: tuple[int, int], image: Mapping[str, Tensor]) -> Tensor:
    """One square grid, over the image's center if the image processor crops: (tokens, 4).

    Args:
        size: width and height of the image in pixels.
        image: what the processor made of it.
    """
    vision, images = config.vision_config, processor.image_processor
    side = vision.image_size // vision.patch_size
    boxes = cells(side, side)
    if getattr(images, "do_center_crop", False) and "shortest_edge" in images.size:
        scale = images.size["shortest_edge"] / min(size)
        seen = torch.tensor(
            [images.crop_size["width"] / (size[0] * scale), images.crop_size["height"] / (size[1] * scale)]
        )
        boxes = boxes * seen.repeat(2) + ((1 - seen) / 2).repeat(2)
    if (
        getattr(config, "vision_feature_select_strategy", "default") == "full"
        and vision.model_type == "clip_vision_model"
    ):
        boxes = torch.cat([torch.full((1, 4), torch.nan), boxes])
    return boxes


def tiled(config: Any, processor: Any, size: tuple[int, int], image: Mapping[str, Tensor]) -> Tensor:
    """A coarse grid over the image, then a fine one over its tiles, a newline after each row: (tokens, 4)."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    side = config.vision_config.image_size // config.vision_config.patch_size
    given = image["image_sizes"][0]
    tiles = get_anyres_image_grid_shape(given.tolist(), config.image_grid_pinpoints, config.vision_config.image_size)
    fine = unpad_image(torch.zeros(1, tiles[0] * side, tiles[1] * side), given.tolist()).shape[1:]
    most = getattr(config, "vision_aspect_ratio", "")
    if most.startswith("anyres_max_"):
        ratio = (fine[0] * fine[1] / (int(most.removeprefix("anyres_max_")) * side**2)) ** 0.5
        if ratio > 1.1:
            fine = (int(fine[0] // ratio), int(fine[1] // ratio))
    return torch.cat([cells(side, side), cells(*fine, newline=True)])


def merged(config: Any, processor: Any, size: tuple[int, int], image: Mapping[str, Tensor]) -> Tensor:
    """A grid as large as the image asks for, each cell several patches of the vision tower: (tokens, 4)."""
    _, rows, columns = image["image_grid_thw"][0].tolist()
    merge = config.vision_config.spatial_merge_size
    return cells(rows // merge, columns // merge)
