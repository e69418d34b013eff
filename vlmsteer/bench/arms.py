"""Every recipe at every strength, beside the model alone and beside random directions of the same lengths.

A change means something only next to the same questions without it, and next to what any push of that size would do,
so both are there unless they are turned off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmsteer.bench.benchmark import Arm
from vlmsteer.errors import InputError
from vlmsteer.recipe import Recipe

BASELINE = "none"


def make(
    recipes: Mapping[str, Recipe], strengths: Sequence[float] = (1.0,), controls: int = 1, seed: int = 0
) -> list[Arm]:
    """The baseline, then each recipe at each strength with its controls.

    A control has random directions in place of the recipe's, drawn anew for each (`Recipe.random_like`). Strength 0 has
    none, and recipes without edits, which only change how an answer is written, have no directions to replace.

    Args:
        recipes: by the name they have in tables.
        strengths: multiples of each recipe's own.
        controls: random arms beside each arm.

    Raises:
        InputError: if a name is the baseline's, or two arms would do the same.
    """
    if BASELINE in recipes:
        raise InputError(f"{BASELINE!r} is the model without a recipe; rename the recipe file of that name.")
    found = [Arm(BASELINE, None, "baseline")]
    for name, recipe in recipes.items():
        for strength in strengths:
            arm = Arm(_titled(name, strength), recipe.scaled(strength), "recipe", None, float(strength))
            found.append(arm)
            for number in range(1, controls + 1 if recipe.edits and strength else 1):
                random = recipe.scaled(strength).random_like(1000 * seed + number - 1)
                found.append(Arm(f"{arm.name}, random {number}", random, "random", arm.name, float(strength)))
    seen: dict[str, str] = {}
    for arm in found[1:]:
        hashed = arm.recipe.hash if arm.recipe is not None else ""
        if hashed in seen:
            raise InputError(
                f"{seen[hashed]!r} and {arm.name!r} are one recipe at one strength; leave one of them out."
            )
        seen[hashed] = arm.name
    return found


def _titled(name: str, strength: float) -> str:
    return name if strength == 1 else f"{name} x{strength:g}"
