"""Scenes of drawn objects: a scene is a small frozen description, and rendering it twice gives the same pixels.

A scene says which objects stand where, in which color, drawing style and pose, before which background. Everything
random is fixed by seeds inside the description, so changing one item's color changes pixels of its body and nothing
else, at any size from 64 to 512 pixels. Boxes and masks are exact because we drew them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts import palette
from vlmsteer_counterfacts.paint import STYLES, Painter, Pose, render
from vlmsteer_counterfacts.shapes import SHAPES

BACKGROUNDS = ("plain", "gradient", "floor", "dots")
LETTERED = frozenset({"stop sign"})  # carries writing, so it is never mirrored


@dataclass(frozen=True)
class Item:
    """One object in a scene: its center and side as fractions of the picture; `seed` fixes pose and shade."""

    object: str
    color: str
    center: tuple[float, float]
    side: float
    seed: int

    def __post_init__(self) -> None:
        if self.object not in SHAPES:
            raise InputError(f"No drawn object is called {self.object!r}{did_you_mean(self.object, SHAPES)}.")
        if self.color not in palette.COLORS:
            raise InputError(f"No named color {self.color!r}{did_you_mean(self.color, palette.COLORS)}.")


class Picture(NamedTuple):
    """A rendered scene: the image, and for each item its object mask, body mask (both "L") and pixel box."""

    image: Image.Image
    masks: list[Image.Image]
    bodies: list[Image.Image]
    boxes: list[tuple[int, int, int, int]]


@dataclass(frozen=True)
class Scene:
    """Items before a background, all in one drawing style."""

    items: tuple[Item, ...]
    style: str
    background: str
    backdrop: tuple[palette.RGB, palette.RGB]
    seed: int

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise InputError(f"No drawing style {self.style!r}{did_you_mean(self.style, STYLES)}.")
        if self.background not in BACKGROUNDS:
            raise InputError(f"No background {self.background!r}{did_you_mean(self.background, BACKGROUNDS)}.")

    def recolor(self, index: int, color: str) -> Scene:
        """The same scene with item `index` in another color."""
        items = list(self.items)
        items[index] = replace(items[index], color=color)
        return replace(self, items=tuple(items))

    def exchange(self, first: int, second: int) -> Scene:
        """The same scene with two objects, each in its color, in each other's place and size."""
        items = list(self.items)
        one, other = items[first], items[second]
        items[first] = replace(one, object=other.object, color=other.color)
        items[second] = replace(other, object=one.object, color=one.color)
        return replace(self, items=tuple(items))

    def trade(self, first: int, second: int) -> Scene:
        """The same scene with two items, as large as they are, in each other's place."""
        items = list(self.items)
        one, other = items[first], items[second]
        items[first], items[second] = replace(one, center=other.center), replace(other, center=one.center)
        return replace(self, items=tuple(items))

    def without(self, index: int) -> Scene:
        """The same scene without one item."""
        return replace(self, items=self.items[:index] + self.items[index + 1 :])

    def render(self, pixels: int = 256) -> Picture:
        """Draw the scene as a square of `pixels` (64 to 512).

        Raises:
            InputError: if `pixels` is out of range.
        """
        if not 64 <= pixels <= 512:
            raise InputError(f"Scenes are drawn at 64 to 512 pixels, not {pixels}.")
        image = _background(self.background, self.backdrop, pixels, random.Random(self.seed))
        masks, bodies, boxes = [], [], []
        for item in self.items:
            side = max(8, round(item.side * pixels))
            left, top = round(item.center[0] * pixels - side / 2), round(item.center[1] * pixels - side / 2)
            painter = Painter(random.Random(item.seed))
            SHAPES[item.object](painter)
            pose = Pose.random(random.Random(item.seed + 1))
            if item.object in LETTERED:
                pose = replace(pose, mirrored=False)
            color = palette.shade(item.color, random.Random(item.seed + 2))
            stamp, body = render(painter.shapes, color, pose, self.style, side, random.Random(item.seed + 3))
            image.paste(stamp, (left, top), stamp)
            mask = Image.new("L", image.size, 0)
            mask.paste(stamp.getchannel("A").point(lambda value: 255 if value else 0), (left, top))
            full = Image.new("L", image.size, 0)
            full.paste(body, (left, top))
            masks.append(mask)
            bodies.append(full)
            boxes.append(mask.getbbox() or (0, 0, 0, 0))
        return Picture(image, masks, bodies, boxes)


