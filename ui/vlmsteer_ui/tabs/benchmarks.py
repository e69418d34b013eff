"""A benchmark of the drawn world under the panel's recipe: answers as they come, tables and curves at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vlmsteer_ui import bench_figures, benching
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.page import Page, halt
from vlmsteer_ui.panel import Panel
from vlmsteer_ui.workbench import Workbench

TITLE = "Benchmarks"
STRENGTHS = [0.25, 0.5, 1.0, 1.5, 2.0]
ABOUT = (
    "The questions are the drawn world's own, in the public formats, about scenes that no model was trained on. Each "
    "is asked plainly, under the recipe on the right at multiples of its strength, and under a random direction of the "
    "same norm. A click on a row opens its image and question above."
)


def build(bench: Workbench, page: Page) -> None:
    """Fill the tab."""
    gr.Markdown(ABOUT, elem_classes="quiet")
    with gr.Row():
        name = gr.Dropdown(
            list(benching.names()), value="pope", label="Benchmark", interactive=True, elem_id="bench-name"
        )
        n = gr.Slider(12, benching.MOST, 48, step=12, label="Questions, at most", interactive=True, elem_id="bench-n")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, interactive=True, elem_id="bench-seed")
        strengths = gr.CheckboxGroup(
            [(f"{one:g}", one) for one in STRENGTHS], value=[0.5, 1.0], label="Multiples of the strength",
            interactive=True, elem_id="bench-strengths",
        )  # fmt: skip
        random = gr.Checkbox(True, label="Random control", interactive=True, elem_id="bench-random")
    with gr.Row():
        start = gr.Button("Run the benchmark", variant="primary", elem_id="bench-run")
        stop = gr.Button("Stop", elem_id="bench-stop")
    with gr.Column():
        table = gr.HTML(
            bench_figures.NOTHING, html_template=bench_figures.TABLES, apply_default_css=False, elem_id="bench-tables"
        )
        rows = gr.HTML(
            bench_figures.NOTHING, html_template=bench_figures.ROWS, js_on_load=bench_figures.PICK,
            apply_default_css=False, elem_id="bench-rows",
        )  # fmt: skip
    model, panel = page.asked[0], page.asked[5:11]
    wire, shown = page.wire, [table, rows]
    wire(start.click, run, [name, n, seed, strengths, random, model, *panel], shown, model=True, trigger_mode="once")
    wire(stop.click, halt, queue=False, said="Stopping.")
    wire(rows.select, pick, [], [page.controls["image"], page.controls["question"]], data=True)
    wire(page.opened.change, reopen, [], shown, queue=False)


def run(
    bench: Workbench, desk: Desk, name: Any, n: Any, seed: Any, strengths: Any, random: Any, *asked: Any
) -> Iterator[Any]:
    """Tables and rows as answers come."""
    wanted = benching.Wanted.of(name, n, seed, strengths, random)
    model, *panel = asked
    for known in benching.asked(bench, desk, str(model), Panel.of(*panel), wanted):
        if known["over"] and desk.run is not None:
            desk.run.found["benchmarks"] = known
        desk.keep("bench", known["folder"])
        yield bench_figures.tables(known), bench_figures.rows(known)


def pick(bench: Workbench, desk: Desk, event: Any) -> tuple[Any, str]:
    """The image and the question of a row."""
    number = event.get("item") if isinstance(event, dict) else None
    return benching.item(bench, desk.recall("bench"), number)


def reopen(bench: Workbench, desk: Desk) -> tuple[Any, Any]:
    """What a run that was opened holds of this tab."""
    known = desk.run.found.get("benchmarks") if desk.run is not None else None
    if not isinstance(known, dict):
        return gr.skip(), gr.skip()
    desk.keep("bench", known.get("folder"))
    return bench_figures.tables(known), bench_figures.rows(known)
