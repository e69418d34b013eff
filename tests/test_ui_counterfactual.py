"""The Counterfactual tab: marks from the client, edits, checks in words, sets that commands read, and the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from vlmsteer.errors import InputError, VlmsteerError
from vlmsteer_counterfacts.dataset import load_pairs
from vlmsteer_ui import edit_figures, editing, figures
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.editing import Work
from vlmsteer_ui.residents import Stopped
from vlmsteer_ui.runs import Run
from vlmsteer_ui.tabs import counterfactual
from vlmsteer_ui.workbench import Workbench

BOX = {"box": [0.1, 0.1, 0.75, 0.95]}
PICTURE = figures.picture("blue_strawberry")
PANEL = [["color to pixels"], 1.0, 0, 999, [], False]
ASKED = ["tiny-llava", PICTURE, "What color is this strawberry?", "red", "blue", *PANEL]


@pytest.fixture(scope="module")
def marked() -> Work:
    return editing.marked(editing.begun(PICTURE), BOX)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(["tiny-llava"], tmp_path_factory.mktemp("bench"))


def test_grabcut_finds_the_object_in_a_box(marked: Work) -> None:
    assert marked.mask is not None
    left, top, right, bottom = marked.mask.getbbox() or (0, 0, 0, 0)
    assert 33 <= left < right <= 253 and 33 <= top < bottom <= 320  # of 336 pixels
    assert editing.color_of(marked) == "blue"
    whole = editing.remasked(marked, exact=True)
    assert whole.mask is not None and whole.mask.getbbox() == (33, 33, 252, 320)


def test_strokes_add_up_and_can_say_what_is_not_the_object(marked: Work) -> None:
    work = editing.begun(PICTURE)
    beside = {"stroke": [[0.9, 0.9], [0.95, 0.5]], "width": 0.05, "side": "outside"}
    assert editing.marked(work, beside).mask is None  # nothing says yet what the object is
    work = editing.marked(editing.marked(work, beside), {"stroke": [[0.42, 0.55], [0.42, 0.7]], "width": 0.06})
    assert work.mask is not None and marked.mask is not None
    ours, boxed = (np.asarray(one) > 127 for one in (work.mask, marked.mask))
    assert (ours & boxed).sum() > 0.8 * boxed.sum()
    exact = editing.remasked(work, exact=True)
    assert exact.mask is not None and (np.asarray(exact.mask) > 0).mean() < 0.03
    assert editing.marked(work, BOX).strokes == {}


@pytest.mark.parametrize(
    "said",
    [
        None, 3, {}, {"box": 1}, {"box": [0, 0, 1]}, {"box": [0, 0, 1, 2]}, {"box": [0, 0, 1, float("nan")]},
        {"box": ["0", 0, 1, 1]}, {"box": [True, 0, 1, 1]}, {"box": [0.5, 0.5, 0.5, 0.5]}, {"box": [0, 0, 1, 1]},
        {"stroke": []}, {"stroke": "x"}, {"stroke": [[0, 0]], "side": "above"}, {"stroke": [[0, 0]], "width": 9},
        {"stroke": [[0.5, 0.5]] * 5000}, {"stroke": [[-1, 0]]}, {"stroke": [[0.1]]},
    ],
)  # fmt: skip
def test_marks_from_the_client_are_checked(said: Any) -> None:
    with pytest.raises(VlmsteerError):
        editing.marked(editing.begun(PICTURE), said)


def test_a_recolored_object_keeps_all_else(marked: Work) -> None:
    work = editing.made(marked, "strawberry", "color", "yellow")
    assert work.draft is not None and work.mask is not None
    before, after = np.asarray(marked.picture), np.asarray(work.draft.counterfactual)
    outside = np.asarray(work.mask) == 0
    assert (before[outside] == after[outside]).all() and (before != after).any()
    lines = {line["name"]: line for line in edit_figures.facts(work.draft, work.checks)["lines"]}
    assert lines["Pixels outside the mask unchanged"]["said"] == "yes"
    assert lines["Mask area"]["said"].endswith("of the picture") and lines["Color shift"]["said"].startswith("ΔE")
    assert "tiny-clip agrees" not in lines


@pytest.mark.parametrize("kind", ["size", "presence"])
def test_other_edits_are_checked_too(marked: Work, kind: str) -> None:
    work = editing.made(marked, "strawberry", kind, factor=0.5)
    assert work.draft is not None and all(check.ok for check in work.checks) and len(work.checks) == 3


def test_tiny_clip_judges_what_it_knows(marked: Work) -> None:
    work = editing.made(marked, "strawberry", "color", "yellow", clip=True)
    assert [check.name for check in work.checks][-1] == "agreement"
    unknown = editing.made(marked, "dragon fruit", "color", "yellow", clip=True)
    assert "agreement" not in [check.name for check in unknown.checks]
    assert edit_figures.facts(unknown.draft, unknown.checks)["note"] == edit_figures.UNKNOWN


@pytest.mark.parametrize(
    "given",
    [
        ("", "color", "red"), (None, "color", "red"), ("cup", "melt"), ("cup", None), ("cup", "color", "reddish"),
        ("cup", "color", ""), ("cup", "size", "", 1.0), ("cup", "size", "", 50.0), ("cup", "size", "", "x"),
        ("c" * 100, "color", "red"), ("cup", "size", "", 0.5, "unheard of"),
    ],
)  # fmt: skip
def test_edits_that_are_not_possible_say_so(marked: Work, given: tuple[Any, ...]) -> None:
    with pytest.raises(InputError):
        editing.made(marked, *given)


def test_the_usual_color_comes_from_the_table_the_page_or_the_picture(marked: Work) -> None:
    assert editing.usual(marked, "strawberry", "blue")[0] == "red"
    assert editing.usual(marked, "gizmo", "Green") == ("green", "given on the page")
    assert editing.usual(marked, "gizmo", "a fruit") == ("blue", "the picture itself")


def test_pairs_of_a_set_are_what_commands_read(marked: Work, tmp_path: Path) -> None:
    yellow, pink = (editing.made(marked, "strawberry", "color", color) for color in ("yellow", "pink"))
    assert editing.add(yellow, tmp_path, "mine") == (1, "Its usual picture was painted red.")
    assert editing.add(pink, tmp_path, "mine")[0] == 2
    assert editing.add(pink, tmp_path, "mine")[0] == 2  # the same pair once more
    assert editing.sets(tmp_path) == ["mine"]
    pairs = load_pairs(tmp_path / "sets" / "mine", "color")
    assert {(pair.object, pair.prior, pair.pixel) for pair in pairs} == {
        ("strawberry", "red", "yellow"), ("strawberry", "red", "pink"),
    }  # fmt: skip
    original = editing.marked(editing.begun(pairs[0].image("original")), BOX)
    assert editing.color_of(original) == "red"


def test_what_is_no_pair_is_not_added(marked: Work, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="edit first"):
        editing.add(marked, tmp_path, "mine")
    with pytest.raises(InputError, match="usual color"):
        editing.add(editing.made(marked, "strawberry", "color", "red"), tmp_path, "mine")
    with pytest.raises(InputError, match="compared with"):
        editing.add(editing.made(marked, "strawberry", "size", factor=0.5), tmp_path, "mine")
    made = editing.made(marked, "strawberry", "color", "yellow")
    for name in ("../up", "", "A set", "/tmp/x", None, "x" * 60):
        with pytest.raises(InputError, match="small letters"):
            editing.add(made, tmp_path, name)
    assert not list(tmp_path.rglob("*.png"))


def test_a_large_picture_is_worked_on_smaller() -> None:
    assert editing.begun(Image.new("RGB", (4000, 1000), "red")).picture.size == (1024, 256)
    with pytest.raises(InputError, match="Choose an image"):
        editing.begun(None)


def test_questions_name_their_object() -> None:
    assert editing.guess("What color are most strawberries?") == "strawberry"
    assert editing.guess("What color is this?") == editing.guess(None) == ""


def test_the_grid_leaves_out_what_is_no_picture() -> None:
    good = {"color": "red", "image": "data:image/png;base64,AAAA", "baseline": "It is red.", "steered": "blue"}
    shown = edit_figures.grid([good, {"color": "x", "image": "http://elsewhere/x.png"}, {}], "red")
    assert [cell["color"] for cell in shown["cells"]] == ["red"]
    cell = shown["cells"][0]
    assert (cell["pressed"], cell["before"]["mark"], cell["after"]["mark"]) == ("true", "✓", "✗")
    assert shown["sum"].endswith("the baseline answer in 1 of 1 and by the steered answer in 0 of 1.")


def test_from_mark_to_set(bench: Workbench) -> None:
    desk = Desk()
    canvas, made, _, grid = counterfactual.mark(bench, desk, BOX, PICTURE, "Box", False)
    assert canvas["mask"].startswith("data:image/png") and made is None and len(grid["cells"]) == 8
    *_, last = counterfactual.take(bench, desk, {"color": "green"}, PICTURE, "strawberry", "red")
    assert last[:2] == ("color", "green") and "tiny-clip agrees" in [line["name"] for line in last[3]["lines"]]
    image, prior, pixel = counterfactual.used(bench, desk)
    assert (prior, pixel) == ("red", "green")
    before = desk.recall(counterfactual.KEY)
    assert counterfactual.of(desk, image) is before  # the edit that is used as image can still be added
    assert "1 pair in the set mine" in counterfactual.keep(bench, desk, "mine")[1]
    assert counterfactual.of(desk, Image.new("RGB", (50, 50), "white")).mask is None
    for event in (None, {"color": "mauve"}, {"color": ["red"]}):
        with pytest.raises(InputError):
            list(counterfactual.take(bench, desk, event, PICTURE, "strawberry", "red"))


def test_all_colors_are_asked_and_kept_in_the_run(bench: Workbench) -> None:
    desk = Desk()
    with pytest.raises(InputError, match="where the object is"):
        list(counterfactual.ask(bench, desk, *ASKED))
    counterfactual.mark(bench, desk, BOX, PICTURE, "Box", False)
    desk.run = Run("tiny-llava", ASKED[2], image=PICTURE)
    *_, grid = counterfactual.ask(bench, desk, *ASKED)
    session = bench.residents("tiny-llava").session
    recipe = bench.vectors["color to pixels"].recipe
    work = desk.recall(counterfactual.KEY)
    for (_, image), cell in zip(editing.colored(work), grid["cells"], strict=True):
        assert cell["baseline"] == session.ask(image, ASKED[2], max_new_tokens=16)
        assert cell["steered"] == session.ask(image, ASKED[2], recipe, max_new_tokens=16)
    assert counterfactual.reopen(bench, desk)["cells"] == grid["cells"]


def test_stop_ends_asking(bench: Workbench) -> None:
    desk = Desk()
    counterfactual.mark(bench, desk, BOX, PICTURE, "Box", False)
    steps = counterfactual.ask(bench, desk, *ASKED)
    next(steps)
    counterfactual.halt(bench, desk)
    with pytest.raises(Stopped):
        next(steps)
    assert bench.residents("tiny-llava").lock.acquire(timeout=1)  # the turn was given back
    bench.residents("tiny-llava").lock.release()
