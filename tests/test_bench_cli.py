"""`vlmsteer bench` as a user types it, on a bundled model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_worker import write
from PIL import Image
from program import Main, program

from vlmsteer.bench.ledger import rows_in
from vlmsteer.bench_cli import spread
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.registry import BENCHMARKS
from vlmsteer.vectors import Vectors

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the small benchmark, and a recipe."""
    folder = tmp_path_factory.mktemp("bench")
    write(folder / "seen", 3)
    config = json.loads((ROOT / "vlmsteer/bundled/tiny-llava/config.json").read_text())["text_config"]
    vector = torch.randn(config["hidden_size"], generator=torch.Generator().manual_seed(55))
    Recipe((Edit(Vectors("text", "block_out", {3: vector})),)).save(folder / "push.safetensors")
    return folder


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Main:
    """The program, which knows the small benchmark."""
    monkeypatch.setitem(BENCHMARKS._entries, "seen", "bench_worker:BENCHMARK")
    monkeypatch.chdir(tmp_path)
    return program(monkeypatch, capsys)


def test_several_numbers_after_one_flag() -> None:
    assert spread(["pope", "--strength", "0", ".5", "-1", "--limit", "3"]) == [
        "pope", "--strength", "0", "--strength", ".5", "--strength", "-1", "--limit", "3",
    ]  # fmt: skip
    assert spread(["--limit", "3", "4", "--strength", "1", "pope"]) == ["--limit", "3", "4", "--strength", "1", "pope"]


def test_benchmarks_recipes_strengths_and_controls_in_one_table(main: Main, data: Path) -> None:
    command = (
        "bench", "seen", "--data", data, "--recipe", "none", "--recipe", data / "push.safetensors",
        "--strength", "0", ".5", "1", "--set", "split=yes", "--scorer", "seen@second", "--limit", 9,
    )  # fmt: skip
    code, printed, complaints = main(*command)
    assert code == 0, complaints
    assert "push x0.5" in printed and "random" in printed
    (folder,) = Path("runs/bench").iterdir()
    assert folder.name.startswith("tiny-llava-seen-")
    about = json.loads((folder / "run.json").read_text())
    names = ["none", "push x0", "push x0.5", "push x0.5, random 1", "push", "push, random 1"]
    assert [arm["name"] for arm in about["arms"]] == names
    assert about["tasks"][0]["options"] == {"split": "yes", "limit": 9} and about["tasks"][0]["items"] == 8
    rows = rows_in(folder / "samples.jsonl")
    assert [row["answer"] for row in rows[:8]] == [row["answer"] for row in rows[8:16]]  # strength 0 is the baseline
    assert [row["logprobs"] for row in rows[:8]] == [row["logprobs"] for row in rows[8:16]]
    written = {name: (folder / name).read_bytes() for name in ("run.json", "samples.jsonl")}
    code, printed, _ = main(*command, "--json")
    assert code == 0 and json.loads(printed)["answers"] == 48 and json.loads(printed)["errors"] == 0
    assert {name: (folder / name).read_bytes() for name in written} == written


def test_two_runs_are_compared(main: Main, data: Path) -> None:
    command = ("bench", "seen", "--data", data, "--set", "split=yes", "--controls", 0)
    assert main(*command, "--out", "a")[0] == 0
    assert main(*command, "--recipe", data / "push.safetensors", "--out", "b")[0] == 0
    code, printed, complaints = main("bench", "compare", "a", "b")
    assert code == 0 and "none" in printed and "push" not in printed, complaints
    code, printed, _ = main("bench", "compare", "a", "b", "--arms", "none", "push", "--scorer", "seen@second", "--json")
    assert code == 0 and "seen" in json.loads(printed)["tasks"]


def test_another_run_in_the_same_folder_is_refused(main: Main, data: Path) -> None:
    command = ("bench", "run", "seen", "--data", data, "--set", "seen.split=yes", "--limit", 4, "--out", "here")
    assert main(*command)[0] == 0
    code, _, complaints = main(*command, "--max-new-tokens", 2)
    assert code == 2 and "holds another run: its decoding.max_new_tokens.seen is 4, here 2" in complaints


