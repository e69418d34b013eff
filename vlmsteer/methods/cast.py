"""CAST, conditional activation steering (Lee et al., ICLR 2025, arXiv 2409.05907).

A behavior vector, the principal direction of right against wrong answers, is added only to questions on which a
condition vector fires: the cosine between a state and its own projection on that vector, once, at the prompt. Here the
condition is that the object asked about is not there, and the behavior to deny it. Layer, threshold and side of the
condition are those of the best F1 on held-out groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlmsteer.errors import InputError, RecipeError, did_you_mean
from vlmsteer.examples import Example, digest, split_groups
from vlmsteer.methods.caa import TOKENS, answer_states
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.reading import batches
from vlmsteer.recipe import Edit, Gate, Recipe
from vlmsteer.running import Components, Mean
from vlmsteer.samples import area
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

NAME, VERSION = "cast", 1
WAYS = ("pairwise", "diff", "center")
WINDOW = (15 / 32, 24 / 32)  # the paper's layers 15 to 23 of 32


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    gated: bool = True,
    pca: str = "pairwise",
    layers: Sequence[int] | None = None,
    condition_layers: Sequence[int] | None = None,
    pool: str = "last",
    coefficient: float = 1.5,
    held_out: float = 0.3,
    batch_size: int = 16,
) -> Recipe:
    """A behavior vector and, unless `gated` is off, the condition under which it acts.

    Args:
        pca: "pairwise", both of a pair about their midpoint; "diff", their differences about the mean difference;
            "center", all states about their mean.
        layers: where the behavior is added, by default 15/32 to 24/32 of the way up.
        condition_layers: where the condition is looked for, by default everywhere before these.
        pool: "last", the prompt's last token, or "mean", over the prompt.
        coefficient: the paper's strength, of a vector of length 1.
        held_out: the share of groups to choose the condition on.

    Raises:
        InputError: if gated, and there are not enough questions answered by yes and by no in two groups or more.
    """
    enough(examples, "CAST")
    if pca not in WAYS:
        raise RecipeError(f"There is no pca {pca!r}{did_you_mean(pca, WAYS)}")
    if pool not in ("last", "mean"):
        raise RecipeError(f"A condition reads the 'last' token or the 'mean', not {pool!r}.")
    chosen = checked_layers(session, layers) if layers else _window(session)
    about = {
        "method": NAME, "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {"gated": gated, "pca": pca, "layers": chosen, "pool": pool, "coefficient": coefficient},
    }  # fmt: skip
    gate = None
    if gated:
        offered = checked_layers(session, condition_layers) if condition_layers else list(range(chosen[0]))
        if not offered or offered[-1] >= chosen[0]:
            raise InputError(f"The condition must be read before layer {chosen[0]}, the first that is changed.")
        gate, about["condition"] = condition(session, examples, offered, pca, pool, held_out, batch_size)
    taught = [one for one in examples if one.kind != "presence" or denies(one)]
    enough(taught, "CAST's behavior")
    answered = answer_states(session, taught, chosen, TOKENS["mean"], batch_size=batch_size)
    vectors = principal((states for _, states in answered), pca)
    behavior = Vectors("text", "block_out", dict(zip(chosen, vectors, strict=True)), session.fingerprint, about)
    return Recipe((Edit(behavior, "add", coefficient, "all", gate=gate),), session.fingerprint, about)


def condition(
    session: Session, examples: Sequence[Example], layers: Sequence[int], pca: str, pool: str, held_out: float,
    batch_size: int,
) -> tuple[Gate, dict[str, object]]:  # fmt: skip
    """The gate that best tells questions about what is absent from others, and how well it does.

    The vectors are learned on all groups but the held-out ones; layer, threshold and side are chosen on these, so the
    F1 given is that of a choice.
    """
    held, rest = split_groups(examples, held_out)
    vectors = principal(_asked(session, _pairs(rest), layers, pool, batch_size), pca)
    scores = torch.cat(
        [projected(states, vectors) for states in _asked(session, _pairs(held), layers, pool, batch_size)]
    )  # (pairs, met and not, layers)
    labels = torch.tensor([True, False]).expand(len(scores), 2).flatten()
    found = [best_threshold(scores[..., i].flatten(), labels) for i in range(len(layers))]
    best = max(range(len(layers)), key=lambda i: found[i][0])
    f1, threshold, when = found[best]
    site = Site("text", layers[best], "block_out")
    gate = Gate(site, vectors[best], threshold, "projected", "last" if pool == "last" else "all", when)
    auroc = float(area(scores[:, 0, best], scores[:, 1, best]))
    return gate, {
        "layer": layers[best], "threshold": round(threshold, 6), "when": when, "f1": round(f1, 4),
        "auroc": round(auroc if when == "above" else 1 - auroc, 4), "held_out": len(labels),
    }  # fmt: skip


def principal(pairs: Iterator[Tensor], pca: str = "pairwise") -> Tensor:
    """(layers, width) unit directions of a stream of (n, 2, layers, width) pairs, the first of each to the larger side.

    The sum over pairs of both members about their midpoint is half that of the differences as they are, so "pairwise"
    is the principal direction of uncentered differences.
    """
    parts, mean = Components(1, centered=pca != "pairwise"), Mean()
    for states in pairs:
        differences = states[:, 0] - states[:, 1]
        mean.update(differences)
        parts.update(states.flatten(0, 1) if pca == "center" else differences)
    directions = parts.components()[0][:, 0]
    turn = (directions * mean.mean).sum(-1, keepdim=True) < 0
    return torch.where(turn, -directions, directions).float()


def projected(states: Tensor, direction: Tensor) -> Tensor:
    """cos(h, tanh(P h)) with P = c c' / |c|^2, over the last axis."""
    along = (states * direction).sum(-1, keepdim=True) / direction.square().sum(-1, keepdim=True)
    return torch.cosine_similarity(states, torch.tanh(along * direction), dim=-1)


