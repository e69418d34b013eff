"""Evidence: a word of an answer as a map over the image that the model saw, and back from a place to the word.

What was found is kept in the run as JSON values, so that a saved run shows it without its model.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from vlmsteer.errors import InputError, SiteError
from vlmsteer.lens.evidence import Evidence, evidence
from vlmsteer_ui import evidence_figures as figures
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.figures import PLAIN as SAID
from vlmsteer_ui.page import Page
from vlmsteer_ui.runs import ARMS, Run
from vlmsteer_ui.workbench import Workbench

TITLE, NAME = "Evidence", "evidence"
EMPTY = "Press Run both; then choose a word of the answer to see what in the image it rests on."
UNSAVED = "This run was saved without this evidence; Run both and choose again to find it."
NO_IMAGE = "There is no image that the answer could rest on."
DAMAGED = "What this saved run says of its evidence is damaged."
SILENT = "The model says nothing here, so there is no word to look for evidence of."


def build(bench: Workbench, page: Page) -> None:
    """Fill the tab."""
    with gr.Row(elem_id="evidence"):
        with gr.Column(scale=5, min_width=300):
            with gr.Row():
                arm = gr.Radio(
                    ["baseline"], value="baseline", label="Answer", interactive=True, elem_id="evidence-arm",
                    scale=5, min_width=150,
                )  # fmt: skip
                method = gr.Radio(
                    list(figures.METHODS), value="occlusion", label="Evidence by", interactive=True,
                    elem_id="evidence-method", scale=9, min_width=240,
                )  # fmt: skip
            strip = gr.HTML(
                {"note": EMPTY}, html_template=figures.STRIP, js_on_load=figures.PICK, apply_default_css=False,
                elem_id="evidence-strip",
            )  # fmt: skip
            said = gr.HTML("", html_template=SAID, apply_default_css=False, elem_id="evidence-said")
        with gr.Column(scale=4, min_width=300):
            picture = gr.Image(
                format="png", type="pil", label="The image as the model saw it, and the map", interactive=False,
                buttons=["fullscreen", "download"], height=400, elem_id="evidence-map",
            )  # fmt: skip
    shown, chosen = [arm, strip, picture, said], [arm, method]
    page.wire(page.opened.change, draw, [page.tab, *chosen], shown, model=True, trigger_mode="always_last")
    for trigger in (page.tabs[NAME].select, arm.input, method.input):
        page.wire(trigger, selected, chosen, shown, model=True, trigger_mode="always_last")
    page.wire(strip.select, pick, chosen, shown, data=True)
    page.wire(picture.select, place, chosen, shown, data=True)


def selected(bench: Workbench, desk: Desk, arm: Any, method: Any) -> tuple[Any, ...]:
    """The tab was opened, or another answer or method chosen."""
    return draw(bench, desk, NAME, arm, method)


def draw(bench: Workbench, desk: Desk, tab: Any, arm: Any, method: Any) -> tuple[Any, ...]:
    """The evidence for the desk's run, found now if it was not before; nothing if another tab is open."""
    run = desk.run
    if tab != NAME:
        return (gr.skip(),) * 4
    if run is None or run.image is None:
        return _note(EMPTY if run is None else NO_IMAGE)
    arms = [one for one in ARMS if one in run.tokens]
    arm = arm if arm in arms else "baseline"
    if not getattr(run, arm).strip():
        return _note(SILENT, arms, arm)
    found = run.found.setdefault(NAME, {})
    if not isinstance(found, dict):
        raise InputError(DAMAGED)
    key = f"{arm} {_method(method)}"
    if key not in found:
        if run.id:
            return _note(UNSAVED, arms, arm)
        try:
            found |= find(bench, desk, run, run.image, arm, _method(method))
        except SiteError as error:
            return _note(f"{error} Occlusion asks the model itself and works here too.", arms, arm)
    return _shown(run, arms, arm, method, None)


def pick(bench: Workbench, desk: Desk, data: Any, arm: Any, method: Any) -> tuple[Any, ...]:
    """Another word was chosen in the strip."""
    word = data.get("word") if isinstance(data, dict) else None
    if isinstance(word, bool) or not isinstance(word, int):
        raise InputError("Choose a word of the answer.")
    return _shown(desk.run, None, arm, method, word)


