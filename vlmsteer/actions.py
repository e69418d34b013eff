"""Recipes made ready for a model: for each site, what to do with the tensor that passes there.

One recipe for all rows becomes one vector; recipes that differ by row become a matrix with a row each, so that a batch
carries all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlmsteer.errors import RecipeError, SiteError
from vlmsteer.operations import OPERATIONS, WIDTHS
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.sites import Site
from vlmsteer.tokens import EVERY, Selection, check_tower

PLAIN_IN_HALF = frozenset({"add", "replace", "clamp", "scale"})  # computed in the model's dtype; the rest in float32


class Tap(NamedTuple):
    """The module at a site, which side of it is meant, and the width; `heads` splits the width at `head` sites."""

    module: nn.Module
    side: str
    width: int
    heads: int | None = None


class Action:
    """One edit at one site, for one recipe or for a batch whose rows carry different vectors and strengths."""

    def __init__(self, edit: Edit, vectors: Tensor, strengths: Tensor, active: Tensor | None) -> None:
        self.positions, self.phase, self.operation = edit.positions, edit.phase, edit.operation
        self.vectors, self.strengths, self.active = vectors, strengths, active
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, states: Tensor, selection: Selection | None, group: int, owners: Tensor | None) -> Tensor:
        """The edited states; `owners` maps rows of this tower's batch to the caller's, None means rows // group."""
        if selection is None:
            return states
        dtype = states.dtype
        if self.operation not in PLAIN_IN_HALF:
            dtype = torch.promote_types(dtype, torch.float32)
        vectors, strengths = self._on(states.device, dtype)
        operation = OPERATIONS[self.operation]
        if selection is EVERY and self.active is None and states.dim() == 3:
            return operation(states.to(dtype), vectors[:, None], strengths[:, None]).to(states.dtype)
        rows, columns = selection
        if rows is None or columns is None:
            rows = torch.arange(states.shape[0], device=states.device).repeat_interleave(states.shape[1])
            columns = torch.arange(states.shape[1], device=states.device).repeat(states.shape[0])
        if self.active is not None:
            caller = rows // group if owners is None else owners.to(rows.device)[rows]
            keep = self.active.to(rows.device)[caller]
            rows, columns, caller = rows[keep], columns[keep], caller[keep]
            vectors, strengths = vectors[caller], strengths[caller]
        changed = operation(states[rows, columns].to(dtype), vectors, strengths).to(states.dtype)
        return states.index_put((rows, columns), changed)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        key = (device, dtype)
        if key not in self._placed:
            self._placed[key] = (self.vectors.to(device, dtype), self.strengths.to(device, dtype))
        return self._placed[key]


def compile_actions(
    taps: Mapping[Site, Tap], recipes: Recipe | Sequence[Recipe | None] | None
) -> tuple[dict[Site, list[Action]], int | None]:
    """Actions by site for one recipe for all rows, or for one recipe (or None) for each row.

    Edits of strength 0 are left out, so they cannot change a bit.

    Raises:
        SiteError: if an edit's site, layer or positions do not exist in this model.
        RecipeError: if a vector has the wrong width.
    """
    single = recipes is None or isinstance(recipes, Recipe)
    listed: Sequence[Recipe | None] = [recipes] if single else recipes  # pyright: ignore[reportAssignmentType]
    gathered: dict[tuple, dict[int, tuple[Edit, Tensor]]] = {}
    for row, recipe in enumerate(listed):
        for index, edit in enumerate(recipe.edits if recipe else ()):
            for site in edit.sites:
                vector = _checked(taps, site, edit)
                if edit.strength != 0:
                    key = (site, index, edit.operation, edit.positions, edit.phase)
                    gathered.setdefault(key, {})[row] = (edit, vector)
    actions: dict[Site, list[Action]] = {}
    for (site, *_), by_row in sorted(gathered.items(), key=lambda entry: entry[0][1]):
        edit, vector = next(iter(by_row.values()))
        if single:
            action = Action(edit, vector[None], torch.tensor([[float(edit.strength)]]), None)
        else:
            vectors = torch.zeros(len(listed), vector.shape[-1])
            strengths, active = torch.zeros(len(listed), 1), torch.zeros(len(listed), dtype=torch.bool)
            for row, (edit, vector) in by_row.items():
                vectors[row], strengths[row], active[row] = vector, float(edit.strength), True
            action = Action(edit, vectors, strengths, active)
        actions.setdefault(site, []).append(action)
    return actions, None if single else len(listed)


def _checked(taps: Mapping[Site, Tap], site: Site, edit: Edit) -> Tensor:
    if site not in taps:
        layers = sorted(other.layer for other in taps if (other.tower, other.point) == (site.tower, site.point))
        have = f"layers {layers[0]} to {layers[-1]} there" if layers else "no such point"
        raise SiteError(f"The recipe edits {site}, but this model has {have}.")
    check_tower(site.tower, edit.positions)
    vector, width = edit.vectors.layers[site.layer].float(), taps[site].width * WIDTHS.get(edit.operation, 1)
    heads = taps[site].heads
    if heads and edit.operation == "scale" and vector.shape[-1] == heads:
        vector = vector.repeat_interleave(width // heads)
    if vector.shape[-1] != width:
        raise RecipeError(f"The vector for {site} has {vector.shape[-1]} numbers; this model needs {width} there.")
    return vector
