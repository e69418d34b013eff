"""InstructBLIP: a ViT, a Q-Former whose 32 queries read the image and the question, and Llama or T5.

The Q-Former is a BERT: its norms follow what they normalize, and every second layer looks at the image .
Only its queries go on to the language model. With T5 the prompt goes through an encoder; the answer comes from the
decoder, whose prompt is a single start token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlmsteer.adapters.family import CLIP_BLOCK, LLAMA_BLOCK, Family, Port, Projector, Sizes, Tower

VIT_BLOCK: Mapping[str, Port] = {**CLIP_BLOCK, "head": Port("self_attn.projection", "in", "heads")}
QFORMER_BLOCK: Mapping[str, Port] = {
    "block_in": Port("", "in"),
    "head": Port("attention.output.dense", "in", "heads"),
    "attn_out": Port("attention.output.dense", "out"),
    "cross_head": Port("crossattention.output.dense", "in", "heads"),
    "cross_out": Port("crossattention.output.dense", "out"),
    "norm_out": Port(("crossattention.output.LayerNorm", "attention.output.LayerNorm"), "out"),
    "neuron": Port("output_query.dense", "in", "neurons"),
    "mlp_out": Port("output_query.dense", "out"),
    "block_out": Port("", "out"),
}


def _t5_block(mlp: int) -> dict[str, Port]:
    """A block of T5: self-attention, in the decoder cross-attention, then the MLP as its last part."""
    return {
        "block_in": Port("", "in"),
        "head": Port("layer.0.SelfAttention.o", "in", "heads"),
        "attn_out": Port("layer.0.SelfAttention", "out"),
        "norm_out": Port(f"layer.{mlp}.layer_norm", "out"),
        "neuron": Port(f"layer.{mlp}.DenseReluDense.wo", "in", "neurons"),
        "mlp_out": Port(f"layer.{mlp}.DenseReluDense", "out"),
        "block_out": Port("", "out"),
    }


T5_CROSS: Mapping[str, Port] = {
    "cross_head": Port("layer.1.EncDecAttention.o", "in", "heads"),
    "cross_out": Port("layer.1.EncDecAttention", "out"),
}


def _t5_sizes(config: Any) -> Sizes:
    return Sizes(config.num_layers, config.d_model, config.num_heads, config.d_kv, config.d_ff)


def _t5_decoder_sizes(config: Any) -> Sizes:
    return _t5_sizes(config)._replace(layers=config.num_decoder_layers)


def _look(model: Any, pixels: Tensor) -> Tensor:
    return model.vision_model(pixel_values=pixels, return_dict=True)[0]


def _asked(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with what the Q-Former makes of the vision tower's states, where these are given, not pixels."""
    states = inputs.pop("image_states", None)
    if states is None:
        return inputs
    queries = model.query_tokens.expand(len(states), -1, -1)
    ids, mask = inputs["qformer_input_ids"], inputs["qformer_attention_mask"]
    asked = model.qformer(
        input_ids=ids,
        attention_mask=torch.cat([mask.new_ones(queries.shape[:2]), mask], 1),
        query_embeds=queries,
        encoder_hidden_states=states,
        encoder_attention_mask=mask.new_ones(states.shape[:2]),
        return_dict=True,
    )
    features = model.language_projection(asked[0][:, : queries.shape[1]])
    image = SimpleNamespace(pooler_output=features, qformer_outputs=asked, vision_outputs=None)
    return {**inputs, "pixel_values": None, "mm_encoder_outputs": {"image": image}}