def place(bench: Workbench, desk: Desk, data: Any, arm: Any, method: Any) -> tuple[Any, ...]:
    """A place of the image was chosen: which word it supports most."""
    run, index = desk.run, data.get("index") if isinstance(data, dict) else None
    if not isinstance(index, list) or len(index) != 2 or not all(type(one) in (int, float) for one in index):
        raise InputError("Choose a place inside the image.")
    found, image, crop, size = _found(run, arm, method)
    width, height = figures.seen(image, crop, size).size
    best = figures.supported(found, index[0] / width, index[1] / height, crop)
    if best is None:
        raise InputError("The model sees nothing of the image there.")
    *shown, said = _shown(run, None, arm, method, best[0])
    return *shown, best[1] + said


def find(bench: Workbench, desk: Desk, run: Run, image: Image.Image, arm: str, method: str) -> dict[str, Any]:
    """The evidence of one arm by one method, and how the image is seen, as JSON values.

    Raises:
        SiteError: if the image's tokens are no cells of a grid, and the method needs that.
        VlmsteerError: if the model or a vector is not there any more.
    """
    asked, resident = Asked.again(run), bench.residents(run.model)
    with desk.working() as stop, resident.turn(stop) as session:
        recipe = None if arm == "baseline" else asked.panel.arms(bench.vectors, session)[arm]
        key = (NAME, method, *asked.key, None if recipe is None else recipe.hash)
        kept = desk.recall(key)
        if kept is None:
            found = evidence(session, image, run.question, getattr(run, arm), recipe, method)
            kept = desk.keep(key, {"seen": _seen(session, image), method: figures.as_json(found)})
    return {"seen": kept["seen"], f"{arm} {method}": kept[method]}


def _seen(session: Any, image: Any) -> dict[str, Any]:
    """Which part of the image the model sees, as fractions, and in how many pixels."""
    try:
        edges = session.boxes(image)
        edges = edges[~edges.isnan().any(1)]
        crop = [*edges[:, :2].amin(0).tolist(), *edges[:, 2:].amax(0).tolist()]
    except SiteError:
        crop = [0.0, 0.0, 1.0, 1.0]
    inputs = session.encoder.encode([image], ["?"]).images[0]
    if "image_grid_thw" in inputs:
        rows, columns = inputs["image_grid_thw"].flatten()[1:].tolist()
        side = session.processor.image_processor.patch_size
        return {"crop": crop, "size": [columns * side, rows * side]}
    height, width = inputs["pixel_values"].shape[-2:]
    return {"crop": crop, "size": [width, height]}


def _method(method: Any) -> str:
    if method not in figures.METHODS:
        raise InputError(f"There is no evidence by {str(method)[:40]!r}.")
    return figures.METHODS[method]


def _found(run: Run | None, arm: Any, method: Any) -> tuple[Evidence, Image.Image, list[float], list[int]]:
    """What was found of an arm by a method, the image, and which part of it is seen, in how many pixels."""
    known = {} if run is None else run.found.get(NAME, {})
    key = f"{arm} {_method(method)}"
    if run is None or run.image is None or key not in known:
        raise InputError(EMPTY)
    try:
        return figures.of_json(known[key]), run.image, *figures.view(known["seen"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(DAMAGED) from error


def _shown(run: Run | None, arms: list[str] | None, arm: Any, method: Any, word: int | None) -> tuple[Any, ...]:
    found, image, crop, size = _found(run, arm, method)
    listed = figures.words(found)
    word = len(listed) - 1 if word is None else word
    if not 0 <= word < len(listed):
        raise InputError(f"The answer has the words 0 to {len(listed) - 1}; there is no word {word}.")
    picture = figures.painted(found, word, image, crop, size)
    choice = gr.skip() if arms is None else gr.update(choices=arms, value=arm)
    return choice, figures.strip(found, word), picture, figures.said(found, word)


def _note(text: str, arms: list[str] | None = None, arm: str = "baseline") -> tuple[Any, ...]:
    choice = gr.skip() if arms is None else gr.update(choices=arms, value=arm)
    return choice, figures.strip(None, 0, text), None, ""
