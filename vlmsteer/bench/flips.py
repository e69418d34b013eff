"""The answers behind a change: which items an arm broke and which it repaired, the clearest first.

Where a scorer says of each item whether it was right, a flip is that; elsewhere (captions) it is a change of the main
metric, computed for the item alone. What is only scored together (a pair) has no flips of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmsteer.bench.behavior import margin
from vlmsteer.bench.benchmark import Answer, Item, Scorer, Tally
from vlmsteer.bench.summary import right


@dataclass(frozen=True)
class Flip:
    """An item, both answers, and what it scored with each: more is better."""

    item: Item
    before: Answer
    after: Answer
    scores: tuple[float, float]


def worst(
    items: Sequence[Item], before: Mapping[str, Answer], after: Mapping[str, Answer], scorer: Scorer, limit: int = 12
) -> tuple[list[Flip], list[Flip]]:
    """The items that got worse and those that got better, by how much, then by how far the first token moved.

    Args:
        items: the task's.
        before, after: answers by item.
        scorer: what is right.
        limit: so many of each.
    """
    both = [item for item in items if item.id in before and item.id in after]
    pairs = [(before[item.id], after[item.id]) for item in both]
    scores = [_scores(scorer, scorer.tally(both, arm), len(both)) for arm in zip(*pairs, strict=True)] if both else []
    if len(scores) < 2 or scores[0] is None or scores[1] is None:
        return [], []
    moved = np.array([margin(two) - margin(one) for one, two in pairs])
    moved = np.abs(np.nan_to_num(moved))
    change = np.nan_to_num(scores[1] - scores[0])
    found: tuple[list[Flip], list[Flip]] = ([], [])
    for side, sign in zip(found, (-1, 1), strict=True):
        order = np.lexsort((np.arange(len(both)), -moved, -sign * change))
        for i in order[:limit]:
            if sign * change[i] > 0:
                side.append(Flip(both[i], pairs[i][0], pairs[i][1], (float(scores[0][i]), float(scores[1][i]))))
    return found


def _scores(scorer: Scorer, tally: Tally, items: int) -> np.ndarray | None:
    """A number for each item, more being better; None where rows are not items or nothing is wanted."""
    flags = right(tally, items)
    if flags is not None:
        return np.asarray(flags)
    metric = next((name for name, wanted in scorer.wanted.items() if wanted), None)
    if metric is None or len(tally.groups) != items:
        return None
    with np.errstate(all="ignore"):
        values = scorer.metrics({name: np.asarray(one, dtype=np.float64) for name, one in tally.counts.items()})
    return scorer.wanted[metric] * np.asarray(values[metric], dtype=np.float64)
