"""The same rows as Markdown, CSV and LaTeX: an arm, its controls beneath it, what each changed and how sure that is.

A task's first table has what its main scorer counts, the second what else is known. Shares are in percent and their
changes in points; a change is bold where its 95 % interval excludes zero.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MAIN = 4  # metrics in the first table
LEGEND = (
    "In brackets the change from the baseline with its 95 % interval (paired bootstrap over groups), in points where "
    "the value is in percent; bold if the interval excludes zero. Lost/gained: answers that were right and became "
    "wrong, and the reverse (McNemar's exact p). Detectable: the change of the first metric that so many items show "
    "with 80 % power. Random directions have the recipe's own lengths; yes bias is the baseline, with one number added "
    "to its log p(yes) - log p(no) so that it says yes as often as the arm does: an arm that is not better than that "
    "has only moved its share of yes."
)
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
        for number, (scorer, scored) in enumerate(about["scorers"].items()):
            metrics = scored["metrics"]
            first = metrics[:MAIN] if number == 0 else []
            groups = f"{about['groups']} group{'s' if about['groups'] > 1 else ''}"
            title = f"{about['title']}, {about['items']} items in {groups}, scored by {scorer}"
            if number == 0:
                note = " ".join(f"Not scored by {name}: {why}" for name, why in about["skipped_scorers"].items())
                tables.append(_table(task, title, about, [(scorer, metric) for metric in first], True, note))
            rest = [(scorer, metric) for metric in metrics[len(first) :]]
            if rest:
                tables.append(_table(task, f"{about['title']}: {scorer}", about, rest, False))
    return tables


def lines(about: dict[str, Any], scored: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    """Each row as (arm, what it is called, its numbers, whether it is a control): an arm, then its controls."""
    for arm, row in scored["arms"].items():
        kind = about["arms"][arm]["kind"]
        if kind in ("random", "yes bias"):
            continue
        yield arm, f"{arm} (baseline)" if kind == "baseline" and arm != "baseline" else arm, row, False
        if "random" in row:
            count = row["random"]["directions"]
            yield arm, f"{count} random direction{'s' if count > 1 else ''}", row["random"], True
        if f"{arm}, yes bias" in scored["arms"]:
            yield arm, "yes bias", scored["arms"][f"{arm}, yes bias"], True


def number(value: float | None, unit: str, signed: bool = False) -> str:
    """ "87.0", "+1.3": shares times 100 and points with one digit, other numbers with two."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    if unit == "share":
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.1f}" if unit == "points" else f"{value:{sign}.2f}"


def change(rate: Rated, unit: str) -> str:
    """ "+1.3 [0.2, 2.4]"."""
    if rate is None or rate["rate"] is None:
        return ""
    low, high = rate["interval"]
    bounds = "" if low is None else f" [{number(low, unit)}, {number(high, unit)}]"
    return number(rate["rate"], unit, signed=True) + bounds


def certain(rate: Rated) -> bool:
    """Whether the interval excludes zero."""
    return rate is not None and rate["interval"][0] is not None and (rate["interval"][0] > 0 or rate["interval"][1] < 0)


def as_markdown(tables: Sequence[Table], further: bool = True) -> str:
    """Tables as Markdown, the main ones first; `further` whether others follow."""
    parts = [LEGEND]
    for main in (True, False) if further else (True,):
        if not main and any(not table.main for table in tables):
            parts.append("## Further metrics")
        for table in tables:
            if table.main != main:
                continue
            rows = [["", *table.heads], ["---", *("---:" for _ in table.heads)]]
            for row in table.rows:
                name = f"↳ {row.name}" if row.control else row.name
                rows.append([_piped(name), *(_piped(_marked(cell)) for cell in row.cells)])
            text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
            parts.append(f"### {table.task}: {table.title}\n\n{text}" + (f"\n\n{table.note}" if table.note else ""))
    return "\n\n".join(parts) + "\n"


