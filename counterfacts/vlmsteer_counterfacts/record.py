"""One counterfactual pair with everything that proves it, and folders of them.

A folder is an ImageFolder as Hugging Face's `datasets` reads it: `metadata.jsonl` and the pictures that its lines name.
What was rejected is kept, with its reasons, under `__rejected__`, a name that `datasets` passes over. Every picture
carries its SHA-256; a folder in which one was changed or cut off is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer_counterfacts.dataset import Pair

METADATA, PICTURES, REJECTED = "metadata.jsonl", "images", "__rejected__"
SEEN = ("original", "counterfactual", "mask")
_SAFE = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Record(Pair):
    """A pair, the mask of what may differ, how it was made, and what was checked.

    Attributes:
        mask: bytes of a PNG, 0 where the two pictures must be the same to the last bit.
        edit: what was done, so that it can be done again.
        prior_source: where it is known from that `prior` is the usual answer.
        texts: what the original shows, and what the counterfactual shows, in words.
        checks: what each check found: `name`, `value`, `limit`, `ok`, `says`.
    """

    mask: bytes = field(default=b"", repr=False)
    edit: Mapping[str, Any] = field(default_factory=dict)
    prior_source: str = ""
    texts: tuple[str, str] = ("", "")
    checks: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _SAFE.fullmatch(self.id):
            raise InputError(f"{self.id!r} names files, so it must be small letters, digits, dots and dashes.")

    @property
    def accepted(self) -> bool:
        """True if there are checks and none failed."""
        return bool(self.checks) and all(check["ok"] for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """What the checks that failed say."""
        return [check["says"] for check in self.checks if not check["ok"]]

    def picture(self, which: str) -> Image.Image:
        """The original, the counterfactual (RGB) or the mask ("L")."""
        if which == "mask":
            return open_image(self.mask).convert("L")
        return self.image(which)  # pyright: ignore[reportArgumentType]


def png(image: Image.Image) -> bytes:
    """The image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def slug(text: str) -> str:
    """Letters and digits of any text, for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "object"


def write(record: Record, folder: Path) -> dict[str, Any]:
    """Put a record's pictures into a folder and return its line of metadata."""
    line: dict[str, Any] = {}
    for which in SEEN:
        content, name = getattr(record, which), f"{PICTURES}/{record.id}-{which}.png"
        replace_file(folder / name, content)
        line[f"{which}_file_name"], line[f"{which}_sha256"] = name, hashlib.sha256(content).hexdigest()
    said = {name: getattr(record, name) for name in ("id", "object", "attribute", "prior", "pixel", "prior_source")}
    # Texts, because readers want one type for a column and every edit has keys of its own.
    more = {
        "texts": list(record.texts),
        "edit": _json(dict(record.edit)),
        "checks": _json([dict(check) for check in record.checks]),
    }
    return {**said, **more, **line}


def write_lines(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write a folder's metadata; the pictures must be there."""
    replace_file(folder / METADATA, "".join(_json(row) + "\n" for row in rows).encode())


def add(record: Record, folder: Path) -> None:
    """Put a record into a folder beside those that are there; one of the same id is replaced."""
    others = [one for one in load_records(folder) if one.id != record.id] if (folder / METADATA).is_file() else []
    write_lines([write(one, folder) for one in (*others, record)], folder)


def load_records(folder: str | Path, attribute: str | None = None) -> list[Record]:
    """Read a folder that `write` and `write_lines` made.

    Raises:
        InputError: there is no metadata, or a line or a picture of it is not whole.
    """
    return list(read(folder, attribute))


def read(folder: str | Path, attribute: str | None = None) -> Iterator[Record]:
    """As `load_records`, one at a time."""
    root = Path(folder).expanduser()
    path = root / METADATA
    if not path.is_file():
        raise InputError(f"{str(folder)!r} holds no {METADATA}; give the folder of a set that was built.")
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(text)
            if attribute in (None, row["attribute"]):
                yield _record(row, root)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number} is not a whole record ({error!r}).") from error


def _record(row: Mapping[str, Any], root: Path) -> Record:
    pictures = {}
    for which in SEEN:
        path = (root / row[f"{which}_file_name"]).resolve()
        if not path.is_relative_to(root.resolve()):
            raise InputError(f"the {which} {row[f'{which}_file_name']!r} lies outside the folder.")
        if not path.is_file():
            raise InputError(f"its {which} {row[f'{which}_file_name']!r} is missing.")
        pictures[which] = path.read_bytes()
        if hashlib.sha256(pictures[which]).hexdigest() != row[f"{which}_sha256"]:
            raise InputError(f"its {which} {row[f'{which}_file_name']!r} is not the picture that was written.")
    said = {name: row[name] for name in ("id", "object", "attribute", "prior", "pixel", "prior_source")}
    more = {"texts": (row["texts"][0], row["texts"][1])}
    return Record(**said, **more, **pictures, edit=json.loads(row["edit"]), checks=tuple(json.loads(row["checks"])))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: the folder cannot be written, or its disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
