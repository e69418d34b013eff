"""Visual CounterFact: the same object in its usual and in an unusual color or size, asked about this image or most.

The published number (Golovanevsky et al., 2025, arXiv 2505.17127) is a repair rate among answers that were wrong at
first. It says nothing about what was broken, so we report the break rate beside it. Two scorers live here: `reference`
counts as the published `count_flips` does, near colors included; `strict` is ours and accepts only the target itself.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

from vlmsteer.bench.statistics import Rate, rate
from vlmsteer.errors import InputError, did_you_mean

Scope = Literal["this", "most"]
Scorer = Literal["reference", "strict"]

# target -> answers that the reference accepts in its place; not symmetric, as published.
NEAR_COLORS: dict[str, frozenset[str]] = {
    "yellow": frozenset({"gold"}),
    "gold": frozenset({"orange", "yellow"}),
    "purple": frozenset({"pink"}),
    "pink": frozenset({"purple"}),
    "brown": frozenset({"orange"}),
    "orange": frozenset({"brown"}),
    "black": frozenset({"gray", "grey", "silver"}),
    "gray": frozenset({"black", "silver"}),
    "grey": frozenset({"black", "silver", "gray"}),
    "silver": frozenset({"gray", "grey"}),
}

_LARGER = re.compile(r"\s*\b(?:is|are)\s+(?:(?:usually|generally)\s+)?larger\b.*", re.DOTALL)
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")


@dataclass(frozen=True)
class FlipCounts:
    """How many of n answers changed; *eligible* are those whose original answer was not the target."""

    eligible: int
    flips: int
    eligible_flips: int
    flips_to_target: int
    n: int


def color_question(object: str, plural: str | None = None, scope: Scope = "this") -> str:
    """Ask for the color of this object (pixels) or of most such objects (prior).

    Args:
        object: its name in the singular.
        plural: its plural; when None, the reference's rule: unchanged after a final "s", else with an "s".
        scope: "this" image or "most" of its kind.
    """
    if _checked(scope, ("this", "most"), "scope") == "this":
        return f"Answer with one word. What color is this {object}?"
    if plural is None:
        plural = object if object.endswith("s") else f"{object}s"
    return f"Answer with one word. What color are most {plural}?"


def size_question(a: str, b: str, scope: Scope = "this") -> str:
    """Ask which of two objects is larger in this image (pixels) or usually (prior).

    Keep the order of a and b the same for both scopes: `vlmsteer_counterfacts.dataset.shuffled_options` gives it.
    """
    where = "here" if _checked(scope, ("this", "most"), "scope") == "this" else "usually"
    return f"Answer with the correct option. Which is larger {where}, {a} or {b}?"


def normalize(answer: str, attribute: str) -> str:
    """Lower case, "_" to a space, "." removed, outer spaces stripped.

    A size answer also ends before "is/are (usually/generally) larger": "The car is usually larger." -> "the car".
    """
    _checked(attribute, ("color", "size"), "attribute")
    text = answer.lower().replace("_", " ").replace(".", "")
    if attribute == "size":
        text = _LARGER.sub("", text)
    return text.strip()


def matches(answer: str, target: str, attribute: str, loose: bool = True) -> bool:
    """Whether the answer names the target.

    Args:
        answer: the model's answer, as it came.
        target: the color or the object's name.
        attribute: "color" or "size".
        loose: the reference's rule, equality after `normalize` or a near color of the target. False is our strict
            rule: equality after `normalize`, where either side may begin with an article.
    """
    given, wanted = normalize(answer, attribute), normalize(target, attribute)
    if not loose:
        return _bare(given) == _bare(wanted)
    return given == wanted or (attribute == "color" and given in NEAR_COLORS.get(wanted, ()))


def count_flips(
    original: Mapping[str, str],
    edited: Mapping[str, str],
    target: Mapping[str, str],
    attribute: str,
    scorer: Scorer = "strict",
) -> FlipCounts:
    """Count the answers that changed, and those that changed to the target.

    The reference (rsinghlab/pixels_vs_priors@52d8ae0) normalizes the edited answer only and compares original answers
    and targets as they stand, case included; pass it originals that went through `normalize`. The strict scorer
    normalizes all three and ignores a leading article.

    Args:
        original: item -> answer of the baseline.
        edited: item -> answer under the recipe.
        target: item -> the answer the recipe should produce.
        attribute: "color" or "size".
        scorer: "reference" or "strict".

    Returns:
        Counts over the n items. The published rate is flips_to_target / eligible.

    Raises:
        InputError: the three do not hold the same items, or the attribute or scorer is unknown.
    """
    items = _same_items(original, edited, target)
    strict = _checked(scorer, ("reference", "strict"), "scorer") == "strict"
    eligible = flips = eligible_flips = flips_to_target = 0
    for item in items:
        before, after, wanted = original[item], normalize(edited[item], attribute), target[item]
        near: frozenset[str] = frozenset()
        if strict:
            before, after, wanted = (_bare(normalize(text, attribute)) for text in (before, after, wanted))
        elif attribute == "color":
            near = NEAR_COLORS.get(wanted, near)
        wrong, flipped = before != wanted, after != before
        eligible += wrong
        flips += flipped
        eligible_flips += wrong and flipped
        flips_to_target += wrong and flipped and (after == wanted or after in near)
    return FlipCounts(eligible, flips, eligible_flips, flips_to_target, len(items))


def flip_rates(
    original: Mapping[str, str],
    edited: Mapping[str, str],
    target: Mapping[str, str],
    attribute: str,
    clusters: Mapping[str, Hashable] | None = None,
) -> tuple[Rate, Rate]:
    """The repair rate and the break rate of a recipe, both strict, each with its 95% interval.

    Args:
        original: item -> answer of the baseline.
        edited: item -> answer under the recipe.
        target: item -> the answer the recipe should produce.
        attribute: "color" or "size".
        clusters: item -> what it shares with others (object, image); None takes items as independent.

    Returns:
        (repair, break). Repair: share now at the target among items that were not. Break: share no longer at the
        target among items that were. A rate over no items is nan with n = 0.

    Raises:
        InputError: the mappings do not hold the same items.
    """
    items = _same_items(original, edited, target, *([] if clusters is None else [clusters]))
    was_right = {item: matches(original[item], target[item], attribute, loose=False) for item in items}
    is_right = {item: matches(edited[item], target[item], attribute, loose=False) for item in items}
    wrong = [item for item in items if not was_right[item]]
    right = [item for item in items if was_right[item]]

    def labels(chosen: list[str]) -> list[Hashable] | None:
        return None if clusters is None else [clusters[item] for item in chosen]

    repaired = rate([is_right[item] for item in wrong], labels(wrong))
    broken = rate([not is_right[item] for item in right], labels(right))
    return repaired, broken


def _bare(text: str) -> str:
    return _ARTICLE.sub("", text)


def _checked(given: str, options: tuple[str, ...], name: str) -> str:
    if given not in options:
        raise InputError(f"Unknown {name} {given!r}{did_you_mean(given, options)}.")
    return given


def _same_items(first: Mapping[str, object], *others: Mapping[str, object]) -> list[str]:
    for other in others:
        odd = sorted(first.keys() ^ other.keys())
        if odd:
            raise InputError(f"{len(odd)} items are not in every set of answers, {odd[0]!r} among them; pass the same.")
    return list(first)
