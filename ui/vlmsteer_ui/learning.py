"""A vector learned on the page: a method, examples, and how well it tells apart examples that it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vlmsteer.bench.fitting import answered, material
from vlmsteer.bench.pairs import select
from vlmsteer.demo import DIRECTIONS, POINTS, VALIDATION, choose, learn
from vlmsteer.errors import InputError
from vlmsteer.methods.method import NEEDS, Method
from vlmsteer.methods.separation import directions, separate
from vlmsteer.recipe import Recipe
from vlmsteer.registry import METHODS
from vlmsteer.session import Session
from vlmsteer.vectors import Vectors
from vlmsteer_counterfacts.dataset import Pair, load_pairs
from vlmsteer_ui import editing
from vlmsteer_ui.background import Told, steps
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.gallery import Entry, checked_name
from vlmsteer_ui.workbench import Workbench

LEAST, MOST = 4, 400  # examples to learn from
HELD = 40  # examples that sides are told apart on
OWN = "set: "  # before the name of a set that was made here
DIRECTION = "to_pixels"
PVP = "Layers and strength are chosen on other pairs; a negative strength then pushes to the prior."


@dataclass(frozen=True)
class Wanted:
    """What is to be learned, from `n` examples of `data`, and the name it gets."""

    method: str
    data: str
    n: int
    name: str

    @classmethod
    def of(cls, bench: Workbench, method: Any, data: Any, n: Any, name: Any) -> Wanted:
        """From the values of the page's controls.

        Raises:
            InputError: if one is not possible, or they do not fit together.
        """
        if not isinstance(method, str) or method not in METHODS:
            raise InputError("Choose a method from the list.")
        if isinstance(n, bool) or not isinstance(n, int | float) or not LEAST <= n <= MOST:
            raise InputError(f"Learn from {LEAST} to {MOST} examples.")
        possible = datasets(bench, method)
        if possible and data not in possible:
            raise InputError(f"{METHODS.load(method).title} learns here from {' or '.join(possible)}.")
        checked_name(name)
        if name.strip() in {entry.name for entry in bench.vectors.entries()}:
            raise InputError(f"There is a vector {name.strip()!r} already; give another name.")
        return cls(method, str(data) if possible else "", int(n), name.strip())


def methods() -> list[tuple[str, str]]:
    """Title and name of every method, those that need pairs first."""
    loaded = [METHODS.load(name) for name in METHODS]
    return [(one.title, one.name) for one in sorted(loaded, key=lambda one: one.needs != "pairs")]


def datasets(bench: Workbench, method: str) -> list[str]:
    """What a method can learn from on this page; empty if it learns from nothing."""
    needs = METHODS.load(method).needs
    if needs == "nothing":
        return []
    return ["drawn", *(OWN + name for name in editing.sets(bench.folder))] if needs == "pairs" else ["drawn", "lures"]


def told_of(method: str) -> str:
    """One line about a method: its paper, what it learns from, and what is particular."""
    one: Method = METHODS.load(method)
    notes = PVP if one.needs == "pairs" else one.notes
    return f"{one.paper}. Learns from {NEEDS[one.needs]}. {notes}".strip()


class Watched(Session):
    """A loaded model whose every forward is told of first: whoever is told may stop it there."""

    def __init__(self, session: Session, told: Told) -> None:
        vars(self).update(vars(session))
        self._told, self._forwards = told, 0

    def look(self) -> None:
        """One more forward begins."""
        self._forwards += 1
        self._told(self._forwards)

    def forward(self, *values: Any, **named: Any) -> Any:
        """As `Session.forward`."""
        self.look()
        return super().forward(*values, **named)

    @contextmanager
    def read(self, *values: Any, **named: Any) -> Iterator[Any]:
        """As `Session.read`: some methods read the vision tower with no forward of the whole model."""
        self.look()
        with super().read(*values, **named) as states:
            yield states


def learned(bench: Workbench, desk: Desk, model: str, wanted: Wanted) -> Iterator[str | Entry]:
    """What is being done, and at last the new entry of the gallery.

    Raises:
        VlmsteerError: what the method raises; `Stopped` if the visitor stopped it.
    """

    def work(session: Any, told: Told) -> Recipe:
        stage = ""

        def say(text: str) -> None:
            nonlocal stage
            stage = text
            told(text)

        watched = Watched(session, lambda count: told(f"{stage} ({count} forwards)"))
        return _learned(bench, watched, wanted, say)

    for over, report in steps(bench.residents(model), desk, work):
        yield bench.vectors.add(wanted.name, report) if over else report


def _learned(bench: Workbench, session: Session, wanted: Wanted, say: Told) -> Recipe:
    method: Method = METHODS.load(wanted.method)
    say(f"Making {wanted.n} examples")
    if method.needs == "pairs":
        recipe, vectors, held = _pairs(bench, session, wanted, say)
    else:
        examples = material(method.needs, wanted.data, wanted.n)
        say(f"Learning {method.title}")
        recipe = method.learn(session, answered(session, method.needs, examples))
        vectors, held = directions(recipe), []
        if vectors is not None and examples and method.needs != "edits":
            held = list(material(method.needs, wanted.data, HELD, split="validate"))
    if vectors is None or not held:
        return recipe
    say("Telling held-out examples apart")
    found = separate(session, vectors, held).as_dict()
    return replace(recipe, about={**recipe.about, "separation_of_held_out": found, "learned_from": wanted.data})


def _pairs(
    bench: Workbench, session: Session, wanted: Wanted, say: Told
) -> tuple[Recipe, Vectors, list[tuple[Any, str, str]]]:
    """PvP, with the point, layers and strength that do best on pairs it did not learn from; vectors of all layers."""
    if wanted.data.startswith(OWN):
        folder = editing.place(bench.folder, wanted.data.removeprefix(OWN))
        pairs: list[Pair] = load_pairs(folder, "color")[: wanted.n]
        if len(pairs) < LEAST:
            raise InputError(f"This set has {len(pairs)} color pairs; learn from {LEAST} or more.")
    else:
        pairs = select(wanted.data, "color", "learn", wanted.n)
    validation = select("drawn", "color", "validate", min(VALIDATION, max(len(pairs), LEAST)))
    choices = []
    for point in POINTS:
        say(f"Learning from {len(pairs)} pairs at {point}")
        found = learn(session, pairs, point)
        say(f"Choosing layers and strength at {point} on {len(validation)} other pairs")
        choices.append(choose(session, found, validation, DIRECTION))
    choice = max(choices, key=lambda one: one.score)
    recipe = choice.learned.recipe(DIRECTIONS[DIRECTION][1] * choice.strength, choice.layers, POINTS[choice.point])
    return recipe, choice.learned.vectors, list(material("pairs", "drawn", HELD, split="test"))
