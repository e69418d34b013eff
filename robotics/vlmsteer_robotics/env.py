"""The tabletop as a gymnasium environment: OpenVLA's seven numbers in, a picture and the gripper's state out.

An action moves the gripper's target by a few centimeters (x, y, z), turns it (roll, pitch, yaw, axes of the world) and
sets the fingers (1 open, 0 closed); inverse kinematics makes joint angles of it and the motors follow for a fifth of a
second. Asked beyond its reach the arm stays at the border and says so in `info`, or refuses, as the caller wishes.
"""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
import numpy as np

from vlmsteer.errors import InputError
from vlmsteer_robotics import layouts, tasks
from vlmsteer_robotics.camera import SIDE, Camera
from vlmsteer_robotics.goals import State, chosen, finished, succeeded
from vlmsteer_robotics.layouts import Layout
from vlmsteer_robotics.robot import REACH, Robot
from vlmsteer_robotics.scene import JOINTS
from vlmsteer_robotics.tasks import Task

MOVE, ROTATE = 0.08, 0.35  # the most an action asks for along and about each axis, meters and radians
FPS = 5


class TabletopEnv(gymnasium.Env):
    """One robot, one table; `vlmsteer_robotics.make_env` says what the arguments mean."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}

    def __init__(
        self,
        task: str | Task = "reach",
        *,
        seed: int | None = None,
        split: str = "train",
        distractors: int = 2,
        speed: str | None = "normal",
        height: str | None = "normal",
        phrase: int | None = 0,
        side: int = SIDE,
        unreachable: str = "hold",
        pictures: bool = True,
        render_mode: str | None = None,
    ) -> None:
        tasks.check("answer to unreachable targets", unreachable, ("hold", "refuse"))
        tasks.check("render mode", render_mode, (None, *self.metadata["render_modes"]))
        self.task, self.split, self.distractors = tasks.task(task), split, distractors
        self.manner: dict[str, Any] = {"speed": speed, "height": height, "phrase": phrase}
        self.unreachable, self.pictures, self.render_mode = unreachable, pictures, render_mode
        self._first_seed = seed
        self.draw(0, {})  # wrong arguments are refused here, not at the first reset
        self._build(distractors + 1, side)
        self.action_space = gymnasium.spaces.Box(
            np.array([-MOVE] * 3 + [-ROTATE] * 3 + [0], np.float32),
            np.array([MOVE] * 3 + [ROTATE] * 3 + [1], np.float32),
        )
        limit = np.array([2.0] * 3 + [np.pi] * 3 + [1.5] + [7.0] * JOINTS, np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8),
                "state": gymnasium.spaces.Box(-limit, limit),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Begin the episode of a seed.

        Args:
            seed: draws scene and, where they are open, speed, height and wording. Without one the environment's own
                random numbers give it, which start from the seed given when it was made.
            options: `layout` (a `Layout` in place of the drawn one), `speed`, `height`, `phrase`.

        Returns:
            The observation (`image`, `state`: tool x, y, z, roll, pitch, yaw, opening, six joint angles), and `info`.

        Raises:
            InputError: an option is unknown or cannot be met.
        """
        seed = self._first_seed if seed is None and self._np_random is None else seed
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        layout, manner = self.draw(episode, options or {})
        if len(layout.places) != len(self.robot.blocks):
            self._build(len(layout.places), self.camera.side)
        self.layout, self.manner_now, self.seed, self.steps = layout, manner, episode, 0
        self.instruction = tasks.instruction(
            self.task.verb,
            layout.color,
            layout.side,
            layout.toward,
            manner["speed"],
            manner["height"],
            manner["phrase"],
        )
        self.robot.place(layout, 0.0 if self.task.verb == "push" else 1.0)
        self._chosen = -1
        self._state = self.state()
        self._border = False
        return self._observation(), self._info()

    def draw(self, seed: int, options: dict[str, Any]) -> tuple[Layout, dict[str, Any]]:
        """The scene of a seed, and the speed, height and wording: as asked, or drawn where they were left open."""
        for name in options:
            tasks.check("option", name, ("layout", *self.manner))
        layout = options.get("layout")
        if layout is None:
            layout = layouts.draw(self.task, seed, self.split, self.distractors)
        rng = np.random.default_rng([layouts.SPLITS.index(self.split), seed, 1])
        possible: dict[str, list] = {"speed": list(tasks.SPEEDS), "height": list(tasks.HEIGHTS)}
        possible["phrase"] = list(range(len(tasks.PHRASES[self.task.verb])))
        manner = {}
        for name, values in possible.items():
            drawn = values[rng.integers(len(values))]
            given = options.get(name, self.manner[name])
            manner[name] = drawn if given is None else given
            tasks.check(name, manner[name], values)
        return layouts.checked(layout), manner

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """Move for a fifth of a second.

        Args:
            action: (7,) dx, dy, dz in meters, droll, dpitch, dyaw in radians, fingers from 0 (closed) to 1 (open).

        Returns:
            Observation, reward (1 at success, else 0), whether it is over (the right block or a wrong one), whether
            the steps are used up, info.

        Raises:
            InputError: the action has another shape, is not finite or is out of range, or its target is out of reach
                and the environment was made with `unreachable="refuse"`.
        """
        if not hasattr(self, "layout"):
            raise InputError("The environment has not begun an episode; call reset first.")
        numbers = self._checked(action)
        wanted, rotation, joints = self.robot.aim(numbers[:6])
        self._border = joints is None or bool((np.abs(np.clip(wanted, *REACH) - wanted) > 1e-6).any())
        if self._border and self.unreachable == "refuse":
            low, high = REACH.tolist()
            raise InputError(
                f"The gripper cannot reach {wanted.round(3).tolist()} m as it is to be turned; it may go from {low} to "
                f'{high} m. Give a smaller step, or make the environment with unreachable="hold".'
            )
        self.robot.move(wanted, rotation, joints, numbers[6])
        self.steps += 1
        self._state = self.state()
        if self._chosen < 0:
            self._chosen = chosen(self._state)
        success = succeeded(self._state)
        over = success or finished(self._state)
        return self._observation(), float(success), over, self.steps >= self.task.steps and not over, self._info()

    def render(self) -> np.ndarray | None:
        """The picture the robot sees now, uint8 (side, side, 3), if made with `render_mode="rgb_array"`."""
        return self.camera.picture(self.robot.data) if self.render_mode else None

    def state(self) -> State:
        """What is the case now, for experts and for judging."""
        blocks = self.robot.blocks
        return State(
            verb=self.task.verb,
            speed=self.manner_now["speed"],
            height=self.manner_now["height"],
            target=self.layout.target,
            toward=self.layout.toward,
            tool=self.robot.tool,
            opening=self.robot.opening,
            held=self.robot.held(),
            blocks=blocks,
            blocks_at_start=blocks if self.steps == 0 else self._state.blocks_at_start,
        )

    @property
    def model(self) -> Any:
        """MuJoCo's model of the scene, for `film`."""
        return self.robot.model

    def positions(self) -> np.ndarray:
        """Every joint position now, a copy: what `film` needs of each moment."""
        return self.robot.data.qpos.copy()

    def _build(self, blocks: int, side: int) -> None:
        self.robot = Robot(blocks)
        self.camera = Camera(self.robot.model, side)

    def _checked(self, action: Any) -> np.ndarray:
        numbers = np.asarray(action, dtype=float)
        if numbers.shape != (7,):
            raise InputError(f"An action of shape {numbers.shape} was given; seven numbers are needed, shape (7,).")
        if not np.isfinite(numbers).all():
            raise InputError(f"The action {numbers.tolist()} has numbers that are not finite; the policy is broken.")
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        if (numbers < low - 1e-4).any() or (numbers > high + 1e-4).any():
            raise InputError(
                f"The action {numbers.round(4).tolist()} is out of range; dx, dy and dz are within {MOVE} m, the "
                f"angles within {ROTATE} rad, the fingers from 0 to 1. Clip it, or un-normalize it with statistics of "
                f"this robot."
            )
        return np.clip(numbers, low, high)

    def _observation(self) -> dict[str, np.ndarray]:
        robot, side = self.robot, self.camera.side
        numbers = [*self._state.tool, *robot.turned, self._state.opening, *robot.data.qpos[:JOINTS]]
        image = self.camera.picture(robot.data) if self.pictures else np.zeros((side, side, 3), np.uint8)
        return {"image": image, "state": np.array(numbers, np.float32)}

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self.instruction,
            "success": succeeded(self._state),
            "end_effector": self._state.tool,
            "blocks": self._state.blocks,
            "target": self.layout.target,
            "chosen": self._chosen,
            "unreachable": self._border,
            "seed": self.seed,
        }


def make_env(task: str | Task = "reach", seed: int | None = None, **options: Any) -> TabletopEnv:
    """An environment for a task.

    Args:
        task: a name of `TASKS`.
        seed: of the first episode, if its `reset` is given none; with it the later ones are determined too.
        options: `split` (`train` or `test`: which scenes are drawn), `distractors` (0 to 4 blocks beside the one
            meant), `speed`, `height` and `phrase` (as in `instruction`; None: drawn in each episode), `side` (pixels
            of a picture), `unreachable` (`hold`: the arm stays at the border and `info["unreachable"]` is True;
            `refuse`: an error), `pictures` (False: black ones, for experts, which do not look), `render_mode`.

    Raises:
        InputError: the task or an option is unknown, or its value is not possible.
    """
    known = [name for name in inspect.signature(TabletopEnv).parameters if name not in ("task", "seed")]
    for name in options:
        tasks.check("option of the environment", name, known)
    return TabletopEnv(task, seed=seed, **options)
