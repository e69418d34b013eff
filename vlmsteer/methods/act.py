"""AcT, activation transport (Rodriguez et al., ICLR 2025, arXiv 2410.23054): maps instead of a direction.

At each dimension the sorted states of untrue answers are carried onto the sorted states of true ones by the best line
w z + b, which is one-dimensional optimal transport between them. A layer is learned on states that the layers below
have already carried.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmsteer.errors import RecipeError, did_you_mean
from vlmsteer.examples import Example, digest
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.reading import batches
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.samples import Sample
from vlmsteer.session import Session
from vlmsteer.sites import Site, expand
from vlmsteer.vectors import Vectors

VERSION = 1
MAPS = ("linear", "mean", "gaussian")
POINTS = ("norm_out", "mlp_out", "block_out", "attn_out")
TOKENS = ("generated", "all")


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    transport: str = "linear",
    point: str = "norm_out",
    tokens: str = "generated",
    positions: str = "all",
    incremental: bool = True,
    support: bool = True,
    layers: Sequence[int] | None = None,
    limit: int = 1024,
    batch_size: int = 16,
    seed: int = 0,
) -> Recipe:
    """Carry the states of wrong answers to those of right ones.

    Args:
        transport: "linear" (Linear-AcT), "mean" (a shift) or "gaussian" (equal means and deviations).
        point: where; "norm_out", "mlp_out", "block_out" or "attn_out".
        tokens: whose states are averaged for each answer: the "generated" ones, or "all", with prompt and image.
        positions: which tokens are carried at use; "all" in the paper.
        incremental: learn a layer while those below are carried; costs one reading of the wrong answers a layer.
        support: leave values outside the range of the wrong answers' as they are, as the paper does.
        limit: answers of each kind that are kept, by chance if there are more.

    Raises:
        RecipeError: if an option is not one of those named.
    """
    for given, possible, what in ((transport, MAPS, "map"), (point, POINTS, "point"), (tokens, TOKENS, "token choice")):
        if given not in possible:
            raise RecipeError(f"There is no {what} {given!r}{did_you_mean(given, possible)}.")
    enough(examples, "AcT")
    chosen = checked_layers(session, layers)
    expand([Site("text", layer, point) for layer in chosen], session.sites)

    def pooled(right: bool, which: Sequence[int], recipe: Recipe | None = None) -> dict[int, Sample]:
        """Each answer's mean state, (answers, width), by layer."""
        samples = {layer: Sample(limit, seed) for layer in which}
        sites = {layer: Site("text", layer, point) for layer in which}
        images, questions = [one.image for one in examples], [one.question for one in examples]
        answers = [one.right if right else one.wrong for one in examples]
        for _, states in batches(session, list(sites.values()), images, questions, answers, tokens, recipe, batch_size):
            for layer, site in sites.items():
                samples[layer].update(torch.stack([row.float().mean(0) for row in states.rows(site)]))
        return samples

    target = pooled(True, chosen)
    source = {} if incremental else pooled(False, chosen)
    found: dict[int, Tensor] = {}
    operation = "transport" if support else "affine"
    distances = {}
    for layer in chosen:
        below = None
        if incremental and found:
            below = Recipe((Edit(Vectors("text", point, dict(found)), operation, 1.0, positions),))
        given = (source or pooled(False, [layer], below))[layer].rows
        weight, bias = line(given, target[layer].rows, transport)
        bounds = [given.min(0).values, given.max(0).values] if support else []
        found[layer] = torch.cat([weight, bias, *bounds])
        distances[str(layer)] = [
            round(distance(states, target[layer].rows), 6) for states in (given, weight * given + bias)
        ]
    about = {
        "method": "act", "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {
            "transport": transport, "point": point, "tokens": tokens, "positions": positions,
            "incremental": incremental, "support": support, "layers": chosen, "limit": limit, "seed": seed,
        },
        "distance_before_and_after": distances,
    }  # fmt: skip
    vectors = Vectors("text", point, found, session.fingerprint, about)
    return Recipe((Edit(vectors, operation, 1.0, positions),), session.fingerprint, about)


def line(source: Tensor, target: Tensor, transport: str = "linear") -> tuple[Tensor, Tensor]:
    """w and b, (width,) float32, that carry source (n, width) onto target (n, width), each dimension on its own.

    "linear" is the least-squares line through the pairs of sorted values, "gaussian" makes mean and
    deviation equal, "mean" only shifts. A dimension that does not vary is shifted.
    """
    source, target = source.double(), target.double()
    middle, goal = source.mean(0), target.mean(0)
    weight = torch.ones_like(middle)
    if transport != "mean":
        low, high = source.sort(0).values - middle, target.sort(0).values - goal
        variance = low.square().mean(0)
        slope = (low * high).mean(0) / variance if transport == "linear" else (high.square().mean(0) / variance).sqrt()
        weight = torch.where(variance > 1e-12 * (1 + middle.square()), slope, weight)
    return weight.float(), (goal - weight * middle).float()


def distance(source: Tensor, target: Tensor) -> float:
    """The mean over dimensions of how far sorted values lie apart (1-Wasserstein) between samples of one size."""
    return float((source.sort(0).values - target.sort(0).values).abs().mean())


METHOD = Method(
    name="act",
    title="Linear-AcT, activation transport",
    paper="Rodriguez et al., ICLR 2025, arXiv 2410.23054",
    needs="captions",
    learn=learn,
    strengths=(0.25, 0.5, 1.0),
    notes="strength runs from 0 to 1; means are over the answer's tokens, since the prompt is that of both",
)
