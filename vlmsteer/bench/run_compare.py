"""Two runs on the same items: what changed from the first to the second, in pairs.

Items are joined by task, id and prompt. Another prompt, decoding or gold would be another measurement, so it is
refused; another model or recipe is what such a comparison is for, and is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmsteer.bench.benchmark import Benchmark, Scorer
from vlmsteer.bench.results import Run, read_run
from vlmsteer.bench.summary import Scored, metric_facts, plain
from vlmsteer.bench.tables import certain, change, head, number
from vlmsteer.errors import InputError, did_you_mean

A, B = "a", "b"


def compare_runs(
    a: str | Path,
    b: str | Path,
    benchmarks: Mapping[str, Benchmark] | None = None,
    arms: tuple[str, str] | None = None,
    scorers: Mapping[str, str] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The change of every metric from run a to run b, with interval and McNemar's test.

    Args:
        a, b: run folders.
        benchmarks: see `results.read_run`.
        arms: one arm of a and one of b; None for every arm that both have (random ones left out).
        scorers: by task, a scorer's name; None for the benchmark's first.
        draws, seed: of the resampling.

    Returns:
        JSON values; `as_markdown` makes text of them.

    Raises:
        InputError: if the runs share no task, items or arms, or differ in prompts, gold or decoding.
    """
    runs = {A: read_run(a, benchmarks), B: read_run(b, benchmarks)}
    tasks = [task for task in runs[A].items if task in runs[B].items]
    if not tasks:
        raise InputError(
            f"The runs share no task: {str(a)!r} has {', '.join(runs[A].items)}, {str(b)!r} has "
            f"{', '.join(runs[B].items)}."
        )
    _refuse(runs[A], runs[B], tasks)
    pairs = [arms] if arms else _shared_arms(runs)
    for arm, run in ((pair[i], list(runs.values())[i]) for pair in pairs for i in (0, 1)):
        names = [one.name for one in run.arms]
        if arm not in names:
            raise InputError(f"{str(run.folder)!r} has no arm {arm!r}{did_you_mean(arm, names)}.")
    found: dict[str, Any] = {
        "a": str(a), "b": str(b), "models": [run.model for run in runs.values()], "draws": draws, "seed": seed,
        "tasks": {},
    }  # fmt: skip
    for task in tasks:
        scorer = runs[A].benchmarks[task].scorer((scorers or {}).get(task))
        found["tasks"][task] = _task(runs, task, pairs, scorer, draws, seed)
    return found


def as_markdown(found: Mapping[str, Any]) -> str:
    """What `compare_runs` returns as Markdown."""
    one, two = found["models"]
    model = f"Both runs are of {one}." if one == two else f"The models differ: {one} in a, {two} in b."
    parts = [
        f"a: {found['a']}; b: {found['b']}. {model} In brackets the change from a to b with its 95 % interval (paired "
        "bootstrap over groups), in points where the value is in percent; bold if it excludes zero. Lost/gained: "
        "answers right in a and wrong in b, and the reverse (McNemar's exact p)."
    ]
    for task, about in found["tasks"].items():
        metrics, units = about["metrics"], about["units"]
        heads = [head(metric, units[metric]) for metric in metrics]
        rows = [["", *heads, "lost/gained (p)", "n"], ["---", *["---:"] * (len(heads) + 2)]]
        for name, row in about["arms"].items():
            cells = []
            for metric in metrics:
                low, high = (row[side].get(metric) for side in (A, B))
                text = f"{number(low and low['rate'], units[metric])} → {number(high and high['rate'], units[metric])}"
                moved = row["change"].get(metric)
                text += f" ({change(moved, units[metric])})" if moved else ""
                cells.append(f"**{text}**" if certain(moved) else text)
            test = row["mcnemar"]
            cells += [f"{test['lost']}/{test['gained']} ({test['p']:.3f})" if test else "", str(row["items"])]
            rows.append([name, *cells])
        table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)
        only = [f"{count} only in {side}" for side, count in zip((A, B), about["only"], strict=True) if count]
        left = f" ({', '.join(only)}, left out)" if only else ""
        parts.append(f"### {task}: {about['items']} shared items{left}, scored by {about['scorer']}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _task(
    runs: Mapping[str, Run], task: str, pairs: Sequence[tuple[str, str]], scorer: Scorer, draws: int, seed: int
) -> dict[str, Any]:
    ids = [{item.id for item in run.items[task]} for run in runs.values()]
    items = [item for item in runs[A].items[task] if item.id in ids[1]]
    rows: dict[str, dict[str, Any]] = {}
    for one, two in pairs:
        answers = {A: runs[A].answers[task][one], B: runs[B].answers[task][two]}
        shared = answers[A].keys() & answers[B].keys()
        answers = {side: {id: given[id] for id in shared} for side, given in answers.items()}
        scored = Scored(items, answers, scorer, draws, seed)
        rows[one if one == two else f"{one} → {two}"] = {
            A: scored.values(A), B: scored.values(B), "items": len(shared),
            "change": scored.contrast({A: -1.0, B: 1.0}), "mcnemar": scored.mcnemar(A, B),
        }  # fmt: skip
    facts = metric_facts(scorer, [row[side] for row in rows.values() for side in (A, B)])
    return {
        "scorer": scorer.name, "items": len(items), "only": [len(ids[0] - ids[1]), len(ids[1] - ids[0])], **facts,
        "arms": plain(rows, set(facts["metrics"])),
    }  # fmt: skip


def _refuse(a: Run, b: Run, tasks: Sequence[str]) -> None:
    before, after = _decoding(a, tasks), _decoding(b, tasks)
    differ = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if differ:
        said = ", ".join(f"{name} is {before.get(name)!r} and {after.get(name)!r}" for name in differ)
        raise InputError(f"The runs were decoded differently: {said}. Run one of them again with the other's settings.")
    for task in tasks:
        known = {item.id: item for item in a.items[task]}
        both = [(known[item.id], item) for item in b.items[task] if item.id in known]
        if not both:
            raise InputError(f"{task}: the runs share no item; they were made from other files or options.")
        for name in ("prompt", "gold"):
            other = [pair for pair in both if getattr(pair[0], name) != getattr(pair[1], name)]
            if other:
                one, two = (getattr(item, name) for item in other[0])
                raise InputError(
                    f"{task}: {len(other)} of {len(both)} shared items differ in their {name} ({other[0][0].id}: "
                    f"{one!r} and {two!r}), so their answers cannot be compared in pairs."
                )


def _decoding(run: Run, tasks: Sequence[str]) -> dict[str, Any]:
    """How answers were decoded, one entry for each setting and shared task."""
    found: dict[str, Any] = {}
    for name, value in (run.about.get("decoding") or {}).items():
        if isinstance(value, dict):
            found |= {f"{name} of {task}": value[task] for task in tasks if task in value}
        else:
            found[name] = value
    return found


def _shared_arms(runs: Mapping[str, Run]) -> list[tuple[str, str]]:
    names = {arm.name for arm in runs[B].arms}
    shared = [(arm.name, arm.name) for arm in runs[A].arms if arm.name in names and arm.kind != "random"]
    if not shared:
        listed = ["; ".join(arm.name for arm in run.arms) for run in runs.values()]
        raise InputError(f"The runs share no arm ({listed[0]} and {listed[1]}); say which two to compare.")
    return shared
