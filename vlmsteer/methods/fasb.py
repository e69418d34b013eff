"""FASB, flexible activation steering with backtracking (Cheng et al., NeurIPS 2025, arXiv 2508.17621).

ITI's heads and probes, but the answer is first written without a push. Where the probes find it untrue, its last tokens
are dropped and written again with the heads pushed, the more so the surer the probes are
(`decoding/probe_rollback.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlmsteer.errors import InputError
from vlmsteer.examples import Example, digest
from vlmsteer.methods.iti import displacements, read_heads
from vlmsteer.methods.method import Method, checked_layers
from vlmsteer.probes import accuracies, evaluate, fit_many, split
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.session import Session

NAME, VERSION = "fasb", 1
SHARE = 24 / 1024  # the paper's 24 heads of a 7B Llama's 1024


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    heads: int = 0,
    strength: float = 60.0,
    back: int = 10,
    threshold: float = 0.6,
    layers: Sequence[int] | None = None,
    test: float = 0.2,
    limit: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
) -> Recipe:
    """The probes of the most telling heads, and the push towards the truth in standard deviations.

    Args:
        heads: how many; 0 is the paper's share, 24 of 1024, and at least one.
        strength: standard deviations, times the probability of "untrue".
        back: how many tokens are written between two looks, and dropped.
        threshold: the mean probability of "true" below which they are.
        layers: of the text tower; all by default.
        test: the share of groups that heads are ranked on.
        limit: examples that probes are from, at most.

    Raises:
        InputError: for fewer than two groups, or more heads than there are.
    """
    chosen = checked_layers(session, layers)
    read = read_heads(session, examples, chosen, 1, 1, limit, batch_size, seed)
    fit, held = split(read.groups, test, seed)
    x, y = read.answers.flatten(1, 2), read.labels  # (answers, heads of all layers, head_dim)
    probe = fit_many(x[fit], y[fit])
    ranked = accuracies(probe, x[held], y[held])
    count = heads or max(1, round(SHARE * len(ranked)))
    if not 0 < count <= len(ranked) or back < 1:
        raise InputError(
            f"FASB takes 1 to {len(ranked)} heads here and goes back 1 token or more, not {heads}, {back}."
        )
    best = ranked.argsort(descending=True, stable=True)[:count]
    direction, spread = (found.flatten(0, 1)[best] for found in displacements(read, "answer"))
    said = (probe.score(x[held])[:, best]).sigmoid().mean(1)
    in_layer = read.true.shape[1]
    places = torch.tensor([(chosen[i // in_layer], i % in_layer) for i in best.tolist()])
    about = {
        "method": NAME, "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {
            "heads": count, "strength": strength, "back": back, "threshold": threshold, "layers": chosen, "test": test,
            "limit": limit, "seed": seed,
        },
        "heads": [
            {"layer": layer, "head": head, "accuracy": round(float(ranked[i]), 4)}
            for (layer, head), i in zip(places.tolist(), best.tolist(), strict=True)
        ],
        # Of the groups that chose the heads, so it flatters.
        "auroc": round(float(evaluate(said, y[held])["auroc"]), 4),
    }  # fmt: skip
    tensors = {
        "weight": probe.weight[best], "bias": probe.bias[best], "push": spread[:, None] * direction, "places": places
    }  # fmt: skip
    settings = {"back": back, "threshold": threshold, "strength": strength}
    return Recipe((), session.fingerprint, about, (Rule("probe_rollback", settings, tensors=tensors),))


METHOD = Method(
    name=NAME,
    title="FASB, steering and going back where probes find it untrue",
    paper="Cheng et al., NeurIPS 2025, arXiv 2508.17621",
    needs="captions",
    learn=learn,
    strengths=(0.1, 0.25, 0.5, 1.0),
    notes="Strength 1 is 60 standard deviations times the probability of untrue. The first token of an answer is never "
    "written again. Answers shorter than 10 tokens are left alone.",
)
