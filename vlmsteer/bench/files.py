"""A benchmark's files: looked for locally, then on the hub; known by their content; complete before a model is loaded.

Several generations of the same question file circulate under one name, so a file is known by its SHA-256. Published
files are JSON lists, JSON lines or tables whatever their name says. Every image that is missing is found out at once.
Pictures that lie inside tables are written out once, into the cache, under names that their content gives.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts.record import replace_file

NAMED = 5  # so many missing images are named
TYPES = {str: "text", int: "a number", bool: "true or false", list: "a list", dict: "an object", type(None): "null"}
_DATASET = re.compile(r"[\w.-]+/[\w.-]+")
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}


@dataclass(frozen=True)
class Published:
    """A benchmark's files as its authors keep them on the Hugging Face hub.

    Attributes:
        dataset: its id, "owner/name".
        files: which of its files are fetched; "*" stands for anything, "/" among it.
    """

    dataset: str
    files: tuple[str, ...]


class Files:
    """One benchmark's folder, and where else images may lie.

    Args:
        folder: where the question files are. One that is not there and reads "owner/name" is a dataset on the hub.
        images: further folders in which images are looked for, recursively not, by name.
        published: what is fetched where the folder does not have what is looked for; `Benchmark.items` knows it.

    Attributes:
        fetched: "owner/name@commit" once the folder is the hub's copy.
    """

    def __init__(
        self, folder: str | Path, images: Sequence[str | Path] = (), published: Published | None = None
    ) -> None:
        self.folder = Path(folder)
        self.published, self.fetched = published, ""
        self._images = [Path(one) for one in images]
        self._names: dict[Path, frozenset[str]] = {}
        self._missing: list[str] = []

    def find(self, *names: str) -> Path:
        """The first of several possible files, in the folder, else on the hub.

        Raises:
            InputError: if none is there.
        """
        while True:
            for name in names:
                if (self.folder / name).is_file():
                    return self.folder / name
            self.fetch(*names)

    def fetch(self, *wanted: str, revision: str | None = None) -> None:
        """Go on with the hub's copy, because the folder has nothing of what is wanted.

        Its files are taken from the hub's own cache where they are there, so that this works offline too; images are
        still looked for in the former folder as well.

        Args:
            wanted: what was looked for, in words or names.
            revision: a commit, tag or branch of the dataset.

        Raises:
            InputError: if there is no other copy, or it cannot be fetched: what was looked for, where, and what to do.
        """
        place = str(self.folder)
        source = self.published
        if not self.folder.is_dir() and _DATASET.fullmatch(place):
            source = Published(place, self.published.files if self.published else ("*",))
        if source is None or self.fetched:
            if not self.folder.is_dir():
                raise InputError(f"There is no folder {place!r}; it should hold {' or '.join(wanted)}.")
            told = f", {self.fetched} of the Hugging Face hub," if self.fetched else ""
            there = [name for name in self._listed(self.folder) if (self.folder / name).is_file()]
            raise InputError(f"{place!r}{told} has no {' or '.join(wanted)}{did_you_mean(wanted[0], there)}.")
        folder = _from_hub(source, revision, f"Looked for {' or '.join(wanted)} in {place!r}")
        self._images.append(self.folder)
        self.folder, self.fetched = folder, f"{source.dataset}@{folder.name}"

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
            names = list(dict.fromkeys(self._missing))
            first, count = ", ".join(names[:NAMED]), len(names)
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


def cache_folder() -> Path:
    """Where what was made once is kept: `vlmsteer` in `$XDG_CACHE_HOME`, by default `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmsteer"


def stored(picture: bytes) -> str:
    """The path of a picture that lay inside a table, in the cache: named by its SHA-256 and written once.

    Raises:
        InputError: if the cache cannot be written.
    """
    ending = next((ending for start, ending in _ENDINGS.items() if picture.startswith(start)), ".img")
    path = cache_folder() / "images" / f"{hashlib.sha256(picture).hexdigest()}{ending}"
    if not path.is_file() or path.stat().st_size != len(picture):
        replace_file(path, picture)
    return str(path)


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
    except (OSError, ValueError, RecursionError) as error:  # the last one for brackets without end
        raise InputError(f"{str(path)!r} cannot be read as JSON: {error}.") from error


def field(row: Mapping[str, Any], name: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """One value of a row.

    Raises:
        InputError: if it is missing or of another type.
    """
    if name not in row:
        raise InputError(f"{where} has no {name!r}{did_you_mean(name, row)}.")
    if not isinstance(row[name], kind):
        kinds = dict.fromkeys(TYPES.get(one, one.__name__) for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise InputError(f"{where} has {row[name]!r} in {name!r}; it should be {' or '.join(kinds)}.")
    return row[name]


def _from_hub(source: Published, revision: str | None, looked: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source.dataset, repo_type="dataset", revision=revision, allow_patterns=list(source.files)
            )
        )  # fmt: skip
    except Exception as error:  # the hub client's network errors share no root class across its versions
        chosen = " ".join(f"--include '{name}'" for name in source.files if name != "*")
        at = f" --revision {revision}" if revision else ""
        raise InputError(
            f"{looked}; and {source.dataset!r} is not in the cache of the Hugging Face hub and could not be fetched "
            f"({type(error).__name__}). Where there is a network: hf download --repo-type dataset {source.dataset}{at}"
            f"{' ' * bool(chosen)}{chosen} --local-dir DIR; then give --data DIR."
        ) from error


def _values(text: str, path: Path) -> Iterator[Any]:
    if text.lstrip().startswith("["):
        try:
            yield from json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{str(path)!r} is not valid JSON: {error}.") from error
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"Line {number} of {str(path)!r} is not valid JSON: {error}.") from error
