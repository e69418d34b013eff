"""The figures of the Layers tab: a grid of what each layer would say, and the curves of the prior and the pixel answer.

Pure functions from what `tabs.layers` found, as JSON values, to values of templates: numbers are formatted here, words
are escaped there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmsteer_ui import templates

WIDTH, HEIGHT = 640, 236
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 10, 30
MARK = 4.5  # half the width of a curve's mark

GRID = templates.read("lens_grid.html")
CURVES = templates.read("lens_curves.html")


def grid(found: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The grid of one arm, the last layer at the top, for `GRID`."""
    one = found["grids"][arm]
    rows = []
    for layer in reversed(range(len(one["words"]))):
        cells = []
        for token, likely in enumerate(one["words"][layer]):
            word, chance = likely[0]
            tip = ", ".join(f"{_seen(other)} {float(p):.2f}" for other, p in likely)
            cells.append({
                "word": _seen(word), "p": f"{min(max(float(chance), 0), 1):.3f}", "stop": 0 if not token else -1,
                "tip": f"Layer {layer}, after “{one['tokens'][token]}”: {tip}",
            })  # fmt: skip
        rows.append({"layer": layer, "cells": cells, "band": "band" if layer in found["band"] else ""})
    return {"tokens": [str(token) for token in one["tokens"]], "rows": rows, "note": ""}


def curves(found: Mapping[str, Any], prior: str, pixel: str) -> dict[str, Any]:
    """Prior and pixel curves of all arms, for `CURVES`; a note where there are no two words."""
    arms: Mapping[str, Mapping[str, Sequence[float]]] = found["curves"]
    if not arms:
        return {"note": found["note"], "lines": []}
    count = len(arms["baseline"]["prior"])
    step = (WIDTH - LEFT - RIGHT) / count
    words = {"prior": prior, "pixel": pixel}
    lines = [_line(kind, arm, arms[arm][kind], step) for arm in arms for kind in words]
    every = 1 if count <= 16 else 2 if count <= 32 else 4
    layers = []
    for layer in range(count):
        parts = [
            f"p({words[kind]}) " + " → ".join(f"{float(arms[arm][kind][layer]):.2f}" for arm in arms) for kind in words
        ]
        layers.append({
            "x": _number(LEFT + layer * step), "middle": _number(LEFT + (layer + 0.5) * step), "width": _number(step),
            "label": layer if layer % every == 0 else "", "tip": f"Layer {layer}: {', '.join(parts)}",
        })  # fmt: skip
    wins = {arm: found["wins"][arm] for arm in arms}
    return {
        "lines": lines, "layers": layers, "note": "",
        "bands": [{"x": _number(LEFT + int(layer) * step), "width": _number(step)} for layer in found["band"]],
        "heights": [{"y": _number(_height(p / 4)), "label": f"{p / 4:g}"} for p in range(5)],
        "wins": [{"arm": arm.capitalize(), "text": won(layer)} for arm, layer in wins.items()],
        "label": f"Probability of {prior} and {pixel} by layer, {' and '.join(arms)}",
        "legend": [
            {"kind": "prior", "text": f"▲ p({prior}), the prior answer"},
            {"kind": "pixel", "text": f"● p({pixel}), the pixel answer"},
            {"kind": "", "text": "thin: baseline" + ("; thick: steered" if "steered" in arms else "")},
            *([{"kind": "", "text": "dotted: random direction"}] if "random" in arms else []),
            *([{"kind": "", "text": "shaded: where the recipe acts"}] if found["band"] else []),
        ],
    }  # fmt: skip


def won(layer: int | None) -> str:
    """From which layer on the pixel answer leads."""
    return "the pixel never wins" if layer is None else f"the pixel wins at layer {int(layer)}"


def _line(kind: str, arm: str, values: Sequence[float], step: float) -> dict[str, Any]:
    at = [(LEFT + (layer + 0.5) * step, _height(float(value))) for layer, value in enumerate(values)]
    size = MARK if arm == "steered" else MARK * 0.7
    triangles = [
        {"kind": kind, "arm": arm, "points": _points([(x - size, y + size), (x + size, y + size), (x, y - size)])}
        for x, y in at
        if kind == "prior"
    ]
    circles = [
        {"kind": kind, "arm": arm, "x": _number(x), "y": _number(y), "r": _number(size)}
        for x, y in at
        if kind == "pixel"
    ]
    return {"kind": kind, "arm": arm, "points": _points(at), "triangles": triangles, "circles": circles}


def _height(chance: float) -> float:
    return TOP + (1 - min(max(chance, 0), 1)) * (HEIGHT - TOP - BOTTOM)


def _points(at: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in at)


def _number(value: float) -> str:
    return f"{value:.1f}"


def _seen(word: Any) -> str:
    """A token's text, also where it is only white space."""
    return str(word).strip() or "␣"
