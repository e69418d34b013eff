"""An interval for any metric that is a function of sums: F1, CHAIR, harmonic means, not only shares.

Rows that share an image or a pair are not independent, so whole groups are resampled. The counts are summed by group
once; a draw is then a product of how often each group was drawn with these sums, and all arms of a contrast have the
same draws. Where no draw differs the Wilson bound of `statistics` takes over. (Efron and Tibshirani, An Introduction
to the Bootstrap, 1993; McNemar, Psychometrika 1947.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmsteer.bench.benchmark import Scorer, Tally
from vlmsteer.bench.statistics import Rate, Z, check_bootstrap, resamples, wilson_fallback
from vlmsteer.errors import InputError

POWER = 2.8  # 97.5 % and 80 % quantiles of the normal distribution, 1.96 + 0.84
NOWHERE = (math.nan, math.nan)


@dataclass(frozen=True)
class Estimate(Rate):
    """A metric, or a weighted sum of it over arms: its value, rows, 95 % interval, groups and standard error.

    Attributes:
        groups: groups of rows that it rests on.
        error: the standard deviation over the draws; where none differs, what the Wilson interval's width stands for.
    """

    groups: int = 0
    error: float = math.nan

    @property
    def detectable(self) -> float:
        """See `minimum_detectable`."""
        return minimum_detectable(self)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types: nan becomes None."""
        extra = {"standard_error": self.error, "minimum_detectable": self.detectable}
        named = {name: None if math.isnan(value) else value for name, value in extra.items()}
        return {**super().as_dict(), "groups": self.groups, **named}


def metric_intervals(tally: Tally, scorer: Scorer, draws: int = 2000, seed: int = 0) -> dict[str, Rate]:
    """Every metric of one arm with its 95 % percentile interval from a cluster bootstrap over the tally's groups.

    Args:
        tally: counts by row.
        scorer: whose metrics they are.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        By metric an `Estimate`. Draws in which a metric is undefined are left out. Where no draw differs and a share
        or percentage lies in its bounds, as it does in each group, the interval is Wilson's (`statistics.rate`), with
        as many observations as groups that have the metric by themselves; other values have none there (nan).

    Raises:
        InputError: if counts are not finite numbers, one for each row.
    """
    return metric_contrast([tally], scorer, [1.0], draws, seed)


def metric_contrast(
    tallies: Sequence[Tally], scorer: Scorer, weights: Sequence[float], draws: int = 2000, seed: int = 0
) -> dict[str, Rate]:
    """Weighted sums of every metric over arms, with intervals from the same resampled groups for all of them.

    Args:
        tallies: one for each arm, of the same items. A group that is missing in one is left out of all.
        scorer: whose metrics they are.
        weights: (-1, 1) for the change from the first to the second.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        By metric an `Estimate`, as in `metric_intervals`; its n is the smallest number of rows that an arm has in the
        shared groups.

    Raises:
        InputError: if the arms have different counts, or not one weight each.
    """
    if len(tallies) != len(weights) or not tallies:
        raise InputError(f"Every tally needs one weight: {len(tallies)} tallies, {len(weights)} weights.")
    names = list(tallies[0].counts)
    if any(set(tally.counts) != set(names) for tally in tallies):
        raise InputError("A contrast needs the same counts in every arm; score all of them with the same scorer.")
    shared = set(tallies[0].groups).intersection(*(tally.groups for tally in tallies))
    order = {group: number for number, group in enumerate(dict.fromkeys(tallies[0].groups)) if group in shared}
    places = {group: number for number, group in enumerate(order)}
    totals = [_group_sums(tally, names, places) for tally in tallies]  # each (groups, counts)
    n = min(sum(group in places for group in tally.groups) for tally in tallies)
    check_bootstrap(n, None, draws)

    values = [_metrics(scorer, names, total.sum(axis=0)) for total in totals]
    alone = [_metrics(scorer, names, total) for total in totals]
    drawn = [_metrics(scorer, names, sums) for sums in _draw(totals, draws, seed)]
    found: dict[str, Rate] = {}
    for metric in values[0]:
        top = 100.0 if metric in scorer.percent else 1.0
        each = [float(value[metric]) for value in values]
        own = np.concatenate([np.ravel(one[metric]) for one in alone])
        own = own[np.isfinite(own)]
        bounded = metric not in scorer.numbers and all(0 <= value <= top for value in each)
        bounded = bounded and bool(((own >= 0) & (own <= top)).all())
        bounds = sum(w for w in weights if w < 0) * top, sum(w for w in weights if w > 0) * top
        defined = np.min([np.isfinite(one[metric]).sum() for one in alone])
        value = float(np.dot(weights, each))
        made = sum(weight * one[metric] for weight, one in zip(weights, drawn, strict=True))
        found[metric] = _estimate(
            value, n, np.asarray(made), len(places), int(defined) or len(places), bounds if bounded else None
        )
    return found


