"""PvP against its formula, its controls, and what it does to the bundled model."""

from __future__ import annotations

import pytest
import torch

import vlmsteer
from vlmsteer.bench.pairs import SPLITS, Split, drawn_pairs, select
from vlmsteer.demo import choose, learn, measure, question
from vlmsteer.errors import InputError, SiteError
from vlmsteer.methods import pvp
from vlmsteer.recipe import Recipe
from vlmsteer_counterfacts.dataset import save_pairs


@pytest.fixture(scope="module")
def session():
    return vlmsteer.load("tiny-llava")


@pytest.fixture(scope="module")
def pairs():
    return drawn_pairs("color", "learn", 24)


@pytest.fixture(scope="module")
def learned(session, pairs):
    return learn(session, pairs)


def hidden(session, pairs, scope):
    """(pairs, layers + 1, width) transformers' own hidden states of the last prompt token, one prompt at a time."""
    rows = []
    for pair in pairs:
        layout = session.encoder.encode([pair.image("counterfactual")], [question(pair, scope)]).whole(session.device)
        with torch.no_grad():
            states = session.model(**layout.inputs, output_hidden_states=True).hidden_states
        rows.append(torch.stack([state[0, -1] for state in states]))
    return torch.stack(rows)


def test_vector_is_the_mean_difference_of_the_block_outputs(session, pairs, learned):
    expected = (hidden(session, pairs, "this") - hidden(session, pairs, "most")).mean(0)
    for layer in range(session.layers() - 1):  # transformers' last entry is after the final norm
        torch.testing.assert_close(learned.vectors.layers[layer], expected[layer + 1], atol=2e-5, rtol=1e-4)


def test_index_shift_reads_one_block_earlier_as_the_authors_do(session, pairs):
    shifted = learn(session, pairs, index_shift=-1).vectors
    expected = (hidden(session, pairs, "this") - hidden(session, pairs, "most")).mean(0)
    for layer in range(session.layers()):
        torch.testing.assert_close(shifted.layers[layer], expected[layer], atol=2e-5, rtol=1e-4)


def test_another_point_is_read_and_written_there(session, pairs):
    learned = learn(session, pairs, "attn_out")
    sites = [f"text.{layer}.attn_out" for layer in range(session.layers())]
    means = []
    for scope in ("this", "most"):
        with session.read(sites) as states:
            session.logits([p.image("counterfactual") for p in pairs], [question(p, scope) for p in pairs])
        means.append([states[site].mean(0) for site in sites])
    for layer, (this, most) in enumerate(zip(*means, strict=True)):
        torch.testing.assert_close(learned.vectors.layers[layer], this - most, atol=2e-5, rtol=1e-4)
    assert str(learned.recipe(1.0, [0]).edits[0].sites[0]) == "text.0.attn_out"
    with pytest.raises(InputError, match="no meaning"):
        learn(session, pairs, "attn_out", -1)
    with pytest.raises(SiteError, match="no point"):
        learn(session, pairs, "atn_out")


def test_controls_have_the_vectors_length(learned):
    random = learned.vectors.random_like(0)
    for layer, norm in learned.vectors.norms().items():
        assert learned.shuffled.norms()[layer] == pytest.approx(norm, rel=1e-4)
        assert random.norms()[layer] == pytest.approx(norm, rel=1e-4)
    assert all(abs(cosine) < 0.5 for cosine in learned.vectors.cosines(random).values())
    assert all(learned.stability[layer] > 0.9 for layer in range(4))  # half of 24 pairs each; later layers vary more


def test_negative_strength_is_the_opposite_vector(session, learned):
    pair = drawn_pairs("color", "test", 1)[0]
    image, asked = [pair.image("counterfactual")], [question(pair, "this")]
    minus = session.logits(image, asked, learned.recipe(-1.0, [1]))
    assert torch.equal(minus, session.logits(image, asked, Recipe.of(-learned.vectors, 1.0, [1])))


def test_recipe_remembers_where_it_comes_from(session, learned, tmp_path):
    learned.recipe(1.5, [1, 2]).save(tmp_path / "r.safetensors")
    loaded = Recipe.load(tmp_path / "r.safetensors")
    assert loaded.hash == learned.recipe(1.5, [1, 2]).hash
    assert loaded.about["pairs"] == 24
    assert loaded.model["id"] == "tiny-llava"
    pair = drawn_pairs("color", "test", 1)[0]
    ask = (pair.image("counterfactual"), question(pair, "most"))
    assert session.ask(*ask, loaded) == session.ask(*ask, learned.recipe(1.5, [1, 2]))


def test_it_moves_held_out_objects_to_the_pixels_and_a_random_direction_does_not(session):
    learned = learn(session, drawn_pairs("color", "learn", 100), "attn_out")
    choice = choose(session, learned, drawn_pairs("color", "validate", 24), "to_pixels", widths=(1, 2, 3))
    steered = learned.recipe(choice.strength, choice.layers)
    random = Recipe.of(learned.vectors.random_like(0), choice.strength, choice.layers)
    arms = {"steered": steered, "random": random}
    flips = measure(session, drawn_pairs("color", "test", 60), "to_pixels", arms).flips
    assert flips["steered"]["rate"] > 0.8
    assert flips["random"]["rate"] < 0.2


def test_no_object_is_in_two_splits(tmp_path):
    for attribute in ("color", "size"):
        names: dict[Split, set[str]] = {split: set() for split in SPLITS}
        for split, seen in names.items():
            for pair in drawn_pairs(attribute, split, 200):
                seen |= {pair.object} if attribute == "color" else {pair.prior, pair.pixel}
        assert not (names["learn"] | names["validate"]) & names["test"]
    save_pairs(drawn_pairs("color", "learn", 40), tmp_path)
    found = {split: {p.object for p in select(str(tmp_path), "color", split, 99)} for split in SPLITS}
    assert sum(len(objects) for objects in found.values()) == len(set().union(*found.values()))


def test_wrong_input_is_refused(session, pairs):
    with pytest.raises(InputError, match="two or more"):
        pvp.learn(session, [], [], [])
    with pytest.raises(InputError, match="index_shift"):
        learn(session, pairs[:2], index_shift=2)
    with pytest.raises(InputError, match="split"):
        drawn_pairs("color", "tset", 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="attribute"):
        drawn_pairs("colour", "test", 3)


def test_windows():
    assert pvp.windows(3, [1, 2]) == [range(0, 1), range(1, 2), range(2, 3), range(0, 2), range(1, 3)]


def test_shuffled_pairs_keep_nothing_of_the_common_direction(learned) -> None:
    assert all(abs(cosine) < 0.35 for cosine in learned.vectors.cosines(learned.shuffled).values())
