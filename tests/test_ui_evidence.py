"""The Evidence tab: words of an answer, their maps over the image as the model saw it, and from a place to a word."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer.lens.evidence import Evidence, evidence
from vlmsteer_ui import asking, figures
from vlmsteer_ui import evidence_figures as drawn
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.runs import Run
from vlmsteer_ui.tabs import evidence as tab
from vlmsteer_ui.workbench import Workbench

ACTIVATION, OCCLUSION = "token activation map", "occlusion"
QUARTERS = np.array([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [np.nan] * 4])
SHARE = np.array([[0.1, 0.2], [0.3, 0.5], [0.2, 0.4]])
MADE = Evidence(
    "activation", "a straw berry", ("a", "straw", "berry"), ((0, 1), (1, 7), (7, 13)), QUARTERS,
    np.array([[1, 0, 0, 0], [0, 0.8, 0, 0], [0, 0.4, 1, 0.0]]), SHARE,
)  # fmt: skip


def desk_with(bench: Workbench, model: str = "tiny-llava") -> Desk:
    desk = Desk()
    question = Asked.of(
        model, figures.picture("blue_strawberry"), "What is this?", "", "",
        ["color to pixels"] if model == "tiny-llava" else [], 1.0, 0, 999, [], False,
    )  # fmt: skip
    list(asking.answers(bench, desk, question))
    return desk


def test_evidence_survives_json() -> None:
    again = drawn.of_json(json.loads(json.dumps(drawn.as_json(MADE))))
    assert again.tokens == MADE.tokens and again.places == MADE.places
    np.testing.assert_allclose(again.boxes, MADE.boxes)
    np.testing.assert_allclose(again.maps, MADE.maps)
    assert again.share is not None and again.share.tolist() == SHARE.tolist()


def test_tokens_of_one_word_are_one_word() -> None:
    one = Evidence("activation", "a strawberry", MADE.tokens, ((0, 1), (1, 7), (7, 12)), QUARTERS, MADE.maps)
    assert drawn.words(one) == [("a", [0]), ("strawberry", [1, 2])]
    assert [word["on"] for word in drawn.strip(one, 1)["words"]] == ["false", "true"]
    assert "$" not in drawn.STRIP and "{{{" not in drawn.STRIP


def test_the_image_is_shown_as_the_model_sees_it() -> None:
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (50, 0, 150, 100))
    shown = drawn.seen(image, [0.25, 0, 0.75, 1], [12, 12])
    assert shown.size == (480, 480) and shown.getcolors() == [(480 * 480, (0, 0, 255))]
    assert drawn.painted(MADE, 0, image, [0, 0, 1, 1], [12, 12]).size == (480, 480)


def test_a_map_is_brightest_where_its_word_is() -> None:
    painted = np.asarray(drawn.painted(MADE, 0, Image.new("RGB", (100, 100)), [0, 0, 1, 1], [100, 100]).convert("L"))
    assert painted[:240, :240].mean() > 5 * painted[260:, :240].mean() + 1


@pytest.mark.parametrize(
    ("place", "crop", "word"),
    [((0.1, 0.1), [0, 0, 1, 1], "a"), ((0.1, 0.9), [0, 0, 1, 1], "berry"), ((0.1, 0.1), [0.5, 0, 1, 0.5], "straw")],
)
def test_a_place_says_which_word_it_supports(place: tuple[float, float], crop: list[float], word: str) -> None:
    found = drawn.supported(MADE, *place, crop)
    assert found is not None and drawn.words(MADE)[found[0]][0] == word and f"“{word}” most" in found[1]


def test_a_place_without_a_cell_supports_nothing() -> None:
    assert drawn.supported(MADE, 0.9, 0.9, [0, 0, 1, 1]) is None


def test_a_word_is_told_what_it_looked_at() -> None:
    assert "15% of its attention goes to the image, most in layer 1 (20%)" in drawn.said(MADE, 0)


def test_a_run_shows_what_the_library_finds(bench: Workbench) -> None:
    desk = desk_with(bench)
    arm, strip, picture, said = tab.draw(bench, desk, "evidence", "steered", ACTIVATION)
    run = desk.run
    json.dumps(run.found)
    session = bench.residents("tiny-llava").session
    recipe = Asked.again(run).panel.recipe(bench.vectors, session)
    expected = evidence(session, run.image, run.question, run.steered, recipe)
    np.testing.assert_allclose(run.found["evidence"]["steered activation"]["maps"], expected.maps, rtol=5e-3, atol=1e-6)
    assert run.found["evidence"]["seen"]["size"] == [84, 84]
    assert arm["value"] == "steered" and strip["words"] and picture.size[0] >= drawn.SIDE and "“" in said
    assert tab.draw(bench, desk, "layers", "steered", ACTIVATION) == (gr.skip(),) * 4
    _, chosen, other, _ = tab.pick(bench, desk, {"word": 0}, "steered", ACTIVATION)
    assert chosen["words"][0]["on"] == "true" and other.size == picture.size
    _, _, _, told = tab.place(bench, desk, {"index": [200, 200]}, "steered", ACTIVATION)
    assert told.startswith("This place supports")


def test_query_tokens_are_no_grid_and_a_sentence_says_so(bench: Workbench) -> None:
    desk = desk_with(bench, "tiny-instructblip")
    _, strip, picture, _ = tab.draw(bench, desk, "evidence", "baseline", ACTIVATION)
    assert "no cells of a grid" in strip["note"] and picture is None
    _, strip, picture, _ = tab.draw(bench, desk, "evidence", "baseline", OCCLUSION)
    assert strip["words"] and picture is not None


@pytest.mark.parametrize("data", [None, {}, {"word": 99}, {"word": -1}, {"word": "0"}, {"word": True}, {"word": 1e300}])
def test_forged_words_are_refused(bench: Workbench, data: Any) -> None:
    with pytest.raises(InputError):
        tab.pick(bench, saved(), data, "baseline", ACTIVATION)


@pytest.mark.parametrize("index", [None, [], [1], [1, "2"], [float("nan"), 1], [-5, 3], [1e9, 1], [True, True], "12"])
def test_forged_places_are_refused(bench: Workbench, index: Any) -> None:
    with pytest.raises(InputError):
        tab.place(bench, saved(), {"index": index}, "baseline", ACTIVATION)


def saved(**changed: Any) -> Desk:
    desk = Desk()
    found = {"baseline activation": drawn.as_json(MADE), "seen": {"crop": [0, 0, 1, 1], "size": [12, 12]}, **changed}
    desk.show(Run(
        "gone/model", "What is this?", Image.new("RGB", (50, 40)), baseline="a straw berry",
        tokens={"baseline": ["a"]}, id="saved-run", found={"evidence": found},
    ))  # fmt: skip
    return desk


def test_a_saved_run_needs_no_model(tmp_path: Any) -> None:
    away, desk = Workbench(["tiny-llava"], tmp_path), saved()
    assert tab.draw(away, desk, "evidence", "steered", ACTIVATION)[2].size == (480, 480)
    assert tab.draw(away, desk, "evidence", "baseline", OCCLUSION)[1]["note"] == tab.UNSAVED
    assert away.residents.loaded() == []
    with pytest.raises(InputError, match="no evidence"):
        tab.draw(away, desk, "evidence", "baseline", "magic")


@pytest.mark.parametrize(
    "changed",
    [{"seen": None}, {"seen": {"crop": [0, 0, 9, 9], "size": [12, 12]}}, {"baseline activation": 5},
     {"seen": {"crop": [0, 0, 1, 1], "size": [10**9, 1]}},
     {"baseline activation": {**drawn.as_json(MADE), "maps": [[1]]}},
     {"baseline activation": {**drawn.as_json(MADE), "places": ["ab", "cd", "ef"]}}],
)  # fmt: skip
def test_a_damaged_saved_run_gets_a_sentence(bench: Workbench, changed: Any) -> None:
    with pytest.raises(InputError, match="damaged"):
        tab.draw(bench, saved(**changed), "evidence", "baseline", ACTIVATION)


def test_without_an_image_or_an_answer_there_is_no_evidence(bench: Workbench) -> None:
    desk = Desk()
    assert tab.draw(bench, desk, "evidence", "baseline", ACTIVATION)[1]["note"] == tab.EMPTY
    desk.show(Run("tiny-llava", "Why?", baseline="because"))
    assert tab.draw(bench, desk, "evidence", "baseline", ACTIVATION)[1]["note"] == tab.NO_IMAGE
    desk.show(Run("tiny-llava", "Why?", Image.new("RGB", (9, 9)), tokens={"baseline": []}))
    assert tab.draw(bench, desk, "evidence", "baseline", ACTIVATION)[1]["note"] == tab.SILENT
