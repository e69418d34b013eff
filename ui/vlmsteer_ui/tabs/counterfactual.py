"""Counterfactual: mark an object in the image, change one thing about it, see what that did, and ask about it.

The picture, the mask and the last edit belong to the visitor's desk; answers under the grid are kept in the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vlmsteer.errors import InputError
from vlmsteer_counterfacts.color import parse_color
from vlmsteer_counterfacts.palette import COLORS
from vlmsteer_ui import edit_figures, editing, figures
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.editing import KINDS, Work
from vlmsteer_ui.page import Page, halt
from vlmsteer_ui.residents import Stopped
from vlmsteer_ui.workbench import Workbench

TITLE, NAME = "Counterfactual", "counterfactual"
KEY = "edit"
TOKENS = 16  # of an answer under the grid
NOTHING: dict[str, Any] = {}


def build(bench: Workbench, page: Page) -> None:
    """Fill the tab."""
    image, question, prior = (page.controls[name] for name in ("image", "question", "prior"))
    with gr.Row(elem_id="edit"):
        with gr.Column(scale=5, min_width=300):
            mode = gr.Radio(
                list(edit_figures.MODES), value="Box", label="Mark with", interactive=True, elem_id="edit-mode"
            )
            start = edit_figures.canvas(editing.begun(figures.picture("blue_strawberry")))
            canvas = gr.HTML(
                start, html_template=edit_figures.CANVAS, js_on_load=edit_figures.CANVAS_JS, apply_default_css=False,
                elem_id="edit-canvas",
            )  # fmt: skip
            with gr.Row():
                exact = gr.Checkbox(
                    False, label="Exactly what I mark (else GrabCut finds the outline)", interactive=True,
                    elem_id="edit-exact", min_width=200,
                )  # fmt: skip
                clear = gr.Button("Clear the mask", size="sm", elem_id="edit-clear", min_width=110)
        with gr.Column(scale=3, min_width=260):
            with gr.Row():
                name = gr.Textbox("strawberry", label="Object", interactive=True, elem_id="edit-object", min_width=110)
                kind = gr.Dropdown(
                    [(label, value) for value, label in KINDS.items()], value="color", label="Change", interactive=True,
                    elem_id="edit-kind", min_width=110,
                )  # fmt: skip
            to = gr.Dropdown(
                list(COLORS), value="yellow", label="New color (a name or #rrggbb)", allow_custom_value=True,
                interactive=True, elem_id="edit-to",
            )  # fmt: skip
            factor = gr.Slider(
                0.2, 3, 0.5, step=0.05, label="Times as large", interactive=True, visible=False, elem_id="edit-factor"
            )
            other = gr.Textbox(
                "", label="Compared with (for a size pair)", interactive=True, visible=False, elem_id="edit-other"
            )
            make = gr.Button("Make the edit", variant="primary", size="md", elem_id="edit-make")
            checks = gr.HTML(NOTHING, html_template=edit_figures.FACTS, apply_default_css=False, elem_id="edit-facts")
        with gr.Column(scale=4, min_width=260):
            made = gr.Image(
                format="png", type="pil", label="Edited image", interactive=False, height=300, buttons=["fullscreen"],
                elem_id="edit-made",
            )  # fmt: skip
            use = gr.Button("Use as image", size="md", elem_id="edit-use")
            with gr.Row():
                into = gr.Dropdown(
                    list(dict.fromkeys([*editing.sets(bench.folder), "mine"])), value="mine", label="Set",
                    allow_custom_value=True, interactive=True, elem_id="edit-set", min_width=110,
                )  # fmt: skip
                add = gr.Button("Add to set", size="md", elem_id="edit-add", min_width=110)
            told = gr.HTML("", html_template=figures.PLAIN, apply_default_css=False, elem_id="edit-told")
    with gr.Row():
        every = gr.Button("Ask about all colors", size="md", elem_id="edit-ask-all", scale=0, min_width=220)
        stop = gr.Button("Stop", size="md", elem_id="edit-stop", scale=0, min_width=80)
    with gr.Column():
        grid = gr.HTML(
            NOTHING, html_template=edit_figures.GRID, js_on_load=edit_figures.GRID_JS, apply_default_css=False,
            elem_id="edit-grid",
        )  # fmt: skip
    wire = page.wire
    result = [made, checks]
    wire(image.change, looked, [image, question, mode], [canvas, name, *result, grid], queue=False)
    wire(mode.input, drawn, [image, mode], [canvas], queue=False)
    wire(canvas.select, mark, [image, mode, exact], [canvas, *result, grid], data=True)
    wire(exact.input, remark, [image, mode, exact], [canvas, *result, grid])
    wire(clear.click, forget, [image, mode], [canvas, *result, grid], queue=False)
    wire(kind.input, fitted, [kind], [to, factor, other, make], queue=False)
    wire(make.click, change, [image, name, kind, to, factor, other, prior], [*result, grid])
    wire(grid.select, take, [image, name, prior], [kind, to, *result, grid], data=True)
    wire(use.click, used, [], [image, page.controls["prior"], page.controls["pixel"]], queue=False)
    wire(add.click, keep, [into], [into, told], said="Added.")
    wire(every.click, ask, page.asked, [grid], model=True, trigger_mode="once")
    wire(stop.click, halt, queue=False, said="Stopped.")
    wire(page.opened.change, reopen, [], [grid], queue=False)


def of(desk: Desk, image: Any) -> Work:
    """The visitor's work on the page's image, begun anew if that is neither what it came from nor what it made."""
    work: Work | None = desk.recall(KEY)
    begun = editing.begun(image)
    if work is not None and begun.key in (work.key, work.shown):
        return work
    return desk.keep(KEY, begun)


def looked(bench: Workbench, desk: Desk, image: Any, question: Any, mode: Any) -> tuple[Any, ...]:
    """Another image is shown at the top."""
    named = editing.guess(question) or gr.skip()
    if image is None:
        return edit_figures.canvas(None, mode), gr.skip(), None, NOTHING, NOTHING
    before = desk.recall(KEY)
    work = of(desk, image)
    if work is before:
        return tuple(gr.skip() for _ in range(5))
    return edit_figures.canvas(work, mode), named, None, NOTHING, NOTHING


def drawn(bench: Workbench, desk: Desk, image: Any, mode: Any) -> dict[str, Any]:
    """The canvas for another way of marking."""
    return edit_figures.canvas(None if image is None else of(desk, image), mode)


def mark(bench: Workbench, desk: Desk, event: Any, image: Any, mode: Any, exact: Any) -> tuple[Any, ...]:
    """The object was marked."""
    return _masked(desk, editing.marked(of(desk, image), event, bool(exact)), mode)


def remark(bench: Workbench, desk: Desk, image: Any, mode: Any, exact: Any) -> tuple[Any, ...]:
    """The same marks, exactly or by GrabCut."""
    return _masked(desk, editing.remasked(of(desk, image), bool(exact)), mode)


def forget(bench: Workbench, desk: Desk, image: Any, mode: Any) -> tuple[Any, ...]:
    """No marks."""
    return _masked(desk, editing.begun(image), mode)


def _masked(desk: Desk, work: Work, mode: Any) -> tuple[Any, ...]:
    """The canvas, no edit, and the grid of colors if there is a mask."""
    desk.keep(KEY, work)
    shown = NOTHING if work.mask is None else edit_figures.grid(_cells(desk, work))
    return edit_figures.canvas(work, mode), None, NOTHING, shown


def _cells(desk: Desk, work: Work) -> list[dict[str, Any]]:
    """The cells of the grid for a mask, with the answers that were asked for."""
    key = _cells_key(work)
    return desk.recall(key) or desk.keep(key, edit_figures.cells(work))


def _cells_key(work: Work) -> tuple[str, str, str]:
    return "edit cells", work.key, "" if work.mask is None else editing.digest(work.mask)


def fitted(bench: Workbench, desk: Desk, kind: Any) -> tuple[Any, ...]:
    """The controls that a change has."""
    return (
        gr.update(visible=kind == "color"), gr.update(visible=kind == "size"), gr.update(visible=kind == "size"),
        gr.update(value="Remove the object" if kind == "presence" else "Make the edit"),
    )  # fmt: skip


def change(
    bench: Workbench, desk: Desk, image: Any, name: Any, kind: Any, to: Any, factor: Any, other: Any, prior: Any
) -> Iterator[tuple[Any, ...]]:
    """Make the edit; what tiny-clip says of it follows."""
    work = desk.keep(KEY, editing.made(of(desk, image), name, kind, to, factor, other, prior))
    yield from _checked(desk, work)


def take(bench: Workbench, desk: Desk, event: Any, image: Any, name: Any, prior: Any) -> Iterator[tuple[Any, ...]]:
    """A color of the grid."""
    color = event.get("color") if isinstance(event, dict) else None
    if color not in editing.COLORS:
        raise InputError(f"The grid has these colors: {', '.join(editing.COLORS)}.")
    work = desk.keep(KEY, editing.made(of(desk, image), name, "color", color, prior=prior))
    for shown in _checked(desk, work):
        yield "color", color, *shown


def _checked(desk: Desk, work: Work) -> Iterator[tuple[Any, ...]]:
    draft = work.draft
    assert draft is not None
    asks = editing.knows(draft)
    taken = draft.pixel if draft.attribute == "color" else ""
    shown = edit_figures.grid(_cells(desk, work), taken)
    yield draft.counterfactual, edit_figures.facts(draft, work.checks, asks), shown
    if asks:
        judged = editing.checked(work, clip=True)
        if desk.recall(KEY) is not work:  # another edit was made meanwhile
            return
        desk.keep(KEY, judged)
        yield draft.counterfactual, edit_figures.facts(draft, judged.checks), gr.skip()


def used(bench: Workbench, desk: Desk) -> tuple[Any, Any, Any]:
    """The edited image becomes the page's; of a recolored one the prior and pixel answers are known too."""
    draft = _draft(desk)
    if draft.attribute != "color":
        return draft.counterfactual, gr.skip(), gr.skip()
    return draft.counterfactual, draft.prior, parse_color(draft.pixel).name


