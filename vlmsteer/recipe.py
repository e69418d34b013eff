"""A recipe is everything that is changed inside a model, as one frozen value.

It is a list of edits (which vectors, at which sites and tokens, by which operation, how strongly) with the origin of
its vectors. The same recipe runs in the API, the command line, a benchmark and on a page; it is saved as one file and
has a hash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmsteer import vectors as store
from vlmsteer.errors import RecipeError, did_you_mean
from vlmsteer.operations import DIRECTED, NAN_ALLOWED, OPERATIONS, WIDTHS
from vlmsteer.sites import Site
from vlmsteer.tokens import PHASES, Positions, check_positions
from vlmsteer.vectors import PerQuestion, Vectors

VERSION = 1
SCORES = {
    "cosine": "the cosine between the state and the direction",
    "projected": "the cosine between the state h and tanh(h projected on the direction) (CAST)",
    "logistic": "the probability 1 / (1 + exp(-(h . direction + bias)))",
}
RULES = {
    "self_logits": "mixes in what layers before the last would say (VISTA)",
    "contrast": "takes away what the model would say of a distorted image, or of none (VCD, PAI)",
    "adaptive": "edits as strongly, token by token, as they change the next token (dynamic composition)",
    "rollback": "goes back where a probe sees an untrue word coming (TruthPrInt)",
    "probe_rollback": "goes back and steers where probes find the answer untrue (FASB)",
    "overtrust": "avoids tokens that attend to one summary token only (OPERA)",
}
IN_FORWARD = ("self_logits",)  # rules that are part of a forward; the others are rules of decoding


@dataclass(frozen=True)
class Gate:
    """A probe that decides for each row, once at its prompt, whether an edit acts on it.

    Attributes:
        site: where it reads; it must come before the edit's sites.
        direction: (width,) what it looks for.
        threshold: of the score.
        score: a name from `SCORES`.
        positions: "last", the prompt's last token, or "all", the mean of the prompt's tokens.
        when: the edit acts where the score is "above" or "below" the threshold.
    """

    site: Site
    direction: Tensor
    threshold: float
    score: str = "cosine"
    positions: str = "last"
    when: str = "above"
    bias: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(str(self.site)))
        if self.score not in SCORES:
            raise RecipeError(f"There is no gate score {self.score!r}{did_you_mean(self.score, SCORES)}")
        if self.when not in ("above", "below") or self.positions not in ("last", "all"):
            raise RecipeError(
                f"A gate acts 'above' or 'below' its threshold and reads 'last' or 'all', not {self.when!r}, "
                f"{self.positions!r}."
            )
        if self.direction.dim() != 1 or not self.direction.isfinite().all() or not self.direction.any():
            raise RecipeError("A gate's direction is a row of finite numbers that are not all zero.")
        if not math.isfinite(self.threshold) or not math.isfinite(self.bias):
            raise RecipeError("A gate's threshold and bias are finite numbers.")

    def decide(self, states: Tensor) -> Tensor:
        """(rows,) whether the edit acts, from the states (rows, width) read at `site`."""
        states = states.float()
        direction = self.direction.to(states.device, torch.float32)
        if self.score == "logistic":
            found = torch.sigmoid(states @ direction + self.bias)
        else:
            aim = direction
            if self.score == "projected":
                aim = torch.tanh((states @ direction / direction.square().sum())[:, None] * direction)
            found = torch.cosine_similarity(states, aim.expand_as(states), dim=-1)
        return found > self.threshold if self.when == "above" else found < self.threshold

    def spec(self) -> dict[str, Any]:
        """All but the direction, as JSON values."""
        return {
            "site": str(self.site), "threshold": float(self.threshold), "score": self.score,
            "positions": self.positions, "when": self.when, "bias": float(self.bias),
        }  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A change of what is said next that is no edit of activations: of logits, or of the way of decoding.

    Attributes:
        name: from `RULES`.
        settings: its numbers and words, as JSON values.
        strength: 0 changes nothing; 1 is the method's own strength.
        tensors: what it has learned.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    strength: float = 1.0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise RecipeError(f"There is no rule {self.name!r}{did_you_mean(self.name, RULES)}")
        finite(self.strength)

    def spec(self) -> dict[str, Any]:
        """All but the tensors, as JSON values."""
        return {"name": self.name, "settings": dict(self.settings), "strength": float(self.strength)}


def finite(strength: Any) -> float:
    """A strength as it is given, if it is a finite number.

    Raises:
        RecipeError: if it is not.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise RecipeError(f"A strength is a finite number, not {strength!r}.")
    return strength


