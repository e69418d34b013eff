"""What the bundled models never see in training, so that tests on it mean something.

Held-out objects are only ever drawn in their usual color and at their usual relative size: every counterfactual of
theirs is new. Every other object keeps two colors back. One drawing style is never seen at all.
"""

from __future__ import annotations

import hashlib
from functools import cache

from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.paint import STYLES
from vlmsteer_counterfacts.palette import COLORS

HELD_OUT_OBJECTS = (
    "strawberry",
    "basketball",
    "banana",
    "frog",
    "jeans",
    "grapes",
    "bear",
    "pig",
    "piano",
    "swan",
    "elephant",
)  # one for each usual color
HELD_OUT_STYLE = "crayon"
TRAIN_STYLES = tuple(style for style in STYLES if style != HELD_OUT_STYLE)
TRAIN_OBJECTS = tuple(name for name in facts() if name not in HELD_OUT_OBJECTS)


@cache
def held_out_colors(name: str) -> tuple[str, ...]:
    """The counterfactual colors in which training never draws the object."""
    others = [color for color in COLORS if color != facts()[name].color]
    if name in HELD_OUT_OBJECTS:
        return tuple(others)
    return tuple(sorted(others, key=lambda color: hashlib.sha256(f"{name}/{color}".encode()).digest())[:2])


@cache
def train_colors(name: str) -> tuple[str, ...]:
    """The counterfactual colors that training does draw."""
    return tuple(color for color in COLORS if color != facts()[name].color and color not in held_out_colors(name))
