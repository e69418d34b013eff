"""How well a bundled model does each task on what it never saw, and how much it makes up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, get_args

from PIL import Image

from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.bench.statistics import rate
from vlmsteer.bench.visual_counterfact import matches
from vlmsteer.demo import Kind, question, target
from vlmsteer.session import Session
from vlmsteer.training import questions
from vlmsteer.training.mix import group, missing_companions, size_pair
from vlmsteer.training.splits import HELD_OUT_STYLE, TRAIN_STYLES
from vlmsteer_counterfacts.draw import Scene, group_scene
from vlmsteer_counterfacts.facts import facts

N, SCENES, PIXELS = 440, 300, 84


def evaluate(session: Session, report: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, Any]]:
    """Rates with intervals, by task."""
    measured: dict[str, dict[str, Any]] = {}
    for attribute in ("color", "size"):
        for split, style, words in (
            ("test", None, "held-out objects"),
            ("validate", None, "held-out colors"),
            ("test", HELD_OUT_STYLE, "held-out style"),
        ):
            if attribute == "size" and split == "validate":
                continue
            report(f"{attribute}, {words}")
            pairs = drawn_pairs(attribute, split, N, 1, style=style)  # pyright: ignore[reportArgumentType]
            for kind, scope in itertools.product(get_args(Kind), ("this", "most")):
                answers = session.ask_many(
                    [pair.image(kind) for pair in pairs], [question(pair, scope) for pair in pairs], max_new_tokens=6
                )
                right = [
                    matches(answer, target(pair, kind, scope), attribute, loose=False)
                    for answer, pair in zip(answers, pairs, strict=True)
                ]
                name = f'{attribute}, {words}: {"real" if kind == "original" else kind} picture, "{scope}"'
                measured[name] = rate(right, [pair.object for pair in pairs]).as_dict()
    report("priors without a picture")
    names = [name for name in facts() for _ in range(5)]
    rng = random.Random("priors")
    asked = [questions.color_usual(name, rng, image=False) for name in names]
    measured["usual color, no picture"] = _score(session, [None] * len(asked), asked, names)
    asked = [questions.size_usual(size_pair(rng), rng, image=False) for _ in range(N)]
    measured["usual size, no picture"] = _score(session, [None] * len(asked), asked, [e.answer for e in asked])
    return measured | _scenes(session, report)


def _score(
    session: Session,
    images: Sequence[Image.Image | None],
    asked: Sequence[questions.Exchange],
    clusters: Sequence[Hashable],
) -> dict[str, Any]:
    answers = session.ask_many(images, [exchange.question for exchange in asked], max_new_tokens=6)
    return rate([a.rstrip(".") == e.answer for a, e in zip(answers, asked, strict=True)], clusters).as_dict()


def _scenes(session: Session, report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Names, places, presence and captions over scenes of objects in their usual colors."""
    rng = random.Random("scenes")
    scenes: list[Scene] = []
    for _ in range(SCENES):
        scenes.append(group_scene([(name, facts()[name].color) for name in group(rng)], rng, rng.choice(TRAIN_STYLES)))
    images = [scene.render(PIXELS).image for scene in scenes]
    shown = [[item.object for item in scene.items] for scene in scenes]
    measured: dict[str, dict[str, Any]] = {}

    report("presence")
    kinds: dict[str, list[tuple[int, questions.Exchange]]] = {
        "present": [],
        "absent companion": [],
        "absent, unrelated": [],
    }
    for i, names in enumerate(shown):
        kinds["present"].append((i, questions.presence(rng.choice(names), True, rng)))
        missing = missing_companions(names)
        if missing:
            kinds["absent companion"].append((i, questions.presence(rng.choice(missing), False, rng)))
        others = [name for name in facts() if name not in names + missing]
        kinds["absent, unrelated"].append((i, questions.presence(rng.choice(others), False, rng)))
    for kind, asked in kinds.items():
        rows = [i for i, _ in asked]
        measured[f"is there a X: {kind}, right"] = _score(
            session, [images[i] for i in rows], [e for _, e in asked], rows
        )

    report("relations")
    stated = []
    for i, scene in enumerate(scenes):
        if len(scene.items) > 1:
            first, second = rng.sample(scene.items, 2)
            statement = questions.statement(first, second, rng)
            if statement:
                stated.append((i, statement))
    rows = [i for i, _ in stated]
    measured["true or false, spatial: right"] = _score(session, [images[i] for i in rows], [e for _, e in stated], rows)

    report("captions")
    captions = session.ask_many(images, [questions.CAPTION[0]] * len(images), max_new_tokens=64)
    named = [[name for name in facts() if f" {name}" in f" {caption}"] for caption in captions]
    everything = list(zip(shown, named, strict=True))
    recalled = [(i, name in said) for i, (names, said) in enumerate(everything) for name in names]
    invented = [(i, name not in names) for i, (names, said) in enumerate(everything) for name in said]
    lured = [(i, name in said) for i, (names, said) in enumerate(everything) for name in missing_companions(names)]
    measured["caption: shown objects that are named"] = _rate(recalled)
    measured["caption: named objects that are not there (CHAIR_i)"] = _rate(invented)
    wrong = [(i, any(name not in names for name in said)) for i, (names, said) in enumerate(everything)]
    measured["caption: captions with an object that is not there (CHAIR_s)"] = _rate(wrong)
    measured["caption: absent companions that are named"] = _rate(lured)
    return measured


def _rate(outcomes: Sequence[tuple[int, bool]]) -> dict[str, Any]:
    return rate([outcome for _, outcome in outcomes], [scene for scene, _ in outcomes]).as_dict()
