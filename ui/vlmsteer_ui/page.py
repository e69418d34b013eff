"""The header and the top row: model, story, image, question, both answers, and the one recipe panel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from vlmsteer_ui import asking, figures
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.panel import APPLY, OWN, Panel
from vlmsteer_ui.runs import Run
from vlmsteer_ui.wiring import Wiring
from vlmsteer_ui.workbench import Workbench

QUESTION, PRIOR, PIXEL = "What color is this strawberry?", "red", "blue"
PANEL = tuple(one.name for one in fields(Panel))


@dataclass
class Page:
    """The controls that tabs read and show.

    Attributes:
        wire: connects events.
        asked: inputs of whatever asks a model; `Asked.of(*values)` reads them.
        shown: outputs that show a run in the top row; `shown(run)` gives their values.
        controls: every control of the top row by name.
        opens: outputs that show a whole run with its controls; `opening(bench, desk, run)` gives their values.
        run: the event of "Run both", to go on from (`page.run.then`, through `wire(page.run.then, ...)`).
        opened: a `gr.State` number that changes whenever another run is shown, after an answer or when a saved run was
            opened; tabs redraw themselves on its `change` from `desk.run`.
    """

    wire: Wiring
    controls: dict[str, Any]
    asked: list[Any]
    shown: list[Any]
    opened: Any
    opens: list[Any]
    run: Any = None


def header(bench: Workbench) -> tuple[dict[str, Any], Any]:
    """Title, model, story, device and status; the controls and the status line."""
    names = bench.residents.names
    with gr.Row(elem_id="header"):
        gr.Markdown("# vlmsteer workbench", elem_id="title", container=False)
        model = gr.Dropdown(names, value=names[0], label="Model", interactive=True, elem_id="model", scale=1)
        story = gr.Dropdown([], label="Story", interactive=True, elem_id="story", scale=2)
        device = gr.HTML("", html_template=figures.PLAIN, apply_default_css=False, elem_id="device")
        status = gr.HTML("Ready.", html_template=figures.STATUS, apply_default_css=False, elem_id="status")
    return {"model": model, "story": story, "device": device}, status


def build(bench: Workbench, wire: Wiring, controls: dict[str, Any]) -> Page:
    """The top row, inside an open `gr.Blocks`."""
    with gr.Row(elem_id="top-row"):
        with gr.Column(scale=3, min_width=260):
            image = gr.Image(
                figures.picture("blue_strawberry"), format="png", type="pil", label="Image",
                sources=["upload", "clipboard"],
                interactive=True, height=300, elem_id="image", buttons=["fullscreen"],
            )  # fmt: skip
        with gr.Column(scale=5, min_width=320):
            question = gr.Textbox(
                QUESTION, label="Question", interactive=True, elem_id="question", lines=1, max_lines=3
            )
            with gr.Row():
                prior = gr.Textbox(PRIOR, label="Prior answer (from memory)", interactive=True, elem_id="prior")
                pixel = gr.Textbox(PIXEL, label="Pixel answer (in the image)", interactive=True, elem_id="pixel")
            with gr.Row(elem_id="answers"):
                baseline = gr.Textbox(label="Baseline", interactive=False, lines=2, elem_id="baseline")
                steered = gr.Textbox(label="Steered", interactive=False, lines=2, elem_id="steered")
            chances = gr.HTML({}, html_template=figures.CHANCES, apply_default_css=False, elem_id="chances")
            with gr.Row(elem_id="run-row"):
                run = gr.Button("Run both", variant="primary", elem_id="run")
                stop = gr.Button("Stop", elem_id="stop")
        with gr.Column(scale=3, min_width=280):
            vectors = gr.Dropdown(
                [], label="Vectors (all chosen ones act)", multiselect=True, max_choices=4, interactive=True,
                elem_id="vectors",
            )  # fmt: skip
            strength = gr.Slider(
                -3, 3, 1.0, step=0.05, label="Strength (1 = as learned)", interactive=True, elem_id="strength"
            )
            with gr.Row():
                first = gr.Number(0, label="First layer", precision=0, interactive=True, minimum=0, elem_id="first")
                last = gr.Number(999, label="Last layer", precision=0, interactive=True, minimum=0, elem_id="last")
            apply = gr.CheckboxGroup([OWN, *APPLY], value=[OWN], label="Apply at", interactive=True, elem_id="apply")
            random = gr.Checkbox(
                False, label="Random direction of the same norm (control)", interactive=True, elem_id="random"
            )
    controls |= {
        "image": image, "question": question, "prior": prior, "pixel": pixel, "vectors": vectors, "strength": strength,
        "first": first, "last": last, "apply": apply, "random": random, "run": run, "stop": stop,
    }  # fmt: skip
    panel = [vectors, strength, first, last, apply, random]
    asked = [controls["model"], image, question, prior, pixel, *panel]
    shows, opened = [baseline, steered, chances, controls["device"]], gr.State(0)
    page = Page(wire, controls, asked, shows, opened, [*asked, *shows, opened])
    page.run = wire(run.click, ask, page.asked, [*page.shown, page.opened], model=True, trigger_mode="once")
    wire(question.submit, ask, page.asked, [*page.shown, page.opened], model=True)
    for control in (strength, first, last, apply, random, vectors):
        moved = control.release if isinstance(control, gr.Slider) else control.input
        wire(moved, ask, page.asked, [*page.shown, page.opened], model=True, trigger_mode="always_last")
    wire(stop.click, halt, queue=False, said="Stopping.")
    wire(
        controls["model"].input,
        choose,
        [controls["model"], vectors],
        [vectors, first, last, controls["device"]],
        model=True,
    )
    return page


def ask(bench: Workbench, desk: Desk, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Both answers, token by token."""
    run = None
    for run in asking.answers(bench, desk, Asked.of(*values)):
        yield *shown(run), gr.skip()
    if run is not None:
        yield *shown(run), id(run)


