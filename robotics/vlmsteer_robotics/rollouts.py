"""Episodes of a policy, arm by arm over the same seeds, many at a time: all robots act by one forward of the policy.

What has happened is kept in one file that only grows, a row an episode, known by everything it depends on; so a run
that was stopped, in whatever way, goes on where it was, and no episode is run twice. A row holds its actions, so an
episode can be played again, for a video or a data set, without the policy.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmsteer.bench.ledger import Ledger, key, latest, rows_in
from vlmsteer.errors import InputError
from vlmsteer_robotics.arms import Arm
from vlmsteer_robotics.camera import SIDE
from vlmsteer_robotics.controller import Controller
from vlmsteer_robotics.demonstrations import Episode, record
from vlmsteer_robotics.env import TabletopEnv, make_env
from vlmsteer_robotics.metrics import measure
from vlmsteer_robotics.policy import Choice, Moment, Policy

if TYPE_CHECKING:
    from vlmsteer.recipe import Recipe

VERSION = 1  # counted up whenever the same arm and seed would give another episode
TOGETHER = 16  # robots that act by one forward


@dataclass(frozen=True)
class Setting:
    """What the robot does where: a task's name, the split that scenes are drawn from, blocks beside the one meant."""

    task: str
    split: str = "test"
    distractors: int = 2

    def env(self, side: int = SIDE, pictures: bool = True) -> TabletopEnv:
        """An environment for it."""
        return make_env(self.task, split=self.split, distractors=self.distractors, side=side, pictures=pictures)


def run(
    policy: Policy,
    setting: Setting,
    seeds: Sequence[int],
    arms: Sequence[Arm],
    path: Path,
    together: int = TOGETHER,
    progress: Callable[[int, int, str], None] = lambda done, of, arm: None,
) -> list[dict[str, Any]]:
    """Every seed under every arm: rows in the order of arms, then seeds.

    A row with an `error` is of an episode that broke off, because the policy's answer was not a number; it has no
    metrics.

    Args:
        path: the file of rows; those that are there already are not run again.
        together: the most robots that act at once.
        progress: told after each episode how many of how many are done, and of which arm.

    Raises:
        InputError: if a recipe cannot act, or the file cannot be written.
    """
    if together < 1 or not len(seeds):
        raise InputError(f"At least one episode and one robot at a time are needed, not {len(seeds)} and {together}.")
    keys = {(arm.name, seed): _key(policy, setting, arm, seed) for arm in arms for seed in seeds}
    with Ledger(path) as ledger:
        done = latest(rows_in(path))
        left = [(arm, seed) for arm in arms for seed in seeds if keys[arm.name, seed] not in done]
        finished = len(keys) - len(left)
        for row in _rows(policy, setting, left, together, keys):
            ledger.append([row])
            done[row["key"]] = row
            finished += 1
            progress(finished, len(keys), row["arm"])
    return [{**done[found], "arm": name, "seed": seed} for (name, seed), found in keys.items()]


def replay(setting: Setting, row: dict[str, Any], side: int = SIDE, images: bool = True) -> Episode:
    """The episode of a row, played again from its actions; as it was, to the last bit.

    Args:
        side: of the images, in pixels; need not be the policy's.
    """
    return played(setting.env(side, images), row)[0]


def played(env: TabletopEnv, row: dict[str, Any]) -> tuple[Episode, list[np.ndarray]]:
    """The episode of a row, and every joint position at each moment, for `film`.

    Raises:
        InputError: if the episode broke off.
    """
    if row["error"] is not None:
        raise InputError(f"The episode of seed {row['seed']} broke off ({row['error']}), so it cannot be played again.")
    actions, positions = np.array(row["actions"]), []

    def choose(env: TabletopEnv) -> np.ndarray:
        positions.append(env.positions())
        return actions[env.steps]

    episode = record(env, row["seed"], choose, row["manner"])
    return episode, [*positions, env.positions()]


def _key(policy: Policy, setting: Setting, arm: Arm, seed: int) -> str:
    return key(VERSION, policy.spec, asdict(setting), arm.spec(), seed)


