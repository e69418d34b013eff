"""Every command as a user types it: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from vlmsteer import cli
from vlmsteer.bench.pairs import drawn_pairs

MAIN = [sys.executable, "-c", "from vlmsteer.cli import main; main()"]
ROOT = Path(__file__).parents[1]
THIS, MOST = "What color is this strawberry?", "What color are most strawberries?"


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = f"{ROOT}{os.pathsep}{ROOT / 'counterfacts'}"
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run([*MAIN, *map(str, arguments)], capture_output=True, text=True, env=env, cwd=cwd, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a counterfactual strawberry, a recipe, and several files that are not what they seem."""
    path = tmp_path_factory.mktemp("cli")
    pair = next(p for p in drawn_pairs("color", "test", 200) if (p.object, p.pixel) == ("strawberry", "blue"))
    pair.image("counterfactual").save(path / "blue.png")
    done = run("pvp", "learn", path / "pixels.safetensors", "--pairs", 40, "--layers", "1", "--strength", "1.5")
    assert done.returncode == 0, done.stderr
    (path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (path / "noise.safetensors").write_bytes(os.urandom(500))
    (path / "cut.safetensors").write_bytes((path / "pixels.safetensors").read_bytes()[:-100])
    (path / "cut.png").write_bytes((path / "blue.png").read_bytes()[:400])
    (path / "empty.png").touch()
    Image.new("1", (20000, 20000)).save(path / "huge.png")
    return path


def test_ask_plain_and_steered(folder):
    done = run("ask", folder / "blue.png", THIS, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == "blue"
    done = run("ask", folder / "blue.png", MOST, "--recipe", folder / "pixels.safetensors")
    assert done.returncode == 0
    assert done.stdout.startswith("baseline  red\nsteered   ")


def test_lens(folder):
    done = run("lens", folder / "blue.png", THIS, "--prior", "red", "--pixel", "blue", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["prior"]) == len(result["pixel"]) == len(result["words"])
    assert result["pixel"][-1] > 0.9
    table = run("lens", folder / "blue.png", "What color is this strawberry?")
    assert table.returncode == 0
    assert "ASSISTANT" in table.stdout or ":" in table.stdout


def test_models(folder):
    rows = json.loads(run("models", "--json").stdout)
    assert ["tiny-llava"] in [row["bundled"] for row in rows]


def test_options_before_a_command_say_how_a_model_is_loaded(folder):
    done = run("--dtype", "bfloat16", "--device-map", "cpu", "ask", folder / "blue.png", THIS)
    assert done.returncode == 0 and done.stdout.strip() == "blue", done.stderr
    for options, complaint in (
        (("--dtype", "int3"), "int3"),
        (("--quantization", "3bit"), "3bit"),
        (("--offload-folder", str(folder)), "device_map"),
    ):
        done = run(*options, "ask", folder / "blue.png", THIS)
        assert done.returncode == 2 and complaint in done.stderr and "Traceback" not in done.stderr


def test_pvp_test(folder):
    done = run("pvp", "test", folder / "pixels.safetensors", "--n", 30, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= {"steered", "random"}
    assert result["steered"]["n"] > 20


def test_world_sheet(folder):
    done = run("world", "sheet", "--out", folder / "world.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(folder / "world.png").width >= 800


def main_in_process(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the same entry point, without the seconds that a new interpreter takes to import torch."""
    monkeypatch.setattr(sys, "argv", ["vlmsteer", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ask", "blue.png", ""], "question is empty"),
        (["ask", "blue.png", "a <image> b"], "stands for the image"),
        (["ask", "blue.png", "what " * 600], "Shorten the question"),
        (["ask", "missing.png", "What is this?"], "missing.png"),
        (["ask", "cut.png", "What is this?"], "truncated"),
        (["ask", "empty.png", "What is this?"], "empty"),
        (["ask", "huge.png", "What is this?"], "50,000,000 pixels"),
        (["ask", "blue.png", "What is this?", "--model", "tiny-lava"], "tiny-llava"),
        (["ask", "blue.png", "What is this?", "--model", "."], "config.json"),
        (["ask", "blue.png", "What is this?", "--recipe", "pickle.safetensors"], "pickles are never opened"),
        (["ask", "blue.png", "What is this?", "--recipe", "noise.safetensors"], "not a readable safetensors file"),
        (["ask", "blue.png", "What is this?", "--recipe", "cut.safetensors"], "not a readable safetensors file"),
        (["ask", "blue.png", "What is this?", "--recipe", "none.safetensors"], "no recipe file"),
        (["ask", "blue.png", "What is this?", "--recipe", "pixels.safetensors", "--strength", "nan"], "finite"),
        (["lens", "blue.png", "What is this?", "--prior", "red"], "both --prior and --pixel"),
        (["pvp", "learn", "o.safetensors", "--layers", "99", "--strength", "1", "--pairs", "4"], "no vector for layer"),
        (["pvp", "learn", "out.safetensors", "--layers", "x"], "Layers are written"),
        (["pvp", "learn", "out.bin"], ".safetensors"),
        (["pvp", "learn", "nowhere/out.safetensors"], "folder that exists"),
        (["pvp", "learn", "out.safetensors", "--direction", "to_pixel"], "to_pixels"),
        (["pvp", "test", "pixels.safetensors", "--attribute", "colour"], "attribute"),
        (["pvp", "test", "pixels.safetensors", "--data", "blue.png"], "blue.png"),
        (["train", "tiny-lava"], "tiny-llava"),
    ],
)
def test_what_a_user_gets_wrong_ends_with_a_sentence_and_code_2(folder, arguments, sentence, monkeypatch, capsys):
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    assert main_in_process(arguments, monkeypatch) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert sorted(folder.iterdir()) == before


def test_a_new_process_ends_the_same_way(folder):
    done = run("ask", "huge.png", "What is this?", cwd=folder)
    assert done.returncode == 2 and not done.stdout
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 4
