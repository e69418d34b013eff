"""A scripted expert for every task, a function of the present moment alone, so that one picture can teach it.

It goes up or down to the height that was said while it goes across, at the speed that was said, and comes down when it
is over its goal. A push begins beside the block with closed fingers; a pick lets go over the tray.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmsteer_robotics.goals import OUTWARD, State
from vlmsteer_robotics.scene import HALF, TRAY
from vlmsteer_robotics.tasks import HEIGHTS, SPEEDS

STEEP = 0.75  # how much of a step may go up or down while there is way to go across
ABOVE = 0.065  # where reaching ends
LOW = 0.02  # where the fingers close and push
LET_GO = 0.06
BESIDE = HALF + 0.045  # from a block's middle to the closed fingers that will push it


def expert_action(state: State) -> np.ndarray:
    """What the expert does now: (7,) as the environment takes it."""
    return {"reach": _reach, "push": _push, "pick": _pick}[state.verb](state)


def _reach(state: State) -> np.ndarray:
    goal = state.blocks[state.target, :2]
    if np.linalg.norm(goal - state.tool[:2]) < 0.015:
        return _move(_straight(state, [*goal, ABOVE]), 1)
    return _move(_across(state, goal), 1)


def _push(state: State) -> np.ndarray:
    block, way = state.blocks[state.target], OUTWARD[state.toward]
    aside, behind = state.tool[0] - block[0], way * (block[1] - state.tool[1])
    down = state.tool[2] < LOW + 0.02
    if down and abs(aside) < 0.02 and behind > HALF:
        return _move(_straight(state, [block[0], state.tool[1] + 0.1 * way, LOW]), 0)
    start = np.array([block[0], block[1] - way * BESIDE])
    if np.linalg.norm(start - state.tool[:2]) < 0.015:
        return _move(_straight(state, [*start, LOW]), 0)
    return _move(_across(state, start), 0)


def _pick(state: State) -> np.ndarray:
    goal = state.blocks[state.target, :2]
    if state.held == state.target:
        if np.linalg.norm(TRAY - state.tool[:2]) > 0.025:
            return _move(_across(state, np.array(TRAY)), 0)
        return _move(_straight(state, [*TRAY, 0.035]), 0) if state.tool[2] > LET_GO else _move(np.zeros(3), 1)
    if np.linalg.norm(goal - state.tool[:2]) > 0.012:
        return _move(_across(state, goal), 1)
    if state.tool[2] > LOW + 0.008:
        return _move(_straight(state, [*goal, LOW]), 1)
    return _move(np.zeros(3), 0)


def _move(way: np.ndarray, fingers: float) -> np.ndarray:
    return np.array([*way, 0, 0, 0, fingers])


def _straight(state: State, goal: Any) -> np.ndarray:
    """A step (3,) right to a point, no longer than the speed allows."""
    way = np.asarray(goal) - state.tool
    return way * min(1.0, SPEEDS[state.speed] / max(float(np.linalg.norm(way)), 1e-9))


def _across(state: State, goal: np.ndarray) -> np.ndarray:
    """A step (3,) toward a place (x, y) on the table, rising or sinking to the height that was said."""
    length = SPEEDS[state.speed]
    rise = float(np.clip(HEIGHTS[state.height] - state.tool[2], -STEEP * length, STEEP * length))
    way = goal - state.tool[:2]
    across = way * min(1.0, np.sqrt(length**2 - rise**2) / max(float(np.linalg.norm(way)), 1e-9))
    return np.array([*across, rise])
