"""Layers: what each layer would say after each word of the prompt, and its belief in the prior and the pixel answer.

What was found is kept in the run as JSON values, so that a saved run shows it without its model.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from vlmsteer.errors import InputError
from vlmsteer.lens import beliefs
from vlmsteer.recipe import Recipe
from vlmsteer_ui import lens_figures
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.page import Page
from vlmsteer_ui.runs import ARMS, Run
from vlmsteer_ui.workbench import Workbench

TITLE, NAME = "Layers", "layers"
TOP = 5  # words of a cell
EMPTY = "Press Run both to see what the layers believe."
UNSAVED = "This run was saved without its layers; Run both finds them again."
WORDS = "Give a prior and a pixel answer above to see their curves."


def build(bench: Workbench, page: Page) -> None:
    """Fill the tab."""
    with gr.Row(elem_id="lens"):
        with gr.Column(scale=6, min_width=320):
            arm = gr.Radio(
                ["baseline"], value="baseline", label="Which answer's layers", show_label=False, container=False,
                interactive=True, elem_id="lens-arm",
            )  # fmt: skip
            grid = gr.HTML(
                {"note": EMPTY}, html_template=lens_figures.GRID, apply_default_css=False, elem_id="lens-grid"
            )
        with gr.Column(scale=5, min_width=320):
            curves = gr.HTML(
                {"note": ""}, html_template=lens_figures.CURVES, apply_default_css=False, elem_id="lens-curves"
            )
    shown = [arm, grid, curves]
    page.wire(page.opened.change, draw, [page.tab, arm], shown, model=True, trigger_mode="always_last")
    page.wire(page.tabs[NAME].select, selected, [arm], shown, model=True)
    page.wire(arm.input, selected, [arm], shown, model=True)


def selected(bench: Workbench, desk: Desk, arm: Any) -> tuple[Any, ...]:
    """The tab was opened, or another arm chosen."""
    return draw(bench, desk, NAME, arm)


def draw(bench: Workbench, desk: Desk, tab: Any, arm: Any) -> tuple[Any, ...]:
    """The layers of the desk's run, found now if they were not before; nothing if another tab is open."""
    run = desk.run
    if tab != NAME:
        return gr.skip(), gr.skip(), gr.skip()
    if run is None or (run.id and NAME not in run.found):
        note = EMPTY if run is None else UNSAVED
        return gr.skip(), {"note": note}, {"note": ""}
    if NAME not in run.found:
        run.found[NAME] = find(bench, desk, run)
    found = run.found[NAME]
    try:
        arms = [one for one in ARMS if one in found["grids"]]
        chosen = arm if arm in arms else arms[-1]
        return (
            gr.update(choices=arms, value=chosen), lens_figures.grid(found, chosen),
            lens_figures.curves(found, run.prior, run.pixel),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError("What this saved run says of its layers is damaged.") from error


def find(bench: Workbench, desk: Desk, run: Run) -> dict[str, Any]:
    """Grids and curves of every arm, as JSON values.

    Raises:
        VlmsteerError: if the model or a vector is not there any more.
    """
    asked = Asked.again(run)
    resident = bench.residents(run.model)
    with desk.working() as stop, resident.turn(stop) as session:
        recipes = {"baseline": None, **asked.panel.arms(bench.vectors, session)}
        parts = {}
        for arm, recipe in recipes.items():
            key = (NAME, *asked.key, asked.prior, asked.pixel, None if recipe is None else recipe.hash)
            parts[arm] = desk.recall(key) or desk.keep(key, _arm(session, asked, recipe))
    steered = recipes.get("steered")
    edits = () if steered is None else steered.edits
    return {
        "grids": {arm: part["grid"] for arm, part in parts.items()},
        "curves": {arm: part["curves"] for arm, part in parts.items() if part["curves"]},
        "wins": {arm: part["wins"] for arm, part in parts.items()},
        "band": sorted({
            layer for edit in edits if edit.vectors.tower == "text" and edit.strength for layer in edit.vectors.layers
        }),
        "note": parts["baseline"]["note"],
    }  # fmt: skip


def _arm(session: Any, asked: Asked, recipe: Recipe | None) -> dict[str, Any]:
    grid = beliefs.grid(session, asked.image, asked.question, TOP, recipe)
    words = [[[[word, round(p, 3)] for word, p in cell] for cell in row] for row in grid.words]
    found: dict[str, Any] = {"grid": {"tokens": grid.tokens, "words": words}, "curves": {}, "wins": None, "note": ""}
    if not asked.prior or not asked.pixel:
        return {**found, "note": WORDS}
    try:
        shown: Any = [asked.image]
        curves = beliefs.curves(session, shown, [asked.question], [asked.prior], [asked.pixel], recipe)
    except InputError as error:
        return {**found, "note": str(error)}
    lines = {kind: [round(float(p), 4) for p in getattr(curves, kind)[0]] for kind in ("prior", "pixel")}
    return {**found, "curves": lines, "wins": curves.crossing}
