"""HallusionBench's numbers: whole questions, whole figures, and what an error is put down to.

A question is right if it is right on all figures of its set (qAcc), a figure if all questions on it are (fAcc). An
error is language's if the model says what it said without the figure or of the original one, vision's if the figure was
misread: the diagnosis of Guan et al. (CVPR 2024, arXiv 2310.14566), which needs to know whether two answers agree.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Item, Scorer, Sums, Tally, share

WRONG, RIGHT, UNCLEAR = 0, 1, 2  # a verdict
NOTES = (
    "language, vision and both are the authors' LH, VI and Mixed: of the errors the percentage that each is the cause "
    "of. no among errors is their FP ratio, yes bias their Pct Diff."
)
UNITS = ("pair", "figure", "easy", "hard")
CAUSES = ("language", "vision", "both")
COUNTS = (
    *UNITS, *(f"{kind} right" for kind in UNITS), "figure shares", "figure wrong", "questions", "right", "yes",
    "label yes", "wrong no", "unclear", *CAUSES, "undiagnosed", "unjudged",
)  # fmt: skip
POINTS = ("qAcc", "fAcc", "easy", "hard", "aAcc", "figures inconsistent", "figures wrong", *CAUSES)
WANTED = {
    **dict.fromkeys(("qAcc", "fAcc", "easy", "hard", "aAcc"), 1), "figures inconsistent": -1, "figures wrong": -1,
    "figures score": 1, "yes bias": 0, "no among errors": 0, **dict.fromkeys(CAUSES, 0), "unclear": -1, "unjudged": 0,
}  # fmt: skip


class Scored(NamedTuple):
    """An answer with its verdict, whether it says yes, and the second verdict (None: not given)."""

    item: Item
    verdict: int
    yes: bool
    same: bool | None

    @property
    def right(self) -> bool:
        """Whether it counts as right: without the figure that it needs a question may stay open."""
        return self.verdict == RIGHT or (self.verdict == UNCLEAR and no_figure(self.item))


def no_figure(item: Item) -> bool:
    """Whether the question needs a figure (category VS) and is asked without one (figure 0)."""
    return item.gold["category"] == "VS" and item.gold["figure_id"] == "0"


def original(item: Item) -> bool:
    """Whether it is asked about figure 0, which others of its set are edited from, or without one."""
    return item.gold["figure_id"] == "0"


def together(gold: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a question is scored together with: the same question on other figures, and others on the same figure."""
    yield "pair", gold["pair"]
    yield "figure", gold["figure"]
    yield ("hard" if gold["visual_input"] == "2" else "easy"), gold["pair"]


def scorer(
    name: str,
    source: str,
    score: Callable[[Item, Answer], Scored | None],
    judged: bool = False,
    without_figure: bool = False,
) -> Scorer:
    """A scorer of sets.

    Args:
        name, source: as in `Scorer`.
        score: what to make of one answer, None if nobody judged it.
        judged: whether a judge compares answers, and metrics are in percent as the authors print them; else two
            answers to one question agree if both say yes, or both no.
        without_figure: whether questions without a figure make up a figure too.
    """

    def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
        sets: dict[str, list[Scored]] = defaultdict(list)
        unjudged: Counter[str] = Counter()
        for item, answer in zip(items, answers, strict=True):
            scored = score(item, answer)
            unjudged[item.group] += scored is None
            sets[item.group].extend([] if scored is None else [scored])
        counts: dict[str, list[float]] = {count: [] for count in COUNTS}
        for group, rows in sets.items():
            found = _counts(rows, judged, without_figure) | {"unjudged": unjudged[group]}
            for count in COUNTS:
                counts[count].append(float(found[count]))
        return Tally(list(sets), counts)

    points = frozenset(POINTS) if judged else frozenset()
    return Scorer(name, source, tally, lambda sums: _metrics(sums, judged), WANTED, points, notes=NOTES)


