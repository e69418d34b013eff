"""A spatial statement turned round ("left of" for "right of") or denied ("is not left of").

How it is turned round is part of a benchmark: the rule that made MATS' published statements (Thube, 2025, arXiv
2509.22674) replaces one word wherever it stands, and writes "in behind of".
"""

from __future__ import annotations

import re

from vlmsteer.errors import InputError, did_you_mean

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "front": "behind", "behind": "front"}
# What the statements of the published relations say, longest first, and what says the opposite.
PHRASES = {
    "left": (("left", "right"),),
    "right": (("right", "left"),),
    "above": (("on top of", "below"), ("above", "below"), ("over", "below")),
    "below": (("beneath", "above"), ("below", "above"), ("under", "above")),
    "front": (("in front of", "behind"), ("front", "back")),
    "behind": (("behind", "in front of"),),
}
RULES = ("published", "words")
_VERB = re.compile(r"\b(is|are|was|were)\b(?!\s+not\b)")


def invert(statement: str, relation: str, rule: str = "published") -> str:
    """A statement with its relation turned round.

    Args:
        statement: "The cat is left of the dog."
        relation: left, right, above, below, front or behind.
        rule: "published" replaces the relation's one word wherever it stands, as the authors' dataset.py does
            ("in behind of"; a statement with "on top of" stays as it is). "words" is ours: whole words, first
            occurrence, "in front of" and "on top of" among them.

    Raises:
        InputError: for an unknown relation or rule, or if no words of the relation stand in the statement.
    """
    if relation not in OPPOSITE:
        raise InputError(f"MATS has no relation {relation!r}{did_you_mean(relation, OPPOSITE)}.")
    if rule not in RULES:
        raise InputError(f"There is no rule of inversion {rule!r}{did_you_mean(rule, RULES)}.")
    for words, other in PHRASES[relation]:
        pattern = re.compile(rf"\b{words}\b", re.IGNORECASE)
        if pattern.search(statement):
            if rule == "published":
                return statement.replace(relation, OPPOSITE[relation])
            return pattern.sub(other, statement, count=1)
    raise InputError(f"The statement {statement!r} has no words of the relation {relation!r} to turn round.")


def deny(statement: str) -> str:
    """ "The cat is left of the dog." -> "The cat is not left of the dog."; without is or are, "It is not true that"."""
    if _VERB.search(statement):
        return _VERB.sub(r"\1 not", statement, count=1)
    return f"It is not true that {statement[:1].lower()}{statement[1:]}"
