"""Who decides what the robot does next: an OpenVLA that sees a picture and reads a sentence, or the scripted expert.

Many robots are asked at once, each with a recipe of its own, so that a policy runs one forward for all of them. A
policy that breaks in one of them (its logits are not numbers) breaks there alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from vlmsteer.errors import ModelError
from vlmsteer.openvla.actions import act, statistics
from vlmsteer_robotics.camera import SIDE
from vlmsteer_robotics.experts import expert_action
from vlmsteer_robotics.goals import State

if TYPE_CHECKING:
    from vlmsteer.recipe import Recipe
    from vlmsteer.session import Session

NUMBERS = 7  # of an action


class Moment(NamedTuple):
    """What one robot sees, what it was told, and, for experts, what is the case."""

    picture: np.ndarray
    instruction: str
    state: State


class Choice(NamedTuple):
    """An action (7,), how many of its tokens were no action tokens, and what went wrong, if anything did."""

    action: np.ndarray
    other_tokens: int = 0
    error: str | None = None


class Policy(Protocol):
    """Attributes: name; side, of the pictures it wants, in pixels; spec, what its actions depend on, JSON values."""

    name: str
    side: int
    spec: dict[str, Any]

    def __call__(self, moments: Sequence[Moment], recipes: Sequence[Recipe | None]) -> list[Choice]: ...


class Expert:
    """The scripted expert, which no recipe can change."""

    name, side = "expert", SIDE
    spec = {"expert": 1}

    def __call__(self, moments: Sequence[Moment], recipes: Sequence[Recipe | None]) -> list[Choice]:
        return [Choice(expert_action(moment.state)) for moment in moments]


class Vla:
    """A loaded OpenVLA as a policy for this robot.

    Args:
        session: the model.
        unnorm_key: the data set whose units its actions are in; None if it knows one only.
        restrict: whether it may choose among action tokens only.

    Raises:
        ModelError: if it is no policy, or its actions are not this robot's seven numbers.
        InputError: if the data set is not known.
    """

    def __init__(self, session: Session, unnorm_key: str | None = None, restrict: bool = False) -> None:
        from vlmsteer.bench.weights import digest

        config = session.model.config
        if not hasattr(config, "norm_stats"):
            raise ModelError(f"{session.name!r} is a {session.family.name}, not a policy with action tokens.")
        count = len(statistics(config.norm_stats, unnorm_key)["q01"])
        if count != NUMBERS:
            raise ModelError(f"The actions of {session.name!r} have {count} numbers; this robot takes {NUMBERS}.")
        self.session, self.unnorm_key, self.restrict = session, unnorm_key, restrict
        self.name, self.side = session.name, int(config.image_sizes[0])
        self.spec = {"weights": digest(session.model), "unnorm_key": unnorm_key, "restrict": restrict}

    def __call__(self, moments: Sequence[Moment], recipes: Sequence[Recipe | None]) -> list[Choice]:
        """What each robot is to do, in the order given."""
        one = recipes[0] if all(recipe is recipes[0] for recipe in recipes) else list(recipes)
        images = [Image.fromarray(moment.picture) for moment in moments]
        told = [moment.instruction for moment in moments]
        try:
            found = act(self.session, images, told, one, self.unnorm_key, self.restrict, len(moments))
        except ModelError as error:
            if len(moments) == 1:
                return [Choice(np.full(NUMBERS, np.nan), error=str(error))]
            return [self([moment], [recipe])[0] for moment, recipe in zip(moments, recipes, strict=True)]
        others = (~found.action_tokens).sum(1).tolist()
        return [Choice(action, other) for action, other in zip(found.actions, others, strict=True)]
