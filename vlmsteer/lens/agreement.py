"""How near estimates come to exact patching, and how large an effect may be that they miss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from vlmsteer.errors import InputError
from vlmsteer.lens.patch_map import PatchMap
from vlmsteer.lens.patch_plan import Plan
from vlmsteer.lens.patch_recipes import ROWS, patched_together


def agreement(exact: PatchMap, estimate: PatchMap, top: int = 10) -> dict[str, Any]:
    """Correlations of the estimated with the exact effects over all sites, and how many of the largest are found.

    Of estimates without a sign, magnitudes are compared. A correlation is None where all effects are equal.

    Args:
        top: how many of the largest effects are looked for among as many of the largest estimates.

    Raises:
        InputError: if the maps are not of the same sites.
    """
    if exact.effects.shape != estimate.effects.shape or exact.layers != estimate.layers:
        raise InputError("The two maps are not of the same sites.")
    true, found = exact.effects.ravel(), estimate.effects.ravel()
    if not estimate.signed:
        true = np.abs(true)
    top = min(top, true.size)
    best, named = (set(np.argsort(-np.abs(values), kind="stable")[:top].tolist()) for values in (true, found))
    varied = bool(np.ptp(true)) and bool(np.ptp(found))
    return {
        "method": estimate.method,
        "sites": int(true.size),
        "pearson": float(np.corrcoef(true, found)[0, 1]) if varied else None,
        "spearman": float(np.corrcoef(stats.rankdata(true), stats.rankdata(found))[0, 1]) if varied else None,
        "recall": len(best & named) / top,
        "top": top,
    }


def bound_on_misses(
    planned: Plan, known: Sequence[tuple[int, int]], samples: int = 64, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """An upper bound on the effect of any site that was not verified, from patching random halves of them at once.

    AtP*'s authors sample random subsets too; the bound is simpler than theirs. If every unverified site is in a subset
    with probability 1/2, the variance of the subsets' effects is at least a quarter of the square of any one site's
    effect, averaged over what else is patched. The variance's upper limit takes the effects as normal.

    Args:
        known: (site, group) numbers that were verified by exact patching.
        samples: how many subsets are patched, each in one whole forward.

    Raises:
        InputError: if single units are patched, or nothing is left to bound.
    """
    if planned.units is not None or samples < 2:
        raise InputError("Misses are bounded for whole states, from at least two samples.")
    kept = set(known)
    rest = [(i, j) for i in range(planned.shape[0]) for j in range(planned.shape[1]) if (i, j) not in kept]
    if not rest:
        raise InputError("Every site was verified, so nothing can be missed.")
    rng, run, effects = np.random.default_rng(seed), planned.contrast.recipient, []
    for first in range(0, samples, ROWS):
        recipes = []
        for _ in range(min(ROWS, samples - first)):
            chosen = [cell for cell, taken in zip(rest, rng.random(len(rest)) < 0.5, strict=True) if taken]
            recipes.append(patched_together(planned, chosen) if chosen else None)
        logits = planned.session.run([run.image] * len(recipes), [run.question] * len(recipes), recipes=recipes)
        effects.append(planned.metric(logits[:, -1]))
    deviation = float(torch.cat(effects).double().std())
    limit = deviation * np.sqrt((samples - 1) / stats.chi2.ppf(1 - confidence, samples - 1))
    return {
        "bound": 2 * limit, "confidence": confidence, "samples": samples, "unverified": len(rest),
        "deviation": deviation,
    }  # fmt: skip
