"""Run record: what was asked, as JSON that can be edited; the whole run to take away, save, share and compare."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from vlmsteer.errors import InputError, VlmsteerError
from vlmsteer_ui import page as top
from vlmsteer_ui import recording
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.page import Page
from vlmsteer_ui.panel import OWN, PANEL, completed
from vlmsteer_ui.runs import Run
from vlmsteer_ui.workbench import Workbench

TITLE = "Run record"
NONE = "There is no run yet: press Run both, choose a story, or open a saved run."
EDITED = "the record's JSON was edited"
FIRST = "# Press Run both first.\n"
IN_STEP = "In step with the page. Edit it, and the page follows."
LINK = """
{{#if value.id}}<span>Saved as <a href="?run={{value.id}}">?run={{value.id}}</a>: this link opens it on this page,
with no model loaded.</span>{{else}}<span class="quiet">{{value.text}}</span>{{/if}}
"""
COMPARED = """
<table class="compared"><thead><tr><th></th><th>First</th><th>Second</th></tr></thead><tbody>
{{#each value.rows}}<tr class="{{#if differs}}differs{{/if}}"><th scope="row">{{name}}{{#if differs}} ≠{{/if}}</th>
<td>{{left}}</td><td>{{right}}</td></tr>{{/each}}
</tbody></table>
<style>
.compared { width: 100%; border-collapse: collapse; table-layout: fixed; font-size: .9rem; }
.compared th, .compared td { text-align: left; vertical-align: top; padding: 5px 8px; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--border-color-primary); color: var(--body-text-color); }
.compared th:first-child { width: 26%; font-weight: 500; }
.compared .differs th, .compared .differs td { font-weight: 600; background: var(--background-fill-secondary); }
</style>
"""
LINKED = "(_, ...rest) => [new URLSearchParams(window.location.search).get('run') || '', ...rest]"
ADDRESS = """(found) => { const id = found && found.id;
  if (id) { const here = new URL(window.location); here.searchParams.set('run', id);
    window.history.replaceState(null, '', here); } }"""
TAKE = """(text) => { if (!text) return; const file = JSON.parse(text);
  const bytes = Uint8Array.from(atob(file.base64), (c) => c.charCodeAt(0));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], {type: 'application/octet-stream'}));
  link.download = file.name; link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000); }"""


def build(bench: Workbench, page: Page) -> None:
    """Fill the tab."""
    wire, ids = page.wire, bench.runs.ids()
    hidden: dict[str, Any] = {"visible": "hidden", "interactive": True, "show_label": False}
    with gr.Row():
        with gr.Column(min_width=320):
            spec = gr.Code(
                language="json", label="What is asked, as JSON", interactive=True, lines=14, max_lines=18,
                elem_id="record-spec",
            )  # fmt: skip
            said = gr.HTML(
                IN_STEP, html_template="<span role='status'>{{value}}</span>", apply_default_css=False,
                elem_id="record-said",
            )  # fmt: skip
        with gr.Column(min_width=320):
            python = gr.Code(
                FIRST, language="python", label="The same in Python", interactive=False, lines=7, max_lines=10,
                buttons=["copy"], elem_id="record-python",
            )  # fmt: skip
            shell = gr.Code(
                FIRST, language="shell", label="The same as a command", interactive=False, lines=2, max_lines=4,
                wrap_lines=True, buttons=["copy"], elem_id="record-command",
            )  # fmt: skip
            with gr.Row():
                take = [
                    (gr.Button(f"↓ {label}", size="sm", min_width=110, elem_id=f"record-take-{name}"), handler, uses)
                    for name, label, handler, uses in (
                        ("run", "run.json", take_run, False), ("image", "image.png", take_image, False),
                        ("recipe", "recipe.safetensors", take_recipe, True),
                    )
                ]  # fmt: skip
    with gr.Row():
        save = gr.Button("Save this run", variant="primary", elem_id="record-save")
        file = gr.UploadButton("Open run.json …", file_types=[".json"], interactive=True, elem_id="record-file")
        saved = gr.Dropdown(ids, value=None, label="Saved runs", interactive=True, elem_id="record-saved", scale=2)
    link = gr.HTML({"id": "", "text": NONE}, html_template=LINK, apply_default_css=False, elem_id="record-link")
    with gr.Accordion("Compare two saved runs", open=False, elem_id="record-compare"):
        with gr.Row():
            left = gr.Dropdown(ids, value=None, label="First", interactive=True, elem_id="record-left")
            right = gr.Dropdown(ids, value=None, label="Second", interactive=True, elem_id="record-right")
        with gr.Row():
            pictures = [
                gr.Image(
                    format="png", label=f"{title}'s image", interactive=False, height=180, buttons=["fullscreen"],
                    elem_id=f"record-image-{title.lower()}",
                ) for title in ("First", "Second")
            ]  # fmt: skip
        with gr.Column():
            table = gr.HTML({"rows": []}, html_template=COMPARED, apply_default_css=False, elem_id="record-compared")
    with gr.Accordion("Everything that was found, as JSON", open=False):
        found = gr.JSON({}, show_label=False, elem_id="record-found", max_height=420, buttons=["copy"])
    given, asked_id = gr.Textbox("", elem_id="record-given", **hidden), gr.Textbox("", elem_id="record-id", **hidden)

    lists = [saved, left, right]
    asked = [one for one in page.asked if one is not page.controls["image"]]
    for name in ("model", "question", "prior", "pixel", *PANEL):
        control = page.controls[name]
        moved = control.release if isinstance(control, gr.Slider) else control.input
        wire(moved, written, asked, [spec, said], queue=False, trigger_mode="always_last")
    wire(page.controls["last"].change, settled, asked, [spec, said], queue=False)
    wire(spec.input, edited, [spec], [*asked, said], queue=False, trigger_mode="always_last")
    wire(page.opened.change, redrawn, (), [spec, said, python, shell, found, link, *lists], queue=False)
    wire(left.input, compared, [left, right], [table, *pictures], queue=False)
    wire(right.input, compared, [left, right], [table, *pictures], queue=False)
    kept = [
        wire(save.click, keep, outputs=[link, *lists], queue=False),
        wire(saved.input, opened, [saved], page.opens, queue=False),
        wire(file.upload, uploaded, [file], page.opens, queue=False),
    ]
    for event in kept:
        event.then(None, [link], None, js=ADDRESS, api_visibility="private")
    for button, handler, uses in take:
        event = wire(button.click, handler, page.asked if uses else (), [given], model=uses)
        event.then(None, [given], None, js=TAKE, api_visibility="private")

    def linked(bench: Workbench, desk: Desk, id: Any) -> tuple[Any, ...]:
        return opened(bench, desk, id) if id else tuple(gr.skip() for _ in page.opens)

    page.controls["link"] = asked_id
    blocks: Any = Context.root_block
    wire(blocks.load, linked, [asked_id], page.opens, queue=False, js=LINKED)


def written(bench: Workbench, desk: Desk, *values: Any) -> tuple[str, str]:
    """The controls of the page as JSON, whatever was edited before."""
    desk.keep(EDITED, False)
    return recording.spec(*values), IN_STEP


def settled(bench: Workbench, desk: Desk, *values: Any) -> tuple[Any, Any]:
    """The same after the page changed its controls by itself: not while somebody writes JSON."""
    return (gr.skip(), gr.skip()) if desk.recall(EDITED) else written(bench, desk, *values)


def edited(bench: Workbench, desk: Desk, text: Any) -> tuple[Any, ...]:
    """Set the page's controls to edited JSON, or leave them and say why."""
    try:
        asked = recording.read_spec(text, bench)
    except VlmsteerError as error:
        return *[gr.skip()] * (len(recording.TOP) + len(PANEL)), f"Not taken, the page keeps what it had: {error}"
    desk.keep(EDITED, True)
    panel = asked.panel.as_dict()
    fitting = bench.vectors.made_for(asked.model)
    names = list(asked.panel.vectors)
    panel["vectors"] = gr.update(choices=list(dict.fromkeys([*fitting, *names])), value=names)
    panel["apply"] = [at for at in asked.panel.apply if at != OWN]
    if asked.model in bench.residents.loaded():
        deepest = bench.residents(asked.model).session.layers() - 1
        for name in ("first", "last"):
            panel[name] = gr.update(maximum=deepest, value=min(panel[name], deepest))
    else:
        panel["last"] = gr.update(maximum=panel["last"], value=panel["last"])
    return (
        asked.model, asked.question, asked.prior, asked.pixel, *(panel[name] for name in PANEL),
        "Taken. Press Run both to ask it.",
    )  # fmt: skip


