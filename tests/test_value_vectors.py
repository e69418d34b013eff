"""Value vectors: projections in plain lines, planted neurons found, edits as rewritten weights, controls as far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from vlmsteer.errors import InputError
from vlmsteer.methods import neuron_clusters, paired_instructions, pvp, value_vectors
from vlmsteer.methods.value_vectors import Neuron
from vlmsteer.openvla.actions import act
from vlmsteer.recipe import Recipe

Pictures = list[Image.Image]
WORDS = ["red", "blue"]
TOLD = ["reach the red block", "push it to the left slowly", "color"]


@pytest.fixture(scope="module")
def policy(sessions: Any) -> Any:
    return sessions["openvla"]


def projections(session: Any) -> list[Any]:
    return [block.mlp.down_proj for block in session.model.language_model.model.layers]


@contextmanager
def kept(session: Any) -> Iterator[list[Any]]:
    """The down projections, which have their weights and no bias again afterwards."""
    modules = projections(session)
    before = [module.weight.detach().clone() for module in modules]
    try:
        with torch.no_grad():
            yield modules
    finally:
        for module, weight in zip(modules, before, strict=True):
            module.weight.data.copy_(weight)
            module.bias = None


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_projections_are_the_plain_ones(policy: Any, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_vectors, "CHUNK", 7)
    columns = torch.cat([module.weight.T for module in projections(policy)])
    if norm:
        final = policy.model.language_model.model.norm
        columns = columns / (columns.square().mean(1, keepdim=True) + final.variance_epsilon).sqrt() * final.weight
    said = columns @ policy.model.language_model.lm_head.weight.T
    ids, values = value_vectors.top_tokens(policy, k=4, norm=norm)
    assert ids.shape == (3, 80, 4)
    torch.testing.assert_close(values.flatten(0, 1), said.topk(4).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said.gather(1, ids.flatten(0, 1).long()), values.flatten(0, 1), rtol=1e-4, atol=1e-4)
    scores = value_vectors.word_scores(policy, WORDS, norm=norm)
    tokens = [policy.tokenizer.convert_tokens_to_ids(f"▁{word}") for word in WORDS]
    scaled = (said - said.mean(0)) / said.std(0)
    torch.testing.assert_close(scores.flatten(), scaled[:, tokens].mean(1), rtol=1e-3, atol=1e-3)
    best = value_vectors.nearest(policy, WORDS, 5, norm=norm)
    assert [80 * one.layer + one.number for one in best] == scores.flatten().topk(5).indices.tolist()


@pytest.mark.parametrize("norm", [False, True])
def test_planted_neurons_are_found(policy: Any, norm: bool) -> None:
    """Columns that are near a word's row of the unembedding: by score, by top tokens, and as a cluster."""
    planted = {(layer, number) for layer in range(3) for number in (5, 40, 77)}
    token = policy.tokenizer.convert_tokens_to_ids("▁red")
    name = value_vectors.shown(policy, token)  # here an action token: the small vocabulary has both in one place
    generator = torch.Generator().manual_seed(0)
    with kept(policy) as modules:
        row = policy.model.language_model.lm_head.weight[token]
        row = row / policy.model.language_model.model.norm.weight if norm else row
        for layer, number in sorted(planted):
            modules[layer].weight[:, number] = 3 * row + 0.2 * torch.randn(48, generator=generator)
        for by in ("score", "top"):
            found = value_vectors.nearest(policy, ["red"], 9, by=by, norm=norm, k=3)
            assert {(one.layer, one.number) for one in found} == planted
            assert all(name in one.tokens for one in found)
        found, about = neuron_clusters.cluster(policy, ["red"], count=12, norm=norm)
        assert {(one.layer, one.number) for one in found[:9]} == planted
        assert name in about["named"] and about["words_inside"] == ["red"]
        again, _ = neuron_clusters.cluster(policy, ["red"], count=12, norm=norm)
        assert again == found
        assert neuron_clusters.cluster(policy, ["red"], 4, count=12, norm=norm)[0] == found[:4]


def test_words_may_be_taken_away(policy: Any) -> None:
    one, two = (value_vectors.word_scores(policy, [word]) for word in WORDS)
    (best,) = value_vectors.nearest(policy, WORDS[:1], 1, against=WORDS[1:])
    assert best.score == pytest.approx(float((one - two).max()))


