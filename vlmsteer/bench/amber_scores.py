"""AMBER's numbers: functions of what is counted of descriptions and of yes/no answers.

The published program starts its counters at 0.001, rounds to one decimal, computes F1 from rounded values with a little
added below, and takes "No" as the positive class. `official` and `nosim` do all that; `strict` does none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.amber_nouns import nouns
from vlmsteer.bench.amber_words import (
    COUNTS,
    Nouns,
    Similarity,
    judge,
    judge_strictly,
    published_nouns,
    published_similarity,
)
from vlmsteer.bench.benchmark import Answer, Item, Scorer, Sums, Tally, share
from vlmsteer.errors import InputError, did_you_mean

START = 0.001
TYPES = {
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-hallucination": "existence",
    "discriminative-relation": "relation",
    "relation": "relation",
}
DIMENSIONS = {  # prefix of the metrics -> the types counted, and how many of the program's counters that takes
    "": (tuple(dict.fromkeys(TYPES.values())), 1),
    "existence_": (("existence",), 1),
    "attribute_": (("state", "number", "action"), 3),
    "state_": (("state",), 1),
    "number_": (("number",), 1),
    "action_": (("action",), 1),
    "relation_": (("relation",), 1),
}
CELLS = ("asked", "no", "said_yes", "said_no", "right_yes", "right_no")
SPACY = ("en_core_web_lg",)
SPACY_LMMS = ("en_core_web_md", "en_core_web_sm", "en_core_web_lg")


def amber_score(generative: Mapping[str, Any], discriminative: Mapping[str, Any]) -> Any:
    """The paper's score of both halves, (100 - CHAIR + F1) / 2, from metrics in percent (`Scorer.score`)."""
    return (100 - generative["chair"] + discriminative["f1"]) / 2


