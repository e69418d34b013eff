"""The main experiment on one model: what it answers, what its layers believe, and how far PvP moves it.

Vectors are learned on one set of objects; layers and strength are chosen on the same objects in other colors;
everything reported is measured on objects that appear in neither. Each flip rate stands beside a random direction and
shuffled pairs of the same length, what the recipe breaks, and how far it moves answers to unrelated questions.
"""

from __future__ import annotations

import platform
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, get_args

import torch
from PIL import Image

from vlmsteer.bench.pairs import color_pair, drawn_pairs
from vlmsteer.bench.statistics import Rate, rate
from vlmsteer.bench.visual_counterfact import color_question, flip_rates, matches, size_question
from vlmsteer.lens.beliefs import Curves, curves
from vlmsteer.methods import pvp
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session
from vlmsteer.vectors import Vectors
from vlmsteer_counterfacts.dataset import Pair, shuffled_options
from vlmsteer_counterfacts.facts import facts

ATTRIBUTES = ("color", "size")
DIRECTIONS = {"to_pixels": ("most", 1.0), "to_prior": ("this", -1.0)}  # the prompt that is steered, the vector's sign
# The paper's point, edited at every forward; and the one before the MLP mixes question and object, where only the
# prompt's last token takes in the question: pushed at generated tokens too, answers do not end.
POINTS = {"block_out": "both", "attn_out": "prefill"}
WIDTHS, STRENGTHS, FINALISTS = (1,), (0.75, 1.0, 1.25), 4
ANSWER_TOKENS = 4  # enough for a two-word name and its end; a longer answer is not the one wanted
VALIDATION = 64  # pairs that layers and strength are chosen on
ASIDE = 32  # of them, those that the unrelated question is asked about
TRIED = 4  # random directions that a cell is compared with
UNRELATED = "What is this?"
Progress = Callable[[str], None]
Kind = Literal["original", "counterfactual"]


def question(pair: Pair, scope: str) -> str:
    """The paper's prompt about a pair, for "this" image or "most" such objects."""
    if pair.attribute == "size":
        return size_question(*shuffled_options(pair), scope=scope)  # pyright: ignore[reportArgumentType]
    known = facts().get(pair.object)
    return color_question(pair.object, known.plural if known else None, scope)  # pyright: ignore[reportArgumentType]


def target(pair: Pair, kind: Kind, scope: str) -> str:
    """The right answer: the pixel's only for a counterfactual picture asked about as this one."""
    return pair.pixel if (kind, scope) == ("counterfactual", "this") else pair.prior


@dataclass
class Choice:
    """Vectors, layers and strength chosen for one direction, with the whole sweep of their point.

    A row of the sweep is (first layer, last layer, strength, repair rate on validation pairs).
    """

    learned: pvp.Learned
    layers: list[int]
    strength: float
    score: float
    sweep: list[tuple[int, int, float, float]]

    @property
    def point(self) -> str:
        return self.learned.vectors.point


@dataclass
class Result:
    """Everything the report shows."""

    report: dict[str, Any]
    curves: dict[str, dict[str, Curves]]
    recipes: dict[str, Recipe]
    sweeps: dict[str, dict[str, Choice]]
    example: dict[str, Any] = field(default_factory=dict)


def learn(session: Session, pairs: Sequence[Pair], point: str = "block_out", index_shift: int = 0) -> pvp.Learned:
    """PvP vectors from counterfactual pairs with the paper's prompts."""
    images = [pair.image("counterfactual") for pair in pairs]
    this, most = ([question(pair, scope) for pair in pairs] for scope in ("this", "most"))
    return pvp.learn(session, images, this, most, point, index_shift)


def choose(
    session: Session,
    learned: pvp.Learned,
    pairs: Sequence[Pair],
    direction: str,
    widths: Sequence[int] = WIDTHS,
    strengths: Sequence[float] = STRENGTHS,
) -> Choice:
    """Sweep windows of layers and strengths on `pairs` and choose one.

    The cells that flip most answers about counterfactual pictures are tried on the real ones, with random directions,
    and on an unrelated question. A cell's score is its repair rate, less what random directions flip, less half of the
    right answers that break and of the unrelated answers that change. Of the cells within one answer of the
    best, the one nearest to the paper's strength of 1 is taken.
    """
    sign, count = DIRECTIONS[direction][1], session.layers()
    cells = [(w, s) for w in pvp.windows(count, [w for w in widths if w <= count]) for s in strengths]
    recipes = [_recipe(learned.vectors * sign, strength, layers) for layers, strength in cells]
    flipped = _hits(session, recipes, pairs, "counterfactual", direction)
    finalists = sorted(range(len(cells)), key=lambda i: (-flipped[i], cells[i][1] * len(cells[i][0])))[:FINALISTS]
    last = [recipes[i] for i in finalists]
    kept = _hits(session, last, pairs, "original", direction)
    others = [control for recipe in last for control in controls(recipe, 1, TRIED)]
    chance = _hits(session, others, pairs, "counterfactual", direction)
    aside = [pair.image("counterfactual") for pair in pairs[:ASIDE]]
    said = session.ask_grid(aside, [UNRELATED] * len(aside), [None, *last], max_new_tokens=ANSWER_TOKENS)
    scores = [
        flipped[i] - sum(chance[TRIED * j : TRIED * (j + 1)]) / TRIED
        - 0.5 * (1 - kept[j] + sum(row[0] != row[j + 1] for row in said) / len(said))
        for j, i in enumerate(finalists)
    ]  # fmt: skip
    near = [cells[i] for i, score in zip(finalists, scores, strict=True) if score >= max(scores) - 1.01 / len(pairs)]
    layers, strength = min(near, key=lambda cell: (abs(cell[1] - 1), len(cell[0]), cell[0][0]))
    sweep = [(w[0], w[-1], s, hit) for (w, s), hit in zip(cells, flipped, strict=True)]
    return Choice(learned, list(layers), strength, max(scores), sweep)