@torch.no_grad()
def test_the_metric_is_the_distance_between_centered_logits(policy: Any) -> None:
    head = policy.model.language_model.lm_head.weight
    basis = neuron_clusters.logit_metric(policy)
    one, two = torch.randn(2, 10, 48, generator=torch.Generator().manual_seed(0))
    said = (one - two) @ (head - head.mean(0)).T
    torch.testing.assert_close(((one - two) @ basis).norm(dim=1), said.norm(dim=1), rtol=1e-4, atol=1e-4)
    assert neuron_clusters.logit_metric(policy, 5).shape == (48, 5)


@torch.no_grad()
@pytest.mark.parametrize("operation", ["clamp", "scale", "add"])
def test_edits_are_rewritten_weights(policy: Any, pictures: Pictures, operation: str) -> None:
    """At every position, of prompt and answer: a clamp is a column moved into a bias, an addition a bias, a factor a
    multiplied column."""
    neurons = [Neuron(1, 7, 0.0, []), Neuron(1, 9, 0.0, []), Neuron(2, 30, 0.0, [])]
    recipe = value_vectors.recipe(policy, neurons, operation, 2.5)
    plain, steered = policy.logits(pictures, TOLD), policy.logits(pictures, TOLD, recipe)
    acted = act(policy, pictures, TOLD, recipe)
    with kept(policy) as modules:
        for layer, numbers in ((1, [7, 9]), (2, [30])):
            columns = modules[layer].weight[:, numbers].clone()
            if operation != "scale":
                modules[layer].bias = nn.Parameter(2.5 * columns.sum(1))
            modules[layer].weight[:, numbers] = {"clamp": 0, "scale": 2.5 * columns, "add": columns}[operation]
        expected, expected_acts = policy.logits(pictures, TOLD), act(policy, pictures, TOLD)
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert (acted.tokens == expected_acts.tokens).all()
    assert not torch.allclose(steered, plain, atol=1e-3)
    assert recipe.about["neurons"] == {"1": [7, 9], "2": [30]}


@torch.no_grad()
@pytest.mark.parametrize("operation", ["clamp", "scale", "add"])
def test_rows_have_their_own_neurons(policy: Any, pictures: Pictures, operation: str) -> None:
    """In one batch of prompts of different lengths, each row as it is alone and unpadded."""
    recipes = [
        value_vectors.recipe(policy, [Neuron(1, 7, 0.0, []), Neuron(1, 9, 0.0, [])], operation, 2.5),
        None,
        value_vectors.recipe(policy, [Neuron(0, 9, 0.0, []), Neuron(1, 70, 0.0, [])], operation, 4.0).scaled(0.5),
    ]
    together = policy.logits(pictures, TOLD, recipes)
    for row, recipe in enumerate(recipes):
        alone = policy.logits(pictures[row : row + 1], TOLD[row : row + 1], recipe)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("operation", ["clamp", "scale", "add"])
def test_random_sets_move_the_stream_as_far(policy: Any, operation: str) -> None:
    found = value_vectors.nearest(policy, WORDS, 12)
    recipe = value_vectors.recipe(policy, found, operation, 3.0).scaled(0.5)

    def turned(one: Recipe) -> dict[int, torch.Tensor]:
        rest = {"clamp": torch.nan, "scale": 0.0, "add": 0.0}[operation]
        layers = one.edits[0].vectors.layers
        return {layer: v.nan_to_num(0) if rest != 0 else v for layer, v in layers.items()}  # pyright: ignore[reportAttributeAccessIssue]

    seen = []
    for seed in range(20):
        control = value_vectors.random_set(policy, recipe, seed)
        assert (control.edits[0].operation, control.edits[0].strength) == (operation, 0.5)
        assert turned(control).keys() == turned(recipe).keys()
        for layer, vector in turned(recipe).items():
            other = turned(control)[layer]
            assert int((other != 0).sum()) == int((vector != 0).sum())
            assert not ((other != 0) & (vector != 0)).any()
            weight = projections(policy)[layer].weight
            torch.testing.assert_close((weight @ other).norm(), (weight @ vector).norm(), rtol=1e-4, atol=1e-5)
        seen.append(control.hash)
    assert len(set(seen)) == 20
    assert value_vectors.random_set(policy, recipe, 3).hash == seen[3]


