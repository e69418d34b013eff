"""Where the blocks lie and which colors they have, drawn from a seed; training and test never share either.

The table is a grid of cells, and the colors make ordered pairs (target, distractor). Some cells and some pairs are held
out: in training no block lies in a held-out cell and no distractor makes a held-out pair with the target; in test the
target lies in a held-out cell and at least one distractor makes a held-out pair. So no scene of one split can be one of
the other, whatever the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmsteer.errors import InputError
from vlmsteer_robotics.scene import COLORS
from vlmsteer_robotics.tasks import SIDES, Task, check

SPLITS = ("train", "test")
CELL = 0.05  # meters
COLUMNS, ROWS = 4, 8  # of cells along x and along y
CORNER = (0.36, -0.20)  # where the first cell begins
APART = 0.095  # between the middles of two blocks: open fingers fit
ASIDE = 0.06  # how much further out the block on a side lies than any other
PUSH = 0.08  # how far a block is to be pushed
START = np.array([0.45, 0.0, 0.14])
START_SPREAD = np.array([0.05, 0.08, 0.02])
MOST = 4  # distractors
TRIES = 20000


@dataclass(frozen=True)
class Layout:
    """One scene and what is asked of it.

    Attributes:
        colors: the color of each block.
        places: (x, y) of each block's middle, meters.
        target: which block is meant.
        color: its color if the instruction names it.
        side: its side if the instruction names it.
        toward: the side it is to be pushed to.
        start: where the gripper begins (x, y, z), meters.
    """

    colors: tuple[str, ...]
    places: tuple[tuple[float, float], ...]
    target: int
    color: str | None
    side: str | None
    toward: str
    start: tuple[float, float, float]


def cells(split: str) -> list[tuple[int, int]]:
    """The cells (column, row) that a target of this split may lie in."""
    check("split", split, SPLITS)
    grid = [(column, row) for column in range(COLUMNS) for row in range(ROWS)]
    return [(column, row) for column, row in grid if ((2 * column + row) % 5 == 0) == (split == "test")]


def color_pairs(split: str) -> list[tuple[str, str]]:
    """The ordered pairs (target, distractor) of different colors that belong to this split."""
    check("split", split, SPLITS)
    names = list(COLORS)
    pairs = [(one, other) for one in names for other in names if one != other]
    held_out = {(name, names[(number + 2) % len(names)]) for number, name in enumerate(names)}
    return [pair for pair in pairs if (pair in held_out) == (split == "test")]


def cell(place: tuple[float, float]) -> tuple[int, int]:
    """The cell that a place on the table lies in."""
    return int((place[0] - CORNER[0]) // CELL), int((place[1] - CORNER[1]) // CELL)


def draw(task: Task, seed: int, split: str = "train", distractors: int = 2) -> Layout:
    """The scene of a seed: the same one every time, another one in the other split.

    Args:
        task: what is asked; what it leaves open is drawn.
        seed: any number from 0.
        split: `train` or `test`.
        distractors: blocks beside the one meant, 0 to 4; in test at least 1.

    Raises:
        InputError: a value is out of range.
    """
    check("split", split, SPLITS)
    check("number of distractors", distractors, range(int(split == "test"), MOST + 1))
    rng = np.random.default_rng([SPLITS.index(split), seed])
    by_color, by_side = bool(task.color), bool(task.side)
    if not by_color and not by_side:
        by_color, by_side = ((True, False), (False, True), (True, True))[rng.integers(3)]
    color = task.color or str(rng.choice(list(COLORS)))
    side = task.side or str(rng.choice(SIDES))
    toward = str(rng.choice(SIDES))
    others = _other_colors(rng, color, split, distractors, twin=by_color and by_side)
    places = _places(rng, task.verb, split, distractors + 1, side if by_side else None, toward)
    order = rng.permutation(distractors + 1)  # the order of bodies must not tell which is meant
    colors = [color, *others]
    start = START + rng.uniform(-1, 1, 3) * START_SPREAD
    return Layout(
        colors=tuple(colors[number] for number in order),
        places=tuple(places[number] for number in order),
        target=int(np.flatnonzero(order == 0)[0]),
        color=color if by_color else None,
        side=side if by_side else None,
        toward=toward,
        start=(float(start[0]), float(start[1]), float(start[2])),
    )


def _other_colors(rng: np.random.Generator, color: str, split: str, count: int, twin: bool) -> list[str]:
    """Colors of the distractors; a twin has the target's own, so that only its side tells the two apart."""
    training = [other for one, other in color_pairs("train") if one == color]
    held_out = [other for one, other in color_pairs("test") if one == color]
    first = [str(rng.choice(held_out))] if split == "test" else []
    twins = [color] if twin and count > len(first) else []
    left = [other for other in training + (held_out if split == "test" else []) if other not in first]
    rest = rng.permutation(left)[: max(0, count - len(first) - len(twins))]
    return [*first, *twins, *map(str, rest)]


