"""Does the declaration hold for the model that was loaded? Three forwards that answer it.

Every site must be passed with its declared width, and what is read there must add up: a block's output is its input
plus what attention and the MLP add, the next block starts from it, and the last one gives the logits. Edits that
change nothing, at every site at once, must leave the logits as they were to the last bit; a real edit at the first
layer, and at the last one that is said to matter, must change them.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import ModelError
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.session import Session, beside
from vlmsteer.sites import Site
from vlmsteer.states import States
from vlmsteer.vectors import Vectors

# A point inside, what its output projection makes of it, and how that is called in a sentence.
PROJECTED = (
    ("head", "attn_out", "its heads"),
    ("cross_head", "cross_out", "its heads"),
    ("neuron", "mlp_out", "its neurons"),
)


def check(session: Session) -> None:
    """Run the check.

    Raises:
        ModelError: naming the first site that does not behave as declared.
    """
    image, question = Image.new("RGB", (64, 64), (200, 60, 60)), "What is this?"
    with session.read(session.sites, positions="all", phase="both") as states:
        baseline = session.logits([image], [question])
    for site in session.sites:
        seen, width = states.rows(site)[0], session.taps[site].width
        if seen[0].numel() != width:
            raise ModelError(f"{site} has {seen[0].numel()} numbers a token, declared are {width}.")
    zeros = Recipe(tuple(_edit(session, site, 0.0) for site in session.sites))
    with session.apply(_nothing(zeros)):
        if not torch.equal(session.logits([image], [question]), baseline):
            raise ModelError("Edits that change nothing changed the answer: the hooks do not fit this model.")
    _adds_up(session, states, baseline[0])
    sites = [site for site in session.sites if site.layer == 0]
    sites += [
        Site(tower, last, "block_out")
        for tower in session.family.towers
        if (last := session.family.live_layers(session.model.config, tower) - 1)
    ]
    recipes = [Recipe((_edit(session, site, 1.0),)) for site in sites]
    changed = session.logits([image] * len(sites), [question] * len(sites), recipes)
    for site, row in zip(sites, changed, strict=True):
        if torch.allclose(row, baseline[0], atol=1e-4):
            raise ModelError(f"An edit at {site} does not reach the answer.")


def _adds_up(session: Session, states: States, logits: Tensor) -> None:
    """Compare what was read at different points of a block with each other."""

    def read(tower: str, layer: int, point: str) -> Tensor:
        return states.rows(Site(tower, layer, point))[0].flatten(1)

    def through(tower: str, layer: int, point: str, inputs: Tensor) -> Tensor:
        try:
            module = session.taps[Site(tower, layer, point)].module
            with torch.no_grad():
                return module(beside(module, inputs)[None])[0]
        except (RuntimeError, TypeError) as error:
            raise ModelError(f"{tower}.{layer}.{point} is not declared at the module that takes it.") from error

    for tower, declared in session.family.towers.items():
        for layer in range(session.layers(tower)):
            points = {site.point for site in session.sites if (site.tower, site.layer) == (tower, layer)}
            for inner, outer, what in PROJECTED:
                if outer in points:
                    made = through(tower, layer, inner, read(tower, layer, inner))
                    if _follows(session, Site(tower, layer, inner), Site(tower, layer, outer)):
                        made = through(tower, layer, outer, made)
                    _same(read(tower, layer, outer), made, f"{tower}.{layer}.{outer}", what)
            stream = read(tower, layer, "block_in")
            if layer:
                part = slice(None) if declared.stitched else slice(-1, None)  # the last token is text
                before = read(tower, layer - 1, "block_out")[part]
                _same(stream[part], before, f"{tower}.{layer}.block_in", "the block before it")
            if not declared.pre_norm:
                continue
            for point in ("attn_out", "cross_out"):
                stream = stream + _on(stream, read(tower, layer, point)) if point in points else stream
            normed = through(tower, layer, "norm_out", stream)
            _same(read(tower, layer, "norm_out"), normed, f"{tower}.{layer}.norm_out", "the stream's norm")
            total = stream + _on(stream, read(tower, layer, "mlp_out"))
            _same(read(tower, layer, "block_out"), total, f"{tower}.{layer}.block_out", "its parts")
    with torch.no_grad():
        tower = session.family.answers
        last = read(tower, session.layers(tower) - 1, "block_out")
        count = len(logits) // len(session.unembed(last[-1]))  # a flow's answer is of several tokens
        said = session.unembed(last[-count:]).flatten()
    _same(logits, said, "The logits", "the last block, the final norm and the unembedding")


def _follows(session: Session, inner: Site, outer: Site) -> bool:
    """Whether what the inner point projects to goes through the outer point's module next (a layer scale)."""
    around = set(session.taps[outer].module.modules())
    return session.taps[inner].module not in around


def _on(stream: Tensor, other: Tensor) -> Tensor:
    return other.to(stream.device, stream.dtype)


def _same(seen: Tensor, expected: Tensor, what: str, reason: str) -> None:
    tolerance = 1e-3 if seen.dtype in (torch.float32, torch.float64) else 0.1
    difference = torch.tensor(torch.inf)
    if seen.shape == expected.shape:
        difference = (seen.float() - _on(seen, expected).float()).norm()
    if not difference <= tolerance * seen.float().norm() + 1e-6:
        raise ModelError(f"{what} does not follow from {reason}: the family's declaration does not fit this model.")


def _edit(session: Session, site: Site, strength: float) -> Edit:
    width = session.taps[site].width
    vector = torch.full((width,), 10.0) * torch.linspace(-1, 1, width)
    return Edit(Vectors(site.tower, site.point, {site.layer: vector}), strength=strength, positions="all")


def _nothing(recipe: Recipe) -> Recipe:
    """The same edits, really run, with vectors of zeros (strength 0 itself is skipped before the model)."""
    edits = []
    for edit in recipe.edits:
        layers = {layer: torch.zeros_like(vector) for layer, vector in edit.fixed.layers.items()}
        edits.append(Edit(Vectors(edit.vectors.tower, edit.vectors.point, layers), "scale", 1.0, edit.positions))
    return Recipe(tuple(edits))