def _background(kind: str, backdrop: tuple[palette.RGB, palette.RGB], pixels: int, rng: random.Random) -> Image.Image:
    first, second = (np.asarray(color, np.float32) for color in backdrop)
    y, x = np.mgrid[0:pixels, 0:pixels].astype(np.float32) / pixels
    if kind == "gradient":
        slope = rng.uniform(-0.5, 0.5)
        share = (y + slope * (x - 0.5)).clip(0, 1)
    elif kind == "floor":
        share = ((y - rng.uniform(0.55, 0.8)) * pixels + 0.5).clip(0, 1)
    elif kind == "dots":
        pitch, phase = rng.uniform(0.11, 0.17), rng.uniform(0, 1)
        distance = np.hypot((x / pitch + phase) % 1 - 0.5, (y / pitch + phase) % 1 - 0.5)
        share = ((0.24 - distance) * pitch * pixels + 0.5).clip(0, 1) * 0.6
    else:
        share = np.zeros_like(x)
    return Image.fromarray((first + (second - first) * share[..., None]).round().astype(np.uint8))


def backdrop(colors: list[str], rng: random.Random) -> tuple[palette.RGB, palette.RGB]:
    """Two quiet background colors that objects of the given colors stand out against."""
    best, best_distance = (0.8, 0.02, 0.0), -1.0
    for _ in range(12):
        candidate = (rng.uniform(0.35, 0.96), rng.uniform(0.0, 0.045), rng.uniform(0, 360))
        distance = min(
            abs(candidate[0] - palette.COLORS[color][0]) + 0.8 * palette.COLORS[color][1] for color in colors
        )
        if distance > best_distance:
            best, best_distance = candidate, distance
        if distance > 0.24:
            break
    lightness, chroma, hue = best
    return (
        palette.oklch_to_rgb(lightness, chroma, hue),
        palette.oklch_to_rgb(lightness + rng.choice((-0.07, 0.07)), chroma, hue + rng.uniform(-40, 40)),
    )


def portrait(
    name: str,
    color: str,
    rng: random.Random,
    style: str,
    avoid: tuple[str, ...] = (),
    min_side: float = 0.6,
) -> Scene:
    """One object, large. `avoid` names further colors the background must set off (a counterfactual's)."""
    side = rng.uniform(min_side, 0.96)
    slack = (1 - side) / 2
    center = (0.5 + rng.uniform(-slack, slack), 0.5 + rng.uniform(-slack, slack))
    item = Item(name, color, center, side, rng.getrandbits(30))
    return Scene((item,), style, rng.choice(BACKGROUNDS), backdrop([color, *avoid], rng), rng.getrandbits(30))


def size_scene(larger: tuple[str, str], smaller: tuple[str, str], rng: random.Random, style: str) -> Scene:
    """Two objects side by side on one ground line, `larger` drawn at two to three times the side of `smaller`.

    Both are (object, color).
    """
    big, small = rng.uniform(0.5, 0.6), rng.uniform(0.2, 0.27)
    ground = rng.uniform(0.78, 0.95)
    left_is_big = rng.random() < 0.5
    gap = rng.uniform(0.02, 0.08)
    start = rng.uniform(0.01, max(0.011, 0.98 - big - small - gap))
    big_x = start + big / 2 if left_is_big else start + small + gap + big / 2
    small_x = start + big + gap + small / 2 if left_is_big else start + small / 2
    items = [
        Item(larger[0], larger[1], (big_x, ground - big / 2), big, rng.getrandbits(30)),
        Item(smaller[0], smaller[1], (small_x, ground - small / 2), small, rng.getrandbits(30)),
    ]
    if rng.random() < 0.5:
        items.reverse()
    colors = [larger[1], smaller[1]]
    return Scene(tuple(items), style, rng.choice(BACKGROUNDS), backdrop(colors, rng), rng.getrandbits(30))


def group_scene(contents: list[tuple[str, str]], rng: random.Random, style: str) -> Scene:
    """One to six (object, color) scattered apart from each other.

    Of a thousand scenes about one has two objects that touch, by up to four pixels of 84 x 84.
    """
    if not 1 <= len(contents) <= 6:
        raise InputError(f"A scene holds one to six objects, not {len(contents)}.")
    low, high = {1: (0.5, 0.8), 2: (0.36, 0.48), 3: (0.3, 0.42), 4: (0.28, 0.38)}.get(len(contents), (0.26, 0.33))
    items: list[Item] = []
    while len(items) < len(contents):
        name, color = contents[len(items)]
        for _ in range(60):
            side = rng.uniform(low, high)
            center = (rng.uniform(side / 2, 1 - side / 2), rng.uniform(side / 2, 1 - side / 2))
            if all(
                max(abs(center[0] - other.center[0]), abs(center[1] - other.center[1])) > 0.47 * (side + other.side)
                for other in items
            ):
                items.append(Item(name, color, center, side, rng.getrandbits(30)))
                break
        else:
            items.clear()
    colors = [color for _, color in contents]
    return Scene(tuple(items), style, rng.choice(BACKGROUNDS), backdrop(colors, rng), rng.getrandbits(30))
