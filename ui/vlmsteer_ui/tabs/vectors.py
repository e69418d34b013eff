"""Vectors: which there are and which fit, what is known of one, learning another, files in and out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from vlmsteer.errors import InputError
from vlmsteer_ui import learning, vector_figures
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.page import Page, halt
from vlmsteer_ui.panel import MOST
from vlmsteer_ui.tabs.record import TAKE
from vlmsteer_ui.workbench import Workbench

TITLE, NAME = "Vectors", "vectors"
KEY = "vector shown"
NOTHING: dict[str, Any] = {}


def build(bench: Workbench, page: Page) -> None:
    """Fill the tab."""
    model, chosen = page.controls["model"], page.controls["vectors"]
    start = vector_figures.table(bench.vectors.entries(), None, bench.residents.names[0], [])
    with gr.Column():
        table = gr.HTML(
            start, html_template=vector_figures.TABLE, js_on_load=vector_figures.TABLE_JS, apply_default_css=False,
            elem_id="vector-table",
        )  # fmt: skip
    with gr.Row(elem_id="vector-row"):
        with gr.Column(scale=5, min_width=300):
            detail = gr.HTML(
                NOTHING, html_template=vector_figures.DETAIL, apply_default_css=False, elem_id="vector-detail"
            )
            with gr.Row(visible=False) as acts:
                take = gr.Button("Download", size="md", elem_id="vector-download", min_width=110)
                delete = gr.Button("Delete", size="md", variant="stop", elem_id="vector-delete", min_width=90)
        with gr.Column(scale=4, min_width=300):
            gr.Markdown("#### Learn a vector")
            method = gr.Dropdown(
                learning.methods(), value="pvp", label="Method", interactive=True, elem_id="learn-method"
            )
            note = gr.Markdown(learning.told_of("pvp"), elem_classes="quiet", elem_id="learn-note")
            with gr.Row():
                data = gr.Dropdown(
                    learning.datasets(bench, "pvp"), value="drawn", label="Learn from", interactive=True,
                    elem_id="learn-data", min_width=120,
                )  # fmt: skip
                n = gr.Slider(
                    learning.LEAST, learning.MOST, 64, step=4, label="Examples", interactive=True, elem_id="learn-n",
                    min_width=140,
                )  # fmt: skip
            name = gr.Textbox(
                "", label="Name", placeholder="such as: my colors", interactive=True, elem_id="learn-name",
                max_length=60,
            )  # fmt: skip
            with gr.Row():
                learn = gr.Button("Learn", variant="primary", size="md", elem_id="learn-run", min_width=110)
                stop = gr.Button("Stop", size="md", elem_id="learn-stop", min_width=80)
            told = gr.HTML(
                "", html_template="<span role='status' aria-live='polite'>{{value}}</span>", apply_default_css=False,
                elem_id="learn-told",
            )  # fmt: skip
            gr.Markdown("#### Bring a vector")
            with gr.Row():
                named = gr.Textbox(
                    "", label="Name (empty: the file's)", interactive=True, elem_id="upload-name", min_width=140,
                    max_length=60,
                )  # fmt: skip
                upload = gr.UploadButton(
                    "Upload .safetensors", interactive=True, size="md", elem_id="upload-file", min_width=140
                )
    given = gr.Textbox("", elem_id="vector-given", visible="hidden", interactive=True, show_label=False)
    wire, shown = page.wire, [table, detail, acts]
    wire(page.tabs[NAME].select, drawn, [model, chosen], shown, queue=False)
    wire(chosen.change, drawn, [model, chosen], shown, queue=False)
    wire(page.controls["device"].change, drawn, [model, chosen], shown, queue=False)
    wire(table.select, pick, [model, chosen], [chosen, *shown], data=True, queue=False)
    wire(method.input, fitted, [method], [note, data], queue=False)
    wire(data.focus, refreshed, [method], [data], queue=False)
    wire(
        learn.click, learned, [model, chosen, method, data, n, name], [told, chosen, *shown, name], model=True,
        trigger_mode="once",
    )  # fmt: skip
    wire(stop.click, halt, queue=False, said="Stopped.")
    wire(upload.upload, uploaded, [upload, named, model, chosen], [chosen, *shown, named], said="Taken in.")
    wire(delete.click, deleted, [model, chosen], [chosen, *shown], said="Deleted.")
    event = wire(take.click, taken, [], [given])
    event.then(None, [given], None, js=TAKE, api_visibility="private")


def _drawn(bench: Workbench, desk: Desk, model: Any, chosen: Any) -> tuple[Any, Any, Any]:
    """Table, detail and its buttons."""
    session = bench.residents(model).session if model in bench.residents.loaded() else None
    entries = bench.vectors.entries()
    shown = next((entry for entry in entries if entry.name == desk.recall(KEY)), None)
    names = [str(name) for name in chosen or []]
    rows = vector_figures.table(entries, session, str(model), names, "" if shown is None else shown.name)
    detail = NOTHING if shown is None else vector_figures.detail(shown)
    return rows, detail, gr.update(visible=shown is not None)


def drawn(bench: Workbench, desk: Desk, model: Any, chosen: Any) -> tuple[Any, Any, Any]:
    """The tab for the open model and the recipe."""
    return _drawn(bench, desk, model, chosen)


def pick(bench: Workbench, desk: Desk, event: Any, model: Any, chosen: Any) -> tuple[Any, ...]:
    """Turn a vector on or off, or show it."""
    act, name = (event.get(key) if isinstance(event, dict) else None for key in ("act", "name"))
    entry = bench.vectors[name]  # pyright: ignore[reportArgumentType]
    desk.keep(KEY, entry.name)
    names = [str(one) for one in chosen or []]
    if act != "toggle":
        return gr.skip(), *_drawn(bench, desk, model, names)
    if entry.name in names:
        names.remove(entry.name)
    else:
        fitting = bench.vectors.fitting(bench.residents(model).session)
        if entry.name not in fitting:
            raise InputError(f"{entry.name!r} was not made for {model}.")
        if len(names) >= MOST:
            raise InputError(f"At most {MOST} vectors act together; turn one off first.")
        names.append(entry.name)
    return gr.update(value=names), *_drawn(bench, desk, model, names)


def fitted(bench: Workbench, desk: Desk, method: Any) -> tuple[Any, Any]:
    """What a method is and can learn from."""
    return learning.told_of(method), refreshed(bench, desk, method)


def refreshed(bench: Workbench, desk: Desk, method: Any) -> Any:
    """The data there is now."""
    possible = learning.datasets(bench, method)
    return gr.update(choices=possible, value=next(iter(possible), None), visible=bool(possible))


def learned(bench: Workbench, desk: Desk, model: Any, chosen: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Learn; what is being done, and then the new vector on show."""
    wanted = learning.Wanted.of(bench, *values)
    skips = [gr.skip()] * 5
    try:
        for step in learning.learned(bench, desk, str(model), wanted):
            if isinstance(step, str):
                yield f"{step} …", *skips
                continue
            desk.keep(KEY, step.name)
            yield f"Learned {step.name}.", *_offered(bench, desk, model, chosen), ""
    except Exception:
        yield "", *skips
        raise


