"""Steering vectors: one direction a layer at one point of one tower, and where they come from.

Vectors add, subtract, scale and compare; they know the model they were learned on and refuse another one. On disk they
are a safetensors file with a JSON header; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlmsteer.errors import RecipeError, SiteError
from vlmsteer.sites import Site


@dataclass(frozen=True)
class Vectors:
    """A float32 vector (width,) for each layer, or (tokens, width): one for each chosen token, in order.

    Attributes:
        tower, point: where they belong.
        layers: layer -> vector.
        model: the fingerprint of the model they were learned on (`Session.fingerprint`), or empty.
        about: method, prompts, number of pairs, data hash, norms: where the vectors come from, as JSON values.
    """

    tower: str
    point: str
    layers: Mapping[int, Tensor]
    model: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise RecipeError("Steering vectors need at least one layer.")
        for layer, vector in self.layers.items():
            Site.parse(f"{self.tower}.{layer}.{self.point}")
            if vector.dim() not in (1, 2) or not vector.numel() or not vector.is_floating_point():
                raise RecipeError(
                    f"The vector of layer {layer} must be a row of numbers, or one for each token, not "
                    f"{tuple(vector.shape)} {vector.dtype}."
                )

    def select(self, layers: Iterable[int]) -> Vectors:
        """Only the given layers.

        Raises:
            SiteError: if one has no vector.
        """
        chosen = list(layers)
        missing = [layer for layer in chosen if layer not in self.layers]
        if missing or not chosen:
            raise SiteError(f"There is no vector for layer {missing}; layers with one: {sorted(self.layers)}.")
        return replace(self, layers={layer: self.layers[layer] for layer in chosen})

    def norms(self) -> dict[int, float]:
        """The Euclidean length of each layer's vector."""
        return {layer: float(vector.detach().norm()) for layer, vector in self.layers.items()}

    def cosines(self, other: Vectors) -> dict[int, float]:
        """The cosine between the two vectors of each layer that both have."""
        both = [layer for layer in self.layers if layer in other.layers]
        pairs = {layer: (self.layers[layer].flatten(), other.layers[layer].flatten()) for layer in both}
        return {layer: float(torch.cosine_similarity(one, two, dim=0)) for layer, (one, two) in pairs.items()}

    def random_like(self, seed: int) -> Vectors:
        """Random directions of the same length in every layer: the control for "any push this large would do".

        Where a vector is zero (heads that were not chosen), so is the random one.
        """
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for layer, vector in sorted(self.layers.items()):
            if not vector.any():
                layers[layer] = vector
                continue
            direction = torch.randn(vector.shape, generator=generator) * (vector != 0)
            length = direction.norm(dim=-1, keepdim=True)
            layers[layer] = direction * (vector.norm(dim=-1, keepdim=True) / length.where(length > 0, 1.0))
        return replace(self, layers=layers, about={**self.about, "control": f"random direction, seed {seed}"})

    def shuffled(self, seed: int, halves: int = 1) -> Vectors:
        """The same numbers at other dimensions: the control where they are factors or values and no direction.

        Args:
            halves: 2 where a vector is two halves that belong together dimension by dimension.
        """
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for layer, vector in sorted(self.layers.items()):
            order = torch.randperm(vector.shape[-1] // halves, generator=generator)
            layers[layer] = torch.cat([part[..., order] for part in vector.chunk(halves, dim=-1)], -1)
        return replace(self, layers=layers, about={**self.about, "control": f"shuffled dimensions, seed {seed}"})

    def __add__(self, other: Vectors) -> Vectors:
        if (self.tower, self.point, set(self.layers)) != (other.tower, other.point, set(other.layers)):
            raise RecipeError("Only vectors of the same tower, point and layers can be added.")
        return replace(self, layers={layer: vector + other.layers[layer] for layer, vector in self.layers.items()})

    def __mul__(self, factor: float) -> Vectors:
        return replace(self, layers={layer: vector * factor for layer, vector in self.layers.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Vectors:
        return self * -1.0

    def __sub__(self, other: Vectors) -> Vectors:
        return self + -other


@dataclass(frozen=True)
class PerQuestion:
    """Vectors that are made anew for each question: what the image adds to the state of the prompt's last token.

    They stand in an edit where `Vectors` stand. The question is read once with the image and once without, and the
    difference at `read_point` is the vector of each layer (VISTA, Li et al., ICML 2025).

    Attributes:
        tower, point, layers: where they are used.
        read_point: where they are read.
        factor: what they are multiplied with.
        seed: if given, random directions of the same lengths: the control.
    """

    tower: str
    point: str
    layers: tuple[int, ...]
    read_point: str = "block_out"
    factor: float = 1.0
    seed: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise RecipeError("Steering vectors need at least one layer.")
        for layer in self.layers:
            Site.parse(f"{self.tower}.{layer}.{self.point}")
        Site.parse(f"{self.tower}.0.{self.read_point}")
        if not all(type(layer) is int for layer in self.layers):
            raise RecipeError(f"Layers are whole numbers, not {self.layers!r}.")
        if self.seed is not None and (type(self.seed) is not int or abs(self.seed) >= 2**63):
            raise RecipeError(f"A seed is a whole number below 2**63, not {self.seed!r}.")
        if type(self.factor) not in (int, float) or not abs(self.factor) < 1e300:
            raise RecipeError(f"The factor is a finite number, not {self.factor!r}.")

    def spec(self) -> dict[str, Any]:
        """What a file holds of them, as JSON values."""
        return {"read_point": self.read_point, "factor": self.factor, "seed": self.seed}

    def norms(self) -> dict[int, float]:
        """None are known before a question is asked."""
        return {}

    def select(self, layers: Iterable[int]) -> PerQuestion:
        """Only the given layers.

        Raises:
            SiteError: if one is not among them.
        """
        chosen = tuple(layers)
        missing = [layer for layer in chosen if layer not in self.layers]
        if missing or not chosen:
            raise SiteError(f"There is no vector for layer {missing}; layers with one: {sorted(self.layers)}.")
        return replace(self, layers=chosen)

    def random_like(self, seed: int) -> PerQuestion:
        """Random directions of the same lengths as each question's own."""
        return replace(self, seed=seed)

    def __mul__(self, factor: float) -> PerQuestion:
        return replace(self, factor=self.factor * factor)

    __rmul__ = __mul__

    def __neg__(self) -> PerQuestion:
        return self * -1.0

    def of(self, states: Mapping[int, Tensor]) -> Vectors:
        """The vectors of one question from its differences (width,) by layer."""
        layers = {layer: self.factor * states[layer].flatten() for layer in self.layers}
        found = Vectors(self.tower, self.point, layers)
        return found if self.seed is None else found.random_like(self.seed)


def digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a JSON header and the bytes of named tensors."""
    total = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def write(path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file with a JSON header, whole or not at all."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise RecipeError(f"Recipes are saved as .safetensors files, not {path.name!r}.")
    if not path.parent.is_dir():
        raise RecipeError(f"There is no folder {str(path.parent)!r} to save {path.name!r} in.")
    # Clones: safetensors refuses tensors that share memory, and one vector may serve several layers.
    data = save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        {"vlmsteer": json.dumps(header)},
    )
    whole(path, lambda part: part.write_bytes(data))


def whole(path: Path, fill: Callable[[Path], Any]) -> None:
    """Make a file whole or not at all: `fill` writes another one beside it, which then takes its place.

    Raises:
        RecipeError: if it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        fill(part)
        os.replace(part, path)
    except OSError as error:
        raise RecipeError(f"{str(path)!r} could not be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON header and the tensors of a file that `write` made.

    Raises:
        RecipeError: if it is missing, not safetensors (a pickle is never opened), or not ours.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"There is no recipe file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RecipeError(
            f"{str(path)!r} is not a readable safetensors file ({error}); pickles are never opened."
        ) from error
    try:
        header = json.loads(metadata["vlmsteer"])
    except (KeyError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{str(path)!r} is a safetensors file, but not a vlmsteer recipe: it has no recipe header."
        ) from error
    if not isinstance(header, dict):
        raise RecipeError(f"{str(path)!r} has a damaged recipe header.")
    return header, tensors
