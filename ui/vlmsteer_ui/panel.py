"""The recipe panel: one recipe for all tabs, from a few controls whose values are checked here, whoever sent them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vlmsteer.errors import InputError
from vlmsteer.recipe import Recipe
from vlmsteer_ui.gallery import Gallery

STRONGEST = 10.0
MOST = 8  # vectors at once
APPLY = {"image tokens": "image", "question": "question", "answer": "last"}  # what the page calls positions
OWN = "as learned"
SEED = 0  # of the random direction


@dataclass(frozen=True)
class Panel:
    """What the recipe panel says.

    Attributes:
        vectors: names from the gallery; all of them act.
        strength: multiplies what was learned; 0 is the baseline.
        first, last: the text layers that are kept.
        apply: `OWN` (the recipe's own positions), or keys of `APPLY`.
        random: answer with random directions of the same lengths too.
    """

    vectors: tuple[str, ...] = ()
    strength: float = 1.0
    first: int = 0
    last: int = 999
    apply: tuple[str, ...] = (OWN,)
    random: bool = False

    @classmethod
    def of(cls, vectors: Any, strength: Any, first: Any, last: Any, apply: Any, random: Any) -> Panel:
        """From the values of the page's controls.

        Raises:
            InputError: if one is not possible.
        """
        names, chosen = (_texts(value) for value in (vectors, apply))
        if len(names) > MOST:
            raise InputError(f"At most {MOST} vectors act at once.")
        for number in (strength, first, last):
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise InputError("Strength and layers are numbers.")
        if abs(strength) > STRONGEST:
            raise InputError(f"A strength lies between {-STRONGEST:g} and {STRONGEST:g}, not {strength:g}.")
        if not 0 <= first <= last:
            raise InputError(f"The first layer comes before the last one: {first:g} to {last:g} is no range.")
        places = tuple(name for name in chosen if name != OWN) or (OWN,)
        if places != (OWN,) and not set(places) <= set(APPLY):
            raise InputError(f"A recipe applies {OWN}, or at {', '.join(APPLY)}.")
        return cls(names, float(strength), int(first), int(last), places, bool(random))

    def recipe(self, gallery: Gallery, session: Any) -> Recipe | None:
        """The recipe that the panel describes, or None if no vector is chosen.

        Raises:
            VlmsteerError: if a vector is not there, or not for this model, or nothing would be left.
        """
        if not self.vectors:
            return None
        parts = [gallery[name].recipe for name in self.vectors]
        session.check(parts)
        made = parts[0]
        for part in parts[1:]:
            made = made + part
        layers = range(self.first, min(self.last, session.layers() - 1) + 1)
        if self.first > 0 or self.last < session.layers() - 1:
            made = made.narrowed(layers)
        if OWN not in self.apply:
            made = replace(made, edits=tuple(
                replace(edit, positions=APPLY[name], phase="both" if APPLY[name] == "last" else "prefill")
                for edit in made.edits for name in self.apply
            ))  # fmt: skip
        return made.scaled(self.strength)

    def arms(self, gallery: Gallery, session: Any) -> dict[str, Recipe]:
        """The recipes to answer with beside the baseline: "steered", and "random" if it is asked for.

        Raises:
            VlmsteerError: as `recipe`.
        """
        recipe = self.recipe(gallery, session)
        if recipe is None:
            return {}
        return {"steered": recipe} | ({"random": recipe.random_like(SEED)} if self.random else {})

    @property
    def title(self) -> str:
        """What the recipe is called in tables."""
        return " + ".join(self.vectors)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, which `of` takes back."""
        return asdict(self)


PANEL = tuple(one.name for one in fields(Panel))  # its values, in the order of `Panel.of`


def completed(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What `Panel.as_dict` gave, unchecked; for a value that is missing, its default."""
    return {name: kept.get(name, getattr(Panel, name)) for name in PANEL}


def _texts(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise InputError("Vectors and the places where they apply are given by their names.")
    return tuple(dict.fromkeys(found))