def _blame(one: Scored, first: Scored | None, judged: bool) -> tuple[bool, bool] | None:
    """Whether an error shows that language overrode the figure, and that the figure was misread; None: not known.

    The authors' decision tree (get_eval_pair_all), from the verdict on the same question with figure 0.
    """
    if one.right:
        return False, False
    if no_figure(one.item):
        return True, False
    needs_figure = one.item.gold["category"] == "VS"
    if original(one.item):
        return False, True
    if first is None:
        return None
    if one.verdict == UNCLEAR:
        return needs_figure and first.verdict == WRONG, True
    if first.verdict == UNCLEAR or (first.verdict == WRONG and not needs_figure):
        return False, True
    if needs_figure and first.verdict == RIGHT and one.item.gold["visual_input"] == "1":
        return False, True
    same = one.same if judged else one.yes == first.yes
    if same is None:
        return None
    if not needs_figure:
        return same, True
    return (True, not same) if first.verdict == WRONG else (same, not same)


def _counts(rows: Sequence[Scored], judged: bool, without_figure: bool) -> dict[str, float]:
    """The counts of one set."""
    units: dict[tuple[str, str], list[bool]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = {}
    for row in rows:
        for unit in together(row.item.gold):
            if unit[0] != "figure" or without_figure or not no_figure(row.item):
                units[unit].append(row.right)
                sizes[unit] = row.item.gold["of"][unit[0]]
    whole = [(kind, right) for (kind, label), right in units.items() if len(right) == sizes[kind, label]]
    found: dict[str, float] = {kind: sum(one == kind for one, _ in whole) for kind in UNITS}
    found |= {f"{kind} right": sum(one == kind and all(right) for one, right in whole) for kind in UNITS}
    first = {row.item.gold["pair"]: row for row in rows if original(row.item)}
    blamed = [_blame(row, first.get(row.item.gold["pair"]), judged) for row in rows]
    return found | {
        "figure shares": sum(sum(right) / len(right) for kind, right in whole if kind == "figure"),
        "figure wrong": sum(kind == "figure" and not any(right) for kind, right in whole),
        "questions": len(rows),
        "right": sum(row.right for row in rows),
        "yes": sum(row.yes for row in rows),
        "label yes": sum(row.item.gold["label"] == "yes" for row in rows),
        "wrong no": sum(not row.right and row.item.gold["label"] == "no" for row in rows),
        "unclear": sum(row.verdict == UNCLEAR for row in rows),
        "language": blamed.count((True, False)),
        "vision": blamed.count((False, True)),
        "both": blamed.count((True, True)),
        "undiagnosed": blamed.count(None),
    }


def _metrics(sums: Sums, percent: bool) -> dict[str, np.ndarray]:
    def of(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.round(100 * share(above, below), 4) if percent else share(above, below)

    asked, figures = sums["questions"], sums["figure"]
    blamed = sums["language"] + sums["vision"] + sums["both"]
    known = np.where(sums["undiagnosed"] > 0, 0, blamed)
    return {
        "qAcc": of(sums["pair right"], sums["pair"]),
        "fAcc": of(sums["figure right"], figures),
        "easy": of(sums["easy right"], sums["easy"]),
        "hard": of(sums["hard right"], sums["hard"]),
        "aAcc": of(sums["right"], asked),
        "figures inconsistent": of(figures - sums["figure right"] - sums["figure wrong"], figures),
        "figures wrong": of(sums["figure wrong"], figures),
        "figures score": share(sums["figure shares"], figures),
        "yes bias": share(sums["yes"], asked) - share(sums["label yes"], asked),
        "no among errors": share(sums["wrong no"], asked - sums["right"]),
        **{cause: of(sums[cause], known) for cause in CAUSES},
        "unclear": share(sums["unclear"], asked),
        "unjudged": share(sums["unjudged"], asked + sums["unjudged"]),
    }


def _lmms(item: Item, answer: Answer) -> Scored:
    yes = "yes" in answer.text.lower()
    return Scored(item, RIGHT if yes == (item.gold["label"] == "yes") else WRONG, yes, None)


def _strict(item: Item, answer: Answer) -> Scored:
    said = yesno.strict(answer.text)
    found = UNCLEAR if said is None else RIGHT if said == item.gold["label"] else WRONG
    return Scored(item, found, said == "yes", None)


MATCHED = (
    scorer("lmms", "EvolvingLMMs-Lab/lmms-eval@75571cf hb_aggregation_result_intern", _lmms, without_figure=True),
    scorer("strict", "ours", _strict),
)
