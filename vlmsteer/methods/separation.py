"""How well a recipe's directions tell the two sides of examples apart, layer by layer, at the sites where they act.

The sides are what a method contrasts: a right and a wrong answer, or the same question about this image and about most
such objects. States of both are projected on a layer's direction; on examples that nothing was learned from, the AUROC
says how often the first side lies further along it, 0.5 by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.examples import Example
from vlmsteer.methods.caa import TOKENS, answer_states
from vlmsteer.methods.persona import separation
from vlmsteer.methods.pvp import asked_states
from vlmsteer.operations import DIRECTED
from vlmsteer.recipe import Recipe
from vlmsteer.samples import area
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

LEAST = 4  # examples, of each kind


@dataclass(frozen=True)
class Separation:
    """What was found at one point.

    Attributes:
        point: where states were read: where the directions act.
        auroc: layer -> how often the first side lies further along the direction; 1 always, 0.5 by chance, 0 never.
        distance: layer -> the difference of the two sides' means, in standard deviations.
        n: how many examples, of two sides each.
    """

    point: str
    auroc: dict[int, float]
    distance: dict[int, float]
    n: int

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        auroc, distance = ({str(k): round(v, 4) for k, v in one.items()} for one in (self.auroc, self.distance))
        return {"point": self.point, "auroc": auroc, "distance": distance, "n": self.n}


def directions(recipe: Recipe) -> Vectors | None:
    """The first directions of a recipe in the text tower, one a layer; None if it has only factors, values or rules."""
    for edit in recipe.edits:
        own = edit.vectors
        if edit.operation in DIRECTED and isinstance(own, Vectors) and own.tower == "text":
            kept = [layer for layer, vector in own.layers.items() if vector.dim() == 1 and vector.any()]
            if kept:
                return own.select(sorted(kept))
    return None


def separate(
    session: Session,
    vectors: Vectors,
    examples: Sequence[Example] | Sequence[tuple[Any, str, str]],
    batch_size: int = 16,
) -> Separation:
    """Measure directions on examples, which nothing should have been learned from.

    Args:
        vectors: of the text tower, one for each layer.
        examples: with right and wrong answers, read at an answer's first token if it is yes or no and at its last one
            else (as CAA does); or (image, question about this, question about most), read at the prompt's last token.

    Raises:
        InputError: if there are fewer than four, or the vectors are of another tower or none for a whole layer.
    """
    if vectors.tower != "text" or any(vector.dim() != 1 for vector in vectors.layers.values()):
        raise InputError("Sides are told apart along one direction for each layer of the text tower.")
    if len(examples) < LEAST:
        raise InputError(f"{LEAST} or more examples are needed to tell two sides apart, not {len(examples)}.")
    layers = sorted(vectors.layers)
    unit = torch.nn.functional.normalize(torch.stack([vectors.layers[layer].float() for layer in layers]), dim=-1)
    found = [
        (states.flatten(3) * unit).sum(-1) for states in _states(session, vectors.point, layers, examples, batch_size)
    ]
    first, second = torch.cat(found).unbind(1)
    auroc, distance = (
        dict(zip(layers, values.tolist(), strict=True)) for values in (area(first, second), separation(first, second))
    )
    return Separation(vectors.point, auroc, distance, len(first))


def _states(
    session: Session, point: str, layers: Sequence[int], examples: Sequence[Any], batch_size: int
) -> Iterator[Tensor]:
    """Of some examples (examples, 2, layers, ...)."""
    if not isinstance(examples[0], Example):
        images, this, most = zip(*examples, strict=True)
        sites = [Site("text", layer, point) for layer in layers]
        yield from asked_states(session, sites, images, this, most, batch_size)
        return
    for yes_no in (True, False):
        asked = [one for one in examples if (one.kind == "presence") == yes_no]
        token = TOKENS["first" if yes_no else "last"]
        for _, states in answer_states(session, asked, layers, token, batch_size=batch_size, point=point):
            yield states
