"""Five endpoints for programs: /run, /lens, /evidence, /counterfact and /bench, each with plain values and image files.

They are guarded as the page's own events are: what a caller can mend comes back as a sentence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from vlmsteer.errors import InputError, VlmsteerError
from vlmsteer.images import open_image
from vlmsteer.lens.evidence import METHODS, evidence
from vlmsteer_counterfacts.build import record_of
from vlmsteer_counterfacts.photos import edit
from vlmsteer_ui import asking, benching, editing
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.panel import PANEL, Panel
from vlmsteer_ui.tabs import layers
from vlmsteer_ui.wiring import AT_ONCE, BROKEN, MODEL, log
from vlmsteer_ui.workbench import Workbench

ASKED = ("image", "question", "model", "prior", "pixel", *PANEL)
ATTRIBUTES = ("color", "texture", "presence")
RECIPE = (
    "The recipe: `vectors`, names from the page's list; `strength`, 1 is as learned; text layers `first` to `last`; "
    "`apply`, [] is as learned, or some of image tokens, question, answer; `random`, a random direction of the same "
    "norm too."
)


def build(bench: Workbench) -> None:
    """Add the endpoints to the open page; nothing of them is seen there."""
    names = bench.residents.names
    made: dict[str, Callable[[], Any]] = {
        "image": lambda: gr.File(label="An image file, or none", type="filepath"),
        "question": lambda: gr.Textbox("What color is this strawberry?", label="The question"),
        "model": lambda: gr.Textbox(names[0], label=f"One of {', '.join(names)}"),
        "prior": lambda: gr.Textbox("", label="The answer from memory, one word, or ''"),
        "pixel": lambda: gr.Textbox("", label="The answer in the image, one word, or ''"),
        "vectors": lambda: gr.JSON([], label="Names of vectors"),
        "strength": lambda: gr.Number(1.0, label="Multiplies what was learned; 0 is the baseline"),
        "first": lambda: gr.Number(0, label="First text layer", precision=0),
        "last": lambda: gr.Number(999, label="Last text layer", precision=0),
        "apply": lambda: gr.JSON([], label="Where it applies; [] is as learned"),
        "random": lambda: gr.Checkbox(False, label="Answer with a random direction too"),
        "max_new_tokens": lambda: gr.Number(asking.TOKENS, label="Of the answer, at most", precision=0),
        "method": lambda: gr.Textbox(METHODS[0], label=f"One of {', '.join(METHODS)}"),
        "word": lambda: gr.Textbox("", label="A word of the answer; '' is all of it"),
        "object": lambda: gr.Textbox("strawberry", label="What is to be changed"),
        "attribute": lambda: gr.Textbox(ATTRIBUTES[0], label=f"One of {', '.join(ATTRIBUTES)}"),
        "to": lambda: gr.Textbox("blue", label="The new color (a name or #rrggbb) or pattern"),
        "usual": lambda: gr.Textbox("", label="The usual color, where the table does not know the object"),
        "box": lambda: gr.JSON([], label="Where it is: left, top, right, bottom in pixels"),
        "benchmark": lambda: gr.Textbox("pope", label="The benchmark's name"),
        "n": lambda: gr.Number(20, label=f"Questions, at most {benching.MOST}", precision=0),
        "seed": lambda: gr.Number(0, label="Which questions are drawn", precision=0),
        "strengths": lambda: gr.JSON([1.0], label="Multiples of the recipe's strength"),
        "control": lambda: gr.Checkbox(True, label="Random directions of the same norm beside each strength"),
    }
    endpoints: tuple[tuple[str, Callable[..., Any], tuple[str, ...], int, str], ...] = (
        ("run", run, (*ASKED, "max_new_tokens"), 0, f"Ask a question, plain and steered. {RECIPE}"),
        ("lens", lens, ASKED, 0, f"What each layer would say, and its belief in prior and pixel answer. {RECIPE}"),
        ("evidence", look, (*ASKED, "method", "word"), 1, f"What in the image each word rests on. {RECIPE}"),
        ("counterfact", counterfact, ("image", "object", "attribute", "to", "usual", "box"), 2,
         "Change one thing in an image: the checks, the new image, and the mask of what may differ."),
        ("bench", measure, ("benchmark", "model", *PANEL, "n", "seed", "strengths", "control"), 0,
         f"Run a benchmark under a recipe at several strengths. {RECIPE}"),
    )  # fmt: skip
    with gr.Column(visible=False):
        for name, handler, given, pictures, told in endpoints:
            inputs = [made[one]() for one in given]
            for one in inputs:
                one.interactive = True
            outputs = [
                gr.JSON(label="Result"),
                *(gr.Image(format="png", label="PNG", interactive=False) for _ in range(pictures)),
            ]
            gr.Button(name).click(
                _guarded(bench, handler, given), inputs, outputs, api_name=name, api_description=told,
                concurrency_id=MODEL, concurrency_limit=AT_ONCE, show_progress="hidden",
            )  # fmt: skip


def run(bench: Workbench, desk: Desk, *values: Any) -> dict[str, Any]:
    """Both answers, as the JSON of a run."""
    *asked, tokens = values
    if type(tokens) is not int or not 1 <= tokens <= asking.MOST_TOKENS:
        raise InputError(f"An answer has 1 to {asking.MOST_TOKENS} tokens, not {tokens!r}.")
    *_, found = asking.answers(bench, desk, replace(_asked(asked), max_new_tokens=tokens))
    return found.as_dict()


def lens(bench: Workbench, desk: Desk, *values: Any) -> dict[str, Any]:
    """Grid and curves of every arm."""
    asked = _asked(values)
    session = bench.residents(asked.model).session
    return layers.find(bench, desk, asked.begun(session, asked.panel.recipe(bench.vectors, session)))


def look(bench: Workbench, desk: Desk, *values: Any) -> tuple[dict[str, Any], Any]:
    """The maps of one kind of evidence, and one over the image."""
    *given, method, word = values
    asked = _asked(given)
    if asked.image is None:
        raise InputError("Evidence needs an image.")
    with desk.working() as stop, bench.residents(asked.model).turn(stop) as session:
        recipe = asked.panel.recipe(bench.vectors, session)
        found = evidence(session, asked.image, asked.question, None, recipe, method)
    chosen = word.strip() or None if isinstance(word, str) else None
    told = {
        "answer": found.answer, "tokens": list(found.tokens), "method": method, "peak": found.peak(chosen),
        "boxes": found.boxes.tolist(), "maps": found.maps.tolist(),
        "share": None if found.share is None else found.share.tolist(),
    }  # fmt: skip
    return _finite(told), found.paint(asked.image, chosen)


def counterfact(
    bench: Workbench, desk: Desk, image: Any, object: Any, attribute: Any, to: Any, usual: Any, box: Any
) -> tuple[dict[str, Any], Any, Any]:
    """A changed image with what was checked, and the mask."""
    if image is None:
        raise InputError("Give an image to change.")
    if attribute not in ATTRIBUTES:
        raise InputError(f"An attribute is one of {', '.join(ATTRIBUTES)}, not {attribute!r}.")
    if not isinstance(box, list) or len(box) != 4 or not all(type(side) is int for side in box):
        raise InputError("The box is four whole numbers: left, top, right, bottom in pixels.")
    draft = edit(_opened(image), str(object).strip(), attribute, to=str(to).strip(), prior=str(usual).strip(), box=box)
    record = record_of(draft, "made", editing.scorer())
    told = {"accepted": record.accepted, "checks": [dict(check) for check in record.checks], "edit": dict(record.edit)}
    return _finite(told), draft.counterfactual, draft.mask.convert("RGB")


def measure(bench: Workbench, desk: Desk, benchmark: Any, model: Any, *values: Any) -> dict[str, Any]:
    """The tables and curves of a benchmark."""
    *panel, n, seed, strengths, control = values
    wanted = benching.Wanted.of(benchmark, n, seed, strengths, control)
    *_, known = benching.asked(bench, desk, str(model), Panel.of(*panel), wanted)
    return _finite(known)


def _asked(values: Any) -> Asked:
    image, question, model, prior, pixel, *panel = values
    return Asked.of(model, None if image is None else _opened(image), question, prior, pixel, *panel)


def _opened(file: str) -> Any:
    """An uploaded file as an image; by its bytes, so that no path of the server is told."""
    return open_image(Path(file).read_bytes())


def _finite(value: Any) -> Any:
    """JSON has no NaN: None in its place."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def _guarded(bench: Workbench, handler: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """`handler(bench, desk, *values)` for Gradio, with names for the values, and sentences for errors."""

    def called(request: gr.Request, *values: Any) -> Any:
        try:
            return handler(bench, bench.desks.of(getattr(request, "session_hash", None)), *values)
        except VlmsteerError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            log.exception("An endpoint failed", exc_info=error)
            raise gr.Error(BROKEN, print_exception=False) from error

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given: Any = called
    given.__annotations__ = {"request": gr.Request}
    given.__signature__ = inspect.Signature(
        [inspect.Parameter("request", kind, annotation=gr.Request), *(inspect.Parameter(name, kind) for name in names)]
    )
    return given
