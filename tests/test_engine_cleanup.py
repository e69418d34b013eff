"""After a `with` block, however it ends, the model is the one that was loaded."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, flags, hooks, recipe
from PIL import Image

import vlmsteer
from vlmsteer.errors import SiteError

Pictures = list[Image.Image]
QUESTION = QUESTIONS[0]


@pytest.fixture
def untouched(session: Any, pictures: Pictures) -> Iterator[None]:
    """The test leaves hooks, flags and output as they were."""
    plain = session.logits(pictures[:1], [QUESTION])
    before = hooks(session.model), flags(session.model)
    yield
    assert (hooks(session.model), flags(session.model)) == before
    assert not session.instrument.busy
    assert torch.equal(session.logits(pictures[:1], [QUESTION]), plain)


def strong(session: Any) -> Any:
    return both(
        recipe(session, "text.*.block_out", size=4.0),
        recipe(session, "text.*.head", "scale", positions="all"),
        recipe(session, "vision.0.mlp_out", positions="image"),
        recipe(session, "projector.0.neuron", positions="all"),
    )


def test_apply_and_read(session: Any, pictures: Pictures, untouched: None) -> None:
    plain = session.logits(pictures[:1], [QUESTION])
    with session.apply(strong(session)), session.read(session.sites, positions="all"):
        assert not torch.equal(session.logits(pictures[:1], [QUESTION]), plain)


def test_strength_zero_is_bit_exact(session: Any, pictures: Pictures, untouched: None) -> None:
    plain = session.logits(pictures, QUESTIONS)
    assert torch.equal(session.logits(pictures, QUESTIONS, strong(session).scaled(0)), plain)
    with session.apply(strong(session).scaled(0)):
        assert torch.equal(session.logits(pictures, QUESTIONS), plain)


@pytest.mark.parametrize("operation", ["add", "scale", "clamp", "affine", "project_out", "replace", "add_keep_norm"])
def test_every_operation_at_strength_zero(operation: str, llava: Any, pictures: Pictures) -> None:
    plain = llava.ask_many(pictures, QUESTIONS, max_new_tokens=4)
    zero = recipe(llava, "text.*.mlp_out", operation, 0.0)
    assert llava.ask_many(pictures, QUESTIONS, zero, max_new_tokens=4) == plain
    some = recipe(llava, "text.*.mlp_out", operation, 0.9, size=6.0)
    logits = llava.logits(pictures, QUESTIONS)
    mixed = llava.logits(pictures, QUESTIONS, [zero, some, None])
    assert torch.equal(mixed[[0, 2]], logits[[0, 2]])
    assert not torch.allclose(mixed[1], logits[1], atol=1e-3)


def test_an_exception_inside(session: Any, pictures: Pictures, untouched: None) -> None:
    with pytest.raises(ZeroDivisionError), session.apply(strong(session)), session.read("text.0.block_out"):
        session.logits(pictures[:1], [QUESTION])
        raise ZeroDivisionError


def test_an_exception_inside_the_forward(session: Any, pictures: Pictures, untouched: None) -> None:
    with pytest.raises(SiteError, match="there is no token 900"):
        session.logits(pictures[:1], [QUESTION], recipe(session, "text.1.mlp_out", positions=(900,)))


def test_a_closed_and_an_abandoned_stream(session: Any, pictures: Pictures, untouched: None) -> None:
    closed = session.stream(pictures[0], QUESTION, strong(session))
    next(closed)
    closed.close()
    abandoned = session.stream(pictures[0], QUESTION, strong(session))
    next(abandoned)
    del abandoned


def test_a_suspended_stream_touches_nobody_else(session: Any, pictures: Pictures, untouched: None) -> None:
    plain = session.ask(pictures[0], QUESTION, max_new_tokens=5)
    other = recipe(session, "text.0.attn_out", size=3.0)
    expected = session.ask(pictures[1], QUESTIONS[1], other, max_new_tokens=5)
    whole = list(session.stream(pictures[0], QUESTION, strong(session), max_new_tokens=5))
    running = session.stream(pictures[0], QUESTION, strong(session), max_new_tokens=5)
    seen = [next(running), next(running)]
    assert session.ask(pictures[0], QUESTION, max_new_tokens=5) == plain
    assert session.ask(pictures[1], QUESTIONS[1], other, max_new_tokens=5) == expected
    with session.apply(other):
        assert session.ask(pictures[1], QUESTIONS[1], max_new_tokens=5) == expected
    seen += list(running)
    assert seen == whole
    assert whole[-1] != plain


def test_blocks_close_in_any_order(session: Any, pictures: Pictures, untouched: None) -> None:
    first = recipe(session, "text.1.block_out", size=3.0)
    second = recipe(session, "text.1.block_out", positions="all", seed=1, size=3.0)
    alone = session.logits(pictures[:1], [QUESTION], second)
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(session.apply(first))
    inner.enter_context(session.apply(second))
    together = session.logits(pictures[:1], [QUESTION])
    torch.testing.assert_close(together, session.logits(pictures[:1], [QUESTION]))
    outer.close()
    assert torch.equal(session.logits(pictures[:1], [QUESTION]), alone)
    inner.close()
    assert torch.equal(together, session.logits(pictures[:1], [QUESTION], both(first, second)))


def test_other_peoples_hooks_stay(session: Any, pictures: Pictures, untouched: None) -> None:
    calls: list[str] = []
    block = session.taps[session.sites[-1]].module
    handles = [
        block.register_forward_hook(lambda *_: calls.append("before")),
        session.model.register_forward_pre_hook(lambda *_: calls.append("root")),
    ]
    with session.apply(strong(session)):
        handles.append(block.register_forward_hook(lambda *_: calls.append("inside")))
        session.logits(pictures[:1], [QUESTION])
    session.logits(pictures[:1], [QUESTION])
    assert calls == ["root", "before", "inside"] * 2
    for handle in handles:
        handle.remove()


def test_a_copied_context_does_not_outlive_the_block(session: Any, pictures: Pictures, untouched: None) -> None:
    plain = session.logits(pictures[:1], [QUESTION])
    with session.apply(strong(session)):
        copied = contextvars.copy_context()
        assert not torch.equal(copied.run(session.logits, pictures[:1], [QUESTION]), plain)
    # Somebody else has hooks on the same sites, so only the context could tell.
    with session.instrument.installed(set(session.sites)):
        assert torch.equal(copied.run(session.logits, pictures[:1], [QUESTION]), plain)
        assert not copied.run(lambda: session.instrument.busy)


def test_tasks_started_inside_a_block(session: Any, pictures: Pictures, untouched: None) -> None:
    plain = session.logits(pictures[:1], [QUESTION])
    steered = session.logits(pictures[:1], [QUESTION], strong(session))

    async def ask() -> torch.Tensor:
        return await asyncio.to_thread(session.logits, pictures[:1], [QUESTION])

    async def main() -> list[torch.Tensor]:
        with session.apply(strong(session)):
            inside = asyncio.create_task(ask())
            first = await inside
            late = asyncio.create_task(ask())
        return [first, await late, await ask()]

    first, late, outside = asyncio.run(main())
    assert torch.equal(first, steered)
    assert torch.equal(late, plain) and torch.equal(outside, plain)


def test_two_models_at_once(llava: Any, llava_folder: Path, pictures: Pictures) -> None:
    other = vlmsteer.load(llava_folder, check=False)
    steer = recipe(llava, "text.*.block_out", size=4.0)
    plain = llava.logits(pictures[:1], [QUESTION])
    steered = llava.logits(pictures[:1], [QUESTION], steer)
    with other.apply(steer):
        assert torch.equal(llava.logits(pictures[:1], [QUESTION]), plain)
        assert torch.equal(other.logits(pictures[:1], [QUESTION]), steered)
        with llava.apply(steer):
            assert torch.equal(llava.logits(pictures[:1], [QUESTION]), steered)
    assert hooks(other.model).keys() == hooks(llava.model).keys()


def test_a_part_of_the_model_is_refused_after_a_whole_run(llava: Any, pictures: Pictures) -> None:
    """Token roles of the last forward are not taken for those of a call of the decoder alone."""
    with llava.apply(recipe(llava, "text.0.block_out")):
        llava.logits(pictures[:1], [QUESTION])
        with pytest.raises(SiteError, match="whole model"):
            llava.model.model.language_model(torch.tensor([[5, 6, 7]]))


def test_positional_arguments(llava: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    steer = recipe(llava, "text.1.block_out", size=4.0)
    with llava.apply(steer), torch.no_grad():
        assert torch.equal(llava.model(ids).logits, llava.model(input_ids=ids).logits)
