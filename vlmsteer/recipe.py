"""A recipe is everything that is changed inside a model, as one frozen value.

It is a list of edits (which vectors, at which sites and tokens, by which operation, how strongly) with the origin of
its vectors. The same recipe runs in the API, the command line, a benchmark and on a page; it is saved as one file and
has a hash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmsteer import vectors as store
from vlmsteer.errors import RecipeError, did_you_mean
from vlmsteer.operations import NAN_ALLOWED, OPERATIONS
from vlmsteer.sites import Site
from vlmsteer.tokens import PHASES, Positions, check_positions
from vlmsteer.vectors import Vectors

VERSION = 1


@dataclass(frozen=True)
class Edit:
    """One change: an operation with a vector at each of some layers.

    Attributes:
        vectors: which vector in which layer of which tower and point.
        operation: a name from `operations.OPERATIONS`.
        strength: 0 changes nothing; 1 is the method's own strength.
        positions: which tokens (`tokens.POSITIONS`, or token indices of the prompt).
        phase: "prefill", "decode" or "both".
    """

    vectors: Vectors
    operation: str = "add"
    strength: float = 1.0
    positions: Positions = "last"
    phase: str = "both"

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", check_positions(self.positions))
        if self.operation not in OPERATIONS:
            raise RecipeError(f"There is no operation {self.operation!r}{did_you_mean(self.operation, OPERATIONS)}")
        if self.phase not in PHASES:
            raise RecipeError(f"There is no phase {self.phase!r}{did_you_mean(self.phase, PHASES)}")
        if (
            isinstance(self.strength, bool)
            or not isinstance(self.strength, int | float)
            or not math.isfinite(self.strength)
        ):
            raise RecipeError(f"A strength is a finite number, not {self.strength!r}.")
        only = {"last": "both", "all": "both", "generated": "decode"}.get(str(self.positions), "prefill")
        if "both" not in (only, self.phase) and only != self.phase:
            raise RecipeError(f"An edit at positions {self.positions!r} never acts in phase {self.phase!r}.")
        for layer, vector in self.vectors.layers.items():
            bad = vector.isinf().any() if self.operation in NAN_ALLOWED else not vector.isfinite().all()
            if bad:
                raise RecipeError(
                    f"The vector for {self.vectors.tower}.{layer}.{self.vectors.point} holds NaN or infinite values."
                )

    @property
    def sites(self) -> list[Site]:
        """The sites it changes, by layer."""
        return [Site(self.vectors.tower, layer, self.vectors.point) for layer in sorted(self.vectors.layers)]

    def spec(self) -> dict[str, Any]:
        """All but the vectors' numbers, as JSON values."""
        return {
            "tower": self.vectors.tower,
            "point": self.vectors.point,
            "layers": sorted(self.vectors.layers),
            "operation": self.operation,
            "strength": float(self.strength),
            "positions": self.positions if isinstance(self.positions, str) else list(self.positions),
            "phase": self.phase,
            "norms": {
                str(layer): round(norm, 6) for layer, norm in self.vectors.norms().items() if math.isfinite(norm)
            },
        }


@dataclass(frozen=True)
class Recipe:
    """Edits applied together, in order, and where they come from."""

    edits: tuple[Edit, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))

    def random_like(self, seed: int) -> Recipe:
        """The same edits with random directions of the same lengths: what any push this large would do."""
        edits = (replace(edit, vectors=edit.vectors.random_like(seed)) for edit in self.edits)
        return replace(self, edits=tuple(edits))

    @staticmethod
    def of(
        vectors: Vectors,
        strength: float = 1.0,
        layers: Iterable[int] | None = None,
        operation: str = "add",
        positions: Positions = "last",
        phase: str = "both",
    ) -> Recipe:
        """A recipe with one edit; `layers` narrows the vectors to some layers."""
        chosen = vectors if layers is None else vectors.select(layers)
        return Recipe((Edit(chosen, operation, strength, positions, phase),), vectors.model, vectors.about)

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with every strength multiplied."""
        return replace(self, edits=tuple(replace(edit, strength=edit.strength * factor) for edit in self.edits))

    def for_any_model(self) -> Recipe:
        """The same recipe without its tie to the model it was made on; sites and widths are still checked."""
        return replace(self, model={}, about={**self.about, "made_for": dict(self.model)})

    @property
    def last_only(self) -> bool:
        """True if it touches nothing before the last prompt token in the text tower: earlier states may be reused."""
        return all(edit.vectors.tower == "text" and edit.positions in ("last", "generated") for edit in self.edits)

    def header(self) -> dict[str, Any]:
        """Everything but the vectors' numbers, as JSON values."""
        return {
            "version": VERSION,
            "model": dict(self.model),
            "about": dict(self.about),
            "edits": [edit.spec() for edit in self.edits],
        }

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{i}.{layer}": vector for i, edit in enumerate(self.edits) for layer, vector in edit.vectors.layers.items()
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the whole recipe."""
        return store.digest(self.header(), self._tensors())

    def save(self, path: str | Path) -> None:
        """Write the recipe as one safetensors file.

        Raises:
            RecipeError: if the file cannot be written.
        """
        store.write(path, self.header(), self._tensors())

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: if it is not one, or is damaged.
        """
        header, tensors = store.read(path)
        if header.get("version") != VERSION:
            raise RecipeError(
                f"{str(path)!r} is a recipe of version {header.get('version')!r}; this program reads {VERSION}."
            )
        try:
            model, about = dict(header["model"]), dict(header["about"])
            edits = []
            for i, spec in enumerate(header["edits"]):
                layers = {int(layer): tensors[f"{i}.{layer}"] for layer in spec["layers"]}
                positions = spec["positions"] if isinstance(spec["positions"], str) else tuple(spec["positions"])
                edits.append(
                    Edit(
                        Vectors(spec["tower"], spec["point"], layers, model, about),
                        spec["operation"],
                        spec["strength"],
                        positions,
                        spec["phase"],
                    )
                )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RecipeError(f"{str(path)!r} has a damaged recipe header: {error!r}.") from error
        return Recipe(tuple(edits), model, about)
