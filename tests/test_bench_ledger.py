"""Rows on disk: whole or not there, one writer a file, cut off where a process died, safe when the disk is full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlmsteer.bench.ledger import Ledger, key, latest, merge, rows_in, write_whole
from vlmsteer.errors import InputError


def row(name: str, error: str | None = None, **more: Any) -> dict[str, Any]:
    return {"key": name, "answer": None if error else f"answer of {name} ✓", "error": error, **more}


def test_rows_come_back_in_the_order_they_were_written(tmp_path: Path) -> None:
    with Ledger(tmp_path / "rows.jsonl") as ledger:
        ledger.append([row("a"), row("b", answer="two\nlines\u2028and a separator")])
    with Ledger(tmp_path / "rows.jsonl") as ledger:
        ledger.append([row("c")])
        ledger.sync()
    assert rows_in(tmp_path / "rows.jsonl") == [row("a"), row("b", answer="two\nlines\u2028and a separator"), row("c")]
    assert rows_in(tmp_path / "missing.jsonl") == []


def test_a_line_cut_off_at_any_byte_is_recognized_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first, second = (json.dumps(row(name), ensure_ascii=False).encode() + b"\n" for name in "ab")
    for length in range(len(second)):
        path.write_bytes(first + second[:length])
        assert rows_in(path) == [row("a")]
        with Ledger(path) as ledger:
            ledger.append([row("c")])
        assert rows_in(path) == [row("a"), row("c")]


def test_a_last_line_of_zeros_is_cut_off_and_one_in_the_middle_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps(row("a")).encode() + b"\n"
    path.write_bytes(line + b"\0\0\0\n")
    Ledger(path).close()
    assert path.read_bytes() == line
    path.write_bytes(line + b"\0\0\0\n" + line)
    with pytest.raises(InputError, match="Line 2 of .* is damaged"):
        rows_in(path)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with Ledger(tmp_path / "rows.jsonl") as ledger:
        code = f"from vlmsteer.bench.ledger import Ledger; Ledger({str(tmp_path / 'rows.jsonl')!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
        assert "InputError: Another process is writing" in other.stderr
        ledger.append([row("a")])
    Ledger(tmp_path / "rows.jsonl").close()
    assert rows_in(tmp_path / "rows.jsonl") == [row("a")]


def test_a_full_disk_is_a_sentence_and_keeps_finished_rows(tmp_path: Path) -> None:
    code = f"""
import resource
from vlmsteer.bench.ledger import Ledger
from vlmsteer.errors import InputError
ledger = Ledger({str(tmp_path / "rows.jsonl")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
written = 0
try:
    while written < 1000:
        ledger.append([{{"key": str(written), "answer": "x" * 70, "error": None}}])
        written += 1
except InputError as error:
    print(written, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    written, _, sentence = done.stdout.partition(" ")
    assert "rows.jsonl' cannot be written: File too large. Finished rows are safe" in sentence, done.stderr
    assert [one["key"] for one in rows_in(tmp_path / "rows.jsonl")] == [str(i) for i in range(int(written))]
    assert 0 < int(written) < 60
    assert (tmp_path / "rows.jsonl").read_bytes().endswith(b"\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_without_room_is_named(tmp_path: Path) -> None:
    with Ledger(tmp_path / "rows.jsonl") as ledger:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, ledger._file)
        os.close(full)
        with pytest.raises(InputError, match="No space left on device. Finished rows are safe"):
            ledger.append([row("a")])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        Ledger(tmp_path / "nowhere" / "rows.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        write_whole(tmp_path / "nowhere" / "rows.jsonl", "")


def test_the_last_row_without_an_error_counts() -> None:
    rows = [
        row("a", "late"),
        row("b"),
        row("b", "worse"),
        row("c", "first"),
        row("c", "second"),
        row("a"),
        row("a", n=2),
    ]
    found = latest(rows)
    assert found == {"a": row("a", n=2), "b": row("b"), "c": row("c", "second")}


def test_merging_puts_rows_in_order_and_can_be_stopped(tmp_path: Path) -> None:
    files = [tmp_path / "samples.jsonl", tmp_path / "samples-1.jsonl", tmp_path / "samples-2.jsonl"]
    for path, names in zip(files, ("db", "ce", "ab"), strict=True):
        with Ledger(path) as ledger:
            ledger.append([row(name) for name in names])
    kept = {path: path.read_bytes() for path in files}
    merge(tmp_path, "samples.jsonl", files[1:], "abcd")
    merged = files[0].read_bytes()
    assert [one["key"] for one in rows_in(files[0])] == ["a", "b", "c", "d"]
    assert not files[1].exists() and not files[2].exists()
    # Killed after the new file was there and before the others were gone:
    files[2].write_bytes(kept[files[2]])
    merge(tmp_path, "samples.jsonl", files[2:], "abcd")
    assert files[0].read_bytes() == merged


def test_a_key_changes_with_every_part() -> None:
    parts: list[Any] = ["pope", 1, "7", "Is there a dog?", None, {"a": 1, "b": 2}]
    keys = {key(*parts)}
    for i, other in enumerate(["chair", 2, "8", "Is there a cat?", "none", {"a": 1, "b": 3}]):
        keys.add(key(*[*parts[:i], other, *parts[i + 1 :]]))
    assert len(keys) == 7
    assert key(*parts[:-1], {"b": 2, "a": 1}) == key(*parts)


def environment() -> dict[str, str]:
    root = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "counterfacts")])}
