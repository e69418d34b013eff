"""The workbench's top row: answers by arms, what is kept and bounded, stopping, and what a forged value does."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from vlmsteer.errors import InputError, ModelError, VlmsteerError
from vlmsteer_ui import app, asking, figures, page
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import BYTES, KEPT, Desk, Desks, size
from vlmsteer_ui.panel import OWN, Panel
from vlmsteer_ui.residents import Residents, Stopped
from vlmsteer_ui.runs import Run
from vlmsteer_ui.wiring import BROKEN, READY, Wiring
from vlmsteer_ui.workbench import Workbench

MODEL, TO_PIXELS = "tiny-llava", "color to pixels"
MOST = "Answer with one word. What color are most strawberries?"
SCENE = "Describe the image."


def asked(question: str = MOST, prior: str = "red", pixel: str = "blue", **panel: Any) -> Asked:
    set_to = {"vectors": [TO_PIXELS], "strength": 1.0, "first": 0, "last": 999, "apply": [], "random": False, **panel}
    return Asked.of(MODEL, figures.picture("blue_strawberry"), question, prior, pixel, *set_to.values())


def last(steps: Any) -> Any:
    *_, end = steps
    return end


def hooks(bench: Workbench) -> int:
    """Hooks on the model, transformers' own among them, and whether it is in use."""
    resident = bench.residents(MODEL)
    modules = resident.session.model.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules) + resident.lock.locked()


def test_both_answers_are_those_of_the_library(bench: Workbench) -> None:
    desk, question = Desk(), asked()
    run = last(asking.answers(bench, desk, question))
    session = bench.residents(MODEL).session
    recipe = question.panel.recipe(bench.vectors, session)
    assert run is desk.run
    assert run.baseline == session.ask(question.image, MOST) == "red"
    assert run.steered == session.ask(question.image, MOST, recipe) == "blue"
    assert run.chances["pixel"][1] > run.chances["pixel"][0]
    assert recipe is not None and run.recipe["hash"] == recipe.hash


def test_strength_zero_is_the_baseline_to_the_letter(bench: Workbench) -> None:
    run = last(asking.answers(bench, Desk(), asked(SCENE, strength=0.0)))
    assert run.steered == run.baseline
    assert all(before == after for before, after in run.chances.values())


def test_another_strength_asks_only_the_steered_arm_again(bench: Workbench) -> None:
    desk = Desk()
    first = last(asking.answers(bench, desk, asked()))
    steps = list(asking.answers(bench, desk, asked(strength=0.5)))
    assert {step.baseline for step in steps} == {first.baseline}
    assert steps[-1].seconds["baseline"] == first.seconds["baseline"]
    again = list(asking.answers(bench, desk, asked()))
    assert len(again) == 1 and again[0].steered == first.steered  # nothing is asked twice


def test_a_random_direction_of_the_same_norm_answers_beside_the_steered_one(bench: Workbench) -> None:
    question = asked(random=True)
    run = last(asking.answers(bench, Desk(), question))
    arms = question.panel.arms(bench.vectors, bench.residents(MODEL).session)
    assert [list(e.fixed.norms().values()) for e in arms["random"].edits] == [
        pytest.approx(list(e.fixed.norms().values())) for e in arms["steered"].edits
    ]
    assert run.random and set(run.tokens) == {"baseline", "steered", "random"}
    assert all(len(values) == 3 for values in run.chances.values())


def test_words_that_cannot_be_told_apart_leave_the_answers(bench: Workbench) -> None:
    desk = Desk()
    with pytest.raises(InputError, match="told apart"):
        list(asking.answers(bench, desk, asked(prior="blue", pixel="Blueish")))
    assert desk.run.steered and not desk.run.chances


def test_without_a_vector_only_the_baseline_answers_and_the_page_says_so(bench: Workbench) -> None:
    run = last(asking.answers(bench, Desk(), asked(vectors=[])))
    assert run.baseline and not run.steered and set(run.tokens) == {"baseline"}
    assert page.shown(run)[3]["hint"] == figures.NONE


def test_one_word_alone_has_its_chances(bench: Workbench) -> None:
    assert set(last(asking.answers(bench, Desk(), asked(prior=""))).chances) == {"pixel"}


def test_a_wrong_recipe_leaves_what_was_shown(bench: Workbench) -> None:
    desk = Desk()
    before = last(asking.answers(bench, desk, asked()))
    for wrong in (asked(vectors=["../../etc/passwd"]), asked(first=7, last=7)):
        with pytest.raises(VlmsteerError):
            list(asking.answers(bench, desk, wrong))
    assert desk.run is before


def test_stop_ends_an_answer_within_a_token_and_leaves_no_hook(bench: Workbench) -> None:
    desk, before = Desk(), hooks(bench)
    steps = asking.answers(bench, desk, asked(SCENE))
    next(steps)
    desk.halt()
    with pytest.raises(Stopped):
        next(steps)
    assert hooks(bench) == before and desk.run is None


