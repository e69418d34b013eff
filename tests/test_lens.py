"""The logit lens against the model's own output, and the arithmetic of curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vlmsteer
from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.demo import question
from vlmsteer.errors import InputError
from vlmsteer.lens.beliefs import crossing_layer, curves, first_tokens, grid


@pytest.fixture(scope="module")
def session():
    return vlmsteer.load("tiny-llava")


def test_last_layer_is_the_models_own_distribution(session):
    pairs = drawn_pairs("color", "test", 6)
    images, asked = [p.image("counterfactual") for p in pairs], [question(p, "this") for p in pairs]
    found = curves(session, images, asked, [p.prior for p in pairs], [p.pixel for p in pairs])
    probabilities = session.logits(images, asked).softmax(-1)
    for row, pair in enumerate(pairs):
        own = first_tokens(session, [pair.prior, pair.pixel])
        for word, curve in ((pair.prior, found.prior), (pair.pixel, found.pixel)):
            assert curve[row, -1] == pytest.approx(float(probabilities[row, own[word]].sum()), abs=1e-5)


def test_every_layer_is_normed_once(session):
    pair = drawn_pairs("color", "test", 1)[0]
    image, asked = pair.image("counterfactual"), question(pair, "this")
    layout = session.encoder.encode([image], [asked]).whole(session.device)
    with torch.no_grad():
        theirs = session.model(**layout.inputs, output_hidden_states=True).hidden_states
    found = curves(session, [image], [asked], [pair.prior], [pair.pixel])
    own = first_tokens(session, [pair.prior, pair.pixel])[pair.pixel]
    for layer in range(session.layers() - 1):  # theirs[-1] is after the final norm
        with torch.no_grad():
            p = session.unembed(theirs[layer + 1][0, -1]).softmax(-1)[own].sum()
        assert found.pixel[0, layer] == pytest.approx(float(p), abs=1e-5)


def test_first_tokens_find_spellings_and_drop_shared_ones(session):
    found = first_tokens(session, ["red", "blue"])
    words = {session.tokenizer.convert_ids_to_tokens(i) for i in found["red"]}
    assert "▁red" in words
    assert not set(found["red"]) & set(found["blue"])
    with pytest.raises(InputError, match="begins like another"):
        first_tokens(session, ["fire truck", "fire hydrant"])
    with pytest.raises(InputError, match="empty"):
        first_tokens(session, ["red", " "])


def test_grid_has_a_cell_for_each_layer_and_word_token(session):
    pair = drawn_pairs("color", "test", 1)[0]
    found = grid(session, pair.image("counterfactual"), question(pair, "this"), top=2)
    assert len(found.words) == session.layers()
    assert all(len(layer) == len(found.tokens) for layer in found.words)
    assert session.processor.image_token not in found.tokens
    assert found.words[-1][-1][0][0] == session.ask(pair.image("counterfactual"), question(pair, "this"))


@pytest.mark.parametrize(
    ("prior", "pixel", "layer"),
    [
        ([0.5, 0.4, 0.1], [0.1, 0.5, 0.8], 1),
        ([0.5, 0.4, 0.1], [0.1, 0.42, 0.8], 2),  # ahead at layer 1, but by less than the margin
        ([0.1, 0.6, 0.1], [0.5, 0.5, 0.9], 2),  # an early lead that is lost again does not count
        ([0.5, 0.5], [0.1, 0.5], None),
        ([0.0, 0.0], [0.5, 0.5], 0),
    ],
)
def test_crossing_layer(prior, pixel, layer):
    assert crossing_layer(np.array(prior), np.array(pixel)) == layer
