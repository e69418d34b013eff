"""Tables as Markdown, CSV and LaTeX: the same rows, rounded for readers and unrounded for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from vlmsteer.bench.tables import LEGEND, Cell, Rated, Table, lines


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
            for arm, name, row, control in lines(about, scored, beyond=True):
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


def _numbers(rate: Rated) -> list[Any]:
    return [None] * 4 if rate is None else [rate["rate"], *rate["interval"], rate["n"]]


def _marked(cell: Cell) -> str:
    text = f"{cell.value} {_bracketed(cell)}".strip()
    return f"**{text}**" if cell.bold else text


def _bracketed(cell: Cell) -> str:
    """What stands after the value: a change in brackets, an interval in its own."""
    return f"({cell.change})" if cell.change and cell.value and not cell.change.startswith("[") else cell.change


def _piped(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _tex(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    named |= {"<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(named.get(one, "\\" + one if one in "&%$#_{}" else one) for one in text)


def _tex_change(cell: Cell) -> str:
    text = _tex(_bracketed(cell))
    return rf" \textbf{{{text}}}" if cell.bold else f" {text}" if text else ""