def test_a_closed_tab_leaves_no_hook_and_frees_the_model_from_any_thread(bench: Workbench) -> None:
    before = hooks(bench)
    steps: Any = asking.answers(bench, Desk(), asked(SCENE))
    thread = threading.Thread(target=next, args=(steps,))
    thread.start()
    thread.join()
    assert hooks(bench) > before
    steps.close()
    assert hooks(bench) == before


def test_who_waits_for_a_model_can_stop(bench: Workbench) -> None:
    desk = Desk()
    with bench.residents(MODEL).turn(), ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: list(asking.answers(bench, desk, asked(SCENE))))
        while not desk._works:
            pass
        desk.halt()
        with pytest.raises(Stopped):
            waiting.result(timeout=10)


def test_eight_visitors_with_eight_recipes_get_their_own_answers(bench: Workbench) -> None:
    strengths, before = [-3, -2, -1, 0, 0.5, 1, 2, 3], hooks(bench)
    alone = [last(asking.answers(bench, Desk(), asked(SCENE, strength=s))).steered for s in strengths]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda s: last(asking.answers(bench, Desk(), asked(SCENE, strength=s))).steered, strengths)
    assert list(together) == alone and len(set(alone)) > 1
    assert hooks(bench) == before


def test_a_robots_model_is_asked_no_question(bench: Workbench) -> None:
    assert "tiny-openvla" not in bench.residents.speaking and "tiny-openvla" in bench.residents.names
    question = Asked.of("tiny-openvla", figures.picture("blue_strawberry"), MOST, "", "", [], 1, 0, 9, [], False)
    with pytest.raises(ModelError, match="Robot tab"):
        list(asking.answers(bench, Desk(), question))


def test_a_model_is_loaded_once_and_the_oldest_leaves() -> None:
    residents = Residents([MODEL], limit=0)
    first = residents(MODEL)
    assert residents(MODEL) is first
    residents("tiny-instructblip")
    assert residents.loaded() == ["tiny-instructblip"]
    with pytest.raises(ModelError, match="no model"):
        residents("/etc/passwd")


@pytest.mark.parametrize(
    "wrong",
    [
        {"vectors": [["a"]]}, {"vectors": 5}, {"vectors": ["v"] * 9 + list("abcdefghi")}, {"strength": "1"},
        {"strength": float("nan")}, {"strength": 1e9}, {"strength": True}, {"first": -1}, {"first": 5, "last": 4},
        {"last": None}, {"apply": ["everywhere"]}, {"apply": [{}]}, {"apply": 3},
    ],
)  # fmt: skip
def test_forged_panel_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        asked(**wrong)


@pytest.mark.parametrize("question", ["", "  ", "x" * 3000, None, 5])
def test_questions_are_checked(question: Any) -> None:
    with pytest.raises(InputError):
        asked(question)


def test_the_panel_survives_json() -> None:
    panel = asked(apply=["question", OWN], random=True).panel
    assert panel.apply == ("question",)
    assert Panel.of(*panel.as_dict().values()) == panel


@pytest.mark.parametrize(
    ("text", "bad"),
    [("", True), ("blue blue blue blue blue blue blue blue blue", True), ("aaaaaaaaaaaaaaaa", True), ("blue", False),
     ("There is a strawberry on a table, beside a cup and a plate.", False)],
)  # fmt: skip
def test_degenerate_answers_are_seen(text: str, bad: bool) -> None:
    assert asking.degenerate(text) is bad


def test_a_recipe_that_is_too_strong_is_warned_of(bench: Workbench) -> None:
    run = Run(MODEL, MOST, steered="no no no no no no no no", tokens={"steered": ["no"]}, recipe={})
    assert "too strong" in page.shown(run)[3]["warning"]
    assert not page.shown(Run(MODEL, MOST))[3]["warning"]  # before it has answered


def test_a_desk_keeps_few_results_and_few_bytes() -> None:
    desk = Desk()
    for i in range(2 * KEPT):
        desk.keep(i, "x")
    assert desk.recall(KEPT - 1) is None and desk.recall(2 * KEPT - 1) == "x"
    large = Image.new("RGB", (2000, 2000))
    assert size({"images": [large, large]}) > 24_000_000
    for i in range(KEPT):
        desk.keep(("image", i), large)
    assert sum(size(value) for value in desk._kept.values()) <= BYTES


def test_desks_are_bounded_and_stop_when_they_close() -> None:
    desks = Desks(most=2)
    first = desks.of("a")
    with first.working() as stop:
        assert desks.of("a") is first
        desks.of("b")
        desks.of("c")
        assert len(desks) == 2 and stop.is_set()
    with desks.of("c").working() as stop:
        desks.close("c")
        assert stop.is_set() and len(desks) == 1
    assert desks.of(None) is not desks.of(None)


