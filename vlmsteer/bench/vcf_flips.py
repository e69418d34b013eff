"""What a recipe flips on Visual CounterFact: answers that move to the target that the question does not ask for.

Golovanevsky et al., 2025, arXiv 2505.17127, count of the answers that were not the target the share that becomes it.
Beside it stand what was broken, on these pictures and on usual ones, and what changed at all. A flip is counted of two
arms' answers to the same item.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from vlmsteer.bench.benchmark import Answer, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.statistics import Rate, rate
from vlmsteer.bench.visual_counterfact import FlipCounts, Scope, count_flips, matches, normalize
from vlmsteer.bench.visual_counterfact import Scorer as Rule
from vlmsteer.errors import InputError, did_you_mean

ATTRIBUTES = ("color", "size")
TARGETS: dict[str, Scope] = {"pixels": "most", "prior": "this"}  # towards what -> the question that asks for the other
FLIPS = ("eligible", "flipped", "kept", "lost", "changed")


@dataclass(frozen=True)
class Flips:
    """What changed between a baseline and a steered arm on counterfactual pictures, where the target is not asked for.

    Attributes:
        flipped: share now at the target among answers that were not.
        broken: share no longer at the target among answers that were.
        changed: share of all answers that changed at all.
        real_broken: on the usual pictures, both questions: share now wrong among answers that were right.
        counts: the published script's counts by attribute; its rate is flips_to_target / eligible.
    """

    flipped: Rate
    broken: Rate
    changed: Rate
    real_broken: Rate
    counts: dict[str, FlipCounts]


def flips(
    items: Sequence[Item],
    before: Sequence[Answer],
    after: Sequence[Answer],
    target: Literal["pixels", "prior"],
    rule: Rule = "strict",
    attribute: str | None = None,
) -> Flips:
    """What a recipe flipped: asked about most of a kind towards the pixels, or asked about this one towards memory.

    Args:
        items: of `vcf.load`, with the baseline's and the steered arm's answers in the same order.
        target: "pixels" or "prior".
        rule: "strict" takes the target alone; "reference" takes near colors too (`count_flips`).
        attribute: only "color" or only "size".

    Returns:
        Rates with 95 % intervals, clustered by object; over no items a rate is nan with n = 0.

    Raises:
        InputError: for an unknown target, rule or attribute, or if the lengths differ.
    """
    if target not in TARGETS:
        raise InputError(f"There is no target {target!r}{did_you_mean(target, TARGETS)}.")
    if rule not in ("strict", "reference"):
        raise InputError(f"There is no rule {rule!r}{did_you_mean(rule, ('strict', 'reference'))}.")
    if attribute not in (None, *ATTRIBUTES):
        raise InputError(f"There is no attribute {attribute!r}{did_you_mean(attribute, ATTRIBUTES)}.")
    if not len(items) == len(before) == len(after):
        raise InputError(f"Flips need two answers an item: {len(items)} items, {len(before)} and {len(after)} answers.")
    loose = rule == "reference"
    told = {name: ({}, {}, {}) for name in ATTRIBUTES}  # answers before, answers after, targets
    outcomes: dict[str, list[tuple[bool, str]]] = {"flipped": [], "broken": [], "changed": [], "real_broken": []}
    for item, one, other in zip(items, before, after, strict=True):
        gold = item.gold
        kind = gold["attribute"]
        first, second = (read_answer(answer.text, kind, loose) for answer in (one, other))
        if attribute not in (None, kind):
            continue
        if gold["picture"] == "original":
            if matches(first, gold["prior"], kind, loose):
                outcomes["real_broken"].append((not matches(second, gold["prior"], kind, loose), item.cluster))
            continue
        if gold["scope"] != TARGETS[target]:
            continue
        texts = _texts(first, second, gold, target)
        for kept, text in zip(told[kind], texts, strict=True):
            kept[item.id] = text
        flip = _flip(texts, kind, rule)
        outcomes["changed"].append((flip["changed"], item.cluster))
        if flip["eligible"]:
            outcomes["flipped"].append((flip["flipped"], item.cluster))
        else:
            outcomes["broken"].append((flip["lost"], item.cluster))
    rates = {name: rate([hit for hit, _ in rows], [group for _, group in rows]) for name, rows in outcomes.items()}
    counts = {kind: count_flips(*texts, attribute=kind, scorer=rule) for kind, texts in told.items() if texts[0]}
    return Flips(**rates, counts=counts)


def flips_from(before: Mapping[str, Answer], rule: Rule) -> Scorer:
    """A scorer of what became of a baseline's answers: flips towards the pixels and towards memory, by attribute.

    Args:
        before: the baseline's answers by item.
        rule: as in `flips`, whose rates these are.
    """
    names = [f"{kind}_to_{target}" for kind in ATTRIBUTES for target in TARGETS]
    more = [f"{name}_{what}" for what in ("lost", "changed", "eligible") for name in names]
    return Scorer(
        f"{rule} flips",
        "rsinghlab/pixels_vs_priors@52d8ae0 count_flips" if rule == "reference" else "ours",
        partial(_flip_tally, before=before, rule=rule),
        _flip_metrics,
        {**dict.fromkeys(names, 0), "real_broken": -1, **dict.fromkeys(more, 0)},
        numbers=frozenset(f"{name}_eligible" for name in names),
        notes="On counterfactual pictures, to_pixels of the questions about most of a kind, to_prior of those about "
        "this one: of the answers that were not the target, the share that now are. lost: of those that were, the "
        "share that no longer are. real_broken: on usual pictures, of the right answers the share now wrong.",
    )


def read_answer(text: str, attribute: str, loose: bool) -> str:
    """An answer as the published script hands it on: of a size answer only what comes before "is larger"."""
    if not loose or attribute == "color":
        return text
    text = normalize(text, "color").replace("the largest object in the image is the ", "")
    for verb in ("is", "is usually", "is generally", "are usually", "are generally", "are"):
        found = re.search(rf"(.*?)\s+{verb} larger", text)
        if found:
            text = found[1].replace("the ", "").replace(" in image", "").strip()
    return text


def _texts(first: str, second: str, gold: Mapping[str, str], target: str) -> tuple[str, str, str]:
    """Both answers and the target, normalized: the published script does that with all three before it counts."""
    wanted = gold["pixel" if target == "pixels" else "prior"]
    before, after, goal = (normalize(text, gold["attribute"]) for text in (first, second, wanted))
    return before, after, goal


def _flip(texts: tuple[str, str, str], kind: str, rule: Rule) -> dict[str, bool]:
    """What became of one answer, by `FLIPS`; `kept` is whether it was the target already."""
    start, end, goal = ({"": text} for text in texts)
    found = count_flips(start, end, goal, kind, rule)
    kept = not found.eligible
    return {
        "eligible": not kept, "flipped": bool(found.flips_to_target), "kept": kept,
        "lost": kept and not matches(texts[1], texts[2], kind, rule == "reference"), "changed": bool(found.flips),
    }  # fmt: skip


def _flip_tally(items: Sequence[Item], answers: Sequence[Answer], before: Mapping[str, Answer], rule: Rule) -> Tally:
    names = [f"{kind}_to_{target}:{what}" for kind in ATTRIBUTES for target in TARGETS for what in FLIPS]
    counts: dict[str, list[float]] = {name: [0.0] * len(items) for name in (*names, "real", "real_broken")}
    for row, (item, answer) in enumerate(zip(items, answers, strict=True)):
        gold, kind = item.gold, item.gold["attribute"]
        loose = rule == "reference"
        first, second = (read_answer(one.text, kind, loose) for one in (before[item.id], answer))
        if gold["picture"] == "original":
            real = matches(first, gold["prior"], kind, loose)
            counts["real"][row] = float(real)
            counts["real_broken"][row] = float(real and not matches(second, gold["prior"], kind, loose))
            continue
        target = next(name for name, scope in TARGETS.items() if scope == gold["scope"])
        for what, hit in _flip(_texts(first, second, gold, target), kind, rule).items():
            counts[f"{kind}_to_{target}:{what}"][row] = float(hit)
    return Tally([item.cluster for item in items], counts)


def _flip_metrics(sums: Sums) -> dict[str, np.ndarray]:
    found = {"real_broken": share(sums["real_broken"], sums["real"])}
    for name in (f"{kind}_to_{target}" for kind in ATTRIBUTES for target in TARGETS):
        eligible, flipped, kept, lost, changed = (sums[f"{name}:{what}"] for what in FLIPS)
        asked = eligible + kept
        found |= {
            name: share(flipped, eligible), f"{name}_lost": share(lost, kept), f"{name}_changed": share(changed, asked),
            f"{name}_eligible": np.where(asked == 0, np.nan, eligible),
        }  # fmt: skip
    return found
