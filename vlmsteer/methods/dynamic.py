"""Dynamic Activation Composition (Scalena, Sarti and Nissim, BlackboxNLP 2024, arXiv 2406.17563).

A mean-difference direction whose strength follows, token by token, how much it would change the next token
(`decoding/adaptive.py`). Any recipe can be made adaptive by adding the rule to it; the one learned here is the paper's
kind: the mean difference of right and wrong answers before the output projection of every attention head.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmsteer.errors import InputError
from vlmsteer.examples import Example, digest
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.reading import batches
from vlmsteer.recipe import Edit, Recipe, Rule
from vlmsteer.running import Mean
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

NAME, VERSION = "dynamic", 1


def rule(top_p: float = 0.9, limit: float = 2.0) -> Rule:
    """What makes a recipe's edits adaptive.

    Raises:
        InputError: if a number cannot be meant.
    """
    if not 0 < top_p <= 1 or limit <= 0:
        raise InputError(
            f"Adaptive strength takes top_p from 0 to 1 and a positive limit, not {top_p!r} and {limit!r}."
        )
    return Rule("adaptive", {"top_p": top_p, "limit": limit})


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    top_p: float = 0.9,
    limit: float = 2.0,
    batch_size: int = 16,
) -> Recipe:
    """Right minus wrong answers, the mean over an answer's tokens, at every head, and the rule.

    Args:
        layers: of the text tower, by default all.
        top_p: the likeliest tokens that the two companions are compared on; the paper tries .4 to .95.
        limit: the greatest strength.
    """
    enough(examples, "Dynamic composition")
    chosen = checked_layers(session, layers)
    sites = [Site("text", layer, "head") for layer in chosen]
    asked = [(one, answer) for one in examples for answer in (one.right, one.wrong)]
    images, questions = [one.image for one, _ in asked], [one.question for one, _ in asked]
    right, wrong = ({site: Mean() for site in sites} for _ in range(2))
    for rows, states in batches(
        session, sites, images, questions, [answer for _, answer in asked], "last", batch_size=batch_size
    ):
        for site in sites:
            for number, own in zip(range(rows.start, rows.start + batch_size), states.rows(site), strict=False):
                (wrong if number % 2 else right)[site].update(own.float().mean(0, keepdim=True).flatten(1).cpu())
    vectors = {site.layer: (right[site].mean - wrong[site].mean).float() for site in sites}
    about = {
        "method": NAME, "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {"layers": chosen, "top_p": top_p, "limit": limit},
    }  # fmt: skip
    edit = Edit(Vectors("text", "head", vectors, session.fingerprint, about), "add", 1.0, "last")
    return Recipe((edit,), session.fingerprint, about, (rule(top_p, limit),))


METHOD = Method(
    name=NAME,
    title="Dynamic composition, strength by need",
    paper="Scalena, Sarti and Nissim, BlackboxNLP 2024, arXiv 2406.17563",
    needs="captions",
    learn=learn,
    strengths=(0.5, 1.0, 2.0),
    notes="One direction for all steps, where the paper has one a step. The recipe's strength multiplies the "
    "direction, not the limit. Three forwards a token.",
)
