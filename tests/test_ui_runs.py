"""Saved runs: as files, as JSON that is edited, as Python and commands; shipped ones; stories; all without a server."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from vlmsteer.errors import InputError
from vlmsteer_ui import asking, figures, recording, stories
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.runs import Run, Runs
from vlmsteer_ui.tabs import record
from vlmsteer_ui.workbench import Workbench

PANEL = {"vectors": ["color to pixels"], "strength": 1.0, "first": 0, "last": 7, "apply": [], "random": False}


@pytest.fixture(scope="module")
def run(bench: Workbench) -> Run:
    """Asked what is usual, steered to the pixels."""
    image = figures.picture("blue_strawberry")
    asked = Asked.of("tiny-llava", image, stories.MOST, "red", "blue", *PANEL.values())
    *_, found = asking.answers(bench, Desk(), asked)
    return found


def same(one: Image.Image | None, other: Image.Image | None) -> bool:
    return one is not None and other is not None and ImageChops.difference(one, other).getbbox() is None


def test_a_run_is_saved_whole_under_what_it_holds(run: Run, tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    id = runs.save(run)
    again = runs.open(id)
    assert again.as_dict() == json.loads(json.dumps(run.as_dict()))
    assert same(again.image, run.image)
    assert runs.save(again) == id and runs.ids()[0] == id
    again.steered += "!"
    assert runs.save(again) != id
    assert not list(tmp_path.glob(".*"))


def test_one_file_holds_a_run_and_its_image(run: Run) -> None:
    again = recording.read_whole(recording.whole(run))
    assert again.as_dict() == json.loads(json.dumps(run.as_dict()))
    assert same(again.image, run.image)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99}, {"question": 3}, {"tokens": {"baseline": "x"}}, {"chances": {"prior": ["<b>"]}},
        {"seconds": {"baseline": None}}, {"layers": -1}, {"layers": True}, {"panel": []}, {"recipe": 1}, {"found": []},
        {"image_png": "no base64"}, {"image_png": "aGVsbG8="}, {"panel": {"strength": "strong"}},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_a_sentence(run: Run, change: dict[str, Any]) -> None:
    values = {**json.loads(recording.whole(run)), **change}
    with pytest.raises(InputError, match=r"\.$"):
        recording.read_whole(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "nothing", "{", "NaN", '{"version": NaN}', "[" * 100_000])
def test_what_is_no_run_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="run"):
        recording.read_whole(text)


@pytest.mark.parametrize("id", ["", "..", "../saved", "/etc/passwd", "a" * 500, None, 3, ["x"], "no-such-run", "A\n"])
def test_no_id_leads_out_of_the_folder(id: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no saved run"):
        Runs(tmp_path).open(id)


def test_edited_json_becomes_what_is_asked(bench: Workbench) -> None:
    text = recording.spec("tiny-llava", "What is this?", "red", "", *PANEL.values())
    asked = recording.read_spec(text, bench)
    assert (asked.model, asked.question, asked.prior, asked.pixel) == ("tiny-llava", "What is this?", "red", "")
    assert asked.panel.vectors == ("color to pixels",) and asked.panel.last == 7
    *controls, said = record.edited(bench, Desk(), text)
    assert controls[:4] == ["tiny-llava", "What is this?", "red", ""] and said.startswith("Taken.")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "gpt"}, "no model 'gpt'"), ({"quesion": "x"}, "did you mean"), ({"recipe": []}, "object"),
        ({"recipe": {"strenght": 1}}, "did you mean"), ({"recipe": {"strength": 1e9}}, "strength lies"),
        ({"recipe": {"vectors": ["../x"]}}, "no vector"), ({"question": ""}, "question first"),
        ({"recipe": {"first": 5, "last": 2}}, "no range"), ({"prior": ["red"]}, "question first"),
    ],
)  # fmt: skip
def test_a_bad_edit_changes_nothing_and_says_why(bench: Workbench, change: dict[str, Any], says: str) -> None:
    values = {"model": "tiny-llava", "question": "What is this?", "prior": "", "pixel": "", "recipe": {}, **change}
    *controls, said = record.edited(bench, Desk(), json.dumps(values))
    assert all(isinstance(one, dict) and one.get("__type__") == "update" for one in controls)
    assert said.startswith("Not taken") and says in said


def test_the_python_of_a_run_gives_its_answers(run: Run, bench: Workbench, tmp_path: Path) -> None:
    assert run.image is not None
    run.image.save(tmp_path / "image.png")
    session = bench.residents(run.model).session
    recipe = Asked.again(run).panel.recipe(bench.vectors, session)
    assert recipe is not None
    recipe.save(tmp_path / "recipe.safetensors")
    code = f"import os, sys; sys.path[:0] = {sys.path!r}; os.chdir({str(tmp_path)!r})\n" + recording.python(run)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [run.baseline, run.steered]


def test_a_command_quotes_whatever_the_question_holds() -> None:
    run = Run("tiny-llava", "--help; rm -rf ~ 'x' \"y\" $(z)", Image.new("RGB", (4, 4)), recipe={"hash": "0"})
    words = shlex.split(recording.command(run))
    assert words[-3:] == ["--", "image.png", run.question] and "recipe.safetensors" in words


def test_two_runs_are_compared_row_by_row(run: Run) -> None:
    other = Run.from_dict({**run.as_dict(), "steered": "green"}, run.image)
    rows = {row["name"]: row for row in recording.compared(run, other)["rows"]}
    assert rows["Steered"] == {"name": "Steered", "left": run.steered, "right": "green", "differs": True}
    assert [name for name, row in rows.items() if row["differs"]] == ["Steered"]


def test_a_link_opens_each_shipped_run_with_no_model(tmp_path: Path) -> None:
    bench = Workbench(["tiny-llava"], tmp_path)
    ids = bench.runs.ids()
    assert {bench.runs.open(id).story for id in ids} == {story.title for story in stories.STORIES}
    for id in ids:
        desk = Desk()
        values = record.opened(bench, desk, id)
        assert desk.run.id == id and values[2] == desk.run.question
        assert record.redrawn(bench, desk)[5]["id"] == id
    assert bench.residents.loaded() == []


@pytest.mark.parametrize(
    "story", [one for one in stories.STORIES if one.model == "tiny-llava"], ids=lambda one: one.title
)
def test_a_shipped_run_is_what_the_model_answers_today(bench: Workbench, story: stories.Story) -> None:
    (told,) = bench.runs.told(story.title)
    saved = bench.runs.open(told["id"])
    *_, run = asking.answers(bench, Desk(), Asked.again(saved))
    assert (run.baseline, run.steered, run.random) == (saved.baseline, saved.steered, saved.random)
    assert run.steered != run.baseline == run.random


def test_a_story_says_what_its_steps_find(bench: Workbench) -> None:
    """The steps are worth telling: what they ask changes the answer as they say."""

    def answers(story: stories.Story, step: int) -> Run:
        *_, run = asking.answers(bench, Desk(), story.asked(story.steps[step]))
        return run

    berry, lone, _ = stories.STORIES
    assert answers(berry, 0).baseline == "blue" and answers(berry, 1).baseline == "red"
    assert answers(berry, 2).steered == "blue" and answers(berry, 3).steered == "red"
    assert "flamingo" in answers(lone, 0).baseline and "flamingo" not in answers(lone, 1).steered
    assert [answers(lone, step).steered for step in (2, 3, 4)] == ["Yes", "No", "Yes"]
