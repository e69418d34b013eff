"""Every component and event of the page, walked through: lossless images, live controls, nothing public by accident."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from vlmsteer_ui import app
from vlmsteer_ui.workbench import Workbench

PUBLIC = {"run", "lens", "evidence", "counterfact", "bench"}
PICTURES = (gr.Image, gr.ImageEditor, gr.Gallery)
CONTROLS = (
    *PICTURES, gr.Textbox, gr.Number, gr.Slider, gr.Dropdown, gr.Checkbox, gr.CheckboxGroup, gr.Radio, gr.Code, gr.File,
    gr.UploadButton, gr.Button, gr.DownloadButton,
)  # fmt: skip


@pytest.fixture(scope="module")
def demo(bench: Workbench) -> Any:
    return app.build(bench)


def named(block: Any) -> str:
    return f"{type(block).__name__} {block.elem_id or getattr(block, 'label', '')}"


def test_no_image_is_made_lossy(demo: Any) -> None:
    found = [one for one in demo.blocks.values() if isinstance(one, PICTURES)]
    assert len(found) >= 5
    assert [named(one) for one in found if one.format != "png"] == []


def test_every_control_says_whether_it_can_be_used(demo: Any) -> None:
    found = [one for one in demo.blocks.values() if isinstance(one, CONTROLS)]
    assert len(found) >= 40
    assert [named(one) for one in found if one.interactive is None] == []


def test_what_a_browser_touches_has_a_name_of_its_own(demo: Any) -> None:
    ids = [one.elem_id for one in demo.blocks.values() if one.elem_id]
    assert len(ids) == len(set(ids))


def test_only_five_events_are_public_each_with_a_description(demo: Any) -> None:
    events = list(demo.fns.values())
    public = [event for event in events if event.api_visibility != "private"]
    assert {event.api_name for event in public} == PUBLIC and len(public) == len(PUBLIC)
    assert all(event.api_description and event.concurrency_id == "model" for event in public)
    assert len(events) > 30


def test_no_template_runs_what_it_shows(demo: Any) -> None:
    found = [one for one in demo.blocks.values() if isinstance(one, gr.HTML)]
    assert found
    for one in found:
        assert "${" not in (one.html_template or ""), named(one)
        assert "{{{" not in (one.html_template or ""), named(one)


def test_every_page_part_has_its_tab(demo: Any) -> None:
    tabs = [one.label for one in demo.blocks.values() if isinstance(one, gr.Tab)]
    wanted = ["Layers", "Evidence", "Counterfactual", "Vectors", "Benchmarks", "Robot", "Run record"]
    assert [tab for tab in tabs if tab in wanted] == wanted