def test_errors_are_said_and_can_stop_the_run(main: Main, tmp_path: Path) -> None:
    data = write(tmp_path / "data", 2)
    (data / "1.png").write_bytes(b"no picture")
    command = ("bench", "seen", "--data", data, "--set", "split=yes", "--out", "out")
    code, _, complaints = main(*command)
    assert code == 0 and "4 questions of seen under 'none' had an error" in complaints and "1.png" in complaints
    code, _, complaints = main(*command, "--fail-on-error")
    assert code == 2 and "1.png" in complaints and "--retry-errors" in complaints


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["poppe"], "No benchmark is called 'poppe'; did you mean 'pope'?"),
        (["seen", "--scorer", "seen@third"], "seen has no scorer 'third'; possible: first, second"),
        (["seen", "--scorer", "third"], "seen has no scorer 'third'; possible: first, second"),
        (["seen", "pope", "--scorer", "first"], "A scorer is written BENCHMARK@NAME, not 'first'"),
        (["seen", "--scorer", "pope@opera"], "A scorer is written BENCHMARK@NAME, not 'pope@opera'"),
        (["seen", "--set", "splitt=yes"], "seen has no option 'splitt'; did you mean 'split'?"),
        (["seen", "--set", "pope.split=random"], "Options are written BENCHMARK.NAME=VALUE"),
        (["seen", "--batch-size", "many"], "A batch size is a number of questions or auto, not 'many'."),
        (["seen", "--data", "nowhere"], "There is no folder 'nowhere'"),
        (["seen", "--recipe", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    main: Main, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    def load(model: str) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vlmsteer.bench_cli.load", load)
    code, _, complaints = main("bench", *arguments)
    assert code == 2 and sentence in complaints


@pytest.mark.skipif(find_spec("en_core_web_lg") is not None, reason="what is missing here is installed: en_core_web_lg")
def test_a_scorer_that_lacks_what_it_needs_is_refused_before_a_model_is_loaded(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "AMBER_1.jpg")
    for name, value in (
        ("query_generative.json", [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}]),
        ("annotations.json", [{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]}]),
        ("relation.json", {"dog": [], "cat": []}),
    ):
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "safe_words.txt").touch()
    monkeypatch.setattr("vlmsteer.bench_cli.load", lambda model: pytest.fail("a model was loaded"))
    code, _, complaints = main("bench", "amber-g", "--data", tmp_path, "--scorer", "official")
    assert code == 2 and "the scorer 'nosim' does without" in complaints


def test_a_benchmark_without_drawn_files_needs_its_own(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vlmsteer.bench.drawn_files.drawn_folder", lambda: tmp_path)
    code, _, complaints = main("bench", "seen")
    assert code == 2 and "There are no drawn files for seen; give the folder" in complaints


def test_the_list_names_every_benchmark_with_scorers_and_options(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BENCHMARKS, "_entries", {"seen": "bench_worker:BENCHMARK"})
    code, printed, _ = main("bench", "list", "--json")
    (row,) = json.loads(printed)
    assert code == 0 and row["scorers"] == {"first": "these tests", "second": "these tests"}
    assert row["options"] == {"split": "all", "captions": True}


@pytest.mark.slow
def test_two_processes_of_accelerate_and_kills_end_as_one_process(data: Path, tmp_path: Path) -> None:
    worker = [str(ROOT / "tests/bench_worker.py"), "bench", "seen", "--data", str(data), "--recipe"]
    worker += [str(data / "push.safetensors"), "--batch-size", "4", "--out"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(
        map(str, (ROOT, ROOT / "counterfacts", ROOT / "tests"))
    )}  # fmt: skip
    subprocess.run([*launch, *worker, str(tmp_path / "two")], check=True, env=environment)
    alone = [sys.executable, *worker, str(tmp_path / "one")]
    process = subprocess.Popen(alone, env=environment)
    while not (tmp_path / "one" / "samples.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(alone, check=True, env=environment)
    one, two = (rows_in(tmp_path / name / "samples.jsonl") for name in ("one", "two"))
    assert len(one) == 3 * 19
    for row in (*one, *two):
        del row["seconds"]
    assert one == two
    assert (tmp_path / "one" / "metrics.json").exists() and not list((tmp_path / "two").glob("samples-*"))
