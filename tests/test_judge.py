"""The judge by itself: the protocol, saved verdicts, interrupted files, refusals and time-outs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Reply, Server, said, serving

from vlmsteer.bench.judge import Judge
from vlmsteer.bench.judged import fill, read_template
from vlmsteer.bench.verdicts import copy, load
from vlmsteer.bench.verdicts import rows as verdict_rows
from vlmsteer.errors import InputError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as found:
        yield found


def judge(server: Server | None, folder: Path, **more: Any) -> Judge:
    settings = {"name": "judge", "verdicts": folder / "out" / "verdicts.jsonl", "pause": 0.01, "timeout": 5.0} | more
    return Judge(**settings, url=server.url if server else None)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "verdicts.jsonl").read_text().splitlines()]


PROMPTS = {"a": "first prompt", "b": "zweite Frage: größer?", "c": 'third\n"quoted" {}'}
VERDICTS = {name: prompt[::-1] for name, prompt in PROMPTS.items()}


def test_asks_by_the_protocol(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", " secret\n")
    seen: list[tuple[int, int]] = []
    found = judge(server, tmp_path, key_variable="JUDGE_KEY").ask(PROMPTS, lambda done, of: seen.append((done, of)))
    assert found == VERDICTS and seen == [(1, 3), (2, 3), (3, 3)]
    for request in server.requests:
        assert request["path"] == "/v1/chat/completions"
        assert request["headers"]["Authorization"] == "Bearer secret"
        assert request["body"]["model"] == "judge" and request["body"]["temperature"] == 0
    contents = {one["body"]["messages"][0]["content"] for one in server.requests}
    assert contents == set(PROMPTS.values()) and len(server.requests) == 3
    assert {one["served"] for one in rows(tmp_path)} == {"judge-0314"}
    assert "secret" not in (tmp_path / "out" / "verdicts.jsonl").read_text()


def test_no_key_is_sent_where_there_is_none(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge(server, tmp_path).ask({"a": "x"})
    assert "Authorization" not in server.requests[0]["headers"]


def test_saved_verdicts_are_never_asked_again(server: Server, tmp_path: Path) -> None:
    judge(server, tmp_path).ask({"a": PROMPTS["a"]})
    assert judge(server, tmp_path).ask(PROMPTS | {"again": PROMPTS["b"]}) == VERDICTS | {"again": VERDICTS["b"]}
    assert len(server.requests) == 3
    assert judge(None, tmp_path).ask(PROMPTS) == VERDICTS
    judge(server, tmp_path, version="2").ask({"a": PROMPTS["a"]})
    judge(server, tmp_path, name="other").ask({"a": PROMPTS["a"]})
    assert len(server.requests) == 5 and len({one["key"] for one in rows(tmp_path)}) == 5


def test_without_an_endpoint_missing_verdicts_are_left_out(server: Server, tmp_path: Path) -> None:
    judge(server, tmp_path).ask({"a": PROMPTS["a"]})
    assert judge(None, tmp_path).ask(PROMPTS) == {"a": VERDICTS["a"]}
    with pytest.raises(InputError, match="no verdict of the judge 'judge' .*'7'.* on any of the 3 prompts"):
        judge(None, tmp_path, version="7").ask(PROMPTS)
    with pytest.raises(InputError, match="nowhere"):
        judge(None, tmp_path, verdicts=tmp_path / "nowhere.jsonl").ask(PROMPTS)
    assert judge(None, tmp_path).ask({}) == {}


def test_failures_that_pass_are_tried_again(server: Server, tmp_path: Path) -> None:
    failures: dict[int, Reply] = {
        1: (429, {"error": "slow down"}, {"Retry-After": "0.3"}),
        2: (503, b"busy", {}),
        3: (200, b"{half", {}),
        4: said(None),
    }
    server.reply = lambda number, body: failures.get(number) or said("Rating: 3")
    start = time.monotonic()
    assert judge(server, tmp_path).ask({"a": "x"}) == {"a": "Rating: 3"}
    assert len(server.requests) == 5 and time.monotonic() - start >= 0.3


@pytest.mark.parametrize(
    ("reply", "message", "requests"),
    [
        ((401, {"error": "bad key"}, {}), "401.*bad key.*environment variable MY_KEY, which is empty", 1),
        ((404, {"error": "no such model"}, {}), "404.*no such model", 1),
        ((302, b"", {"Location": "http://127.0.0.1:9/elsewhere"}), "302", 1),
        ((500, b"broken", {}), "no verdict in 3 tries: 500 broken", 3),
        ((200, {"choices": []}, {}), "no verdict in 3 tries: it answers no chat completion", 3),
    ],
)
def test_refusals(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply, message: str, requests: int
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    server.reply = lambda number, body: reply
    with pytest.raises(InputError, match=message):
        judge(server, tmp_path, tries=3, key_variable="MY_KEY").ask({"a": "x"})
    assert len(server.requests) == requests


def test_a_slow_or_absent_endpoint(server: Server, tmp_path: Path) -> None:
    def slow(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.5)
        return said("late")

    server.reply = slow
    with pytest.raises(InputError, match="no verdict in 2 tries: .*timed out"):
        judge(server, tmp_path, timeout=0.1, tries=2).ask({"a": "x"})
    absent = Judge("judge", tmp_path / "v.jsonl", "http://127.0.0.1:9/v1", pause=0.01, tries=2)
    with pytest.raises(InputError, match="The judge 'judge' at '127.0.0.1' gave no verdict in 2 tries"):
        absent.ask({"a": "x"})
    with pytest.raises(InputError, match="written like http"):
        Judge("judge", tmp_path / "v.jsonl", f"file://{tmp_path}").ask({"a": "x"})


def test_verdicts_given_before_and_beside_a_failure_are_saved(server: Server, tmp_path: Path) -> None:
    prompts = {str(number): f"prompt {number}" for number in range(12)}

    def reply(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][0]["content"] == "prompt 5":
            return 400, b"refused", {}
        time.sleep(0.05)
        return said("fine")

    server.reply = reply
    with pytest.raises(InputError, match="400: refused"):
        judge(server, tmp_path).ask(prompts)
    given = [one for one in server.requests if one["body"]["messages"][0]["content"] != "prompt 5"]
    assert 5 <= len(rows(tmp_path)) == len(given) < 11
    server.reply = lambda number, body: said("fine")
    assert judge(server, tmp_path).ask(prompts) == dict.fromkeys(prompts, "fine")
    assert len(rows(tmp_path)) == 12


def test_a_line_cut_off_is_dropped_and_asked_again(server: Server, tmp_path: Path) -> None:
    judge(server, tmp_path, at_once=1).ask(PROMPTS)
    path = tmp_path / "out" / "verdicts.jsonl"
    whole = path.read_bytes()
    for cut in (1, 20):  # without its end the last line is whole; then it is not
        path.write_bytes(whole[:-cut])
        before = len(server.requests)
        assert judge(server, tmp_path).ask(PROMPTS | {"d": f"cut {cut}"}) == VERDICTS | {"d": f"cut {cut}"[::-1]}
        assert len(server.requests) - before == (1 if cut == 1 else 2)
        assert len(rows(tmp_path)) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{broken\n{}\n", "Line 1 of .* is not valid JSON"),
        ('["key"]\n', "Line 1 .* no verdict"),
        ('{"key": "k", "verdict": 1}\n', "Line 1 .* no verdict"),
    ],
)
def test_malformed_verdicts(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Judge("judge", path).ask({"a": "x"})


def test_verdicts_that_cannot_be_saved(server: Server, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="cannot be saved|cannot be read"):
        judge(server, tmp_path).ask({"a": "x"})
    assert not server.requests


def test_what_a_result_records(tmp_path: Path) -> None:
    record = Judge("gpt", tmp_path / "v", "http://me:secret@host:81/v1?key=secret", "2024").as_dict()
    assert (record["name"], record["version"], record["url"]) == ("gpt", "2024", "http://host:81/v1")
    assert "secret" not in json.dumps(record)


def test_templates(tmp_path: Path) -> None:
    assert fill("a {} b {x} {}", "{}", "2") == "a {} b {x} 2"
    path = tmp_path / "t.txt"
    path.write_text("{} and {}")
    assert read_template(path, ("one", "two")) == "{} and {}"
    with pytest.raises(InputError, match="2 slots {}; it needs 1, in this order: one"):
        read_template(path, ("one",))
    with pytest.raises(InputError, match="cannot be read"):
        read_template(tmp_path / "none.txt", ())


def test_what_cannot_work_is_found_out_before_the_work(server: Server, tmp_path: Path) -> None:
    judge(server, tmp_path).ask({"a": "x"})
    judge(server, tmp_path).check()
    judge(None, tmp_path).check()
    with pytest.raises(InputError, match=r"no verdict of the judge 'other' .*, only of 'judge' \(version ''\)"):
        judge(None, tmp_path, name="other").check()
    with pytest.raises(InputError, match="only of nobody"):
        (tmp_path / "empty.jsonl").touch()
        judge(None, tmp_path, verdicts=tmp_path / "empty.jsonl").check()
    with pytest.raises(InputError, match="no file of verdicts .*nowhere"):
        judge(None, tmp_path, verdicts=tmp_path / "nowhere.jsonl").check()
    for url in ("127.0.0.1:80/v1", "ftp://host/v1", "http:///v1", "http://host:port/v1", "http://[1/v1"):
        with pytest.raises(InputError, match="written like http"):
            Judge("judge", tmp_path / "v.jsonl", url).check()


def test_verdicts_are_copied_once(server: Server, tmp_path: Path) -> None:
    one = judge(server, tmp_path)
    one.ask(PROMPTS)
    target = tmp_path / "run" / "verdicts.jsonl"
    for wanted, there in ((["a"], {"a"}), (["a", "c"], {"a", "c"})):
        copy(one.verdicts, target, [one.key(PROMPTS[name]) for name in wanted])
        assert [row["key"] for row in verdict_rows(target)] == [one.key(PROMPTS[name]) for name in sorted(there)]
    said_there = load(target, "judge", "")
    assert said_there.on(PROMPTS["a"]) == VERDICTS["a"] and said_there.on(PROMPTS["b"]) is None
    assert load(target, "judge", "2").on(PROMPTS["a"]) is None
