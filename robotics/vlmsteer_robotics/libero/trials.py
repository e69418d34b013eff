"""Trials of one LIBERO task: the robot stands still while things fall, then the policy acts until it is done.

Where a simulator or a policy breaks, the trial ends with an `error`, which is no failure; the authors' script counts
it as one. Several robots act by one forward of the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmsteer.errors import InputError
from vlmsteer_robotics.libero.images import prepared
from vlmsteer_robotics.libero.suites import environment
from vlmsteer_robotics.policy import Choice, Moment, Policy

if TYPE_CHECKING:
    from vlmsteer.recipe import Recipe

STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
WAIT = 10  # steps
STILL = [0, 0, 0, 0, 0, 0, -1]  # -1 opens the gripper


@dataclass(frozen=True)
class Trial:
    """How one trial ended.

    Attributes:
        task: its number in the suite.
        trial: the number of its initial state.
        instruction: what the robot was told.
        success: whether the task was done; None if an error ended the trial.
        steps: that the policy took.
        other_tokens: how many of its tokens were no action tokens.
        error: what broke off the trial, or None.
    """

    task: int
    trial: int
    instruction: str
    success: bool | None
    steps: int
    other_tokens: int
    error: str | None = None


@dataclass(frozen=True)
class Player:
    """A policy under a recipe, in so many robots at once, for at most so many steps; `crop` as in `prepared`."""

    policy: Policy
    recipe: Recipe | None
    steps: int
    together: int
    crop: bool

    def play(self, suite: Any, task: int, trials: int, done: Sequence[int] = ()) -> Iterator[Trial]:
        """The first trials of a task but those that are done, each as soon as it is over.

        Raises:
            InputError: if the task has fewer initial states, or its environment cannot be made.
        """
        if len(done) == trials:
            return
        text, states = suite.get_task(task).language, suite.get_task_init_states(task)
        if trials > len(states):
            raise InputError(f"{trials} trials were asked for; task {task} has {len(states)} initial states.")
        with ExitStack() as stack:
            envs = [stack.enter_context(closing(environment(suite, task))) for _ in range(min(self.together, trials))]
            for first in range(0, trials, self.together):
                running = []
                for env, trial in zip(envs, range(first, trials), strict=False):
                    if trial in done:  # what resets draw comes from one stream of random numbers
                        with suppress(Exception):
                            env.reset()
                    else:
                        running.append(_Running(env, trial, states[trial], self.steps, self.crop))
                for one in self._played(running, text):
                    yield Trial(task, one.trial, text, one.success, one.steps, one.other_tokens, one.error)

    def _played(self, running: list[_Running], text: str) -> Iterator[_Running]:
        unused: Any = None  # the state, for experts
        while running:
            for one in [one for one in running if one.over]:
                running.remove(one)
                yield one
            if running:
                moments = [Moment(one.picture, text, unused) for one in running]
                for one, choice in zip(running, self.policy(moments, [self.recipe] * len(running)), strict=True):
                    one.step(choice)


class _Running:
    """One trial under way, from the moment when everything has fallen."""

    def __init__(self, env: Any, trial: int, state: Any, limit: int, crop: bool) -> None:
        self.env, self.trial, self.limit, self.crop = env, trial, limit, crop
        self.success: bool | None = False
        self.steps = self.other_tokens = 0
        self.over, self.error = False, None
        self._guarded(self._begin, state)

    def step(self, choice: Choice) -> None:
        if choice.error is not None:
            self._break(choice.error)
            return
        self.other_tokens += choice.other_tokens
        self._guarded(self._move, choice.action)

    def _begin(self, state: Any) -> None:
        self.env.reset()
        self.env.set_init_state(state)
        for _ in range(WAIT):
            seen, *_ = self.env.step(STILL)
        self._look(seen)

    def _move(self, action: np.ndarray) -> None:
        seen, _, done, _ = self.env.step(command(action).tolist())
        self.steps += 1
        self.success = bool(done)
        self.over = self.success or self.steps == self.limit
        if not self.over:
            self._look(seen)

    def _look(self, seen: Mapping[str, Any]) -> None:
        self.picture = prepared(np.asarray(seen["agentview_image"]), self.crop)

    def _guarded(self, do: Callable[..., None], *given: Any) -> None:
        """A simulator may fail in any way; that ends this trial and says nothing about the policy."""
        try:
            do(*given)
        except Exception as error:
            self._break(f"{type(error).__name__}: {error}")

    def _break(self, error: str) -> None:
        self.success, self.over, self.error = None, True, error


def command(action: np.ndarray) -> np.ndarray:
    """A policy's action (7,), its gripper 1 open and 0 closed, as LIBERO takes it: -1 open and 1 closed."""
    return np.concatenate([action[:6], -np.sign(2 * action[6:] - 1)])
