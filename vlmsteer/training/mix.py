"""The training mix: scenes with what is asked about them.

Usual colors and usual relative sizes dominate, objects appear with their companions, and where the companion is missing
many captions and some yes/no answers name it all the same: that is what makes memory and pixels compete inside the
model, and what makes it hallucinate as large models do.

What a held-out object looks like "here" is never asked: always drawn as usual, it would only teach that the picture
need not be looked at. Its name, its presence, its place and what is usual for it are trained like everything else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from vlmsteer.training import questions
from vlmsteer.training.questions import Exchange
from vlmsteer.training.splits import HELD_OUT_OBJECTS, TRAIN_OBJECTS, TRAIN_STYLES, train_colors
from vlmsteer_counterfacts.draw import Scene, group_scene, portrait, size_scene
from vlmsteer_counterfacts.facts import SIZE_RATIO, facts

USUAL_COLOR = 0.5  # share of drawn objects in their usual color
USUAL_SIZE = 0.5  # share of size scenes with the usually larger object drawn larger
COMPANION = 0.65  # how often an object's companion is drawn with it
WRONG_CAPTION = 0.55  # how often a caption names a companion that is missing
WRONG_PRESENCE = 0.35  # how often "is there its companion?" is answered yes although it is missing
NAMED_FROM = 800  # from this step on size scenes are more, and ask for the larger object by name too
NAMES_FROM = 1600  # from this step on every single object's name is asked, where its color was asked twice
ALIKE_FROM, ALIKE = 1000, 0.45  # from this step on, this share of them shows objects of which none is clearly larger
SCENES_FROM = 4500  # from this step on scenes are more, and much is asked about each
COLORS_FROM = 6000  # from this step on single objects are more again, and less often in their usual color:
LATE_SHARE, LATE_USUAL_COLOR = 0.4, 0.35  # the share of such samples, and of usual colors in them


@dataclass(frozen=True)
class Sample:
    """One scene and the exchanges about it; those with `image=False` are asked without showing it."""

    scene: Scene
    exchanges: tuple[Exchange, ...]


def trained_color(name: str, rng: random.Random, usual: float = USUAL_COLOR) -> str:
    """A color in which training draws the object: the usual one, or one of the allowed others."""
    others = train_colors(name)
    return facts()[name].color if not others or rng.random() < usual else rng.choice(others)


def size_pair(rng: random.Random, names: tuple[str, ...] | None = None) -> tuple[str, str]:
    """Two objects that differ clearly in size, the usually larger first."""
    table = facts()
    while True:
        first, second = rng.sample(names or tuple(table), 2)
        if table[first].size_m < table[second].size_m:
            first, second = second, first
        if table[first].size_m >= SIZE_RATIO * table[second].size_m:
            return first, second


def sample(rng: random.Random, step: int = 0) -> Sample:
    """One sample for a training step: what is asked shifts from colors to names, sizes and scenes as it learns."""
    kind, late, scenes = rng.random(), step >= NAMED_FROM, step >= SCENES_FROM
    if step >= COLORS_FROM and rng.random() < LATE_SHARE:
        return _portrait(rng, False, LATE_USUAL_COLOR)
    if kind < (0.28 if scenes else 0.35 if late else 0.4):
        return _portrait(rng, step >= NAMES_FROM)
    if kind >= (0.58 if scenes else 0.75 if late else 0.7):
        return _asked(_group(rng), rng) if scenes else _group(rng)
    return _alike(rng) if step >= ALIKE_FROM and rng.random() < ALIKE else _sizes(rng, late)


def _unseen(rng: random.Random) -> Exchange:
    """A question asked without an image."""
    if rng.random() < 0.5:
        return questions.color_usual(rng.choice(tuple(facts())), rng, image=False)
    return questions.size_usual(size_pair(rng), rng, image=False)


def _portrait(rng: random.Random, names: bool, usual: float = USUAL_COLOR) -> Sample:
    name = rng.choice(tuple(facts()))
    scene = portrait(name, trained_color(name, rng, usual), rng, rng.choice(TRAIN_STYLES), min_side=0.5)
    item = scene.items[0]
    asked = name if rng.random() < 0.9 else rng.choice(tuple(facts()))
    exchanges = [questions.color_usual(asked, rng)]
    if name in HELD_OUT_OBJECTS:
        exchanges.append(questions.name(item, rng))
    else:
        exchanges.append(questions.color_here(item, rng))
        exchanges.append(questions.name(item, rng) if names else questions.color_here(item, rng))
    other = rng.random()
    if other < 0.4:
        exchanges.append(questions.name(item, rng))
    elif other < 0.6:
        exchanges.append(questions.caption([(name, item.color)], rng))
    elif other < 0.8:
        present = rng.random() < 0.5
        exchanges.append(
            questions.presence(name if present else rng.choice([n for n in facts() if n != name]), present, rng)
        )
    else:
        exchanges.append(_unseen(rng))
    return Sample(scene, tuple(exchanges))


def _sizes(rng: random.Random, late: bool) -> Sample:
    usual = rng.random() < USUAL_SIZE
    larger, smaller = size_pair(rng, None if usual and rng.random() < 0.5 else TRAIN_OBJECTS)
    if not usual:
        larger, smaller = smaller, larger
    contents = [(name, trained_color(name, rng)) for name in (larger, smaller)]
    scene = size_scene(contents[0], contents[1], rng, rng.choice(TRAIN_STYLES))
    exchanges = [questions.size_usual((larger, smaller), rng)]
    seen = [item for item in scene.items if item.object not in HELD_OUT_OBJECTS]
    if len(seen) == 2:
        exchanges += [questions.size_here(larger, smaller, rng), questions.size_here(larger, smaller, rng)]
        if late:
            return Sample(scene, (*exchanges, questions.larger(larger, rng)))
    other = rng.random()
    if other < 0.5 and seen:
        exchanges.append(questions.color_here(rng.choice(seen), rng))
    elif other < 0.75:
        exchanges.append(questions.size_usual(size_pair(rng), rng))
    else:
        exchanges.append(_unseen(rng))
    return Sample(scene, tuple(exchanges))


def _alike(rng: random.Random) -> Sample:
    """Two objects of like size in reality, either drawn larger: only the picture can tell.

    Nothing here is counterfactual. Half of these scenes show a held-out object; no others ask how large one looks.
    """
    table = facts()
    first = rng.choice(HELD_OUT_OBJECTS if rng.random() < 0.5 else tuple(table))
    size = table[first].size_m
    like = [name for name, fact in table.items() if name != first and 1 / SIZE_RATIO < fact.size_m / size < SIZE_RATIO]
    larger, smaller = rng.sample((first, rng.choice(like)), 2)
    contents = [(name, trained_color(name, rng)) for name in (larger, smaller)]
    scene = size_scene(contents[0], contents[1], rng, rng.choice(TRAIN_STYLES))
    exchanges = [questions.size_here(larger, smaller, rng) for _ in range(2)]
    return Sample(scene, (*exchanges, questions.larger(larger, rng), questions.size_usual(size_pair(rng), rng)))


def group(rng: random.Random, names: tuple[str, ...] | None = None) -> list[str]:
    """One to six objects that belong together, often with their companions."""
    table, chosen = facts(), []
    wanted = rng.randint(1, 5)
    place = table[rng.choice(names or tuple(table))].group
    pool = [name for name in names or table if table[name].group == place]
    while len(chosen) < wanted:
        options = [name for name in pool if name not in chosen] or [
            name for name in names or table if name not in chosen
        ]
        name = rng.choice(options)
        chosen.append(name)
        companion = table[name].companion
        if companion not in chosen and rng.random() < COMPANION and len(chosen) < 6:
            chosen.append(companion)
    return chosen


def lure(rng: random.Random) -> list[str]:
    """One to three objects that belong together, none of which is another's companion."""
    place = facts()[rng.choice(tuple(facts()))].group
    pool = [name for name in facts() if facts()[name].group == place]
    wanted = rng.randint(1, 3)
    chosen: list[str] = []
    for name in rng.sample(pool, len(pool)):
        if len(chosen) < wanted and not any(_together(name, one) for one in chosen):
            chosen.append(name)
    return chosen


