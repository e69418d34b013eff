"""A step of a policy, plain and with ten neurons clamped at every position: at most 1.05 times is the aim.

Also how many steps a second the robot makes with physics, picture and policy, sixteen together. CPU time of one thread.

    python tests/speed/robot.py [a policy's name or folder]
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

import torch
from results import record

import vlmsteer
from vlmsteer.methods.value_vectors import Neuron, recipe
from vlmsteer_robotics.policy import Moment, Vla
from vlmsteer_robotics.rollouts import TOGETHER, Setting

REPEATS, INNER, SIZE = 9, 3, 10


def main() -> None:
    torch.set_num_threads(1)
    session = vlmsteer.load(sys.argv[1] if len(sys.argv) > 1 else "tiny-openvla")
    policy = Vla(session, restrict=True)
    last = session.layers() - 1
    clamped = recipe(session, [Neuron(number % last, 3 * number, 0.0, []) for number in range(SIZE)], value=1.0)
    envs = [Setting("reach").env(policy.side) for _ in range(TOGETHER)]
    moments = []
    for seed, env in enumerate(envs):
        observation, info = env.reset(seed=seed)
        moments.append(Moment(observation["image"], info["instruction"], env.state()))
    action = policy(moments[:1], [None])[0].action * 0

    def acting(count: int, chosen: object) -> Callable[[], object]:
        return lambda: policy(moments[:count], [chosen] * count)  # pyright: ignore[reportArgumentType]

    arms: dict[str, Callable[[], object]] = {
        "plain": acting(1, None),
        "steered": acting(1, clamped),
        f"{TOGETHER} together, plain": acting(TOGETHER, None),
        f"{TOGETHER} together, steered": acting(TOGETHER, clamped),
        "physics and picture": lambda: envs[0].step(action),
    }
    best = dict.fromkeys(arms, float("inf"))
    for _, (name, run) in itertools.product(range(REPEATS), arms.items()):
        start = time.process_time()
        for _ in range(INNER):
            run()
        best[name] = min(best[name], (time.process_time() - start) / INNER)
    for kind in ("plain", "steered"):
        best[f"{TOGETHER} together, {kind}"] /= TOGETHER
    together = best[f"{TOGETHER} together, steered"]
    print(f"together: steered / plain x{together / best[f'{TOGETHER} together, plain']:.3f}")
    record(
        "policy step", best, "plain",
        f"{session.name}, seven action tokens, {SIZE} neurons clamped at every position; a step of {TOGETHER} robots "
        f"together takes {1000 * (together + best['physics and picture']):.1f} ms each with physics and picture; CPU "
        f"time of one thread, min of {REPEATS} x {INNER} interleaved",
    )  # fmt: skip


if __name__ == "__main__":
    main()
