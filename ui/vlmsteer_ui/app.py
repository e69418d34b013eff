"""The whole page, and the server that shows it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from vlmsteer.errors import InputError
from vlmsteer_ui import api, stories, style
from vlmsteer_ui import page as top
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.tabs import record
from vlmsteer_ui.wiring import THREADS, Wiring
from vlmsteer_ui.workbench import Workbench

TABS = ("layers", "evidence", "counterfactual", "vectors", "benchmarks", "robot", "record")
LARGEST = "20mb"  # of an uploaded file
LOCAL = ("127.0.0.1", "localhost", "::1")


def build(bench: Workbench) -> gr.Blocks:
    """The page. Each module of `tabs` has a `TITLE` and `build(bench, page)`, which fills its open tab."""
    with gr.Blocks(
        title="vlmsteer workbench", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as demo:
        controls, status = top.header(bench)
        told = stories.strip()
        wire = Wiring(bench, status)
        page = top.build(bench, wire, controls)
        with gr.Tabs(elem_id="tabs"):
            for name in TABS:
                module = import_module(f"vlmsteer_ui.tabs.{name}")
                with gr.Tab(module.TITLE, id=name, elem_id=f"tab-{name}") as page.tabs[name]:
                    wire(page.tabs[name].select, partial(opened, name), outputs=[page.tab], queue=False)
                    module.build(bench, page)
        stories.build(bench, page, told)
        api.build(bench)
        wire(
            demo.load, unlinked, [controls["link"], controls["model"], controls["vectors"]],
            page.chooses, model=True, js=record.LINKED,
        )  # fmt: skip

        def left(request: gr.Request) -> None:
            bench.desks.close(request.session_hash)

        left.__annotations__["request"] = gr.Request
        demo.unload(left)
    return demo


def opened(name: str, bench: Workbench, desk: Desk) -> str:
    """Which tab is open now."""
    return name


def unlinked(bench: Workbench, desk: Desk, link: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
    """At the page's start load the model, unless the address names a saved run: that needs none."""
    if not link:
        yield from top.choose(bench, desk, *values)


def start(
    models: list[str],
    folder: Path,
    host: str,
    port: int | None,
    auth: list[tuple[str, str]],
    placement: dict[str, Any],
    told: Callable[[str], None],
) -> None:
    """`vlmsteer ui`: load the first model, say where the page is, and serve until Ctrl-C."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # small models are faster so, and visitors do not compete
    told(f"Loading {models[0]}")
    bench = Workbench(models, folder, **placement)
    _, url, _ = serve(bench, host, port, auth or None, block=False)
    told(f"The workbench is at {url} (Ctrl-C stops it); vectors and runs are kept in {bench.folder}.")
    threading.Event().wait()


def serve(
    bench: Workbench,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: list[tuple[str, str]] | None = None,
    block: bool = True,
) -> Any:
    """Start the server; with `block` until Ctrl-C.

    Raises:
        InputError: if others than this machine could reach it without a password.
    """
    if host not in LOCAL and not auth:
        raise InputError(f"With --host {host} others can reach this page: give --auth NAME:PASSWORD too.")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.chdir(bench.folder)  # Gradio serves the files of the folder that it was started in
    bench.residents(bench.residents.speaking[0])
    demo = build(bench)
    return demo.queue(default_concurrency_limit=8).launch(
        server_name=host, server_port=port, auth=auth, share=False, ssr_mode=False, max_file_size=LARGEST,
        allowed_paths=[str(bench.folder)], prevent_thread_lock=not block, theme=style.theme(), css=style.CSS,
        head=f"<script>{style.JS}</script>", footer_links=["api"], quiet=True, max_threads=THREADS,
    )  # fmt: skip
