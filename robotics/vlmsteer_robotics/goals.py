"""What counts: which block the robot chose, when an episode is over, and whether it did what it was told.

Reach: the finger tips are over a block, closer than its half side, just above it. Push: the block has gone 8 cm to the
side and not much elsewhere. Pick: it lies in the tray, let go of. The first block reached or moved is the chosen one;
reaching a wrong one or putting it in the tray ends the episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmsteer_robotics.layouts import PUSH
from vlmsteer_robotics.scene import HALF, TRAY, TRAY_HALF

OVER = 0.08  # a block is reached below this height of the finger tips, meters
MOVED = 0.02
ASTRAY = 0.05
OUTWARD = {"left": -1.0, "right": 1.0}  # along y


@dataclass(frozen=True)
class State:
    """One moment; lengths in meters.

    Attributes:
        verb: what is to be done, with `speed` and `height` as said.
        target: the block that is meant; to be pushed to the side `toward`.
        tool: (3,) the point between the finger tips.
        opening: of the fingers, 0 closed to 1 open.
        held: the block between the fingers, or -1.
        blocks: (n, 3) the blocks' middles; `blocks_at_start` when the episode began.
    """

    verb: str
    speed: str
    height: str
    target: int
    toward: str
    tool: np.ndarray
    opening: float
    held: int
    blocks: np.ndarray
    blocks_at_start: np.ndarray


def chosen(state: State) -> int:
    """The block that was just reached (reach) or has been moved furthest (push, pick), or -1 so far."""
    if state.verb == "reach":
        away = np.linalg.norm(state.blocks[:, :2] - state.tool[:2], axis=1)
        return int(away.argmin()) if away.min() < HALF and state.tool[2] < OVER else -1
    moved = np.linalg.norm(state.blocks - state.blocks_at_start, axis=1)
    return int(moved.argmax()) if moved.max() > MOVED else -1


def succeeded(state: State) -> bool:
    """Whether the robot has done what it was told."""
    if state.verb == "reach":
        return chosen(state) == state.target
    if state.verb == "pick":
        return in_tray(state) == state.target
    moved = state.blocks[state.target] - state.blocks_at_start[state.target]
    return bool(moved[1] * OUTWARD[state.toward] >= PUSH and abs(moved[0]) < ASTRAY)


def finished(state: State) -> bool:
    """Whether the episode is over, well or badly; a push may go on until the steps are used up."""
    if state.verb == "reach":
        return chosen(state) >= 0
    return state.verb == "pick" and in_tray(state) >= 0


def in_tray(state: State) -> int:
    """The block that lies in the tray and is not held, or -1."""
    inside = (np.abs(state.blocks[:, :2] - TRAY) < TRAY_HALF).all(axis=1) & (state.blocks[:, 2] < 2 * HALF)
    inside[state.held] &= state.held < 0
    return int(inside.argmax()) if inside.any() else -1
