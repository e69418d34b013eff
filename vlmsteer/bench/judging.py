"""Letting a judge read what a run has answered. The answers come first and are safe; verdicts are added to the folder.

The folder then holds all verdicts that its numbers rest on, from wherever they came, so that it can be scored again
without the judge. A judge that fails half-way, or a run that is killed, loses nothing that was given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmsteer.bench import record, verdicts
from vlmsteer.bench.benchmark import Answer, Benchmark, Item
from vlmsteer.bench.files import read_rows
from vlmsteer.bench.judge import Judge
from vlmsteer.bench.judged import FILE
from vlmsteer.bench.results import Run, read_run
from vlmsteer.errors import InputError

KEPT = "The answers and the verdicts given until then are kept, and scored above; the same command goes on."


def chosen(name: str | None, version: str, url: str | None, saved: Path | None, place: Path) -> Judge | None:
    """The judge that a user names; None if none is.

    Args:
        name, version: of the judge.
        url: the endpoint's base.
        saved: the file of verdicts.
        place: where they are kept if no file is given.

    Raises:
        InputError: if a part is missing, or what there is cannot be used.
    """
    if name is None:
        if url is not None or saved is not None or version:
            raise InputError("Say who judges: --judge NAME, the model's name as its endpoint knows it.")
        return None
    if url is None and saved is None:
        raise InputError(
            f"How is {name!r} asked? Give its endpoint, --judge-url URL, or its verdicts, --verdicts FILE."
        )
    judge = Judge(name, saved or place, url, version)
    judge.check()
    return judge


def check_needed(judge: Judge | None, benchmarks: Collection[Benchmark]) -> None:
    """Refuse a judge that none of the benchmarks has a question for.

    Raises:
        InputError: if there is one.
    """
    free = [one.name for one in benchmarks if one.judged is None]
    if judge is not None and len(free) == len(benchmarks):
        raise InputError(f"No scorer of {' or '.join(free)} needs a judge; leave out --judge.")


def held(benchmark: Benchmark, path: Path) -> dict[str, str]:
    """The verdicts that a file of answers holds already, by the benchmark's own keys.

    Raises:
        InputError: if the file cannot be read, or its verdicts cannot.
    """
    return {} if benchmark.judged is None else benchmark.judged.imported(read_rows(path), path)


def take(
    benchmark: Benchmark, items: Sequence[Item], given: Mapping[str, str], name: str | None, version: str
) -> tuple[Benchmark, dict[str, Any] | None]:
    """The benchmark with scorers that read given verdicts, and what is to be said about them.

    Args:
        items: those that are scored.
        given: verdicts by the benchmark's own keys.
        name, version: of who gave them; None if nobody did.
    """
    if benchmark.judged is None:
        return benchmark, None
    about = {
        "name": name, "version": version, "scorers": sorted(benchmark.judged.reads), "answers": len(items),
        "unjudged": {"answers": sum(item.id not in given for item in items)},
    }  # fmt: skip
    return replace(benchmark, scorers=benchmark.judged.scorers(given)), about


def judge_answers(
    benchmark: Benchmark, items: Sequence[Item], answers: Sequence[Answer], judge: Judge
) -> tuple[Benchmark, dict[str, Any] | None, InputError | None]:
    """`take` what a judge says about answers; and what went wrong, after what was given until then was saved."""
    if benchmark.judged is None:
        return benchmark, None, None
    failed: InputError | None = None
    try:
        judge.ask(benchmark.judged.prompts(items, answers))
    except InputError as error:
        failed = error
    said = replace(benchmark.judged, said=verdicts.load(judge.verdicts, judge.name, judge.version))
    found, about = take(benchmark, items, said.given(items, answers), judge.name, judge.version)
    return found, about and {**judge.as_dict(), **about}, failed


def judge_run(
    folder: Path, judge: Judge, benchmarks: Mapping[str, Benchmark], progress: Callable[[int, int], None]
) -> InputError | None:
    """Ask for the verdicts that a run's answers lack, and note in run.json who was asked and what is missing still.

    Args:
        folder: of the run.
        judge: who is asked.
        benchmarks: the run's, by name.
        progress: called with how many of the missing verdicts are there, and how many were missing.

    Returns:
        What went wrong, after what was given until then was saved and noted; None if nothing did.

    Raises:
        InputError: if the folder cannot be read or written.
    """
    prompts = _prompts(read_run(folder, benchmarks))
    failed: InputError | None = None
    try:
        judge.ask(prompts, progress)
    except InputError as error:
        failed = error
    finally:  # when the user stops it, too
        if judge.verdicts.resolve() != (folder / FILE).resolve():
            verdicts.copy(judge.verdicts, folder / FILE, [judge.key(prompt) for prompt in prompts.values()])
        record.note(folder, "judge", judge.as_dict())
        run = read_run(folder, benchmarks)
        missing = {
            task: benchmark.judged.about(run.items[task], run.answers[task])["unjudged"]
            for task, benchmark in run.benchmarks.items()
            if benchmark.judged
        }
        record.note(folder, "judge", {**judge.as_dict(), "unjudged": missing})
    return failed


def _prompts(run: Run) -> dict[str, str]:
    """What there is to ask about all of a run's answers."""
    found = {}
    for task, benchmark in run.benchmarks.items():
        if benchmark.judged is None:
            continue
        for arm, answers in run.answers[task].items():
            items = [item for item in run.items[task] if item.id in answers]
            asked = benchmark.judged.prompts(items, [answers[item.id] for item in items])
            found |= {f"{task}, {arm}, {name}": prompt for name, prompt in asked.items()}
    return found