def redrawn(bench: Workbench, desk: Desk) -> tuple[Any, ...]:
    """The tab for another run, or for none."""
    run: Run | None = desk.run
    if run is None:
        return gr.skip(), gr.skip(), FIRST, FIRST, {}, {"id": "", "text": NONE}, *listed(bench)
    panel = completed(run.panel)
    panel["apply"] = [at for at in panel["apply"] if at != OWN]
    return (
        *written(bench, desk, run.model, run.question, run.prior, run.pixel, *panel.values()), recording.python(run),
        recording.command(run), run.as_dict(), {"id": run.id, "text": "Not saved yet."}, *listed(bench),
    )  # fmt: skip


def listed(bench: Workbench) -> list[Any]:
    """The saved runs, for each list of them."""
    return [gr.update(choices=bench.runs.ids())] * 3


def keep(bench: Workbench, desk: Desk) -> tuple[Any, ...]:
    """Save the run that is shown."""
    id = bench.runs.save(shown(desk))
    return {"id": id, "text": ""}, *listed(bench)


def opened(bench: Workbench, desk: Desk, id: Any) -> tuple[Any, ...]:
    """Open a saved run."""
    return top.opening(bench, desk, bench.runs.open(id))


def uploaded(bench: Workbench, desk: Desk, file: Any) -> tuple[Any, ...]:
    """Open a run from a file, as long as it is not saved here it has no id."""
    run = recording.read_whole(Path(file).read_text(encoding="utf-8", errors="replace"))
    run.id = ""
    return top.opening(bench, desk, run)