def test_each_show_has_a_number_of_its_own() -> None:
    desk = Desk()
    numbers = [desk.show(Run(MODEL, MOST)) for _ in range(5)]
    assert len(set(numbers)) == 5


def wired(bench: Workbench, handler: Any, **options: Any) -> Any:
    taken = []
    trigger = lambda function, inputs, outputs, **more: taken.append((function, more))  # noqa: E731
    Wiring(bench, "status")(trigger, handler, (), ["one", "two"], **options)
    return taken[0]


def test_an_error_is_a_sentence_and_changes_nothing(bench: Workbench) -> None:
    def wrong(bench: Workbench, desk: Desk, kind: str) -> Any:
        raise InputError("Choose another.") if kind == "user" else ZeroDivisionError("secret")

    def streamed(bench: Workbench, desk: Desk, kind: str) -> Any:
        yield 1, 2
        yield wrong(bench, desk, kind)

    request: Any = None
    function, options = wired(bench, wrong)
    assert options["api_visibility"] == "private"
    assert function(request, "user") == [gr.skip(), gr.skip(), "Choose another."]
    assert function(request, "bug")[-1] == BROKEN
    function, _ = wired(bench, streamed)
    steps = list(function(request, "user"))
    assert steps[0][:2] == [1, 2] and steps[1] == [gr.skip(), gr.skip(), "Choose another."]


def test_a_stream_keeps_its_context_over_threads_and_is_closed(bench: Workbench) -> None:
    closed, before = [], hooks(bench)

    def streamed(bench: Workbench, desk: Desk) -> Any:
        try:
            with bench.residents(MODEL).session.read("text.0.block_out"):
                yield bench.residents(MODEL).session.instrument.busy, 0
                yield bench.residents(MODEL).session.instrument.busy, 0
        finally:
            closed.append(True)

    function, _ = wired(bench, streamed)
    request: Any = None
    steps = function(request)
    assert next(steps)[0] is True
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(next, steps).result()[0] is True
    del steps
    gc.collect()
    assert closed and hooks(bench) == before
    assert list(function(request))[-1][-1] == READY


def test_opening_a_run_sets_every_control_and_loads_nothing(bench: Workbench) -> None:
    desk, loaded = Desk(), bench.residents.loaded()
    panel = Panel((TO_PIXELS, "gone"), 0.5, 2, 9, ("question",), True)
    run = Run(
        "tiny-qwen-vl", "Why?", None, "cpu, float32", 8, "red", "blue", panel.as_dict(), baseline="a", steered="b",
        random="c", chances={"prior": [0.9, 0.1, 0.8], "pixel": [0.1, 0.9, 0.1]}, tokens={"steered": ["b"]},
    )  # fmt: skip
    values = page.opening(bench, desk, run)
    assert desk.run is run and bench.residents.loaded() == loaded
    assert values[0]["value"] == "tiny-qwen-vl" and values[2:5] == ("Why?", "red", "blue")
    assert values[5]["value"] == [TO_PIXELS, "gone"] and "gone" in values[5]["choices"]
    assert values[6] == 0.5 and values[8]["value"] == values[8]["maximum"] == 7 and values[9] == ["question"]
    assert values[11:13] == ("a", "b") and values[13] == "c"
    assert [line["after"] for line in values[14]["lines"]] == ["0.10", "0.90"]


def test_choosing_a_model_offers_what_fits_it_and_takes_answers_away(bench: Workbench) -> None:
    desk = Desk()
    desk.show(Run("tiny-qwen-vl", MOST, baseline="red"))
    vectors, first, deepest, baseline, *_, place, shows = last(page.choose(bench, desk, MODEL, ["gone"]))
    assert TO_PIXELS in vectors["choices"] and len(vectors["value"]) == 1
    assert deepest["maximum"] == deepest["value"] == bench.residents(MODEL).session.layers() - 1
    assert baseline == "" and desk.run is None and shows == 2 and "layers" in place


def test_the_page_is_private_lossless_and_alive(bench: Workbench) -> None:
    demo = app.build(bench)
    made = list(demo.blocks.values())
    assert all(one.format == "png" for one in made if isinstance(one, gr.Image | gr.ImageEditor | gr.Gallery))
    inputs = (gr.Slider, gr.Dropdown, gr.Checkbox, gr.CheckboxGroup, gr.Radio, gr.Number, gr.Button)
    assert [one.elem_id for one in made if isinstance(one, inputs) and one.interactive is False] == []
    public = {fn.api_name for fn in demo.fns.values() if fn.api_visibility == "public"}
    assert public <= {"run", "lens", "evidence", "counterfact", "bench"}
