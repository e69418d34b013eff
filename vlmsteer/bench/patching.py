"""Patching over many counterfactual pairs: the mean map, with intervals from a bootstrap over objects.

The usual picture is the clean run and the counterfactual one the corrupted run, under one question about this picture.
Pairs that the model does not tell apart have nothing to trace; they are counted and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlmsteer.bench.statistics import check_bootstrap, resamples
from vlmsteer.errors import InputError
from vlmsteer.lens.patch import METHODS
from vlmsteer.lens.patch_map import PatchMap, mean, stacked
from vlmsteer.lens.patch_plan import Plan, plan
from vlmsteer.session import Session
from vlmsteer_counterfacts.dataset import Pair


@dataclass(frozen=True, eq=False)
class Patched:
    """The mean map of the pairs, and 95 % intervals of its `share`.

    Attributes:
        low, high: like the map's effects.
        used: the pairs that were patched.
        asked: how many there were.
    """

    map: PatchMap
    low: np.ndarray
    high: np.ndarray
    used: list[Pair]
    asked: int

    def as_dict(self) -> dict[str, Any]:
        """The map with its intervals, as JSON values."""
        return {
            **self.map.as_dict(), "low": self.low.tolist(), "high": self.high.tolist(), "n": len(self.used),
            "asked": self.asked, "objects": len({pair.object for pair in self.used}),
        }  # fmt: skip


def told_apart(planned: Plan) -> bool:
    """Whether either run prefers its own answer."""
    measure = replace(planned.metric, name="logit_difference")
    clean, corrupted = (
        float(measure(run.logits[None])) for run in (planned.contrast.clean, planned.contrast.corrupted)
    )
    return clean > 0 > corrupted


def patch_pairs(
    session: Session,
    pairs: Sequence[Pair],
    questions: Sequence[str],
    methods: Sequence[str] = ("exact",),
    progress: Callable[[str], None] = lambda text: None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Patched]:
    """Patch every pair by each method.

    Args:
        questions: one for each pair.
        methods: from `patch.METHODS`.
        options: point, positions, layers, units, measure and direction, as of `patch.patch`.

    Raises:
        InputError: if the model tells no pair apart, or an option cannot be used.
        SiteError: if there is no such point, layer, position or unit.
    """
    used: list[Pair] = []
    maps: dict[str, list[PatchMap]] = {method: [] for method in methods}
    for number, (pair, question) in enumerate(zip(pairs, questions, strict=True), 1):
        progress(f"Patching pair {number} of {len(pairs)}")
        runs = [(pair.image(which), question) for which in ("original", "counterfactual")]
        planned = plan(session, runs[0], runs[1], (pair.prior, pair.pixel), **options)
        if told_apart(planned):
            used.append(pair)
            for method in methods:
                maps[method].append(METHODS[method](planned))
    if not used:
        raise InputError(
            f"The model answers none of the {len(pairs)} pairs as its pictures show, so nothing is traced."
        )
    objects = [pair.object for pair in used]
    return {
        method: Patched(mean(found), *intervals(found, objects, seed), used, len(pairs))
        for method, found in maps.items()
    }


def intervals(
    maps: Sequence[PatchMap], clusters: Sequence[str], seed: int = 0, draws: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile intervals of the mean map's `share`, a ratio of means, from a bootstrap over clusters.

    NaN where there are fewer than two clusters.
    """
    check_bootstrap(len(maps), clusters, draws)
    _, effects = stacked(maps)
    shape, effects = effects.shape[1:], effects.reshape(len(maps), -1)
    spans = np.array([one.clean - one.corrupted for one in maps])
    spans = np.abs(spans) if not maps[0].signed else spans if maps[0].direction == "denoise" else -spans
    names = sorted(set(clusters))
    if len(names) < 2:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    member = np.array([[name == own for own in clusters] for name in names], dtype=float)
    tops, bottoms, shares = member @ effects, member @ spans, []
    for chosen in resamples(len(names), draws, seed):
        counts = np.stack([np.bincount(row, minlength=len(names)) for row in chosen]).astype(float)
        shares.append((counts @ tops) / (counts @ bottoms)[:, None])
    low, high = np.percentile(np.concatenate(shares), [2.5, 97.5], axis=0)
    return low.reshape(shape), high.reshape(shape)
