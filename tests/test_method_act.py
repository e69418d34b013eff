"""AcT and AurA: the papers' rules over raw transformers models, the closed forms of transport, and planted neurons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from raw_models import FAMILIES, changed, decoder, inputs, outputs
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.examples import Example
from vlmsteer.methods import act, aura
from vlmsteer.recipe import Recipe

Pictures = list[Image.Image]
STATEMENTS = [
    ("What color?", "red strawberry.", "blue strawberry and more."),
    ("Is this large?", "small and green.", "large, yellow and green here."),
]


def examples(pictures: Pictures) -> list[Example]:
    return [
        Example(picture, asked, right, wrong, str(number))
        for number, picture in enumerate(pictures)
        for asked, right, wrong in STATEMENTS
    ]


def blocks(session: Any) -> Any:
    return decoder(session.model)


def norms(session: Any) -> list[Any]:
    return [block.post_attention_layernorm for block in blocks(session)]


def answer_means(session: Any, module: nn.Module, chosen: list[Example], side: str) -> np.ndarray:
    """(examples, width): a module's output, averaged over the tokens of each answer."""
    means = []
    for one in chosen:
        given, prompt = inputs(session, one.image, one.question, getattr(one, side))
        with outputs([module]) as kept:
            session.model(**given)
        means.append(kept[0][0, prompt:].mean(0).double().numpy())
    return np.stack(means)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_papers_rule(family: str, sessions: Any, pictures: Pictures) -> None:
    """Layer after layer, on states that the maps below have already carried; targets are not carried."""
    session, chosen = sessions[family], examples(pictures)
    learned = act.learn(session, chosen)

    maps: dict[nn.Module, Any] = {}
    for layer, module in enumerate(norms(session)):
        target = answer_means(session, module, chosen, "right")
        with changed(maps):
            source = answer_means(session, module, chosen, "wrong")
        fits = [np.polyfit(np.sort(source[:, i]), np.sort(target[:, i]), 1) for i in range(source.shape[1])]
        weight, bias = torch.tensor(np.array(fits).T, dtype=torch.float32)
        low, high = (torch.tensor(bound, dtype=torch.float32) for bound in (source.min(0), source.max(0)))
        expected = torch.cat([weight, bias, low, high])
        found = learned.edits[0].fixed.layers[layer]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        low, high = found.chunk(4)[2:]  # a value at a bound lies inside, whatever the last bit of the oracle's says
        maps[module] = lambda x, w=weight, b=bias, lo=low, hi=high: torch.where((x >= lo) & (x <= hi), w * x + b, x)

    given, _ = inputs(session, pictures[1], "Which is here?")
    plain = session.model(**given).logits[0, -1]
    with changed(maps):
        expected = session.model(**given).logits[0, -1]
    steered = session.logits([pictures[1]], ["Which is here?"], learned)[0]
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(steered, plain, atol=1e-2)


