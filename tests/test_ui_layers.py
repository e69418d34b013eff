"""The Layers tab: a grid and curves from the library's lens, without a model if the run was saved with them."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
import pytest

from vlmsteer.errors import InputError
from vlmsteer.lens import beliefs
from vlmsteer_ui import asking, figures, lens_figures
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.runs import Run
from vlmsteer_ui.tabs import layers
from vlmsteer_ui.workbench import Workbench

QUESTION = "Answer with one word. What color are most strawberries?"
FOUND = {
    "grids": {
        arm: {
            "tokens": ["<b>", ":"],
            "words": [[[["<i>", 0.5], ["", 0.1]], [["red", 2.0]]], [[["a", 0]], [["blue", 1]]]],
        }
        for arm in ("baseline", "steered")
    },
    "curves": {"baseline": {"prior": [0.2, 0.9], "pixel": [0.1, 0.1]}, "steered": {"prior": [0, 0], "pixel": [1, 1]}},
    "wins": {"baseline": None, "steered": 1}, "band": [1], "note": "",
}  # fmt: skip


def desk_with(bench: Workbench, **words: str) -> Desk:
    desk = Desk()
    words = {"prior": "red", "pixel": "blue", **words}
    question = Asked.of(
        "tiny-llava", figures.picture("blue_strawberry"), QUESTION, words["prior"], words["pixel"],
        ["color to pixels"], 1.0, 0, 999, [], True,
    )  # fmt: skip
    list(asking.answers(bench, desk, question))
    return desk


def test_the_last_layer_is_at_the_top_and_cells_say_what_was_likely() -> None:
    shown = lens_figures.grid(FOUND, "baseline")
    assert [row["layer"] for row in shown["rows"]] == [1, 0]
    assert [row["band"] for row in shown["rows"]] == ["band", ""]
    below = shown["rows"][1]["cells"]
    assert below[0]["tip"] == "Layer 0, after “<b>”: <i> 0.50, ␣ 0.10"
    assert below[1]["p"] == "1.000"  # a forged chance stays in its range
    assert [cell["stop"] for cell in below] == [0, -1]  # one tab stop a row; arrows go on from there


def test_templates_escape_whatever_they_show() -> None:
    for template in (lens_figures.GRID, lens_figures.CURVES, figures.CHANCES, figures.PLAIN, figures.STATUS):
        assert "${" not in template and "{{{" not in template


def test_curves_have_a_mark_for_every_layer_and_a_band() -> None:
    shown = lens_figures.curves(FOUND, "red", "blue")
    assert [(line["kind"], line["arm"]) for line in shown["lines"]] == [
        ("prior", "baseline"), ("pixel", "baseline"), ("prior", "steered"), ("pixel", "steered"),
    ]  # fmt: skip
    assert [len(line["triangles"]) for line in shown["lines"]] == [2, 0, 2, 0]
    assert [len(line["circles"]) for line in shown["lines"]] == [0, 2, 0, 2]
    assert shown["wins"] == [
        {"arm": "Baseline", "text": "the pixel never wins"}, {"arm": "Steered", "text": "the pixel wins at layer 1"},
    ]  # fmt: skip
    assert shown["layers"][1]["tip"] == "Layer 1: p(red) 0.90 → 0.00, p(blue) 0.10 → 1.00"
    assert len(shown["bands"]) == 1 and shown["bands"][0]["x"] == shown["layers"][1]["x"]
    heights = [float(circle["y"]) for circle in shown["lines"][3]["circles"]]
    assert heights == [lens_figures.TOP] * 2  # probability 1 is at the top


def test_without_two_words_a_sentence_stands_in_place_of_curves() -> None:
    shown = lens_figures.curves({**FOUND, "curves": {}, "note": layers.WORDS}, "", "")
    assert shown["note"] == layers.WORDS and not shown["lines"]


def test_a_run_shows_what_the_library_finds(bench: Workbench) -> None:
    desk = desk_with(bench)
    arm, grid, curves = layers.draw(bench, desk, "layers", "steered")
    found = desk.run.found["layers"]
    json.dumps(found)
    session = bench.residents("tiny-llava").session
    expected = beliefs.grid(session, desk.run.image, QUESTION, layers.TOP)
    assert found["grids"]["baseline"]["tokens"] == expected.tokens
    assert [row[-1][0][0] for row in found["grids"]["baseline"]["words"]] == [row[-1][0][0] for row in expected.words]
    read = beliefs.curves(session, [desk.run.image], [QUESTION], ["red"], ["blue"])
    assert found["curves"]["baseline"]["prior"] == pytest.approx(read.prior[0].tolist(), abs=1e-4)
    assert found["wins"]["baseline"] == read.crossing
    assert arm["choices"] == ["baseline", "steered", "random"] and arm["value"] == "steered"
    assert found["curves"]["steered"]["pixel"][-1] == pytest.approx(desk.run.chances["pixel"][1], abs=1e-3)
    assert found["band"] == [0] and len(grid["rows"]) == session.layers() and len(curves["lines"]) == 6


def test_words_that_cannot_be_told_apart_keep_the_grid(bench: Workbench) -> None:
    desk = desk_with(bench, pixel="")
    desk.run.pixel = "Reddish"
    _, grid, curves = layers.draw(bench, desk, "layers", "baseline")
    assert grid["rows"] and curves["note"] and not curves["lines"]


def test_a_saved_run_needs_no_model(tmp_path: Any) -> None:
    away = Workbench(["tiny-llava"], tmp_path)
    desk = Desk()
    desk.show(Run("gone/model", "Why?", prior="red", pixel="blue", id="saved-run", found={"layers": FOUND}))
    _, grid, curves = layers.draw(away, desk, "layers", "nobody")
    assert grid["rows"] and curves["lines"] and away.residents.loaded() == []
    desk.show(Run("gone/model", "Why?", id="saved-run"))
    assert layers.draw(away, desk, "layers", "baseline")[1]["note"] == layers.UNSAVED
    desk.show(None)
    assert layers.draw(away, desk, "layers", "baseline")[1]["note"] == layers.EMPTY


def test_nothing_is_computed_while_another_tab_is_open(bench: Workbench) -> None:
    desk = desk_with(bench)
    assert layers.draw(bench, desk, "robot", "baseline") == (gr.skip(),) * 3
    assert "layers" not in desk.run.found


@pytest.mark.parametrize(
    "damaged",
    [5, [], {}, {"grids": {}}, {**FOUND, "curves": {"baseline": {}}}, {**FOUND, "band": None},
     {**FOUND, "grids": {"baseline": {"tokens": [], "words": [[[["a", "red;url(x)"]]]]}}}],
)  # fmt: skip
def test_a_damaged_saved_run_gets_a_sentence(bench: Workbench, damaged: Any) -> None:
    desk = Desk()
    desk.show(Run("tiny-llava", "Why?", id="saved-run", found={"layers": damaged}))
    with pytest.raises(InputError, match="damaged"):
        layers.draw(bench, desk, "layers", "baseline")
