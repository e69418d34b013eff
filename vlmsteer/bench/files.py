"""A benchmark's files: looked for locally, recognized by their content, and complete before a model is loaded.

Several generations of the same question file circulate under one name, so a file is known by its SHA-256. Published
files are JSON lists, JSON lines or tables whatever their name says. Every image that is missing is found out at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError, did_you_mean

NAMED = 5  # so many missing images are named


class Files:
    """One benchmark's folder, and where else images may lie.

    Args:
        folder: where the question files are.
        images: further folders in which images are looked for, recursively not, by name.
    """

    def __init__(self, folder: str | Path, images: Sequence[str | Path] = ()) -> None:
        self.folder = Path(folder)
        self._images = [Path(one) for one in images]
        self._names: dict[Path, frozenset[str]] = {}
        self._missing: list[str] = []

    def find(self, *names: str) -> Path:
        """The first of several possible files.

        Raises:
            InputError: if none is there.
        """
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        there = self._listed(self.folder)
        if not self.folder.is_dir():
            raise InputError(f"There is no folder {str(self.folder)!r}; it should hold {' or '.join(names)}.")
        raise InputError(f"{str(self.folder)!r} has no {' or '.join(names)}{did_you_mean(names[0], there)}.")

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.folder / name).is_file()

    def image(self, name: str, *folders: str, also: Sequence[str] = ()) -> str:
        """Where an image lies: in one of the given subfolders or in the folder itself, then so in the further ones.

        A missing one is noted; `check_images` reports all. The path returned then leads nowhere.

        Args:
            also: other names that it may have.
        """
        places = [root / one for root in (self.folder, *self._images) for one in (*folders, "")]
        for wanted in (name, *also):
            for place in places:
                if Path(wanted).name == wanted and wanted not in self._listed(place):
                    continue
                if (place / wanted).is_file():
                    return str(place / wanted)
        self._missing.append(name)
        return str(places[0] / name)

    def check_images(self) -> None:
        """Report images that were asked for and are missing.

        Raises:
            InputError: naming the first few, how many there are, and where they were looked for.
        """
        if self._missing:
            first = ", ".join(dict.fromkeys(self._missing[:NAMED]))
            count = len(set(self._missing))
            places = ", ".join(repr(str(one)) for one in [self.folder, *self._images])
            self._missing.clear()
            raise InputError(
                f"{count} image{'s are' if count > 1 else ' is'} missing ({first}{', ...' if count > NAMED else ''}); "
                f"looked for in {places}. Give their folder with --images."
            )

    def _listed(self, folder: Path) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))  # one look a folder, not one an image
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recognized(path: Path, known: Mapping[str, str]) -> str | None:
    """What a file is, by the first digits of its SHA-256: `known` maps these to names."""
    found = sha256(path)
    return next((name for digits, name in known.items() if found.startswith(digits)), None)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that is one JSON list, one JSON object a line, or a table with a header (.tsv, .csv).

    Raises:
        InputError: if it cannot be read or a row is malformed, with the row's number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    if path.suffix in (".tsv", ".csv"):
        csv.field_size_limit(1 << 30)  # pictures stand in some tables
        return list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))
    rows = list(_values(text, path))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"Row {number} of {str(path)!r} is {type(row).__name__}, not a JSON object.")
    return rows


def read_json(path: Path) -> Any:
    """The one JSON value of a file.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON: {error}.") from error


def field(row: Mapping[str, Any], name: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """One value of a row.

    Raises:
        InputError: if it is missing or of another type.
    """
    if name not in row:
        raise InputError(f"{where} has no {name!r}{did_you_mean(name, row)}.")
    if not isinstance(row[name], kind):
        raise InputError(f"{where} has {row[name]!r} in {name!r}, a {type(row[name]).__name__}.")
    return row[name]


def _values(text: str, path: Path) -> Iterator[Any]:
    if text.lstrip().startswith("["):
        try:
            yield from json.loads(text)
        except ValueError as error:
            raise InputError(f"{str(path)!r} is not valid JSON: {error}.") from error
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"Line {number} of {str(path)!r} is not valid JSON: {error}.") from error
