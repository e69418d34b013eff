"""What the Benchmarks tab shows, as values of templates that escape them."""

from __future__ import annotations

from typing import Any

from vlmsteer_ui.templates import read

NOTHING: dict[str, Any] = {
    "progress": "", "tables": [], "curves": [], "arms": [], "rows": [], "head": "question",
    "caption": "Answers; other than the baseline's in bold",
}  # fmt: skip
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 320, 190, 44, 34, 12, 12  # of a curve, in its own units
TABLES, ROWS, PICK = read("bench_tables.html"), read("bench_rows.html"), read("pick_row.js")


def tables(known: dict[str, Any]) -> dict[str, Any]:
    """What `benching.known` found, for `TABLES`."""
    progress = "" if known["over"] else f"{known['done']} of {known['total']} answers"
    return {
        **NOTHING,
        "progress": progress,
        "tables": known["tables"],
        "curves": [drawn(one) for one in known["curves"]],
    }


def rows(known: dict[str, Any]) -> dict[str, Any]:
    """The same for `ROWS`."""
    return {**NOTHING, "arms": known["arms"], "rows": known["rows"]}


def drawn(curve: dict[str, Any]) -> dict[str, Any]:
    """A curve of `benching.curves` in the units of the drawing: points, bars, grid lines and their labels."""
    points = curve["points"]
    values = [one for point in points for side in (point, point["random"]) if side for one in _ends(side)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low, high = (low, high) if high > low else (low - 1, high + 1)
    first, last = (points[0]["strength"], points[-1]["strength"]) if points else (0.0, 1.0)

    def across(strength: float) -> float:
        return round(LEFT + 10 + (WIDTH - LEFT - RIGHT - 20) * (strength - first) / ((last - first) or 1), 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low), 1)

    def spot(x: float, side: dict[str, Any]) -> dict[str, Any]:
        bottom, value, top = _ends(side)
        text = f"{value:.1f} [{bottom:.1f}, {top:.1f}]"
        return {"x": x, "y": up(value), "low": up(bottom), "high": up(top), "left": x - 3.5, "top": up(value) - 3.5,
                "title": text}  # fmt: skip

    spots = [spot(across(point["strength"]), point) for point in points]
    return {
        "metric": curve["metric"], "points": spots, "line": " ".join(f"{one['x']},{one['y']}" for one in spots),
        "random": [spot(across(point["strength"]) + 5, point["random"]) for point in points if point["random"]],
        "marks": [{"x": across(point["strength"]), "label": f"{point['strength']:g}"} for point in points],
        "ticks": [{"y": up(at), "text": up(at) + 4, "label": f"{at:.0f}" if high - low > 4 else f"{at:.2f}"}
                  for at in (low, (low + high) / 2, high)],
    }  # fmt: skip


def _ends(side: dict[str, Any]) -> tuple[float, float, float]:
    value = side["value"]
    return (value if side["low"] is None else side["low"], value, value if side["high"] is None else side["high"])
