"""The figures of the Vectors tab: the table of vectors, and what is known of one, with its separation by layer.

Pure functions from gallery entries to values of templates. What a file says of itself comes from strangers: it is cut,
checked and escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlmsteer_ui import templates
from vlmsteer_ui.gallery import Entry, refusal

TABLE, TABLE_JS = templates.read("vector_table.html"), templates.read("vector_table.js")
DETAIL = templates.read("vector_detail.html")
HEADS = ("Name", "Model", "Site", "Layers", "Method", "Examples", "Norm", "Date", "Hash")
COLUMNS = ("model", "site", "layers", "method", "pairs", "norm", "date", "hash")
UNLOADED = "the model is not loaded yet"
LEFT, RIGHT, TOP, BOTTOM = 36, 474, 8, 162  # of the bars
MOST_LAYERS = 128
DAMAGED: dict[str, Any] = {"bars": [], "note": "What its file says of its separation is damaged."}
SITES = {"block_out": "the block's output", "mlp_out": "the MLP's output", "attn_out": "the attention's output"}


def table(entries: Sequence[Entry], session: Any, model: str, chosen: Sequence[str], shown: str = "") -> dict[str, Any]:
    """One row for each vector, for `TABLE`.

    Args:
        session: the open model's, or None if it is not loaded.
        chosen: the names that are in the recipe.
        shown: the name that is shown in detail.
    """
    rows = []
    for entry in entries:
        row, why = entry.row(), UNLOADED if session is None else refusal(entry.recipe, session)
        used = entry.name in chosen and why is None
        kind = " ".join(word for word, on in (("no", why), ("shown", entry.name == shown)) if on)
        rows.append({
            "name": entry.name, "kind": kind, "why": f"Cannot be chosen: {_short(why)}" if why else "",
            "whole": why or "",
            "pressed": "true" if used else "false", "label": "On" if used else "Off",
            "say": f"{entry.name} in the recipe", "cells": [str(row[name]) for name in COLUMNS],
        })  # fmt: skip
    rows.sort(key=lambda row: bool(row["why"]))  # those that can be chosen come first
    return {
        "title": "Vectors", "heads": list(HEADS), "rows": rows,
        "caption": f"Those that are on act together in the recipe above. They are checked against {model}; a name "
        "shows the vector below.",
    }  # fmt: skip


def _short(why: str) -> str:
    """A reason without the details of the two models."""
    made, its, _ = why.partition(": its ")
    return f"{made[0].lower()}{made[1:]}." if its else why


def detail(entry: Entry) -> dict[str, Any]:
    """One vector, for `DETAIL`."""
    about, row = entry.recipe.about, entry.row()
    facts = [("method", row["method"]), ("model", row["model"]), ("site", row["site"]), ("layers", row["layers"])]
    facts += [("strength", ", ".join(f"{edit.strength:.3g}" for edit in entry.recipe.edits[:4]))]
    facts += [("rules", ", ".join(rule.name for rule in entry.recipe.rules[:4]))]
    facts += [("learned from", str(about.get("learned_from", ""))[:60]), ("data", str(about.get("data", ""))[:16])]
    facts += [("kept", "ships with the page" if entry.shipped else "learned or uploaded here")]
    found = about.get("separation_of_held_out")
    return {
        "name": entry.name, "facts": [{"name": name, "said": said} for name, said in facts if said],
        **(separation(found) if isinstance(found, Mapping) else {"bars": [], "note": _unmeasured(entry)}),
    }  # fmt: skip


def _unmeasured(entry: Entry) -> str:
    if not entry.recipe.edits:
        return "It has rules and no direction, so there is nothing to project on."
    return "Its file says nothing of how well it separates held-out examples; vectors that are learned here do."


def separation(found: Mapping[str, Any]) -> dict[str, Any]:
    """AUROC by layer as bars from chance, of `methods.separation.Separation.as_dict`."""
    auroc, distance = (found.get(name) for name in ("auroc", "distance"))
    if not isinstance(auroc, Mapping) or not isinstance(distance, Mapping):
        return DAMAGED
    bars, layers = [], list(auroc)[:MOST_LAYERS]
    step = (RIGHT - LEFT) / max(len(layers), 1)
    for at, layer in enumerate(layers):
        value, apart = auroc[layer], distance.get(layer, math.nan)
        if not _number(value) or not _number(apart) or not 0 <= value <= 1:
            return DAMAGED
        ends = sorted((_height(value), _height(0.5)))
        wide = min(step * 0.7, 40)
        middle, number = LEFT + (at + 0.5) * step, str(layer)[:4]
        bars.append({
            "layer": number, "x": f"{middle - wide / 2:.1f}", "width": f"{wide:.1f}", "middle": f"{middle:.1f}",
            "y": f"{ends[0]:.1f}", "height": f"{max(ends[1] - ends[0], 1):.1f}",
            "tip": f"Layer {number}: AUROC {value:.2f}, means {apart:+.2f} standard deviations apart",
        })  # fmt: skip
    n, point = found.get("n"), str(found.get("point", ""))[:20]
    where = SITES.get(point, point)
    title = f"How well {where} tells {n if type(n) is int else '?'} held-out examples' two sides apart (AUROC)"
    rules = [
        {"y": f"{_height(value):.1f}", "label": f"{value:g}", "kind": "chance" if value == 0.5 else ""}
        for value in (0, 0.5, 1)
    ]
    return {
        "bars": bars, "rules": rules, "title": title, "label": "; ".join(bar["tip"] for bar in bars),
        "note": "0.5 is chance; below it the direction points the other way.",
    }  # fmt: skip


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _height(value: float) -> float:
    return BOTTOM - value * (BOTTOM - TOP)
