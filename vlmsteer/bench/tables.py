"""A run's numbers as rows: an arm, its controls beneath it, what each changed and how sure that is.

A task's first table has what its main scorer counts, later ones what else is known. Shares are in percent and their
changes in points; a change is bold where its 95 % interval excludes zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlmsteer.bench import judged

MAIN = 4  # metrics in the first table
LEGEND = (
    "In brackets the change from the baseline with its 95 % interval (paired bootstrap over groups), in points where "
    "the value is in percent; bold if the interval excludes zero. Where no group changed there is no spread to "
    "resample, and the interval is Wilson's for so many groups. n: what the scorer counts (questions, pairs or "
    "captions). Lost/gained: answers that were right and became "
    "wrong, and the reverse (McNemar's exact p). Detectable: the change of the first metric that so many items show "
    "with 80 % power. Random directions have the recipe's own lengths; yes bias is the baseline, with one number added "
    "to its log p(yes) - log p(no) so that it says yes as often as the arm does. Beyond: the arm minus that control, "
    "in the same draws; where its interval holds zero, nothing shows that the arm does more than the control."
)
PAIRED = "In brackets the 95 % interval."
Rated = dict[str, Any] | None


@dataclass(frozen=True)
class Cell:
    """A value, its change and the change's interval as text, and whether the interval excludes zero."""

    value: str
    change: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """An arm, or one of its controls: `control` says which is indented."""

    name: str
    cells: tuple[Cell, ...]
    control: bool = False


@dataclass(frozen=True)
class Table:
    """One table: `main` is the first of its task."""

    task: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    main: bool
    note: str = ""


def build(found: dict[str, Any]) -> list[Table]:
    """The tables of `summary.summarize`'s numbers, each task's main table first."""
    tables = []
    for task, about in found["tasks"].items():
        paired = [name for name, scored in about["scorers"].items() if "against" in scored]
        for number, (scorer, scored) in enumerate(about["scorers"].items()):
            main = number == 0 or scorer in paired[:1]
            first = scored["metrics"][:MAIN] if main else []
            title = f"{about['title']}, {scorer}"
            if number == 0:
                groups = f"{about['groups']} group{'s' if about['groups'] > 1 else ''}"
                whole = f"{about['title']}, {about['items']} items in {groups}, scored by {scorer}"
                tables.append(_table(task, whole, about, scorer, first, True, _notes(about)))
            elif main:
                tables.append(_table(task, title, about, scorer, first, True, f"{scored['notes']} {PAIRED}"))
            if rest := scored["metrics"][len(first) :]:
                tables.append(_table(task, title, about, scorer, rest, False, "" if main else scored["notes"]))
    return tables


def lines(
    about: dict[str, Any], scored: dict[str, Any], beyond: bool = False
) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    """Each row as (arm, what it is called, its numbers, whether it is a control): an arm, then its controls.

    With `beyond` each control is followed by how far the arm is beyond it, a row that has a change and no values.
    """
    for arm, row in scored["arms"].items():
        kind = about["arms"][arm]["kind"]
        if kind in ("random", "yes bias"):
            continue
        yield arm, f"{arm} (baseline)" if kind == "baseline" and arm != "baseline" else arm, row, False
        if "random" in row:
            count = row["random"]["directions"]
            yield arm, f"{count} random direction{'s' if count > 1 else ''}", row["random"], True
            if beyond and "random" in row.get("beyond", {}):
                yield arm, "beyond random", {"values": {}, "change": row["beyond"]["random"]}, True
        if f"{arm}, yes bias" in scored["arms"]:
            yield arm, "yes bias", scored["arms"][f"{arm}, yes bias"], True
            if beyond and "yes bias" in row.get("beyond", {}):
                yield arm, "beyond yes bias", {"values": {}, "change": row["beyond"]["yes bias"]}, True


def number(value: float | None, unit: str, signed: bool = False) -> str:
    """ "87.0", "+1.3": shares times 100 and percent with one digit, numbers with two."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    value, digits = (100 * value if unit == "share" else value), (2 if unit == "number" else 1)
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # adding 0.0 makes -0.0 a 0.0


def head(metric: str, unit: str) -> str:
    """ "accuracy %", or a number's name as it is."""
    return metric if unit == "number" else f"{metric} %"


