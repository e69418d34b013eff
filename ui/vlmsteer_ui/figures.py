"""What is shown, as pure functions from results to values of components; tested without Gradio.

Templates escape whatever they show: text of a model or a visitor is never markup.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vlmsteer.images import open_image
from vlmsteer_ui.runs import Run

PLAIN = "<span class='quiet'>{{value}}</span>"
STATUS = "<span role='status' aria-live='polite'>{{value}}</span>"
CHANCES = """
<div class="chances" role="group" aria-label="Probability of the prior and the pixel answer">
{{#each value.lines}}<span class="{{kind}}"><b>{{mark}}</b> p({{word}}) {{before}}
{{#if after}} → <b>{{after}}</b>{{/if}}</span>{{/each}}
{{#if value.warning}}<span class="warning">{{value.warning}}</span>{{/if}}
</div>
<style>
.chances { display: flex; gap: 18px; flex-wrap: wrap; min-height: 1.4em; }
.chances .prior { color: var(--prior); } .chances .pixel { color: var(--pixel); }
.chances .warning { color: var(--body-text-color); font-weight: 600; }
</style>
"""
MARKS = {"prior": "▲ prior", "pixel": "● pixel"}


def chances(run: Run, degenerate: bool) -> dict[str, Any]:
    """The line "p(red) .91 → .18", for `CHANCES`."""
    lines = []
    for kind, values in run.chances.items():
        before, *after = (f"{value:.2f}" for value in values)
        word = getattr(run, kind)
        lines.append(
            {"kind": kind, "mark": MARKS[kind], "word": word, "before": before, "after": after[0] if after else ""}
        )
    warning = (
        "The steered answer repeats itself or is empty: the recipe is too strong." if degenerate and run.recipe else ""
    )
    return {"lines": lines, "warning": warning}


@lru_cache(maxsize=8)
def picture(name: str) -> Image.Image:
    """A picture that ships with the page."""
    return open_image(Path(__file__).parent / "pictures" / f"{name}.png")
