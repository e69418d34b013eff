"""`vlmsteer score`: anyone's saved answers under every named scorer, and on how many of them the scorers disagree."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vlmsteer.console import AsJson, out, print_json
from vlmsteer.errors import InputError, VlmsteerError, did_you_mean
from vlmsteer.methods_cli import parse

if TYPE_CHECKING:
    from vlmsteer.bench.benchmark import Benchmark, Item, Scorer, Tally

JudgeName = Annotated[
    str | None,
    typer.Option("--judge", help="Who judges, where a benchmark needs it: the model's name at its endpoint."),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option(help="An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; key: OPENAI_API_KEY."),
]
JudgeVersion = Annotated[str, typer.Option(help="What tells the judge from others of its name, such as a date.")]
Verdicts = Annotated[
    Path | None, typer.Option(help="The JSONL file of the judge's verdicts: kept there, and never asked for twice.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="An option of the benchmark, such as split=popular.")]


def score(
    answers: Annotated[Path, typer.Argument(help="Saved answers: of POPE, LLaVA, VCD, VISTA, OPERA, EOS, AMBER.")],
    benchmark: Annotated[str, typer.Option(help="What was asked, such as pope or chair.")],
    questions: Annotated[Path | None, typer.Option(help="The question file that was answered.")] = None,
    data: Annotated[Path | None, typer.Option(help="Or the folder with the benchmark's files.")] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="A scorer; may be repeated. By default all.")] = None,
    options: Set = None,
    partial: Annotated[bool, typer.Option("--partial", help="Score only the questions that have an answer.")] = False,
    judge: JudgeName = None,
    judge_url: JudgeUrl = None,
    judge_version: JudgeVersion = "",
    verdicts: Verdicts = None,
    as_json: AsJson = False,
) -> None:
    """Score saved answers again, under one named scorer or all of them.

    Answers are found by id or image, checked by whatever else their file says, and never paired by position alone.
    """
    from vlmsteer.bench import judging
    from vlmsteer.bench.answer_files import join, read
    from vlmsteer.bench.judged import sentence
    from vlmsteer.registry import BENCHMARKS

    if benchmark not in BENCHMARKS:
        raise InputError(f"There is no benchmark {benchmark!r}{did_you_mean(benchmark, BENCHMARKS)}.")
    found: Benchmark = BENCHMARKS.load(benchmark)
    names = [found.scorer(name.removeprefix(f"{found.name}@")).name for name in dict.fromkeys(scorer or ())]
    saved = read(answers)
    held = judging.held(found, answers)
    who = None
    if not held or judge_url is not None or verdicts is not None:
        place = answers.with_name(f"{answers.stem}.verdicts.jsonl")
        who = judging.chosen(judge, judge_version, judge_url, verdicts, place)
        judging.check_needed(who, [found])
    given, items = _items(found, questions, data, options or [])
    joined = join(items, saved, answers.name, partial)
    if who is not None:
        found, about, failed = judging.judge_answers(found, joined.items, joined.answers, who)
    else:
        name = (judge or f"whoever wrote {answers.name}") if held else None
        found, about, failed = *judging.take(found, joined.items, held, name, judge_version), None
    chosen = [found.scorer(name) for name in names] or list(found.scorers)
    tallies: dict[str, Tally] = {}
    skipped: dict[str, str] = {}
    for one in chosen:
        try:
            tallies[one.name] = one.tally(joined.items, joined.answers)
        except VlmsteerError as error:
            if scorer:
                raise
            skipped[one.name] = str(error)
    if not tallies:
        raise InputError(f"No scorer of {found.title} can score these answers: {next(iter(skipped.values()))}")
    by_name = {one.name: one for one in chosen}
    metrics = {name: _metrics(tally, by_name[name]) for name, tally in tallies.items()}
    report = {
        "benchmark": found.name, "version": found.version, "options": given, "answers": str(answers),
        "n": len(joined.items), "joined": joined.how, "questions": items[0].gold.get("file"),
        "scorers": {
            name: {"source": by_name[name].source, "version": by_name[name].version, "metrics": values}
            for name, values in metrics.items()
        },
        "disagreements": _disagreements(tallies, len(joined.items)), "judge": about,
        "notes": [*_notes(metrics), *([sentence(about)] if about else [])], "skipped": skipped,
    }  # fmt: skip
    if as_json:
        print_json(report)
    else:
        _print(report, found, by_name)
    if failed is not None:
        raise InputError(f"{failed} {judging.KEPT}")


def _items(
    found: Benchmark, questions: Path | None, data: Path | None, options: list[str]
) -> tuple[dict[str, Any], list[Item]]:
    """The options as they were given, and the items; images are not needed to score."""
    from vlmsteer.bench.files import Files

    known = inspect.signature(found.load).parameters
    names = [name for name, one in known.items() if one.kind is one.KEYWORD_ONLY]
    options = [text.removeprefix(f"{found.name}.") for text in options]
    for name in (text.partition("=")[0] for text in options):
        if name not in names:
            raise InputError(f"{found.title} has no option {name!r}{did_you_mean(name, names)}.")
    given = parse(found.load, options)
    if questions is None and data is None:
        raise InputError("Give the questions that were answered: --questions FILE, or --data FOLDER.")
    if questions is not None:
        if "questions" not in names:
            raise InputError(f"{found.title} has more than one file; give their folder with --data.")
        if not questions.is_file():
            raise InputError(f"There is no question file {str(questions)!r}.")
        given["questions"] = str(questions.resolve())
    items = found.load(Files(data or (questions or Path()).parent), **given)
    if any(item.choices for item in items):
        raise InputError(f"{found.title} is scored on log-probabilities, which saved answers do not have; run it.")
    return given, items


def _metrics(tally: Tally, scorer: Scorer) -> dict[str, Any]:
    from vlmsteer.bench.intervals import metric_intervals

    return {name: rate.as_dict() for name, rate in metric_intervals(tally, scorer).items()}


def _disagreements(tallies: Mapping[str, Tally], answers: int) -> dict[str, Any] | None:
    """How many answers two scorers count differently; None if they do not count the same things, answer by answer."""
    first = next(iter(tallies.values()))
    names = [name for name in first.counts if all(name in tally.counts for tally in tallies.values())]
    if (
        len(tallies) < 2
        or not names
        or len(first.groups) != answers
        or any(tally.groups != first.groups for tally in tallies.values())
    ):
        return None
    rows = {
        scorer: list(zip(*(tally.counts[name] for name in names), strict=True)) for scorer, tally in tallies.items()
    }
    pairs = {
        f"{a}, {b}": sum(one != other for one, other in zip(rows[a], rows[b], strict=True))
        for a, b in combinations(rows, 2)
    }
    return {"any": sum(len(set(each)) > 1 for each in zip(*rows.values(), strict=True)), "pairs": pairs}


def _notes(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    said = []
    for name, values in metrics.items():
        if all(values.get(one, {}).get("rate") == 0 for one in ("yes_ratio", "precision", "recall", "f1")):
            said.append(f"{name}: no answer was read as a yes, so precision, recall and F1 are 0.")
    return said


def _print(report: Mapping[str, Any], found: Benchmark, scorers: Mapping[str, Scorer]) -> None:
    about = f", {report['questions']}" if report["questions"] else ""
    out.print(f"{found.title}: {report['n']} answers, joined {report['joined']}{about}", markup=False, highlight=False)
    table = Table("scorer", "metric", "value", "95 % interval", "n")
    for name, one in report["scorers"].items():
        defined = {metric: rate for metric, rate in one["metrics"].items() if rate["rate"] is not None}
        for number, (metric, rate) in enumerate(defined.items()):
            digits = 2 if metric in scorers[name].percent else 3
            low, high = (_number(bound, digits) for bound in rate["interval"])
            value = _number(rate["rate"], digits)
            table.add_row("" if number else name, metric, value, f"[{low}, {high}]", str(rate["n"]))
        table.add_section()
    out.print(table)
    differ = report["disagreements"]
    if differ is not None:
        most = max(differ["pairs"], key=differ["pairs"].get)
        worst = f"; most between {most.replace(', ', ' and ')}, {differ['pairs'][most]}" if differ["any"] else ""
        print(f"The scorers disagree on {differ['any']} answers{worst}.")
    for text in [*report["notes"], *(f"{name} was left out: {why}" for name, why in report["skipped"].items())]:
        print(text)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
