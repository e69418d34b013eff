"""Episodes of the expert, for behavior cloning and for grounding: pictures, sentence, actions, where everything was.

With noise the hand is jogged at every step, and what is recorded is the expert's answer to where it then is (Laskey et
al. 2017, DART): a policy that has only seen perfect paths does not know how to return to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmsteer.errors import InputError
from vlmsteer_robotics.env import TabletopEnv, make_env
from vlmsteer_robotics.experts import expert_action
from vlmsteer_robotics.layouts import Layout
from vlmsteer_robotics.tasks import Task


@dataclass(frozen=True)
class Episode:
    """One episode of t steps with n blocks.

    Attributes:
        seed: what drew it.
        instruction: what the robot was told.
        speed: `slow`, `normal` or `fast`; height: `low`, `normal` or `high`.
        layout: the scene, with the colors of the blocks and which one is meant.
        images: (t, side, side, 3) uint8, before each action; empty (0, side, side, 3) if not asked for.
        states: (t, 13) the observation's state before each action.
        actions: (t, 7) the expert's.
        end_effector: (t + 1, 3) meters, before each action and at the end.
        blocks: (t + 1, n, 3) meters.
        success: whether the task was done.
    """

    seed: int
    instruction: str
    speed: str
    height: str
    layout: Layout
    images: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    end_effector: np.ndarray
    blocks: np.ndarray
    success: bool


def demonstrations(
    task: str | Task, seeds: Iterable[int], *, noise: float = 0.0, images: bool = True, **options: Any
) -> Iterator[Episode]:
    """The expert's episodes, one a seed; speed, height and wording are drawn unless `options` fixes them.

    Args:
        task: what is to be done; its name or itself.
        seeds: of the episodes.
        noise: standard deviation of what is added to dx, dy, dz when they are carried out, meters; 0.01 is a quarter
            of a normal step.
        images: False leaves them out, which is three times as fast.
        options: of the environment: `split`, `distractors`, `speed`, `height`, `phrase`, `side`.

    Raises:
        InputError: the task or an option is unknown, or the noise is negative.
    """
    if not 0 <= noise <= 0.03:
        raise InputError(f"Noise of {noise} m was given; 0 to 0.03 is possible.")
    drawn = {"speed": None, "height": None, "phrase": None}
    env = make_env(task, **{**drawn, **options}, pictures=images)
    for seed in seeds:
        yield record(env, seed, lambda env: expert_action(env.state()), noise=noise)


def record(
    env: TabletopEnv,
    seed: int,
    choose: Callable[[TabletopEnv], np.ndarray],
    options: dict[str, Any] | None = None,
    noise: float = 0.0,
) -> Episode:
    """The episode of a seed in which `choose` says what is done at each moment, until it is over.

    Args:
        options: of the environment's reset.
        noise: as in `demonstrations`.
    """
    rng = np.random.default_rng([2, seed])
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    observation, info = env.reset(seed=seed, options=options)
    pictures, states, actions = [], [], []
    hands, blocks = [info["end_effector"]], [info["blocks"]]
    over = False
    while not over:
        action = choose(env)
        pictures.append(observation["image"])
        states.append(observation["state"])
        actions.append(action)
        jog = np.concatenate([rng.normal(0, noise, 3), np.zeros(4)])
        observation, _, terminated, truncated, info = env.step(np.clip(action + jog, low, high))
        hands.append(info["end_effector"])
        blocks.append(info["blocks"])
        over = terminated or truncated
    side = env.camera.side
    return Episode(
        seed=seed,
        instruction=env.instruction,
        speed=env.manner_now["speed"],
        height=env.manner_now["height"],
        layout=env.layout,
        images=np.stack(pictures) if env.pictures else np.zeros((0, side, side, 3), np.uint8),
        states=np.stack(states),
        actions=np.stack(actions),
        end_effector=np.stack(hands),
        blocks=np.stack(blocks),
        success=info["success"],
    )
