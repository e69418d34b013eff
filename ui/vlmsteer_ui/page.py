"""The header and the top row: model, story, image, question, the answers, and the one recipe panel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from vlmsteer_ui import asking, figures
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.chosen import Chosen
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.panel import APPLY, OWN, PANEL, Panel, completed
from vlmsteer_ui.residents import acts
from vlmsteer_ui.runs import Run
from vlmsteer_ui.wiring import Wiring
from vlmsteer_ui.workbench import Workbench

QUESTION, PRIOR, PIXEL = "What color are most strawberries?", "red", "blue"
ANSWERS = (("baseline", "Baseline"), ("steered", "Steered"), ("random-answer", "Random direction"))


@dataclass
class Page:
    """The controls that tabs read and show.

    Attributes:
        wire: connects events.
        asked: inputs of whatever asks a model; `Asked.of(*values)` reads them.
        shown: outputs that show a run in the top row; `shown(run)` gives their values.
        controls: every control of the top row by name.
        opens: outputs that show a whole run with its controls; `opening(bench, desk, run)` gives their values.
        chooses: outputs that show another model; `choose` gives their values.
        run: the event of "Run both", to go on from (`page.run.then`, through `wire(page.run.then, ...)`).
        opened: a `gr.State` number that changes whenever another run is shown, after an answer or when a saved run was
            opened; tabs redraw themselves on its `change` from `desk.run`.
        tab: a `gr.State` with the name of the open tab.
        tabs: each tab by its name.
    """

    wire: Wiring
    controls: dict[str, Any]
    asked: list[Any]
    shown: list[Any]
    opened: Any
    opens: list[Any]
    chooses: list[Any]
    run: Any = None
    tab: Any = None
    tabs: dict[str, Any] = field(default_factory=dict)


def header(bench: Workbench) -> tuple[dict[str, Any], Any]:
    """Title, model, story, device and status; the controls and the status line."""
    names = bench.residents.speaking
    with gr.Row(elem_id="header"):
        gr.HTML("vlmsteer workbench", html_template=figures.TITLE, apply_default_css=False, elem_id="title")
        model = gr.Dropdown(names, value=names[0], label="Model", interactive=True, elem_id="model", scale=1)
        story = gr.Dropdown([], label="Story", interactive=True, elem_id="story", scale=2)
        with gr.Column(scale=3, min_width=240, elem_id="told"):
            device = gr.HTML("", html_template=figures.PLAIN, apply_default_css=False, elem_id="device")
            status = gr.HTML("Ready.", html_template=figures.STATUS, apply_default_css=False, elem_id="status")
    return {"model": model, "story": story, "device": device}, status


def build(bench: Workbench, wire: Wiring, controls: dict[str, Any]) -> Page:
    """The top row, inside an open `gr.Blocks`."""
    with gr.Row(elem_id="top-row"):
        with gr.Column(scale=5, min_width=260, elem_id="picture"):
            controls["image"] = gr.Image(
                figures.picture("blue_strawberry"), format="png", type="pil", label="Image",
                sources=["upload", "clipboard"], interactive=True, height=290, elem_id="image", buttons=["fullscreen"],
            )  # fmt: skip
        with gr.Column(scale=9, min_width=320, elem_id="asking"):
            shows = _asking(controls)
        with gr.Column(scale=6, min_width=300, elem_id="panel"):
            panel = _panel(controls)
    shows.append(controls["device"])
    asked = [controls[name] for name in ("model", "image", "question", "prior", "pixel")] + panel
    opened, (vectors, first, last) = gr.State(0), (controls[name] for name in ("vectors", "first", "last"))
    page = Page(
        wire, controls, asked, shows, opened, opens=[*asked, *shows, opened],
        chooses=[vectors, first, last, *shows, opened], tab=gr.State("layers"),
    )  # fmt: skip
    _connect(page)
    return page


def _asking(controls: dict[str, Any]) -> list[Any]:
    """Question, words, answers and buttons; the outputs that show a run's answers."""
    with gr.Row(elem_id="words"):
        controls["question"] = gr.Textbox(
            QUESTION, label="Question", interactive=True, elem_id="question", lines=1, max_lines=3, scale=8,
            min_width=200,
        )  # fmt: skip
        controls["prior"] = gr.Textbox(PRIOR, label="▲ Prior", interactive=True, elem_id="prior", scale=2, min_width=70)
        controls["pixel"] = gr.Textbox(PIXEL, label="● Pixel", interactive=True, elem_id="pixel", scale=2, min_width=70)
        controls["swap"] = gr.Button("⇄", elem_id="swap", scale=0, min_width=36)
    with gr.Row(elem_id="answers"):
        baseline, steered, random = (
            gr.Textbox(
                label=label, interactive=False, lines=2, max_lines=4, elem_id=name, min_width=120,
                buttons=["copy"],
            )
            for name, label in ANSWERS
        )  # fmt: skip
    with gr.Row(elem_id="run-row"):
        controls["run"] = gr.Button("Run both", variant="primary", elem_id="run", scale=0, min_width=110)
        controls["stop"] = gr.Button("Stop", elem_id="stop", scale=0, min_width=70)
        chances = gr.HTML(
            {"hint": figures.HINT}, html_template=figures.CHANCES, apply_default_css=False, elem_id="chances"
        )
    return [baseline, steered, random, chances]


