"""Every metric of every arm with its interval, and what changed: from the baseline, and beyond what chance would do.

A change counts only over items that both arms answered. Beside each arm stand two controls: random directions of its
own lengths, pooled, and the baseline moved to the arm's share of yes (`behavior.yes_bias`); "beyond" is the arm's
change minus the control's, in the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vlmsteer.bench.behavior import FIRST_TOKEN, TEXTS, YES_NO, yes_bias
from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Tally
from vlmsteer.bench.intervals import mcnemar, metric_contrast, metric_intervals
from vlmsteer.bench.results import Run
from vlmsteer.bench.statistics import Rate
from vlmsteer.errors import InputError, VlmsteerError

Answers = Mapping[str, Mapping[str, Answer]]  # by arm and item


class Scored:
    """The answers of a task's arms, counted by one scorer; each count is made once."""

    def __init__(self, items: Sequence[Item], answers: Answers, scorer: Scorer, draws: int, seed: int) -> None:
        self.scorer, self._items, self._answers = scorer, items, answers
        self._draws, self._seed = draws, seed
        self._tallies: dict[tuple[str, frozenset[str]], Tally] = {}

    @property
    def arms(self) -> Collection[str]:
        """The names of the arms."""
        return self._answers.keys()

    def shared(self, *arms: str) -> frozenset[str]:
        """Ids of the items that all of these arms answered."""
        return frozenset.intersection(*(frozenset(self._answers[arm]) for arm in arms))

    def tally(self, arm: str, ids: frozenset[str]) -> Tally:
        """The counts of an arm's answers to some items, in the items' order."""
        if (arm, ids) not in self._tallies:
            items = [item for item in self._items if item.id in ids]
            self._tallies[arm, ids] = self.scorer.tally(items, [self._answers[arm][item.id] for item in items])
        return self._tallies[arm, ids]

    def values(self, *arms: str) -> dict[str, Rate]:
        """The metrics of an arm, or their means over several arms on the items that all answered."""
        ids = self.shared(*arms)
        if not ids:
            return {}
        if len(arms) == 1:
            return metric_intervals(self.tally(arms[0], ids), self.scorer, self._draws, self._seed)
        return self.contrast(dict.fromkeys(arms, 1 / len(arms)))

    def contrast(self, weights: Mapping[str, float]) -> dict[str, Rate]:
        """A weighted sum over arms, on the items that all answered."""
        ids = self.shared(*weights)
        if not ids:
            return {}
        tallies = [self.tally(arm, ids) for arm in weights]
        return metric_contrast(tallies, self.scorer, list(weights.values()), self._draws, self._seed)

    def mcnemar(self, before: str, after: str) -> dict[str, Any] | None:
        """The test of items that are right or wrong, for a scorer that counts "right" with one row an item."""
        ids = self.shared(before, after)
        if not ids:
            return None
        flags = [right(self.tally(arm, ids), len(ids)) for arm in (before, after)]
        if flags[0] is None or flags[1] is None:
            return None
        lost, gained, p = mcnemar(flags[0], flags[1])
        return {"lost": lost, "gained": gained, "p": p}


def right(tally: Tally, items: int) -> list[float] | None:
    """Whether each item was right, where the counts say so: one row an item, "right" 0 or 1."""
    flags = tally.counts.get("right")
    return flags if flags is not None and len(flags) == items and set(flags) <= {0, 1} else None


