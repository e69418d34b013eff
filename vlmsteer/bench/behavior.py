"""How a model answers, whatever is asked: length, repetition, yes or no, and its first token's own preference.

A gain on yes/no questions is often nothing but a bias to one answer (Yin et al., The Mirage of Performance Gains,
arXiv 2504.10020). So each steered arm is set beside the baseline's own margins, moved by the one number that makes
them say yes as often as the arm does: what is not better than that has only moved the share of yes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vlmsteer.bench.benchmark import Answer, Item, Scorer, Sums, Tally, share

LARGEST = 50.0  # nats: a ruled-out token would make a mean infinite


def said(text: str) -> str:
    """ "yes" or "no", whichever whole word comes first in any case; "" if neither does."""
    found = re.search(r"\b(yes|no)\b", text.lower())
    return found[1] if found else ""


def margin(answer: Answer) -> float:
    """log p("yes") - log p("no") of the first token in nats, at most 50 either way; nan where they are not recorded."""
    found = {name.lower(): value for name, value in answer.logprobs.items()}
    if "yes" not in found or "no" not in found:
        return math.nan
    return float(np.clip(found["yes"] - found["no"], -LARGEST, LARGEST))


def truth(item: Item) -> str:
    """ "yes" or "no" if that is what the item's gold says in "label" or "truth"; else "", as of a caption."""
    found = [str(item.gold.get(name, "")).strip().lower() for name in ("label", "truth")]
    return next((one for one in found if one in ("yes", "no")), "")


def questions(items: Sequence[Item]) -> set[str]:
    """Ids of the items that want yes or no: those of which that is known, all if it is known of none."""
    return {item.id for item in items if truth(item)} or {item.id for item in items}


def yes_bias(
    items: Sequence[Item], baseline: Mapping[str, Answer], steered: Mapping[str, Answer]
) -> tuple[dict[str, Answer], float] | None:
    """The baseline's answers if one number were added to all its margins.

    The number is such that it says yes to as many of the questions that both arms answered as the steered arm does (as
    near as equal margins allow). What flips is worded as the baseline words such answers most often. What wants
    neither yes nor no (a caption) and questions whose first token is not recorded keep the baseline's answer.

    Args:
        items: the task's items.
        baseline, steered: answers by item; the baseline's with `logprobs` of "yes" and "no".

    Returns:
        Answers ("Yes", "No") by item, of the items that both answered, and the number in nats; None if no margin is
        recorded.
    """
    both = [item.id for item in items if item.id in baseline and item.id in steered]
    wanting = questions(items)
    margins = {id: margin(baseline[id]) for id in both if id in wanting}
    margins = {id: value for id, value in margins.items() if not math.isnan(value)}
    if not margins:
        return None
    wanted = sum(_says_yes(steered[id]) for id in margins)
    cut = _cut(np.array(list(margins.values())), wanted)
    answers = {id: baseline[id] for id in both}
    # Worded otherwise, a scorer that reads "Yes" but not "Yes." would count the wording.
    usual = {yes: _usual([baseline[id].text for id in margins], yes) for yes in (True, False)}
    for id, value in margins.items():
        yes, text = value > cut, baseline[id].text
        kept = not text.strip() or _says_yes(baseline[id]) == yes
        answers[id] = Answer(text if kept else usual[yes], {"yes": value - cut, "no": 0.0})
    return answers, -cut


def _usual(texts: Sequence[str], yes: bool) -> str:
    """The most frequent of the texts that say yes, or no."""
    found = Counter(text for text in texts if said(text) == ("yes" if yes else "no"))
    return found.most_common(1)[0][0] if found else ("Yes" if yes else "No")


def _says_yes(answer: Answer) -> bool:
    return said(answer.text) == "yes" if said(answer.text) else margin(answer) > 0


def _cut(margins: np.ndarray, wanted: int) -> float:
    """Where to cut so that as many margins as wanted lie above; of several such places the one nearest to zero."""
    levels = np.unique(margins)
    cuts = np.concatenate([[levels[0] - 1], (levels[:-1] + levels[1:]) / 2, [levels[-1] + 1]])
    above = len(margins) - np.searchsorted(np.sort(margins), cuts, side="right")
    best = np.flatnonzero(np.abs(above - wanted) == np.abs(above - wanted).min())
    spans = np.concatenate([[-math.inf], levels, [math.inf]])
    if any(spans[i] <= 0 < spans[i + 1] for i in best):  # the baseline says yes as often by itself
        return 0.0
    return float(cuts[best[np.argmin(np.abs(cuts[best]))]])


