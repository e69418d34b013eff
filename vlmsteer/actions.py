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
from vlmsteer.operations import BY_HEAD, NEUTRAL, OPERATIONS, WIDTHS
from vlmsteer.recipe import Edit, Gate, Recipe, finite
from vlmsteer.remembered import Remembered
from vlmsteer.sites import Site
from vlmsteer.tokens import EVERY, Selection, check_tower
from vlmsteer.vectors import PerQuestion, Vectors

# Computed in the model's dtype; the rest in float32.
PLAIN_IN_HALF = frozenset({"add", "replace", "clamp", "scale", "rescale", "mean_of_others"})
FEW = 8  # of many tokens, what changes fewer than one in so many dimensions is worked out in these alone


class Tap(NamedTuple):
    """The module at a site, which side of it is meant, and the width; `heads` splits the width at `head` sites."""

    module: nn.Module
    side: str
    width: int
    heads: int | None = None


class Placed(NamedTuple):
    """An action's tensors on one device in one dtype, ready to meet (batch, tokens, width) states.

    `vectors` are (rows, 1 or tokens, width), where `few` (n,) is given of these dimensions only; `strengths` are
    (rows, 1, 1); `pushed`, for an addition, is their product; `solid` if the vectors are what the states become.
    """

    vectors: Tensor
    strengths: Tensor
    few: Tensor | None
    pushed: Tensor | None
    solid: bool


class Action:
    """One edit at one site, for one recipe or for a batch whose rows carry different vectors and strengths.

    `vectors` are (rows, width), or (rows, tokens, width) where each chosen token has its own.
    """

    def __init__(
        self,
        edit: Edit,
        vectors: Tensor,
        strengths: Tensor,
        active: Tensor | None,
        gates: Sequence[Gate | None] = (),
    ) -> None:
        self.positions, self.phase, self.operation = edit.positions, edit.phase, edit.operation
        self.vectors, self.strengths, self.active, self.gates = vectors, strengths, active, gates
        self._half = edit.operation in PLAIN_IN_HALF
        self._few = _few(edit.operation, vectors)
        self._placed: dict[tuple[torch.device, torch.dtype], Placed] = {}
        self._acting: tuple[tuple[int, int, torch.device], Tensor | None, Tensor, Tensor] | None = None

    def __call__(
        self,
        states: Tensor,
        selection: Selection | None,
        group: int,
        owners: Tensor | None,
        acts: Tensor | None = None,
    ) -> Tensor:
        """The edited states.

        Args:
            owners: maps rows of this tower's batch to the caller's, None means rows // group.
            acts: (rows of the batch,) where the gates let it act; None is everywhere.
        """
        if selection is None:
            return states
        dtype = states.dtype if self._half else torch.promote_types(states.dtype, torch.float32)
        placed = self._on(states.device, dtype)
        if selection is EVERY and acts is None and states.dim() == 3:
            return self._everywhere(states, placed, dtype, group, owners)
        return self._somewhere(states, placed, dtype, selection, group, owners, acts)

    def _everywhere(
        self, states: Tensor, placed: Placed, dtype: torch.dtype, group: int, owners: Tensor | None
    ) -> Tensor:
        """Every token of the rows it acts on changed."""
        if self.vectors.dim() == 3 and self.vectors.shape[1] != states.shape[1]:
            raise self._count(states.shape[1])
        if self.active is None:
            return self._changed(states, placed, dtype)
        at, callers = self._rows(states, group, owners)
        if not len(at):
            return states
        own = placed._replace(
            vectors=placed.vectors[callers],
            strengths=placed.strengths[callers],
            pushed=None if placed.pushed is None else placed.pushed[callers],
        )
        if len(at) == len(states):
            return self._changed(states, own, dtype)
        return states.index_copy(0, at, self._changed(states.index_select(0, at), own, dtype))

    def _changed(self, states: Tensor, placed: Placed, dtype: torch.dtype) -> Tensor:
        """All of (batch, tokens, width) states changed by as many rows of vectors, or by one."""
        vectors, strengths, few, pushed, solid = placed
        if pushed is not None:
            return states + pushed
        if few is None:
            return OPERATIONS[self.operation](states.to(dtype), vectors, strengths).to(states.dtype)
        if solid:
            return states.index_copy(-1, few, vectors.expand(*states.shape[:2], -1))
        changed = OPERATIONS[self.operation](states.index_select(-1, few).to(dtype), vectors, strengths)
        return states.index_copy(-1, few, changed.to(states.dtype))

    def _rows(self, states: Tensor, group: int, owners: Tensor | None) -> tuple[Tensor, Tensor]:
        """The rows of the batch that it acts on, and whose they are; step after step they are the same."""
        known = self._acting
        if known is None or known[0] != (len(states), group, states.device) or known[1] is not owners:
            assert self.active is not None
            callers = torch.arange(len(states)) // group if owners is None else owners.cpu()
            at = self.active[callers].nonzero()[:, 0]
            key = (len(states), group, states.device)
            known = self._acting = (key, owners, at.to(states.device), callers[at].to(states.device))
        return known[2:]

    def _somewhere(
        self,
        states: Tensor,
        placed: Placed,
        dtype: torch.dtype,
        selection: Selection,
        group: int,
        owners: Tensor | None,
        acts: Tensor | None,
    ) -> Tensor:
        """The selected tokens changed, of rows that it acts on and whose gates let it."""
        rows, columns = selection
        if rows is None or columns is None:
            rows = torch.arange(states.shape[0], device=states.device).repeat_interleave(states.shape[1])
            columns = torch.arange(states.shape[1], device=states.device).repeat(states.shape[0])
        vectors, strengths, few, *_ = placed
        keep = None if acts is None else acts.to(rows.device)[rows]
        if self.active is not None:
            caller = rows // group if owners is None else owners.to(rows.device)[rows]
            active = self.active.to(rows.device)[caller]
            keep = active if keep is None else keep & active
        else:
            caller = torch.zeros_like(rows)
        if keep is not None:
            rows, columns, caller = rows[keep], columns[keep], caller[keep]
        if self.vectors.dim() == 3:  # only rows it acts on need that many tokens
            vectors, strengths = vectors[caller, self._places(rows)], strengths[caller, 0]
        elif self.active is not None:
            vectors, strengths = vectors[caller, 0], strengths[caller, 0]
        else:
            vectors, strengths = vectors[0], strengths[0]
        at = (rows, columns) if few is None else (rows[:, None], columns[:, None], few)
        changed = OPERATIONS[self.operation](states[at].to(dtype), vectors, strengths)
        return states.index_put(at, changed.to(states.dtype))

    def _places(self, rows: Tensor) -> Tensor:
        """Which of its row's chosen tokens each is; they come row by row, in order."""
        _, counts = rows.unique_consecutive(return_counts=True)
        if not bool((counts == self.vectors.shape[1]).all()):
            raise self._count(sorted(set(counts.tolist())))
        return torch.arange(self.vectors.shape[1], device=rows.device).repeat(len(counts))

    def _count(self, found: int | list[int]) -> SiteError:
        return SiteError(
            f"The recipe has vectors of their own for {self.vectors.shape[1]} tokens, but there are {found} here: "
            "learn it on images of this size, or with one vector for all tokens."
        )

    def _on(self, device: torch.device, dtype: torch.dtype) -> Placed:
        key = (device, dtype)
        if key not in self._placed:
            few = None if self._few is None else self._few.to(device)
            vectors, strengths = self.vectors.to(device, dtype), self.strengths.to(device, dtype)[:, None]
            vectors = vectors if vectors.dim() == 3 else vectors[:, None]
            vectors = vectors if few is None else vectors[..., few]
            pushed = strengths * vectors if self.operation == "add" and few is None else None
            solid = self.operation == "clamp" and few is not None and bool((strengths == 1).all())
            solid = solid and not bool(vectors.isnan().any())
            self._placed[key] = Placed(vectors, strengths, few, pushed, solid)
        return self._placed[key]


