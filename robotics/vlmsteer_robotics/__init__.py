"""A robot on a table in simulation, told in words what to do: environment, experts, demonstrations, pictures, video.

    import vlmsteer_robotics as robotics

    env = robotics.make_env("reach-red", seed=0)
    observation, info = env.reset()
    info["instruction"]  # 'reach the red block'
    observation, reward, terminated, truncated, info = env.step(robotics.expert_action(env.state()))

gymnasium knows it as `vlmsteer/Reach-v0`, `vlmsteer/Push-v0` and `vlmsteer/PickPlace-v0` once this package is imported.
"""

from __future__ import annotations

from vlmsteer.errors import InputError

try:
    import gymnasium
    import mujoco  # noqa: F401
except ImportError as missing:
    raise InputError(f"The robot needs {missing.name}: pip install 'vlmsteer[robotics]'.") from missing

from vlmsteer_robotics.demonstrations import Episode, demonstrations
from vlmsteer_robotics.env import TabletopEnv, make_env
from vlmsteer_robotics.experts import expert_action
from vlmsteer_robotics.layouts import SPLITS, Layout, cells, color_pairs
from vlmsteer_robotics.tasks import HEIGHTS, SPEEDS, TASKS, Task, instruction, task

ENVIRONMENTS = {"vlmsteer/Reach-v0": "reach", "vlmsteer/Push-v0": "push", "vlmsteer/PickPlace-v0": "pick"}
for _name, _verb in ENVIRONMENTS.items():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point="vlmsteer_robotics.env:make_env", kwargs={"task": _verb})

__all__ = [
    "ENVIRONMENTS", "HEIGHTS", "SPEEDS", "SPLITS", "TASKS", "Episode", "Layout", "TabletopEnv", "Task", "cells",
    "color_pairs", "demonstrations", "expert_action", "instruction", "make_env", "task",
]  # fmt: skip
