"""What the Robot tab shows, as values of templates that escape them."""

from __future__ import annotations

from typing import Any

from vlmsteer_ui.bench_figures import NOTHING
from vlmsteer_ui.templates import read

MOTION = read("robot_motion.html")
LEFT, RIGHT, TOP, BOTTOM = 44, 390, 12, 160  # of a drawing, in its own units
PARTS = {"length": "step length, mm", "height": "height of the hand, cm"}


def episodes(known: dict[str, Any]) -> dict[str, Any]:
    """The seeds of `roboting.rolled`, for the template of benchmark rows."""
    rows = [
        {"item": one["seed"], "question": f"{one['seed']}: {one['instruction']}", "answers": one["arms"]}
        for one in known.get("seeds", [])
    ]
    caption = "Episodes; a click shows one; in bold what was not done"
    return {**NOTHING, "head": "seed", "caption": caption, "arms": known.get("arms", []), "rows": rows}


def motion(found: dict[str, Any]) -> list[dict[str, Any]]:
    """`roboting.motion` as two drawings: lines by arm, grid and labels."""
    return [_drawn(found["arms"], part, title) for part, title in PARTS.items()] if found["arms"] else []


def _drawn(arms: list[dict[str, Any]], part: str, title: str) -> dict[str, Any]:
    most = max(max(arm[part], default=0.0) for arm in arms) or 1.0
    steps = max(len(arm[part]) for arm in arms)

    def spot(step: int, value: float) -> str:
        x = LEFT + (RIGHT - LEFT) * step / max(steps - 1, 1)
        return f"{x:.1f},{BOTTOM - (BOTTOM - TOP) * value / most:.1f}"

    return {
        "title": title, "steps": steps,
        "lines": [
            {"name": arm["name"], "kind": kind(number, arm["name"]),
             "points": " ".join(spot(step, value) for step, value in enumerate(arm[part]))}
            for number, arm in enumerate(arms)
        ],
        "ticks": [{"y": BOTTOM - (BOTTOM - TOP) * share, "text": BOTTOM - (BOTTOM - TOP) * share + 4,
                   "label": f"{share * most:.0f}"} for share in (0.0, 0.5, 1.0)],
    }  # fmt: skip


def kind(number: int, name: str) -> str:
    """How an arm is drawn: the first is the baseline."""
    return "baseline" if number == 0 else "said" if name.startswith("said: ") else "steered"
