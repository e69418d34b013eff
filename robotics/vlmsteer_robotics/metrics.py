"""What is measured of an episode: how far and how high the hand moved, where it went, and whether that was right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlmsteer_robotics.env import FPS
from vlmsteer_robotics.policy import NUMBERS


class Metric(NamedTuple):
    """How a metric is written: its words, its unit there, what it is multiplied with for that, and digits."""

    words: str
    unit: str
    factor: float
    digits: int
    share: bool = False


METRICS = {
    "displacement": Metric("step length", "mm", 1000, 1),
    "speed": Metric("speed across the table", "cm/s", 100, 1),
    "mean_height": Metric("mean height", "cm", 100, 1),
    "max_height": Metric("greatest height", "cm", 100, 1),
    "drift": Metric("lateral drift", "cm", 100, 1),
    "success": Metric("success", "%", 100, 0, True),
    "right_block": Metric("right block", "%", 100, 0, True),
    "steps": Metric("steps", "", 1, 1),
    "other_tokens": Metric("no action token", "%", 100, 1, True),
    "clipped": Metric("clipped actions", "%", 100, 1, True),
    "unreachable": Metric("out of reach", "%", 100, 1, True),
}


def measure(
    hand: np.ndarray, target: np.ndarray, success: bool, right: bool, other_tokens: int, clipped: int, unreachable: int
) -> dict[str, float]:
    """The metrics of an episode of t steps, by the names of `METRICS`.

    `displacement` is the mean way of a step in three dimensions, meters (the paper's measure); `speed` the same across
    the table alone, meters a second; heights are of the finger tips over the table, meters; `drift` is the furthest
    that the hand came off the straight line from its start to the block that is meant, seen from above, until it was
    nearest to it, meters; the last three are shares of tokens and of steps.

    Args:
        hand: (t + 1, 3) the end effector, meters.
        target: (3,) where the block that is meant lay at the start.
        success, right: whether the task was done, and whether the chosen block was the one meant.
        other_tokens: tokens that were no action tokens.
        clipped: steps whose action was out of the robot's range.
        unreachable: steps whose target was out of reach.
    """
    steps = np.diff(hand, axis=0)
    count = len(steps)
    return {
        "displacement": float(np.linalg.norm(steps, axis=1).mean()),
        "speed": float(np.linalg.norm(steps[:, :2], axis=1).mean() * FPS),
        "mean_height": float(hand[1:, 2].mean()),
        "max_height": float(hand[:, 2].max()),
        "drift": _drift(hand[:, :2], target[:2]),
        "success": float(success),
        "right_block": float(right),
        "steps": float(count),
        "other_tokens": other_tokens / (NUMBERS * count),
        "clipped": clipped / count,
        "unreachable": unreachable / count,
    }


def _drift(path: np.ndarray, target: np.ndarray) -> float:
    way = target - path[0]
    length = float(np.linalg.norm(way))
    if length < 1e-6:
        return 0.0
    nearest = int(np.linalg.norm(path - target, axis=1).argmin())
    offsets: Sequence[np.ndarray] = path[: nearest + 1] - path[0]
    return float(np.abs(np.asarray(offsets) @ np.array([-way[1], way[0]]) / length).max())
