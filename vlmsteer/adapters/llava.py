"""LLaVA-1.5 and LLaVA-NeXT: CLIP tower, two-layer projector, Llama or Mistral decoder.

The tower's second-to-last layer is what the decoder sees, without the class token; later vision layers are dead ends.
NeXT cuts an image into tiles, each a row of the vision tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmsteer.adapters.family import CLIP_BLOCK, LLAMA_BLOCK, Family, Tower


def _read_layers(config: Any, count: int) -> int:
    """Vision layers up to the last one that is read: hidden state k is the output of layer k - 1."""
    selected = config.vision_feature_layer
    return max(index % (count + 1) for index in ([selected] if isinstance(selected, int) else selected))


def _class_tokens(config: Any) -> int:
    return 1 if config.vision_config.model_type == "clip_vision_model" else 0


def _tiles(config: Any, arguments: Mapping[str, Any]) -> list[int] | None:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    sizes = arguments.get("image_sizes")
    if sizes is None:
        return None
    return [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) for size in sizes
    ]


TOWERS = {
    "vision": Tower(
        ("model.vision_tower.encoder.layers", "model.vision_tower.vision_model.encoder.layers"),
        "vision_config",
        CLIP_BLOCK,
        _read_layers,
    ),
    "text": Tower(("model.language_model.layers",), "text_config", LLAMA_BLOCK),
}

LLAVA = Family(
    name="LLaVA",
    architecture="LlavaForConditionalGeneration",
    towers=TOWERS,
    projector=("model.multi_modal_projector",),
    projector_neurons="linear_2",
    final_norm=("model.language_model.norm",),
    unembedding=("lm_head",),
    checkpoints=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"),
    skip=_class_tokens,
    notes=("vision layers after the one that the projector reads cannot change the answer",),
)
LLAVA_NEXT = Family(
    name="LLaVA-NeXT",
    architecture="LlavaNextForConditionalGeneration",
    towers=TOWERS,
    projector=("model.multi_modal_projector",),
    projector_neurons="linear_2",
    final_norm=("model.language_model.norm",),
    unembedding=("lm_head",),
    checkpoints=("llava-hf/llava-v1.6-mistral-7b-hf", "llava-hf/llava-v1.6-vicuna-7b-hf"),
    skip=_class_tokens,
    tiles=_tiles,
    notes=(
        "an image is cut into tiles; the vision tower has one row a tile",
        "vision layers after the one that the projector reads cannot change the answer",
    ),
)