def _panel(controls: dict[str, Any]) -> list[Any]:
    """The recipe panel, in the order of `Panel.of`."""
    controls["vectors"] = Chosen(
        [], label="Vectors that act (strength 1: as learned)", interactive=True, elem_id="vectors"
    )
    controls["strength"] = gr.Slider(-3, 3, 1.0, step=0.05, label="Strength", interactive=True, elem_id="strength")
    with gr.Row(elem_id="layer-range"):
        for name in ("first", "last"):
            controls[name] = gr.Slider(
                0, 999, 0 if name == "first" else 999, step=1, label=f"{name.capitalize()} layer", interactive=True,
                elem_id=name, min_width=120, buttons=[],
            )  # fmt: skip
    controls["apply"] = gr.CheckboxGroup(
        list(APPLY), value=[], label="Apply at (none: as learned)", interactive=True, elem_id="apply"
    )
    controls["random"] = gr.Checkbox(False, label="Random direction, too (control)", interactive=True, elem_id="random")
    return [controls[name] for name in PANEL]


def _connect(page: Page) -> None:
    wire, controls, shows = page.wire, page.controls, [*page.shown, page.opened]
    page.run = wire(controls["run"].click, ask, page.asked, shows, model=True, trigger_mode="once")
    asks = [page.run]
    for name in ("question", "prior", "pixel"):
        asks.append(wire(controls[name].submit, ask, page.asked, shows, model=True))
    for name in PANEL:
        control = controls[name]
        moved = control.release if isinstance(control, gr.Slider) else control.input
        asks.append(wire(moved, ask, page.asked, shows, model=True, trigger_mode="always_last"))
    words = [controls["prior"], controls["pixel"]]
    swapped = wire(controls["swap"].click, swap, words, words, queue=False)
    asks.append(wire(swapped.then, ask, page.asked, shows, model=True))
    # Cancelling reaches what has not begun yet; the flag that `halt` sets, also what other tabs began.
    wire(controls["stop"].click, halt, queue=False, said="Stopped.", cancels=asks)
    wire(controls["model"].input, choose, [controls["model"], controls["vectors"]], page.chooses, model=True)


def ask(bench: Workbench, desk: Desk, *values: Any) -> Iterator[tuple[Any, ...]]:
    """The answers, token by token."""
    for run in asking.answers(bench, desk, Asked.of(*values)):
        yield *shown(run), desk.show(run) if run is desk.run else gr.skip()


def shown(run: Run) -> tuple[Any, ...]:
    """A run as the values of `Page.shown`."""
    return (
        run.baseline,
        run.steered,
        run.random,
        figures.chances(run, asking.degenerate(run.steered)),
        figures.device(run),
    )


def opening(bench: Workbench, desk: Desk, run: Run) -> tuple[Any, ...]:
    """Make a run, asked now or saved, the desk's, as the values of `Page.opens`. No model is loaded."""
    set_to = Panel.of(**completed(run.panel))
    fitting = bench.vectors.made_for(run.model)
    deepest = max(run.layers - 1, 0) or set_to.last
    return (
        gr.update(choices=list(dict.fromkeys([*bench.residents.speaking, run.model])), value=run.model),
        run.image, run.question, run.prior, run.pixel,
        gr.update(choices=list(dict.fromkeys([*fitting, *set_to.vectors])), value=list(set_to.vectors)),
        set_to.strength, gr.update(maximum=deepest, value=min(set_to.first, deepest)),
        gr.update(maximum=deepest, value=min(set_to.last, deepest)), [at for at in set_to.apply if at != OWN],
        set_to.random, *shown(run), desk.show(run),
    )  # fmt: skip


def swap(bench: Workbench, desk: Desk, prior: Any, pixel: Any) -> tuple[Any, Any]:
    """Prior and pixel change places."""
    return pixel, prior


def halt(bench: Workbench, desk: Desk) -> None:
    """Stop what runs for this visitor."""
    desk.halt()


def choose(bench: Workbench, desk: Desk, model: Any, vectors: Any) -> Iterator[tuple[Any, ...]]:
    """Load a model, and offer the vectors that fit it; what another model answered goes."""
    skips = [gr.skip()] * 4
    yield *skips[:3], *skips, f"Loading {model} …", gr.skip()
    session = bench.residents(model).session
    if acts(session):
        raise asking.no_words(model)
    fitting, deepest = bench.vectors.fitting(session), session.layers() - 1
    kept = [name for name in vectors or [] if name in fitting]
    stale = desk.run is not None and desk.run.model != model
    blank = ["", "", gr.update(value="", visible=False), {}]
    yield (
        gr.update(choices=fitting, value=kept or fitting[:1]), gr.update(maximum=deepest, value=0),
        gr.update(maximum=deepest, value=deepest), *(blank if stale else skips), figures.placed(session),
        desk.show(None) if stale else gr.skip(),
    )  # fmt: skip