def keep(bench: Workbench, desk: Desk, name: Any) -> tuple[Any, str]:
    """Add the pair to a set."""
    _draft(desk)
    count, more = editing.add(desk.recall(KEY), bench.folder, name)
    name = name.strip()
    said = (
        f"{count} pair{'s' if count > 1 else ''} in the set {name}: learn from it in the Vectors tab, or give "
        f"sets/{name} of the workbench's folder to a command as --data. {more}"
    )
    return gr.update(choices=list(dict.fromkeys([*editing.sets(bench.folder), "mine"])), value=name), said.strip()


def _draft(desk: Desk) -> Any:
    work: Work | None = desk.recall(KEY)
    if work is None or work.draft is None:
        raise InputError("Make an edit first.")
    return work.draft


def ask(bench: Workbench, desk: Desk, *values: Any) -> Iterator[dict[str, Any]]:
    """The page's question about every color, plain and under the panel's recipe."""
    asked = Asked.of(*values)
    work = of(desk, asked.image)
    cells = [dict(cell) for cell in _cells(desk, work)]
    colored = dict(editing.colored(work))
    resident = bench.residents(asked.model)
    with desk.working() as stop, resident.turn(stop) as session:
        recipe = asked.panel.recipe(bench.vectors, session)
        recipes = [None] if recipe is None else [None, recipe]
        for cell in cells:
            if stop.is_set():
                raise Stopped
            said = session.ask_grid([colored[cell["color"]]], [asked.question], recipes, max_new_tokens=TOKENS)[0]
            cell.update(zip(("baseline", "steered"), said, strict=False))
            yield edit_figures.grid(cells)
            resident.give_way()
    desk.keep(_cells_key(work), cells)
    run = desk.run
    if run is not None and run.image is not None and editing.digest(run.image) in (work.key, work.shown):
        run.found[NAME] = {"cells": cells, "question": asked.question}


def reopen(bench: Workbench, desk: Desk) -> Any:
    """The grid that a run holds; what is on show stays if it holds none."""
    found = desk.run.found.get(NAME) if desk.run is not None else None
    cells = found.get("cells") if isinstance(found, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        return gr.skip()
    return edit_figures.grid(cells)
