"""Recipes side by side on the same scenes and the same greedy decoding: what each changes, and what it costs.

Each arm stands beside the baseline and beside random directions of its own lengths, with the paired difference of every
measure. A strength is chosen on other scenes than it is reported on. Two recipes at once are an arm "A+B": what they do
beyond the sum of their separate effects is their interference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmsteer.bench.hallucination import CAPTION_TOKENS, MEASURES, Parts, Said, ask, clusters, score
from vlmsteer.bench.statistics import Rate, ratio_contrast
from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.examples import Example, digest
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session

BASELINE = "baseline"
RECALL_LOSS, ACCURACY_LOSS = 0.01, 0.02  # what a strength may cost
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: a report of JSON values, and what each arm said.

    `said` maps an arm's name to its captions and its yes/no answers, in the order of the examples.
    """

    report: dict[str, Any]
    said: dict[str, dict[str, list[str]]]


def compare(
    session: Session,
    arms: Mapping[str, Recipe],
    captions: Sequence[Example],
    presence: Sequence[Example],
    controls: int = 3,
    seed: int = 0,
    max_new_tokens: int = CAPTION_TOKENS,
    vocabulary: Mapping[str, str] | None = None,
    progress: Progress = lambda text: None,
) -> Comparison:
    """Measure arms against the baseline.

    An arm's name may join those of others with "+" (the caller adds up the recipes); then its interference is reported:
    its change minus the sum of theirs, which is zero if they do not get in each other's way.

    Args:
        arms: recipes by name.
        captions, presence: test examples that nothing was learned or chosen on; one of them may be empty.
        controls: how many random directions an arm is compared with; the examples have them in turn. A recipe
            without edits (rules only) has no random control.
        max_new_tokens: the longest caption.
        vocabulary: see `hallucination.score`.
        progress: called with what is being measured.

    Raises:
        InputError: if there are no examples, or an arm is called "baseline".
    """
    if not captions and not presence:
        raise InputError("A comparison needs captions or yes/no questions, and none were given.")
    if BASELINE in arms:
        raise InputError(f"No arm may be called {BASELINE!r}, the model without a recipe; give it another name.")
    groups = clusters(captions, presence)
    found: dict[str, dict[str, Parts]] = {}
    said: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    plain: Said | None = None

    def measure(name: str, recipes: Recipe | list[Recipe] | None) -> Said:
        progress(f"{name}: {len(captions)} captions, {len(presence)} yes/no questions")
        started = time.perf_counter()
        answered = ask(session, captions, presence, recipes, max_new_tokens)
        seconds[name] = round(time.perf_counter() - started, 2)
        found[name] = score(answered, plain or answered, captions, presence, vocabulary)
        said[name] = {"captions": answered.captions, "answers": answered.answers}
        return answered

    plain = measure(BASELINE, None)
    report: dict[str, Any] = {
        "model": session.name, "decoding": "greedy", "max_new_tokens": max_new_tokens, "seed": seed,
        "captions": len(captions), "presence": len(presence), "data": digest([*captions, *presence]),
        "baseline": {"values": _rates([found[BASELINE]], (1,), groups), "seconds": seconds[BASELINE]}, "arms": {},
    }  # fmt: skip
    for name, recipe in arms.items():
        measure(name, recipe)
        row = {"recipe": recipe.hash, **_row(found[name], found[BASELINE], groups), "seconds": seconds[name]}
        row["random"] = None
        if controls and recipe.edits:
            control = f"{name}, random"
            measure(control, [recipe.random_like(1000 * seed + number) for number in range(controls)])
            row["random"] = {"directions": controls, **_row(found[control], found[BASELINE], groups)}
        report["arms"][name] = row
    report["interference"] = _interference(arms, found, groups)
    return Comparison(report, said)


@dataclass(frozen=True)
class Trial:
    """One strength (and, of text layers, only some) on validation scenes: every measure, and its change."""

    strength: float
    values: dict[str, Rate]
    change: dict[str, Rate]
    layers: list[int] | None = None

    @property
    def score(self) -> float:
        """The change of CHAIR_i plus what recall and accuracy lose beyond what is allowed: the less, the better."""
        return _or(self.change["chair_i"].rate, 1) + _excess(self)


@dataclass(frozen=True)
class Tuned:
    """The result of `tune`: the chosen strength, 0 if none helps, its trial or the best trade, and all trials."""

    strength: float
    best: Trial
    trials: list[Trial]

    @property
    def says(self) -> str:
        """The choice in a sentence."""
        changes = ", ".join(
            f"{MEASURES[name].title} {100 * self.best.change[name].rate:+.1f}"
            for name in ("chair_i", "chair_s", "recall", "accuracy")
            if not math.isnan(self.best.change[name].rate)
        )
        if self.strength:
            return f"Strength {self.strength:g}: {changes} points on validation scenes."
        return f"No strength helps within the allowed cost; the best trade, {self.best.strength:g}: {changes} points."


