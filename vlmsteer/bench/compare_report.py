"""A comparison as tables that can be read: captions, yes/no questions, and what recipes do to each other.

Every change has its 95 % interval, bold where it excludes zero; shares are in percent, their changes in points.
"""

from __future__ import annotations

from typing import Any

from vlmsteer.bench.hallucination import MEASURES, UNRELATED

HEADS = {"captions": "Captions", "presence": "Yes/no questions"}


def as_markdown(report: dict[str, Any]) -> str:
    """The report of `compare.Comparison` as Markdown."""
    lines = [
        f"{report['model']}, {report['decoding']} decoding, at most {report['max_new_tokens']} tokens a caption; "
        f"{report['captions']} captions, {report['presence']} yes/no questions. In brackets the change from the "
        "baseline with its 95 % interval (paired bootstrap, clustered by scene), in points where the value is in "
        f'percent; bold if it excludes zero. KL(baseline || arm) in nats, of the next token after "{UNRELATED}" and '
        "after the yes/no questions.",
    ]
    for about, head in HEADS.items():
        if report[about]:
            lines += ["", f"### {head}", "", *_table(report, about)]
    for name, found in report["interference"].items():
        beyond = found["beyond_sum"]
        lines += ["", f"### {name}: its change beyond the sum of the separate ones", ""]
        cells = [_change(rate, MEASURES[key].share) for key, rate in beyond.items()]
        rows = [[MEASURES[key].title for key in beyond], ["---"] * len(beyond), cells]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _table(report: dict[str, Any], about: str) -> list[str]:
    columns = [name for name, measure in MEASURES.items() if measure.about == about]
    rows = [["", *(MEASURES[name].title for name in columns)], ["---"] * (len(columns) + 1)]
    rows.append(["baseline", *(_value(report["baseline"]["values"][name], name) for name in columns)])
    for arm, found in report["arms"].items():
        rows.append([arm, *(_cell(found, name) for name in columns)])
        control = found["random"]
        if control is None:
            rows.append([f"{arm}, no random control", *[""] * len(columns)])
        else:
            rows.append(
                [f"{arm}, {control['directions']} random directions", *(_cell(control, name) for name in columns)]
            )
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cell(row: dict[str, Any], name: str) -> str:
    if name.startswith("kl"):  # its value is the change
        return _change(row["values"][name], False, signed=False, digits=3)
    return f"{_value(row['values'][name], name)} ({_change(row['change'][name], MEASURES[name].share)})"


def _value(rate: dict[str, Any], name: str) -> str:
    if rate["rate"] is None:
        return "undefined"
    return f"{100 * rate['rate']:.1f} %" if MEASURES[name].share else f"{rate['rate']:.2f}"


def _change(rate: dict[str, Any], share: bool, signed: bool = True, digits: int | None = None) -> str:
    if rate["rate"] is None:
        return "undefined"
    scale, sign = 100 if share else 1, "+" if signed else ""
    digits = digits or (1 if share else 2)
    text = f"{scale * rate['rate']:{sign}.{digits}f}"
    low, high = rate["interval"]
    if low is None:
        return text
    text += f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return f"**{text}**" if signed and (low > 0 or high < 0) else text
