"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision: a CLIP or SigLIP tower, a two-layer projector, a Llama-like decoder.

The decoder sees the vision layer that the configuration names (1.5 and NeXT: the second-to-last, without the class
token); later vision layers are dead ends. NeXT and OneVision cut an image into tiles, each a row of the vision tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlmsteer.adapters.family import CLIP_BLOCK, LLAMA_BLOCK, Family, Projector, Tower
from vlmsteer.adapters.grid import square, tiled


def _read_layers(config: Any, count: int) -> int:
    """Vision layers up to the last one that is read: hidden state k is the output of layer k - 1."""
    selected = config.vision_feature_layer
    return max(index % (count + 1) for index in ([selected] if isinstance(selected, int) else selected))


def _features(config: Any) -> int:
    selected = config.vision_feature_layer
    return config.vision_config.hidden_size * (1 if isinstance(selected, int) else len(selected))


def _class_tokens(config: Any) -> int:
    return 1 if config.vision_config.model_type == "clip_vision_model" else 0


def _tiles(config: Any, arguments: Mapping[str, Any]) -> list[int]:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    return [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
        for size in arguments["image_sizes"]
    ]


LLAVA = Family(
    name="LLaVA",
    architecture="LlavaForConditionalGeneration",
    towers={
        "vision": Tower(
            ("model.vision_tower.encoder.layers", "model.vision_tower.vision_model.encoder.layers"),
            "vision_config",
            CLIP_BLOCK,
            live=_read_layers,
        ),
        "text": Tower(("model.language_model.layers",), "text_config", LLAMA_BLOCK, frame=""),
    },
    projector=Projector(("model.multi_modal_projector",), "linear_2", _features),
    final_norm=("model.language_model.norm",),
    unembedding=("lm_head",),
    checkpoints=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"),
    boxes=square,
    skip=_class_tokens,
    notes=("vision layers after the one that the projector reads cannot change the answer",),
)
LLAVA_NEXT = replace(
    LLAVA,
    name="LLaVA-NeXT",
    architecture="LlavaNextForConditionalGeneration",
    checkpoints=(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-hf/llava-v1.6-vicuna-13b-hf",
    ),
    boxes=tiled,
    image_rows=_tiles,
    notes=(*LLAVA.notes, "an image is cut into tiles; the vision tower has one row a tile"),
)
LLAVA_ONEVISION = replace(
    LLAVA_NEXT,
    name="LLaVA-OneVision",
    architecture="LlavaOnevisionForConditionalGeneration",
    checkpoints=("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
    notes=(*LLAVA_NEXT.notes, "images only, no video"),
)
