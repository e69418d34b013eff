"""Closed-loop strength: a controller turns a recipe up and down while the arm moves, so that a speed or height holds.

It is a PI controller in units of strength: the error is divided by the recipe's measured effect at strength 1, so its
two gains have no unit. Where the strength is at a limit the integral only moves back from it (conditional integration,
Astrom and Hagglund, 1995).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vlmsteer.errors import InputError
from vlmsteer_robotics.tasks import check

QUANTITIES = {"displacement": "meters a step", "height": "meters"}


@dataclass(frozen=True)
class Hold:
    """What is to be held, and how.

    Attributes:
        quantity: "displacement", the way of the last step in meters, or "height", of the finger tips in meters.
        target: its value.
        start: its mean without a recipe.
        effect: what strength 1 adds to it.
        limits: of the strength.
        proportional, integral: the gains, per step.

    Raises:
        InputError: if the recipe has no effect to speak of, or a number is not possible.
    """

    quantity: str
    target: float
    start: float
    effect: float
    limits: tuple[float, float] = (0.0, 3.0)
    proportional: float = 0.3
    integral: float = 0.3

    def __post_init__(self) -> None:
        check("quantity to hold", self.quantity, QUANTITIES)
        numbers = (self.target, self.start, self.effect, *self.limits, self.proportional, self.integral)
        if not all(map(math.isfinite, numbers)) or self.limits[0] >= self.limits[1]:
            raise InputError(f"A controller needs finite numbers and a lower limit below the upper one, not {numbers}.")
        if abs(self.effect) < 1e-5:
            raise InputError(
                f"This recipe changes the {self.quantity} by {self.effect:.2g} {QUANTITIES[self.quantity]}: too little "
                "to hold it anywhere. Take a stronger one."
            )

    def spec(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "limits": list(self.limits)}


class Controller:
    """The controller of one episode; `strength` is what acts now."""

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self._integral = self.strength = self._limited((hold.target - hold.start) / hold.effect)

    def update(self, measured: float) -> float:
        """The strength of the next step, after one in which `measured` was the quantity's value."""
        error = (self.hold.target - measured) / self.hold.effect
        integral = self._integral + self.hold.integral * error
        wanted = integral + self.hold.proportional * error
        self.strength = self._limited(wanted)
        if (wanted - self.strength) * error <= 0:  # within the limits, or on the way back to them
            self._integral = integral
        return self.strength

    def _limited(self, strength: float) -> float:
        return min(max(strength, self.hold.limits[0]), self.hold.limits[1])
