"""Does the declaration hold for the model that was loaded? Three forwards that answer it.

Every site must be passed with its declared width; edits that change nothing, at every site at once, must leave the logits
as they were to the last bit; and a real edit at the first layer of each tower must change them.
"""

from __future__ import annotations

import torch
from PIL import Image

from vlmsteer.errors import ModelError
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors


def check(session: Session) -> None:
    """Run the check.

    Raises:
        ModelError: naming the first site that does not behave as declared.
    """
    image, question = Image.new("RGB", (64, 64), (200, 60, 60)), "What is this?"
    with session.read(session.sites, positions="all") as states:
        baseline = session.logits([image], [question])
    for site in session.sites:
        seen, width = states.rows(site)[0], session.taps[site].width
        if seen[0].numel() != width:
            raise ModelError(f"{site} has {seen[0].numel()} numbers a token, declared are {width}.")
    zeros = Recipe(tuple(_edit(session, site, 0.0) for site in session.sites))
    with session.apply(_nothing(zeros)):
        if not torch.equal(session.logits([image], [question]), baseline):
            raise ModelError("Edits that change nothing changed the answer: the hooks do not fit this model.")
    sites = [site for site in session.sites if site.layer == 0]
    recipes = [Recipe((_edit(session, site, 1.0),)) for site in sites]
    changed = session.logits([image] * len(sites), [question] * len(sites), recipes)
    for site, row in zip(sites, changed, strict=True):
        if torch.allclose(row, baseline[0], atol=1e-4):
            raise ModelError(f"An edit at {site} does not reach the answer.")


def _edit(session: Session, site: Site, strength: float) -> Edit:
    width = session.taps[site].width
    vector = torch.full((width,), 10.0) * torch.linspace(-1, 1, width)
    return Edit(Vectors(site.tower, site.point, {site.layer: vector}), strength=strength, positions="all")


def _nothing(recipe: Recipe) -> Recipe:
    """The same edits, really run, with vectors of zeros (strength 0 itself is skipped before the model)."""
    edits = []
    for edit in recipe.edits:
        layers = {layer: torch.zeros_like(vector) for layer, vector in edit.vectors.layers.items()}
        edits.append(Edit(Vectors(edit.vectors.tower, edit.vectors.point, layers), "scale", 1.0, edit.positions))
    return Recipe(tuple(edits))
