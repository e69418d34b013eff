"""An edited run equals the layers called by hand, one after the other, with the edit written between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, recipe
from PIL import Image
from torch import Tensor

from vlmsteer.operations import OPERATIONS
from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
POINTS = ("block_in", "head", "attn_out", "norm_out", "neuron", "mlp_out", "block_out")


def embedded(session: Any, picture: Image.Image, question: str) -> tuple[Tensor, Tensor]:
    """(1, tokens, width) what the decoder starts from, and the positions."""
    layout = session.encoder.encode([picture], [question]).whole(session.device)
    model, ids = session.model.model, layout.inputs["input_ids"]
    vision = {name: value for name, value in layout.inputs.items() if name in ("pixel_values", "image_sizes")}
    features = model.get_image_features(**vision, return_dict=True).pooler_output
    states = model.get_input_embeddings()(ids)
    states[ids == session.encoder.image_token] = torch.cat(list(features)).to(states.dtype)
    return states, layout.positions


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions for (batch, heads, tokens, head_dim)."""
    half = x.shape[-1] // 2
    return x * cos[:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, None]


def by_hand(session: Any, picture: Image.Image, question: str, point: str, layer: int, change: Any) -> Tensor:
    """(vocabulary,) the logits of a run in which `change` is applied to a block's `point`, written out for a Llama."""
    decoder = session.model.model.language_model
    stream, positions = embedded(session, picture, question)
    rotary = decoder.rotary_emb(stream, positions)

    def at(here: str, number: int, states: Tensor) -> Tensor:
        return change(states) if (here, number) == (point, layer) else states

    for number, block in enumerate(decoder.layers):
        stream = at("block_in", number, stream)
        attention, size = block.self_attn, stream.shape[:2]
        normed = block.input_layernorm(stream)
        query, key, value = (
            part(normed).view(*size, -1, attention.head_dim).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )

        group = query.shape[1] // key.shape[1]
        key, value = turn(key, *rotary).repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        weights = turn(query, *rotary) @ key.transpose(2, 3) * attention.head_dim**-0.5
        causal = torch.ones(size[1], size[1]).triu(1).bool()
        weights = weights.masked_fill(causal, float("-inf")).softmax(-1)
        heads = (weights @ value).transpose(1, 2).reshape(*size, -1)
        stream = stream + at("attn_out", number, attention.o_proj(at("head", number, heads)))
        normed = at("norm_out", number, block.post_attention_layernorm(stream))
        neurons = at("neuron", number, block.mlp.act_fn(block.mlp.gate_proj(normed)) * block.mlp.up_proj(normed))
        stream = stream + at("mlp_out", number, block.mlp.down_proj(neurons))
        stream = at("block_out", number, stream)
    return session.model.lm_head(decoder.norm(stream[0, -1]))


@torch.no_grad()
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("operation", ["add", "replace", "project_out"])
def test_text_points(point: str, operation: str, session: Any, pictures: Pictures) -> None:
    steer = recipe(session, f"text.1.{point}", operation, 0.7, "all", size=2.0)
    vector = steer.edits[0].fixed.layers[1]

    def change(states: Tensor) -> Tensor:
        return OPERATIONS[operation](states, vector, torch.tensor(0.7))

    expected = by_hand(session, pictures[1], QUESTIONS[0], point, 1, change)
    plain = session.logits(pictures[1:2], QUESTIONS[:1])[0]
    steered = session.logits(pictures[1:2], QUESTIONS[:1], steer)[0]
    torch.testing.assert_close(steered, expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["last", "image", "question", (0, -2)])
def test_text_positions(positions: Any, session: Any, pictures: Pictures) -> None:
    row = session.encoder.encode(pictures[1:2], QUESTIONS[:1]).rows[0]
    chosen = {
        "last": [len(row.ids) - 1],
        "image": [i for i, token in enumerate(row.ids) if token == session.encoder.image_token],
        "question": [i for i, asked in enumerate(row.question) if asked],
    }.get(positions, list(positions))
    steer = recipe(session, "text.0.block_out", positions=positions, size=2.0)

    def change(states: Tensor) -> Tensor:
        states = states.clone()
        states[:, chosen] += steer.edits[0].fixed.layers[0]
        return states

    expected = by_hand(session, pictures[1], QUESTIONS[0], "block_out", 0, change)
    torch.testing.assert_close(session.logits(pictures[1:2], QUESTIONS[:1], steer)[0], expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_vision_and_projector(llava: Any, pictures: Pictures) -> None:
    """Vision edits leave the class token alone under 'image' and reach the projector."""
    tower, projector = llava.model.model.vision_tower, llava.model.model.multi_modal_projector
    steer = both(
        recipe(llava, "vision.1.block_out", positions="image", size=2.0),
        recipe(llava, "projector.0.block_out", "scale", positions="image", seed=1),
    )
    pixels = llava.encoder.encode(pictures[:1], QUESTIONS[:1]).images[0]["pixel_values"]
    states = tower(pixels, output_hidden_states=True).hidden_states[2][:, 1:]
    features = projector(states + steer.edits[0].fixed.layers[1])
    expected = features * (1 + steer.edits[1].vectors.layers[0])
    with llava.read("text.0.block_in", "image") as seen:
        llava.logits(pictures[:1], QUESTIONS[:1], steer)
    torch.testing.assert_close(seen.rows("text.0.block_in")[0], expected[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_sign_of_patching(llava: Any, pictures: Pictures) -> None:
    """Replacing a layer's last state by that of another prompt gives exactly the other prompt's answer."""
    last = llava.layers() - 1
    with llava.read(f"text.{last}.block_out") as states:
        donor = llava.logits(pictures[1:2], QUESTIONS[1:2])
    vectors = Vectors("text", "block_out", {last: states[f"text.{last}.block_out"][0]})
    patched = llava.logits(pictures[:1], QUESTIONS[:1], Recipe.of(vectors, operation="replace"))
    assert torch.equal(patched, donor)