def as_csv(found: dict[str, Any]) -> str:
    """One line for each task, scorer, arm (or control) and metric, with every number unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["task", "scorer", "arm", "control", "strength", "metric", "unit", "value", "low", "high", "n"]
        + ["change", "change_low", "change_high", "change_n", "minimum_detectable", "lost", "gained", "mcnemar_p"]
    )  # fmt: skip
    for task, about in found["tasks"].items():
        for scorer, scored in about["scorers"].items():
            for arm, name, row, control in lines(about, scored):
                tested = row.get("mcnemar") or {}
                for metric in scored["metrics"]:
                    value, moved = row["values"].get(metric), row.get("change", {}).get(metric)
                    writer.writerow(
                        [task, scorer, arm, name if control else "", about["arms"][arm]["strength"], metric]
                        + [scored["units"][metric], *_numbers(value), *_numbers(moved)]
                        + [moved and moved["minimum_detectable"]]
                        + [tested.get(key) for key in ("lost", "gained", "p")]
                    )  # fmt: skip
    return out.getvalue()


def as_latex(tables: Sequence[Table]) -> str:
    """All tables for LaTeX with the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        columns = "l" + "r" * len(table.heads)
        body = [" & ".join(["", *map(_tex, table.heads)]) + r" \\", r"\midrule"]
        for row in table.rows:
            cells = [_tex(cell.value) + _tex_change(cell) for cell in row.cells]
            body.append(" & ".join([(r"\quad " if row.control else "") + _tex(row.name), *cells]) + r" \\")
        parts.append(
            "\n".join(
                [r"\begin{table}", r"\centering", rf"\caption{{{_tex(f'{table.task}: {table.title}')}}}"]
                + [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule"]
                + [r"\end{tabular}", r"\end{table}"]
            )
        )
    return "\n\n".join(parts) + "\n"


def _table(
    task: str, title: str, about: dict[str, Any], columns: list[tuple[str, str]], main: bool, note: str = ""
) -> Table:
    scorer = columns[0][0]
    scored = about["scorers"][scorer]
    rows = list(lines(about, scored))
    units = scored["units"]
    heads = [f"{metric} %" if units[metric] == "share" else metric for _, metric in columns]
    extra = _extra(about, scorer) if main else []
    for source, metric in extra:
        heads.append(f"{metric} %" if about["scorers"][source]["units"][metric] == "share" else metric)
    tested = any(row.get("mcnemar") for *_, row, _ in rows)
    heads += [*(["lost/gained (p)"] if tested else []), "detectable", "n", "errors"] if main else []
    made = []
    for arm, name, row, control in rows:
        cells = [_cell(row, metric, units[metric]) for _, metric in columns]
        for source, metric in extra:
            other = about["scorers"][source]
            match = next((found for *key, found, _ in lines(about, other) if key == [arm, name]), None)
            cells.append(_cell(match, metric, other["units"][metric]) if match else Cell("–"))
        if main:
            cells += [_tested(row.get("mcnemar"))] if tested else []
            cells += _counts(about, arm, row, columns[0][1], units, control)
        made.append(Row(name, tuple(cells), control))
    return Table(task, title, tuple(heads), tuple(made), main, note)


def _extra(about: dict[str, Any], scorer: str) -> list[tuple[str, str]]:
    """What stands in the main table whatever the scorer: the share of yes, or the length."""
    shown = {re.sub(r"\W|_", "", metric.lower()) for metric in about["scorers"][scorer]["metrics"][:MAIN]}
    if "yes or no" in about["scorers"]:
        return [] if shown & {"yes", "yesratio", "yesshare"} else [("yes or no", "yes")]
    return [("answers", "words")] if "answers" in about["scorers"] and "words" not in shown else []


def _cell(row: dict[str, Any], metric: str, unit: str) -> Cell:
    value, moved = row["values"].get(metric), row.get("change", {}).get(metric)
    return Cell(number(value and value["rate"], unit), change(moved, unit), certain(moved))


def _tested(found: dict[str, Any] | None) -> Cell:
    if found is None:
        return Cell("")
    return Cell(f"{found['lost']}/{found['gained']} ({'<0.001' if found['p'] < 0.001 else format(found['p'], '.3f')})")


def _counts(
    about: dict[str, Any], arm: str, row: dict[str, Any], metric: str, units: dict[str, str], control: bool
) -> list[Cell]:
    moved = row.get("change", {}).get(metric)
    detectable = number(moved["minimum_detectable"], units[metric]) if moved else ""
    value = row["values"].get(metric)
    return [
        Cell(detectable), Cell(str(value["n"] if value else 0)),
        Cell("" if control else str(about["arms"][arm]["errors"])),
    ]  # fmt: skip


def _numbers(rate: Rated) -> list[Any]:
    return [None] * 4 if rate is None else [rate["rate"], *rate["interval"], rate["n"]]


def _marked(cell: Cell) -> str:
    text = f"{cell.value} ({cell.change})" if cell.change else cell.value
    return f"**{text}**" if cell.bold else text


def _piped(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _tex(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    named |= {"<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(named.get(one, "\\" + one if one in "&%$#_{}" else one) for one in text)


def _tex_change(cell: Cell) -> str:
    if not cell.change:
        return ""
    return r" \textbf{(" + _tex(cell.change) + ")}" if cell.bold else f" ({_tex(cell.change)})"
