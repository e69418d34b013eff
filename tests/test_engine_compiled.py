"""Recipes and reads reach models that torch.compile or a static cache runs, whichever came first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, recipe
from PIL import Image

Pictures = list[Image.Image]


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_before_and_after(llava: Any, fresh: None) -> None:
    inputs = llava.encoder.encode([None], QUESTIONS[:1]).whole(llava.device).inputs
    steer = recipe(llava, "text.1.block_out", size=3.0)
    plain, steered = llava.logits([None], QUESTIONS[:1]), llava.logits([None], QUESTIONS[:1], steer)
    assert (plain - steered).abs().max() > 1e-2

    @torch.no_grad()
    def said() -> torch.Tensor:
        return compiled(**inputs, logits_to_keep=1).logits[:, -1]

    compiled = torch.compile(llava.model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(said(), plain, atol=1e-4, rtol=1e-4)
        with llava.apply(steer):
            torch.testing.assert_close(said(), steered, atol=1e-4, rtol=1e-4)
    with llava.read("text.1.block_out") as states:
        said()
    assert states["text.1.block_out"].shape == (1, llava.taps[states.sites[0]].width)


def test_static_cache(llava: Any, pictures: Pictures) -> None:
    steer = recipe(llava, "text.*.block_out", size=3.0)
    for recipes in (None, steer):
        wanted = llava.ask(pictures[0], QUESTIONS[0], recipes, 6)
        assert llava.ask(pictures[0], QUESTIONS[0], recipes, 6, cache_implementation="static") == wanted
