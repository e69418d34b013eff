"""Examples of the drawn world: captions with their hallucinated twins, yes/no questions, and edited scenes.

Everything random about an example comes from its kind, split, seed and number, so no scene is in two splits. The scenes
are made as those that the bundled models were trained on, and the wrong captions name what these models make up:
companions that are missing, right after the object that they usually stand beside. "lures" are scenes where nothing has
its companion: what a model makes up there comes from memory alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from vlmsteer.bench.pairs import PIXELS, SPLITS, Split
from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.examples import Example, load_examples
from vlmsteer.training import questions
from vlmsteer.training.mix import WRONG_CAPTION, group, lure, missing_companions, size_pair, trained_color
from vlmsteer.training.splits import TRAIN_OBJECTS, TRAIN_STYLES
from vlmsteer_counterfacts.draw import Scene, group_scene, size_scene
from vlmsteer_counterfacts.facts import facts

KINDS = ("captions", "presence", "edits")
DRAWN = ("drawn", "lures")
LEVELS = ("object", "attribute", "relation")
Contents = Callable[[random.Random], list[str]]  # what a scene shows


def drawn_examples(
    kind: str, split: Split, count: int, seed: int = 0, pixels: int = PIXELS, data: str = "drawn"
) -> list[Example]:
    """Examples drawn on the spot.

    * "captions": what is shown, from left to right with its color, and the same with one or more absent objects.
    * "presence": two questions a scene, answered yes and no. What is absent is by turns a companion of something shown
      (POPE's adversarial questions) and something unrelated (its random ones).
    * "edits": by turns an object removed or replaced ("Is there ...?"), a color changed, and two objects in each
      other's place and size ("Which is larger here, ...?"). The image is by turns the usual scene and the changed one,
      so that "Yes" is right as often as "No".

    Args:
        kind: "captions", "presence" or "edits".
        split: "learn", "validate" or "test".
        count: how many examples.
        pixels: side of the pictures.
        data: "drawn", scenes of one to six objects, most of them with their companions; or "lures", of one to three
            objects, none of them with its companion.

    Raises:
        InputError: for an unknown kind, split or data.
    """
    _check(kind, split)
    if data not in DRAWN:
        raise InputError(f"No scenes are drawn under the name {data!r}{did_you_mean(data, DRAWN)}.")
    made: list[Example] = []
    scene = 0
    while len(made) < count:
        name = f"{kind}/{split}/{seed}/{scene}" if data == "drawn" else f"{data}/{kind}/{split}/{seed}/{scene}"
        made += _MAKERS[kind](name, scene, random.Random(name), pixels, group if data == "drawn" else lure)
        scene += 1
    return made[:count]


def select_examples(data: str, kind: str, split: Split, count: int, seed: int = 0) -> list[Example]:
    """Examples of one split: of the drawn world, or of a file (`vlmsteer.examples.load_examples`).

    A file is split by a hash of the groups: half of them to learn, a fifth to validate, the rest to test.

    Args:
        data: "drawn", "lures" or a file.
        kind: "captions", "presence" or "edits" (those that have an edited image).
        count: at most so many, chosen by seed.

    Raises:
        InputError: if the file cannot be read, or has none of this kind in the split.
    """
    if data in DRAWN:
        return drawn_examples(kind, split, count, seed, data=data)
    _check(kind, split)
    wanted = {"captions": ("caption",), "presence": ("presence",), "edits": LEVELS}[kind]
    everything = [
        one for one in load_examples(data) if one.kind in wanted and (one.edited is not None) == (kind == "edits")
    ]
    found = [one for one in everything if _split(one.group) == split]
    if not found:
        raise InputError(
            f"{data!r} has {len(everything)} examples of the kind {kind!r}, and none of them in the {split!r} split."
        )
    random.Random(seed).shuffle(found)
    return found[:count]


def _check(kind: str, split: str) -> None:
    if kind not in KINDS:
        raise InputError(f"There are no examples of the kind {kind!r}{did_you_mean(kind, KINDS)}.")
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}{did_you_mean(split, SPLITS)}.")


def _split(group: str) -> str:
    share = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
    return "learn" if share < 0.5 else "validate" if share < 0.7 else "test"


def _scene(names: list[str], rng: random.Random) -> Scene:
    return group_scene([(name, facts()[name].color) for name in names], rng, rng.choice(TRAIN_STYLES))


def _captions(name: str, number: int, rng: random.Random, pixels: int, contents: Contents) -> Iterator[Example]:
    shown = contents(rng)
    scene = _scene(shown, rng)
    listed = [(item.object, item.color) for item in sorted(scene.items, key=lambda item: item.center[0])]
    told = list(listed)
    missing = missing_companions(shown)
    named = [one for one in missing if rng.random() < WRONG_CAPTION] or missing[:1]
    for absent in named:
        beside = next(i for i, (one, _) in enumerate(told) if facts()[one].companion == absent)
        told.insert(beside + 1, (absent, facts()[absent].color))
    if not named:
        absent = rng.choice([one for one in facts() if one not in shown])
        told.insert(rng.randint(1, len(told)), (absent, facts()[absent].color))
    right, wrong = questions.caption(listed, rng), questions.caption(told, rng)
    yield Example(scene.render(pixels).image, right.question, right.answer, wrong.answer, name, "caption")


def _presence(name: str, number: int, rng: random.Random, pixels: int, contents: Contents) -> Iterator[Example]:
    while True:
        shown = contents(rng)
        missing = missing_companions(shown)
        if missing or number % 2:
            break
    others = [one for one in facts() if one not in shown + missing]
    absent = rng.choice(others if number % 2 else missing)
    image = _scene(shown, rng).render(pixels).image
    for asked, answer in ((rng.choice(shown), True), (absent, False)):
        question = questions.presence(asked, answer, rng)
        wrong = "No" if answer else "Yes"
        yield Example(image, question.question, question.answer, wrong, name, "presence")


def _edits(name: str, number: int, rng: random.Random, pixels: int, contents: Contents) -> Iterator[Example]:
    """One example. Which of the two scenes is the image and which the edited one alternates."""
    level = LEVELS[number % len(LEVELS)]
    edit = {"object": _object, "attribute": _attribute, "relation": _relation}[level]
    scene, other, question, answers = edit(rng, contents)
    pictures = scene.render(pixels).image, other.render(pixels).image
    if number // len(LEVELS) % 2:
        pictures, answers = pictures[::-1], answers[::-1]
    yield Example(pictures[0], question, answers[0], answers[1], name, level, pictures[1])


def _object(rng: random.Random, contents: Contents) -> tuple[Scene, Scene, str, tuple[str, str]]:
    scene = _scene(contents(rng), rng)
    shown = [item.object for item in scene.items]
    at = rng.randrange(len(shown))
    if len(shown) > 1 and rng.random() < 0.5:
        other = scene.without(at)
    else:
        absent = rng.choice([one for one in facts() if one not in shown])
        items = list(scene.items)
        items[at] = replace(items[at], object=absent, color=facts()[absent].color)
        other = replace(scene, items=tuple(items))
    return scene, other, questions.presence(shown[at], True, rng).question, ("Yes", "No")


def _attribute(rng: random.Random, _: Contents) -> tuple[Scene, Scene, str, tuple[str, str]]:
    """One or two objects, in colors in which training draws them; with more, the models often mix up the colors."""
    name = rng.choice(TRAIN_OBJECTS)  # training never asks how a held-out object looks here
    others = [one for one in facts() if one != name]
    scene = _scene([name, *rng.sample(others, rng.randint(0, 1))], rng)
    color = trained_color(name, rng, usual=0.0)
    return (
        scene,
        scene.recolor(0, color),
        questions.color_here(scene.items[0], rng).question,
        (facts()[name].color, color),
    )


def _relation(rng: random.Random, _: Contents) -> tuple[Scene, Scene, str, tuple[str, str]]:
    """Which of two is larger: of left and right the bundled models know nothing (about half of their answers hold)."""
    larger, smaller = size_pair(rng, TRAIN_OBJECTS)
    first, second = ((one, facts()[one].color) for one in (larger, smaller))
    scene = size_scene(first, second, rng, rng.choice(TRAIN_STYLES))
    return scene, scene.exchange(0, 1), questions.size_here(larger, smaller, rng).question, (larger, smaller)


_MAKERS = {"captions": _captions, "presence": _presence, "edits": _edits}
