"""Rows of a published split, whatever it was saved as: JSON, JSON lines, CSV, or parquet files in one or more parts.

On the hub pictures lie inside the parquet rows; everything after loading takes a picture as a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmsteer.bench.files import Files, read_rows, stored
from vlmsteer.errors import InputError

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


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


def have_split(files: Files, *stems: str) -> None:
    """See to it that one of these splits is there, from the hub if the folder has none.

    Raises:
        InputError: if none is to be had.
    """
    while not any(find_split(files, stem) for stem in stems):
        files.fetch(f"a table {' or '.join(stems)} ({', '.join(SUFFIXES)})")


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
    have_split(files, *stems)
    found = next(paths for stem in stems if (paths := find_split(files, stem)))
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
                rows += [{name: _as_file(value) for name, value in row.items()} for row in batch.to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{str(path)!r} is not a readable parquet file; download or save it again.") from error
    return rows


def _as_file(value: Any) -> Any:
    if isinstance(value, dict) and "bytes" in value:
        value = value["bytes"] if value["bytes"] is not None else value.get("path")
    return stored(value) if isinstance(value, bytes) else value
