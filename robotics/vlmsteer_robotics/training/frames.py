"""Pictures of the table to learn from, each with the state that the expert needs to say what to do there.

Most are of the expert's own episodes, its hand jogged at every step; the others show the hand anywhere above the table.
The expert is a function of the moment alone, so every picture answers many instructions, not only the one that led to
it. Only training scenes are drawn. A shard is written whole or not at all, so a stopped collection goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmsteer_robotics.env import TabletopEnv, make_env
from vlmsteer_robotics.experts import expert_action
from vlmsteer_robotics.goals import State
from vlmsteer_robotics.layouts import MOST, Layout, draw
from vlmsteer_robotics.tasks import task

SHARD = 4000  # frames
SHARDS = 12
SHARE = {"anywhere": 0.27, "reach": 0.16, "push": 0.30, "pick": 0.27}  # of the frames
DISTRACTORS = (1, 2, 2, 2, 2, 3)  # drawn from for each scene
NOISE = 0.012  # of the jogs, meters
ANYWHERE = np.array([[0.31, -0.30, 0.02], [0.64, 0.30, 0.27]])  # where the hand may be, meters
CLEAR = (0.09, 0.075)  # below this height it keeps this far from blocks, meters


class Frame(NamedTuple):
    """One moment: what the camera sees, and what is the case.

    Attributes:
        image: (side, side, 3) uint8.
        colors: of the blocks.
        tool: (3,) meters; opening: 0 to 1; held: a block's number or -1.
        blocks, blocks_at_start: (n, 3) meters.
    """

    image: np.ndarray
    colors: tuple[str, ...]
    tool: np.ndarray
    opening: float
    held: int
    blocks: np.ndarray
    blocks_at_start: np.ndarray

    def state(self, verb: str, target: int, toward: str, speed: str, height: str) -> State:
        """The state that an expert would be asked in under another instruction."""
        return State(
            verb=verb, speed=speed, height=height, target=target, toward=toward, tool=self.tool,
            opening=self.opening, held=self.held, blocks=self.blocks, blocks_at_start=self.blocks_at_start,
        )  # fmt: skip


@dataclass(frozen=True)
class Frames:
    """Many frames as arrays; `frames[i]` is one."""

    images: np.ndarray
    colors: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Frame:
        colors = tuple(str(color) for color in self.colors[index] if color)
        count, row = len(colors), self.numbers[index]
        blocks = row[5:].reshape(2, MOST + 1, 3)[:, :count]
        return Frame(self.images[index], colors, row[:3], float(row[3]), int(row[4]), blocks[0], blocks[1])


def collect(folder: Path, seed: int = 0, shards: int = SHARDS, report: Callable[[str], None] = print) -> Frames:
    """Draw the shards that `folder` lacks; returns all of them.

    The images are mapped from the disk, 110 MB a shard at 96 pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for shard in range(shards):
        path = folder / f"frames-{shard:02d}"
        if not path.exists():
            _write(path, list(_shard(seed, shard)))
            report(f"frames: shard {shard + 1} of {shards}")
        parts.append([np.load(path / f"{name}.npy", mmap_mode="r") for name in ("images", "colors", "numbers")])
    images, colors, numbers = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Frames(images, colors, numbers)


def _write(path: Path, frames: list[Frame]) -> None:
    part = path.with_name(path.name + ".part")
    part.mkdir(exist_ok=True)
    np.save(part / "images.npy", np.stack([frame.image for frame in frames]))
    np.save(
        part / "colors.npy",
        np.stack([np.array([*frame.colors, *[""] * (MOST + 1 - len(frame.colors))], "U8") for frame in frames]),
    )
    np.save(part / "numbers.npy", np.stack([_numbers(frame) for frame in frames]))
    os.replace(part, path)


def _numbers(frame: Frame) -> np.ndarray:
    empty = np.full((2, MOST + 1, 3), np.nan)
    empty[0, : len(frame.blocks)], empty[1, : len(frame.blocks)] = frame.blocks, frame.blocks_at_start
    return np.concatenate([frame.tool, [frame.opening, frame.held], empty.ravel()]).astype(np.float32)


def _shard(seed: int, shard: int) -> Iterator[Frame]:
    rng = np.random.default_rng([3, seed, shard])
    for kind, share in SHARE.items():
        source = _anywhere(rng) if kind == "anywhere" else _episodes(kind, rng)
        for _ in range(round(share * SHARD)):
            yield next(source)


def _episodes(verb: str, rng: np.random.Generator) -> Iterator[Frame]:
    envs = _envs(verb, speed=None, height=None, phrase=None)
    while True:
        layout = draw(task(verb), int(rng.integers(2**31)), "train", int(rng.choice(DISTRACTORS)))
        env = envs[len(layout.places)]
        low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        observation, _ = env.reset(seed=int(rng.integers(2**31)), options={"layout": layout})
        over = False
        while not over:
            yield _frame(env, observation["image"], layout)
            action = expert_action(env.state())
            action[:3] += rng.normal(0, NOISE, 3)
            observation, _, terminated, truncated, _ = env.step(np.clip(action, low, high))
            over = terminated or truncated


def _anywhere(rng: np.random.Generator) -> Iterator[Frame]:
    envs = {verb: _envs(verb) for verb in ("reach", "push")}  # fingers open, fingers closed
    while True:
        verb = str(rng.choice(list(envs)))
        layout = draw(task("reach"), int(rng.integers(2**31)), "train", int(rng.choice(DISTRACTORS)))
        start = rng.uniform(*ANYWHERE)
        away = np.linalg.norm(np.array(layout.places) - start[:2], axis=1).min()
        if start[2] > CLEAR[0] or away > CLEAR[1]:
            layout = replace(layout, start=(float(start[0]), float(start[1]), float(start[2])))
            env = envs[verb][len(layout.places)]
            observation, _ = env.reset(seed=0, options={"layout": layout})
            yield _frame(env, observation["image"], layout)


def _envs(verb: str, **options: Any) -> dict[int, TabletopEnv]:
    """An environment for each number of blocks."""
    return {count + 1: make_env(verb, distractors=count, **options) for count in set(DISTRACTORS)}


def _frame(env: TabletopEnv, image: np.ndarray, layout: Layout) -> Frame:
    state = env.state()
    return Frame(image, layout.colors, state.tool, state.opening, state.held, state.blocks, state.blocks_at_start)