def summarize(
    run: Run, scorers: Mapping[str, Sequence[str]] | None = None, draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Everything that metrics.json holds, as JSON values.

    Args:
        run: as it was read.
        scorers: by task, the names of the scorers to use, the main one first; None for all of a benchmark's.
        draws, seed: of the resampling.

    Raises:
        InputError: if a scorer is unknown.
    """
    about = {"draws": draws, "seed": seed, "unreadable_rows": run.unreadable}
    tasks = {task: _task(run, task, (scorers or {}).get(task), draws, seed) for task in run.items}
    return {**about, "baseline": run.baseline, "tasks": tasks}


def _task(run: Run, task: str, names: Sequence[str] | None, draws: int, seed: int) -> dict[str, Any]:
    benchmark, items = run.benchmarks[task], run.items[task]
    chosen = benchmark.scorers if names is None else tuple(benchmark.scorer(name) for name in names)
    answers: dict[str, Mapping[str, Answer]] = dict(run.answers[task])
    arms = {arm.name: {"kind": arm.kind, "of": arm.of, "strength": arm.strength} for arm in run.arms}
    base = run.baseline
    steered = [arm for arm in run.arms if arm.kind == "recipe" and base is not None and benchmark.yes_no]
    for arm in steered:
        moved = yes_bias(items, answers[str(base)], answers[arm.name])
        if moved is not None:
            name = f"{arm.name}, yes bias"
            answers[name] = moved[0]
            arms[name] = {"kind": "yes bias", "of": arm.name, "strength": arm.strength, "added_nats": moved[1]}
    for name, row in arms.items():
        row["answered"] = len(answers[name])
        row["errors"] = len(run.errors[task].get(name, ()))
        row["unanswered"] = 1 - len(answers[name]) / len(items) if items else 0.0
        row["seconds"] = round(sum(run.seconds[task].get(name, {}).values()), 2)
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for scorer in chosen:
        # An answer that nobody judged counts as none; nor has a control been judged that words its answers itself.
        judged = benchmark.judged if benchmark.judged and scorer.name in benchmark.judged.reads else None
        given = judged.known(items, run.answers[task]) if judged else answers
        try:
            found[scorer.name] = _scored(Scored(items, given, scorer, draws, seed), arms, base)
        except VlmsteerError as error:  # a part that needs what is not there, a judge or word lists
            skipped[scorer.name] = str(error)
    if not found and chosen and any(answers.values()):
        raise InputError(f"No scorer of {benchmark.title} can be run: {next(iter(skipped.values()))}")
    for scorer in _against(benchmark, chosen, answers.get(str(base), {})):
        given = {arm: _only(answers[arm], answers[str(base)]) for arm in run.answers[task] if arm != base}
        scored = _scored(Scored(items, given, scorer, draws, seed), arms, None)
        if scored["metrics"]:
            found[scorer.name] = {**scored, "against": base}
    for scorer in (TEXTS, YES_NO, FIRST_TOKEN) if benchmark.yes_no else (TEXTS, FIRST_TOKEN):
        counted = run.answers[task] if scorer is TEXTS else answers  # a control made of margins has no length
        scored = _scored(Scored(items, counted, scorer, draws, seed), arms, base)
        if scored["metrics"]:
            found[scorer.name] = scored
    return {
        "benchmark": benchmark.name, "title": benchmark.title, "source": benchmark.source, "notes": benchmark.notes,
        "version": benchmark.version, "items": len(items), "groups": len({item.cluster for item in items}),
        "without_image": sum(item.image is None for item in items),
        "arms": arms, "scorers": found, "skipped_scorers": skipped,
        "judge": benchmark.judged and benchmark.judged.about(items, run.answers[task]),
    }  # fmt: skip


def _against(benchmark: Benchmark, chosen: Sequence[Scorer], before: Mapping[str, Answer]) -> list[Scorer]:
    """The scorers against the baseline's answers that go with the chosen ones."""
    pairs = zip(benchmark.scorers, benchmark.against, strict=False)
    made = {scorer.name: make for scorer, make in pairs} if before else {}
    return [made[scorer.name](before) for scorer in chosen if scorer.name in made]


def _only(answers: Mapping[str, Answer], known: Mapping[str, Answer]) -> dict[str, Answer]:
    return {id: answer for id, answer in answers.items() if id in known}


def _scored(scored: Scored, arms: Mapping[str, dict[str, Any]], base: str | None) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    random: dict[str, list[str]] = {name: [] for name in arms}
    for name, row in arms.items():
        if row["kind"] == "random" and row["of"] in random:
            random[row["of"]].append(name)
    for name, row in arms.items():
        if name not in scored.arms:
            continue
        found: dict[str, Any] = {"values": scored.values(name)}
        if base is not None and name != base:
            found["change"] = scored.contrast({base: -1.0, name: 1.0})
            found["mcnemar"] = scored.mcnemar(base, name)
        if row["kind"] == "recipe":
            found["beyond"] = {}
            if random[name]:
                found["beyond"]["random"] = scored.contrast(_beyond(name, random[name]))
            if f"{name}, yes bias" in scored.arms:
                found["beyond"]["yes bias"] = scored.contrast(_beyond(name, [f"{name}, yes bias"]))
        rows[name] = found
        if random[name]:
            pooled: dict[str, Any] = {"directions": len(random[name]), "values": scored.values(*random[name])}
            if base is not None:
                pooled["change"] = scored.contrast(_beyond(base, random[name], sign=-1.0))
            rows[name]["random"] = pooled
    facts = metric_facts(scored.scorer, [row["values"] for row in rows.values()])
    scorer = scored.scorer
    about = {"source": scorer.source, "version": scorer.version, "notes": scorer.notes, **facts}
    return {**about, "arms": plain(rows, set(facts["metrics"]))}


def metric_facts(scorer: Scorer, values: Sequence[Mapping[str, Rate]]) -> dict[str, Any]:
    """What it takes to show a scorer's metrics: `metrics` that some arm has, `wanted` and `units` of each.

    Args:
        scorer: whose metrics they are.
        values: the metrics of each arm.
    """
    known = {name for row in values for name, rate in row.items() if not math.isnan(rate.rate)}
    order = dict.fromkeys([*scorer.wanted, *(name for row in values for name in row)])
    order = [metric for metric in order if metric in known]
    wanted = {metric: scorer.wanted.get(metric, 0) for metric in order}
    return {"metrics": order, "wanted": wanted, "units": {metric: scorer.unit(metric) for metric in order}}


def plain(value: Any, metrics: Collection[str]) -> Any:
    """JSON values of nested dictionaries with rates; of the metrics only these."""
    if isinstance(value, Rate):
        return value.as_dict()
    if isinstance(value, dict):
        kept = {name: one for name, one in value.items() if not isinstance(one, Rate) or name in metrics}
        return {name: plain(one, metrics) for name, one in kept.items()}
    return value


def _beyond(name: str, others: Sequence[str], sign: float = 1.0) -> dict[str, float]:
    return {name: sign, **dict.fromkeys(others, -sign / len(others))}
