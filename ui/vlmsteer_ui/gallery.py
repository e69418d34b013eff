"""The vectors that a page offers: recipe files that ship with it, and those that were learned or uploaded here."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vlmsteer.actions import compile_actions
from vlmsteer.errors import InputError, RecipeError, VlmsteerError
from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

SHIPPED = Path(__file__).parent / "vectors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+-]{0,60}")  # what a name may look like: never a path
LARGEST = 20_000_000  # bytes of an uploaded file
MOST = 200  # files that a page keeps
SHORT = 40  # characters of what a file says of itself


@dataclass(frozen=True)
class Entry:
    """One recipe file under its name on the page."""

    name: str
    path: Path
    recipe: Recipe
    shipped: bool

    def row(self) -> dict[str, Any]:
        """What the table shows of it, as JSON values."""
        about, edits = self.recipe.about, self.recipe.edits
        layers = sorted({layer for edit in edits for layer in edit.vectors.layers})
        norms = [norm for edit in edits for norm in edit.vectors.norms().values()]
        pairs = about.get("pairs", about.get("examples", about.get("n", "")))
        return {
            "name": self.name, "model": str(self.recipe.model.get("id", "any"))[:SHORT],
            "site": ", ".join(dict.fromkeys(f"{e.vectors.tower}.{e.vectors.point}" for e in edits)) or "rules only",
            "layers": " to ".join(dict.fromkeys(map(str, layers[:1] + layers[-1:]))),
            "method": str(about.get("method", "?"))[:SHORT],
            "pairs": pairs if isinstance(pairs, int) else "",
            "norm": round(sum(norms) / len(norms), 2) if norms else "",
            "date": datetime.fromtimestamp(self.path.stat().st_mtime).strftime("%Y-%m-%d"),
            "hash": self.recipe.hash[:12], "shipped": self.shipped,
        }  # fmt: skip


class Gallery:
    """The recipe files in a folder, beside those that ship."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._read: dict[tuple[Path, int], Recipe] = {}
        self._turn = threading.Lock()  # of whoever adds or deletes: a name is looked at and taken in one go

    def entries(self) -> list[Entry]:
        """All that can be read, shipped ones first."""
        found: dict[str, Entry] = {}
        for place, shipped in ((SHIPPED, True), (self.folder, False)):
            for path in sorted(place.glob("*.safetensors")):
                try:
                    found.setdefault(path.stem, Entry(path.stem, path, self._recipe(path), shipped))
                except VlmsteerError:
                    continue  # a file that somebody put there; uploads are checked before they are kept
        return list(found.values())

    def __getitem__(self, name: str) -> Entry:
        """The entry of a name from the client, which is looked up and never used as a path.

        Raises:
            InputError: if there is none.
        """
        for entry in self.entries():
            if entry.name == name:
                return entry
        raise InputError(f"There is no vector {str(name)[:60]!r} here.")

    def made_for(self, model: str) -> list[str]:
        """The names that were made for a model, which need not be loaded."""
        return [entry.name for entry in self.entries() if entry.recipe.model.get("id") == model]

    def fitting(self, session: Any) -> list[str]:
        """The names that can act on a model."""
        return [entry.name for entry in self.entries() if refusal(entry.recipe, session) is None]

    def add(self, name: str, recipe: Recipe) -> Entry:
        """Save a recipe under a name.

        Raises:
            InputError: if the name is no plain name, or taken.
        """
        path = self.folder / f"{checked_name(name)}.safetensors"
        with self._turn:
            known = [entry.name for entry in self.entries()]
            if path.stem.lower() in map(str.lower, known):
                raise InputError(f"There is a vector {path.stem!r} already; give another name.")
            if len(known) >= MOST:
                raise InputError(f"This page keeps {MOST} vectors; delete one first.")
            recipe.save(path)
        return self[path.stem]

    def upload(self, path: str | Path, name: str) -> Entry:
        """Take an uploaded file in, which must be a recipe of ours: pickles are never opened.

        Raises:
            RecipeError: if it is none.
            InputError: as `add`.
        """
        shown = repr(Path(path).name[:60])
        if Path(path).stat().st_size > LARGEST:
            raise RecipeError(f"{shown} is too large: a vector's file has at most {LARGEST // 1_000_000} MB.")
        try:
            with safe_open(path, framework="pt") as file:
                ours = "vlmsteer" in (file.metadata() or {})
        except (SafetensorError, OSError, ValueError) as error:
            said = "is no safetensors file; other files, such as pickles, are never opened."
            raise RecipeError(f"{shown} {said}") from error
        if not ours:
            raise RecipeError(f"{shown} is a safetensors file, but no recipe of vlmsteer: it has no recipe header.")
        try:
            recipe = Recipe.load(path)
        except (VlmsteerError, AttributeError, RuntimeError) as error:
            why = str(error).replace(repr(str(path)), "it") if isinstance(error, VlmsteerError) else "it is damaged."
            raise RecipeError(f"{shown} cannot be used: {why}") from error
        return self.add(name, recipe)

    def delete(self, name: str) -> None:
        """Delete a vector that was learned or uploaded here.

        Raises:
            InputError: if there is none of that name, or it ships with the page.
        """
        with self._turn:
            entry = self[name]
            if entry.shipped:
                raise InputError(f"{entry.name!r} ships with the page and cannot be deleted.")
            entry.path.unlink(missing_ok=True)
            self._read = {key: recipe for key, recipe in self._read.items() if key[0] != entry.path}

    def _recipe(self, path: Path) -> Recipe:
        key = (path, path.stat().st_mtime_ns)
        if key not in self._read:
            self._read[key] = Recipe.load(path)
        return self._read[key]


def checked_name(name: Any) -> str:
    """A name without spaces around it.

    Raises:
        InputError: if it is no plain name.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name.strip()):
        raise InputError("A vector's name has 1 to 60 letters, digits, spaces and . _ + -, and begins with a letter.")
    return name.strip()


def refusal(recipe: Recipe, session: Any) -> str | None:
    """Why a recipe cannot act on a model, in a sentence, or None."""
    try:
        session.check([recipe])
        if not recipe.model:  # it is tied to no model, so only its sites can tell
            fixed = tuple(edit for edit in recipe.edits if isinstance(edit.vectors, Vectors))
            compile_actions(session.taps, replace(recipe, edits=fixed))
    except VlmsteerError as error:
        return str(error)
    return None
