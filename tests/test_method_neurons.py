"""H-Neurons: shares over raw transformers models, the edit as a rewrite of columns, and planted neurons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image
from raw_models import FAMILIES, decoder, inputs
from torch import Tensor, nn

from vlmsteer.errors import InputError, SiteError
from vlmsteer.examples import Example
from vlmsteer.methods import hneurons
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
STATEMENTS = [
    ("What color?", "red strawberry.", "blue strawberry and more."),
    ("Is this large?", "small and green.", "large, yellow and green here."),
]
ASKED = ["red?"] * 3


def examples(pictures: Pictures) -> list[Example]:
    return [
        Example(picture, asked, right, wrong, str(number))
        for number, picture in enumerate(pictures)
        for asked, right, wrong in STATEMENTS
    ]


def projections(session: Any) -> list[Any]:
    blocks: Any = decoder(session.model)
    return [block.mlp.down_proj for block in blocks]


@contextmanager
def kept_weights(modules: list[Any]) -> Iterator[None]:
    """The modules have their weights and no bias again afterwards."""
    before = [module.weight.detach().clone() for module in modules]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, weight in zip(modules, before, strict=True):
                module.weight.copy_(weight)
                module.bias = None


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_the_papers(family: str, sessions: Any, pictures: Pictures) -> None:
    session, chosen = sessions[family], examples(pictures)[:4]
    shares, kinds = hneurons.read_shares(session, chosen, range(session.layers()))
    assert kinds.tolist() == [0, 1, 2] * 4
    modules = projections(session)
    width = modules[0].in_features
    for row, one in enumerate(chosen):
        for kind, answer in enumerate((one.right, one.wrong)):
            given, prompt = inputs(session, one.image, one.question, answer)
            seen: list[tuple[Tensor, Tensor]] = []
            handles = [m.register_forward_hook(lambda _, a, out, s=seen: s.append((a[0][0], out[0]))) for m in modules]
            session.model(**given)
            for handle in handles:
                handle.remove()
            for layer, (module, (active, out)) in enumerate(zip(modules, seen, strict=True)):
                one_by_one = torch.stack(
                    [
                        torch.stack([abs(a[j]) * module.weight[:, j].norm() / out[t].norm() for j in range(width)])
                        for t, a in enumerate(active)
                        if t >= prompt - 1
                    ]
                )
                place = slice(layer * width, (layer + 1) * width)
                torch.testing.assert_close(shares[3 * row + kind, place], one_by_one[1:].mean(0), rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(shares[3 * row + 2, place], one_by_one[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_edit_is_a_factor_of_columns(family: str, sessions: Any, pictures: Pictures) -> None:
    session = sessions[family]
    learned = hneurons.learn(session, examples(pictures), factor=0.25, c=10)
    plain, steered = session.logits(pictures, ASKED), session.logits(pictures, ASKED, learned)
    modules = projections(session)
    with kept_weights(modules):
        for layer, numbers in learned.about["neurons"].items():
            modules[int(layer)].weight[:, numbers] *= 0.25
        expected = session.logits(pictures, ASKED)
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(steered, plain, atol=1e-3)
    assert torch.equal(session.logits(pictures, ASKED, learned.scaled(0.0)), plain)
    same = hneurons.learn(session, examples(pictures), factor=1.0, c=10)
    assert torch.equal(session.logits(pictures, ASKED, same), plain)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_clamp_is_a_rewritten_column(family: str, sessions: Any, pictures: Pictures) -> None:
    """Neuron j held at c is its column moved into a bias: W[:, j] = 0 and b = c W[:, j]."""
    session, neuron, value = sessions[family], 7, 2.5
    modules = projections(session)
    vector = torch.full((modules[1].in_features,), float("nan"))
    vector[neuron] = value
    clamped = Recipe((Edit(Vectors("text", "neuron", {1: vector}), "clamp", 1.0, "all"),))
    plain, steered = session.logits(pictures, ASKED), session.logits(pictures, ASKED, clamped)
    with kept_weights(modules):
        modules[1].bias = nn.Parameter(value * modules[1].weight[:, neuron])
        modules[1].weight[:, neuron] = 0
        expected = session.logits(pictures, ASKED)
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(steered, plain, atol=1e-3)


def test_planted_neurons_are_found_and_few_others() -> None:
    generator = torch.Generator().manual_seed(0)
    wrong = torch.arange(300) % 3 == 1
    shares = 0.1 * torch.rand(300, 200, generator=generator)
    shares[wrong, 17] += 0.1
    shares[wrong, 120] += 0.1
    shares[~wrong, 60] += 0.1  # foretells the truth: it must not be silenced
    marked = hneurons.foretelling(shares, wrong, c=2.0)
    assert marked[17]
    assert marked[120]
    assert not marked[60]
    assert int(marked.sum()) < 10
    assert torch.equal(marked, hneurons.foretelling(shares, wrong, c=2.0))


def test_what_a_recipe_says_of_itself(llava: Any, pictures: Pictures) -> None:
    learned = hneurons.learn(llava, examples(pictures), c=10)
    about = dict(learned.about)
    assert about["method"] == "hneurons"
    assert learned.model == llava.fingerprint
    (edit,) = learned.edits
    assert (edit.operation, edit.positions, edit.vectors.point) == ("scale", "all", "neuron")
    assert isinstance(edit.vectors, Vectors)
    count = 0
    for layer, vector in edit.vectors.layers.items():
        assert vector.unique().tolist() == [-1.0, 0.0]
        assert vector.nonzero().flatten().tolist() == about["neurons"][str(layer)]
        count += int((vector != 0).sum())
    assert about["share_of_neurons"] == count / (3 * 80)
    assert set(about["held_out"]) == {"auroc", "ap", "tpr_at_1_fpr", "n"}
    assert about["held_out"]["n"] == 4  # the right and the wrong answers of one of three groups


def test_it_runs_on_every_family(anyone: Any, pictures: Pictures) -> None:
    learned = hneurons.learn(anyone, examples(pictures), c=10_000)  # random models' answers say little
    assert len(anyone.ask_many(pictures, ASKED, learned, max_new_tokens=3)) == 3
    assert not torch.equal(anyone.logits(pictures[:1], ["red?"], learned), anyone.logits(pictures[:1], ["red?"]))


def test_what_cannot_be_learned_is_refused(llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    with pytest.raises(InputError, match="groups"):
        hneurons.learn(llava, chosen[:2])
    with pytest.raises(InputError, match="set c above"):
        hneurons.learn(llava, chosen, c=1e-6)
    packed = nn.Linear(4, 4)
    packed.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(SiteError, match="quantization"):
        hneurons.column_norms(packed, 4)
