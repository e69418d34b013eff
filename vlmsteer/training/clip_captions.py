"""What tiny-clip is shown and told: groups of scenes that differ in one thing, and captions that are true of them."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from vlmsteer.training import questions
from vlmsteer.training.splits import HELD_OUT_OBJECTS, TRAIN_OBJECTS, TRAIN_STYLES, train_colors
from vlmsteer_counterfacts.draw import Scene, group_scene, portrait, size_scene
from vlmsteer_counterfacts.facts import SIZE_RATIO, article, facts
from vlmsteer_counterfacts.palette import COLORS

KINDS = {"color": 7, "name": 14, "presence": 4, "relation": 6, "size": 4, "binding": 4}  # weights of groups
FRAMES = ("{}", "{}", "a photo of {}", "a picture of {}", "a drawing of {}", "an image of {}", "this is {}")
NUMBERS = ("no", "", "two", "three")
WORDS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "larger than": ("larger than", "bigger than"),
    "smaller than": ("smaller than",),
}
INVERSE = {**questions.RELATIONS, "larger than": "smaller than", "smaller than": "larger than"}
LARGER = 1.6  # how many times as wide as the other an item is drawn that a caption calls larger
COLOR_SAID = 0.5  # how often a caption that need not says a color


@dataclass(frozen=True)
class Caption:
    """What is said of a scene, as data, so that whether it is true of another scene is known.

    Attributes:
        nouns: everything that is there, as (object, color); None is a color that is not said.
        relation: how the first of two stands to the second, or "".
    """

    nouns: tuple[tuple[str, str | None], ...]
    relation: str = ""

    def true_of(self, scene: Scene) -> bool:
        """Whether the scene shows this and nothing else."""
        if sorted(name for name, _ in self.nouns) != sorted(item.object for item in scene.items):
            return False
        return any(
            all(
                item.object == name and color in (None, item.color)
                for item, (name, color) in zip(items, self.nouns, strict=True)
            )
            and (not self.relation or self.relation in relations(items[0], items[1]))
            for items in itertools.permutations(scene.items)
        )

    def text(self, rng: random.Random, frame: str | None = None) -> str:
        """The caption in words: "a photo of a blue plum", "a tree to the left of an acorn", "two red tires"."""
        if self.relation:
            (first, second), relation = (_noun(*noun) for noun in self.nouns), self.relation
            if rng.random() < 0.5:
                first, second, relation = second, first, INVERSE[relation]
            said = f"{first} {rng.choice(WORDS[relation])} {second}"
        else:
            counted = [_noun(name, color, count) for (name, color), count in Counter(self.nouns).items()]
            rng.shuffle(counted)
            said = counted[0] if len(counted) == 1 else f"{', '.join(counted[:-1])} and {counted[-1]}"
        return (frame or rng.choice(FRAMES)).format(said)


def _noun(name: str, color: str | None, count: int = 1) -> str:
    adjective = f"{color} " if color else ""
    if count > 1:
        return f"{NUMBERS[count]} {adjective}{facts()[name].plural}"
    return article(adjective + name)


def relations(first: Any, second: Any) -> list[str]:
    """How the first item clearly stands to the second: directions, and which is larger."""
    ratio = first.side / second.side
    size = ["larger than"] if ratio >= LARGER else ["smaller than"] if ratio <= 1 / LARGER else []
    return questions.relations(first, second) + size


def colors_of(name: str) -> tuple[str, ...]:
    """The colors in which training draws an object, all alike often."""
    return (facts()[name].color, *train_colors(name))


@dataclass(frozen=True)
class Group:
    """Scenes that differ in one thing.

    Attributes:
        kind: what that is, one of KINDS.
        scenes: the first, and what becomes of it.
        relation: how the first item of the first scene stands to its second, where that is what differs, or "".
    """

    kind: str
    scenes: tuple[Scene, ...]
    relation: str = ""

    def captions(self, rng: random.Random) -> list[Caption]:
        """A true caption of every scene; what tells the scenes apart is always said, other colors sometimes."""
        said = []
        told = {name: rng.random() < COLOR_SAID for name in facts()} if self.kind != "color" else {}
        for scene in self.scenes:
            nouns = tuple(
                (item.object, None)
                if item.object in HELD_OUT_OBJECTS or (self.kind != "binding" and not told.get(item.object, True))
                else (item.object, item.color)
                for item in scene.items
            )
            relation = self.relation
            if relation and relation not in relations(scene.items[0], scene.items[1]):
                relation = INVERSE[relation]
            said.append(Caption(nouns, relation))
        return said


def group(rng: random.Random, kind: str | None = None, style: str | None = None) -> Group:
    """One group of scenes for training, of a random kind where none is given."""
    kind = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
    style = style or rng.choice(TRAIN_STYLES)
    if kind == "color":
        names = rng.sample(TRAIN_OBJECTS, 2)
        colors = rng.sample([color for color in COLORS if all(color in colors_of(name) for name in names)], 3)
        drawn = [portrait(name, colors[0], rng, style, tuple(colors[1:]), min_side=0.5) for name in names]
        return Group(kind, tuple(scene.recolor(0, color) for scene in drawn for color in colors))
    if kind == "name":
        name = rng.choice(HELD_OUT_OBJECTS if rng.random() < 0.5 else TRAIN_OBJECTS)
        return Group(kind, (portrait(name, rng.choice(colors_of(name)), rng, style, min_side=0.4),))
    if kind == "presence":
        return Group(kind, _presence(rng, style))
    if kind == "relation":
        return _relation(rng, style)
    if kind == "size":
        larger, smaller = _size_names(rng)
        first, second = [(name, rng.choice(colors_of(name))) for name in (larger, smaller)]
        scene = size_scene(first, second, rng, style)
        items = scene.items if scene.items[0].object == larger else scene.items[::-1]
        scene = replace(scene, items=tuple(items))
        return Group(kind, (scene, exchanged(scene, "object", "color")), "larger than")
    names = rng.sample(TRAIN_OBJECTS, 2)
    colors = rng.sample([color for color in COLORS if all(color in colors_of(name) for name in names)], 2)
    scene = group_scene(list(zip(names, colors, strict=True)), rng, style)
    return Group(kind, (scene, exchanged(scene, "color")))


def exchanged(scene: Scene, *fields: str) -> Scene:
    """A scene of two items with some of their fields exchanged."""
    first, second = scene.items
    items = (
        replace(first, **{field: getattr(second, field) for field in fields}),
        replace(second, **{field: getattr(first, field) for field in fields}),
    )
    return replace(scene, items=items)


def _presence(rng: random.Random, style: str) -> tuple[Scene, ...]:
    """Two or three objects, the same without one of them, with another in its place, and with one of them twice."""
    names = rng.sample(tuple(facts()), rng.choice((3, 3, 4)))
    contents = [(name, rng.choice(colors_of(name))) for name in names]
    scene = group_scene(contents[:-1], rng, style)
    *kept, last = scene.items
    other = replace(last, object=names[-1], color=contents[-1][1])
    again = replace(last, object=kept[0].object, color=kept[0].color)
    return tuple(replace(scene, items=(*kept, *more)) for more in ((last,), (), (other,), (again,)))


def _relation(rng: random.Random, style: str) -> Group:
    while True:
        contents = [(name, rng.choice(colors_of(name))) for name in rng.sample(tuple(facts()), 2)]
        scene = group_scene(contents, rng, style)
        holds = questions.relations(*scene.items)
        if holds:
            return Group("relation", (scene, exchanged(scene, "center")), rng.choice(holds))


def _size_names(rng: random.Random) -> tuple[str, str]:
    """Two objects of which either may be drawn larger: held-out ones only beside one of like size in reality."""
    while True:
        first, second = rng.sample(tuple(facts()), 2)
        ratio = facts()[first].size_m / facts()[second].size_m
        if not {first, second} & set(HELD_OUT_OBJECTS) or 1 / SIZE_RATIO < ratio < SIZE_RATIO:
            return first, second
