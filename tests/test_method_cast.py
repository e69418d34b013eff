"""CAST: principal directions on made-up data, the condition the right way round, and a gate that holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score
from torch.nn.functional import normalize

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.examples import Example
from vlmsteer.methods import cast
from vlmsteer.recipe import Edit, Gate
from vlmsteer.sites import Site

Pictures = list[Image.Image]
ASKED = [
    "Is red here?",
    "What strawberry?",
    "Is large color there?",
    "Is blue in the small?",
    "green?",
    "Is it yellow?",
]


def presence(pictures: Pictures) -> list[Example]:
    """Six groups of a question answered by no and one answered by yes."""
    made = []
    for i, word in enumerate(["red", "green", "blue", "yellow", "small", "large"]):
        made.append(Example(pictures[i % 3], f"Is {word} here?", "No", "Yes", str(i), "presence"))
        made.append(Example(pictures[i % 3], f"What strawberry {word}?", "Yes", "No", str(i), "presence"))
    return made


@pytest.mark.parametrize("pca", cast.WAYS)
def test_a_direction_is_recovered_and_points_to_the_right_side(pca: str) -> None:
    generator = torch.Generator().manual_seed(0)
    along = normalize(torch.randn(3, 20, generator=generator), dim=-1)  # of three layers
    common = 0.2 * torch.randn(60, 1, 3, 20, generator=generator)
    size = 2.0 + torch.randn(60, 1, 3, 1, generator=generator)
    side = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    states = common + side * size * along + 5.0
    found = cast.principal(iter(states.split(9)), pca)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    assert (torch.cosine_similarity(found, along, dim=-1) > 0.98).all()
    reversed_pairs = cast.principal(iter(states.flip(1).split(9)), pca)
    assert (torch.cosine_similarity(reversed_pairs, along, dim=-1) < -0.98).all()


def test_pairwise_is_the_component_of_states_about_their_pairs_midpoints() -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(9, 2, 1, 7, generator=generator) + 3.0
    rows = (states - states.mean(1, keepdim=True)).flatten(0, 2).double().numpy()
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    found = cast.principal(iter([states]), "pairwise")[0].numpy()
    assert abs(found @ right[0]) == pytest.approx(1.0, abs=1e-5)


def test_the_score_is_the_papers_and_the_gates() -> None:
    generator = torch.Generator().manual_seed(2)
    states, direction = torch.randn(8, 5, generator=generator), torch.randn(5, generator=generator)
    projection = np.outer(direction, direction) / float(direction @ direction)
    expected = []
    for h in states.double().numpy():
        aim = np.tanh(projection @ h)
        expected.append(h @ aim / np.linalg.norm(h) / np.linalg.norm(aim))
    found = cast.projected(states, direction)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    gate = Gate(Site("text", 0, "block_out"), direction, float(np.median(expected)), "projected")
    assert torch.equal(gate.decide(states), found > float(np.median(expected)))


@pytest.mark.parametrize("flip", [False, True])
def test_the_threshold_has_the_best_f1_on_the_right_side(flip: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    labels = torch.rand(40, generator=generator) > 0.6
    scores = torch.randn(40, generator=generator) + 1.5 * labels * (-1.0 if flip else 1.0)
    f1, threshold, when = cast.best_threshold(scores, labels)
    assert when == ("below" if flip else "above")
    met = (scores < threshold) if flip else (scores > threshold)
    assert f1 == pytest.approx(f1_score(labels, met))
    rivals = [f1_score(labels, scores > value) for value in scores] + [f1_score(labels, scores < v) for v in scores]
    assert f1 >= max(rivals) - 1e-6
    with pytest.raises(InputError, match="same score"):
        cast.best_threshold(torch.zeros(4), labels[:4])


@torch.no_grad()
def test_the_gate_decides_which_rows_are_changed(llava: Any, pictures: Pictures) -> None:
    learned = cast.learn(llava, presence(pictures), layers=[2], coefficient=20.0)
    edit: Edit = learned.edits[0]
    assert edit.gate is not None
    assert edit.gate.site.layer < 2
    site = str(edit.gate.site)
    images = [pictures[i % 3] for i in range(len(ASKED))]
    with llava.read(site) as states:
        plain = llava.logits(images, ASKED)
    scores = cast.projected(states[site], edit.gate.direction)
    middle = float(scores.sort().values[len(scores) // 2 - 1 :][:2].mean())  # between two scores, not on one
    for when in ("above", "below"):
        gate = Gate(edit.gate.site, edit.gate.direction, middle, "projected", "last", when)
        steered = llava.logits(images, ASKED, type(learned)((Edit(edit.vectors, "add", 20.0, "all", gate=gate),)))
        fires = scores > middle if when == "above" else scores < middle
        assert 0 < int(fires.sum()) < len(ASKED)
        moved = (steered - plain).abs().amax(1)
        assert (moved[fires] > 1e-2).all()
        assert (moved[~fires] == 0).all()


def test_what_is_measured_is_what_the_gate_does(llava: Any, pictures: Pictures) -> None:
    from vlmsteer.examples import split_groups

    chosen = presence(pictures)
    learned = cast.learn(llava, chosen, held_out=0.5)
    gate = learned.edits[0].gate
    assert gate is not None
    held, _ = split_groups(chosen, 0.5)
    with llava.read(str(gate.site)) as states:
        for one in held:
            llava.logits([one.image], [one.question])
    fired = gate.decide(states[str(gate.site)])
    absent = [one.right == "No" for one in held]
    assert f1_score(absent, fired) == pytest.approx(learned.about["condition"]["f1"], abs=1e-4)
    assert f1_score(absent, ~fired) <= f1_score(absent, fired)


def test_unit_length_window_and_options(llava: Any, pictures: Pictures) -> None:
    learned = cast.learn(llava, presence(pictures))
    (edit,) = learned.edits
    assert sorted(edit.vectors.layers) == [1]
    assert edit.strength == 1.5
    assert all(abs(norm - 1) < 1e-5 for norm in edit.vectors.norms().values())
    assert cast.learn(llava, presence(pictures), gated=False).edits[0].gate is None
    pooled = cast.learn(llava, presence(pictures), pool="mean").edits[0].gate
    assert pooled is not None
    assert pooled.positions == "all"


def test_strength_zero_changes_no_bit(llava: Any, pictures: Pictures) -> None:
    learned = cast.learn(llava, presence(pictures))
    assert torch.equal(llava.logits(pictures, ["red?"] * 3, learned.scaled(0.0)), llava.logits(pictures, ["red?"] * 3))


def test_it_runs_on_every_family(anyone: Any, pictures: Pictures) -> None:
    learned = cast.learn(anyone, presence(pictures))
    assert len(anyone.ask_many(pictures, ["red?"] * 3, learned, max_new_tokens=3)) == 3


def test_what_cannot_be_learned_is_refused(llava: Any, pictures: Pictures) -> None:
    chosen = presence(pictures)
    with pytest.raises(InputError, match="answered by no and"):
        cast.learn(llava, chosen[::2])
    with pytest.raises(InputError, match="before layer 0"):
        cast.learn(llava, chosen, layers=[0])
    with pytest.raises(InputError, match="before layer 1"):
        cast.learn(llava, chosen, layers=[1], condition_layers=[2])
    with pytest.raises(RecipeError, match="pairwise"):
        cast.learn(llava, chosen, pca="pairwis")
