"""Visual CounterFact as a benchmark: the usual and the counterfactual picture, each asked about this one and most.

Golovanevsky et al., 2025, arXiv 2505.17127. Two of the four cells tell little alone: a model that always answers from
memory is right in three of them. So every cell stands by itself, beside how often memory answers where the pixels were
asked for and the other way round. What a recipe flips is a paired quantity between two arms: `flips`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, read_rows
from vlmsteer.bench.statistics import Rate, rate
from vlmsteer.bench.visual_counterfact import (
    FlipCounts,
    Scope,
    color_question,
    count_flips,
    matches,
    normalize,
    size_question,
)
from vlmsteer.bench.visual_counterfact import Scorer as Rule
from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts.dataset import Pair, load_pairs, shuffled_options
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.record import METADATA, replace_file

ATTRIBUTES = ("color", "size")
PICTURES = ("original", "counterfactual")
SCOPES: tuple[Scope, ...] = ("this", "most")
CELLS = tuple(f"{picture}_{scope}" for picture in PICTURES for scope in SCOPES)
PROMPTS = {
    "published": "Answer with one word. What color are most {object}s?",  # no second s after a final one
    "plural": "Answer with one word. What color are most {plural}?",  # where the plural is known: "strawberries"
}
TARGETS: dict[str, Scope] = {"pixels": "most", "prior": "this"}  # towards what -> the question that asks for the other
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}


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


def load(files: Files, *, attribute: str = "all", prompt: str = "published", revision: str | None = None) -> list[Item]:
    """Four items a pair: either picture, asked about this one and about most.

    Args:
        files: a folder in the Visual CounterFact layout (parquet) or one that `vlmsteer counterfacts build` made; a
            folder that is not there may be a hub dataset's id. Pictures inside parquet are written once, under the
            SHA-256 of their bytes, into `cache_folder()`.
        attribute: "color", "size" or "all" that are there.
        prompt: how most of a kind are asked for, a key of `PROMPTS`; all else is word for word as published.
        revision: of a hub dataset.

    Raises:
        InputError: for an unknown option, a set that cannot be read, or a cache that cannot be written.
    """
    if prompt not in PROMPTS:
        raise InputError(f"There is no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    if attribute not in (*ATTRIBUTES, "all"):
        raise InputError(f"There is no attribute {attribute!r}{did_you_mean(attribute, (*ATTRIBUTES, 'all'))}.")
    source = str(files.folder)
    wanted = _attributes(files.folder) if attribute == "all" else (attribute,)
    pairs = [pair for one in wanted for pair in load_pairs(source, one, revision)]
    return [item for pair in pairs for item in _items(pair, prompt)]


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
        items: of `load`, with the baseline's and the steered arm's answers in the same order.
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
        first, second = (_read(answer.text, kind, loose) for answer in (one, other))
        if attribute not in (None, kind):
            continue
        if gold["picture"] == "original":
            if matches(first, gold["prior"], kind, loose):
                outcomes["real_broken"].append((not matches(second, gold["prior"], kind, loose), item.cluster))
            continue
        if gold["scope"] != TARGETS[target]:
            continue
        # The published script normalizes all three texts before it counts.
        wanted = normalize(gold["pixel" if target == "pixels" else "prior"], kind)
        texts = normalize(first, kind), normalize(second, kind), wanted
        for kept, text in zip(told[kind], texts, strict=True):
            kept[item.id] = text
        start, end, goal = ({item.id: text} for text in texts)
        counted = count_flips(start, end, goal, kind, rule)
        outcomes["changed"].append((bool(counted.flips), item.cluster))
        if counted.eligible:
            outcomes["flipped"].append((bool(counted.flips_to_target), item.cluster))
        else:
            outcomes["broken"].append((not matches(second, wanted, kind, loose), item.cluster))
    rates = {name: rate([hit for hit, _ in rows], [group for _, group in rows]) for name, rows in outcomes.items()}
    counts = {kind: count_flips(*texts, attribute=kind, scorer=rule) for kind, texts in told.items() if texts[0]}
    return Flips(**rates, counts=counts)


def cache_folder() -> Path:
    """Where what was made once is kept: `vlmsteer` in `$XDG_CACHE_HOME`, by default `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmsteer"


def _attributes(folder: Path) -> tuple[str, ...]:
    """The attributes that a folder has, so that a set of one of them needs no option."""
    if (folder / METADATA).is_file():
        there = {row.get("attribute") for row in read_rows(folder / METADATA)}
    else:
        named = [path.relative_to(folder).parts for path in folder.rglob("*.parquet")]
        there = {one for one in ATTRIBUTES for *parents, name in named if name.startswith(one) or one in parents}
    return tuple(one for one in ATTRIBUTES if one in there) or ATTRIBUTES


def _items(pair: Pair, prompt: str) -> list[Item]:
    paths = {"original": _stored(pair.original), "counterfactual": _stored(pair.counterfactual)}
    return [
        Item(
            id=f"{pair.attribute}/{pair.id}/{picture}/{scope}",
            image=paths[picture],
            prompt=_question(pair, scope, prompt),
            group=f"{pair.attribute}/{pair.id}",
            kind=pair.object,
            gold={
                "attribute": pair.attribute,
                "picture": picture,
                "scope": scope,
                "prior": pair.prior,
                "pixel": pair.pixel,
                "right": pair.pixel if (picture, scope) == ("counterfactual", "this") else pair.prior,
            },
        )
        for picture in PICTURES
        for scope in SCOPES
    ]


def _question(pair: Pair, scope: Scope, prompt: str) -> str:
    if pair.attribute == "size":
        return size_question(*shuffled_options(pair), scope)
    known = facts().get(pair.object) if prompt == "plural" else None
    return color_question(pair.object, known.plural if known else None, scope)


def _stored(content: bytes) -> str:
    ending = next((ending for magic, ending in _ENDINGS.items() if content.startswith(magic)), ".img")
    path = cache_folder() / "images" / f"{hashlib.sha256(content).hexdigest()}{ending}"
    if not path.is_file():
        replace_file(path, content)
    return str(path)


def _read(text: str, attribute: str, loose: bool) -> str:
    """An answer as the published script hands it on: of a size answer only what comes before "is larger"."""
    if not loose or attribute == "color":
        return text
    text = normalize(text, "color").replace("the largest object in the image is the ", "")
    for verb in ("is", "is usually", "is generally", "are usually", "are generally", "are"):
        found = re.search(rf"(.*?)\s+{verb} larger", text)
        if found:
            text = found[1].replace("the ", "").replace(" in image", "").strip()
    return text


def _tally(items: Sequence[Item], answers: Sequence[Answer], loose: bool) -> Tally:
    counts: dict[str, list[float]] = {"neither": []}
    for name in (f"{one}_{cell}" for one in ATTRIBUTES for cell in CELLS):
        counts |= {f"{name}:{what}": [] for what in ("n", "right", "prior", "pixel")}
    for row, (item, answer) in enumerate(zip(items, answers, strict=True)):
        for values in counts.values():
            values.append(0.0)
        kind = item.gold["attribute"]
        cell = f"{kind}_{item.gold['picture']}_{item.gold['scope']}"
        text = _read(answer.text, kind, loose)
        said = {what: matches(text, item.gold[what], kind, loose) for what in ("right", "prior", "pixel")}
        counts[f"{cell}:n"][row] = 1.0
        counts["neither"][row] = float(not any(said.values()))
        for what, hit in said.items():
            counts[f"{cell}:{what}"][row] = float(hit)
    return Tally([item.cluster for item in items], counts)


def _metrics(sums: Sums) -> dict[str, np.ndarray]:
    def total(what: str, cells: Sequence[str] = CELLS) -> np.ndarray:
        return np.sum([sums[f"{kind}_{cell}:{what}"] for kind in ATTRIBUTES for cell in cells], axis=0)

    unusual = CELLS[2:]
    found = {
        "accuracy": share(total("right"), total("n")),
        "prior": share(total("prior", unusual), total("n", unusual)),
        "pixel": share(total("pixel", unusual), total("n", unusual)),
        "neither": share(sums["neither"], total("n")),
    }
    for kind in ATTRIBUTES:
        for cell in CELLS:
            found[f"{kind}_{cell}"] = share(sums[f"{kind}_{cell}:right"], sums[f"{kind}_{cell}:n"])
        for scope, other in (("this", "prior"), ("most", "pixel")):
            cell = f"{kind}_counterfactual_{scope}"
            found[f"{cell}_{other}"] = share(sums[f"{cell}:{other}"], sums[f"{cell}:n"])
    return found


_WANTED = {"accuracy": 1, "prior": 0, "pixel": 0, "neither": -1} | {
    f"{kind}_{cell}": wanted
    for kind in ATTRIBUTES
    for cell, wanted in [*((cell, 1) for cell in CELLS), (f"{CELLS[2]}_prior", -1), (f"{CELLS[3]}_pixel", -1)]
}

BENCHMARK = Benchmark(
    name="vcf",
    title="Visual CounterFact",
    source="Golovanevsky et al. 2025, arXiv 2505.17127; rsinghlab/pixels_vs_priors@52d8ae0",
    load=load,
    scorers=(
        Scorer(
            "reference",
            "rsinghlab/pixels_vs_priors@52d8ae0 count_flips (near colors count)",
            partial(_tally, loose=True),
            _metrics,
            _WANTED,
        ),
        Scorer(
            "strict",
            "ours: the color or object itself, an article allowed",
            partial(_tally, loose=False),
            _metrics,
            _WANTED,
        ),
    ),
    max_new_tokens=20,
    notes=(
        "The published number is a flip rate between two arms (`vlmsteer.bench.vcf.flips`), on items of a model's own "
        "filtered lists, which are not released. The options of a size question have one order, fixed by "
        "the pair's id, where the published script shuffles them anew for every arm."
    ),
)
