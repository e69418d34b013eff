"""Pairs of images in the layout of the public Visual CounterFact dataset, read and written.

What we make and what others published are the same thing to every caller: one parquet row per pair, the usual image
beside the counterfactual one, the answer from memory beside the answer in the pixels. A row that is not whole is
refused with its file and number; nothing is skipped.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.images import open_image

ATTRIBUTES = ("color", "size", "presence", "relation", "texture")  # the public set has the first two
COLUMNS = ("object", "original_image", "counterfact_image", "correct_answer", "incorrect_answer")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Pair:
    """One object in its usual and in its counterfactual look; the images are the bytes of image files.

    `prior` is the answer from memory: the usual color, or the really larger object; `pixel` the one in the
    counterfactual picture: the painted color, or the object drawn larger.
    """

    id: str
    object: str
    attribute: str
    prior: str
    pixel: str
    original: bytes = field(repr=False)
    counterfactual: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.attribute not in ATTRIBUTES:
            raise InputError(f"Unknown attribute {self.attribute!r}{did_you_mean(self.attribute, ATTRIBUTES)}.")
        for name in ("id", "object", "prior", "pixel"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise InputError(f"The {name} of a pair is a text that is not empty, not {value!r}.")
        if self.prior.startswith("[") or self.pixel.startswith("["):
            raise InputError(f"Pair {self.id!r}: an answer is one plain text, not a list ({self.prior}, {self.pixel}).")
        for name in ("original", "counterfactual"):
            value = getattr(self, name)
            if not isinstance(value, bytes) or not value:
                raise InputError(f"Pair {self.id!r} has no bytes for its {name} image.")

    def image(self, which: Literal["original", "counterfactual"]) -> Image.Image:
        """Decode one of the two images to RGB.

        Raises:
            InputError: the bytes are not one whole image, or `which` is neither of the two.
        """
        if which not in ("original", "counterfactual"):
            raise InputError(f"Unknown image {which!r}{did_you_mean(which, ('original', 'counterfactual'))}.")
        try:
            return open_image(self.original if which == "original" else self.counterfactual)
        except InputError as error:
            raise InputError(f"Pair {self.id!r}, {which}: {error}") from error


def shuffled_options(pair: Pair) -> tuple[str, str]:
    """The pair's two answers in an order fixed by its id, so that every question about it lists them alike.

    The order comes from SHA-256 and is the same in every process; each answer is first for about half of the ids.
    """
    swapped = hashlib.sha256(pair.id.encode()).digest()[0] & 1
    return (pair.pixel, pair.prior) if swapped else (pair.prior, pair.pixel)


def load_pairs(source: str | Path, attribute: str, revision: str | None = None) -> list[Pair]:
    """Read the pairs of one attribute, in the order of the files.

    Args:
        source: the folder of a set that `vlmsteer counterfacts build` made, a folder with parquet files
            (`{attribute}*.parquet` or `{attribute}/*.parquet`, at any depth), or a dataset id on
            the Hugging Face hub such as "mgolov/Visual-Counterfact".
        attribute: "color", "size" or another of `ATTRIBUTES`, the name of the split.
        revision: commit, tag or branch of a hub dataset; give one, the public data has changed over time.

    Returns:
        One pair per row. Without an `id` column the id is the attribute and the row number: "color-00000".

    Raises:
        InputError: unknown attribute or split, nothing there, unreachable, or a file or row that is not whole.
    """
    if attribute not in ATTRIBUTES:
        raise InputError(f"Unknown attribute {attribute!r}{did_you_mean(attribute, ATTRIBUTES)}.")
    folder = Path(source).expanduser()
    if folder.is_file():
        raise InputError(f"{str(source)!r} is a file; pass the folder that holds the parquet files.")
    if not folder.is_dir():
        folder = _download(source, attribute, revision)
    elif revision is not None:
        raise InputError(f"{str(source)!r} is a local folder and has no revision {revision!r}; leave revision out.")
    if (folder / "metadata.jsonl").is_file():  # a set that was built here, with its masks and checks
        from vlmsteer_counterfacts.record import load_records

        built: list[Pair] = [*load_records(folder, attribute)]
        if not built:
            raise InputError(f"{str(source)!r} has no {attribute} pairs.")
        return built
    pairs: list[Pair] = []
    seen: set[str] = set()
    for file in _split_files(folder, attribute):
        for pair in _read_file(file, attribute, first_row=len(pairs)):
            if pair.id in seen:
                raise InputError(f"{file}: the id {pair.id!r} appears twice; every pair needs its own.")
            seen.add(pair.id)
            pairs.append(pair)
    if not pairs:
        raise InputError(f"The {attribute} files under {str(folder)!r} hold no rows.")
    return pairs


def save_pairs(pairs: Sequence[Pair], folder: str | Path) -> list[Path]:
    """Write pairs so that `load_pairs` and Hugging Face's `datasets.load_dataset` read them, images decoded.

    Each file is complete or absent: it is written beside its place and renamed.

    Args:
        pairs: of one or both attributes; an existing file of the same name is replaced.
        folder: receives `data/{attribute}-00000-of-00001.parquet` for each attribute.

    Returns:
        The files written.

    Raises:
        InputError: no pairs, an id twice, or the folder holds other files of the same attribute.
    """
    if not pairs:
        raise InputError("There are no pairs to save.")
    root = Path(folder).expanduser()
    chosen: dict[Path, list[Pair]] = {}
    for attribute in ATTRIBUTES:
        rows = [pair for pair in pairs if pair.attribute == attribute]
        if not rows:
            continue
        if len({pair.id for pair in rows}) < len(rows):
            raise InputError(f"Two {attribute} pairs have the same id; every pair needs its own.")
        file = root / "data" / f"{attribute}-00000-of-00001.parquet"
        others = [path for path in _parquet_files(root).get(attribute, []) if path != file]
        if others:
            raise InputError(f"{str(root)!r} already holds {attribute} pairs in {others[0].name}; use an empty folder.")
        chosen[file] = rows
    for file, rows in chosen.items():
        _write_file(file, rows)
    return list(chosen)


def _download(source: str | Path, attribute: str, revision: str | None) -> Path:
    name = str(source)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise InputError(f"There is no folder {name!r}; pass a folder or a hub dataset id such as 'owner/name'.")
    from huggingface_hub import snapshot_download

    # In these patterns "*" also matches "/".
    patterns = [f"{attribute}*.parquet", f"*/{attribute}*.parquet", f"*/{attribute}/*.parquet"]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client's network errors share no root class across its versions
        kind = type(error).__name__
        raise InputError(
            f"{name!r} is no local folder and could not be fetched from the Hugging Face hub ({kind}). "
            f"Where there is a network, run `hf download --repo-type dataset {name} --local-dir FOLDER`; pass FOLDER."
        ) from error


def _parquet_files(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        *parents, name = path.relative_to(folder).parts
        if name.startswith("."):
            continue
        named = [attribute for attribute in ATTRIBUTES if name.startswith(attribute)]
        inside = [parent for parent in reversed(parents) if parent in ATTRIBUTES]
        split = (named or inside or [name.removesuffix(".parquet").split("-")[0]])[0]
        splits.setdefault(split, []).append(path)
    return splits


def _split_files(folder: Path, attribute: str) -> list[Path]:
    splits = _parquet_files(folder)
    if not splits:
        raise InputError(f"{str(folder)!r} holds no parquet files; expected data/{attribute}-*.parquet in it.")
    if attribute not in splits:
        raise InputError(f"{str(folder)!r} has no split {attribute!r}{did_you_mean(attribute, splits)}.")
    return splits[attribute]


def _read_file(file: Path, attribute: str, first_row: int) -> Iterator[Pair]:
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{str(file)!r} is not a readable parquet file; download or save it again.") from error
    with parquet:
        present = parquet.schema_arrow.names
        missing = [name for name in COLUMNS if name not in present]
        if missing:
            raise InputError(f"{str(file)!r} lacks the columns {', '.join(missing)}; it has {', '.join(present)}.")
        wanted = [*COLUMNS, *(["id"] if "id" in present else [])]
        number = 0
        batches = parquet.iter_batches(batch_size=64, columns=wanted)
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{str(file)!r} is damaged after row {number}; download or save it again.") from error
            for row in rows:
                try:
                    yield _pair(row, attribute, f"{attribute}-{first_row + number:05d}")
                except InputError as error:
                    raise InputError(f"{str(file)!r}, row {number}: {error}") from error
                number += 1


def _pair(row: dict[str, Any], attribute: str, default_id: str) -> Pair:
    return Pair(
        id=row.get("id", default_id),
        object=row["object"],
        attribute=attribute,
        prior=_answer(row["correct_answer"], "correct_answer"),
        pixel=_answer(row["incorrect_answer"], "incorrect_answer"),
        original=_bytes(row["original_image"], "original_image"),
        counterfactual=_bytes(row["counterfact_image"], "counterfact_image"),
    )


def _answer(value: Any, column: str) -> str:
    given = value
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise InputError(f"{column} {value[:40]!r} starts like a list but is none.") from error
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str) or not value:
        raise InputError(f"{column} is {str(given)[:40]!r}; expected a text or a list of texts.")
    return value


def _bytes(value: Any, column: str) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        raise InputError(f"{column} holds no image bytes; save the images inside the parquet file.")
    return content


def _write_file(file: Path, pairs: list[Pair]) -> None:
    text, image = {"dtype": "string", "_type": "Value"}, {"_type": "Image"}
    features = {name: image if name.endswith("_image") else text for name in ("id", *COLUMNS)}
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        [(name, struct if kind is image else pa.string()) for name, kind in features.items()],
        metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream, pq.ParquetWriter(stream, schema) as writer:
            for start in range(0, len(pairs), 100):
                writer.write_table(pa.Table.from_pylist([_row(p) for p in pairs[start : start + 100]], schema))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _row(pair: Pair) -> dict[str, Any]:
    # The public color split writes its usual color as the text of a list, and the published scripts parse it so.
    prior = repr([pair.prior]) if pair.attribute == "color" else pair.prior
    return {
        "id": pair.id,
        "object": pair.object,
        "original_image": {"bytes": pair.original, "path": None},
        "counterfact_image": {"bytes": pair.counterfactual, "path": None},
        "correct_answer": prior,
        "incorrect_answer": pair.pixel,
    }