def test_transport_carries_sorted_samples_onto_sorted_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(40, 5, generator=generator) * torch.tensor([1.0, 3.0, 0.1, 1.0, 2.0])
    weight, bias = torch.tensor([2.0, 0.5, 1.0, 0.0, 7.0]), torch.tensor([0.0, -4.0, 100.0, 2.0, 1.0])
    target = (weight * source + bias)[torch.randperm(40, generator=generator)]
    found = act.line(source, target)
    carried = found[0] * source + found[1]
    torch.testing.assert_close(carried.sort(0).values, target.sort(0).values, rtol=1e-4, atol=1e-4)
    assert act.distance(carried, target) < 1e-4 < act.distance(source, target)
    for seen, expected in zip(found, (weight, bias), strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


def test_other_maps_keep_what_they_promise() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = 3 * torch.randn(60, 4, generator=generator) ** 3, torch.rand(60, 4, generator=generator)
    weight, bias = act.line(source, target, "mean")
    assert torch.equal(weight, torch.ones(4))
    torch.testing.assert_close((source + bias).mean(0), target.mean(0), rtol=1e-4, atol=1e-5)
    weight, bias = act.line(source, target, "gaussian")
    carried = weight * source + bias
    torch.testing.assert_close(carried.mean(0), target.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(carried.std(0), target.std(0), rtol=1e-4, atol=1e-5)
    linear = act.line(source, target)
    errors = [
        ((w * source + b).sort(0).values - target.sort(0).values).square().mean() for w, b in (linear, (weight, bias))
    ]
    assert errors[0] < errors[1]
    for transport in act.MAPS:  # a dimension that does not vary is shifted
        weight, bias = act.line(torch.full((5, 1), 2.0), torch.arange(5.0)[:, None], transport)
        assert (float(weight), float(bias)) == (1.0, 0.0)


@pytest.fixture(scope="module")
def carried(sessions: Any, pictures: Pictures) -> Recipe:
    return act.learn(sessions["llava"], examples(pictures), support=False)


@torch.no_grad()
def test_wrong_answers_have_the_means_of_right_ones_afterwards(carried: Recipe, llava: Any, pictures: Pictures) -> None:
    """At every layer at once, which layers learned apart from each other do not reach."""
    chosen = examples(pictures)

    def means(side: str, recipe: Recipe | None) -> Tensor:
        images, questions = [one.image for one in chosen], [one.question for one in chosen]
        with llava.read("text.*.norm_out", "generated", "both") as states:
            llava.run(images, questions, [getattr(one, side) for one in chosen], recipe)
        rows = [torch.stack([row.mean(0) for row in states.rows(site)]).mean(0) for site in states.sites]
        return torch.stack(rows)

    target = means("right", None)
    torch.testing.assert_close(means("wrong", carried), target, rtol=1e-4, atol=1e-4)
    apart = act.learn(llava, chosen, incremental=False, support=False)
    assert not torch.allclose(means("wrong", apart), target, atol=1e-2)
    measured = carried.about["distance_before_and_after"]
    assert list(measured) == ["0", "1", "2"]
    assert all(after < before for before, after in measured.values())


@pytest.mark.parametrize("method", [act.METHOD, aura.METHOD])
def test_strength_zero_changes_no_bit(method: Any, llava: Any, pictures: Pictures) -> None:
    learned, asked = method.learn(llava, examples(pictures)), (pictures, ["red?"] * 3)
    assert torch.equal(llava.logits(*asked, learned.scaled(0.0)), llava.logits(*asked))
    assert learned.about["method"] == method.name
    assert learned.model == llava.fingerprint


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_aura_is_the_papers(family: str, sessions: Any, pictures: Pictures) -> None:
    session, chosen = sessions[family], examples(pictures)
    learned = aura.learn(session, chosen)
    changes: Any = learned.edits[0].fixed.layers
    projections: list[Any] = [block.mlp.down_proj for block in blocks(session)]
    largest: dict[str, list[list[Tensor]]] = {"right": [], "wrong": []}
    for one in chosen:
        for side, rows in largest.items():
            given, prompt = inputs(session, one.image, one.question, getattr(one, side))
            kept: list[Tensor] = []
            handles = [m.register_forward_pre_hook(lambda _, args, k=kept: k.append(args[0][0])) for m in projections]
            session.model(**given)
            for handle in handles:
                handle.remove()
            rows.append([states[prompt:].amax(0) for states in kept])
    labels = [0] * len(chosen) + [1] * len(chosen)
    for layer, vector in changes.items():
        values = torch.stack([row[layer] for row in largest["right"] + largest["wrong"]])
        expected = [min(1.0, 1 - 2 * (float(roc_auc_score(labels, column)) - 0.5)) for column in values.T.numpy()]
        torch.testing.assert_close(1 + vector, torch.tensor(expected), rtol=1e-5, atol=1e-5)

    steered = session.logits(pictures, ["red?"] * 3, learned)
    before = [module.weight.clone() for module in projections]
    try:  # a neuron's factor is the factor of its column
        for layer, vector in changes.items():
            projections[layer].weight.mul_(1 + vector)
        expected = session.logits(pictures, ["red?"] * 3)
    finally:
        for module, weight in zip(projections, before, strict=True):
            module.weight.copy_(weight)
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(steered, session.logits(pictures, ["red?"] * 3), atol=1e-2)


def test_auras_factors() -> None:
    torch.testing.assert_close(aura.change(torch.tensor([0.0, 0.5, 0.75, 1.0])), torch.tensor([0.0, 0.0, -0.5, -1.0]))


@pytest.mark.parametrize("method", [act.METHOD, aura.METHOD])
def test_they_run_on_every_family(method: Any, anyone: Any, pictures: Pictures) -> None:
    found = method.learn(anyone, examples(pictures)[:4], layers=[0, 1])
    assert len(anyone.ask_many(pictures, ["red?"] * 3, found, max_new_tokens=3)) == 3
    assert not torch.equal(anyone.logits(pictures[:1], ["red?"], found), anyone.logits(pictures[:1], ["red?"]))


def test_what_cannot_be_learned_is_refused(llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    with pytest.raises(InputError, match="2 or more"):
        act.learn(llava, chosen[:1])
    wrong: dict[str, Any]
    for wrong in ({"transport": "linearly"}, {"point": "neuron"}, {"tokens": "some"}):
        with pytest.raises(RecipeError, match="(?i)possible"):
            act.learn(llava, chosen, **wrong)
    with pytest.raises(RecipeError, match="generated"):
        aura.learn(llava, chosen, tokens="image")
