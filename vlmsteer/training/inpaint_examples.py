"""What tiny-inpaint is shown: a picture as it should become, what of it is hidden, and the prompt."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from vlmsteer.training.splits import HELD_OUT_OBJECTS, TRAIN_STYLES, train_colors
from vlmsteer_counterfacts.draw import Picture, Scene, group_scene, portrait
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.palette import COLORS

PIXELS = 64
REMOVAL = ("", "", "nothing", "plain background", "background")
TEMPLATES = ("{a} {thing}", "{a} {thing}", "{thing}", "a picture of {a} {thing}", "a drawing of {a} {thing}")


class Example(NamedTuple):
    """A picture as it should become, the mask (L, 255 where it is hidden), and the prompt."""

    target: Image.Image
    mask: Image.Image
    prompt: str


def caption(name: str, color: str, template: str = TEMPLATES[0]) -> str:
    """What the prompt says of an object: "a blue strawberry"."""
    thing = f"{color} {name}"
    return template.format(a="an" if thing[0] in "aeiou" else "a", thing=thing)


def example(rng: random.Random) -> Example:
    """One training example: an object to restore, an object to take away, or strokes to fill."""
    names = [rng.choice(tuple(facts())) for _ in range(1 if rng.random() < 0.85 else 2)]
    contents = [(name, rng.choice((facts()[name].color, *train_colors(name)))) for name in names]
    style = rng.choice(TRAIN_STYLES)
    if len(contents) == 1:
        scene = portrait(*contents[0], rng, style, min_side=0.5)
    else:
        scene = group_scene(contents, rng, style)
    drawn, index, kind = scene.render(PIXELS), rng.randrange(len(names)), rng.random()
    if kind < 0.22:
        mask = object_mask(drawn, index, rng, rng.choice(("object", "object", "box")))
        return Example(scene.without(index).render(PIXELS).image, mask, rng.choice(REMOVAL))
    prompt = caption(*contents[index], rng.choice(TEMPLATES))
    if kind < 0.34:
        mask = strokes(rng)
        hidden = np.asarray(mask)[np.asarray(drawn.masks[index]) > 0].any()
        return Example(drawn.image, mask, prompt if hidden else rng.choice(REMOVAL))
    return Example(drawn.image, object_mask(drawn, index, rng, rng.choice(("body", "body", "object", "box"))), prompt)


def object_mask(drawn: Picture, index: int, rng: random.Random, shape: str) -> Image.Image:
    """What hides an object: its "body" (where its color shows), the whole "object", or its "box", grown at random."""
    if shape == "box":
        left, top, right, bottom = drawn.boxes[index]
        mask = Image.new("L", drawn.image.size, 0)
        grown = [rng.randint(0, 3) for _ in range(4)]
        box = (left - grown[0], top - grown[1], right - 1 + grown[2], bottom - 1 + grown[3])
        ImageDraw.Draw(mask).rectangle(box, fill=255)
        return mask
    return grow((drawn.bodies if shape == "body" else drawn.masks)[index], rng.randint(0, 3))


def grow(mask: Image.Image, pixels: int) -> Image.Image:
    """Every pixel that the mask touches at all, and `pixels` around them."""
    hard = mask.point(lambda value: 255 if value else 0)
    return hard.filter(ImageFilter.MaxFilter(2 * pixels + 1)) if pixels else hard


def strokes(rng: random.Random) -> Image.Image:
    """One to three brush strokes."""
    mask = Image.new("L", (PIXELS, PIXELS), 0)
    pen = ImageDraw.Draw(mask)
    for _ in range(rng.randint(1, 3)):
        width, (x, y) = rng.randint(5, 13), (rng.uniform(0, PIXELS), rng.uniform(0, PIXELS))
        for _ in range(rng.randint(1, 4)):
            to = (x + rng.uniform(-24, 24), y + rng.uniform(-24, 24))
            pen.line([(x, y), to], fill=255, width=width)
            pen.ellipse([to[0] - width / 2, to[1] - width / 2, to[0] + width / 2, to[1] + width / 2], fill=255)
            x, y = to
    return mask


class Case(NamedTuple):
    """One portrait to measure on: its scene, the color to paint it in, and whether training drew it in all colors."""

    scene: Scene
    color: str
    held_out: bool


def cases(n: int, seed: int) -> list[Case]:
    """n portraits that training did not draw, every second one of a held-out object in its usual color."""
    drawn = []
    for number in range(n):
        rng, held_out = random.Random(f"{seed}/measure/{number}"), number % 2 == 1
        name = rng.choice([name for name in facts() if (name in HELD_OUT_OBJECTS) == held_out])
        now = rng.choice((facts()[name].color, *train_colors(name))) if not held_out else facts()[name].color
        other = rng.choice([color for color in COLORS if color != now])
        drawn.append(Case(portrait(name, now, rng, rng.choice(TRAIN_STYLES), (other,)), other, held_out))
    return drawn


def floats(images: np.ndarray) -> Tensor:
    """(n, height, width, 3) bytes as (n, 3, height, width) in -1 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
