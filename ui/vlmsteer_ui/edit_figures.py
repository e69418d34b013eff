"""The figures of the Counterfactual tab: the picture to mark, what was checked, and the object in many colors.

Pure functions from an `editing.Work` or JSON values to values of templates. Pictures are data in the page itself: none
becomes a file of the server.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageChops, ImageFilter

from vlmsteer.bench.visual_counterfact import matches
from vlmsteer_counterfacts.checks import Check
from vlmsteer_counterfacts.drawn import Draft
from vlmsteer_ui import editing, templates
from vlmsteer_ui.editing import Work

CANVAS, CANVAS_JS = templates.read("edit_canvas.html"), templates.read("edit_canvas.js")
FACTS, GRID, GRID_JS = (templates.read(f"edit_{name}") for name in ("facts.html", "grid.html", "grid.js"))
SHOWN, SMALL = 640, 144  # pixels of the longer side of the picture to mark, and of a cell
DARK = 140  # of 255, over what the mask leaves out
MODES = {"Box": "box", "Brush: object": "object", "Brush: not object": "beside"}
BRUSH = 0.05  # of the picture's width
NOTES = {
    "box": "Drag a box around the object, a little wider than it. By keyboard: arrows move the box, Shift and arrows "
    "size it, Enter takes it.",
    "object": "Paint on the object; a rough stroke is enough.",
    "beside": "Paint on what is not the object, where the mask holds too much.",
}
NAMES = {
    "outside": "Pixels outside the mask unchanged", "area": "Mask area", "shift": "Color shift",
    "named": "Color by name", "edges": "Shading kept", "changed": "Changed inside the mask",
    "agreement": "tiny-clip agrees",
}  # fmt: skip
UNKNOWN = "tiny-clip was not asked: it knows objects of the drawn world, and their colors."


def data_url(image: Image.Image, longest: int) -> str:
    """A picture as PNG in the page itself, at most `longest` pixels long."""
    small = image.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def canvas(work: Work | None, mode: str = "Box") -> dict[str, Any]:
    """The picture with its mask, for `CANVAS`."""
    how = MODES.get(mode, "box")
    base = {"title": "Where is the object?", "mode": how, "brush": BRUSH, "note": NOTES[how], "label": NOTES[how]}
    if work is None:
        return {**base, "note": "Choose an image at the top first."}
    box = None
    if work.box is not None:
        left, top, right, bottom = (round(1000 * side, 1) for side in work.box)
        box = {"x": left, "y": top, "w": round(right - left, 1), "h": round(bottom - top, 1)}
    mask = ""
    if work.mask is not None:
        mask = data_url(spotlight(work.mask), SHOWN)
    return {**base, "image": data_url(work.picture, SHOWN), "mask": mask, "box": box}


def spotlight(mask: Image.Image) -> Image.Image:
    """What a mask leaves out darkened, and its outline in white, to be laid over the picture."""
    shade = Image.new("RGBA", mask.size, (0, 0, 0, 0))
    shade.putalpha(mask.point([DARK * (255 - value) // 255 for value in range(256)]))
    solid = mask.point([255 * (value >= 128) for value in range(256)])
    reach = 2 * (max(mask.size) // 400) + 3
    edge = ImageChops.subtract(solid.filter(ImageFilter.MaxFilter(reach)), solid)
    shade.paste((255, 255, 255, 255), (0, 0), edge)
    return shade


def facts(draft: Draft | None, checks: Sequence[Check], pending: bool = False) -> dict[str, Any]:
    """What was checked, one line each, for `FACTS`."""
    if draft is None:
        return {"lines": [], "note": ""}
    lines = [_line(one) for one in checks]
    asked = pending or any(one.name == "agreement" for one in checks)
    return {"lines": lines, "note": "Asking tiny-clip …" if pending else "" if asked else UNKNOWN}


def _line(check: Check) -> dict[str, str]:
    said, more = {
        "outside": ("yes" if check.ok else "no", check.says),
        "area": (f"{check.value:.1%} of the picture", "" if check.ok else "too small or too large"),
        "shift": (f"ΔE {check.value:.1f}", "CIEDE2000 of the median colors"),
        "edges": (f"{check.value:.2f}", "correlation of the lightness gradients inside the mask"),
        "named": (check.says, ""),
        "changed": (f"{check.value:.1f} of 255 on average", ""),
        "agreement": ("yes" if check.ok else "no", check.says),
    }.get(check.name, (check.says, ""))
    mark, kind = ("✓", "good") if check.ok else ("✗", "bad")
    return {"name": NAMES.get(check.name, check.name), "said": said, "more": more, "mark": mark, "kind": kind}


def cells(work: Work) -> list[dict[str, str]]:
    """The object in each color, as JSON values that a run keeps."""
    return [{"color": color, "image": data_url(image, SMALL)} for color, image in editing.colored(work)]


def grid(found: Sequence[Mapping[str, Any]], taken: str = "") -> dict[str, Any]:
    """Cells, with answers where there are some, for `GRID`; what is no cell, in a file, is left out."""
    shown = []
    for cell in found:
        color, image = str(cell.get("color", "")), str(cell.get("image", ""))
        if not image.startswith("data:image/png;base64,"):
            continue
        said = {arm: str(cell.get(arm, "")) for arm in ("baseline", "steered")}
        shown.append({
            "color": color, "image": image, "pressed": "true" if color == taken else "false", **said,
            "before": _verdict(said["baseline"], color), "after": _verdict(said["steered"], color),
        })  # fmt: skip
    title = "The object in other colors; click one to take it" if shown else ""
    return {"title": title, "cells": shown, "sum": _sum(shown)}


def _verdict(answer: str, color: str) -> dict[str, str]:
    if not answer:
        return {"mark": "", "kind": "", "says": ""}
    right = any(matches(word, color, "color") for word in re.findall(r"[a-z]+", answer.lower()))
    says = f"The answer names {color}." if right else f"The answer does not name {color}."
    return {"mark": "✓" if right else "✗", "kind": "good" if right else "bad", "says": says}


def _sum(shown: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for arm, verdict in (("baseline", "before"), ("steered", "after")):
        said = [cell[verdict]["mark"] for cell in shown if cell[arm]]
        if said:
            parts.append(f"the {arm} answer in {said.count('✓')} of {len(said)}")
    return f"The painted color is named by {' and by '.join(parts)}." if parts else ""
