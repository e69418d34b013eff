"""Recipes with seeded random vectors, and the little algebra the engine tests share."""

from __future__ import annotations

from typing import Any

import torch

from vlmsteer.operations import WIDTHS
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.sites import expand
from vlmsteer.tokens import Positions
from vlmsteer.vectors import Vectors

QUESTIONS = ["What color is it?", "red?", "Which is large here, the strawberry or this?"]


def recipe(
    session: Any,
    pattern: str,
    operation: str = "add",
    strength: float = 1.0,
    positions: Positions = "last",
    phase: str = "both",
    seed: int = 0,
    size: float = 1.0,
) -> Recipe:
    """One edit with random vectors at every site that the pattern names."""
    sites = expand(pattern, session.sites)
    generator = torch.Generator().manual_seed(seed)
    layers = {
        site.layer: size * torch.randn(session.taps[site].width * WIDTHS.get(operation, 1), generator=generator)
        for site in sites
    }
    return Recipe((Edit(Vectors(sites[0].tower, sites[0].point, layers), operation, strength, positions, phase),))


def both(*recipes: Recipe) -> Recipe:
    """The edits of several recipes, in order."""
    return Recipe(tuple(edit for one in recipes for edit in one.edits))


def hooks(model: torch.nn.Module) -> dict[str, tuple[list[Any], list[Any]]]:
    """Every hook on every module, in order."""
    return {
        name: (list(module._forward_hooks.values()), list(module._forward_pre_hooks.values()))
        for name, module in model.named_modules()
    }


def flags(model: torch.nn.Module) -> list[bool]:
    """requires_grad of every parameter and training of every module."""
    return [p.requires_grad for p in model.parameters()] + [m.training for m in model.modules()]