@dataclass(frozen=True)
class Edit:
    """One change: an operation with a vector at each of some layers.

    Attributes:
        vectors: which vector in which layer of which tower and point; `PerQuestion` makes them for each question.
        operation: a name from `operations.OPERATIONS`.
        strength: 0 changes nothing; 1 is the method's own strength.
        positions: which tokens (`tokens.POSITIONS`, or token indices of the prompt).
        phase: "prefill", "decode" or "both".
        gate: a probe that decides which rows it acts on; None means all.
    """

    vectors: Vectors | PerQuestion
    operation: str = "add"
    strength: float = 1.0
    positions: Positions = "last"
    phase: str = "both"
    gate: Gate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", check_positions(self.positions))
        if self.operation not in OPERATIONS:
            raise RecipeError(f"There is no operation {self.operation!r}{did_you_mean(self.operation, OPERATIONS)}")
        if self.phase not in PHASES:
            raise RecipeError(f"There is no phase {self.phase!r}{did_you_mean(self.phase, PHASES)}")
        finite(self.strength)
        if not isinstance(self.positions, str) and isinstance(self.vectors, Vectors):
            order = sorted(set(self.positions), key=lambda index: (index < 0, index))
            if list(self.positions) != order and any(v.dim() == 2 for v in self.vectors.layers.values()):
                raise RecipeError(f"Indices of tokens with a vector each come in order, {order}, not {self.positions}.")
        only = {"last": "both", "all": "both", "generated": "decode"}.get(str(self.positions), "prefill")
        if "both" not in (only, self.phase) and only != self.phase:
            raise RecipeError(f"An edit at positions {self.positions!r} never acts in phase {self.phase!r}.")
        for layer, vector in self.vectors.layers.items() if isinstance(self.vectors, Vectors) else ():
            bad = vector.isinf().any() if self.operation in NAN_ALLOWED else not vector.isfinite().all()
            if bad:
                raise RecipeError(
                    f"The vector for {self.vectors.tower}.{layer}.{self.vectors.point} holds NaN or infinite values."
                )

    @property
    def fixed(self) -> Vectors:
        """Its vectors, which must not depend on the question.

        Raises:
            RecipeError: if they do.
        """
        if not isinstance(self.vectors, Vectors):
            raise RecipeError(
                "This recipe makes its vectors from each question: use session.ask, ask_many, logits or score, which "
                "have it."
            )
        return self.vectors

    @property
    def sites(self) -> list[Site]:
        """The sites it changes, by layer."""
        return [Site(self.vectors.tower, layer, self.vectors.point) for layer in sorted(self.vectors.layers)]

    def random_like(self, seed: int) -> Edit:
        """The same edit with a random vector: its control."""
        vectors = self.vectors
        if isinstance(vectors, Vectors) and self.operation not in DIRECTED:
            return replace(self, vectors=vectors.shuffled(seed, WIDTHS.get(self.operation, 1)))
        return replace(self, vectors=vectors.random_like(seed))

    def spec(self) -> dict[str, Any]:
        """All but the vectors' numbers, as JSON values."""
        more: dict[str, Any] = {} if self.gate is None else {"gate": self.gate.spec()}
        if isinstance(self.vectors, PerQuestion):
            more["per_question"] = self.vectors.spec()
        return more | {
            "tower": self.vectors.tower,
            "point": self.vectors.point,
            "layers": sorted(self.vectors.layers),
            "operation": self.operation,
            "strength": float(self.strength),
            "positions": self.positions if isinstance(self.positions, str) else list(self.positions),
            "phase": self.phase,
            "norms": {
                str(layer): round(norm, 6)
                for layer, norm in sorted(self.vectors.norms().items())
                if math.isfinite(norm)
            },
        }


