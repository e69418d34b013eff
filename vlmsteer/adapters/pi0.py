"""pi0: a SigLIP tower, one linear layer, a Gemma that reads image and instruction, and a second Gemma for actions.

The action expert reads the robot's state and noisy actions, attends to the keys and values of the first Gemma block by
block, and says in which direction the actions are (flow matching). So the first Gemma's last block is a dead end but
for its keys and values, and every token of the prompt sees all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlmsteer.adapters.family import CLIP_BLOCK, LLAMA_BLOCK, Family, Projector, Tower
from vlmsteer.adapters.grid import cells, through


def _call(model: Any, inputs: dict[str, Any], positions: Tensor, cache: Any, use_cache: bool) -> Any:
    """One velocity; as logits (rows, 1, chunk * numbers). The cache goes on holding the prompt alone."""
    inputs.pop("logits_to_keep", None)
    outputs = model(**inputs, position_ids=positions, past_key_values=cache)
    past = outputs.past_key_values
    past.crop(inputs["attention_mask"].shape[1] - past.get_seq_length())
    outputs.logits = outputs.logits.flatten(1)[:, None]
    return outputs


def _boxes(config: Any, processor: Any, size: tuple[int, int], image: Mapping[str, Tensor]) -> Tensor:
    """One square grid over the image in its left upper corner, what is right or below of it padding."""
    from transformers.image_utils import get_image_size_for_max_height_width

    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    fit = get_image_size_for_max_height_width((size[1], size[0]), vision.image_size, vision.image_size)
    return through(cells(side, side), (0, 0, vision.image_size / fit[1], vision.image_size / fit[0]))


PI0 = Family(
    name="pi0",
    architecture="PI0ForConditionalGeneration",
    library="vlmsteer.pi0.checkpoint",
    towers={
        "vision": Tower(("model.vlm.vision_tower.encoder.layers",), "vision_config", CLIP_BLOCK),
        "text": Tower(
            ("model.vlm.language_model.layers",),
            "text_config",
            LLAMA_BLOCK,
            live=lambda config, count: count - 1,
            frame="model.vlm",
        ),
        "expert": Tower(("model.dit.layers",), "dit_config", LLAMA_BLOCK, frame="model.dit"),
    },
    projector=Projector(("model.vlm.multi_modal_projector",), None, lambda config: config.vision_config.hidden_size),
    final_norm=("model.dit.norm",),
    unembedding=("action_out_proj",),
    checkpoints=("lerobot/pi0_base",),
    boxes=_boxes,
    image_first=False,
    call=_call,
    silent="It answers with actions: vlmsteer.pi0.actions.act runs its flow head.",
    notes=(
        "the text tower reads image and instruction, expert is the action expert, with one state token, then a token "
        "for each action of the chunk; positions 'action' are the latter, at every step of the flow",
        "no words and no action tokens: vlmsteer.pi0.actions.act runs the flow head, and what session.logits and run "
        "give is its velocity at time 1, from noise and state that are zero",
        "the text tower's last block can change the actions by its block_in only, through its keys and values",
        "instruction and image see each other, so questions about one image cannot share how it is seen",
        "one camera a row; published checkpoints were trained with up to three",
        "LeRobot's checkpoints need the tokenizer's files of google/paligemma-3b-pt-224 beside them",
    ),
)
