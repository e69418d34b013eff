"""What a run folder holds, and everything that is computed from it: numbers, tables, plots, one page.

The folder alone is enough: items with their gold, answers, arms. So a run can be scored again, by other scorers too,
without the data and without the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vlmsteer.bench.benchmark import Answer, Arm, Benchmark, Item
from vlmsteer.bench.files import read_json
from vlmsteer.bench.judged import with_verdicts
from vlmsteer.errors import InputError
from vlmsteer.registry import BENCHMARKS
from vlmsteer_counterfacts.record import replace_file

ByArm = dict[str, dict[str, dict[str, Any]]]  # task, arm, item


@dataclass(frozen=True)
class Run:
    """A run folder in memory.

    Attributes:
        about: run.json.
        items: by task.
        answers: by task, arm and item; items with an error are missing.
        errors: sentences by task, arm and item, of the items that have no answer.
        seconds: by task, arm and item.
        arms: in the order they were run in; their recipes are not read (None).
        benchmarks: by task.
        unreadable: rows of answers that are cut off, as a run that was killed leaves them.
    """

    folder: Path
    about: dict[str, Any]
    items: dict[str, list[Item]]
    answers: dict[str, dict[str, dict[str, Answer]]]
    errors: dict[str, dict[str, dict[str, str]]]
    seconds: dict[str, dict[str, dict[str, float]]]
    arms: list[Arm]
    benchmarks: dict[str, Benchmark]
    unreadable: int = 0

    @property
    def baseline(self) -> str | None:
        """The name of the arm without a recipe, None if the run has none."""
        return next((arm.name for arm in self.arms if arm.kind == "baseline"), None)

    @property
    def model(self) -> str:
        """The model's name."""
        about = self.about.get("model")
        return str(about.get("id", "unknown") if isinstance(about, Mapping) else about)


def read_run(folder: str | Path, benchmarks: Mapping[str, Benchmark] | None = None) -> Run:
    """Read a run folder, finished or not.

    Args:
        folder: with run.json, items-TASK.jsonl, samples.jsonl (and samples-RANK.jsonl).
        benchmarks: by name; None for those that vlmsteer has. Their scorers read the verdicts that the folder holds.

    Raises:
        InputError: if the folder is not one of a run, or run.json or the items cannot be read.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise InputError(f"{str(folder)!r} is not the folder of a run: it has no run.json.")
    about = read_json(folder / "run.json")
    try:
        arms = [
            Arm(row["name"], None, row["kind"], row.get("of"), float(row.get("strength", 1.0))) for row in about["arms"]
        ]
        tasks = {row["name"]: row.get("benchmark", row["name"]) for row in about["tasks"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{str(folder / 'run.json')!r} does not say its arms and tasks: {error!r}.") from error
    items = {task: _items(folder / f"items-{task}.jsonl") for task in tasks}
    known = {task: {item.id for item in found} for task, found in items.items()}
    answers, errors, seconds = (_by_arm(tasks, arms) for _ in range(3))
    unreadable = 0
    # Of several processes each has a file of its own until the run is finished.
    files = [folder / "samples.jsonl", *sorted(folder.glob("samples-*.jsonl"))]
    for row in (row for file in files for row in _samples(file)):
        if row is None:
            unreadable += 1
            continue
        task, arm, item = row["task"], row["arm"], row["item"]
        if item not in known.get(task, ()) or arm not in answers[task]:
            continue
        if row.get("error") is None:
            answers[task][arm][item] = Answer(row["answer"], row.get("logprobs") or {})
            errors[task][arm].pop(item, None)
            seconds[task][arm][item] = float(row.get("seconds") or 0.0)
        elif item not in answers[task][arm]:
            errors[task][arm][item] = str(row["error"])
    named = {
        task: BENCHMARKS.load(name) if benchmarks is None else benchmarks[name] for task, name in tasks.items()
    }  # fmt: skip
    named = {task: with_verdicts(benchmark, about, folder) for task, benchmark in named.items()}
    return Run(folder, about, items, answers, errors, seconds, arms, named, unreadable)


def report(
    folder: str | Path,
    benchmarks: Mapping[str, Benchmark] | None = None,
    scorers: Mapping[str, Sequence[str]] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> str:
    """Write metrics.json, table.md, table.csv, table.tex, the plots and report.html into a run folder.

    Args:
        folder: of a run, finished or not.
        benchmarks: see `read_run`.
        scorers: by task, the names of the scorers to use, the main one first; None for all that the benchmark has.
        draws, seed: of the resampling.

    Returns:
        The main tables in Markdown; table.md has all.

    Raises:
        InputError: if the folder cannot be read or written.
    """
    from vlmsteer.bench import plots, report_html, table_formats, tables
    from vlmsteer.bench.summary import summarize

    run = read_run(folder, benchmarks)
    found = summarize(run, scorers, draws, seed)
    made = tables.build(found)
    markdown = table_formats.as_markdown(made)
    pictures = plots.draw(found)
    written: dict[str, str | bytes] = {
        "metrics.json": json.dumps(found, indent=1, allow_nan=False), "table.md": markdown,
        "table.csv": table_formats.as_csv(found), "table.tex": table_formats.as_latex(made), **pictures,
        "report.html": report_html.page(run, found, made, pictures),
    }  # fmt: skip
    for name, content in written.items():
        replace_file(run.folder / name, content.encode() if isinstance(content, str) else content)
    return table_formats.as_markdown(made, further=False)


def _by_arm(tasks: Mapping[str, str], arms: Sequence[Arm]) -> ByArm:
    return {task: {arm.name: {} for arm in arms} for task in tasks}


def _items(path: Path) -> list[Item]:
    names = {field.name for field in fields(Item)}
    found = []
    for number, row in enumerate(_lines(path), 1):
        try:
            values = {name: value for name, value in json.loads(row).items() if name in names}
            found.append(Item(**{**values, "choices": tuple(values.get("choices") or ())}))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"Line {number} of {str(path)!r} is not an item of a benchmark: {error}.") from error
    return found


def _samples(path: Path) -> Iterator[dict[str, Any] | None]:
    """The rows of samples.jsonl, None for one that was cut off when the run was killed."""
    for line in _lines(path) if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        yield row if isinstance(row, dict) and _whole(row) else None


def _whole(row: Mapping[str, Any]) -> bool:
    answered = row.get("error") is not None or isinstance(row.get("answer"), str)
    return answered and {"task", "item", "arm"} <= row.keys()


def _lines(path: Path) -> Iterator[str]:
    try:
        # Bytes: a line that was cut off may end inside a character, and answers hold separators that end a text line.
        parts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    for part in parts:
        if part.strip():
            yield part.decode("utf-8", errors="replace")
