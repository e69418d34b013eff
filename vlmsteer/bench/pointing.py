"""The pointing game: how often a map is largest inside the object that the word names (Zhang et al., ECCV 2016).

The model describes scenes of the drawn world, whose boxes are exact, and of each scene one object that it names rightly
is looked for. Beside the hits stand those of a random point, and how often another object was hit: a map that only
finds objects hits the others too.
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
from vlmsteer.training.splits import TRAIN_STYLES
from vlmsteer_counterfacts.draw import group_scene
from vlmsteer_counterfacts.facts import facts

QUESTION = "Describe this image."
OBJECTS, PIXELS, PATIENCE = 3, 168, 8  # objects in a scene, its side, and scenes asked about for one that counts


class Trial(NamedTuple):
    """A scene with its caption, one object that this names rightly, and boxes as fractions: its own, the others'."""

    image: Image.Image
    caption: str
    word: str
    box: np.ndarray
    others: list[np.ndarray]


@dataclass(frozen=True)
class Pointing:
    """How often the largest value lay in the object's box, in another object's, and what a random point hits."""

    hit: Rate
    other: Rate
    chance: float


def trials(session: Session, n: int, seed: int = 0, recipe: Recipe | None = None) -> list[Trial]:
    """Scenes of which the model's caption names an object that is there.

    Raises:
        InputError: if the model names objects in too few scenes.
    """
    rng = random.Random(seed)
    found: list[Trial] = []
    for _ in range(PATIENCE):
        drawn = [_draw(rng) for _ in range(n - len(found))]
        captions = session.ask_many([image for image, _ in drawn], [QUESTION] * len(drawn), recipe)
        for (image, boxes), caption in zip(drawn, captions, strict=True):
            named = [name for name in boxes if f" {name}" in caption.lower()]
            if named:
                word = rng.choice(named)
                others = [box for name, box in boxes.items() if name != word]
                found.append(Trial(image, caption, word, boxes[word], others))
        if len(found) == n:
            return found
    raise InputError(f"{session.name!r} names an object that is there in {len(found)} of {n * PATIENCE} scenes only.")


def play(session: Session, given: list[Trial], method: str, recipe: Recipe | None = None, **options: Any) -> Pointing:
    """The pointing game with one kind of evidence; `recipe` and `options` as `evidence` takes them."""
    hits, others = [], []
    for trial in given:
        seen = evidence(session, trial.image, QUESTION, trial.caption, recipe, method, **options)
        point = seen.peak(trial.word)
        hits.append(_inside(point, trial.box))
        others.append(any(_inside(point, box) for box in trial.others))
    areas = [float(np.prod(trial.box[2:] - trial.box[:2])) for trial in given]
    return Pointing(rate(hits), rate(others), float(np.mean(areas)))


def _draw(rng: random.Random) -> tuple[Image.Image, dict[str, np.ndarray]]:
    names = rng.sample(list(facts()), OBJECTS)
    scene = group_scene([(name, facts()[name].color) for name in names], rng, rng.choice(TRAIN_STYLES))
    picture = scene.render(PIXELS)
    return picture.image, {name: np.array(box) / PIXELS for name, box in zip(names, picture.boxes, strict=True)}


def _inside(point: tuple[float, float] | None, box: np.ndarray) -> bool:
    return point is not None and bool(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])
