"""`vlmsteer robot` as a user types it: neurons, rollouts with video and export, sweeps, stops and missing parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmsteer import cli
from vlmsteer.recipe import Recipe
from vlmsteer_robotics import report, tasks, viewers

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Main:
    """Runs a command in an empty folder: its exit code, what it printed, and its complaints."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["vlmsteer", "robot", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err.replace("\n", " ")

    return run


@pytest.fixture
def model(folders: Any) -> Path:
    return folders["openvla"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reaching ends after a dozen steps, and videos are small."""
    monkeypatch.setitem(tasks.VERBS, "reach", 12)
    monkeypatch.setattr(report, "SIDE", 90)


@pytest.mark.parametrize(
    ("options", "operation", "layers"),
    [
        (["--words", "red,blue", "--by", "top", "--size", 4], "clamp", None),
        (["--words", "red", "--against", "blue", "--norm", "--operation", "scale", "--layers", "1-2"], "scale", {1, 2}),
        (["--words", "red", "--method", "kmeans", "--clusters", 9, "--operation", "add"], "add", None),
        (["--words", "slowly", "--method", "residual", "--pairs", 3, "--layers", "0,2"], "add", {0, 2}),
        (
            ["--words", "high", "--against", "low", "--method", "residual", "--pairs", 2, "--read", "action"],
            "add",
            {0, 1},
        ),
    ],
)
def test_neurons(main: Main, model: Path, tmp_path: Path, options: list[Any], operation: str, layers: Any) -> None:
    code, printed, complaint = main("neurons", "-m", model, "--out", "made.safetensors", *options, "--json")
    assert code == 0, complaint
    told = json.loads(printed)
    recipe = Recipe.load(tmp_path / "made.safetensors")
    (edit,) = recipe.edits
    assert told["recipe"] == recipe.hash and edit.operation == operation
    assert layers is None or set(edit.vectors.layers) <= layers
    assert recipe.about["words"] == options[1].split(",")
    if "residual" in options:
        plain, changed = (recipe.about["prompts"][name] for name in ("plain", "changed"))
        assert changed == (f"{plain} slowly" if "slowly" in options else plain.replace("staying low", "staying high"))
        assert plain != changed
    else:
        assert 0 < len(told["neurons"]) <= 10 and len(told["neurons"][0]["tokens"]) == 10


def test_a_rollout_makes_a_report_a_video_and_a_data_set(main: Main, model: Path, tmp_path: Path, short: None) -> None:
    main("neurons", "-m", model, "--out", "red.safetensors", "--words", "red", "--value", 8)
    command = ["rollout", "-m", model, "--recipe", "red.safetensors", "--episodes", 1, "--renderer", "rays"]
    code, printed, complaint = main(*command, "--random", 1, "--export", "data/set", "--hold-height", 0.2)
    assert code == 0, complaint
    place = tmp_path / "runs" / "robot" / f"reach-red-test-{model.name}-red"
    found = json.loads((place / "results.json").read_text())
    held = "red, height held at 0.2 m"
    assert list(found["arms"]) == ["none", "red", "red, random 1", held]
    assert found["arms"]["red"]["recipe"] == Recipe.load(tmp_path / "red.safetensors").hash
    assert [arm["n"] for arm in found["arms"].values()] == [1] * 4
    page = (place / "report.md").read_text()
    assert "![effects](effects.png)" in page and "| ↳ 1 random sets |" in printed and held in page
    with Image.open(place / "pair.gif") as moving:
        assert moving.size == (180, 118) and moving.n_frames > 20  # pyright: ignore[reportAttributeAccessIssue]
    assert (place / "pair.mp4").stat().st_size > 1000
    rows = [json.loads(line) for line in (place / "episodes.jsonl").read_text().splitlines()]
    tables = [pq.read_table(path) for path in sorted((tmp_path / "data" / "set" / "data").rglob("*.parquet"))]
    assert [len(table) for table in tables] == [len(row["actions"]) for row in rows]
    before = (place / "episodes.jsonl").read_bytes()
    code, printed, complaint = main(*command, "--export", "data/set", "--random", 1)
    assert code == 2 and "exists" in complaint
    code, printed, _ = main(*command, "--random", 1, "--json")
    assert code == 0 and json.loads(printed)["arms"]["red"] == found["arms"]["red"]
    assert (place / "episodes.jsonl").read_bytes() == before  # nothing was run again


def test_a_sweep_of_the_experts_words(main: Main, tmp_path: Path) -> None:
    code, printed, complaint = main(
        "rollout", "--model", "expert", "--task", "push", "--episodes", 3, "--prompt", "fast"
    )
    assert code == 0, complaint
    assert "| said: fast |" in printed and not list(tmp_path.rglob("*.gif"))


def test_sweep(main: Main, model: Path, tmp_path: Path, short: None) -> None:
    main("neurons", "-m", model, "--out", "red.safetensors", "--words", "red", "--value", 8)
    options = [
        "--recipe",
        "red.safetensors",
        "--strength",
        "0.5",
        "1",
        "--random",
        1,
        "--episodes",
        1,
        "--out",
        "swept",
    ]
    code, _, complaint = main("sweep", "-m", model, *options)
    assert code == 0, complaint
    found = json.loads((tmp_path / "swept" / "results.json").read_text())
    assert list(found["arms"]) == ["none", "red x0.5", "red x0.5, random 1", "red", "red, random 1"]


def test_what_is_refused(main: Main, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main("neurons", "-m", model, "--out", "red.safetensors", "--words", "red")
    steered = ["--recipe", "red.safetensors"]
    for options, sentence in (
        (["--task", "dance"], "no task 'dance'"), (["--split", "dev"], "split 'dev'"), (["--distractors", 7], "7"),
        (["--recipe", "none.safetensors"], "no recipe file"), (["--prompt", "gently", "-m", "expert"], "'gently'"),
        ([*steered, "-m", "expert"], "nothing inside"), (["--hold-speed", 0.02], "--recipe"),
        ([*steered, "--renderer", "oil"], "renderer 'oil'"), (["-m", "tiny-llava"], "not a policy"),
        (["-m", model, "--unnorm-key", "kitchen"], "no statistics"),
    ):  # fmt: skip
        code, _, complaint = main("rollout", *options)
        assert code == 2 and sentence in complaint, options
    monkeypatch.setattr(viewers, "LIBRARIES", {"egl": "mujoco.nowhere"})
    code, _, complaint = main("rollout", *steered, "--renderer", "egl")
    assert code == 2 and "does not work on this machine" in complaint
    for options, sentence in ((["--method", "hand"], "method 'hand'"), (["--out", "x.pt"], ".safetensors")):
        code, _, complaint = main("neurons", "-m", model, "--words", "red", *options)
        assert code == 2 and sentence in complaint, options


def started(arguments: list[str], folder: Path, code: str = "from vlmsteer.cli import main; main()") -> Any:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "robot", *arguments], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_stopped_by_hand_it_keeps_what_is_finished(tmp_path: Path) -> None:
    process = started(["rollout", "-m", "expert", "--episodes", "5000", "--out", "here"], tmp_path)
    path, deadline = tmp_path / "here" / "episodes.jsonl", time.monotonic() + 240
    while (not path.exists() or path.read_bytes().count(b"\n") < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Finished episodes are kept" in complaint and "Traceback" not in complaint
    assert all(json.loads(line)["error"] is None for line in path.read_text().splitlines())


def test_without_the_extra_there_is_a_sentence(tmp_path: Path) -> None:
    code = "import sys; sys.modules['mujoco'] = None\nfrom vlmsteer.cli import main\nmain()"
    process = started(["rollout"], tmp_path, code)
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 2 and "pip install 'vlmsteer[robotics]'" in complaint.replace("\n", " ")
    assert "Traceback" not in complaint


def test_a_picture_by_a_graphics_library_does_not_break_torch(tmp_path: Path) -> None:
    """Mesa's LLVM and Triton's in one process: the wrong order ends it."""
    code = (
        "from vlmsteer_robotics.robot import Robot\nfrom vlmsteer_robotics.viewers import viewer\n"
        "with viewer(Robot(1).model, 32): pass\nimport torch._dynamo\nprint('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == "alive", done.stderr