def best_threshold(scores: Tensor, labels: Tensor) -> tuple[float, float, str]:
    """The best F1 for `labels` (n,), the threshold halfway between two of the scores (n,), and the side of it.

    Raises:
        InputError: if all scores are the same.
    """
    values = scores.double().unique()
    if len(values) < 2:
        raise InputError("The condition has the same score for every question; give other examples or layers.")
    thresholds = (values[1:] + values[:-1]) / 2
    found: list[tuple[float, float, str]] = []
    for when in ("above", "below"):
        met = (scores.double() > thresholds[:, None]) ^ (when == "below")  # (thresholds, n)
        hits = (met & labels).sum(1)
        f1 = 2 * hits / (met.sum(1) + labels.sum())
        found.append((float(f1.max()), float(thresholds[f1.argmax()]), when))
    return max(found, key=lambda one: one[0])


def denies(one: Example) -> bool:
    """Whether the right answer to a yes/no question is no."""
    return one.right.strip().lower().startswith("no")


def _pairs(examples: Sequence[Example]) -> list[tuple[Example, Example]]:
    asked = [one for one in examples if one.kind == "presence"]
    met, other = [one for one in asked if denies(one)], [one for one in asked if not denies(one)]
    if not met or not other:
        raise InputError(
            f"A condition is learned from yes/no questions of both answers, not from {len(met)} answered by no and "
            f"{len(other)} by yes; gated=False does without one."
        )
    return list(zip(met, other, strict=False))


def _asked(
    session: Session, pairs: Sequence[tuple[Example, Example]], layers: Sequence[int], pool: str, batch_size: int
) -> Iterator[Tensor]:
    """The states of prompts, (pairs of the batch, 2, layers, width)."""
    sites = [Site("text", layer, "block_out") for layer in layers]
    flat = [one for pair in pairs for one in pair]
    images, questions = [one.image for one in flat], [one.question for one in flat]
    positions = "last" if pool == "last" else "all"
    for _, states in batches(
        session, sites, images, questions, None, positions, batch_size=max(2, batch_size // 2 * 2)
    ):
        kept = [torch.stack([row.float().mean(0) for row in states.rows(site)]).cpu() for site in sites]
        yield torch.stack(kept, 1).unflatten(0, (-1, 2))


def _window(session: Session) -> list[int]:
    count = session.layers()
    first, end = (int(share * count) for share in WINDOW)
    return list(range(first, max(end, first + 1)))


METHOD = Method(
    name=NAME,
    title="CAST, conditional activation steering",
    paper="Lee et al., ICLR 2025, arXiv 2409.05907",
    needs="presence",
    learn=learn,
    strengths=(1.0, 2.0, 4.0),
    notes="Written after the block where it is read (the authors' code: before the next-lower one), and the threshold "
    "means what it says (there, 'larger' acts on smaller scores). From captions: gated=False.",
)