def _recipe(vectors: Vectors, strength: float, layers: Sequence[int]) -> Recipe:
    return Recipe.of(vectors, strength, layers, phase=POINTS.get(vectors.point, "both"))


def controls(recipe: Recipe, seed: int, count: int = 5) -> list[Recipe]:
    """Random controls of a recipe: several, because one direction would be a sample of one."""
    return [recipe.random_like(1000 * seed + number) for number in range(count)]


def _hits(
    session: Session, recipes: Sequence[Recipe], pairs: Sequence[Pair], kind: Kind, direction: str
) -> list[float]:
    """For each recipe, the share of whole answers that are the wanted one."""
    questions = [question(pair, DIRECTIONS[direction][0]) for pair in pairs]
    grid = session.ask_grid([pair.image(kind) for pair in pairs], questions, recipes, max_new_tokens=ANSWER_TOKENS)
    wanted = [pair.pixel if (kind, direction) == ("counterfactual", "to_pixels") else pair.prior for pair in pairs]
    hits = [
        [matches(answer, aim, pair.attribute, loose=False) for answer in row]
        for row, aim, pair in zip(grid, wanted, pairs, strict=True)
    ]
    return [sum(column) / len(pairs) for column in zip(*hits, strict=True)]


@dataclass
class Measured:
    """Answers to one prompt about both pictures of each pair: answers[kind][arm][pair]."""

    answers: dict[str, dict[str, list[str]]]
    flips: dict[str, Any]


def measure(
    session: Session, pairs: Sequence[Pair], direction: str, arms: Mapping[str, Recipe | list[Recipe]]
) -> Measured:
    """Ask every pair's prompt under each arm (and a baseline) and count what flips to the target and what breaks.

    An arm is one recipe, or several that the pairs have in turn.
    """
    scope, _ = DIRECTIONS[direction]
    questions = [question(pair, scope) for pair in pairs]
    turns = min(len(pairs), max(1 if isinstance(arm, Recipe) else len(arm) for arm in arms.values()))
    answers: dict[str, dict[str, list[str]]] = {}
    for kind in get_args(Kind):
        answers[kind] = {name: [""] * len(pairs) for name in ("baseline", *arms)}
        for turn in range(turns):  # the pairs of one turn have the same recipes
            images = [pair.image(kind) for pair in pairs[turn::turns]]
            recipes = [arm if isinstance(arm, Recipe) else arm[turn % len(arm)] for arm in arms.values()]
            grid = session.ask_grid(images, questions[turn::turns], [None, *recipes], max_new_tokens=ANSWER_TOKENS)
            for name, column in zip(answers[kind], zip(*grid, strict=True), strict=True):
                answers[kind][name][turn::turns] = column
    clusters = {pair.id: pair.object for pair in pairs}
    aims = {pair.id: pair.pixel if direction == "to_pixels" else pair.prior for pair in pairs}
    rights = {pair.id: target(pair, "original", scope) for pair in pairs}

    def by_id(kind: Kind, arm: str) -> dict[str, str]:
        return {pair.id: answer for pair, answer in zip(pairs, answers[kind][arm], strict=True)}

    flips: dict[str, Any] = {}
    for arm in arms:
        repaired, _ = flip_rates(
            by_id("counterfactual", "baseline"), by_id("counterfactual", arm), aims, pairs[0].attribute, clusters
        )
        _, broken = flip_rates(
            by_id("original", "baseline"), by_id("original", arm), rights, pairs[0].attribute, clusters
        )
        flips[arm] = {**repaired.as_dict(), "broken": broken.as_dict()}
    return Measured(answers, flips)


def divergence(session: Session, pairs: Sequence[Pair], recipe: Recipe) -> Rate:
    """Mean KL(baseline || steered), in nats, of the next token after an unrelated question about the same pictures."""
    images, questions = [pair.image("counterfactual") for pair in pairs], [UNRELATED] * len(pairs)
    plain, steered = (session.logits(images, questions, r).float().log_softmax(-1) for r in (None, recipe))
    return rate((plain.exp() * (plain - steered)).sum(-1).tolist(), [pair.object for pair in pairs])