def _places(
    rng: np.random.Generator, verb: str, split: str, count: int, side: str | None, toward: str
) -> list[tuple[float, float]]:
    """Places of the target and the distractors that allow what is asked; drawn anew until they do."""
    own = np.array(cells(split))
    anywhere = own if split == "train" else np.array(cells("train") + cells("test"))
    for _ in range(TRIES):
        chosen = np.stack([rng.choice(own), *(rng.choice(anywhere) for _ in range(count - 1))])
        spots = np.array(CORNER) + (chosen + rng.uniform(0.1, 0.9, (count, 2))) * CELL
        if _allowed(spots, verb, side, toward):
            return [(float(x), float(y)) for x, y in spots]
    raise RuntimeError(f"no scene for {verb}, {split}, {count} blocks, {side}, {toward}")


def _allowed(spots: np.ndarray, verb: str, side: str | None, toward: str) -> bool:
    target, others = spots[0], spots[1:]
    gaps = np.linalg.norm(spots[:, None] - spots[None], axis=-1) + np.eye(len(spots))
    if gaps.min() < APART:
        return False
    outward = {"left": -1.0, "right": 1.0}
    if side and (outward[side] * (target[1] - others[:, 1]) < ASIDE).any():
        return False
    if verb != "push":
        return True
    # The gripper comes down on one side of the block, and the block goes a hand's width beyond the mark on the other.
    along = outward[toward] * (others[:, 1] - target[1])
    in_the_way = (np.abs(others[:, 0] - target[0]) < 0.085) & (along > -0.15) & (along < PUSH + 0.12)
    return abs(target[1] + outward[toward] * PUSH) < 0.25 and not in_the_way.any()


def checked(layout: Layout) -> Layout:
    """The layout itself, if the robot can reach every block of it.

    Raises:
        InputError: a block lies out of the robot's reach or in another one, or the target is no block.
    """
    places = np.array(layout.places, dtype=float)
    if places.shape != (len(layout.colors), 2) or not 1 <= len(places) <= MOST + 1:
        raise InputError(
            f"A layout has 1 to {MOST + 1} blocks, each with a color and a place (x, y); "
            f"{len(layout.colors)} colors and places of shape {places.shape} were given."
        )
    for color in layout.colors:
        check("color", color, COLORS)
    for x, y in places:
        if not (0.33 <= x <= 0.59 and -0.25 <= y <= 0.25):
            raise InputError(
                f"A block at ({x:.2f}, {y:.2f}) m is out of the robot's reach; x is 0.33 to 0.59, y is -0.25 to 0.25."
            )
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(places))
    if gaps.min() < 0.075:
        raise InputError(f"Two blocks are {gaps.min():.3f} m apart; they need 0.075 m from middle to middle.")
    if not 0 <= layout.target < len(places):
        raise InputError(f"Block {layout.target} is to be the target, but there are {len(places)} blocks.")
    return layout
