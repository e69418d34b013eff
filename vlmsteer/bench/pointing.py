"""The pointing game: how often a map is largest inside the object that the answer is about (Zhang et al., ECCV 2016).

The model is asked for the color of one of two objects in scenes of the drawn world, whose boxes are exact; colors are
drawn at random, so that what is usual helps neither the answer nor the map. Only right answers count. Beside the hits
stand those of a random point, and how often the other object was hit: a map that only finds objects hits both alike.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlmsteer.bench.statistics import Rate, rate
from vlmsteer.errors import InputError
from vlmsteer.lens.evidence import evidence
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session
from vlmsteer.training.questions import COLOR_HERE, phrase
from vlmsteer.training.splits import TRAIN_STYLES
from vlmsteer_counterfacts.draw import group_scene
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.palette import COLORS

PIXELS, PATIENCE = 112, 8  # a scene's side, and how often it is tried to have enough right answers


class Trial(NamedTuple):
    """A scene, a question about an object's color, the right answer, and both objects' boxes as fractions."""

    image: Image.Image
    question: str
    color: str
    box: np.ndarray
    other: np.ndarray


@dataclass(frozen=True)
class Pointing:
    """How often the largest value lay in the object's box, in the other object's, and what a random point hits."""

    hit: Rate
    other: Rate
    chance: float


def trials(session: Session, n: int, seed: int = 0, recipe: Recipe | None = None) -> tuple[list[Trial], int]:
    """Scenes that the model answers rightly about, and how many it was asked about.

    Raises:
        InputError: if too few of its answers are right.
    """
    rng = random.Random(seed)
    found: list[Trial] = []
    for turn in range(PATIENCE):
        drawn = [_draw(rng) for _ in range(n)]
        answers = session.ask_many([one.image for one in drawn], [one.question for one in drawn], recipe, 8)
        for number, (one, answer) in enumerate(zip(drawn, answers, strict=True)):
            if answer.strip(" .").lower() == one.color:
                found.append(one)
            if len(found) == n:
                return found, turn * n + number + 1
    raise InputError(f"Only {len(found)} of {PATIENCE * n} answers of {session.name!r} are right; {n} are needed.")


def play(session: Session, given: list[Trial], method: str, recipe: Recipe | None = None, **options: Any) -> Pointing:
    """The pointing game with one kind of evidence; `recipe` and `options` as `evidence` takes them."""
    hits, others = [], []
    for one in given:
        point = evidence(session, one.image, one.question, one.color, recipe, method, **options).peak()
        hits.append(_inside(point, one.box))
        others.append(_inside(point, one.other))
    areas = [float(np.prod(one.box[2:] - one.box[:2])) for one in given]
    return Pointing(rate(hits), rate(others), float(np.mean(areas)))


def _draw(rng: random.Random) -> Trial:
    names, colors = rng.sample(list(facts()), 2), rng.sample(list(COLORS), 2)
    picture = group_scene(list(zip(names, colors, strict=True)), rng, rng.choice(TRAIN_STYLES)).render(PIXELS)
    boxes = [np.array(box) / PIXELS for box in picture.boxes]
    return Trial(picture.image, phrase(rng.choice(COLOR_HERE), facts()[names[0]]), colors[0], *boxes)


def _inside(point: tuple[float, float] | None, box: np.ndarray) -> bool:
    return point is not None and bool(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])
