"""Adaptive strength, probes that go back, and the payment for over-trust, against plain lines of arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_recipes import QUESTIONS, hooks, recipe

import vlmsteer
from vlmsteer.decoding import adaptive, overtrust
from vlmsteer.errors import RecipeError
from vlmsteer.examples import Example
from vlmsteer.methods import dynamic, opera
from vlmsteer.recipe import Edit, Gate, Recipe, Rule
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

LIMIT = 8
# Half of the probability: among its unlikely tokens a random model has many with equal logits, in no order.
ADAPTIVE = Recipe((), rules=(Rule("adaptive", {"top_p": 0.5, "limit": 2.0}),))


def probes(session: Any, bias: float, strength: float = 60.0, back: int = 3) -> Recipe:
    """Two probes that say sigmoid(bias) of everything, and push the first two heads of layer 1."""
    width = session.taps[Site("text", 1, "head")].width // session.taps[Site("text", 1, "head")].heads
    tensors = {
        "weight": torch.zeros(2, width), "bias": torch.full((2,), bias),
        "push": torch.randn(2, width, generator=torch.Generator().manual_seed(0)),
        "places": torch.tensor([[1, 0], [1, 1]]),
    }  # fmt: skip
    settings = {"back": back, "threshold": 0.6, "strength": strength}
    return Recipe((), rules=(Rule("probe_rollback", settings, tensors=tensors),))


def kl(steered: np.ndarray, plain: np.ndarray, top_p: float) -> float:
    """KL of two (vocabulary,) logits on the union of their top-p sets, in numpy."""
    shares = [np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() for logits in (steered, plain)]
    kept: set[int] = set()
    for share in shares:
        total = 0.0
        for token in np.argsort(-share):
            if total >= top_p:
                break
            kept.add(int(token))
            total += share[token]
    chosen = sorted(kept)
    p, q = (share[chosen] / share[chosen].sum() for share in shares)
    return float((p * np.log(p / q)).sum())


def test_divergence_is_that_of_the_likely_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (3 * torch.randn(4, 50, generator=generator) for _ in range(2))
    for top_p in (0.4, 0.9, 1.0):
        expected = [
            kl(a.numpy().astype(float), b.numpy().astype(float), top_p) for a, b in zip(one, other, strict=True)
        ]
        assert adaptive.divergence(one, other, top_p).tolist() == pytest.approx(expected, rel=1e-3)
    assert adaptive.divergence(one, one, 0.9).abs().max() == 0


@pytest.mark.parametrize("family", ["llava", "instructblip", "qwen2_5_vl"])
def test_each_step_has_the_strength_that_two_companions_call_for(sessions: Any, pictures: Any, family: str) -> None:
    session, image, question = sessions[family], pictures[1], QUESTIONS[0]
    edits = recipe(session, "text.1.block_out", size=0.5)
    steps = []
    with (
        session.opened([image], [question]) as plain,
        session.opened([image], [question], edits.scaled(2.0)) as full,
        adaptive.opened(session, [image], [question], edits, [], ADAPTIVE.rules[0]) as stream,
    ):
        for _ in range(4):
            steps.append(min(2.0, kl(full.logits[0].double().numpy(), plain.logits[0].double().numpy(), 0.5)))
            assert float(stream.strengths[0]) == pytest.approx(steps[-1], rel=1e-3)
            token = stream.logits.argmax(-1)
            for one in (plain, full, stream):
                one.push(token)
    assert len({round(step, 4) for step in steps}) > 1
    with (
        session.opened([image], [question], edits.scaled(steps[0])) as first,
        adaptive.opened(session, [image], [question], edits, [], ADAPTIVE.rules[0]) as stream,
    ):
        torch.testing.assert_close(stream.logits, first.logits, rtol=1e-3, atol=1e-3)


def test_edits_that_change_nothing_are_left_out_and_strong_ones_stop_at_the_limit(llava: Any, pictures: Any) -> None:
    none = recipe(llava, "text.1.block_out", size=0.0)
    plain = llava.ask_many(pictures, QUESTIONS, None, LIMIT)
    assert llava.ask_many(pictures, QUESTIONS, none + ADAPTIVE, LIMIT) == plain
    strong = recipe(llava, "text.1.block_out", size=20.0)
    with adaptive.opened(llava, pictures, QUESTIONS, strong, [], dynamic.rule(limit=0.5)) as stream:
        assert stream.strengths.tolist() == [0.5] * 3
        with llava.opened(pictures, QUESTIONS, strong.scaled(0.5)) as full:
            torch.testing.assert_close(stream.logits, full.logits, rtol=1e-5, atol=1e-5)


def test_rows_adapt_each_for_itself(llava: Any, pictures: Any) -> None:
    recipes = [
        recipe(llava, "text.1.block_out", size=size, seed=i) + ADAPTIVE for i, size in enumerate((0.2, 0.5, 1.0))
    ]
    singly = [llava.ask(i, q, one, 20) for i, q, one in zip(pictures, QUESTIONS, recipes, strict=True)]
    assert llava.ask_many(pictures, QUESTIONS, recipes, 20) == singly
    assert [list(llava.stream(i, q, r, 20))[-1] for i, q, r in zip(pictures, QUESTIONS, recipes, strict=True)] == singly
    assert singly != llava.ask_many(pictures, QUESTIONS, None, 20)


def test_a_gate_and_adaptive_strength_are_not_had_together(llava: Any, pictures: Any) -> None:
    edits = recipe(llava, "text.1.block_out")
    width = llava.taps[Site("text", 0, "block_out")].width
    gate = Gate(Site("text", 0, "block_out"), torch.ones(width), 0.0)
    gated = Recipe(tuple(replace(edit, gate=gate) for edit in edits.edits))
    with pytest.raises(RecipeError, match="can have one"):
        llava.ask(pictures[0], QUESTIONS[0], gated + ADAPTIVE)


def test_probes_that_find_all_true_change_nothing(llava: Any, pictures: Any) -> None:
    plain = llava.ask_many(pictures, QUESTIONS, None, LIMIT)
    assert llava.ask_many(pictures, QUESTIONS, probes(llava, 3.0), LIMIT) == plain
    assert llava.ask_many(pictures, QUESTIONS, probes(llava, -3.0, back=LIMIT + 1), LIMIT) == plain


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_probes_that_find_it_untrue_go_back_once_and_push_the_heads_from_there(
    sessions: Any, pictures: Any, family: str
) -> None:
    session, image, question, back = sessions[family], pictures[1], QUESTIONS[0], 3
    one = probes(session, -3.0, strength=10.0, back=back)
    rule = one.rules[0]
    steps = [text for text in session.stream(image, question, one, LIMIT)]
    assert len(steps) == LIMIT + back - 1  # dropped once: all but the first token
    untrue = 1 - 1 / (1 + math.exp(3.0))
    heads = session.taps[Site("text", 1, "head")].heads
    push = torch.zeros(heads, rule.tensors["push"].shape[1])
    push[:2] = rule.tensors["push"]
    edit = Edit(Vectors("text", "head", {1: push.flatten()}), "add", 10.0 * untrue, "generated")
    with session.opened([image], [question], Recipe((edit,))) as stream:
        expected = []
        for _ in range(LIMIT):
            expected.append(int(stream.logits[0].argmax()))
            stream.push(torch.tensor(expected[-1:]))
    assert steps[-1] == session.encoder.decode(torch.tensor(expected))
    assert steps[-1] != session.ask(image, question, None, LIMIT)


def test_a_column_of_attention_pays_by_its_product() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(i + 1, generator=generator) for i in range(6)]
    for window in (3, 6):
        first = 6 - window
        products = [
            math.prod(50.0 * float(weights[row][column]) for row in range(column, 6)) for column in range(first, 6)
        ]
        paid, place = overtrust.column(weights, 50.0, window)
        assert place == first + int(np.argmax(products))
        assert paid == pytest.approx(math.log(max(products)), rel=1e-4)


@pytest.fixture
def eager(llava_folder: Any) -> Any:
    session = vlmsteer.load(llava_folder)
    session.model.set_attn_implementation("eager")
    return session


def test_overtrust_without_a_price_is_greedy_and_with_one_is_not(eager: Any, pictures: Any) -> None:
    free = opera.learn(eager, [], weight=0.0)
    plain = eager.ask_many(pictures, QUESTIONS, None, LIMIT)
    assert eager.ask_many(pictures, QUESTIONS, free, LIMIT) == plain
    assert eager.ask_many(pictures, QUESTIONS, opera.learn(eager, []).scaled(0.0), LIMIT) == plain
    priced = opera.learn(eager, [], repeats=2)
    steps = list(eager.stream(pictures[0], QUESTIONS[0], priced, 12))
    assert LIMIT <= len(steps) <= 12 * 6
    assert eager.ask_many(pictures, QUESTIONS, priced, LIMIT) != plain


def test_overtrust_needs_attention_weights(llava: Any, pictures: Any) -> None:
    with pytest.raises(RecipeError, match="eager"):
        llava.ask(pictures[0], QUESTIONS[0], opera.learn(llava, []))


@pytest.mark.parametrize("which", ["adaptive", "probes"])
def test_a_stream_closed_in_the_middle_leaves_no_hook(llava: Any, pictures: Any, which: str) -> None:
    edits = recipe(llava, "text.1.block_out", size=0.3)
    one = edits + (ADAPTIVE if which == "adaptive" else probes(llava, -3.0, back=1))
    before, plain = hooks(llava.model), llava.logits(pictures, QUESTIONS)
    stream = llava.stream(pictures[0], QUESTIONS[0], one, LIMIT)
    for _ in range(3):
        next(stream)
        assert not llava.instrument.busy
    stream.close()
    assert hooks(llava.model) == before
    assert torch.equal(llava.logits(pictures, QUESTIONS), plain)


def test_dynamic_learns_the_mean_difference_at_the_heads(llava: Any, pictures: Any) -> None:
    examples = [Example(image, "red?", "red", "green blue", str(i)) for i, image in enumerate(pictures)]
    learned = dynamic.learn(llava, examples, batch_size=4)
    total = 0.0
    for one in examples:
        for answer, sign in ((one.right, 1), (one.wrong, -1)):
            with llava.read("text.2.head", "last", "both") as states:
                llava.run([one.image], [one.question], [answer])
            total = total + sign * states.rows("text.2.head")[0].mean(0).flatten() / len(examples)
    torch.testing.assert_close(learned.edits[0].vectors.layers[2], total, rtol=1e-4, atol=1e-5)
    assert learned.rules[0].name == "adaptive"
    assert llava.ask(pictures[0], "red?", learned, 4)
