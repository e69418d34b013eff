"""V-SEAM: scores against hooks on raw transformers models, the range of factors, and heads that are known to count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from raw_models import FAMILIES, decoder, inputs
from torch import Tensor

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.examples import Example
from vlmsteer.methods import vseam
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
LEVELS = [
    ("attribute", "What color?", "red", "green"),
    ("attribute", "Which color is it here?", "blue", "yellow"),
    ("object", "Is it the strawberry?", "large", "small"),
]


def examples(pictures: Pictures) -> list[Example]:
    return [
        Example(picture, asked, right, wrong, str(number), kind, ImageOps.invert(picture))
        for number, picture in enumerate(pictures)
        for kind, asked, right, wrong in LEVELS
    ]


def projections(session: Any) -> list[Any]:
    blocks: Any = decoder(session.model)
    return [block.self_attn.o_proj for block in blocks]


def scores(recipe: Recipe) -> Any:
    return recipe.edits[0].vectors.layers


@torch.no_grad()
def fall(session: Any, one: vseam.Asked, layer: int, head: int, mode: str) -> float:
    """p(answer) minus p(answer) without a head, by a hook on the output projection of a raw model."""
    given, _ = inputs(session, one.image, one.question)  # pyright: ignore[reportArgumentType]
    heads = session.model.config.text_config.num_attention_heads

    def without(module: Any, args: tuple) -> tuple:
        parts = list(args[0].chunk(heads, dim=-1))
        others = [part for number, part in enumerate(parts) if number != head]
        parts[head] = sum(others) / len(others) if mode == "mean" else torch.zeros_like(parts[head])
        return (torch.cat(parts, -1),)

    before = session.model(**given).logits[0, -1].softmax(-1)[one.right]
    handle = projections(session)[layer].register_forward_pre_hook(without)
    try:
        after = session.model(**given).logits[0, -1].softmax(-1)[one.right]
    finally:
        handle.remove()
    return float(before - after)


@pytest.mark.parametrize("mode", vseam.MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_papers(family: str, mode: str, sessions: Any, pictures: Pictures) -> None:
    session = sessions[family]
    asked = vseam.questions_of(session, examples(pictures)[1:3])
    falls, correct = vseam.importance(session, asked, [0, 2], mode, batch_size=3)
    assert falls.shape == (4, 2, 4)
    expected = [[[fall(session, one, layer, head, mode) for head in range(4)] for layer in (0, 2)] for one in asked]
    torch.testing.assert_close(falls, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert falls.abs().max() > 1e-3
    for one, right in zip(asked, correct.tolist(), strict=True):
        given, _ = inputs(session, one.image, one.question)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            logits = session.model(**given).logits[0, -1]
        assert right == bool(logits[one.right] > logits[one.wrong])


def test_a_question_is_asked_of_both_pictures(llava: Any, pictures: Pictures) -> None:
    (one, *_) = examples(pictures)
    first, second = vseam.questions_of(llava, [one])
    assert (first.image, second.image) == (one.image, one.edited)
    assert (first.right, first.wrong) == (second.wrong, second.right)
    assert llava.tokenizer.decode([first.right]).strip() in one.right


def test_both_forms_of_the_score() -> None:
    falls = torch.tensor([[0.4, -0.2], [0.2, 0.1], [-0.6, 0.3]])[:, None]
    correct = torch.tensor([True, True, False])
    torch.testing.assert_close(vseam.signed(falls), torch.tensor([[0.0, 0.2 / 3]]))
    torch.testing.assert_close(vseam.separate(falls, correct), torch.tensor([[0.3 - 0.6, 0.05]]))
    torch.testing.assert_close(vseam.separate(falls, torch.tensor([True] * 3)), torch.tensor([[0.2, 0.4 / 3]]))


@torch.no_grad()
def test_factors_stay_within_0_and_2(llava: Any, pictures: Pictures) -> None:
    vector = torch.tensor([0.5, -0.5, 0.1, -0.1])
    recipe = Recipe((Edit(Vectors("text", "head", {1: vector}), "rescale", 1.0, "all"),))

    def heads(given: Recipe | None) -> Tensor:
        with llava.read("text.1.head", positions="all") as states:
            llava.logits(pictures[:1], ["red?"], given)
        return states.rows("text.1.head")[0]

    plain = heads(None)
    for strength, factors in ((1.0, [1.5, 0.5, 1.1, 0.9]), (5.0, [2.0, 0.0, 1.5, 0.5]), (0.0, [1.0] * 4)):
        expected = plain * torch.tensor(factors)[:, None]
        torch.testing.assert_close(heads(recipe.scaled(strength)), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_only_the_head_that_reaches_the_answer_counts(llava: Any, pictures: Pictures) -> None:
    """With the columns of all heads but one at 0, that one is the only one whose replacement can matter."""
    modules = projections(llava)
    before = [module.weight.clone() for module in modules]
    try:
        for layer, module in enumerate(modules):
            kept = module.weight[:, 24:36].clone()
            module.weight.zero_()
            if layer == 1:
                module.weight[:, 24:36] = kept
        falls, _ = vseam.importance(llava, vseam.questions_of(llava, examples(pictures)[:2]), range(3))
    finally:
        for module, weight in zip(modules, before, strict=True):
            module.weight.copy_(weight)
    reached = falls.abs().amax(0) > 1e-5
    assert reached.nonzero().tolist() == [[1, 2]]


@pytest.fixture(scope="module")
def learned(sessions: Any, pictures: Pictures) -> Recipe:
    return vseam.learn(sessions["llava"], examples(pictures), test=0.3)


def test_heads_are_scored_on_some_groups_and_tested_on_others(learned: Recipe, llava: Any, pictures: Pictures) -> None:
    about = dict(learned.about)
    assert about["scored"] == 2 * 3 * 2  # two groups of three examples, of two pictures each
    assert about["held_out"]["groups"] == 1
    assert about["held_out"]["n"] == 6
    scored, held = vseam.split_groups(examples(pictures), 0.7)
    falls, _ = vseam.importance(llava, vseam.questions_of(llava, scored), range(3))
    for layer, vector in scores(learned).items():
        torch.testing.assert_close(vector, falls.mean(0)[layer], rtol=1e-4, atol=1e-6)
    asked = vseam.questions_of(llava, held)
    for name, recipe in (("before", None), ("after", learned)):
        assert about["held_out"][name] == round(vseam.accuracy(llava, asked, recipe), 4)
    best, worst = about["positive"][0], about["negative"][0]
    assert best[2] > 0 > worst[2]
    assert abs(best[2] - max(float(v.max()) for v in scores(learned).values())) < 1e-5


def test_strength_zero_changes_no_bit(learned: Recipe, llava: Any, pictures: Pictures) -> None:
    asked = (pictures, ["red?"] * 3)
    assert torch.equal(llava.logits(*asked, learned.scaled(0.0)), llava.logits(*asked))
    assert not torch.equal(llava.logits(*asked, learned), llava.logits(*asked))


def test_levels_and_selections(llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    only = vseam.learn(llava, chosen, kind="attribute", select="positive", layers=[1], limit=2)
    assert only.about["scored"] == 4
    assert list(scores(only)) == [1]
    assert bool((scores(only)[1] >= 0).all())
    assert only.about["negative"] == []
    down = vseam.learn(llava, chosen, kind="object", select="negative", form="split", mode="zeros", layers=[1])
    assert bool((scores(down)[1] <= 0).all())


def test_it_runs_on_every_family(anyone: Any, pictures: Pictures) -> None:
    found = vseam.learn(anyone, examples(pictures), kind="object", layers=[0, 1]).scaled(5.0)
    assert len(anyone.ask_many(pictures, ["red?"] * 3, found, max_new_tokens=3)) == 3


def test_what_cannot_be_learned_is_refused(llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    with pytest.raises(InputError, match="edited"):
        vseam.learn(llava, [Example(picture, "red?", "red", "green", str(i)) for i, picture in enumerate(pictures)])
    same = [Example(p, "red?", "red", "red green", str(i), "object", p) for i, p in enumerate(pictures)]
    with pytest.raises(InputError, match="same token"):
        vseam.learn(llava, same)
    with pytest.raises(InputError, match="group"):
        vseam.learn(llava, chosen[:2])
    wrong: dict[str, Any]
    for wrong in ({"form": "sign"}, {"mode": "means"}, {"select": "some"}, {"kind": "attributes"}):
        with pytest.raises(RecipeError, match="(?i)possible"):
            vseam.learn(llava, chosen, **wrong)
