"""What judges have said, in a JSONL file that only ever grows, found by the SHA-256 of judge, version and prompt.

A verdict is saved before it is used, so that it is never paid for twice: not by a run that was killed, and not by
another run with the same answer. The same prompt to another judge, or to another version of it, is another verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError


@dataclass(frozen=True)
class Verdicts:
    """What one judge has said: texts by `key`."""

    name: str
    version: str
    texts: Mapping[str, str]

    def on(self, prompt: str) -> str | None:
        """The verdict on a prompt, None if there is none."""
        return self.texts.get(key(self.name, self.version, prompt))


def key(name: str, version: str, prompt: str) -> str:
    """What a verdict is saved under, in hexadecimal."""
    return hashlib.sha256(json.dumps([name, version, prompt]).encode()).hexdigest()


def load(path: Path, name: str, version: str) -> Verdicts:
    """One judge's verdicts in a file, none if there is no file; of several on one prompt the last.

    Raises:
        InputError: if the file cannot be read or a line is no verdict.
    """
    return Verdicts(name, version, {row["key"]: row["verdict"] for row in rows(path)})


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, without a last one that was cut off.

    Raises:
        InputError: if the file cannot be read or a line is no verdict.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The verdicts {str(path)!r} cannot be read: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # killed while it was written, and the line has no end
                return
            raise InputError(f"Line {number} of {str(path)!r} is not valid JSON: {error}.") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("key", "verdict")):
            raise InputError(f"Line {number} of {str(path)!r} is no verdict; it needs the texts 'key' and 'verdict'.")
        yield row


def mend(path: Path) -> None:
    """Make a file that ends in the middle of a line end with a whole one, so that more can be appended.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            whole, end, last = file.read().rpartition(b"\n")
            if not last.strip():
                return
            try:
                json.loads(last)
                file.write(b"\n")
            except ValueError:
                file.truncate(len(whole) + len(end))
    except OSError as error:
        raise InputError(f"Verdicts cannot be saved to {str(path)!r}: {error}.") from error


def append(path: Path, more: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a file that ends with a whole one.

    Raises:
        InputError: if they cannot be written; rows that were written before are safe.
    """
    try:
        with path.open("ab") as file:
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in more))
    except OSError as error:
        raise InputError(f"A verdict cannot be saved to {str(path)!r}: {error}.") from error


def copy(source: Path, target: Path, wanted: Iterable[str]) -> None:
    """Add to one file what another holds under the wanted keys and it does not.

    Raises:
        InputError: if a file cannot be read or written.
    """
    mend(target)
    left = set(wanted) - {row["key"] for row in rows(target)}
    append(target, {row["key"]: row for row in rows(source) if row["key"] in left}.values())