def _few(operation: str, vectors: Tensor) -> Tensor | None:
    """The dimensions that any of the vectors (rows, width) changes, if they are few, as in an edit of some neurons."""
    if operation not in NEUTRAL or vectors.dim() != 2:
        return None
    found = (~vectors.isnan() if operation == "clamp" else vectors != 0).any(0).nonzero()[:, 0]
    return found if len(found) * FEW < vectors.shape[1] else None


class Rules(NamedTuple):
    """A rule of the forward for one recipe (strengths (1,)) or for a batch of rows: see `RULES` of `recipe`."""

    name: str
    layers: tuple[int, ...]
    normed: bool
    strengths: Tensor

    @property
    def sites(self) -> list[Site]:
        return [Site("text", layer, "block_out") for layer in self.layers]


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
            for site in edit.sites if edit.strength or isinstance(edit.vectors, Vectors) else ():
                vector = _checked(taps, site, edit)
                if edit.strength != 0:
                    gate = None if edit.gate is None else (edit.gate.site, edit.gate.positions)
                    key = (site, index, edit.operation, edit.positions, edit.phase, vector.shape, gate)
                    gathered.setdefault(key, {})[row] = (edit, vector)
    actions: dict[Site, list[Action]] = {}
    for (site, *_), by_row in sorted(gathered.items(), key=lambda entry: entry[0][1]):
        edit, vector = next(iter(by_row.values()))
        if single:
            gates = [] if edit.gate is None else [edit.gate]
            action = Action(edit, vector[None], torch.tensor([[float(edit.strength)]]), None, gates)
        else:
            vectors = torch.zeros(len(listed), *vector.shape)
            strengths, active = torch.zeros(len(listed), 1), torch.zeros(len(listed), dtype=torch.bool)
            gates: list[Gate | None] = [None] * len(listed)
            for row, (edit, vector) in by_row.items():
                vectors[row], strengths[row], active[row] = vector, float(edit.strength), True
                gates[row] = edit.gate
            action = Action(edit, vectors, strengths, active, gates if any(gates) else ())
        actions.setdefault(site, []).append(action)
    return actions, None if single else len(listed)


