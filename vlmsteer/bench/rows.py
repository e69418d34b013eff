"""Rows of a published split, whatever it was saved as: JSON, JSON lines, CSV, or parquet files in one or more parts.

On the hub pictures lie inside the parquet rows. Everything after loading takes a picture as a file, so they are
written out once, into the cache, under names that their content gives; a second run finds them there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vlmsteer.bench.files import Files, read_rows
from vlmsteer.bench.vcf import cache_folder
from vlmsteer.errors import InputError
from vlmsteer_counterfacts.record import replace_file

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp"}


def find_split(files: Files, stem: str) -> list[Path]:
    """The files of one split: `stem` with any ending, or its parquet parts; in the folder or in `data/`."""
    for folder in (files.folder, files.folder / "data"):
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return [folder / f"{stem}{suffix}"]
        parts = sorted(folder.glob(f"{stem}-*.parquet")) or sorted((folder / stem).glob("*.parquet"))
        if parts:
            return parts
    return []


def read_split(files: Files, *stems: str) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for every row of the first of these splits that is there.

    Args:
        files: the benchmark's folder.
        stems: names without an ending.

    Returns:
        `where` names file and row in messages. Pictures inside a row have become paths.

    Raises:
        InputError: if none is there, a file cannot be read, or a picture cannot be written.
    """
    names = " or ".join(stems)
    found = next((paths for stem in stems if (paths := find_split(files, stem))), [])
    if not found:
        there = "" if files.folder.is_dir() else "; there is no such folder"
        raise InputError(f"{str(files.folder)!r} has no table {names} ({', '.join(SUFFIXES)}){there}.")
    rows = [
        (f"Row {number} of {str(path)!r}", row)
        for path in found
        for number, row in enumerate(_parquet(path) if path.suffix == ".parquet" else read_rows(path), 1)
    ]
    if not rows:
        raise InputError(f"{', '.join(repr(str(path)) for path in found)} has no rows.")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                rows += [{name: _stored(value) for name, value in row.items()} for row in batch.to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{str(path)!r} is not a readable parquet file; download or save it again.") from error
    return rows


def _stored(value: Any) -> Any:
    if isinstance(value, dict) and "bytes" in value:
        value = value["bytes"] if value["bytes"] is not None else value.get("path")
    if not isinstance(value, bytes):
        return value
    suffix = next((name for start, name in MAGIC.items() if value.startswith(start)), ".img")
    file = cache_folder() / "images" / f"{hashlib.sha256(value).hexdigest()}{suffix}"
    if not file.is_file():
        replace_file(file, value)
    return str(file)
