"""OPERA (Huang et al., CVPR 2024, arXiv 2311.17911), for one beam; see `decoding/overtrust.py`.

Nothing is learned. The model must give attention weights: `session.model.set_attn_implementation("eager")`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmsteer.errors import InputError
from vlmsteer.examples import Example
from vlmsteer.methods.method import Method
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.session import Session

NAME, VERSION = "opera", 1


def learn(
    session: Session,
    examples: Sequence[Example] = (),
    *,
    candidates: int = 5,
    scale: float = 50.0,
    weight: float = 1.0,
    window: int = 512,
    repeats: int = 15,
    max_rollbacks: int = 5,
) -> Recipe:
    """The rule, with the paper's numbers.

    Args:
        examples: not used.
        candidates: likeliest tokens that are read at each step.
        scale: what attention weights are multiplied with before their product is taken.
        weight: of the payment, in nats.
        window: tokens of the answer that count.
        repeats: how often one column is the highest before the answer goes back to it.
        max_rollbacks: how often it may go back.

    Raises:
        InputError: if a number cannot be meant.
    """
    if min(candidates, window, repeats) < 1 or scale <= 0 or max_rollbacks < 0:
        raise InputError(
            "OPERA takes 1 or more candidates, window and repeats, a positive scale, and no negative limit."
        )
    settings = {
        "candidates": candidates, "scale": scale, "weight": weight, "window": window, "repeats": repeats,
        "max_rollbacks": max_rollbacks,
    }  # fmt: skip
    about = {"method": NAME, "version": VERSION, "examples": 0, "options": settings}
    return Recipe((), {}, about, (Rule("overtrust", settings),))


METHOD = Method(
    name=NAME,
    title="OPERA, a payment for over-trust, one beam",
    paper="Huang et al., CVPR 2024, arXiv 2311.17911",
    needs="nothing",
    learn=learn,
    strengths=(0.1, 0.3, 1.0),
    notes="Greedy with candidates where the paper keeps 5 beams, and the payment is the logarithm of the product. "
    "Needs attention weights (session.model.set_attn_implementation('eager')); not for T5.",
)