def scorer(
    name: str,
    parts: Sequence[str] = ("generative", "discriminative"),
    similarity: Similarity | None = None,
    find_nouns: Nouns | None = None,
) -> Scorer:
    """One of AMBER's scorers, for descriptions, yes/no questions or both.

    Args:
        name: "official", "nosim", "lmms" or "strict".
        parts: which items it scores; what other items need is not counted.
        similarity: of two words, for "official" and "lmms"; None takes the program's own spaCy model and, with it,
            NLTK's nouns, and scoring descriptions raises InputError where they are not installed.
        find_nouns: the lemmas of a text's nouns; with a similarity, None is `amber_nouns.nouns`.

    Raises:
        InputError: if there is no such scorer.
    """
    if name not in RULES:
        raise InputError(f"amber has no scorer {name!r}{did_you_mean(name, RULES)}.")
    rule = RULES[name]

    def describe(texts: Sequence[str], golds: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        if name == "strict":
            return [judge_strictly(text, gold) for text, gold in zip(texts, golds, strict=True)]
        alike, find = similarity if rule.spacy else None, find_nouns or nouns
        if rule.spacy and similarity is None and texts:
            alike, find = published_similarity(*rule.spacy), find_nouns or published_nouns()
        return [judge(find(text), gold, alike) for text, gold in zip(texts, golds, strict=True)]

    def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
        pairs = [(item, answer.text) for item, answer in zip(items, answers, strict=True) if _part(item) in parts]
        told = [(text, item.gold) for item, text in pairs if _part(item) == "generative"]
        judged = iter(describe([text for text, _ in told], [gold for _, gold in told]))
        rows: list[dict[str, float]] = []
        for item, text in pairs:
            if _part(item) == "generative":
                rows.append(next(judged) | {"words": float(len(text.split()))})
            else:
                rows.append(_cells(rule.read(text), item.gold))
        names = [name for part in parts for name in _NAMES[part]]
        counts = {count: [row.get(count, 0.0) for row in rows] for count in names}
        return Tally([item.group for item, _ in pairs], counts)

    def metrics(sums: Sums) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        if "generative" in parts:
            found |= rule.descriptions(sums)
        if "discriminative" in parts:
            found |= rule.questions(sums)
        return ({"amber": amber_score(found, found)} if len(parts) == 2 else {}) | found

    wanted = {"amber": 1} if len(parts) == 2 else {}
    wanted |= WANTED_GENERATIVE if "generative" in parts else {}
    if "discriminative" in parts:
        classes = ("accuracy", "f1", "precision", "recall", *(("f1_yes",) if name == "strict" else ()))
        wanted |= {f"{prefix}{metric}": 1 for prefix in DIMENSIONS for metric in classes}
        wanted |= {"yes_ratio": 0, "unparsed": -1}
    percent = frozenset(wanted) - {"words", "yes_ratio", "unparsed"}
    return Scorer(name, rule.source, tally, metrics, wanted, percent, numbers=frozenset({"words"} & wanted.keys()))


def _official_descriptions(sums: Sums) -> dict[str, np.ndarray]:
    return {name: _round(value) for name, value in _descriptions(sums, np.full((), START)).items()} | _length(sums)


def _lmms_descriptions(sums: Sums) -> dict[str, np.ndarray]:
    # every image has its own counters there, each with its start value
    return _descriptions(sums, START * sums["images"]) | _length(sums)


def _strict_descriptions(sums: Sums) -> dict[str, np.ndarray]:
    return _descriptions(sums, np.zeros(())) | _length(sums)


def _descriptions(sums: Sums, start: np.ndarray) -> dict[str, np.ndarray]:
    def percent(above: str, below: str) -> np.ndarray:
        return share(sums[above], np.where(sums["images"] == 0, 0, sums[below] + start)) * 100

    return {
        "chair": percent("invented", "mentions"),
        "cover": percent("covered", "truths"),
        "hal": 100 - percent("clean", "images"),
        "cog": percent("hit", "targets"),
    }


def _length(sums: Sums) -> dict[str, np.ndarray]:
    return {"words": share(sums["words"], sums["images"])}


def _official_questions(sums: Sums) -> dict[str, np.ndarray]:
    found = {}
    for prefix, (types, counters) in DIMENSIONS.items():
        cells, start = _sum_cells(sums, types), START * counters

        def percent(above: np.ndarray, below: np.ndarray, asked: np.ndarray, start: float) -> np.ndarray:
            return _round(share(above, np.where(asked == 0, 0, below + start)) * 100)

        asked = cells["asked"]
        precision = percent(cells["right_no"], cells["said_no"], asked, start)
        recall = percent(cells["right_no"], cells["no"], asked, start)
        slack = 0.001 if prefix == "existence_" else 0.0001
        f1 = 2 * (precision / 100) * (recall / 100) / ((precision / 100) + (recall / 100) + slack) * 100
        right = percent(cells["right_yes"] + cells["right_no"], asked, asked, start)
        found |= _named(prefix, accuracy=right, f1=_round(f1), precision=precision, recall=recall)
    return found | _shares(sums)


def _plain_questions(sums: Sums) -> dict[str, np.ndarray]:
    found = {}
    for prefix, (types, _) in DIMENSIONS.items():
        cells = _sum_cells(sums, types)
        found |= _named(
            prefix,
            accuracy=100 * share(cells["right_yes"] + cells["right_no"], cells["asked"]),
            f1=100 * share(2 * cells["right_no"], cells["said_no"] + cells["no"]),
            precision=100 * share(cells["right_no"], cells["said_no"]),
            recall=100 * share(cells["right_no"], cells["no"]),
        )
    return found | _shares(sums)


def _strict_questions(sums: Sums) -> dict[str, np.ndarray]:
    found = _plain_questions(sums)
    for prefix, (types, _) in DIMENSIONS.items():
        cells = _sum_cells(sums, types)
        yes = cells["asked"] - cells["no"]
        found |= _named(prefix, f1_yes=100 * share(2 * cells["right_yes"], cells["said_yes"] + yes))
    return found


def _shares(sums: Sums) -> dict[str, np.ndarray]:
    cells = _sum_cells(sums, DIMENSIONS[""][0])
    said = cells["said_yes"] + cells["said_no"]
    return {"yes_ratio": share(cells["said_yes"], cells["asked"]), "unparsed": 1 - share(said, cells["asked"])}


def _sum_cells(sums: Sums, types: Sequence[str]) -> dict[str, np.ndarray]:
    return {cell: sum((sums[f"{one}_{cell}"] for one in types), np.zeros(())) for cell in CELLS}


def _named(prefix: str, **values: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": value for name, value in values.items()}


def _round(values: np.ndarray) -> np.ndarray:
    # numpy's own rounding goes wrong near ties
    return np.vectorize(lambda value: round(float(value), 1), otypes=[float])(values)


def _cells(said: str | None, gold: Mapping[str, Any]) -> dict[str, float]:
    cells = {
        "asked": True,
        "no": gold["truth"] == "no",
        "said_yes": said == "yes",
        "said_no": said == "no",
        "right_yes": said == gold["truth"] == "yes",
        "right_no": said == gold["truth"] == "no",
    }
    return {f"{TYPES[gold['type']]}_{name}": float(value) for name, value in cells.items()}


def _part(item: Item) -> str:
    return "generative" if item.gold["type"] == "generative" else "discriminative"


def _exactly(text: str) -> str | None:
    return {"Yes": "yes", "No": "no"}.get(text)


def _substring(text: str) -> str | None:
    return next((word for word in ("yes", "no") if word in text.lower()), None)


@dataclass(frozen=True)
class _Rule:
    source: str
    read: Callable[[str], str | None]
    descriptions: Callable[[Sums], dict[str, np.ndarray]]
    questions: Callable[[Sums], dict[str, np.ndarray]]
    spacy: tuple[str, ...] = ()


_NAMES = {
    "generative": [*COUNTS, "words"],
    "discriminative": [f"{one}_{cell}" for one in DIMENSIONS[""][0] for cell in CELLS],
}
WANTED_GENERATIVE = {"chair": -1, "cover": 1, "hal": -1, "cog": -1, "words": 0}
PROGRAM = "junyangwang0410/AMBER@534babf inference.py"
RULES = {
    "nosim": _Rule(f"{PROGRAM}, without spaCy's similarities", _exactly, _official_descriptions, _official_questions),
    "official": _Rule(PROGRAM, _exactly, _official_descriptions, _official_questions, SPACY),
    "lmms": _Rule(
        "EvolvingLMMs-Lab/lmms-eval@226ba42 amber_g/utils.py; it parses yes/no answers but shows no metrics of them",
        _substring, _lmms_descriptions, _plain_questions, SPACY_LMMS,
    ),
    "strict": _Rule("ours", yesno.strict, _strict_descriptions, _strict_questions),
}  # fmt: skip