def _texts(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    rows = _written(items, answers)
    runs = [_runs(text) for _, text in rows]
    return Tally(
        [group for group, _ in rows],
        {
            "answers": [1.0] * len(rows),
            "words": [float(len(text.split())) for _, text in rows],
            "empty": [float(not text.strip()) for _, text in rows],
            "runs": [float(len(found)) for found in runs],
            "repeated": [float(len(found) - len(set(found))) for found in runs],
        },
    )


def _text_metrics(sums: Sums) -> dict[str, np.ndarray]:
    return {
        "words": share(sums["words"], sums["answers"]),
        "repetition": share(sums["repeated"], sums["runs"]),
        "empty": share(sums["empty"], sums["answers"]),
    }


def _yes_no(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    wanting = questions(items)
    kept = [(item, answer) for item, answer in zip(items, answers, strict=True) if item.id in wanting]
    rows = _written([item for item, _ in kept], [answer for _, answer in kept])
    counts = {word: [float(said(text) == word) for _, text in rows] for word in ("yes", "no")}
    return Tally([group for group, _ in rows], {"answers": [1.0] * len(rows), **counts})


def _yes_no_metrics(sums: Sums) -> dict[str, np.ndarray]:
    yes, no, n = sums["yes"], sums["no"], sums["answers"]
    return {"yes": share(yes, n), "no": share(no, n), "neither": share(n - yes - no, n)}


def _written(items: Sequence[Item], answers: Sequence[Answer]) -> list[tuple[str, str]]:
    return [(item.cluster, answer.text) for item, answer in zip(items, answers, strict=True) if not item.choices]


def _first_tokens(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    wanting = questions(items)
    rows = [(item, margin(answer)) for item, answer in zip(items, answers, strict=True) if item.id in wanting]
    rows = [(item, value) for item, value in rows if not math.isnan(value)]
    labels = [truth(item) for item, _ in rows]
    values = np.array([value for _, value in rows], dtype=np.float64)
    true = np.array([one == "yes" for one in labels], dtype=bool)
    known = np.array([bool(one) for one in labels], dtype=bool)
    yes = values > 0
    counts = {
        "answers": np.ones(len(rows)),
        "known": known,
        "right": known & (yes == true),
        "hit": known & yes & true,
        "either": 1.0 * (known & yes) + 1.0 * (known & true),
        "yes": yes,
        "margin": values,
        "right_margin": known * np.where(true, values, -values),
    }
    return Tally([item.cluster for item, _ in rows], {name: list(map(float, one)) for name, one in counts.items()})


def _first_token_metrics(sums: Sums) -> dict[str, np.ndarray]:
    return {
        "accuracy": share(sums["right"], sums["known"]),
        "F1": share(2 * sums["hit"], sums["either"]),
        "yes": share(sums["yes"], sums["answers"]),
        "margin": share(sums["margin"], sums["answers"]),
        "right margin": share(sums["right_margin"], sums["known"]),
    }


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return list(zip(words, words[1:], words[2:], strict=False))


TEXTS = Scorer(
    "answers", "ours: words; of an answer's runs of three words, those it had before; blank ones",
    _texts, _text_metrics, {"words": 0, "repetition": -1, "empty": -1}, numbers=frozenset({"words"}),
)  # fmt: skip
YES_NO = Scorer(
    "yes or no", "ours: whichever whole word comes first, in any case",
    _yes_no, _yes_no_metrics, {"yes": 0, "no": 0, "neither": -1},
)  # fmt: skip
FIRST_TOKEN = Scorer(
    "first token", "ours: yes if log p(yes) > log p(no), whatever is written", _first_tokens, _first_token_metrics,
    {"accuracy": 1, "F1": 1, "yes": 0, "margin": 0, "right margin": 1}, numbers=frozenset({"margin", "right margin"}),
)  # fmt: skip
