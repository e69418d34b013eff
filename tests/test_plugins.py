"""What the plug-ins share, and a steered model in VLMEvalKit: called as its runner does, and by the runner itself."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmsteer
from vlmsteer.bench.drawn_examples import drawn_examples
from vlmsteer.errors import InputError, RecipeError
from vlmsteer.plugins.steered import chosen
from vlmsteer.plugins.vlmevalkit import SteeredVLM
from vlmsteer.plugins.writing import LONGEST, Writing, writing
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

ROOT = Path(__file__).parents[1]
QUESTIONS = ("Is there a dog in the image?", "What color is it?")


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.set_num_threads(1)
    return vlmsteer.load("tiny-llava", check=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for number, example in enumerate(drawn_examples("captions", "test", 2)):
        example.image.save(folder / f"{number}.png")  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return [str(folder / f"{number}.png") for number in range(2)]


@pytest.fixture(scope="module")
def push(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file that changes what tiny-llava says."""
    vector = torch.randn(tiny.model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(9))
    path = tmp_path_factory.mktemp("recipe") / "push.safetensors"
    edit = Edit(Vectors("text", "block_out", {3: vector, 4: vector}), strength=6.0, positions="all")
    Recipe((edit,), tiny.fingerprint).save(path)
    return path


def test_a_recipe_is_the_one_that_is_named(push: Path) -> None:
    recipe = Recipe.load(push)
    assert chosen(None) is None
    assert chosen(push).hash == recipe.hash == chosen(str(push), recipe.hash, hash_needed=True).hash  # pyright: ignore[reportOptionalMemberAccess]
    assert chosen(push, recipe.hash, 0.5).hash == (0.5 * recipe).hash  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(RecipeError, match=f"write recipe_hash={recipe.hash}"):
        chosen(push, hash_needed=True)
    with pytest.raises(RecipeError, match=f"recipe_hash=beef names: its hash is {recipe.hash}"):
        chosen(recipe, "beef")
    with pytest.raises(RecipeError, match=f"its hash is {recipe.hash}"):
        chosen(push, (0.5 * recipe).hash, 0.5)  # the file's own hash is meant
    for stray in ((recipe.hash, None), (None, 0.5)):
        with pytest.raises(RecipeError, match="without a recipe"):
            chosen(None, *stray)


def test_writing() -> None:
    ignored: list[str] = []
    default = writing({"until": ["\n\n"]}, ignored.append)
    assert default == Writing(LONGEST, (), ())  # the harness's own stop would cut captions
    greedy = {"max_new_tokens": 5, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    assert writing(greedy, ignored.append) == Writing(5, (), ())
    assert writing({"temperature": 0.7, "do_sample": False}, ignored.append).generation == ()
    sampled = writing({"temperature": 0.7, "top_p": 0.9, "until": "."}, ignored.append)
    assert sampled.stops == (".",)
    assert dict(sampled.generation) == {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert dict(writing({"do_sample": True}, ignored.append).generation) == {"do_sample": True}
    assert ignored == []
    writing({"image_aspect_ratio": "pad", "max_new_tokens": None}, ignored.append)
    assert ignored == ["image_aspect_ratio"]
    with pytest.raises(InputError, match="several answers"):
        writing({"num_return_sequences": 2}, ignored.append)
    with pytest.raises(InputError, match="are numbers"):
        writing({"max_new_tokens": "many"}, ignored.append)


def test_a_message_is_answered_as_a_session_answers(tiny: Any, pictures: list[str], push: Path) -> None:
    recipe = 0.5 * Recipe.load(push)
    model = SteeredVLM("tiny-llava", recipe, max_new_tokens=8)
    plain, steered = [], []
    for picture in pictures:
        for question in QUESTIONS:
            message = [{"type": "image", "value": picture}, {"type": "text", "value": question}]
            steered.append(tiny.ask(picture, question, recipe, 8))
            plain.append(tiny.ask(picture, question, None, 8))
            assert model.generate(message, dataset="POPE") == model.generate_inner(message) == steered[-1]
    assert steered != plain
    pieces = [{"type": "text", "value": question} for question in QUESTIONS]
    message = [pieces[0], {"type": "image", "value": pictures[0]}, pieces[1]]
    assert model.generate(message) == tiny.ask(pictures[0], "\n".join(QUESTIONS), recipe, 8)
    assert model.generate(QUESTIONS[1]) == tiny.ask(None, QUESTIONS[1], recipe, 8)
    for shown, said in ((["image", "image"], "A message of POPE shows 2 images"), (["video"], "shows video")):
        message = [*({"type": kind, "value": pictures[0]} for kind in shown), {"type": "text", "value": "Why?"}]
        with pytest.raises(InputError, match=said):
            model.generate(message, "POPE")


PROGRAM = """
import sys, json
from vlmsteer.errors import InputError
from vlmsteer.plugins.vlmevalkit import register
from vlmeval.config import supported_VLM
from vlmeval.dataset import build_dataset
from vlmeval.inference import infer_data_job
from vlmeval.smp import load

name, recipe, folder = sys.argv[1:]
assert register(name, "tiny-llava", recipe=recipe, max_new_tokens=8) == name in supported_VLM
register(name, "tiny-llava", recipe=recipe, max_new_tokens=8)  # once more is no harm
taken = next(iter(supported_VLM))
try:
    register(taken, "tiny-llava")
except InputError as error:
    assert taken in str(error)
else:
    raise SystemExit("a model of VLMEvalKit was replaced")
dataset = build_dataset("drawn")
infer_data_job(name, folder, name, dataset)
print(json.dumps(load(f"{folder}/{name}_drawn.xlsx")["prediction"].tolist()))
"""


@pytest.mark.skipif(find_spec("vlmeval") is None, reason="VLMEvalKit is not installed: pip install ms-vlmeval")
def test_vlmevalkit_runs_a_registered_model(tiny: Any, pictures: list[str], push: Path, tmp_path: Path) -> None:
    """In a process of its own: importing VLMEvalKit turns gradients off for good."""
    lines, expected, plain = ["index\timage\tquestion\tanswer"], [], []
    for picture in pictures:
        for question in QUESTIONS:
            image = base64.b64encode(Path(picture).read_bytes()).decode()
            lines.append(f"{len(expected)}\t{image}\t{question}\tno")
            expected.append(tiny.ask(picture, question, Recipe.load(push), 8))
            plain.append(tiny.ask(picture, question, None, 8))
    assert expected != plain
    (tmp_path / "drawn.tsv").write_text("\n".join(lines) + "\n")
    paths = [str(ROOT), str(ROOT / "counterfacts"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"LMUData": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "pushed", str(push), str(tmp_path)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected
