"""MATS: does an answer flip when a spatial statement is turned round, and is an absurd statement rejected?

(Pathological Truth Bias in Vision-Language Models, Thube, 2025, arXiv 2509.22674.) SCS, the share of statements whose
answer flips, is blind to the direction: FALSE to the statement and TRUE to its inversion counts like the reverse. The
published parser takes "on the right" for TRUE. `reference` keeps both, `strict` reads TRUE and FALSE only and gives
the accuracy beside SCS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, Published, field
from vlmsteer.bench.inversion import invert
from vlmsteer.bench.rows import find_split, have_split, read_split
from vlmsteer.errors import InputError, did_you_mean

PROMPTS = {
    "audit": 'Based on the image, is the following statement true or false? "{statement}"',
    "one_word": 'Based on the image, is the following statement true or false? "{statement}" '
    "Answer with only the single word 'true' or 'false'.",
}
SPLITS = ("vsr", "absurd", "patching")
_NEGATED = re.compile(r"(?:\bnot|n['’]?t)\s+(?:\w+\s+)?$")
_ECHO = re.compile(r"\btrue or false\b")
_TRUTH = re.compile(r"\b(true|false)\b")


def load(
    files: Files, *, splits: str = "vsr,absurd", prompt: str = "audit", inversion: str = "published"
) -> list[Item]:
    """The statements of MATS, each of `vsr` and `patching` with its inversion.

    Files are `vsr`, `absurd` and `patching`, each .json, .jsonl, .csv or .parquet, or one `mats` whose rows say their
    split; rows have example_id, image, statement, relation, is_true, split and metadata. Two different statements
    about one picture share their published id; the second one's gets a "#2".

    Args:
        files: the folder; images in it, in `images/` or in `images/SPLIT/`.
        splits: separated by commas.
        prompt: of `PROMPTS`.
        inversion: of `invert`. A `patching` row brings its own inversion. Where the published rule changes nothing the
            statement is left out, as in the authors' audit.

    Raises:
        InputError: for a malformed row, a wrong label, an id that stands twice, an unknown option.
    """
    wanted = [one.strip() for one in splits.split(",")]
    for one in wanted:
        if one not in SPLITS:
            raise InputError(f"MATS has no split {one!r}{did_you_mean(one, SPLITS)}.")
    if prompt not in PROMPTS:
        raise InputError(f"MATS has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    items: list[Item] = []
    seen: dict[str, list[tuple[str, str]]] = {}
    for where, split, row in _rows(files, wanted):
        image, statement = field(row, "image", where), field(row, "statement", where)
        name = _unique(str(field(row, "example_id", where, (str, int))), (image, statement), seen, where)
        path = files.image(image, f"images/{split}", "images", split)
        for part, text, other, true in _parts(row, split, inversion, where):
            asked = PROMPTS[prompt].format(statement=text)
            gold = {"split": split, "relation": row["relation"], "pair": name, "part": part}
            gold |= {"statement": text, "inverse": other, "is_true": true}
            items.append(Item(f"{name}/{part}", path, asked, Path(path).name, gold))
    return items


def _unique(name: str, what: tuple[str, str], seen: dict[str, list[tuple[str, str]]], where: str) -> str:
    before = seen.setdefault(name, [])
    if what in before or any(image != what[0] for image, _ in before):
        raise InputError(f"{where} has the example_id {name!r}, which another row has.")
    before.append(what)
    return name if len(before) == 1 else f"{name}#{len(before)}"


def _parts(
    row: Mapping[str, Any], split: str, inversion: str, where: str
) -> list[tuple[str, str, str | None, bool | None]]:
    """(part, statement, the other statement, whether it is true) for each statement that a row asks about."""
    statement, true, more = row["statement"], _truth(row, where), _metadata(row, where)
    relation = field(row, "relation", where)
    if split == "absurd":
        if true:
            raise InputError(f"{where} is an absurd statement with is_true; absurd statements are false.")
        return [("absurd", statement, more.get("original_statement"), False)]
    try:
        other = more["absurd_text"] if "absurd_text" in more else invert(statement, relation, inversion)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if other == statement:
        return []
    # What is not to the left need not be to the right, so only a true statement says what its inversion is.
    return [("original", statement, other, true), ("inverted", other, statement, False if true else None)]


def verdict(text: str) -> bool | None:
    """Our own rule, True, False or None: the first word, or the only one of "true" and "false" in the answer.

    "yes" and "no" count as the first word only; right after a "not" (or n't), one word between allowed, "true" is
    False and "false" is True. "true or false" is the question repeated; "right", "correct" and "sure" say nothing.
    """
    answer = _ECHO.sub(" ", text.strip().lower())
    first = re.match(r"\W*(\w+)", answer)
    known = {"true": True, "yes": True, "false": False, "no": False}
    if first and first[1] in known:
        return known[first[1]]
    found = {
        (match[1] == "true") != bool(_NEGATED.search(answer[: match.start()])) for match in _TRUTH.finditer(answer)
    }
    return found.pop() if len(found) == 1 else None


def tally(items: Sequence[Item], answers: Sequence[Answer], parse: Callable[[str], bool | None]) -> Tally:
    """Counts by pair of statements, complete ones only, and by absurd statement."""
    rows: dict[tuple[str, str], list[tuple[Item, bool | None]]] = {}
    for item, answer in zip(items, answers, strict=True):
        key = (item.gold["pair"], "absurd" if item.gold["part"] == "absurd" else "pair")
        rows.setdefault(key, []).append((item, parse(answer.text)))
    groups: list[str] = []
    counts: dict[str, list[float]] = {name: [] for name in COUNTS}
    for (_, kind), parts in rows.items():
        if kind == "pair" and len(parts) != 2:
            continue
        said, gold = [one for _, one in parts], [item.gold["is_true"] for item, _ in parts]
        known = None not in said
        right = [one == true for one, true in zip(said, gold, strict=True) if true is not None]
        pair, absurd = kind == "pair", kind == "absurd"
        row = {
            "asked": len(said),
            "known": len(said) - said.count(None),
            "true": said.count(True),
            "pairs": pair,
            "known_pairs": pair and known,
            "flips": pair and known and said[0] != said[1],
            "absurd": absurd,
            "known_absurd": absurd and known,
            "agreed": absurd and said[0] is True,
            "labeled": len(right) if pair else 0,
            "right": sum(right) if pair else 0,
            "labeled_pairs": pair and len(right) == 2,
            "right_pairs": pair and len(right) == 2 and all(right),
        }
        groups.append(parts[0][0].group)
        for name, value in row.items():
            counts[name].append(float(value))
    return Tally(groups, counts)


COUNTS = (
    "asked", "known", "true", "pairs", "known_pairs", "flips", "absurd", "known_absurd", "agreed", "labeled", "right",
    "labeled_pairs", "right_pairs",
)  # fmt: skip


def _reference(sums: Sums) -> dict[str, np.ndarray]:
    # Where nothing is left to count the published functions return 0.
    return {
        "SCS": np.nan_to_num(share(sums["flips"], sums["known_pairs"])),
        "IAR": np.nan_to_num(share(sums["agreed"], sums["known_absurd"])),
        "coverage": np.nan_to_num(share(sums["known"], sums["asked"])),
        "true_ratio": share(sums["true"], sums["known"]),
    }


def _strict(sums: Sums) -> dict[str, np.ndarray]:
    return {
        "accuracy": share(sums["right"], sums["labeled"]),
        "pair_accuracy": share(sums["right_pairs"], sums["labeled_pairs"]),
        "SCS": share(sums["flips"], sums["pairs"]),
        "IAR": share(sums["agreed"], sums["absurd"]),
        "coverage": share(sums["known"], sums["asked"]),
        "true_ratio": share(sums["true"], sums["known"]),
    }


def _rows(files: Files, wanted: Sequence[str]) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    have_split(files, *wanted, "mats")
    if not any(find_split(files, split) for split in wanted):
        for where, row in read_split(files, "mats"):
            split = {"test": "vsr"}.get(str(row.get("split")), row.get("split"))
            if split not in SPLITS:
                raise InputError(f"{where} has the split {row.get('split')!r}{did_you_mean(str(split), SPLITS)}.")
            if split in wanted:
                yield where, str(split), row
        return
    for split in wanted:
        for where, row in read_split(files, split):
            yield where, split, row


def _truth(row: Mapping[str, Any], where: str) -> bool:
    value = field(row, "is_true", where, (bool, int, str))
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise InputError(f"{where} has {value!r} in 'is_true'; it is true or false.")
    return known[str(value).lower()]


def _metadata(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    value = row.get("metadata") or {}
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InputError(f"{where} has 'metadata' that is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{where} has {value!r} in 'metadata'; it is a JSON object.")
    return found


WANTED = {"SCS": 1, "IAR": -1, "coverage": 1, "true_ratio": 0}
BENCHMARK = Benchmark(
    name="mats",
    title="MATS",
    source="Thube 2025, arXiv 2509.22674; thubZ09/mats-spatial-reasoning@d977dd9",
    load=load,
    scorers=(
        Scorer(
            "reference",
            "thubZ09/mats-spatial-reasoning@d977dd9 src/mats/metrics.py",
            lambda items, answers: tally(items, answers, yesno.mats),
            _reference,
            WANTED,
        ),
        Scorer(
            "strict",
            "ours",
            lambda items, answers: tally(items, answers, verdict),
            _strict,
            {"accuracy": 1, "pair_accuracy": 1, **WANTED},
        ),
    ),
    max_new_tokens=10,
    hub=Published("thubZ9/mats-dataset", ("*.json", "*.jsonl", "*.csv", "*.parquet", "*images/*")),
    notes="The authors' own entry point does not run, so the published numbers cannot be reproduced from their code; "
    "for contrastive encoders their SCS is how often the true statement beats its inversion (`strict`: pair_accuracy).",
)
