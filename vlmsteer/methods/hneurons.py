"""H-Neurons (Gao et al., 2025, arXiv 2512.01797): the few neurons whose share of the MLP's output foretells untruth.

A neuron's share is its activation times the length of its column in the down projection over the length of what the
MLP gives (CETT). A logistic probe with a penalty that leaves most weights at 0 tells wrong answers from right answers
and from other tokens; neurons with a positive weight are multiplied by a factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlmsteer.errors import InputError, SiteError
from vlmsteer.examples import Example, digest
from vlmsteer.methods.iti import sampled, statements
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.probes import evaluate, logistic, split
from vlmsteer.reading import batches
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.session import Session
from vlmsteer.sites import Site, expand
from vlmsteer.vectors import Vectors

VERSION = 1
SMALL = 1e-8  # added to the MLP's output length, as in the authors' code


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    factor: float = 0.0,
    c: float = 1.0,
    standardize: bool = False,
    positions: str = "all",
    layers: Sequence[int] | None = None,
    test: float = 0.25,
    limit: int = 300,
    batch_size: int = 16,
    seed: int = 0,
) -> Recipe:
    """Multiply the neurons that foretell wrong answers.

    Args:
        factor: what they are multiplied by; 0 silences them. The paper tries 0 to 3.
        c: inverse strength of the probe's penalty; 1 in the paper.
        standardize: bring the shares of each neuron to variance 1 for the fit, which the authors do not.
        positions: which tokens are changed at use.
        test: the share of groups on which the probe's AUROC is measured, by a probe that has not seen them.
        limit: examples read, at most, by chance if there are more; each gives three rows as wide as all neurons.

    Raises:
        InputError: if there are fewer than two groups, or no neuron has a positive weight.
    """
    enough(examples, "H-Neurons")
    chosen = checked_layers(session, layers)
    kept = [examples[number] for number in sampled(len(examples), limit, seed)]
    shares, kinds = read_shares(session, kept, chosen, batch_size)
    groups = [one.group for one in kept for _ in range(3)]
    wrong, answer = kinds == 1, kinds < 2
    fit, held = split(groups, test, seed)
    held = held[answer[held]]
    probe = logistic(shares[fit], wrong[fit], c, True, standardize, seed)
    measured = evaluate(probe.score(shares[held]), wrong[held])
    marked = foretelling(shares, wrong, c, standardize, seed).view(len(chosen), -1)
    found = {layer: row.nonzero().flatten().tolist() for layer, row in zip(chosen, marked, strict=True)}
    if not any(found.values()):
        raise InputError(
            f"No neuron foretells a wrong answer in these {len(kept)} examples; give more, or set c above {c:g}."
        )
    about = {
        "method": "hneurons", "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {
            "factor": factor, "c": c, "standardize": standardize, "positions": positions, "layers": chosen,
            "test": test, "limit": limit, "seed": seed,
        },
        "neurons": {str(layer): numbers for layer, numbers in found.items() if numbers},
        "share_of_neurons": sum(map(len, found.values())) / marked.numel(),
        "held_out": {name: round(value, 4) for name, value in measured.items()},
    }  # fmt: skip
    vectors = {}
    for layer, numbers in found.items():
        if numbers:
            vectors[layer] = torch.zeros(marked.shape[1])
            vectors[layer][numbers] = factor - 1.0
    edit = Edit(Vectors("text", "neuron", vectors, session.fingerprint, about), "scale", 1.0, positions)
    return Recipe((edit,), session.fingerprint, about)


def read_shares(
    session: Session, examples: Sequence[Example], layers: Sequence[int], batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Each neuron's share, (3 examples, all neurons of the layers): right answer, wrong answer, other tokens in turn.

    An answer's is the mean over its tokens; other tokens are the prompt's last one, which both answers follow.

    Returns:
        The shares, and (3 examples,) which of the three a row is, as 0, 1 and 2.
    """
    neurons = expand([Site("text", layer, "neuron") for layer in layers], session.sites)
    outputs = expand([Site("text", layer, "mlp_out") for layer in layers], session.sites)
    columns = [column_norms(session.taps[site].module, session.taps[site].width) for site in neurons]
    widths = [session.taps[site].width for site in neurons]
    shares = torch.zeros(3 * len(examples), sum(widths))
    images, questions, answers = statements(examples)
    for rows, states in batches(session, [*neurons, *outputs], images, questions, answers, "last", None, batch_size):
        start = 0
        for neuron, output, column in zip(neurons, outputs, columns, strict=True):
            pairs = zip(states.rows(neuron), states.rows(output), strict=True)
            for number, (active, given) in enumerate(pairs, rows.start):
                share = active.float().abs() * column / (given.float().norm(dim=-1, keepdim=True) + SMALL)
                place = slice(start, start + len(column))
                shares[3 * (number // 2) + number % 2, place] = share[1:].mean(0).cpu()
                shares[3 * (number // 2) + 2, place] = share[0].cpu()
            start += len(column)
    return shares, torch.arange(3).repeat(len(examples))


def foretelling(shares: Tensor, wrong: Tensor, c: float = 1.0, standardize: bool = False, seed: int = 0) -> Tensor:
    """Which neurons have a positive weight in the probe, (neurons,), of shares (n, neurons) and labels (n,)."""
    return logistic(shares, wrong, c, True, standardize, seed).weight > 0


def column_norms(module: nn.Module, width: int) -> Tensor:
    """The length of each column of a projection's weight, (width,) float32.

    Raises:
        SiteError: if its weight is not there as a matrix of numbers (quantized, or left on the disk).
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point() or weight.shape[-1] != width:
        raise SiteError(
            "H-Neurons needs the down projection's weights as numbers; load the model without quantization or offload."
        )
    return weight.detach().float().norm(dim=0)


METHOD = Method(
    name="hneurons",
    title="H-Neurons, silencing what foretells untrue answers",
    paper="Gao et al., 2025, arXiv 2512.01797",
    needs="captions",
    learn=learn,
    strengths=(0.5, 1.0),
    notes="Text tower only. Examples with a right and a wrong answer take the place of answers sampled from the model. "
    "Other tokens are the prompt's last one; the authors take all tokens but the answer's, and choose the penalty "
    "(`c`) on held-out data.",
)
