"""What is compared over the same seeds: the policy alone, recipes at strengths, their controls, and plain words.

A control of a recipe turns other neurons, as many in the same layers, that move the residual stream as far; what the
recipe does has to stand out from some twenty of them. Words in the instruction ("slowly") are what it has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmsteer.bench.arms import BASELINE
from vlmsteer.errors import InputError
from vlmsteer_robotics.controller import Hold
from vlmsteer_robotics.tasks import HEIGHTS, SPEEDS, check

if TYPE_CHECKING:
    from vlmsteer.recipe import Recipe
    from vlmsteer.session import Session

KINDS = ("baseline", "recipe", "random", "prompt", "hold")


@dataclass(frozen=True)
class Arm:
    """One way to run an episode.

    Attributes:
        name: unique in a run.
        kind: one of `KINDS`.
        recipe: already scaled, or None.
        of: the arm that a random one controls.
        strength: the multiple of the recipe's own strength.
        manner: speed or height as the instruction says it, where it does.
        hold: what a controller holds by turning the recipe up and down.
    """

    name: str
    kind: str
    recipe: Recipe | None = None
    of: str | None = None
    strength: float = 1.0
    manner: Mapping[str, str] = field(default_factory=dict)
    hold: Hold | None = None

    def spec(self) -> dict[str, Any]:
        """What its episodes depend on, as JSON values."""
        return {
            "recipe": None if self.recipe is None else self.recipe.hash,
            "manner": dict(self.manner),
            "hold": None if self.hold is None else self.hold.spec(),
        }


def make(
    recipes: Mapping[str, Recipe],
    strengths: Sequence[float] = (1.0,),
    random: int = 0,
    prompts: Sequence[str] = (),
    session: Session | None = None,
    seed: int = 0,
) -> list[Arm]:
    """The baseline, plain words, then each recipe at each strength with its controls.

    Args:
        recipes: by the name they have in tables.
        strengths: multiples of each recipe's own.
        random: controls of each.
        prompts: speeds or heights that are said instead, such as "slow".
        session: the model whose neurons the controls are.

    Raises:
        InputError: if a prompt is no speed or height, or there are no neurons to make controls of.
    """
    from vlmsteer.methods.value_vectors import random_set

    arms = [Arm(BASELINE, "baseline")]
    for prompt in dict.fromkeys(prompts):
        check("speed or height to say", prompt, [name for name in (*SPEEDS, *HEIGHTS) if name != "normal"])
        arms.append(Arm(f"said: {prompt}", "prompt", manner={"speed" if prompt in SPEEDS else "height": prompt}))
    for name, recipe in recipes.items():
        for strength in dict.fromkeys(strengths):
            title = name if strength == 1 else f"{name} x{strength:g}"
            arms.append(Arm(title, "recipe", recipe.scaled(strength), strength=strength))
            for number in range(random if strength else 0):
                if session is None:
                    raise InputError("The expert has no neurons, so a recipe has no controls there.")
                control = random_set(session, recipe, 1000 * seed + number).scaled(strength)
                arms.append(Arm(f"{title}, random {number + 1}", "random", control, title, strength))
    return arms
