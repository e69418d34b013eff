"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a vision tower for any image size, merged patches, a Qwen decoder with M-RoPE.

The vision tower takes the patches of all images as one sequence, in groups that are merged into one image token; 2.5
also sorts the groups into attention windows. Sites give them back image by image and row by row. Text tokens have one
position, image tokens three (time, height, width). Qwen3 adds vision states between its first decoder blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlmsteer.adapters.family import LLAMA_BLOCK, Family, Port, Projector, Sizes, Tower, generate
from vlmsteer.adapters.grid import merged


def _block(neurons: str) -> dict[str, Port]:
    """A vision block; the versions differ in what the MLP's second layer is called."""
    return {
        "block_in": Port("", "in"),
        "head": Port("attn.proj", "in", "heads"),
        "attn_out": Port("attn", "out"),
        "norm_out": Port("norm2", "out"),
        "neuron": Port(neurons, "in", "neurons"),
        "mlp_out": Port("mlp", "out"),
        "block_out": Port("", "out"),
    }


def _sizes(config: Any) -> Sizes:
    return Sizes(
        config.depth, config.hidden_size, config.num_heads, config.hidden_size // config.num_heads,
        config.intermediate_size,
    )  # fmt: skip


def _sizes2(config: Any) -> Sizes:
    """Qwen2-VL calls the decoder's width `hidden_size`."""
    width = config.embed_dim
    return Sizes(config.depth, width, config.num_heads, width // config.num_heads, int(width * config.mlp_ratio))


def _patches(config: Any, grids: Tensor, count: int) -> list[Tensor]:
    """Where each image's patches (or, after the merger, cells) are in the tower's sequence, row by row."""
    vision, found, start = config.vision_config, [], 0
    merge = vision.spatial_merge_size
    split = merge if count == int(grids.prod(-1).sum()) else 1
    for _, height, width in grids.tolist():
        rows, columns = height // merge, width // merge
        group = torch.arange(rows * columns).view(rows, columns)
        order = _windows(group, vision) if getattr(vision, "window_size", None) else group.flatten()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        inside = torch.arange(split * split).view(split, split)
        cell = place.view(rows, 1, columns, 1) * split * split + inside[None, :, None, :]
        found.append(cell.flatten() + start)
        start += cell.numel()
    return found


def _windows(group: Tensor, vision: Any) -> Tensor:
    """The groups of one image in the order of their windows."""
    side = vision.window_size // vision.spatial_merge_size // vision.patch_size
    rows, columns = group.shape
    windows = [
        group[top : top + side, left : left + side].flatten()
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]
    return torch.cat(windows)


def _mrope(config: Any, ids: Tensor, image: Mapping[str, Tensor] | None) -> Tensor:
    """(tokens, 3) positions: text counts on, an image's cells lie on a grid that starts where the text stopped."""
    positions = torch.arange(len(ids))[:, None].repeat(1, 3)
    shown = (ids == config.image_token_id).nonzero().flatten()
    if image is None or not len(shown):
        return positions
    _, height, width = (image["image_grid_thw"][0] // config.vision_config.spatial_merge_size).tolist()
    start, end = int(shown[0]), int(shown[-1]) + 1
    cell = torch.arange(height * width)
    positions[start:end] = start + torch.stack([torch.zeros_like(cell), cell // width, cell % width], 1)
    positions[end:] += max(height, width) - (end - start)
    return positions


def _generate(model: Any, inputs: dict[str, Any], **arguments: Any) -> Tensor:
    image = (inputs["input_ids"] == model.config.image_token_id).int()
    return generate(model, {**inputs, "mm_token_type_ids": image}, **arguments)


QWEN2_5_VL = Family(
    name="Qwen2.5-VL",
    architecture="Qwen2_5_VLForConditionalGeneration",
    towers={
        "vision": Tower(
            ("model.visual.blocks",), "vision_config", _block("mlp.down_proj"), _sizes, frame="model.visual"
        ),
        "text": Tower(("model.language_model.layers",), "text_config", LLAMA_BLOCK, frame=""),
    },
    projector=Projector(("model.visual.merger",), "mlp.2", lambda config: config.vision_config.hidden_size),
    final_norm=("model.language_model.norm",),
    unembedding=("lm_head",),
    checkpoints=("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    boxes=merged,
    image_rows=lambda config, arguments: [1] * len(arguments["image_grid_thw"]),
    patches=_patches,
    positions=_mrope,
    generate=_generate,
    notes=(
        "one image token stands for several patches of the vision tower",
        "the projector's input are patches, its neurons and output the merged cells",
        "images only, no video",
    ),
)
QWEN2_VL = replace(
    QWEN2_5_VL,
    name="Qwen2-VL",
    architecture="Qwen2VLForConditionalGeneration",
    towers={
        **QWEN2_5_VL.towers,
        "vision": replace(QWEN2_5_VL.towers["vision"], ports=_block("mlp.fc2"), sizes=_sizes2),
    },
    projector=QWEN2_5_VL.projector._replace(width=lambda config: config.vision_config.embed_dim),
    checkpoints=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
)
QWEN3_VL = replace(
    QWEN2_5_VL,
    name="Qwen3-VL",
    architecture="Qwen3VLForConditionalGeneration",
    towers={
        "vision": replace(QWEN2_5_VL.towers["vision"], ports=_block("mlp.linear_fc2")),
        "text": replace(QWEN2_5_VL.towers["text"], stitched=False),
    },
    projector=QWEN2_5_VL.projector._replace(neurons="linear_fc2"),
    checkpoints=("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
    notes=(
        *QWEN2_5_VL.notes,
        "vision states are also added to image tokens after the first decoder blocks (deepstack); "
        "the mergers that do so are no sites",
    ),
)
