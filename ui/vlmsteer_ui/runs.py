"""Saved runs: a folder each, with its image and one JSON file, which shows the whole run again without any model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer.images import open_image

VERSION = 1
SHIPPED = Path(__file__).parent / "saved"
ARMS = ("baseline", "steered", "random")  # whose answers a run holds
ID = re.compile(r"[a-z0-9][a-z0-9-]{2,60}")


def loads(text: str) -> Any:
    """JSON as the standard has it, without NaN and infinities.

    Raises:
        ValueError: if it is none.
    """

    def refused(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refused)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10_000


def _all(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _each(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("model", "question", "device", "prior", "pixel", "baseline", "steered", "random", "story", "id"), _text
    ),
    "layers": _count, "max_new_tokens": _count, "panel": lambda value: isinstance(value, dict),
    "recipe": lambda value: value is None or isinstance(value, dict), "tokens": _each(_all(_text)),
    "chances": _each(_all(_number)), "seconds": _each(_number), "found": lambda value: isinstance(value, dict),
}  # fmt: skip


@dataclass
class Run:
    """One image and question, both answers, and what was looked at since.

    Attributes:
        model: its name; `device` says where it ran and in which numbers.
        layers: of its text tower, 0 if not known.
        image: what was asked about; None where no image was given.
        prior, pixel: the answer from memory and the one in the picture, or "".
        panel: `Panel.as_dict`; `recipe` is the header of the recipe that it made, with its hash, or None.
        baseline, steered, random: the answers; the last, if asked for, with random directions of the same norms.
            `tokens` are those of each, as text.
        chances: "prior" and "pixel" -> (baseline, steered, random) probability of the first word of the answer.
        seconds: of each answer.
        found: what tabs found, by the tab's name, as JSON values.
        id: its folder's name once it is saved.
    """

    model: str
    question: str
    image: Image.Image | None = None
    device: str = ""
    layers: int = 0
    prior: str = ""
    pixel: str = ""
    panel: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None
    max_new_tokens: int = 48
    baseline: str = ""
    steered: str = ""
    random: str = ""
    tokens: dict[str, list[str]] = field(default_factory=dict)
    chances: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    story: str = ""
    id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All but the image, as JSON values."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "image"}
        return {"version": VERSION, **values, "has_image": self.image is not None}

    @classmethod
    def from_dict(cls, values: Any, image: Image.Image | None) -> Run:
        """The run that `as_dict` described.

        Raises:
            InputError: if it is damaged, or of a newer version.
        """
        if not isinstance(values, Mapping) or values.get("version") != VERSION:
            raise InputError("This is no run of this page's version.")
        known = {one.name for one in fields(cls)} - {"image"}
        given = {name: value for name, value in values.items() if name in known}
        wrong = [name for name, value in given.items() if not KINDS[name](value)]
        if wrong or "model" not in given or "question" not in given:
            raise InputError(f"This run is damaged: {', '.join(wrong) or 'model or question'} cannot be read.")
        return cls(image=image, **given)


class Runs:
    """The saved runs in a folder, and those that ship."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def ids(self) -> list[str]:
        """All of them, newest first, shipped ones at the end."""
        own = sorted(self.folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        shipped = sorted(SHIPPED.glob("*/run.json"))
        return list(dict.fromkeys(path.parent.name for path in [*own, *shipped] if ID.fullmatch(path.parent.name)))

    def told(self, story: str) -> list[dict[str, str]]:
        """The shipped runs of a story: id and question of each."""
        runs = [self.open(path.parent.name) for path in sorted(SHIPPED.glob("*/run.json"))]
        return [{"id": run.id, "label": run.question} for run in runs if run.story == story]

    def save(self, run: Run) -> str:
        """Write a run's folder, whole or not at all; returns its id, which its content determines."""
        text = json.dumps({**run.as_dict(), "id": ""}, sort_keys=True, ensure_ascii=False)
        pixels = b"" if run.image is None else run.image.tobytes()
        mark = hashlib.sha256(text.encode() + pixels).hexdigest()[:10]
        words = re.sub(r"[^a-z0-9]+", "-", run.question.lower()).strip("-")[:40].strip("-") or "run"
        run.id = f"{words}-{mark}"
        part, place = self.folder / f".{run.id}.part", self.folder / run.id
        if not place.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            if run.image is not None:
                run.image.save(part / "image.png")
            (part / "run.json").write_text(json.dumps(run.as_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
            part.replace(place)
        return run.id

    def place(self, id: str) -> Path:
        """A run's folder.

        Raises:
            InputError: if there is none of that id.
        """
        if isinstance(id, str) and ID.fullmatch(id):
            for folder in (self.folder, SHIPPED):
                if (folder / id / "run.json").is_file():
                    return folder / id
        raise InputError(f"There is no saved run {str(id)[:60]!r}.")

    def open(self, id: str) -> Run:
        """Read a saved run.

        Raises:
            InputError: if there is none, or it is damaged.
        """
        place = self.place(id)
        return self.read((place / "run.json").read_text(encoding="utf-8"), place / "image.png")

    @staticmethod
    def read(text: str, image: Path | None = None) -> Run:
        """A run from its JSON.

        Raises:
            InputError: if it is none.
        """
        try:
            values = loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("This is not a run's JSON.") from error
        return Run.from_dict(values, open_image(image) if image is not None and image.is_file() else None)
