"""What a set of counterfactual pairs holds, as written in a TOML file; everything unknown in it is refused."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts import photos
from vlmsteer_counterfacts.dataset import ATTRIBUTES
from vlmsteer_counterfacts.drawn import World

VERSION = 1


@dataclass(frozen=True)
class Config(World):
    """What a set holds, and what may be drawn for it.

    Attributes:
        name: of the set.
        counts: attribute -> how many pairs are made (and checked) of the drawn world.
        photos: edits of pictures instead: the keywords of `photos.edit`, one table a pair.
        seed: of everything random.
        scorer: whose agreement is asked: "tiny-clip", another open_clip model, or "" for nobody's.
    """

    name: str = "counterfacts"
    counts: dict[str, int] = field(default_factory=dict)
    photos: tuple[dict[str, Any], ...] = ()
    seed: int = 0
    scorer: str = "tiny-clip"

    def __post_init__(self) -> None:
        for name, count in self.counts.items():
            if name not in ATTRIBUTES:
                raise InputError(f"counts has no attribute {name!r}{did_you_mean(name, ATTRIBUTES)}.")
            if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= 1_000_000:
                raise InputError(f"counts.{name} is a number of pairs, 1 to 1000000, not {count!r}.")
        if bool(self.counts) == bool(self.photos):
            raise InputError("A configuration has either [counts] of drawn pairs or [[photos]] to edit.")
        for name in ("seed", "pixels"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"{name} is a whole number, not {getattr(self, name)!r}.")
        super().__post_init__()

    def items(self) -> list[tuple[str, int]]:
        """(attribute, number) of every pair; photos count as one attribute, ""."""
        if self.photos:
            return [("", number) for number in range(len(self.photos))]
        return [(name, number) for name, count in sorted(self.counts.items()) for number in range(count)]

    def text(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n"


def load_config(path: str | Path) -> Config:
    """Read a configuration, TOML (or JSON as `build` leaves it in a folder).

    Raises:
        InputError: it cannot be read, or a key or value of it is unknown.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        given: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"The configuration {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"The configuration {str(path)!r} is no TOML: {error}.") from error
    given.pop("version", None)
    known = [one.name for one in fields(Config)]
    for name in given:
        if name not in known:
            raise InputError(f"{str(path)!r} has an unknown key {name!r}{did_you_mean(name, known)}.")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if given.get("photos"):
        given["photos"] = tuple(photos.resolved(row, path.parent) for row in given["photos"])
    return Config(**given)