def _rows(
    policy: Policy,
    setting: Setting,
    left: Sequence[tuple[Arm, int]],
    together: int,
    keys: dict[tuple[str, int], str],
) -> Iterator[dict[str, Any]]:
    """Rows of episodes, each as soon as it is over; when one is, the next one begins."""
    waiting, running = deque(left), []
    free = [setting.env(policy.side) for _ in range(min(together, len(left)))]
    while running or waiting:
        while free and waiting:
            running.append(_Running(free.pop(), *waiting.popleft()))
        choices = policy([one.moment for one in running], [one.recipe for one in running])
        for one, choice in zip(running, choices, strict=True):
            one.step(choice)
        for one in [one for one in running if one.over]:
            running.remove(one)
            free.append(one.env)
            yield {"key": keys[one.arm.name, one.seed], **one.row(setting)}


class _Running:
    """One episode under way."""

    def __init__(self, env: TabletopEnv, arm: Arm, seed: int) -> None:
        self.env, self.arm, self.seed = env, arm, seed
        self.observation, self.info = env.reset(seed=seed, options=dict(arm.manner))
        self.controller = None if arm.hold is None else Controller(arm.hold)
        self.target, self.hand = self.info["blocks"][self.info["target"]], [self.info["end_effector"]]
        self.actions: list[list[float]] = []
        self.strengths: list[float] = []
        self.other_tokens = self.clipped = self.unreachable = 0
        self.error: str | None = None
        self.over = False

    @property
    def moment(self) -> Moment:
        return Moment(self.observation["image"], self.info["instruction"], self.env.state())

    @property
    def recipe(self) -> Recipe | None:
        """What acts now."""
        if self.controller is None or self.arm.recipe is None:
            return self.arm.recipe
        return self.arm.recipe.scaled(self.controller.strength)

    def step(self, choice: Choice) -> None:
        action = np.asarray(choice.action, dtype=float)
        if choice.error is not None or not np.isfinite(action).all():
            self.error, self.over = choice.error or f"The policy's action is not finite: {action.tolist()}.", True
            return
        low, high = self.env.action_space.low, self.env.action_space.high  # type: ignore[attr-defined]
        within = np.clip(action, low, high)
        self.clipped += bool((np.abs(within - action) > 1e-4).any())
        self.other_tokens += choice.other_tokens
        self.observation, _, terminated, truncated, self.info = self.env.step(within)
        self.unreachable += self.info["unreachable"]
        self.actions.append(within.tolist())
        self.hand.append(self.info["end_effector"])
        self.over = terminated or truncated
        if self.controller is not None:
            self.strengths.append(round(self.controller.strength, 4))
            moved = float(np.linalg.norm(self.hand[-1] - self.hand[-2]))
            self.controller.update(moved if self.controller.hold.quantity == "displacement" else self.hand[-1][2])

    def row(self, setting: Setting) -> dict[str, Any]:
        metrics = {}
        if self.error is None:
            right = self.info["chosen"] == self.info["target"]
            metrics = measure(
                np.stack(self.hand), self.target, self.info["success"], right, self.other_tokens, self.clipped,
                self.unreachable,
            )  # fmt: skip
        return {
            "error": self.error, **asdict(setting), "seed": self.seed, "arm": self.arm.name,
            "manner": dict(self.arm.manner), "strength": self.arm.strength, "instruction": self.info["instruction"],
            "metrics": metrics, "actions": self.actions, "strengths": self.strengths,
            "hand": np.stack(self.hand).round(5).tolist(),
        }  # fmt: skip


def effect(rows: Sequence[dict[str, Any]], before: str, after: str, metric: str) -> tuple[float, float]:
    """The mean of a metric under one arm, and what another adds to it, over the seeds that both finished.

    Raises:
        InputError: if there are none.
    """
    found = paired(rows, before, after, metric)
    if not found:
        raise InputError(f"No episode was finished under both {before!r} and {after!r}, so their effect is not known.")
    first = math.fsum(one for one, _ in found) / len(found)
    return first, math.fsum(other - one for one, other in found) / len(found)


def paired(rows: Sequence[dict[str, Any]], before: str, after: str, metric: str) -> list[tuple[float, float]]:
    """A metric under two arms, for each seed that both finished."""
    values = [
        {row["seed"]: row["metrics"][metric] for row in rows if row["arm"] == arm and row["error"] is None}
        for arm in (before, after)
    ]
    return [(values[0][seed], values[1][seed]) for seed in values[0] if seed in values[1]]
