"""What has been answered, one JSON row an answer, in a file that only ever grows.

A run may be killed at any moment: rows are written whole and reach the disk within a second, a line that was cut off in
the middle is recognized and its question asked again, and no two processes write one file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from vlmsteer.errors import InputError

SYNC = 1.0  # seconds that rows may wait for the disk


class Ledger:
    """One file of rows, opened to append by this process alone.

    Raises:
        InputError: if another process writes the file, or it cannot be opened or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock()
            self._end = _whole(self.path.read_bytes())
            os.ftruncate(self._file, self._end)
        except OSError as error:
            os.close(self._file)
            raise self._unwritable(error) from error
        except BaseException:
            os.close(self._file)
            raise
        self._synced = time.monotonic()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, all of them or, if the disk is full, none.

        Raises:
            InputError: if they cannot be written; rows that were written before are safe.
        """
        data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced > SYNC:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            with contextlib.suppress(OSError):  # what cannot be cut off now is cut off at the next start
                os.ftruncate(self._file, self._end)
            raise self._unwritable(error) from error
        self._end += len(data)

    def sync(self) -> None:
        """Bring everything to the disk, where other nodes see it.

        Raises:
            InputError: if the disk does not take it.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Let other processes write."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another process is writing {str(self.path)!r}. Wait for it, or give another folder with --out."
            ) from error
        except OSError:
            pass  # some shared file systems have no locks; every rank still has its own file

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{str(self.path)!r} cannot be written: {error.strerror}. Finished rows are safe: make room, and the same "
            "command goes on where this one stopped."
        )


def key(*parts: Any) -> str:
    """SHA-256 of everything an answer depends on, JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, without a last one that was cut off; none if there is no file.

    Raises:
        InputError: if the file cannot be read, or a line before the last is no row.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    rows = []
    for number, line in enumerate(data[: _whole(data)].split(b"\n")[:-1], 1):
        row = _row(line)
        if row is None:
            raise InputError(f"Line {number} of {str(path)!r} is damaged; delete this line, and its question is asked.")
        rows.append(row)
    return rows


def latest(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By key the row that counts: the last one without an error, else the last one."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["error"] is None or row["key"] not in found or found[row["key"]]["error"] is not None:
            found[row["key"]] = row
    return found


def merge(folder: Path, main: str, others: Sequence[Path], order: Iterable[str]) -> None:
    """Put the rows of all files into one, in the order of these keys, and delete the others.

    Stopped in the middle, it leaves every row in at least one file. Rows with other keys (of an image that has been
    replaced since) are left out.

    Raises:
        InputError: if the file cannot be written; then the others stay.
    """
    path = folder / main
    found = latest(row for file in (path, *others) for row in rows_in(file))
    lines = (json.dumps(found[key], ensure_ascii=False) + "\n" for key in order if key in found)
    write_whole(path, "".join(lines))
    for file in others:
        file.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        InputError: if it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(
            f"{str(path)!r} cannot be written: {error.strerror}. What was there before is unchanged."
        ) from error


def _whole(data: bytes) -> int:
    """How many bytes are whole rows: without a last line that was cut off, with or without its line break."""
    end = data.rfind(b"\n") + 1
    if end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if _row(data[start:end]) is None:
            return start
    return end


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"key", "error"} <= row.keys() else None
