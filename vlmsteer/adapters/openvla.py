"""OpenVLA: two vision towers (DINOv2 with registers, SigLIP) on one picture, joined feature by feature, and a Llama.

A robot's instruction is the question, seven action tokens are the answer. The towers' last blocks are dead ends: the
projector reads the second-to-last ones. timm's blocks scale what attention and the MLP add (`ls1`, `ls2`), so that is
where `attn_out` and `mlp_out` are; in SigLIP these modules pass everything on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlmsteer.adapters.family import LLAMA_BLOCK, Family, Port, Projector, Tower
from vlmsteer.adapters.grid import cells

TIMM_BLOCK: Mapping[str, Port] = {
    "block_in": Port("", "in"),
    "head": Port("attn.proj", "in", "heads"),
    "attn_out": Port("ls1", "out"),
    "norm_out": Port("norm2", "out"),
    "neuron": Port("mlp.fc2", "in", "neurons"),
    "mlp_out": Port("ls2", "out"),
    "block_out": Port("", "out"),
}


def _boxes(config: Any, processor: Any, size: tuple[int, int], image: Mapping[str, Tensor]) -> Tensor:
    """One square grid over the part of the image that the towers see; cells in the padding have a box of NaN."""
    left, top, right, bottom = processor.image_processor.window(size)
    side = config.vision_config.grid
    span = torch.tensor([right - left, bottom - top]).repeat(2)
    boxes = (cells(side, side) * span + torch.tensor([left, top]).repeat(2)).clamp(0, 1)
    boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)] = torch.nan
    return boxes


def _tower(module: str, section: str) -> Tower:
    return Tower(
        (f"vision_backbone.{module}.blocks",), section, TIMM_BLOCK, live=lambda config, count: count - 1
    )  # fmt: skip


OPENVLA = Family(
    name="OpenVLA",
    architecture="OpenVLAForActionPrediction",
    library="vlmsteer.openvla.checkpoint",
    towers={
        "vision": _tower("featurizer", "vision_config"),
        "vision2": _tower("fused_featurizer", "vision2_config"),
        "text": Tower(("language_model.model.layers",), "text_config", LLAMA_BLOCK, frame=""),
    },
    projector=Projector(
        ("projector",), "fc3", lambda config: sum(shape.hidden_size for shape in config.vision_configs)
    ),
    final_norm=("language_model.model.norm",),
    unembedding=("language_model.lm_head",),
    checkpoints=("openvla/openvla-7b",),
    boxes=_boxes,
    skip=lambda config: config.vision_config.prefix_tokens,
    notes=(
        "vision is DINOv2 with registers, vision2 is SigLIP; both see the whole picture, and each image token is the "
        "features of one patch from both",
        "the last block of each vision tower cannot change the answer",
        "attn_out and mlp_out of the vision towers are what is added to the stream, after timm's layer scale",
        "answers are action tokens: vlmsteer.openvla.actions.act decodes them; positions 'action' are 'generated'",
        "device_map keeps both vision towers on one device; 4-bit and 8-bit are not tested here",
    ),
)
OPENVLA_ONE_TOWER = replace(
    OPENVLA,
    name="OpenVLA (one tower)",
    towers={name: tower for name, tower in OPENVLA.towers.items() if name != "vision2"},
    projector=OPENVLA.projector._replace(neurons="fc2"),
    checkpoints=("openvla/openvla-v01-7b",),
    notes=("vision is SigLIP", *OPENVLA.notes[1:]),
)
