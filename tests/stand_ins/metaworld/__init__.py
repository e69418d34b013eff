"""What `metaworld` 3.1 looks like from outside, where it is not installed: names, arguments and traps.

A hand that is a point, a goal drawn at each reset; no physics and no drawing library.
"""

from typing import Any, NamedTuple

import numpy as np


class Task(NamedTuple):
    env_name: str
    partially_observable: bool


class SawyerReachEnvV3:
    max_path_length = 500

    def __init__(self, render_mode: str | None = None, camera_name: str | None = None, width=480, height=480) -> None:
        self.render_mode, self.camera, self.size = render_mode, camera_name, (height, width)
        self._freeze_rand_vec, self.seeded_rand_vec, self._partially_observable = True, False, True
        self._set_task_called, self.closed, self.curr_path_length = False, False, 0

    def seed(self, seed: int) -> list[int]:
        self.np_random = np.random.default_rng(seed)
        return [seed]

    def set_task(self, task: Task) -> None:
        self._set_task_called, self._partially_observable = True, task.partially_observable
        self._freeze_rand_vec, self._goal = True, np.array([0.0, 0.8, 0.2])

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """The seed is ignored, as in Meta-World."""
        self.curr_path_length, self._hand, self._open = 0, np.array([0.0, 0.6, 0.2]), 1.0
        if not self._freeze_rand_vec:
            draw = self.np_random.uniform if self.seeded_rand_vec else np.random.uniform
            self._goal = draw((-0.1, 0.8, 0.05), (0.1, 0.9, 0.3))
        return self._numbers(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._set_task_called:
            raise RuntimeError("You must call env.set_task before using env.step")
        assert len(action) == 4, f"Actions should be size 4, got {len(action)}"
        if self.curr_path_length >= self.max_path_length:
            raise ValueError("You must reset the env manually once truncate==True")
        self.curr_path_length += 1
        self._hand = self._hand + np.clip(action[:3], -1, 1) / 100
        self._open = float(np.clip(self._open - action[3] / 10, 0, 1))
        away = float(np.linalg.norm(self._hand - self._goal))
        done = self.curr_path_length == self.max_path_length
        return self._numbers(), 10 - away, False, done, {"success": float(away <= 0.05)}

    def render(self) -> np.ndarray:
        picture = np.zeros((*self.size, 3), np.uint8)
        picture[0, 0] = 255
        return picture

    def close(self) -> None:
        self.closed = True

    def _numbers(self) -> np.ndarray:
        goal = self._goal * (not self._partially_observable)
        return np.concatenate([self._hand, [self._open], np.zeros(32), goal])


ALL_V3_ENVIRONMENTS = {"reach-v3": SawyerReachEnvV3}


class MT1:
    def __init__(self, env_name: str, seed: int | None = None) -> None:
        self.train_classes = {env_name: ALL_V3_ENVIRONMENTS[env_name]}
        self.train_tasks = [Task(env_name, partially_observable=False)] * 50
