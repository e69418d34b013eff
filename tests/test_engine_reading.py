"""What hooks read is what transformers reports, whoever installed its hooks first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, recipe
from PIL import Image

import vlmsteer
from vlmsteer.adapters.family import find
from vlmsteer.errors import SiteError

Pictures = list[Image.Image]


def inputs(session: Any, pictures: Pictures, questions: list[str]) -> dict[str, torch.Tensor]:
    layout = session.encoder.encode(pictures[: len(questions)], questions).whole(session.device)
    return {**layout.inputs, "position_ids": layout.positions}


def reported(session: Any, arguments: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return session.model(**arguments, output_hidden_states=True).hidden_states


def vision_reported(session: Any, arguments: dict[str, torch.Tensor]) -> Any:
    pixels = arguments["pixel_values"].flatten(0, -4)
    with torch.no_grad():
        return session.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states


def test_text_layers_equal_hidden_states(session: Any, pictures: Pictures) -> None:
    arguments = inputs(session, pictures, QUESTIONS[:1])
    states = reported(session, arguments)
    with session.read(["text.*.block_in", "text.*.block_out"], positions="all") as seen:
        session.logits(pictures[:1], QUESTIONS[:1])
    last = session.layers() - 1
    for layer in range(session.layers()):
        assert torch.equal(seen.rows(f"text.{layer}.block_in")[0], states[layer][0])
        out = seen.rows(f"text.{layer}.block_out")[0]
        norm = find(session.model, session.family.final_norm)
        assert torch.equal(norm(out) if layer == last else out, states[layer + 1][0])


def test_vision_layers_equal_hidden_states(session: Any, pictures: Pictures) -> None:
    arguments = inputs(session, pictures, QUESTIONS[:1])
    states = vision_reported(session, arguments)
    with session.read("vision.*.block_out", positions="all") as seen:
        session.logits(pictures[:1], QUESTIONS[:1])
    for layer in range(session.layers("vision")):
        rows = seen.rows(f"vision.{layer}.block_out")
        for row, expected in zip(rows, states[layer + 1], strict=True):
            assert torch.equal(row, expected)


@pytest.mark.parametrize("first", ["ours", "theirs", "ours inside"])
def test_every_order_of_first_use(first: str, llava_folder: Path, pictures: Pictures) -> None:
    """transformers puts its collectors on at their first use; ours come before them, whoever came first."""
    session = vlmsteer.load(llava_folder, check=False)
    steer = recipe(session, "text.1.block_out", positions="all", size=5.0)
    arguments = inputs(session, pictures, QUESTIONS[:1])
    if first == "theirs":
        reported(session, arguments)
    if first == "ours":
        with session.apply(steer):
            session.model(**arguments)
    with session.apply(steer):
        edited = reported(session, arguments)
    fresh = reported(session, arguments)
    assert torch.equal(edited[1], fresh[1])
    expected = fresh[2] + steer.edits[0].vectors.layers[1]
    assert torch.equal(edited[2], expected)
    assert len(edited) == len(fresh) == session.layers() + 1


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_an_edit_of_the_layer_the_projector_reads_arrives(first: str, llava_folder: Path, pictures: Pictures) -> None:
    session = vlmsteer.load(llava_folder, check=False)
    layer = session.family.live_layers(session.model.config, "vision") - 1
    if first == "theirs":
        session.logits(pictures[:1], QUESTIONS[:1])
    steer, sites = recipe(session, f"vision.{layer}.block_out", positions="all", size=3.0), ["projector.0.block_in"]
    with session.apply(steer), session.read([*sites, f"vision.{layer}.block_out"], positions="all") as seen:
        session.logits(pictures[:1], QUESTIONS[:1])
    edited = seen.rows(f"vision.{layer}.block_out")[0]
    assert torch.equal(seen.rows("projector.0.block_in")[0], edited[1:])
    with session.read(f"vision.{layer}.block_out", positions="all") as plain:
        session.logits(pictures[:1], QUESTIONS[:1])
    assert not torch.allclose(plain.rows(f"vision.{layer}.block_out")[0], edited)


def test_shapes_and_selections(llava: Any, pictures: Pictures) -> None:
    with llava.read(["text.0.head", "text.1.block_out"]) as last, llava.read("text.1.block_out", "question") as asked:
        llava.logits(pictures[:2], QUESTIONS[:2])
    assert last["text.1.block_out"].shape == (2, 48)
    assert last["text.0.head"].shape == (2, 4, 12)
    encoded = llava.encoder.encode(pictures[:2], QUESTIONS[:2])
    assert [len(row) for row in asked.rows("text.1.block_out")] == [sum(row.question) for row in encoded.rows]
    with pytest.raises(SiteError, match=r"use \.rows"):
        asked["text.1.block_out"]
    with pytest.raises(SiteError, match="was not read"):
        asked["text.0.block_out"]


def test_batches_and_single_rows_collect_the_same(session: Any, pictures: Pictures) -> None:
    with session.read("text.*.mlp_out", "question") as whole:
        session.ask_many(pictures, QUESTIONS, max_new_tokens=1)
    with session.read("text.*.mlp_out", "question") as single:
        session.ask_many(pictures, QUESTIONS, max_new_tokens=1, batch_size=1)
    for site in whole.sites:
        for one, other in zip(whole.rows(site), single.rows(site), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_decode_steps_are_read(llava: Any, pictures: Pictures) -> None:
    with llava.read("text.2.block_out", "generated", phase="decode") as seen:
        llava.ask_many(pictures[:2], QUESTIONS[:2], max_new_tokens=4)
    # The last token is said but never read back.
    assert [len(row) for row in seen.rows("text.2.block_out")] == [3, 3]


def test_reading_changes_nothing(session: Any, pictures: Pictures) -> None:
    plain = session.logits(pictures, QUESTIONS)
    with session.read(session.sites, positions="all"):
        assert torch.equal(session.logits(pictures, QUESTIONS), plain)