def uploaded(bench: Workbench, desk: Desk, file: Any, name: Any, model: Any, chosen: Any) -> tuple[Any, ...]:
    """Take a file in."""
    path = Path(str(file))
    given = name.strip() if isinstance(name, str) and name.strip() else path.name.removesuffix(".safetensors")
    desk.keep(KEY, bench.vectors.upload(path, given).name)
    return *_offered(bench, desk, model, chosen), ""


def deleted(bench: Workbench, desk: Desk, model: Any, chosen: Any) -> tuple[Any, ...]:
    """Delete the vector on show."""
    name = _shown(bench, desk).name
    bench.vectors.delete(name)
    return _offered(bench, desk, model, [one for one in chosen or [] if one != name])


def taken(bench: Workbench, desk: Desk) -> str:
    """The file of the vector on show, for the browser to save."""
    entry = _shown(bench, desk)
    return json.dumps({
        "name": f"{entry.name}.safetensors", "base64": base64.b64encode(entry.path.read_bytes()).decode()
    })  # fmt: skip


def _shown(bench: Workbench, desk: Desk) -> Any:
    name = desk.recall(KEY)
    if name is None:
        raise InputError("Click a vector's name first.")
    return bench.vectors[name]


def _offered(bench: Workbench, desk: Desk, model: Any, chosen: Any) -> tuple[Any, ...]:
    """The panel's choices and the tab, after a vector came or went."""
    loaded = model in bench.residents.loaded()
    fitting = bench.vectors.fitting(bench.residents(model).session) if loaded else []
    names = [name for name in chosen or [] if name in fitting]
    return gr.update(choices=fitting, value=names), *_drawn(bench, desk, model, names)