def _entry(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The whole model while there are images to read, else its language model alone."""
    return model if "pixel_values" in inputs else model.language_model


def _call(model: Any, inputs: dict[str, Any], positions: Tensor, cache: Any, use_cache: bool) -> Any:
    inputs.setdefault("logits_to_keep", 1)
    more = {"position_ids": positions, "past_key_values": cache, "use_cache": use_cache}
    inputs = _asked(model, inputs)
    outputs = _entry(model, inputs)(**inputs, **more)
    return getattr(outputs, "language_model_outputs", outputs)


def _generate(model: Any, inputs: dict[str, Any], **arguments: Any) -> Tensor:
    return _entry(model, inputs).generate(**inputs, **arguments)


@dataclass
class Encoded:
    """What a T5 decoder goes on from: its own cache, and the encoder's output with its mask."""

    cache: Any
    states: Tensor
    mask: Tensor

    def batch_repeat_interleave(self, count: int) -> None:
        """Every row `count` times."""
        self.cache.batch_repeat_interleave(count)
        self.states, self.mask = self.states.repeat_interleave(count, 0), self.mask.repeat_interleave(count, 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """These rows only."""
        self.cache.batch_select_indices(indices)
        self.states, self.mask = self.states[indices], self.mask[indices]

    def crop(self, change: int) -> None:
        """Without the last `-change` tokens of the answer; the prompt's keys and values stay."""
        self.cache.self_attention_cache.crop(change)


@dataclass
class Answered:
    """One step of a T5 decoder."""

    logits: Tensor
    past_key_values: Encoded | None


def _call_t5(model: Any, inputs: dict[str, Any], positions: Tensor, cache: Any, use_cache: bool) -> Answered:
    """The encoder reads the prompt once; then the decoder takes a token a step."""
    tokens, mask, keep = inputs.pop("input_ids"), inputs.pop("attention_mask"), inputs.pop("logits_to_keep", 1)
    if cache is not None:
        outputs = model.language_model(
            encoder_outputs=(cache.states,),
            attention_mask=cache.mask,
            decoder_input_ids=tokens,
            past_key_values=cache.cache,
            use_cache=use_cache,
        )
        return Answered(outputs.logits[:, -keep:], Encoded(outputs.past_key_values, cache.states, cache.mask))
    prompt = _asked(model, _prompt(inputs))
    arguments = {**prompt, "decoder_input_ids": tokens, "use_cache": use_cache}
    if tokens.shape[1] > 1:
        arguments["decoder_attention_mask"] = mask
    outputs = _entry(model, prompt)(**arguments)
    outputs = getattr(outputs, "language_model_outputs", outputs)
    memory = Encoded(outputs.past_key_values, outputs.encoder_last_hidden_state, prompt["attention_mask"])
    return Answered(outputs.logits[:, -keep:], memory if use_cache else None)


def _prompt(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with the encoder's prompt under the names that transformers has for it."""
    inputs = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    inputs["input_ids"], inputs["attention_mask"] = inputs.pop("encoder_ids"), inputs.pop("encoder_mask")
    return inputs


def _generate_t5(model: Any, inputs: dict[str, Any], **arguments: Any) -> Tensor:
    return _generate(model, _prompt(inputs), **arguments)


INSTRUCTBLIP = Family(
    name="InstructBLIP",
    architecture="InstructBlipForConditionalGeneration",
    towers={
        "vision": Tower(("vision_model.encoder.layers",), "vision_config", VIT_BLOCK),
        "qformer": Tower(("qformer.encoder.layer",), "qformer_config", QFORMER_BLOCK, pre_norm=False, frame="qformer"),
        "text": Tower(("language_model.model.layers",), "text_config", LLAMA_BLOCK, frame="language_model"),
    },
    projector=Projector(("language_projection",), None, lambda config: config.qformer_config.hidden_size),
    final_norm=("language_model.model.norm",),
    unembedding=("language_model.lm_head",),
    checkpoints=("Salesforce/instructblip-vicuna-7b", "Salesforce/instructblip-vicuna-13b"),
    boxes=None,
    image_first=False,
    bare_prompt=True,
    question_inputs=("qformer_input_ids", "qformer_attention_mask"),
    skip=lambda config: 1,
    call=_call,
    generate=_generate,
    look=_look,
    notes=(
        "the Q-Former's queries are no cells of the image: no patch grid after it",
        "the Q-Former reads the question, so questions about one image cannot share how it is seen",
        "the Q-Former's MLP points are those of the queries; its question tokens have an MLP of their own",
    ),
)
INSTRUCTBLIP_T5 = replace(
    INSTRUCTBLIP,
    name="InstructBLIP (T5)",
    towers={
        **{name: tower for name, tower in INSTRUCTBLIP.towers.items() if name != "text"},
        "encoder": Tower(
            ("language_model.encoder.block",), "text_config", _t5_block(1), _t5_sizes, frame="language_model.encoder"
        ),
        "text": Tower(
            ("language_model.decoder.block",),
            "text_config",
            _t5_block(2) | dict(T5_CROSS),
            _t5_decoder_sizes,
            frame="language_model.decoder",
        ),
    },
    final_norm=("language_model.decoder.final_layer_norm",),
    unembedding=("language_model.lm_head",),
    checkpoints=("Salesforce/instructblip-flan-t5-xl", "Salesforce/instructblip-flan-t5-xxl"),
    call=_call_t5,
    generate=_generate_t5,
    logit_scale=lambda config: (
        config.text_config.d_model**-0.5 if getattr(config.text_config, "scale_decoder_outputs", False) else 1.0
    ),
    notes=(
        *INSTRUCTBLIP.notes,
        "image and question are in the encoder; the text tower is the decoder, whose prompt is one start token",
    ),
)
