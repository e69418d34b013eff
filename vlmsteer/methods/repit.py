"""RepIt, isolating a direction from others (Siu et al., 2025, arXiv 2509.13281).

A mean difference holds more than what it is meant for. What it shares with generic directions is taken out in the
metric in which these are white: partly, by the share rho of the square of its length there. Here the direction from
hallucinated to right captions is freed from how long a caption is and in which order it tells things.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.examples import Example, digest, split_groups
from vlmsteer.methods.caa import DEPTH, TOKENS, answer_states
from vlmsteer.methods.method import Method, checked_layers, enough, layer_at
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.running import Mean
from vlmsteer.samples import area
from vlmsteer.session import Session
from vlmsteer.vectors import Vectors

NAME, VERSION = "repit", 1
GRID = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    ridge: float = 1e-4,
    rho: float = -1.0,
    held_out: float = 0.3,
    seed: int = 0,
    batch_size: int = 16,
) -> Recipe:
    """Right minus wrong captions, isolated from generic directions, added as CAA adds.

    Args:
        layers: where to read and write; by default one, 13/32 of the way up.
        rho: how much is taken out, 0 to 1; -1 chooses, on held-out groups, what tells right from wrong captions and
            generic variants of right captions not.
        held_out: the share of groups to choose on.

    Raises:
        InputError: if there are fewer than two groups.
    """
    enough(examples, "RepIt")
    if rho != -1 and not 0 <= rho <= 1:
        raise InputError(f"rho is a share from 0 to 1, or -1 to choose it, not {rho}.")
    chosen = checked_layers(session, layers) if layers else [layer_at(session, DEPTH)]
    held, rest = split_groups(examples, held_out)
    kinds = {"target": lambda one, rng: one.wrong, "length": shorter, "order": reordered}
    sums = {kind: Mean() for kind in kinds}
    for kind, variant in kinds.items():
        for _, states in answer_states(
            session, _variants(rest, variant, seed), chosen, TOKENS["last"], None, batch_size
        ):
            sums[kind].update(states[:, 0] - states[:, 1])
    means = {kind: total.mean.float() for kind, total in sums.items()}
    target = Vectors("text", "block_out", dict(zip(chosen, means["target"], strict=True)))
    generic = [kind for kind in kinds if kind != "target"]
    others = [replace(target, layers=dict(zip(chosen, means[kind], strict=True))) for kind in generic]
    about: dict[str, object] = {
        "method": NAME, "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {"layers": chosen, "ridge": ridge, "rho": rho, "held_out": held_out, "seed": seed},
        "cosines": {kind: round(target.cosines(one)[chosen[0]], 4) for kind, one in zip(generic, others, strict=True)},
    }  # fmt: skip
    if rho == -1:
        tried = [isolate(target, others, ridge, share) for share in GRID]
        told = {}
        for kind, variant in kinds.items():
            told[kind] = _told_apart(session, _variants(held, variant, seed), chosen, tried, batch_size)
        gain = told["target"] - torch.stack([(told[kind] - 0.5).abs() for kind in generic]).amax(0)
        rho = GRID[int(gain.argmax())]
        about["chosen"] = {
            "rho": rho,
            "auroc": {kind: [round(float(value), 4) for value in values] for kind, values in told.items()},
            "grid": list(GRID), "held_out": len(held),
        }  # fmt: skip
    vectors = replace(isolate(target, others, ridge, rho), model=session.fingerprint, about=about)
    return Recipe((Edit(vectors, "add", 1.0, "last"),), session.fingerprint, about)


def isolate(vector: Vectors, others: Sequence[Vectors], ridge: float = 1e-4, rho: float = 1.0) -> Vectors:
    """`vector` without what it shares with the others, layer by layer.

    With the others' unit directions as the rows of R, C = R'R / n + ridge, C = L L', and Q an orthonormal basis of the
    columns of inv(L) R': the result is L (w - a Q Q' w) with w = inv(L) v and a = 1 - sqrt(1 - rho). At rho 1 it is at
    right angles to the others in the metric inv(C), at rho 0 the vector itself.

    Raises:
        InputError: if rho is not from 0 to 1, ridge is not above 0, or no other direction is given.
    """
    if not 0 <= rho <= 1 or not ridge > 0 or not others:
        raise InputError(f"Isolating needs rho from 0 to 1, ridge above 0 and other directions, not {rho}, {ridge}.")
    share = 1 - (1 - rho) ** 0.5
    layers: dict[int, Tensor] = {}
    for layer, own in vector.layers.items():
        rows = torch.stack([other.select([layer]).layers[layer].double() for other in others])
        rows = torch.nn.functional.normalize(rows[rows.norm(dim=-1) > 0], dim=-1)
        if not len(rows) or share == 0:
            layers[layer] = own
            continue
        metric = rows.T @ rows / len(rows) + ridge * torch.eye(rows.shape[1], dtype=torch.float64)
        root = torch.linalg.cholesky(metric)
        white = torch.linalg.solve_triangular(root, torch.cat([own.double()[None], rows]).T, upper=False)
        basis, sizes, _ = torch.linalg.svd(white[:, 1:], full_matrices=False)
        basis = basis[:, sizes > 1e-9 * sizes[0]]  # where others coincide, QR would add a direction of its own
        cleaned = white[:, 0] - share * basis @ (basis.T @ white[:, 0])
        layers[layer] = (root @ cleaned).to(own.dtype)
    return replace(vector, layers=layers)


def shorter(one: Example, rng: random.Random) -> str:
    """The first half of the right caption's words."""
    words = one.right.split()
    return " ".join(words[: max(1, len(words) // 2)]).rstrip(",;") + ("." if one.right.endswith(".") else "")


def reordered(one: Example, rng: random.Random) -> str:
    """The right caption with its clauses in another order."""
    ending = "." if one.right.endswith(".") else ""
    clauses = [part for part in re.split(r"[.,;] | and ", one.right.removesuffix(".")) if part.strip()]
    if len(clauses) < 2:
        clauses = one.right.removesuffix(".").split()
        return " ".join(rng.sample(clauses, len(clauses))) + ending
    turn = rng.randrange(1, len(clauses))
    return ", ".join(clauses[turn:] + clauses[:turn]) + ending


def _variants(
    examples: Sequence[Example], variant: Callable[[Example, random.Random], str], seed: int
) -> list[Example]:
    rng = random.Random(seed)
    return [replace(one, wrong=variant(one, rng)) for one in examples]


def _told_apart(
    session: Session, examples: Sequence[Example], layers: Sequence[int], tried: Sequence[Vectors], batch_size: int
) -> Tensor:
    """(tried,) how well each, as a probe, tells right answers from the others: AUROC, the mean over layers."""
    probes = torch.stack([torch.stack([one.layers[layer] for layer in layers]) for one in tried])
    parts = answer_states(session, examples, layers, TOKENS["last"], None, batch_size)
    along = torch.cat([torch.einsum("nalw,tlw->natl", states, probes) for _, states in parts])
    return area(along[:, 0], along[:, 1]).mean(-1)


METHOD = Method(
    name=NAME,
    title="RepIt, isolated directions",
    paper="Siu et al., 2025, arXiv 2509.13281",
    needs="captions",
    learn=learn,
    strengths=(0.5, 1.0, 2.0),
    notes="The authors isolate refusal on one topic from refusal on others; only the arithmetic is taken over. Generic "
    "directions are those from the right captions' first halves, and from their clauses in another order.",
)
