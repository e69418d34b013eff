"""AurA (Suau et al., ICML 2024, arXiv 2407.12824): turn down neurons by how well they tell untrue from true answers.

A neuron's score is the AUROC of its largest activation over an answer's tokens, wrong answers against right ones. Above
one half it is multiplied by 1 - 2 (AUROC - 1/2): a perfect detector is silenced, one at chance is left alone. There is
nothing to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmsteer.errors import RecipeError, did_you_mean
from vlmsteer.examples import Example, digest
from vlmsteer.methods.iti import statements
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.reading import batches
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.samples import Area
from vlmsteer.session import Session
from vlmsteer.sites import Site, expand
from vlmsteer.vectors import Vectors

VERSION = 1
TOKENS = ("generated", "all")


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    point: str = "neuron",
    tokens: str = "generated",
    positions: str = "all",
    layers: Sequence[int] | None = None,
    limit: int = 512,
    batch_size: int = 16,
    seed: int = 0,
) -> Recipe:
    """Turn down the neurons that are more active in wrong answers.

    Args:
        point: "neuron", or another point whose dimensions are taken for neurons.
        tokens: over which the largest activation is taken: the "generated" ones, or "all", with prompt and image.
        positions: which tokens are changed at use.
        limit: answers of each kind that AUROC is from, by chance if there are more.

    Raises:
        RecipeError: if `tokens` is neither.
    """
    if tokens not in TOKENS:
        raise RecipeError(f"There is no token choice {tokens!r}{did_you_mean(tokens, TOKENS)}.")
    enough(examples, "AurA")
    chosen = checked_layers(session, layers)
    sites = expand([Site("text", layer, point) for layer in chosen], session.sites)
    areas = {site: Area(limit, seed) for site in sites}
    images, questions, answers = statements(examples)
    for rows, states in batches(session, sites, images, questions, answers, tokens, batch_size=batch_size):
        for site in sites:
            largest = torch.stack([row.float().flatten(1).amax(0) for row in states.rows(site)])
            wrong = torch.arange(rows.start, rows.start + len(largest)) % 2 == 1
            areas[site].update(largest, wrong)
    changes = {site.layer: change(areas[site].auroc) for site in sites}
    about = {
        "method": "aura", "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {
            "point": point, "tokens": tokens, "positions": positions, "layers": chosen, "limit": limit, "seed": seed,
        },
        "turned_down": {str(layer): round(float((v < 0).float().mean()), 4) for layer, v in changes.items()},
        "mean_factor": {str(layer): round(float(1 + v.mean()), 4) for layer, v in changes.items()},
    }  # fmt: skip
    vectors = Vectors("text", point, changes, session.fingerprint, about)
    return Recipe((Edit(vectors, "scale", 1.0, positions),), session.fingerprint, about)


def change(auroc: Tensor) -> Tensor:
    """The relative change (width,) of neurons with AUROC (width,): the factor 1 - 2 (AUROC - 1/2), minus one."""
    return -2 * (auroc - 0.5).clamp(min=0).float()


METHOD = Method(
    name="aura",
    title="AurA, turning down detectors",
    paper="Suau et al., ICML 2024, arXiv 2407.12824",
    needs="captions",
    learn=learn,
    strengths=(0.5, 1.0),
    notes="Neurons are the inputs of the down projection; the authors' code takes the outputs of the MLP's linear "
    "layers. With few examples many neurons are above chance by luck, and all of these are turned down a little.",
)