def run(
    session: Session, n: int = 400, pairs: int = 100, seed: int = 0, progress: Progress = lambda text: None
) -> Result:
    """The whole experiment.

    Args:
        n: test pairs for each attribute.
        pairs: how many pairs the vectors are learned from.
        progress: called with what is being done.
    """
    started = time.perf_counter()
    report: dict[str, Any] = {"model": session.name, "n": n, "pairs": pairs, "seed": seed, "cells": {}, "flips": {}}
    result = Result(report, {}, {}, {})
    report["curves"], report["crossing_layer"], report["side_effects"], report["stability"] = {}, {}, {}, {}
    for attribute in ATTRIBUTES:
        progress(f"{attribute}: learning from {pairs} pairs")
        drawn = drawn_pairs(attribute, "learn", pairs, seed)
        learned = [learn(session, drawn, point) for point in POINTS]
        report["stability"][attribute] = {found.vectors.point: list(found.stability.values()) for found in learned}
        progress(f"{attribute}: choosing layers and strength")
        validation, test = (
            drawn_pairs(attribute, "validate", min(VALIDATION, pairs), seed),
            drawn_pairs(attribute, "test", n, seed),
        )
        report["cells"][attribute], report["flips"][attribute], result.sweeps[attribute] = {}, {}, {}
        report["side_effects"][attribute] = {}
        for direction, (scope, sign) in DIRECTIONS.items():
            choices = [choose(session, found, validation, direction) for found in learned]
            choice = max(choices, key=lambda found: found.score)
            result.sweeps[attribute][direction] = choice
            progress(f"{attribute}: {direction.replace('_', ' ')} on {n} test pairs")
            published, steered = (_recipe(c.learned.vectors, sign * c.strength, c.layers) for c in (choices[0], choice))
            arms = {
                "steered": steered,
                "published": published,
                "random": controls(steered, seed),
                "shuffled": _recipe(choice.learned.shuffled, choice.strength, choice.layers),
            }
            measured = measure(session, test, direction, arms)
            for kind in get_args(Kind):
                word = "real" if kind == "original" else kind
                right = [
                    matches(answer, target(pair, kind, scope), attribute, loose=False)
                    for pair, answer in zip(test, measured.answers[kind]["baseline"], strict=True)
                ]
                cell = rate(right, [pair.object for pair in test]).as_dict()
                report["cells"][attribute][f"{word}_{scope}"] = {"accuracy": cell.pop("rate"), **cell}
            flips = measured.flips
            report["flips"][attribute][direction] = {
                **flips["steered"], "point": choice.point, "layers": choice.layers, "strength": choice.strength,
                "random": flips["random"], "shuffled": flips["shuffled"],
                "published_form": {
                    **flips["published"], "point": choices[0].point,
                    "layers": choices[0].layers, "strength": choices[0].strength,
                },
            }  # fmt: skip
            report["side_effects"][attribute][direction] = {
                "question": UNRELATED, "kl_nats": divergence(session, test[:100], steered).as_dict()
            }  # fmt: skip
            result.recipes[f"{attribute}_{direction}"] = steered
        progress(f"{attribute}: reading what each layer believes")
        result.curves[attribute] = {scope: _curves(session, test[:100], scope) for scope in ("this", "most")}
        report["curves"][attribute] = {
            scope: {"prior": found.prior.mean(0).tolist(), "pixel": found.pixel.mean(0).tolist(), "n": len(found.prior)}
            for scope, found in result.curves[attribute].items()
        }
        report["crossing_layer"][attribute] = result.curves[attribute]["this"].crossing
    result.example = example(session, result)
    report["seconds"] = round(time.perf_counter() - started, 1)
    report["peak_memory_mb"] = peak_memory_mb()
    report["versions"] = versions()
    return result


def example(session: Session, result: Result) -> dict[str, Any]:
    """One counterfactual picture large, asked both ways, before and after."""
    shown = color_pair("example", "strawberry", "blue", random.Random(7), "shaded", 336)
    image = shown.image("counterfactual")
    rows = []
    for direction, (scope, _) in DIRECTIONS.items():
        asked = question(shown, scope)
        steered = session.ask(image, asked, result.recipes[f"color_{direction}"])
        rows.append(
            {"question": asked, "baseline": session.ask(image, asked), "steered": steered, "direction": direction}
        )
    return {"original": shown.image("original"), "counterfactual": image, "rows": rows}


def _curves(session: Session, pairs: Sequence[Pair], scope: str) -> Curves:
    images: list[Image.Image | str] = [pair.image("counterfactual") for pair in pairs]
    asked = [question(pair, scope) for pair in pairs]
    return curves(session, images, asked, [pair.prior for pair in pairs], [pair.pixel for pair in pairs])


def peak_memory_mb() -> int:
    """The most memory this process has held so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024))


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    names = ("vlmsteer", "torch", "transformers", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "threads": str(torch.get_num_threads()),
    }
