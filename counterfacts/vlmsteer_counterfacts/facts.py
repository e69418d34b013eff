"""What is usually true of each drawn object: its color, its size, what it appears with.

The table is `datasets/objects.jsonl`, one object a line with the source of each fact; a wheel carries it inside this
package.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlmsteer.errors import InputError, did_you_mean

PACKAGED = Path(__file__).parent / "data" / "objects.jsonl"
CHECKOUT = Path(__file__).parents[2] / "datasets" / "objects.jsonl"
PLURAL_ONLY = frozenset({"jeans", "grapes"})
SIZE_RATIO = 2.5  # objects whose sizes are compared differ at least this much in reality


@dataclass(frozen=True)
class Fact:
    """One object. `size_m` is its longest dimension in metres; `companion` is what it is most often drawn with."""

    name: str
    plural: str
    color: str
    size_m: float
    group: str
    companion: str
    color_source: str = ""
    size_source: str = ""


@cache
def facts() -> dict[str, Fact]:
    """Every object by its name, in the order of the table."""
    path = PACKAGED if PACKAGED.exists() else CHECKOUT
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["name"]: Fact(**row) for row in rows}


def fact(name: str) -> Fact:
    """The facts about one object.

    Raises:
        InputError: if the table has no such object.
    """
    if name not in facts():
        raise InputError(f"No drawn object is called {name!r}{did_you_mean(name, facts())}.")
    return facts()[name]


def size_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """All (larger, smaller) of the objects that differ clearly in size."""
    table = facts()
    return [(a, b) for a, b in itertools.permutations(names, 2) if table[a].size_m >= SIZE_RATIO * table[b].size_m]


def article(noun: str) -> str:
    """'a' or 'an' with the noun; nothing before a noun that is only plural."""
    if noun.split()[-1] in PLURAL_ONLY:
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
