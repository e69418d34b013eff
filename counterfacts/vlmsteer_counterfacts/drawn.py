"""Counterfactual pairs of the drawn world, in five attributes, each from one random number generator.

A scene is drawn twice, before and after one change of its description, so the mask of what may differ is exact. Color
can also be changed in the finished picture ("recolor"), as it is in photos.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageChops

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts.draw import Scene, backdrop, group_scene, portrait, size_scene
from vlmsteer_counterfacts.edits import PATTERNS, texture
from vlmsteer_counterfacts.facts import SIZE_RATIO, article, fact, facts, size_pairs
from vlmsteer_counterfacts.paint import STYLES
from vlmsteer_counterfacts.palette import COLORS
from vlmsteer_counterfacts.recolor import recolor

RELATIONS = {"horizontal": ("left", "right"), "vertical": ("above", "below")}
WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
NO_PRIOR = "none: the original picture shows it so"


@dataclass(frozen=True)
class Draft:
    """A pair that is not checked yet.

    `texts` describe the original and the counterfactual picture.
    """

    object: str
    attribute: str
    prior: str
    pixel: str
    original: Image.Image
    counterfactual: Image.Image
    mask: Image.Image
    edit: dict[str, Any]
    prior_source: str
    texts: tuple[str, str]


@dataclass(frozen=True)
class World:
    """What may be drawn: objects (all if none are given), styles, colors, and how a color is changed.

    `color_edit` is "recolor", in the finished picture, or "redraw".
    """

    objects: Sequence[str] = ()
    styles: Sequence[str] = STYLES
    colors: Sequence[str] = tuple(COLORS)
    pixels: int = 256
    color_edit: str = "recolor"

    def __post_init__(self) -> None:
        for name in self.objects:
            fact(name)
        for name, known in (("styles", STYLES), ("colors", COLORS)):
            for value in getattr(self, name):
                if value not in known:
                    raise InputError(f"Unknown in {name}: {value!r}{did_you_mean(value, known)}.")
        if not self.styles or not self.colors:
            raise InputError("At least one style and one color are needed.")
        if self.color_edit not in ("redraw", "recolor"):
            raise InputError(f"A color is changed by 'redraw' or 'recolor', not {self.color_edit!r}.")
        if not 64 <= self.pixels <= 512:
            raise InputError(f"Scenes are drawn at 64 to 512 pixels, not {self.pixels}.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.objects) or tuple(facts())


def draw_pair(attribute: str, world: World, rng: random.Random) -> Draft:
    """One pair.

    Raises:
        InputError: for an unknown attribute, or if `world` has too few objects for it.
    """
    makers = {"color": _color, "size": _size, "presence": _presence, "relation": _relation, "texture": _texture}
    if attribute not in makers:
        raise InputError(f"There is no attribute {attribute!r}{did_you_mean(attribute, makers)}.")
    return makers[attribute](world, rng, rng.choice(list(world.styles)))


def _color(world: World, rng: random.Random, style: str) -> Draft:
    name = rng.choice(world.names)
    prior = facts()[name].color
    pixel = rng.choice([color for color in world.colors if color != prior] or [prior])
    if pixel == prior:
        raise InputError(f"No color but {name}'s own, {prior}, is among the colors.")
    scene = portrait(name, prior, rng, style, avoid=(pixel,))
    drawn = scene.render(world.pixels)
    mask = drawn.bodies[0]
    if world.color_edit == "recolor":
        shown = recolor(drawn.image, mask, pixel)
    else:
        shown = scene.recolor(0, pixel).render(world.pixels).image
    return Draft(
        name, "color", prior, pixel, drawn.image, shown, mask,
        {"kind": world.color_edit, "style": style, "from": prior, "to": pixel}, facts()[name].color_source,
        (article(f"{prior} {name}"), article(f"{pixel} {name}")),
    )  # fmt: skip


def _size(world: World, rng: random.Random, style: str) -> Draft:
    table = facts()
    options = size_pairs(world.names)
    if not options:
        raise InputError(f"No two of the objects differ {SIZE_RATIO} times in size.")
    larger, smaller = rng.choice(options)
    scene = size_scene((larger, table[larger].color), (smaller, table[smaller].color), rng, style)
    scene = replace(scene, backdrop=backdrop([table[larger].color, table[smaller].color], rng))
    return _redrawn(
        scene, scene.exchange(0, 1), world, (0, 1), larger, "size", larger, smaller,
        {"kind": "exchange", "style": style, "of": [larger, smaller]},
        f"{larger}: {table[larger].size_source}; {smaller}: {table[smaller].size_source}",
        (f"{article(larger)} larger than {article(smaller)}", f"{article(smaller)} larger than {article(larger)}"),
    )  # fmt: skip


def _presence(world: World, rng: random.Random, style: str) -> Draft:
    table = facts()
    name = rng.choice([one for one in world.names if table[one].companion in world.names] or [""])
    if not name:
        raise InputError("None of the objects has its companion among them.")
    companion = table[name].companion
    others = [one for one in world.names if one not in (name, companion) and companion != table[one].companion]
    shown = [name, companion, *rng.sample(others, min(len(others), rng.randint(0, 2)))]
    rng.shuffle(shown)
    scene, at = group_scene([(one, table[one].color) for one in shown], rng, style), shown.index(companion)
    rest = " and ".join(article(one) for one in shown if one != companion)
    return _redrawn(
        scene, scene.without(at), world, (at,), companion, "presence", "yes", "no",
        {"kind": "remove", "style": style, "of": companion, "beside": name},
        f"{companion} is the companion that {name} is most often drawn with",
        (f"{article(companion)} and {rest}", rest),
    )  # fmt: skip


def _relation(world: World, rng: random.Random, style: str) -> Draft:
    if len(world.names) < 2:
        raise InputError("A relation needs two objects.")
    first, second = rng.sample(world.names, 2)
    table, axis = facts(), rng.choice(sorted(RELATIONS))
    while True:  # until the two stand clearly apart on that axis, and on no other
        scene = group_scene([(one, table[one].color) for one in (first, second)], rng, style)
        (x, y), (u, v) = scene.items[0].center, scene.items[1].center
        along, across = (u - x, v - y) if axis == "horizontal" else (v - y, u - x)
        if abs(along) > 0.3 and abs(across) < 0.2:
            break
    before, after = RELATIONS[axis] if along > 0 else RELATIONS[axis][::-1]
    return _redrawn(
        scene, scene.trade(0, 1), world, (0, 1), first, "relation", before, after,
        {"kind": "trade", "style": style, "of": [first, second]}, NO_PRIOR,
        (f"{article(first)} {WORDS[before]} {article(second)}", f"{article(first)} {WORDS[after]} {article(second)}"),
    )  # fmt: skip


def _texture(world: World, rng: random.Random, style: str) -> Draft:
    name, pattern = rng.choice(world.names), rng.choice(PATTERNS)
    scene = portrait(name, facts()[name].color, rng, "flat")
    drawn = scene.render(world.pixels)
    shown = texture(drawn.image, drawn.bodies[0], pattern)
    return Draft(
        name, "texture", "plain", pattern, drawn.image, shown, drawn.bodies[0],
        {"kind": "texture", "style": "flat", "to": pattern}, NO_PRIOR,
        (article(f"plain {name}"), article(f"{pattern} {name}")),
    )  # fmt: skip


def _redrawn(
    before: Scene, after: Scene, world: World, changed: Sequence[int], name: str, attribute: str, prior: str,
    pixel: str, edit: dict[str, Any], source: str, texts: tuple[str, str],
) -> Draft:  # fmt: skip
    """Both scenes drawn; what may differ is what the changed items cover in either."""
    pictures = before.render(world.pixels), after.render(world.pixels)
    masks = [pictures[0].masks[index] for index in changed]
    if len(before.items) == len(after.items):
        masks += [pictures[1].masks[index] for index in changed]
    mask = masks[0]
    for other in masks[1:]:
        mask = ImageChops.lighter(mask, other)
    return Draft(name, attribute, prior, pixel, pictures[0].image, pictures[1].image, mask, edit, source, texts)
