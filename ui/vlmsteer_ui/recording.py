"""A run as text: what was asked, as JSON that can be edited; the whole run as one file; Python and a command for it."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Mapping
from typing import Any

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.images import open_image
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.panel import PANEL, Panel, completed
from vlmsteer_ui.runs import Run, loads
from vlmsteer_ui.workbench import Workbench

LONGEST = 40_000_000  # characters of a run's file
PICTURE = "image_png"  # the image inside a run's file, in base64
TOP = ("model", "question", "prior", "pixel")
ROWS = (
    ("question", "Question"), ("model", "Model"), ("device", "Where"), ("vectors", "Vectors"), ("strength", "Strength"),
    ("layers", "Layers"), ("apply", "Applied at"), ("hash", "Recipe's hash"), ("baseline", "Baseline"),
    ("steered", "Steered"), ("random", "Random direction"), ("prior", "Prior"), ("pixel", "Pixel"),
    ("found", "Also found"),
)  # fmt: skip


def spec(model: Any, question: Any, prior: Any, pixel: Any, *panel: Any) -> str:
    """What the page asks, as JSON: the values of its controls without the image."""
    values = dict(zip(TOP, (model, question, prior or "", pixel or ""), strict=True))
    return json.dumps({**values, "recipe": dict(zip(PANEL, panel, strict=True))}, indent=2, ensure_ascii=False)


def read_spec(text: Any, bench: Workbench) -> Asked:
    """What edited JSON asks; it has no image.

    Raises:
        InputError: if it is no JSON, or something in it is not possible: the sentence says what.
    """
    try:
        values = loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"This is no JSON{where}: {getattr(error, 'msg', 'it cannot be read')}.") from error
    if not isinstance(values, Mapping) or not isinstance(values.get("recipe", {}), Mapping):
        raise InputError(f"What is asked is an object with {', '.join(TOP)} and recipe, itself an object.")
    recipe = values.get("recipe", {})
    for name, known in [*((name, (*TOP, "recipe")) for name in values), *((name, PANEL) for name in recipe)]:
        if name not in known:
            raise InputError(f"There is no {name!r} here{did_you_mean(name, known)}")
    if values.get("model") not in bench.residents.names:
        raise InputError(
            f"There is no model {values.get('model')!r} on this page"
            f"{did_you_mean(str(values.get('model')), bench.residents.names)}"
        )
    asked = Asked.of(
        values["model"], None, values.get("question"), values.get("prior"), values.get("pixel"),
        *completed(recipe).values(),
    )  # fmt: skip
    for name in asked.panel.vectors:
        bench.vectors[name]
    return asked


def whole(run: Run) -> str:
    """A run with its image as one JSON text, which `read_whole` takes back."""
    values = run.as_dict()
    if run.image is not None:
        buffer = io.BytesIO()
        run.image.save(buffer, "PNG")
        values[PICTURE] = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps(values, indent=1, ensure_ascii=False)


def read_whole(text: str) -> Run:
    """A run from the text of a file that somebody gives.

    Raises:
        InputError: if it is none, too large, or its image or recipe panel is none.
    """
    if len(text) > LONGEST:
        raise InputError(f"A run's file has at most {LONGEST // 1_000_000} MB.")
    try:
        values = loads(text)
        picture = values.pop(PICTURE, None) if isinstance(values, dict) else None
        image = None if picture is None else open_image(base64.b64decode(picture, validate=True))
    except (ValueError, RecursionError, TypeError) as error:
        raise InputError("This file is no run: its JSON or its image cannot be read.") from error
    run = Run.from_dict(values, image)
    Panel.of(**completed(run.panel))
    return run


def python(run: Run) -> str:
    """Python that asks the same, with the files that the page gives."""
    image = "None" if run.image is None else '"image.png"'
    lines = ["import vlmsteer"]
    if run.recipe is not None:
        lines.append("from vlmsteer.recipe import Recipe")
    lines += ["", f"session = vlmsteer.load({run.model!r})", f"question = {run.question!r}"]
    lines.append(f"print(session.ask({image}, question, max_new_tokens={run.max_new_tokens}))")
    if run.recipe is not None:
        lines.append('recipe = Recipe.load("recipe.safetensors")')
        lines.append(f"print(session.ask({image}, question, recipe, {run.max_new_tokens}))")
    return "\n".join(lines) + "\n"


def command(run: Run) -> str:
    """The same for a shell; the command line always shows an image."""
    if run.image is None:
        return "# vlmsteer ask needs an image; use the Python beside this.\n"
    words = ["vlmsteer", "ask", "--model", run.model, "--max-new-tokens", str(run.max_new_tokens)]
    words += [] if run.recipe is None else ["--recipe", "recipe.safetensors"]
    words += ["--", "image.png", run.question]
    return shlex.join(words) + "\n"


def summary(run: Run) -> dict[str, str]:
    """A run in short texts, by the names of `ROWS`."""
    panel = completed(run.panel)
    chances = {kind: " → ".join(f"{value:.2f}" for value in run.chances.get(kind, [])) for kind in ("prior", "pixel")}
    return {
        "question": run.question, "model": run.model, "device": run.device,
        "vectors": ", ".join(map(str, panel["vectors"])) or "none", "strength": f"{panel['strength']}",
        "layers": f"{panel['first']} to {panel['last']}", "apply": ", ".join(map(str, panel["apply"])),
        "hash": str((run.recipe or {}).get("hash", ""))[:12], "baseline": run.baseline, "steered": run.steered,
        "random": run.random, "prior": f"{run.prior} {chances['prior']}".strip(),
        "pixel": f"{run.pixel} {chances['pixel']}".strip(), "found": ", ".join(run.found),
    }  # fmt: skip


def compared(left: Run, right: Run) -> dict[str, Any]:
    """Two runs side by side: rows where either says something, and whether they differ."""
    one, other = summary(left), summary(right)
    return {
        "rows": [
            {"name": title, "left": one[key], "right": other[key], "differs": one[key] != other[key]}
            for key, title in ROWS if one[key] or other[key]
        ]
    }  # fmt: skip