@dataclass(frozen=True)
class Recipe:
    """Edits applied together, in order, with rules for what is said next, and where they come from.

    Recipes add (both act, the first one first), and are multiplied by a number, which multiplies every strength.
    """

    edits: tuple[Edit, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        object.__setattr__(self, "rules", tuple(self.rules))

    def __add__(self, other: Recipe) -> Recipe:
        if self.model and other.model and dict(self.model) != dict(other.model):
            raise RecipeError(
                f"One recipe was made for {self.model.get('id')}, the other for another model, "
                f"{other.model.get('id')}: they cannot act together."
            )
        parts = [part for one in (self, other) for part in one.about.get("parts", [dict(one.about)])]
        about = {"method": " + ".join(str(part.get("method", "?")) for part in parts), "parts": parts}
        return Recipe(self.edits + other.edits, self.model or other.model, about, self.rules + other.rules)

    def __mul__(self, factor: float) -> Recipe:
        return self.scaled(factor)

    __rmul__ = __mul__

    def __neg__(self) -> Recipe:
        return self.scaled(-1.0)

    def random_like(self, seed: int) -> Recipe:
        """The same edits with random directions of the same lengths: what any push this large would do.

        Factors and values, which are no directions, go to other dimensions. Gates and rules stay as they are.
        """
        return replace(self, edits=tuple(edit.random_like(seed) for edit in self.edits))

    @staticmethod
    def of(
        vectors: Vectors,
        strength: float = 1.0,
        layers: Iterable[int] | None = None,
        operation: str = "add",
        positions: Positions = "last",
        phase: str = "both",
    ) -> Recipe:
        """A recipe with one edit; `layers` narrows the vectors to some layers."""
        chosen = vectors if layers is None else vectors.select(layers)
        return Recipe((Edit(chosen, operation, strength, positions, phase),), vectors.model, vectors.about)

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with every strength multiplied."""
        finite(factor)
        edits = tuple(replace(edit, strength=edit.strength * factor) for edit in self.edits)
        return replace(self, edits=edits, rules=tuple(replace(r, strength=r.strength * factor) for r in self.rules))

    def narrowed(self, layers: Iterable[int], tower: str = "text") -> Recipe:
        """The same recipe without what it does in other layers of a tower.

        Raises:
            RecipeError: if nothing would be left.
        """
        kept, chosen = set(layers), []
        for edit in self.edits:
            if edit.vectors.tower != tower:
                chosen.append(edit)
            elif left := [layer for layer in edit.vectors.layers if layer in kept]:
                chosen.append(replace(edit, vectors=edit.vectors.select(left)))
        if not chosen and not self.rules:
            raise RecipeError(f"This recipe has no edit in layers {sorted(kept)} of the {tower} tower.")
        return replace(self, edits=tuple(chosen))

    def for_any_model(self) -> Recipe:
        """The same recipe without its tie to the model it was made on; sites and widths are still checked."""
        return replace(self, model={}, about={**self.about, "made_for": dict(self.model)})

    @property
    def last_only(self) -> bool:
        """True if it touches nothing before the last prompt token in the text tower: earlier states may be reused."""
        return (
            not self.decoding
            and not self.per_question
            and all(
                edit.vectors.tower == "text"
                and edit.positions in ("last", "generated")
                and (edit.gate is None or edit.gate.positions == "last")
                for edit in self.edits
            )
        )

    @property
    def same_prefix(self) -> bool:
        """True if what it does to a prompt's beginning is the same whatever follows: prompts may share that."""
        return not self.per_question and all(
            isinstance(edit.positions, str) and edit.gate is None for edit in self.edits
        )

    @property
    def decoding(self) -> tuple[Rule, ...]:
        """Its rules that change the way of decoding."""
        return tuple(rule for rule in self.rules if rule.name not in IN_FORWARD and rule.strength != 0)

    @property
    def per_question(self) -> bool:
        """True if it has vectors that are made anew for each question."""
        return any(isinstance(edit.vectors, PerQuestion) and edit.strength != 0 for edit in self.edits)

    def header(self) -> dict[str, Any]:
        """Everything but the vectors' numbers, as JSON values."""
        return {
            "version": VERSION,
            "model": dict(self.model),
            "about": dict(self.about),
            "edits": [edit.spec() for edit in self.edits],
            **({"rules": [rule.spec() for rule in self.rules]} if self.rules else {}),
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for i, edit in enumerate(self.edits):
            if isinstance(edit.vectors, Vectors):
                tensors |= {f"{i}.{layer}": vector for layer, vector in edit.vectors.layers.items()}
            if edit.gate is not None:
                tensors[f"{i}.gate"] = edit.gate.direction
        for i, rule in enumerate(self.rules):
            tensors |= {f"rule.{i}.{name}": tensor for name, tensor in rule.tensors.items()}
        return tensors

    @property
    def hash(self) -> str:
        """SHA-256 of the whole recipe."""
        return store.digest(self.header(), self._tensors())

    def save(self, path: str | Path) -> None:
        """Write the recipe as one safetensors file.

        Raises:
            RecipeError: if the file cannot be written.
        """
        store.write(path, self.header(), self._tensors())

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: if it is not one, or is damaged.
        """
        header, tensors = store.read(path)
        if header.get("version") != VERSION:
            raise RecipeError(
                f"{str(path)!r} is a recipe of version {header.get('version')!r}; this program reads {VERSION}."
            )
        try:
            model, about = dict(header["model"]), dict(header["about"])
            edits = [_edit(spec, i, tensors, model, about) for i, spec in enumerate(header["edits"])]
            rules = [
                Rule(spec["name"], dict(spec["settings"]), spec["strength"], _under(f"rule.{i}.", tensors))
                for i, spec in enumerate(header.get("rules", []))
            ]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RecipeError(f"{str(path)!r} has a damaged recipe header: {error!r}.") from error
        return Recipe(tuple(edits), model, about, tuple(rules))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _edit(
    spec: Mapping[str, Any], i: int, tensors: Mapping[str, Tensor], model: dict[str, Any], about: dict[str, Any]
) -> Edit:
    """The edit that a file's header and tensors describe."""
    if "per_question" in spec:
        vectors: Vectors | PerQuestion = PerQuestion(
            spec["tower"], spec["point"], tuple(spec["layers"]), model=model, about=about, **spec["per_question"]
        )
    else:
        layers = {int(layer): tensors[f"{i}.{layer}"] for layer in spec["layers"]}
        vectors = Vectors(spec["tower"], spec["point"], layers, model, about)
    positions = spec["positions"] if isinstance(spec["positions"], str) else tuple(spec["positions"])
    gate = Gate(direction=tensors[f"{i}.gate"], **spec["gate"]) if "gate" in spec else None
    return Edit(vectors, spec["operation"], spec["strength"], positions, spec["phase"], gate)