def change(rate: Rated, unit: str) -> str:
    """ "+1.3 [0.2, 2.4]"."""
    if rate is None or rate["rate"] is None:
        return ""
    return number(rate["rate"], unit, signed=True) + _bounds(rate, unit)


def certain(rate: Rated) -> bool:
    """Whether the interval excludes zero."""
    return rate is not None and rate["interval"][0] is not None and (rate["interval"][0] > 0 or rate["interval"][1] < 0)


def _notes(about: dict[str, Any]) -> str:
    notes = [judged.sentence(about["judge"])] if about["judge"] else []
    notes += [f"Not scored by {name}: {why}" for name, why in about["skipped_scorers"].items()]
    if about["without_image"] and any(arm["kind"] == "recipe" for arm in about["arms"].values()):
        notes.append(
            f"{about['without_image']} of these questions show no image; what a recipe changes in how one is seen has "
            "nothing to act on there and is left out."
        )
    return " ".join(notes)


def _table(
    task: str, title: str, about: dict[str, Any], scorer: str, metrics: Sequence[str], main: bool, note: str = ""
) -> Table:
    scored = about["scorers"][scorer]
    paired = "against" in scored
    rows = list(lines(about, scored, beyond=main))
    units = scored["units"]
    heads = [head(metric, units[metric]) for metric in metrics]
    counted = main and not paired
    extra = _extra(about, scorer) if counted else []
    heads += [head(metric, about["scorers"][source]["units"][metric]) for source, metric in extra]
    tested = any(row.get("mcnemar") for *_, row, _ in rows)
    moved = any(row.get("change") for *_, row, _ in rows)
    heads += [*(["lost/gained (p)"] if tested else []), *(["detectable"] if moved else [])] if counted else []
    heads += ["n", "errors"] if counted else []
    made = []
    for arm, name, row, control in rows:
        cells = [_cell(row, metric, units[metric], paired) for metric in metrics]
        for source, metric in extra:
            other = about["scorers"][source]
            match = next((found for *key, found, _ in lines(about, other, beyond=True) if key == [arm, name]), None)
            cells.append(_cell(match, metric, other["units"][metric]) if match else Cell("–" if row["values"] else ""))
        if counted:
            cells += [_tested(row.get("mcnemar"))] if tested else []
            cells += _counts(about, arm, row, metrics[0], units, control)[0 if moved else 1 :]
        made.append(Row(name, tuple(cells), control))
    return Table(task, title, tuple(heads), tuple(made), main, note)


def _extra(about: dict[str, Any], scorer: str) -> list[tuple[str, str]]:
    """What stands in the main table whatever the scorer: the share of yes, or the length."""
    shown = {re.sub(r"\W|_", "", metric.lower()) for metric in about["scorers"][scorer]["metrics"][:MAIN]}
    if "yes or no" in about["scorers"]:
        return [] if shown & {"yes", "yesratio", "yesshare"} else [("yes or no", "yes")]
    return [("answers", "words")] if "answers" in about["scorers"] and "words" not in shown else []


def _cell(row: dict[str, Any], metric: str, unit: str, paired: bool = False) -> Cell:
    value, moved = row["values"].get(metric), row.get("change", {}).get(metric)
    if not row["values"]:
        return Cell("", change(moved, unit), certain(moved))
    text = number(value and value["rate"], unit)
    return Cell(text, _bounds(value, unit).strip()) if paired else Cell(text, change(moved, unit), certain(moved))


def _tested(found: dict[str, Any] | None) -> Cell:
    if found is None:
        return Cell("")
    return Cell(f"{found['lost']}/{found['gained']} ({'<0.001' if found['p'] < 0.001 else format(found['p'], '.3f')})")


def _counts(
    about: dict[str, Any], arm: str, row: dict[str, Any], metric: str, units: dict[str, str], control: bool
) -> list[Cell]:
    moved = row.get("change", {}).get(metric)
    detectable = number(moved["minimum_detectable"], units[metric]) if moved else ""
    value = row["values"].get(metric) or moved
    return [
        Cell(detectable), Cell(str(value["n"] if value else 0)),
        Cell("" if control else str(about["arms"][arm]["errors"])),
    ]  # fmt: skip


def _bounds(rate: Rated, unit: str) -> str:
    low, high = rate["interval"] if rate else (None, None)
    return "" if low is None else f" [{number(low, unit)}, {number(high, unit)}]"
