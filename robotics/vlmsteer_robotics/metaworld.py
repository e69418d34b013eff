"""Meta-World (Yu et al., CoRL 2019) with the face of our own table: pictures and words in, seven numbers out.

    env = metaworld.make_env("drawer-open-v3", seed=0)
    observation, info = env.reset()
    observation, reward, terminated, truncated, info = env.step(metaworld.expert_action(env))

Its hand does not turn, so of an action's seven numbers it takes four. It is the extra `metaworld`, which needs another
MuJoCo than our table and draws with a graphics library.
"""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np

from vlmsteer.errors import InputError
from vlmsteer_robotics.metaworld_words import INSTRUCTIONS
from vlmsteer_robotics.optional import Simulator
from vlmsteer_robotics.tasks import check

SIMULATOR = Simulator("Meta-World", "metaworld", "metaworld", (3, 13))
STEP = 0.01  # meters, the most that Meta-World moves along each axis in one step
SIDE = 224
CAMERA = "corner2"  # shows the whole table, upside down


class MetaWorldEnv(gymnasium.Env):
    """One task; `make_env` says what the arguments mean."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(self, name: str, seed: int | None = None, *, side: int = SIDE, pictures: bool = True) -> None:
        library = SIMULATOR.load()
        check("task of Meta-World", name, library.ALL_V3_ENVIRONMENTS)
        self.task, self.pictures, self.side, self._first_seed = name, pictures, side, seed
        plain = re.sub(r"-v\d+$", "", name)
        self.instruction = INSTRUCTIONS.get(plain, plain.replace("-", " "))
        benchmark = library.MT1(name, seed=0)
        self.inner = benchmark.train_classes[name](render_mode="rgb_array", camera_name=CAMERA, width=side, height=side)
        self.inner.set_task(benchmark.train_tasks[0])  # from now on the goal can be seen in the numbers
        self.inner._freeze_rand_vec, self.inner.seeded_rand_vec = False, True  # and is drawn anew from a seed
        self.expert = SIMULATOR.load(".policies").ENV_POLICY_MAP[name]()
        self.action_space = gymnasium.spaces.Box(
            np.array([-STEP] * 3 + [-np.pi] * 3 + [0], np.float32), np.array([STEP] * 3 + [np.pi] * 3 + [1], np.float32)
        )
        self.observation_space = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8),
                "state": gymnasium.spaces.Box(-2, 2, (4,), np.float32),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Begin the episode of a seed, which draws where everything is.

        Returns:
            The observation (`image`; `state`: hand x, y, z in meters and how far it is open, 0 to 1), and `info`.

        Raises:
            InputError: there are options, which Meta-World has none of, or no graphics library works.
        """
        if options:
            raise InputError(f"Meta-World's episodes have no options; {sorted(options)} were given.")
        seed = self._first_seed if seed is None and self._np_random is None else seed
        super().reset(seed=seed)
        self.seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.inner.seed(self.seed)
        self.numbers, _ = self.inner.reset()
        return self._observation(), self._info(False)

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """Move for an eightieth of a second.

        Args:
            action: (7,) dx, dy, dz in meters, at most 0.01; three angles, which this hand has not; fingers from 0
                (closed) to 1 (open).

        Returns:
            Observation, Meta-World's reward (0 to 10), whether it is done, whether the 500 steps are used up, info.

        Raises:
            InputError: the episode has not begun or is over, or the action is not seven numbers within range.
        """
        if not hasattr(self, "numbers"):
            raise InputError("The environment has not begun an episode; call reset first.")
        if self.inner.curr_path_length >= self.inner.max_path_length:
            raise InputError(f"The episode's {self.inner.max_path_length} steps are used up; call reset.")
        given = np.asarray(action, dtype=float)
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        if given.shape != (7,) or not ((given >= low - 1e-6) & (given <= high + 1e-6)).all():
            raise InputError(
                f"The action {given.round(4).tolist()} is not possible: seven numbers are needed, dx, dy and dz within "
                f"{STEP} m, the fingers from 0 to 1. Clip it, or un-normalize it with statistics of this robot."
            )
        self.numbers, reward, _, truncated, about = self.inner.step(_own(given))
        success = bool(about["success"])
        return self._observation(), float(reward), success, bool(truncated) and not success, self._info(success)

    def render(self) -> np.ndarray:
        """What the camera shows, upright: (side, side, 3), uint8, RGB.

        Raises:
            InputError: no graphics library works here.
        """
        try:
            return self.inner.render()[::-1, ::-1].copy()
        except Exception as error:  # a missing or broken library fails in many ways
            raise InputError(
                f"Meta-World cannot draw here ({type(error).__name__}): install EGL or OSMesa and set MUJOCO_GL to egl "
                "or osmesa, or make the environment with pictures=False."
            ) from error

    def close(self) -> None:
        self.inner.close()

    def _observation(self) -> dict[str, np.ndarray]:
        image = self.render() if self.pictures else np.zeros((self.side, self.side, 3), np.uint8)
        return {"image": image, "state": self.numbers[:4].astype(np.float32)}

    def _info(self, success: bool) -> dict[str, Any]:
        hand = self.numbers[:3].copy()
        return {"instruction": self.instruction, "success": success, "end_effector": hand, "seed": self.seed}


def make_env(name: str = "reach-v3", seed: int | None = None, **options: Any) -> MetaWorldEnv:
    """An environment for a task of Meta-World.

    Args:
        name: one of its 50 tasks, such as `drawer-open-v3`.
        seed: of the first episode, if its `reset` is given none; with it the later ones are determined too.
        options: `side` (pixels of a picture), `pictures` (False: black ones, for experts, which do not look).

    Raises:
        InputError: Meta-World is not installed or does not work with this MuJoCo, or the task or an option is unknown.
    """
    for option in options:
        check("option of the environment", option, ("side", "pictures"))
    return MetaWorldEnv(name, seed, **options)


def expert_action(env: MetaWorldEnv) -> np.ndarray:
    """What Meta-World's scripted expert does now: (7,) as the environment takes it."""
    own = np.clip(env.expert.get_action(env.numbers), -1, 1)
    return np.array([*own[:3] * STEP, 0, 0, 0, (1 - own[3]) / 2])


def _own(action: np.ndarray) -> np.ndarray:
    """Meta-World's four numbers, all from -1 to 1; the last opens at -1 and closes at 1."""
    return np.clip([*action[:3] / STEP, 1 - 2 * action[6]], -1, 1).astype(np.float32)
