"""A robot in simulation with and without a recipe: one video, curves, a table over paired seeds, every episode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vlmsteer.errors import InputError
from vlmsteer_ui import bench_figures, robot_figures, roboting
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.page import Page, halt
from vlmsteer_ui.panel import Panel
from vlmsteer_ui.workbench import Workbench

TITLE = "Robot"
ABOUT = (
    "A small OpenVLA moves a robot arm over a table, in simulation. The same seeds run plainly, with words added to "
    "the instruction, and with vectors at the strength of the panel above; random sets are as many other neurons, or "
    "random directions, that move the policy's states as far."
)


def build(bench: Workbench, page: Page) -> None:
    """Fill the tab."""
    policies = [name for name in bench.residents.names if name not in bench.residents.speaking]
    if not policies:
        gr.Markdown("No robot policy is offered on this page.")
        return
    try:
        tasks = roboting.tasks()
    except InputError as error:
        gr.Markdown(str(error))
        return
    gr.Markdown(ABOUT, elem_classes="quiet")
    with gr.Row():
        policy = gr.Dropdown(policies, value=policies[0], label="Policy", interactive=True, elem_id="robot-policy")
        task = gr.Dropdown(list(tasks), value="reach-red", label="Task", interactive=True, elem_id="robot-task")
        vectors = gr.Dropdown(
            bench.vectors.made_for(policies[0]), multiselect=True, max_choices=4, label="Vectors of this policy",
            interactive=True, elem_id="robot-vectors",
        )  # fmt: skip
        said = gr.Dropdown(
            list(roboting.SAID), value="slowly", label="Also told", interactive=True, elem_id="robot-said"
        )
        seeds = gr.Slider(1, roboting.MOST, 4, step=1, label="Seeds", interactive=True, elem_id="robot-seeds")
        sets = gr.Slider(0, roboting.SETS, 1, step=1, label="Random sets", interactive=True, elem_id="robot-random")
    with gr.Row():
        start = gr.Button("Run the episodes", variant="primary", elem_id="robot-run")
        stop = gr.Button("Stop", elem_id="robot-stop")
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            video = gr.Video(
                label="Baseline left, steered right",
                show_label=False,
                interactive=False,
                autoplay=True,
                loop=True,
                elem_id="robot-video",
            )
        with gr.Column(scale=5, min_width=320):
            curves = gr.HTML([], html_template=robot_figures.MOTION, apply_default_css=False, elem_id="robot-curves")
    with gr.Column():
        table = gr.Markdown("", elem_id="robot-table")
        rows = gr.HTML(
            bench_figures.NOTHING, html_template=bench_figures.ROWS, js_on_load=bench_figures.PICK,
            apply_default_css=False, elem_id="robot-rows",
        )  # fmt: skip
    wire, shown = page.wire, [table, rows, curves, video]
    page.controls["robot"] = [policy, task, vectors, said, seeds, sets, *shown]
    asked = [policy, task, vectors, said, seeds, sets, *page.asked[6:11]]
    wire(start.click, run, asked, shown, model=True, trigger_mode="once")
    wire(stop.click, halt, queue=False, said="Stopping.")
    wire(policy.input, offer, [policy], [vectors], queue=False)
    wire(rows.select, pick, [], [curves, video], data=True)
    wire(page.tabs["robot"].select, offer, [policy], [vectors], queue=False)
    wire(page.opened.change, reopen, [], shown)


def offer(bench: Workbench, desk: Desk, policy: Any) -> Any:
    """The vectors of another policy."""
    return gr.update(choices=bench.vectors.made_for(str(policy)))


def run(
    bench: Workbench, desk: Desk, policy: Any, task: Any, vectors: Any, said: Any, seeds: Any, sets: Any, *panel: Any
) -> Iterator[Any]:
    """How far the episodes are; at the end the table, the seeds, and the longest of them as video and curves."""
    wanted = roboting.Wanted.of(task, seeds, said, sets)
    known: dict[str, Any] = {}
    for known in roboting.rolled(bench, desk, str(policy), Panel.of(vectors, *panel), wanted):
        if known["progress"]:
            yield known["progress"], gr.skip(), gr.skip(), gr.skip()
    desk.keep("robot", known["folder"])
    known["motion"] = roboting.motion(bench, known["folder"], known["seed"])
    if desk.run is not None:
        desk.run.found["robot"] = known
    yield known["table"], robot_figures.episodes(known), robot_figures.motion(known["motion"]), None
    yield gr.skip(), gr.skip(), gr.skip(), _video(bench, known["folder"], known["seed"])


def pick(bench: Workbench, desk: Desk, event: Any) -> tuple[Any, Any]:
    """Curves and video of a seed."""
    seed, folder = (event.get("item") if isinstance(event, dict) else None), desk.recall("robot")
    return robot_figures.motion(roboting.motion(bench, folder, seed)), _video(bench, folder, seed)


def reopen(bench: Workbench, desk: Desk) -> tuple[Any, ...]:
    """What a run that was opened holds of this tab; its video only where its episodes are."""
    known = desk.run.found.get("robot") if desk.run is not None else None
    if not isinstance(known, dict) or not {"table", "motion", "folder", "seed"} <= known.keys():
        return tuple(gr.skip() for _ in range(4))
    desk.keep("robot", known["folder"])
    try:
        video = _video(bench, known["folder"], known["seed"])
    except InputError:
        video = None
    return known["table"], robot_figures.episodes(known), robot_figures.motion(known["motion"]), video


def _video(bench: Workbench, folder: Any, seed: Any) -> str | None:
    made = roboting.film(bench, folder, seed)
    return None if made is None else str(made)