class Compiled:
    """`compile_actions` for one model; what a recipe came to is remembered while it lives and stays as it is."""

    def __init__(self) -> None:
        self._known: Remembered[dict[Site, list[Action]]] = Remembered()

    def __call__(
        self, taps: Mapping[Site, Tap], recipes: Recipe | Sequence[Recipe | None] | None
    ) -> tuple[dict[Site, list[Action]], int | None]:
        """Actions by site, and how many rows have recipes of their own."""
        if not isinstance(recipes, Recipe) or any(isinstance(edit.vectors, PerQuestion) for edit in recipes.edits):
            return compile_actions(taps, recipes)
        vectors = [vector for edit in recipes.edits for vector in edit.fixed.layers.values()]
        if any(vector.requires_grad or vector.is_inference() for vector in vectors):
            return compile_actions(taps, recipes)
        stamp = (taps, [vector._version for vector in vectors])
        return self._known(recipes, stamp, lambda: compile_actions(taps, recipes)[0]), None


def compile_rules(recipes: Recipe | Sequence[Recipe | None] | None, layers: int) -> list[Rules]:
    """The rules that are part of a forward, for one recipe or for one a row.

    Raises:
        RecipeError: if a rule reads a layer that the text tower does not have.
    """
    single = recipes is None or isinstance(recipes, Recipe)
    listed: Sequence[Recipe | None] = [recipes] if single else recipes  # pyright: ignore[reportAssignmentType]
    found: dict[tuple[int, tuple[int, ...], bool], Tensor] = {}
    for row, recipe in enumerate(listed):
        for index, rule in enumerate(recipe.rules if recipe else ()):
            if rule.name != "self_logits" or rule.strength == 0:
                continue
            read, share = rule.settings.get("layers"), finite(rule.settings.get("share"))
            known = isinstance(read, list | tuple) and all(type(n) is int and 0 <= n < layers for n in read)
            if not known or not read:
                raise RecipeError(f"The rule {rule.name} reads layers {read!r}; this model has 0 to {layers - 1}.")
            key = (index, tuple(read), bool(rule.settings.get("normed", False)))
            strengths = found.setdefault(key, torch.zeros(len(listed)))
            strengths[row] = share * rule.strength
    ordered = sorted(found.items(), key=lambda entry: entry[0][0])
    return [Rules("self_logits", read, normed, strengths) for (_, read, normed), strengths in ordered]


def _checked(taps: Mapping[Site, Tap], site: Site, edit: Edit) -> Tensor:
    if site not in taps:
        layers = sorted(other.layer for other in taps if (other.tower, other.point) == (site.tower, site.point))
        have = f"layers {layers[0]} to {layers[-1]} there" if layers else "no such point"
        raise SiteError(f"The recipe edits {site}, but this model has {have}.")
    vectors = edit.fixed
    check_tower(site.tower, edit.positions)
    if edit.gate is not None:
        if edit.gate.site.tower not in ("text", "encoder"):
            raise SiteError(f"A gate reads the prompt's tokens, in the text or encoder tower, not {edit.gate.site}.")
        order = list(taps)
        if edit.gate.site not in taps or (order.index(edit.gate.site) >= order.index(site) and edit.phase != "decode"):
            raise SiteError(f"The gate reads {edit.gate.site}, which must come before {site} in the network.")
        if len(edit.gate.direction) != taps[edit.gate.site].width:
            raise RecipeError(
                f"The gate's direction has {len(edit.gate.direction)} numbers; {edit.gate.site} has "
                f"{taps[edit.gate.site].width}."
            )
    vector, width = vectors.layers[site.layer].float(), taps[site].width * WIDTHS.get(edit.operation, 1)
    heads = taps[site].heads
    if heads and edit.operation in BY_HEAD and vector.shape[-1] == heads:
        vector = vector.repeat_interleave(width // heads, dim=-1)
    if vector.shape[-1] != width:
        raise RecipeError(f"The vector for {site} has {vector.shape[-1]} numbers; this model needs {width} there.")
    return vector