def compared(bench: Workbench, desk: Desk, left: Any, right: Any) -> tuple[Any, ...]:
    """Two saved runs side by side."""
    if not left or not right:
        return gr.skip(), gr.skip(), gr.skip()
    one, other = bench.runs.open(left), bench.runs.open(right)
    return recording.compared(one, other), one.image, other.image


def take_run(bench: Workbench, desk: Desk) -> str:
    """The run with its image, for `TAKE`."""
    return taken("run.json", recording.whole(shown(desk)).encode())


def take_image(bench: Workbench, desk: Desk) -> str:
    """The image, for `TAKE`."""
    image = shown(desk).image
    if image is None:
        raise InputError("This run has no image.")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return taken("image.png", buffer.getvalue())


def take_recipe(bench: Workbench, desk: Desk, *values: Any) -> str:
    """The recipe that the panel makes, as the file that every command takes, for `TAKE`."""
    asked = Asked.of(*values)
    with desk.working() as stop, bench.residents(asked.model).turn(stop) as session:
        recipe = asked.panel.recipe(bench.vectors, session)
    if recipe is None:
        raise InputError("Choose a vector first: this run has no recipe.")
    with tempfile.TemporaryDirectory() as folder:
        recipe.save(Path(folder) / "recipe.safetensors")
        return taken("recipe.safetensors", (Path(folder) / "recipe.safetensors").read_bytes())


def taken(name: str, content: bytes) -> str:
    """A file as JSON for `TAKE`, which the browser saves: nothing of it stays on the server."""
    return json.dumps({"name": name, "base64": base64.b64encode(content).decode()})


def shown(desk: Desk) -> Run:
    """What the page shows.

    Raises:
        InputError: if that is nothing yet.
    """
    if desk.run is None:
        raise InputError(NONE)
    return desk.run
