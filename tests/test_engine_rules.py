"""Self-logits: the logits mixed with what earlier blocks' outputs give at the unembedding, in every way to ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, hooks, recipe
from PIL import Image
from raw_models import FAMILIES as RAW
from raw_models import inputs
from torch import Tensor

from vlmsteer.errors import RecipeError
from vlmsteer.recipe import Recipe, Rule

Pictures = list[Image.Image]
FAMILIES = ["llava", "instructblip", "instructblip_t5", "qwen2_5_vl"]
SHARE, LAYERS, STEPS = 0.4, [0, 1], 6


def rule(share: float = SHARE, layers: Any = (0, 1), normed: bool = False) -> Recipe:
    return Recipe((), rules=(Rule("self_logits", {"layers": list(layers), "share": share, "normed": normed}),))


def parts(model: Any) -> tuple[Any, Any, Any]:
    """The decoder's blocks, its final norm and the unembedding."""
    if "InstructBlip" not in type(model).__name__:
        return model.model.language_model.layers, model.model.language_model.norm, model.lm_head
    inner = model.language_model
    if hasattr(inner, "decoder"):
        return inner.decoder.block, inner.decoder.final_layer_norm, inner.lm_head
    return inner.model.layers, inner.model.norm, inner.lm_head


@contextmanager
def by_hooks(model: Any, share: float, layers: Any = (0, 1), normed: bool = False) -> Iterator[None]:
    """The paper's rule as plain hooks: (1 - share) logits + share * mean of the blocks' own logits."""
    blocks, norm, head = parts(model)
    kept: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            kept[number] = output[0] if isinstance(output, tuple) else output

        return hook

    def mix(module: Any, args: Any, output: Tensor) -> Tensor:
        states = [kept[number][:, -output.shape[1] :] for number in layers]
        said = [torch.nn.functional.linear(norm(one) if normed else one, head.weight) for one in states]
        return (1 - share) * output + share * sum(said) / len(said)

    handles = [blocks[number].register_forward_hook(keep(number)) for number in layers]
    handles.append(head.register_forward_hook(mix))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def near(session: Any, found: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * float(expected.abs().max()) + (5e-4 if session.encoder.start is not None else 1e-4)
    torch.testing.assert_close(found, expected, atol=bound, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", RAW)
def test_from_raw_hidden_states(name: str, normed: bool, sessions: Any, pictures: Pictures) -> None:
    """`hidden_states[l + 1]` of transformers' own output is what block l gives."""
    session = sessions[name]
    _, norm, head = parts(session.model)
    for image, question in zip(pictures, QUESTIONS, strict=True):
        given, _ = inputs(session, image, question)
        outputs = session.model(**given, output_hidden_states=True)
        outputs = getattr(outputs, "language_model_outputs", outputs)
        said = [outputs.hidden_states[layer + 1][:, -1] for layer in LAYERS]
        said = [head(norm(one) if normed else one) for one in said]
        expected = (1 - SHARE) * outputs.logits[:, -1] + SHARE * (said[0] + said[1]) / 2
        near(session, session.logits([image], [question], rule(normed=normed)), expected)
        assert (outputs.logits[:, -1] - expected).abs().max() > 0.1


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_batches_and_given_answers(name: str, normed: bool, sessions: Any, pictures: Pictures) -> None:
    session, answers = sessions[name], ["red", "large, small and red", "here is"]
    with by_hooks(session.model, SHARE, normed=normed):
        expected = session.logits(pictures, QUESTIONS)
        scores = session.score(pictures, QUESTIONS, answers)
    near(session, session.logits(pictures, QUESTIONS, rule(normed=normed)), expected)
    for one, other in zip(session.score(pictures, QUESTIONS, answers, rule(normed=normed)), scores, strict=True):
        near(session, one, other)


OPTIONS = [
    {"do_sample": False},
    {"use_cache": False},
    {"num_beams": 3},
    {"do_sample": True, "top_k": 0, "temperature": 2.0},
    {"do_sample": True, "top_p": 0.9, "num_beams": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_under_generate(name: str, options: dict[str, Any], sessions: Any, pictures: Pictures) -> None:
    session, differ = sessions[name], 0
    for image, question in zip(pictures, QUESTIONS, strict=True):
        torch.manual_seed(0)
        found = session.ask(image, question, rule(), STEPS, **options)
        torch.manual_seed(0)
        with by_hooks(session.model, SHARE):
            assert session.ask(image, question, None, STEPS, **options) == found
        torch.manual_seed(0)
        differ += session.ask(image, question, None, STEPS, **options) != found
    assert differ


@pytest.mark.parametrize("name", FAMILIES)
def test_own_loops(name: str, sessions: Any, pictures: Pictures) -> None:
    """Greedy batches, streams, and grids beside recipes without it, also with questions that share an image."""
    session = sessions[name]
    for images in (pictures, pictures[:1] * 3):
        with by_hooks(session.model, SHARE):
            expected = session.ask_many(images, QUESTIONS, None, STEPS)
        plain = session.ask_many(images, QUESTIONS, None, STEPS)
        assert plain != expected
        assert session.ask_many(images, QUESTIONS, rule(), STEPS) == expected
        rows = list(zip(images, QUESTIONS, strict=True))
        assert [list(session.stream(*row, rule(), STEPS))[-1] for row in rows] == expected
        grid = session.ask_grid(images, QUESTIONS, [None, rule(), rule(0.0), None], STEPS)
        assert grid == [[one, other, one, one] for one, other in zip(plain, expected, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_with_other_shares(name: str, sessions: Any, pictures: Pictures) -> None:
    session = sessions[name]
    images, questions = [*pictures, *pictures], [*QUESTIONS, "a", "red?", "is it"]
    rows: list[Any] = [rule(), None, rule(0.9), rule(-0.3), rule(layers=[1]), recipe(session, "text.1.head", size=3.0)]
    alone = torch.cat([session.logits([i], [q], r) for i, q, r in zip(images, questions, rows, strict=True)])
    together = session.logits(images, questions, rows)
    near(session, together, alone)
    assert torch.equal(together[1], session.logits(images, questions)[1])
    asked = [session.ask(*row, STEPS) for row in zip(images, questions, rows, strict=True)]
    assert session.ask_many(images, questions, rows, STEPS) == asked


def test_share_zero_is_exact(anyone: Any, pictures: Pictures) -> None:
    plain = anyone.logits(pictures, QUESTIONS)
    for none in (rule(0.0), rule().scaled(0.0), [rule(0.0), None, rule() * 0]):
        assert torch.equal(anyone.logits(pictures, QUESTIONS, none), plain)


def test_after_an_edit(session: Any, pictures: Pictures) -> None:
    """The blocks' outputs are the edited ones, at the block itself and behind it."""
    for site in ("text.0.mlp_out", "text.1.block_out", "text.2.block_out", "vision.0.block_out"):
        steer = recipe(session, site, positions="all", size=2.0)
        with by_hooks(session.model, SHARE), session.apply(steer):
            expected = session.logits(pictures, QUESTIONS)
        near(session, session.logits(pictures, QUESTIONS, steer + rule()), expected)
        near(session, session.logits(pictures, QUESTIONS, [steer + rule()] * 3), expected)


def test_in_a_direct_call(session: Any, pictures: Pictures) -> None:
    """In an apply block the user's own forwards have it, with all columns of logits."""
    given = session.encoder.encode(pictures, QUESTIONS).whole(session.device).inputs
    with torch.no_grad():
        with by_hooks(session.model, SHARE):
            expected = session.model(**given).logits
        with session.apply(rule()):
            found = session.model(**given).logits
    near(session, found[given["attention_mask"].bool()], expected[given["attention_mask"].bool()])


def test_gradients_pass(llava: Any, pictures: Pictures) -> None:
    """The logits' gradient with respect to a read state has the rule's part in it."""
    with llava.read("text.1.block_out", grad=True) as seen:
        logits = llava.logits(pictures[:1], QUESTIONS[:1], rule(1.0, [1]), grad=True)
        (gradient,) = torch.autograd.grad(logits[0, 7], seen.rows("text.1.block_out"))
    torch.testing.assert_close(gradient[0], llava.model.lm_head.weight[7].detach(), atol=1e-5, rtol=1e-5)


def test_rows_that_leave(sessions: Any, pictures: Pictures) -> None:
    order = torch.tensor([2, 0])
    for name in ("llava", "instructblip_t5"):
        session = sessions[name]
        for recipes in (rule(), [rule(), None, rule(0.8)]):
            with session.opened(pictures, QUESTIONS, recipes) as stream:
                tokens = stream.logits.argmax(-1)
                expected = stream.push(tokens)[order]
            with session.opened(pictures, QUESTIONS, recipes) as stream:
                stream.select(order)
                near(session, stream.push(tokens[order]), expected)


def test_two_rules_act_in_order(llava: Any, pictures: Pictures) -> None:
    """Also two of the same layers, and whatever the row before them has."""
    one, two = rule(0.3, [0]), rule(0.6, [1])
    for first, second in ((one, two), (two, one), (one, one), (one, rule(0.5, [0]))):
        with by_hooks(llava.model, *_settings(first)), by_hooks(llava.model, *_settings(second)):
            expected = llava.logits(pictures, QUESTIONS)
        near(llava, llava.logits(pictures, QUESTIONS, first + second), expected)
        near(llava, llava.logits(pictures, QUESTIONS, [second, first + second, None])[1:2], expected[1:2])


def _settings(steer: Recipe) -> tuple[float, list[int]]:
    settings = steer.rules[0].settings
    return settings["share"], settings["layers"]


def test_the_unembedding_alone(llava: Any) -> None:
    """Called by the user, with no forward that the rule could read, it gives what it gives."""
    states = torch.randn(1, 2, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = llava.model.lm_head(states)
        with llava.apply(rule()):
            assert torch.equal(llava.model.lm_head(states), expected)
            assert torch.equal(
                llava.unembed(states), llava.model.lm_head(llava.model.model.language_model.norm(states))
            )


ODD = [
    {},
    {"layers": [1]},
    {"share": 0.3},
    {"layers": [], "share": 0.3},
    {"layers": [9], "share": 0.3},
    {"layers": [-1], "share": 0.3},
    {"layers": 1, "share": 0.3},
    {"layers": "1", "share": 0.3},
    {"layers": [True], "share": 0.3},
    {"layers": [1], "share": "x"},
    {"layers": [1], "share": None},
    {"layers": [1], "share": float("nan")},
]


@pytest.mark.parametrize("settings", ODD, ids=str)
def test_settings_that_mean_nothing(settings: dict[str, Any], llava: Any, pictures: Pictures) -> None:
    with pytest.raises(RecipeError):
        llava.logits(pictures[:1], QUESTIONS[:1], Recipe((), rules=(Rule("self_logits", settings),)))


def test_nothing_is_left(llava: Any, pictures: Pictures) -> None:
    before, plain = hooks(llava.model), llava.logits(pictures, QUESTIONS)
    llava.ask_many(pictures, QUESTIONS, rule(), 2)
    stream = llava.stream(pictures[0], QUESTIONS[0], rule(), STEPS)
    next(stream)
    stream.close()
    with pytest.raises(RecipeError):
        llava.ask(pictures[0], QUESTIONS[0], rule(layers=[7]))
    assert hooks(llava.model) == before
    assert torch.equal(llava.logits(pictures, QUESTIONS), plain)
