"""Gradients pass through edits and reads; half-precision models keep their dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, recipe
from PIL import Image

import vlmsteer
from vlmsteer.operations import OPERATIONS
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def half(request: pytest.FixtureRequest, llava_folder: Path) -> Any:
    return vlmsteer.load(llava_folder, dtype=request.param)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_gradients_reach_read_states_and_weights(
    operation: str, positions: str, llava: Any, pictures: Pictures
) -> None:
    steer = recipe(llava, "text.1.block_out", operation, 0.5, positions)
    plain = llava.logits(pictures, QUESTIONS, steer)
    with llava.read(["text.0.block_out", "text.0.head", "vision.0.mlp_out"], "all", grad=True) as states:
        logits = llava.logits(pictures, QUESTIONS, steer, grad=True)
    assert torch.equal(logits, plain)
    weight = llava.taps[states.sites[0]].module.fc1.weight
    read = [states.rows(site)[1] for site in states.sites]
    gradients = torch.autograd.grad(logits[1].max(), [*read, weight])
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)
    assert read[1].shape[1:] == (4, 12)
    assert not llava.logits(pictures, QUESTIONS, steer).requires_grad
    assert all(parameter.grad is None for parameter in llava.model.parameters())


def test_gradients_of_read_states_are_right(llava: Any, pictures: Pictures) -> None:
    """The gradient at a state is the slope of an edit that is added there."""
    steer = recipe(llava, "text.1.block_out")
    with llava.read("text.1.block_out", "last", grad=True) as states:
        logits = llava.logits(pictures, QUESTIONS, grad=True)
    (gradient,) = torch.autograd.grad(logits[2, 300], states.rows("text.1.block_out")[2])
    up, down = (llava.logits(pictures, QUESTIONS, steer.scaled(by))[2, 300] for by in (0.01, -0.01))
    slope = gradient[0] @ steer.edits[0].fixed.layers[1]
    torch.testing.assert_close(slope, (up - down) / 0.02, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("rows", ["one recipe", "row by row"])
def test_gradients_reach_the_vector_and_are_right(rows: str, llava: Any, pictures: Pictures) -> None:
    """Against a finite difference of the logit along a direction."""
    generator = torch.Generator().manual_seed(0)
    vector, direction = torch.randn(48, generator=generator), torch.randn(48, generator=generator)

    def target(value: torch.Tensor, grad: bool) -> torch.Tensor:
        steer = Recipe((Edit(Vectors("text", "block_out", {1: value})),))
        recipes = steer if rows == "one recipe" else [steer]
        return llava.logits(pictures[:1], QUESTIONS[:1], recipes, grad=grad)[0, 300]

    leaf = vector.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target(leaf, True), leaf)
    step = 1e-2
    slope = (target(vector + step * direction, False) - target(vector - step * direction, False)) / (2 * step)
    torch.testing.assert_close(gradient @ direction, slope, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_half_precision_keeps_its_dtype(operation: str, half: Any, pictures: Pictures) -> None:
    dtype = half.model.dtype
    assert dtype in (torch.bfloat16, torch.float16)
    steer = recipe(half, "text.*.mlp_out", operation, 0.5, "all")
    for vector_dtype in (torch.float16, torch.float32, torch.float64):
        edits = tuple(
            Edit(
                Vectors("text", "mlp_out", {n: v.to(vector_dtype) for n, v in edit.fixed.layers.items()}),
                operation,
                0.5,
                "all",
            )
            for edit in steer.edits
        )
        with half.read("text.*.block_out", "all") as states:
            logits = half.logits(pictures, QUESTIONS, Recipe(edits))
        assert logits.dtype == dtype and logits.isfinite().all()
        assert states.rows("text.1.block_out")[0].dtype == dtype
    assert half.ask(pictures[0], QUESTIONS[0], steer.scaled(0), 4) == half.ask(pictures[0], QUESTIONS[0], None, 4)


@pytest.mark.parametrize("operation", ["replace", "clamp"])
def test_half_precision_patches_exactly(operation: str, half: Any, pictures: Pictures) -> None:
    """x + (v - x) is not v where x is much larger than v; the patched state must be v to the last bit."""
    vector = torch.linspace(-1e-3, 1e-3, 48)
    steer = Recipe((Edit(Vectors("text", "block_out", {1: vector}), operation),))
    with half.read("text.1.block_out") as states:
        half.logits(pictures[:1], QUESTIONS[:1], steer)
    assert torch.equal(states["text.1.block_out"][0], vector.to(half.model.dtype))


def test_float64_models_lose_nothing(llava_folder: Path, pictures: Pictures) -> None:
    session = vlmsteer.load(llava_folder, dtype=torch.float64)
    steer = recipe(session, "text.1.block_out", "project_out", 1.0, "all")
    direction = torch.nn.functional.normalize(steer.edits[0].fixed.layers[1].double(), dim=0)
    with session.read("text.1.block_out", "all") as states:
        session.logits(pictures[:1], QUESTIONS[:1], steer)
    assert (states.rows("text.1.block_out")[0] @ direction).abs().max() < 1e-12