def test_a_direction_has_random_directions_as_controls(policy: Any, pictures: Pictures) -> None:
    learned = paired_instructions.learn(policy, pictures, ["reach"] * 3, ["reach slowly"] * 3)
    control = value_vectors.random_set(policy, learned, 1)
    assert control.edits[0].vectors.norms() == pytest.approx(learned.edits[0].vectors.norms())
    assert abs(next(iter(learned.edits[0].fixed.cosines(control.edits[0].fixed).values()))) < 0.6


def test_a_layer_without_other_neurons_has_no_control(policy: Any) -> None:
    recipe = value_vectors.recipe(policy, [Neuron(0, number, 0.0, []) for number in range(41)])
    with pytest.raises(InputError, match="39 other neurons"):
        value_vectors.random_set(policy, recipe, 0)


def test_action_tokens_are_shown_as_numbers(policy: Any) -> None:
    assert value_vectors.shown(policy, policy.model.config.action_end - 1) == "[action -0.996]"
    assert value_vectors.shown(policy, policy.model.config.action_end - 256) == "[action +0.996]"
    first = policy.model.config.action_end - 257
    assert value_vectors.shown(policy, first) == policy.tokenizer.decode([first]).strip()


@torch.no_grad()
def test_a_direction_is_the_mean_difference(policy: Any, pictures: Pictures) -> None:
    """At the prompt's last token it is PvP's; over actions, that of all the tokens an action token follows."""
    plain, changed = TOLD, [f"{told} slowly" for told in TOLD]
    last = paired_instructions.learn(policy, pictures, plain, changed, layers=[0, 2], read="last")
    published = pvp.learn(policy, pictures, changed, plain)
    for layer in (0, 2):
        torch.testing.assert_close(
            last.edits[0].fixed.layers[layer], published.vectors.layers[layer], rtol=1e-4, atol=1e-4
        )
    over = paired_instructions.learn(policy, pictures, plain, changed, layers=[1], read="action", batch_size=2)
    differences = []
    for picture, one, other in zip(pictures, changed, plain, strict=True):
        means = []
        for told in (one, other):
            with policy.read("text.1.block_out", "all", "both") as states:
                act(policy, [picture], [told])
            (tokens,) = states.rows("text.1.block_out")
            means.append(tokens[-7:].mean(0))  # the prompt's last and the six action tokens taken in
        differences.append(means[0] - means[1])
    torch.testing.assert_close(over.edits[0].fixed.layers[1], torch.stack(differences).mean(0), rtol=1e-4, atol=1e-3)
    assert over.last_only and over.edits[0].positions == "last"


def test_value_vectors_of_other_families(llava: Any, pictures: Pictures) -> None:
    found = value_vectors.nearest(llava, ["red"], 3, by="top", k=40)
    recipe = value_vectors.recipe(llava, found, value=9.0)
    assert not torch.equal(llava.logits(pictures, ["red?"] * 3, recipe), llava.logits(pictures, ["red?"] * 3))


def test_what_cannot_be_asked(policy: Any, pictures: Pictures) -> None:
    for words, sentence in (([], "one or more words"), (["slowly"], "not one token"), ([" "], "empty")):
        with pytest.raises(InputError, match=sentence):
            value_vectors.nearest(policy, words)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"by": "hand"}, "by score or top"),
        ({"size": 0}, "1 to 240"),
        ({"size": 241}, "1 to 240"),
        ({"k": 0}, "1 or more"),
        ({"by": "top", "k": 1, "layers": [1]}, "No neuron"),
    ]
    for options, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            value_vectors.nearest(policy, ["strawberry"], **options)
    with pytest.raises(InputError, match="2 to 240 clusters"):
        neuron_clusters.cluster(policy, ["red"], count=241)
    with pytest.raises(InputError, match="clamp, scale, add"):
        value_vectors.recipe(policy, [], "clamp")
    with pytest.raises(InputError, match="two or more"):
        paired_instructions.learn(policy, pictures[:1], ["a"], ["b"])
    with pytest.raises(InputError, match="last or action"):
        paired_instructions.learn(policy, pictures, TOLD, TOLD, read="first")
    module = projections(policy)[0]
    weight = module.weight
    try:
        module.weight = nn.Parameter(torch.zeros(2, 3))
        with pytest.raises(Exception, match="without quantization"):
            value_vectors.value_vectors(policy, 0)
    finally:
        module.weight = weight
    neurons = replace(
        value_vectors.recipe(policy, [Neuron(0, 1, 0.0, [])]), model={**policy.fingerprint, "id": "other"}
    )
    with pytest.raises(Exception, match="made for other"):
        act(policy, pictures, TOLD, neurons)
