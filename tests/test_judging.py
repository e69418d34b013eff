"""Benchmarks that need a judge, as a user runs them: a real endpoint, kills, refusals, saved verdicts, no judge."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import Reply, Server, said, serving
from program import Main, forked, program
from test_bench_hallusion import loaded as write_hallusion
from test_bench_hallusion import row as hallusion_row
from test_bench_mmhal import loaded as write_mmhal
from test_bench_mmhal import row as mmhal_row

from vlmsteer.bench.ledger import rows_in
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

ROOT = Path(__file__).parents[1]
QUESTIONS = 6
COMMAND = ("bench", "mmhal", "hallusionbench", "--max-new-tokens", 3, "--controls", 0, "--recipe", "push.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of both benchmarks, and a recipe that changes answers."""
    folder = tmp_path_factory.mktemp("judged")
    for name in ("mmhal", "hallusionbench"):
        (folder / name).mkdir()
    write_mmhal(folder / "mmhal", [mmhal_row(number) for number in range(QUESTIONS)])
    rows = [hallusion_row("VS", figure, question, 1) for figure in (0, 1, 2) for question in (0, 1)]
    write_hallusion(folder / "hallusionbench", rows)
    config = json.loads((ROOT / "vlmsteer/bundled/tiny-llava/config.json").read_text())["text_config"]
    vector = 3 * torch.randn(config["hidden_size"], generator=torch.Generator().manual_seed(5))
    Recipe((Edit(Vectors("text", "block_out", {3: vector})),)).save(folder / "push.safetensors")
    return folder


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path) -> Main:
    monkeypatch.chdir(data)
    return program(monkeypatch, capsys)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("vlmsteer.bench.judge.LONGEST_PAUSE", 0.3)
    with serving() as found:
        found.reply = opinion
        yield found


def opinion(number: int, body: dict[str, Any]) -> Reply:
    """A judge that rates a question by its number, finds the first question of a figure answered right, and so on."""
    text = body["messages"][0]["content"]
    asked = re.search(r"How many, (\d+)\?", text)
    if asked:
        return said(f"Hm.\nRating: {int(asked[1]) % 7}")
    if "Answer 1" in text:
        return said("same")
    return said("correct" if "Q0?" in text else "Incorrect.")


def asked(server: Server) -> list[str]:
    return [request["body"]["messages"][0]["content"] for request in server.requests]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())["tasks"]


def value(folder: Path, task: str, scorer: str, metric: str, arm: str = "none") -> float:
    return metrics(folder)[task]["scorers"][scorer]["arms"][arm]["values"][metric]["rate"]


def untimed(found: Any) -> Any:
    return json.loads(json.dumps(found), object_hook=lambda one: {k: v for k, v in one.items() if k != "seconds"})


def command(folder: Path, server: Server | None = None, *more: object) -> tuple[object, ...]:
    url = () if server is None else ("--judge", "gpt", "--judge-version", "0314", "--judge-url", server.url)
    return (*COMMAND, "--data", Path.cwd(), "--out", folder, *url, *more)


def test_without_a_judge_its_part_is_left_out_and_said(main: Main, tmp_path: Path) -> None:
    code, printed, complaints = main(*command(tmp_path / "run"))
    assert code == 0, complaints
    for scorers in ("official, strict, vti", "official"):
        assert (
            f"None of the 12 answers was judged, which {scorers} would need. The same command with --judge" in printed
        )
    found = metrics(tmp_path / "run")
    assert found["mmhal"]["judge"]["name"] is None and found["mmhal"]["judge"]["unjudged"] == {"none": 6, "push": 6}
    assert "rating" not in found["mmhal"]["scorers"]["official"]["metrics"]
    assert {"words", "empty"} <= set(found["mmhal"]["scorers"]["official"]["metrics"])
    assert "aAcc" in found["hallusionbench"]["scorers"]["strict"]["metrics"]
    assert "None of the 12 answers was judged" in (tmp_path / "run" / "report.html").read_text()
    assert "judge" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_bench_killed_while_judging_goes_on_and_is_scored_offline(main: Main, server: Server, tmp_path: Path) -> None:
    killed = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> Reply:
        if number == 3:
            return 429, {"error": "slow down"}, {"Retry-After": "0.2"}
        if number > 9:
            killed.wait(30)
        return opinion(number, body)

    server.reply = slow
    folder = tmp_path / "run"
    child = forked(lambda: main(*command(folder, server)))
    wait(lambda: len(server.requests) > 9)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    killed.set()
    samples = (folder / "samples.jsonl").read_bytes()
    assert len(rows_in(folder / "samples.jsonl")) == 24 and not (folder / "metrics.json").exists()
    saved = {row["prompt"] for row in verdicts(folder)}
    assert len(saved) >= 5
    before = len(server.requests)
    server.reply = opinion
    code, printed, complaints = main(*command(folder, server))
    assert code == 0, complaints
    assert (folder / "samples.jsonl").read_bytes() == samples  # the model was not asked again, nor what was judged
    assert not saved & set(asked(server)[before:])
    rows = verdicts(folder)
    assert len({row["key"] for row in rows}) == len(rows) == len({row["prompt"] for row in rows})
    assert {(row["judge"], row["version"]) for row in rows} == {("gpt", "0314")}

    assert printed.count("Judged by gpt, version 0314: all 12 answers.") == 2
    judge = json.loads((folder / "run.json").read_text())["judge"]
    assert (judge["name"], judge["version"], judge["url"]) == ("gpt", "0314", server.url)
    nobody = {"none": 0, "push": 0}
    assert judge["unjudged"] == {"mmhal": nobody, "hallusionbench": nobody}
    assert {task: one["judge"]["unjudged"] for task, one in metrics(folder).items()} == judge["unjudged"]
    assert value(folder, "mmhal", "official", "rating") == pytest.approx(sum(range(QUESTIONS)) / QUESTIONS)
    assert value(folder, "mmhal", "strict", "hallucination", "push") == pytest.approx(0.5)
    assert value(folder, "hallusionbench", "official", "aAcc") == 50
    # Wrong with a figure as without one, and the same: language's on the edited figure, and without a figure.
    assert value(folder, "hallusionbench", "official", "language") == 100
    assert list(metrics(folder)["hallusionbench"]["scorers"])[0] == "official"
    assert "Rating" not in printed and "rating" in printed and "Judged by gpt" in (folder / "report.html").read_text()

    first, done = untimed(metrics(folder)), len(server.requests)
    offline = ("--judge", "gpt", "--judge-version", "0314", "--verdicts", folder / "verdicts.jsonl")
    code, _, complaints = main(*command(tmp_path / "other"), *offline)
    assert code == 0 and untimed(metrics(tmp_path / "other")) == first, complaints
    assert {row["key"] for row in verdicts(tmp_path / "other")} == {row["key"] for row in rows}
    code, _, _ = main(*command(folder))  # no word of a judge: the folder knows what was said
    assert code == 0 and untimed(metrics(folder)) == first and len(server.requests) == done
    code, printed, _ = main("bench", "compare", folder, tmp_path / "other", "--scorer", "mmhal@official")
    assert code == 0 and "2.50 → 2.50" in printed
    code, _, complaints = main(*command(tmp_path / "third"), *offline[:2], *offline[4:])
    assert code == 2 and "no verdict of the judge 'gpt' (version ''), only of 'gpt' (version '0314')" in complaints
    assert not (tmp_path / "third" / "samples.jsonl").exists()