def tune(
    session: Session,
    recipe: Recipe,
    strengths: Sequence[float],
    captions: Sequence[Example],
    presence: Sequence[Example],
    measure: str = "chair_i",
    max_new_tokens: int = CAPTION_TOKENS,
    vocabulary: Mapping[str, str] | None = None,
    progress: Progress = lambda text: None,
) -> Tuned:
    """Choose the multiple of a recipe's strength at which hallucination falls most at little cost.

    Allowed are multiples at which recall falls by at most 1 point and yes/no accuracy by at most 2. If at none of these
    hallucination falls, the strength is 0, and the best trade is that whose fall exceeds its losses beyond these most.

    Args:
        strengths: multiples to try, as `recipe.scaled` takes them.
        captions, presence: validation examples, of other scenes than the test's; without yes/no questions only
            recall limits the choice.
        measure: "chair_i" or "chair_s".

    Raises:
        InputError: if there are no strengths or captions, or for another measure.
    """
    if measure not in ("chair_i", "chair_s"):
        raise InputError(f"A strength is not chosen by {measure!r}{did_you_mean(measure, ('chair_i', 'chair_s'))}.")
    if not strengths or not captions:
        raise InputError("Choosing a strength needs at least one strength to try and at least one caption.")
    settings = [(strength, None) for strength in strengths]
    return choose(trials(session, recipe, settings, captions, presence, max_new_tokens, vocabulary, progress), measure)


def trials(
    session: Session,
    recipe: Recipe,
    settings: Sequence[tuple[float, list[int] | None]],
    captions: Sequence[Example],
    presence: Sequence[Example],
    max_new_tokens: int = CAPTION_TOKENS,
    vocabulary: Mapping[str, str] | None = None,
    progress: Progress = lambda text: None,
) -> list[Trial]:
    """What a recipe changes at each setting, a multiple of its strength and which text layers are left in it."""
    groups = clusters(captions, presence)
    plain = ask(session, captions, presence, None, max_new_tokens)
    before = score(plain, plain, captions, presence, vocabulary)
    found = []
    for strength, layers in settings:
        progress(f"strength {strength:g}: {len(captions)} captions, {len(presence)} yes/no questions")
        tried = recipe.scaled(strength) if layers is None else recipe.scaled(strength).narrowed(layers)
        after = score(ask(session, captions, presence, tried, max_new_tokens), plain, captions, presence, vocabulary)
        values, change = _contrasts([after], (1,), groups), _contrasts([before, after], (-1, 1), groups)
        found.append(Trial(strength, values, change, layers))
    return found


def choose(trials: Sequence[Trial], measure: str = "chair_i") -> Tuned:
    """Of trials on the same scenes, the one that `tune` takes."""
    allowed = [trial for trial in trials if not _excess(trial) and trial.change[measure].rate < 0]
    if allowed:
        best = min(allowed, key=lambda trial: trial.change[measure].rate)
        return Tuned(best.strength, best, list(trials))
    trade = min(trials, key=lambda trial: _or(trial.change[measure].rate, 1) + _excess(trial))
    return Tuned(0.0, trade, list(trials))


def _excess(trial: Trial) -> float:
    """How far recall and accuracy fall beyond what is allowed; a hair's breadth is rounding."""
    losses = (_or(-trial.change[n].rate, 0) - m for n, m in (("recall", RECALL_LOSS), ("accuracy", ACCURACY_LOSS)))
    return sum(loss for loss in losses if loss > 1e-9)


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value


def _row(arm: dict[str, Parts], baseline: dict[str, Parts], groups: Mapping[str, Sequence[Hashable]]) -> dict[str, Any]:
    return {"values": _rates([arm], (1,), groups), "change": _rates([baseline, arm], (-1, 1), groups)}


def _interference(
    arms: Mapping[str, Recipe], found: Mapping[str, dict[str, Parts]], groups: Mapping[str, Sequence[Hashable]]
) -> dict[str, Any]:
    """For each arm that joins others, its change minus the sum of theirs; KL is no change that could add up."""
    report = {}
    for name in arms:
        parts = [part.strip() for part in name.split("+")]
        if len(parts) > 1 and all(part in arms for part in parts):
            weights = (1, *[-1] * len(parts), len(parts) - 1)
            joined = [found[one] for one in (name, *parts, BASELINE)]
            beyond = _rates(joined, weights, groups)
            report[name] = {"of": parts, "beyond_sum": {key: beyond[key] for key in beyond if not key.startswith("kl")}}
    return report


def _contrasts(
    parts: Sequence[dict[str, Parts]], weights: Sequence[float], groups: Mapping[str, Sequence[Hashable]]
) -> dict[str, Rate]:
    return {
        name: ratio_contrast([one[name] for one in parts], weights, groups[name], bounded=measure.share)
        for name, measure in MEASURES.items()
    }


def _rates(
    parts: Sequence[dict[str, Parts]], weights: Sequence[float], groups: Mapping[str, Sequence[Hashable]]
) -> dict[str, Any]:
    return {name: found.as_dict() for name, found in _contrasts(parts, weights, groups).items()}
