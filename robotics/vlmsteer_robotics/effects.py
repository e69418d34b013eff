"""What each arm changed, paired over seeds, with intervals, beside its controls and beside plain words.

An effect counts if it lies outside what 95 % of the random sets do. Episodes that broke off are counted and left out of
every pair that they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmsteer.bench.arms import BASELINE
from vlmsteer.bench.statistics import ratio_contrast
from vlmsteer_robotics.arms import Arm
from vlmsteer_robotics.metrics import METRICS
from vlmsteer_robotics.rollouts import paired

Rated = dict[str, Any]


def summarize(rows: Sequence[dict[str, Any]], arms: Sequence[Arm], seed: int = 0) -> dict[str, Any]:
    """Each arm's metrics and changes, as JSON values.

    Args:
        rows: of `rollouts.run`.
        seed: of the bootstrap.

    Returns:
        By arm: kind, recipe (hash), strength, n (episodes finished), errors, values, change (from the baseline), and,
        for a recipe, against (what it has beyond each arm of plain words) and random: of its controls the number of
        sets, and for each metric the mean change of each set, the bounds of 95 % of them, the share of sets that
        changed it by less (percentile) and whether the recipe lies beyond the bounds.
    """
    found: dict[str, Any] = {}
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm.name]
        about: dict[str, Any] = {
            "kind": arm.kind, "of": arm.of, "recipe": None if arm.recipe is None else arm.recipe.hash,
            "strength": arm.strength, "n": sum(row["error"] is None for row in own),
            "errors": sum(row["error"] is not None for row in own),
            "values": _rates(rows, arm.name, arm.name, seed, (0.0, 1.0)),
        }  # fmt: skip
        if arm.kind != "baseline":
            about["change"] = _rates(rows, BASELINE, arm.name, seed)
        if arm.kind in ("recipe", "hold"):
            said = [other.name for other in arms if other.kind == "prompt"]
            about["against"] = {name: _rates(rows, name, arm.name, seed) for name in said}
        found[arm.name] = about
    for name, about in found.items():
        sets = [other["change"] for other in found.values() if other["of"] == name]
        if sets:
            about["random"] = {"sets": len(sets)} | {
                metric: beyond(about["change"][metric]["rate"], [one[metric]["rate"] for one in sets])
                for metric in METRICS
            }
    return found


def beyond(change: float | None, sets: Sequence[float | None]) -> dict[str, Any] | None:
    """Where a change lies among those of random sets; None if one is not known."""
    known = np.array([one for one in sets if one is not None])
    if change is None or not len(known):
        return None
    low, high = (float(bound) for bound in np.percentile(known, [2.5, 97.5]))
    share = float((known < change).mean() + (known == change).mean() / 2)
    return {
        "changes": known.tolist(), "mean": float(known.mean()), "bounds": [low, high], "percentile": 100 * share,
        "beyond": not low <= change <= high,
    }  # fmt: skip


def _rates(
    rows: Sequence[dict[str, Any]], before: str, after: str, seed: int, weights: tuple[float, float] = (-1.0, 1.0)
) -> dict[str, Rated]:
    """A weighted sum of each metric under two arms, with its interval over the seeds that both finished."""
    rates = {}
    for metric, about in METRICS.items():
        pairs = paired(rows, before, after, metric)
        kept = [([pair[i] for pair in pairs], [1.0] * len(pairs)) for i in (0, 1) if weights[i]]
        given = [weight for weight in weights if weight]
        rates[metric] = ratio_contrast(kept, given, seed=seed, bounded=about.share).as_dict()
    return rates
