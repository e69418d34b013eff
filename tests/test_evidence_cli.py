"""`vlmsteer evidence` and `pointing` as a user types them, and how well each kind of evidence points."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from engine_recipes import recipe
from PIL import Image
from program import Main, program

import vlmsteer
from vlmsteer.bench.pointing import play, trials
from vlmsteer.errors import InputError
from vlmsteer.training.splits import TRAIN_STYLES
from vlmsteer_counterfacts.draw import portrait

QUESTION = "What color is this strawberry?"


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    return program(monkeypatch, capsys)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return vlmsteer.load("tiny-llava")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Path:
    """A picture of a strawberry, and a recipe that changes the answer."""
    path = tmp_path_factory.mktemp("evidence")
    portrait("strawberry", "red", random.Random(0), TRAIN_STYLES[0]).render(168).image.save(path / "strawberry.png")
    strong = recipe(tiny, "text.0-7.block_out", size=20.0, positions="all")
    type(strong)(strong.edits, model=tiny.fingerprint).save(path / "steer.safetensors")
    return path


def test_a_map_is_painted_and_told(main: Main, folder: Path, tiny: Any) -> None:
    picture, painted = folder / "strawberry.png", folder / "map.png"
    code, out, _ = main("evidence", picture, QUESTION, "--method", "attention", "--token", "red", "--out", painted)
    assert code == 0 and "red" in out and "attention to the image" in out and "map.png" in out.replace("\n", "")
    assert Image.open(painted).size == (168, 168)
    assert Image.open(painted).tobytes() != Image.open(picture).tobytes()
    code, out, _ = main("evidence", picture, QUESTION, "--recipe", folder / "steer.safetensors", "--json")
    told = json.loads(out)
    assert told["answer"] == tiny.ask(str(picture), QUESTION, vlmsteer.Recipe.load(folder / "steer.safetensors"))
    assert told["answer"] != "red" and len(told["maps"]) == len(told["tokens"]) == len(told["peaks"])
    assert len(told["boxes"]) == len(told["maps"][0]) == 49 and told["share"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--method", "saliency"), "no evidence by 'saliency'"),
        (("--token", "blue"), "no word 'blue'"),
        (("--token", "7"), "no token 7"),
        (("--out", "map.jpg"), "must be a .png file"),
        (("--colormap", "magna", "--out", "map.png"), "did you mean 'magma'"),
        (("--answer", " "), "answer is empty"),
        (("--recipe", "none.safetensors"), "none.safetensors"),
        (("--model", "tiny-instructblip"), "no cells of a grid"),
    ],
)
def test_complaints(
    main: Main, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(folder)
    code, _, err = main("evidence", "strawberry.png", QUESTION, *arguments)
    assert code == 2 and complaint in err and not (folder / "map.jpg").exists()


def test_pointing(main: Main, tiny: Any) -> None:
    """Hiding and attention find the object that the color is of; n is small, so the bounds are far below."""
    given, asked = trials(tiny, 12)
    assert len(given) == 12 <= asked
    hidden, attended = play(tiny, given, "occlusion"), play(tiny, given, "attention")
    assert 0.05 < hidden.chance < 0.25
    assert hidden.hit.rate >= 0.6 > 0.3 >= hidden.other.rate
    assert attended.hit.rate + attended.other.rate >= 0.6  # it looks at objects
    with pytest.raises(InputError, match="are right"):
        trials(tiny, 2, recipe=recipe(tiny, "text.6.block_out", size=80.0))
    code, out, _ = main("pointing", "--n", "2", "--method", "activation", "--json")
    told = json.loads(out)
    assert code == 0 and told["activation"]["hit"]["n"] == 2 and "occlusion" not in told
    assert main("pointing", "--method", "saliency")[0] == 2
