"""Patching through the ordinary hooks, many sites a batch: every row is a whole forward with a recipe of its own.

For models whose decoder cannot be walked, and inside a read or apply block, whose hooks then act on every row too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmsteer.lens.contrast import Contrast
from vlmsteer.lens.patch_plan import Plan
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

ROWS = 16  # sites a batch


def sweep(planned: Plan) -> Tensor:
    """(sites, groups, units) of the metric, as `patch_suffix.sweep` gives them."""
    units, run = planned.units, planned.contrast.recipient
    own = [None] if units is None else units
    cells = [(site, group, unit) for site in planned.sites for group in planned.groups for unit in own]
    scores = []
    for first in range(0, len(cells), ROWS):
        recipes = [patched(planned.contrast, *cell) for cell in cells[first : first + ROWS]]
        images, questions = [run.image] * len(recipes), [run.question] * len(recipes)
        logits = planned.session.run(images, questions, recipes=recipes)[:, -1]
        scores.append(planned.metric(logits).float().cpu())
    return torch.cat(scores).view(planned.shape)


def patched(contrast: Contrast, site: Site, group: tuple[int, ...], unit: int | None = None) -> Recipe:
    """The recipe that puts the donor's states at these tokens into the recipient's run.

    Args:
        unit: a head at `head`, a single dimension elsewhere; None is the whole state.
    """
    states = contrast.donor.states[site].float().cpu()[contrast.partners[list(group)]]
    if unit is not None:
        kept = torch.full_like(states, torch.nan)
        kept[:, unit] = states[:, unit]
        states = kept
    operation = "replace" if unit is None else "clamp"
    vectors = Vectors(site.tower, site.point, {site.layer: states.flatten(1)})
    return Recipe((Edit(vectors, operation, positions=group, phase="prefill"),))


def patched_together(planned: Plan, cells: Sequence[tuple[int, int]]) -> Recipe:
    """The recipe that patches several sites at once.

    Args:
        cells: numbers of a site and of a group of tokens.
    """
    by_site: dict[int, set[int]] = {}
    for site, group in cells:
        by_site.setdefault(site, set()).update(planned.groups[group])
    recipes = [patched(planned.contrast, planned.sites[site], tuple(sorted(at))) for site, at in by_site.items()]
    return Recipe(tuple(edit for recipe in recipes for edit in recipe.edits))
