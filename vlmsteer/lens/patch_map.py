"""What patching found: the effect of every layer, position and unit, with named axes, beside the two runs.

The recovery puts a metric on one scale, 0 where the run is as the corrupted one and 1 where it is as the clean one
(Zhang and Nanda 2024, arXiv 2309.16042), whichever way states went.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlmsteer.errors import InputError, SiteError


@dataclass(frozen=True, eq=False)
class PatchMap:
    """Effects of patching one point.

    Attributes:
        effects: (layers, positions), with units (layers, positions, units): how much the metric changed in the
            recipient; of several pairs the mean.
        layers, positions, units: what the axes count: layers, groups of token indices, and heads or dimensions.
        tokens: the text of each group; those of an image are "image".
        places: what each group is in prompts of any length: "image 4" is an image's token, "end -1" the last one.
        clean, corrupted: the metric of the two runs; of several pairs the means.
        point, metric, method, direction: what was patched, measured, and how.
        signed: whether effects have a sign; AtP* estimates magnitudes.
        pairs: how many pairs this is the mean of.
    """

    effects: np.ndarray
    layers: list[int]
    positions: list[tuple[int, ...]]
    tokens: list[str]
    places: list[str]
    clean: float
    corrupted: float
    tower: str
    point: str
    metric: str
    method: str
    direction: str
    units: list[int] | None = None
    signed: bool = True
    pairs: int = 1

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes."""
        return ("layer", "position", *([] if self.units is None else ["head" if self.point == "head" else "unit"]))

    @property
    def cells(self) -> list[int]:
        """For each position the number of the image token that it is, or -1."""
        return [int(place[6:]) if place.startswith("image ") else -1 for place in self.places]

    @property
    def recovery(self) -> np.ndarray:
        """The metric of the patched runs between the corrupted (0) and the clean run (1); NaN if these are equal.

        Of magnitudes it is what the patch moves at most, towards the donor.
        """
        span = self.clean - self.corrupted
        if not span:
            return np.full(self.effects.shape, np.nan)
        if self.direction == "denoise":
            return self.effects / (span if self.signed else abs(span))
        return 1 + self.effects / (span if self.signed else -abs(span))

    @property
    def share(self) -> np.ndarray:
        """How far a patch moves the recipient towards the donor, 0 not at all and 1 all the way."""
        return self.recovery if self.direction == "denoise" else 1 - self.recovery

    @property
    def by_position(self) -> np.ndarray:
        """(layers, positions): `share`, with units that of the unit whose effect is largest."""
        if self.units is None:
            return self.share
        best = np.abs(self.effects).argmax(-1)[..., None]
        return np.take_along_axis(self.share, best, -1)[..., 0]

    def strongest(self, count: int = 10) -> list[dict[str, Any]]:
        """The sites of the largest effects, as JSON values; `index` is where each is in `effects`."""
        share, found = self.share, []
        for flat in np.argsort(-np.abs(self.effects), axis=None, kind="stable")[:count]:
            place = np.unravel_index(int(flat), self.effects.shape)
            layer, position = int(place[0]), int(place[1])
            one = {
                "site": f"{self.tower}.{self.layers[layer]}.{self.point}",
                "positions": list(self.positions[position]),
                "token": self.tokens[position],
                "index": [int(i) for i in place],
                "effect": float(self.effects[place]),
                "share": _number(share[place]),
            }
            if self.cells[position] >= 0:
                one["image_token"] = self.cells[position]
            if self.units is not None:
                one[self.axes[2]] = self.units[int(place[2])]
            found.append(one)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The whole map as JSON values."""
        return {
            **asdict(replace(self, effects=np.empty(0))),
            "axes": list(self.axes),
            "effects": self.effects.tolist(),
            "recovery": _nested(self.recovery.tolist()),
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.as_dict(), ensure_ascii=False, indent=1), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> PatchMap:
        """Read a map that `save` wrote.

        Raises:
            InputError: if the file is none.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            found = {one.name: found[one.name] for one in fields(PatchMap)}
            found["effects"] = np.array(found["effects"], dtype=float)
            found["positions"] = [tuple(group) for group in found["positions"]]
            return PatchMap(**found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} is no map that patching saved: {error}") from error

    def grid(self, layer: int) -> dict[int, float]:
        """Image token -> `share` at one layer.

        Raises:
            SiteError: if the layer was not patched, or no single image token was.
        """
        if layer not in self.layers:
            raise SiteError(f"Layer {layer} was not patched; patched were {self.layers}.")
        if max(self.cells, default=-1) < 0:
            raise SiteError("No image token was patched by itself, so there is no map over the image.")
        values = self.by_position[self.layers.index(layer)]
        return {cell: float(value) for cell, value in zip(self.cells, values, strict=True) if cell >= 0}


def mean(maps: Sequence[PatchMap]) -> PatchMap:
    """The mean of maps of several pairs, its recovery the ratio of the means.

    Image tokens are matched by their place in the image, others from the end of the prompt; what some pair lacks is
    left out.

    Raises:
        InputError: if there are none, or they differ in more than their tokens.
    """
    if not maps:
        raise InputError("There is no map to take the mean of.")
    first = maps[0]
    for other in maps:
        if (other.layers, other.point, other.metric, other.direction, other.units, other.method) != (
            first.layers, first.point, first.metric, first.direction, first.units, first.method
        ):  # fmt: skip
            raise InputError("Maps of different points, layers, metrics or methods have no mean.")
    places, effects = stacked(maps)
    own = [first.places.index(place) for place in places]
    return replace(
        first,
        effects=effects.mean(0),
        positions=[first.positions[number] for number in own],
        tokens=[_shared([one.tokens[one.places.index(place)] for one in maps]) for place in places],
        places=places,
        clean=float(np.mean([one.clean for one in maps])),
        corrupted=float(np.mean([one.corrupted for one in maps])),
        pairs=sum(one.pairs for one in maps),
    )


def stacked(maps: Sequence[PatchMap]) -> tuple[list[str], np.ndarray]:
    """The places that all maps have, and their effects (maps, layers, places[, units]) there.

    Raises:
        InputError: if they have none in common.
    """
    shared = [place for place in maps[0].places if all(place in one.places for one in maps[1:])]
    if not shared:
        raise InputError("The maps have no position in common.")
    return shared, np.stack([one.effects[:, [one.places.index(place) for place in shared]] for one in maps])


def _shared(tokens: Sequence[str]) -> str:
    return tokens[0] if len(set(tokens)) == 1 else "…"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _nested(values: Any) -> Any:
    return [_nested(value) for value in values] if isinstance(values, list) else _number(values)