def shown(run: Run) -> tuple[Any, ...]:
    """A run as the values of `Page.shown`."""
    return run.baseline, run.steered, figures.chances(run, asking.degenerate(run.steered)), run.device


def opening(bench: Workbench, desk: Desk, run: Run) -> tuple[Any, ...]:
    """Make a run, asked now or saved, the desk's, as the values of `Page.opens`. No model is loaded."""
    desk.run = run
    set_to = Panel.of(*(run.panel.get(name, getattr(Panel, name)) for name in PANEL))
    fitting = [one.name for one in bench.vectors.entries() if one.recipe.model.get("id") == run.model]
    deepest = max(run.layers - 1, 0) or set_to.last
    return (
        gr.update(choices=list(dict.fromkeys([*bench.residents.names, run.model])), value=run.model),
        run.image, run.question, run.prior, run.pixel,
        gr.update(choices=list(dict.fromkeys([*fitting, *set_to.vectors])), value=list(set_to.vectors)),
        set_to.strength, gr.update(maximum=deepest, value=min(set_to.first, deepest)),
        gr.update(maximum=deepest, value=min(set_to.last, deepest)), list(set_to.apply), set_to.random,
        *shown(run), id(run),
    )  # fmt: skip


def halt(bench: Workbench, desk: Desk) -> None:
    """Stop what runs for this visitor."""
    desk.stop.set()


def choose(bench: Workbench, desk: Desk, model: Any, vectors: Any) -> Iterator[tuple[Any, ...]]:
    """Load a model, and offer the vectors that fit it."""
    yield gr.skip(), gr.skip(), gr.skip(), f"Loading {model} …"
    with bench.residents(model).turn() as session:
        fitting = bench.vectors.fitting(session)
        kept = [name for name in vectors or [] if name in fitting]
        dtype = str(session.model.dtype).removeprefix("torch.")
        layers = session.layers()
    yield (
        gr.update(choices=fitting, value=kept), gr.update(value=0), gr.update(value=layers - 1),
        f"{session.device}, {dtype}, {layers} layers",
    )  # fmt: skip
