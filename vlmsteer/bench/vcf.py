"""Visual CounterFact as a benchmark: the usual and the counterfactual picture, each asked about this one and most.

Golovanevsky et al., 2025, arXiv 2505.17127. Two of the four cells tell little alone: a model that always answers from
memory is right in three of them. So every cell stands by itself, beside how often memory answers where the pixels were
asked for and the other way round. What a recipe flips, the published number, is counted of two arms' answers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, Published, read_rows, stored
from vlmsteer.bench.vcf_flips import ATTRIBUTES, flips_from, read_answer
from vlmsteer.bench.visual_counterfact import Scope, color_question, matches, size_question
from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts.dataset import Pair, load_pairs, shuffled_options
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.record import METADATA

PICTURES = ("original", "counterfactual")
SCOPES: tuple[Scope, ...] = ("this", "most")
CELLS = tuple(f"{picture}_{scope}" for picture in PICTURES for scope in SCOPES)
PROMPTS = {
    "published": "Answer with one word. What color are most {object}s?",  # no second s after a final one
    "plural": "Answer with one word. What color are most {plural}?",  # where the plural is known: "strawberries"
}


def load(files: Files, *, attribute: str = "all", prompt: str = "published", revision: str | None = None) -> list[Item]:
    """Four items a pair: either picture, asked about this one and about most.

    Args:
        files: a folder in the Visual CounterFact layout (parquet) or one that `vlmsteer counterfacts build` made.
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
    while not (there := _attributes(files.folder)):
        files.fetch("parquet files", METADATA, revision=revision)
    wanted = there if attribute == "all" else (attribute,)
    pairs = [pair for one in wanted for pair in load_pairs(files.folder, one, None if files.fetched else revision)]
    return [item for pair in pairs for item in _items(pair, prompt)]


def _attributes(folder: Path) -> tuple[str, ...]:
    """The attributes that a set has, so that one with a single one needs no option; none where there is no set."""
    if (folder / METADATA).is_file():
        there = {row.get("attribute") for row in read_rows(folder / METADATA)}
    else:
        named = [path.relative_to(folder).parts for path in folder.rglob("*.parquet")]
        if not named:
            return ()
        there = {one for one in ATTRIBUTES for *parents, name in named if name.startswith(one) or one in parents}
    return tuple(one for one in ATTRIBUTES if one in there) or ATTRIBUTES  # a set of neither is refused when it is read


def _items(pair: Pair, prompt: str) -> list[Item]:
    paths = {"original": stored(pair.original), "counterfactual": stored(pair.counterfactual)}
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


def _tally(items: Sequence[Item], answers: Sequence[Answer], loose: bool) -> Tally:
    counts: dict[str, list[float]] = {"neither": []}
    for name in (f"{one}_{cell}" for one in ATTRIBUTES for cell in CELLS):
        counts |= {f"{name}:{what}": [] for what in ("n", "right", "prior", "pixel")}
    for row, (item, answer) in enumerate(zip(items, answers, strict=True)):
        for values in counts.values():
            values.append(0.0)
        kind = item.gold["attribute"]
        cell = f"{kind}_{item.gold['picture']}_{item.gold['scope']}"
        text = read_answer(answer.text, kind, loose)
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
    found = {cell: share(total("right", [cell]), total("n", [cell])) for cell in CELLS}
    found |= {
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


_WANTED = (
    dict.fromkeys((*CELLS[2:], *CELLS[:2], "accuracy"), 1)
    | {"prior": 0, "pixel": 0, "neither": -1}
    | {
        f"{kind}_{cell}": wanted
        for kind in ATTRIBUTES
        for cell, wanted in [*((cell, 1) for cell in CELLS), (f"{CELLS[2]}_prior", -1), (f"{CELLS[3]}_pixel", -1)]
    }
)

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
        "counterfactual_this: the counterfactual picture, asked about this one; right is what the pixels show. In the "
        "other three cells right is the usual answer. The published number is a flip rate between two arms, on items "
        "of a model's own filtered lists, which are not released. The options of a size question have one order, "
        "fixed by the pair's id, where the published script shuffles them anew for every arm."
    ),
    hub=Published("mgolov/Visual-Counterfact", ("*color*.parquet", "*size*.parquet")),
    against=(partial(flips_from, rule="reference"), partial(flips_from, rule="strict")),
)