def test_a_judge_that_fails_half_way_keeps_what_was_given(main: Main, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    server.reply = lambda number, body: (401, {"error": "wrong key"}, {}) if number > 5 else opinion(number, body)
    code, printed, complaints = main(*command(folder, server), "--scorer", "mmhal@official")
    assert code == 2 and "answers 401" in complaints and "OPENAI_API_KEY, which is empty" in complaints
    assert "The answers and the verdicts given until then are kept, and scored above" in complaints
    kept = verdicts(folder)
    assert len(kept) == 5 and len(rows_in(folder / "samples.jsonl")) == 24
    missing = json.loads((folder / "run.json").read_text())["judge"]["unjudged"]
    judged = 24 - sum(sum(arms.values()) for arms in missing.values())
    assert 0 < judged < 24 and "of 12 answers have no verdict" in printed
    ratings = [int(row["verdict"][-1]) for row in kept if row["verdict"].startswith("Hm.")]
    found = metrics(folder)["mmhal"]["scorers"]["official"]["arms"]["none"]["values"]["rating"]
    assert found["n"] == len(ratings) and found["rate"] == pytest.approx(sum(ratings) / len(ratings))
    server.reply = lambda number, body: said(None)  # a verdict that is none
    code, _, complaints = main(*command(folder, server))
    assert code == 2 and "gave no verdict in 5 tries: it answers no chat completion" in complaints
    assert verdicts(folder) == kept
    server.reply = opinion
    before = len(server.requests)
    code, printed, complaints = main(*command(folder, server))
    assert code == 0 and "have no verdict" not in printed, complaints
    assert not {row["prompt"] for row in kept} & set(asked(server)[before:])


def test_only_the_first_of_several_processes_asks(main: Main, server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank)
        )
        code, _, complaints = main(*command(tmp_path / "run", server))
        assert code == 0, complaints

    children = [forked(lambda rank=rank: work(rank)) for rank in (0, 1)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(asked(server)) == len(set(asked(server))) == len(verdicts(tmp_path / "run"))
    assert value(tmp_path / "run", "mmhal", "official", "rating") == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--judge", "gpt"), "How is 'gpt' asked? Give its endpoint, --judge-url URL"),
        (("--judge-url", "http://127.0.0.1:9/v1"), "Say who judges: --judge NAME"),
        (("--verdicts", "v.jsonl"), "Say who judges: --judge NAME"),
        (("--judge", "gpt", "--judge-url", "127.0.0.1:9"), "written like http://127.0.0.1:8000/v1"),
        (("--judge", "gpt", "--verdicts", "nowhere.jsonl"), "no file of verdicts 'nowhere.jsonl'"),
        (("--judge", "gpt", "--verdicts", "broken.jsonl"), "Line 1 of 'broken.jsonl' is no verdict"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    def load(model: str) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vlmsteer.bench_cli.load", load)
    Path("broken.jsonl").write_text('{"a": 1}\n')
    code, _, complaints = main(*command(tmp_path / "run"), *arguments)
    assert code == 2 and sentence in complaints


def test_a_judge_that_nothing_needs_is_refused(main: Main, tmp_path: Path) -> None:
    judge = ("--judge", "gpt", "--judge-url", "http://127.0.0.1:9/v1")
    code, _, complaints = main("bench", "pope", "--limit", 6, *judge, "--out", tmp_path / "run")
    assert code == 2 and "No scorer of pope needs a judge; leave out --judge" in complaints


def verdicts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


def wait(until: Callable[[], bool]) -> None:
    for _ in range(1200):
        if until():
            return
        time.sleep(0.05)
    raise AssertionError("it took too long")
