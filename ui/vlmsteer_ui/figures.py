"""What is shown, as pure functions from results to values of components; tested without Gradio.

Templates escape whatever they show: text of a model or a visitor is never markup.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vlmsteer.images import open_image
from vlmsteer_ui import templates
from vlmsteer_ui.runs import Run

TITLE = "<h1>{{value}}</h1>"
PLAIN = "<span class='quiet'>{{value}}</span>"
STATUS = "<span role='status' aria-live='polite'>{{value}}</span>"
CHANCES = templates.read("chances.html")
MARKS = {"prior": "▲ prior", "pixel": "● pixel"}
WARNING = "The steered answer repeats itself or is empty: the recipe is too strong."
NONE = "No vector is on, so nothing is steered."
HINT = "Run both: the answer as it is, and the answer under the recipe."


def chances(run: Run, degenerate: bool) -> dict[str, Any]:
    """The line "p(red) .91 → .18", for `CHANCES`."""
    lines = []
    for kind, values in run.chances.items():
        before, after, random = [*(f"{value:.2f}" for value in values), "", ""][:3]
        lines.append({
            "kind": kind, "mark": MARKS.get(kind, kind), "word": getattr(run, kind, ""), "before": before,
            "after": after, "random": random,
        })  # fmt: skip
    finished = "steered" in run.tokens
    unsteered = "baseline" in run.tokens and run.recipe is None
    return {"lines": lines, "warning": WARNING if degenerate and finished else "", "hint": NONE if unsteered else ""}


def device(run: Run) -> str:
    """Where a run was made, for the header."""
    return ", ".join(part for part in (run.device, f"{run.layers} layers" if run.layers else "") if part)


def placed(session: Any) -> str:
    """Where a model is, for the header."""
    dtype = str(session.model.dtype).removeprefix("torch.")
    return f"{session.device}, {dtype}, {session.layers()} layers"


@lru_cache(maxsize=8)
def picture(name: str) -> Image.Image:
    """A picture that ships with the page."""
    return open_image(Path(__file__).parent / "pictures" / f"{name}.png")