def minimum_detectable(estimate: Rate) -> float:
    """The smallest difference that as many items would show with 80 % power at 5 % two-sided: 2.8 standard errors.

    Of a paired change it is the smallest paired difference; of one arm's metric it is the smallest distance from a
    known value. In the metric's own unit; nan where there is no standard error.
    """
    return POWER * estimate.error if isinstance(estimate, Estimate) else math.nan


def mcnemar(before: Sequence[bool | float], after: Sequence[bool | float]) -> tuple[int, int, float]:
    """McNemar's exact test on the same items, taken as independent (the bootstrap is what respects groups).

    Args:
        before, after: whether each item was right.

    Returns:
        How many were right and became wrong, how many were wrong and became right, and the two-sided p-value of a
        fair coin for these; 1.0 if there are none.

    Raises:
        InputError: if the lengths differ.
    """
    if len(before) != len(after):
        raise InputError(f"McNemar's test needs the same items twice: {len(before)} before, {len(after)} after.")
    lost = sum(bool(x) and not y for x, y in zip(before, after, strict=True))
    gained = sum(bool(y) and not x for x, y in zip(before, after, strict=True))
    n, ways, total = lost + gained, 1, 0
    for k in range(min(lost, gained) + 1):
        total += ways
        ways = ways * (n - k) // (k + 1)
    return lost, gained, min(1.0, 2 * total / 2**n)  # whole numbers: exact for any n


def _group_sums(tally: Tally, names: Sequence[str], places: dict[str, int]) -> np.ndarray:
    rows = np.array([places.get(group, -1) for group in tally.groups], dtype=np.intp)
    kept = rows >= 0
    sums = np.zeros((len(places), len(names)))
    for column, name in enumerate(names):
        values = np.asarray(tally.counts[name], dtype=np.float64)
        if values.shape != rows.shape or not np.isfinite(values).all():
            raise InputError(f"The count {name!r} must be a finite number for each of {len(rows)} rows.")
        sums[:, column] = np.bincount(rows[kept], weights=values[kept], minlength=len(places))
    return sums


def _metrics(scorer: Scorer, names: Sequence[str], sums: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of sums (..., counts), each of shape (...)."""
    with np.errstate(all="ignore"):
        found = scorer.metrics({name: sums[..., column] for column, name in enumerate(names)})
    return {
        name: np.broadcast_to(np.asarray(value, dtype=np.float64), sums.shape[:-1]) for name, value in found.items()
    }


def _draw(totals: Sequence[np.ndarray], draws: int, seed: int) -> list[np.ndarray]:
    """For each arm (draws, counts): the sums over the drawn groups, the same ones for all arms."""
    count = len(totals[0])
    if count == 0:
        return [np.full((draws, total.shape[1]), math.nan) for total in totals]
    side_by_side = np.concatenate(totals, axis=1)
    parts = []
    for chosen in resamples(count, draws, seed):
        offsets = count * np.arange(len(chosen))[:, None]
        times = np.bincount((chosen + offsets).ravel(), minlength=count * len(chosen)).reshape(len(chosen), count)
        parts.append(times.astype(np.float64) @ side_by_side)
    return np.split(np.concatenate(parts), len(totals), axis=1)


def _estimate(
    value: float, n: int, drawn: np.ndarray, groups: int, observed: int, bounds: tuple[float, float] | None
) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if n == 0 or not math.isfinite(value) or len(drawn) == 0:
        return Estimate(value if n and math.isfinite(value) else math.nan, n, NOWHERE, groups)
    if np.ptp(drawn) <= 1e-12 * max(1.0, abs(value)):
        low, high = wilson_fallback(value, observed, bounds) if bounds else NOWHERE
        return Estimate(value, n, (low, high), groups, (high - low) / (2 * Z))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, n, (float(low), float(high)), groups, float(drawn.std(ddof=1)))
