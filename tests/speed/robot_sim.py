"""A step of the robot: physics, then a picture by rays at 96 pixels; together under 8 ms is the aim.

The hand goes back and forth over the table, so that inverse kinematics and contacts take part. CPU time of one thread.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import gymnasium
import numpy as np
from results import record

import vlmsteer_robotics as robotics

STEPS, REPEATS, TOGETHER = 20, 7, 4


def main() -> None:
    bare, seeing = robotics.make_env("pick", pictures=False), robotics.make_env("pick")
    data = seeing.robot.data
    many = gymnasium.make_vec("vlmsteer/PickPlace-v0", num_envs=TOGETHER, vectorization_mode="sync")
    arms = {
        "physics": stepping(bare),
        "picture": lambda: [seeing.camera.picture(data) for _ in range(STEPS)],
        "physics and picture": stepping(seeing),
        f"{TOGETHER} together, each": vectorized(many),
    }
    best = dict.fromkeys(arms, float("inf"))
    for _, (name, run) in itertools.product(range(REPEATS), arms.items()):
        seeing.reset(seed=0)
        start = time.process_time()
        run()
        best[name] = min(best[name], (time.process_time() - start) / STEPS)
    best[f"{TOGETHER} together, each"] /= TOGETHER
    total = 1000 * best["physics and picture"]
    record(
        "robot step", best, "physics and picture",
        f"pick, 3 blocks, 96 pixels, rays; a fifth of a second of physics; {total:.1f} ms of CPU on one thread, "
        f"min of {REPEATS} interleaved",
    )  # fmt: skip


def stepping(env: robotics.TabletopEnv) -> Callable[[], None]:
    def run() -> None:
        env.reset(seed=0)
        for number in range(STEPS):
            env.step(action(number))

    return run


def vectorized(env: gymnasium.vector.VectorEnv) -> Callable[[], None]:
    def run() -> None:
        env.reset(seed=0)
        for number in range(STEPS):
            env.step(np.tile(action(number).astype(np.float32), (TOGETHER, 1)))

    return run


def action(number: int) -> np.ndarray:
    return np.array([0.0, 0.03 if number % 8 < 4 else -0.03, -0.005, 0, 0, 0, number % 2])


if __name__ == "__main__":
    main()