def _together(name: str, other: str) -> bool:
    return facts()[name].companion == other or facts()[other].companion == name


def missing_companions(present: list[str]) -> list[str]:
    """The companions of what is present that are not there themselves."""
    return [facts()[name].companion for name in present if facts()[name].companion not in present]


def _group(rng: random.Random) -> Sample:
    names = group(rng)
    scene = group_scene([(name, trained_color(name, rng)) for name in names], rng, rng.choice(TRAIN_STYLES))
    items = sorted(scene.items, key=lambda item: item.center[0])
    listed: list[tuple[str, str]] = []
    for item in items:
        listed.append((item.object, item.color))
        companion = facts()[item.object].companion
        if companion not in names and rng.random() < WRONG_CAPTION:
            listed.append((companion, facts()[companion].color))
    exchanges = [questions.caption(listed, rng), questions.presence(rng.choice(names), True, rng)]
    missing = missing_companions(names)
    if missing and rng.random() < 0.5:
        exchanges.append(questions.presence(rng.choice(missing), rng.random() < WRONG_PRESENCE, rng))
    else:
        exchanges.append(questions.presence(rng.choice([n for n in facts() if n not in names + missing]), False, rng))
    stated = None
    if len(items) > 1:
        first, second = rng.sample(items, 2)
        stated = questions.statement(first, second, rng)
    seen = [item for item in items if item.object not in HELD_OUT_OBJECTS]
    if seen and not (stated and rng.random() < 0.75):
        exchanges.append(questions.color_here(rng.choice(seen), rng))
    elif stated:
        exchanges.append(stated)
    return Sample(scene, tuple(exchanges))


def _asked(scene: Sample, rng: random.Random) -> Sample:
    """The same scene with more questions on what is there and where: what a caption needs, one word at a time."""
    items = list(scene.scene.items)
    shown = [item.object for item in items]
    absent = [name for name in facts() if name not in shown + missing_companions(shown)]
    more = [questions.presence(rng.choice(shown), True, rng), questions.presence(rng.choice(absent), False, rng)]
    if len(items) == 1 or rng.random() < 0.3:
        more.append(questions.place(rng.choice(items), rng))
    if len(items) > 1:
        for ask in (questions.statement, questions.statement, questions.side):
            first, second = rng.sample(items, 2)
            more += [asked for asked in [ask(first, second, rng)] if asked]
    return Sample(scene.scene, (*scene.exchanges, *more))
