"""One benchmark under the panel's recipe at several strengths, for the tab and for the endpoint /bench."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmsteer.bench import arms, plan, results, runner, tables
from vlmsteer.bench.drawn_files import drawn_folder, located
from vlmsteer.bench.summary import summarize
from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.images import open_image
from vlmsteer.recipe import Recipe
from vlmsteer.registry import BENCHMARKS
from vlmsteer_ui.background import Told, steps
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.panel import Panel
from vlmsteer_ui.residents import Stopped
from vlmsteer_ui.workbench import Workbench

MOST, STRENGTHS = 400, 6
FOLDER = re.compile(r"[a-z0-9-]{3,60}")
PANELS = 4  # metrics that are drawn
ROWS = 16  # questions asked together: after each such batch the page shows what there is
SHOWN = 60  # rows of answers on the page
DRAWS = 1000  # of the bootstrap


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """The benchmarks that the drawn world has files for."""
    drawn = {path.name for path in drawn_folder().iterdir() if path.is_dir()}
    return tuple(name for name in BENCHMARKS if name in drawn)


@dataclass(frozen=True)
class Wanted:
    """What is asked: a benchmark's name, at most n questions, drawn by a seed, under multiples of the recipe."""

    name: str
    n: int
    seed: int = 0
    strengths: tuple[float, ...] = (1.0,)
    random: bool = True

    @classmethod
    def of(cls, name: Any, n: Any, seed: Any, strengths: Any, random: Any) -> Wanted:
        """From values of controls.

        Raises:
            InputError: if one is not possible.
        """
        if name not in names():
            raise InputError(f"There is no benchmark {str(name)[:40]!r} here{did_you_mean(str(name), names())}")
        numbers = [n, seed, *(strengths or [])]
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
            raise InputError("The number of questions, the seed and the strengths are numbers.")
        if not 1 <= n <= MOST or not 0 <= seed < 2**31 or int(n) != n or int(seed) != seed:
            raise InputError(f"Ask 1 to {MOST} questions, with a seed of 0 or more.")
        chosen = tuple(dict.fromkeys(float(one) for one in strengths or [1.0] if one))
        if len(chosen) > STRENGTHS or any(abs(one) > 4 for one in chosen):
            raise InputError(f"Give at most {STRENGTHS} strengths between -4 and 4.")
        return cls(name, int(n), int(seed), chosen or (1.0,), bool(random))


def asked(bench: Workbench, desk: Desk, model: str, panel: Panel, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """What is known so far, after each batch, as JSON values; the last one has the tables.

    Raises:
        VlmsteerError: if the recipe or the benchmark cannot be asked; `Stopped` if the visitor stopped it. What was
            answered until then is kept, and the same request goes on from there.
    """
    benchmark = BENCHMARKS.load(wanted.name)
    items = plan.limited(benchmark.items(located(benchmark)), wanted.n, wanted.seed)
    task = plan.Task(benchmark, items, {"limit": wanted.n, "shuffle": wanted.seed})
    folders: list[Path] = []

    def work(session: Any, told: Told) -> None:
        recipe = panel.recipe(bench.vectors, session)
        made = arms.make({} if recipe is None else {panel.title: recipe}, wanted.strengths, int(wanted.random))
        folders.append(bench.folder / "bench" / _folder(session, recipe, wanted))
        folders[0].mkdir(parents=True, exist_ok=True)
        runner.run(
            session, [task], made, folders[0], batch_size=ROWS,
            progress=lambda total, done, text: told((total, done, text)),
        )  # fmt: skip

    total = done = 0
    try:
        for over, report in steps(bench.residents(model), desk, work):
            if not over:
                total, done, _ = report
            if folders and (folders[0] / "run.json").is_file():
                yield known(folders[0], total, done, over)
    except Stopped:
        if done:
            yield known(folders[0], total, done, True)
        raise


def known(folder: Path, total: int, done: int, over: bool) -> dict[str, Any]:
    """A run's folder as the page shows it: progress, rows of answers, and, when it is `over`, tables and the curve.

    Args:
        total, done: answers that were missing at the start, and how many of them came.
    """
    run = results.read_run(folder)
    (task,) = run.items
    made = {arm.name: run.answers[task][arm.name] for arm in run.arms if arm.kind != "random"}
    rows = [
        {"item": number, "question": item.prompt, "answers": _marked([_text(made[arm].get(item.id)) for arm in made])}
        for number, item in enumerate(run.items[task]) if item.id in run.answers[task][run.arms[0].name]
    ]  # fmt: skip
    about = {
        "folder": folder.name, "task": task, "total": total, "done": done, "over": over, "arms": list(made),
        "rows": rows[-SHOWN:], "tables": [], "curves": [],
    }  # fmt: skip
    if over:
        found = summarize(run, None, DRAWS)
        about["tables"] = [_table(one) for one in tables.build(found) if one.main]
        about["curves"] = curves(found["tasks"][task])
    return about


def item(bench: Workbench, folder: Any, number: Any) -> tuple[Any, str]:
    """The image and the question of a row that was clicked.

    Raises:
        InputError: if there is no such row.
    """
    if not isinstance(folder, str) or not FOLDER.fullmatch(folder) or type(number) is not int:
        raise InputError("There is no such row.")
    run = results.read_run(bench.folder / "bench" / folder)
    ((_, items),) = run.items.items()
    if not 0 <= number < len(items):
        raise InputError("There is no such row.")
    shown = items[number]
    return (None if shown.image is None else open_image(shown.image)), shown.prompt


def curves(about: dict[str, Any]) -> list[dict[str, Any]]:
    """The main metrics against the strength: value and interval of each arm, and of random directions."""
    scored: dict[str, Any] = next(iter(about["scorers"].values()), {"metrics": [], "arms": {}})
    found = []
    for metric in scored["metrics"][:PANELS]:
        unit = scored["units"][metric]
        points = []
        for name, row in scored["arms"].items():
            kind, value = about["arms"][name]["kind"], row["values"].get(metric)
            if kind in ("baseline", "recipe") and value is not None and value["rate"] is not None:
                strength = 0.0 if kind == "baseline" else about["arms"][name]["strength"]
                random = _scaled(row["random"]["values"][metric], unit) if "random" in row else None
                points.append({"strength": strength, **_scaled(value, unit), "random": random})
        points.sort(key=lambda point: point["strength"])
        found.append({"metric": tables.head(metric, unit), "points": points})
    return found


def _scaled(rate: dict[str, Any], unit: str) -> dict[str, Any]:
    scale = 100 if unit == "share" else 1
    low, high = (None if one is None else scale * one for one in rate["interval"])
    return {"value": scale * rate["rate"], "low": low, "high": high}


def _marked(answers: list[str]) -> list[dict[str, Any]]:
    """Answers, and which of them are not the baseline's."""
    return [{"text": text, "changed": bool(text) and text != answers[0]} for text in answers]


def _text(answer: Any) -> str:
    if answer is None:
        return ""
    return answer.text or max(answer.logprobs, key=answer.logprobs.get, default="")


def _table(table: tables.Table) -> dict[str, Any]:
    rows = [
        {"name": row.name, "control": row.control,
         "cells": [{"value": cell.value, "change": cell.change, "bold": cell.bold} for cell in row.cells]}
        for row in table.rows
    ]  # fmt: skip
    return {"title": table.title, "heads": list(table.heads), "rows": rows, "note": table.note}


def _folder(session: Any, recipe: Recipe | None, wanted: Wanted) -> str:
    parts: Sequence[Any] = [session.name, recipe and recipe.hash, vars(wanted)]
    return f"{wanted.name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]}"
