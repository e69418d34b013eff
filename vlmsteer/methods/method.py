"""What every method is to the rest of the project: a name, its paper, what examples it needs, and how it learns.

Whatever a method does inside, it ends in a recipe, so that the command line, the comparison, the benchmarks and the
page treat all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmsteer.errors import InputError, SiteError
from vlmsteer.examples import Example
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session

NEEDS = {
    "captions": "images with a right and a hallucinated caption",
    "own": "images with a right caption and what the model itself makes up",
    "cut": "what the model itself makes up, cut before it and where it goes on truthfully",
    "presence": "images with yes/no questions",
    "edits": "images with an edited version and a question that tells the two apart",
    "pairs": "counterfactual pictures, each asked about and asked about in general",
    "nothing": "no examples",
}


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name, title, paper: what users read.
        needs: the kind of examples it learns from (`NEEDS`).
        learn: makes the recipe from a session and examples; its keyword options all have defaults. Strength 1 of the
            recipe is the paper's own.
        strengths: multiples of it that a search tries.
        variants: other options than the paper's that a search tries too; `needs` among them asks for other examples.
        notes: how ours differs where a user would be surprised.
        reconstruction: whether the authors' code is not available, so that details are ours.
    """

    name: str
    title: str
    paper: str
    needs: str
    learn: Callable[..., Recipe]
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    variants: tuple[Mapping[str, Any], ...] = ()
    notes: str = ""
    reconstruction: bool = False


def enough(examples: Sequence[Example], who: str, least: int = 2) -> None:
    """Refuse too few examples.

    Raises:
        InputError: if there are fewer than `least`.
    """
    if len(examples) < least:
        raise InputError(f"{who} needs {least} or more examples to learn from, not {len(examples)}.")


def layer_at(session: Session, depth: float) -> int:
    """The text layer at a fraction of the depth."""
    return min(int(depth * session.layers()), session.layers() - 1)


def checked_layers(session: Session, layers: Sequence[int] | None) -> list[int]:
    """The given text layers in order, or all of them.

    Raises:
        SiteError: if the model does not have one.
    """
    count = session.layers()
    missing = [layer for layer in layers or () if not 0 <= layer < count]
    if missing:
        raise SiteError(f"This model has no text layers {missing}; its layers are 0 to {count - 1}.")
    return sorted(set(layers)) if layers else list(range(count))
