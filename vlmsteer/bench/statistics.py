"""A number without its interval is not a result.

Items that share an image or an object are not independent, so whole clusters are resampled, never single items. A
percentile bootstrap collapses to zero width when every cluster agrees (all right, all wrong, nothing changed): there
the Wilson bound takes over, so that ten out of ten never reads as certainty.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlmsteer.errors import InputError

Z = 1.959963984540054  # 97.5% quantile of the normal distribution
DRAWN_AT_ONCE = 2_000_000  # resampled cluster indices held in memory, 16 MB


@dataclass(frozen=True)
class Rate:
    """A mean over n items with its 95% interval; nan where it is undefined."""

    rate: float
    n: int
    interval: tuple[float, float]

    def as_dict(self) -> dict[str, float | int | None | list[float | None]]:
        """The same as JSON types: nan becomes None, the interval a list of two."""
        low, high = (None if math.isnan(bound) else bound for bound in self.interval)
        return {"rate": None if math.isnan(self.rate) else self.rate, "n": self.n, "interval": [low, high]}


def rate(
    outcomes: Sequence[bool | float], clusters: Sequence[Hashable] | None = None, draws: int = 2000, seed: int = 0
) -> Rate:
    """The mean of the outcomes with a 95% percentile interval from a cluster bootstrap.

    Every draw resamples K of the K clusters with replacement; its rate is the sum of their outcomes over their number
    of items. When all clusters have the same mean (every outcome is equal, or there are fewer than 2 clusters) no
    resample can differ, and the interval is the Wilson interval instead: for all-0 or all-1 outcomes exactly Wilson's
    (1927) with n = K, for any other common value c it lets Wilson's upper share of clusters, z^2 / (K + z^2), lie at 0
    or at 1. In that case outcomes outside 0..1 have no interval (nan).

    Args:
        outcomes: n values, right/wrong or scores.
        clusters: n labels of what the items share (image, object); None takes every item as its own cluster.
        draws: number of resamples.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        rate, n and interval; (nan, 0, (nan, nan)) when there are no outcomes.

    Raises:
        InputError: an outcome is not a finite number, or the lengths differ.
    """
    return _bootstrap(_finite(outcomes, "outcomes"), clusters, draws, seed, bounds=(0.0, 1.0))


def paired_difference(
    before: Sequence[bool | float],
    after: Sequence[bool | float],
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Rate:
    """The mean of after - before over the same n items, with the interval of `rate`.

    When all clusters agree, the bounds of the Wilson fallback are -1 and 1 instead of 0 and 1.

    Args:
        before: n values of the baseline.
        after: n values of the same items, in the same order.
        clusters: n labels of what the items share, or None.
        draws: number of resamples.
        seed: of the resampling.

    Raises:
        InputError: a value is not a finite number, or the lengths differ.
    """
    first, second = _finite(before, "before"), _finite(after, "after")
    if len(first) != len(second):
        raise InputError(f"A paired difference needs the same items twice: {len(first)} before, {len(second)} after.")
    return _bootstrap(second - first, clusters, draws, seed, bounds=(-1.0, 1.0))


def ratio_contrast(
    ratios: Sequence[tuple[Sequence[float], Sequence[float]]],
    weights: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
    bounded: bool = True,
) -> Rate:
    """A weighted sum of ratios over the same n items, with a 95% percentile interval from a paired cluster bootstrap.

    A ratio is the sum of its numerators over the sum of its denominators (invented mentions over mentions); with all
    denominators 1 it is a mean. Each draw resamples clusters once for all ratios. Where no draw differs, the bounds are
    those of Wilson's fallback (`rate`), between the sums of the negative and of the positive weights.

    Args:
        ratios: (n numerators, n denominators) of each ratio.
        weights: one for each ratio: (1,) for its value, (-1, 1) for a difference.
        clusters: n labels of what the items share, or None.
        draws: number of resamples.
        seed: of the resampling.
        bounded: whether every ratio lies in 0..1; if not, there is no fallback (nan).

    Returns:
        The contrast, n and its interval; nan if a denominator's sum is 0. Draws in which one is 0 are left out.

    Raises:
        InputError: a value is not a finite number, or the lengths differ.
    """
    parts = [(_finite(above, "numerators"), _finite(below, "denominators")) for above, below in ratios]
    if len(parts) != len(weights) or not parts:
        raise InputError(f"Every ratio needs one weight: {len(parts)} ratios, {len(weights)} weights.")
    n = len(parts[0][0])
    if any(len(values) != n for pair in parts for values in pair):
        raise InputError("Paired ratios need the same items: as many numerators and denominators in each of them.")
    check_bootstrap(n, clusters, draws)
    totals = [tuple(_cluster_totals(values, clusters)[0] for values in pair) for pair in parts]
    if n == 0 or any(below.sum() == 0 for _, below in totals):
        return Rate(math.nan, n, (math.nan, math.nan))
    value = float(sum(w * above.sum() / below.sum() for w, (above, below) in zip(weights, totals, strict=True)))
    drawn = np.zeros(draws)
    start = 0
    for chosen in resamples(len(totals[0][0]), draws, seed):
        rows = slice(start, start + len(chosen))
        for weight, (above, below) in zip(weights, totals, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn[rows] += weight * above[chosen].sum(axis=1) / below[chosen].sum(axis=1)
        start += len(chosen)
    drawn = drawn[np.isfinite(drawn)]
    if np.ptp(drawn) < 1e-12:
        low, high = sum(w for w in weights if w < 0), sum(w for w in weights if w > 0)
        nowhere = (math.nan, math.nan)
        return Rate(value, n, wilson_fallback(value, len(totals[0][0]), (low, high)) if bounded else nowhere)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Rate(value, n, (float(low), float(high)))


def _finite(values: Sequence[bool | float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise InputError(f"'{name}' must be a flat list of finite numbers; leave out items without a result.")
    return array


def _bootstrap(
    values: np.ndarray, clusters: Sequence[Hashable] | None, draws: int, seed: int, bounds: tuple[float, float]
) -> Rate:
    n = len(values)
    check_bootstrap(n, clusters, draws)
    if n == 0:
        return Rate(math.nan, 0, (math.nan, math.nan))
    sums, sizes = _cluster_totals(values, clusters)
    mean = float(values.mean())
    if np.ptp(sums / sizes) < 1e-12:
        return Rate(mean, n, wilson_fallback(mean, len(sums), bounds))

    rates = [sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in resamples(len(sums), draws, seed)]
    low, high = np.percentile(np.concatenate(rates), [2.5, 97.5])
    return Rate(mean, n, (float(low), float(high)))


def check_bootstrap(n: int, clusters: Sequence[Hashable] | None, draws: int) -> None:
    if clusters is not None and len(clusters) != n:
        raise InputError(f"Every item needs one cluster label: {n} items, {len(clusters)} labels.")
    if draws < 1:
        raise InputError(f"A bootstrap needs at least 1 draw, not {draws}.")


def resamples(count: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Cluster indices (some draws, count), until all draws are made."""
    generator = np.random.default_rng(seed)
    step = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, draws, step):
        # Indices rather than multinomial counts: the same distribution, several times faster for many clusters.
        yield generator.integers(count, size=(min(step, draws - start), count))


def _cluster_totals(values: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    if clusters is None:
        return values, np.ones(len(values))
    numbers: dict[Hashable, int] = {}
    labels = np.fromiter((numbers.setdefault(label, len(numbers)) for label in clusters), dtype=np.intp)
    return np.bincount(labels, weights=values), np.bincount(labels).astype(np.float64)


def wilson_fallback(value: float, clusters: int, bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not low <= value <= high:
        return math.nan, math.nan
    share = Z**2 / (clusters + Z**2)
    return value - share * (value - low), value + share * (high - value)
