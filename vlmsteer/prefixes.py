"""What a model made of an image, kept for the next question about it.

Where an image is seen before its question, these are the keys and values of the prompt up to the image's end; where the
question comes first, what the vision tower gave. What a recipe changes there is part of an entry's name, as are the
image's content, the weights and other people's hooks: an entry is used only where it would be computed again. The
entries used last stay, up to a limit in bytes.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vlmsteer.actions import compile_actions
from vlmsteer.errors import InputError
from vlmsteer.prompts import Encoded, Layout
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.remembered import Remembered
from vlmsteer.runs import Run
from vlmsteer.tokens import OF_ROWS
from vlmsteer.vectors import Vectors

if TYPE_CHECKING:
    from vlmsteer.session import Recipes, Session

LIMIT = 512 * 2**20
LATE = ("last", "generated", "question")  # positions that come after the image

Name = tuple[Any, ...]
Entry = tuple[Tensor, ...]


class Prefixes:
    """Entries by name, the one used last at the end; safe to use from several threads.

    Args:
        limit: bytes of all entries together; 0 keeps nothing.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Name, Entry] = OrderedDict()
        self._digests: Remembered[str] = Remembered()
        self._bytes, self._limit = 0, 0
        self.limit = limit

    @property
    def limit(self) -> int:
        """The most bytes that all entries may have together."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if type(limit) is not int or limit < 0:
            raise InputError(f"The limit of kept prefixes is a number of bytes, 0 or more, not {limit!r}.")
        with self._lock:
            self._limit = limit
            self._shrink()

    @property
    def bytes(self) -> int:
        """How many bytes the entries have together."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def known(self, names: Iterable[Name]) -> dict[Name, Entry]:
        """The entries there are under these names; they count as used now."""
        found = {}
        with self._lock:
            for name in names:
                if name in self._entries:
                    self._entries.move_to_end(name)
                    found[name] = self._entries[name]
        return found

    def keep(self, name: Name, entry: Entry) -> None:
        """Keep an entry, as long as nothing newer needs its place. Its tensors must be nobody else's views."""
        size = _size(entry)
        with self._lock:
            if size > self._limit or name in self._entries:
                return
            self._entries[name] = entry
            self._bytes += size
            self._shrink()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _shrink(self) -> None:
        while self._bytes > self._limit:
            _, entry = self._entries.popitem(last=False)
            self._bytes -= _size(entry)

    def digest(self, vectors: Vectors) -> str:
        """A hash of the numbers of some vectors, worked out once for each such object."""
        versions = tuple(0 if vector.is_inference() else vector._version for vector in vectors.layers.values())
        numbers = vectors.layers
        return self._digests(vectors, versions, lambda: _hash([torch.tensor(list(numbers)), *numbers.values()]))


class Begun(NamedTuple):
    """A batch of prompts as it is to be read: what is left of it, and the cache of what has been read before.

    `names` are the rows' names if all of them is left and may be kept, `starts` the columns that the rows begin at.
    """

    layout: Layout
    cache: Any = None
    names: Sequence[Name] = ()
    starts: Sequence[int] = ()
    lengths: Sequence[int] = ()

    def keep(self, prefixes: Prefixes, cache: Any) -> None:
        """Keep the beginnings out of the cache of the batch, now read."""
        if _plain(cache):
            for row, name in enumerate(self.names):
                prefixes.keep(name, _cut(cache, row, self.starts[row], self.lengths[row]))


def begin(session: Session, encoded: Encoded, recipes: Recipes, run: Run, keep: bool = True) -> Begun:
    """Prompts without the beginnings that are known, or that several of them share; these are read here, once.

    Args:
        recipes: what acts, with its vectors settled.
        run: `recipes` made ready; its hooks must be installed.
        keep: whether what is read is kept for later.
    """
    device, prefixes = session.device, session.prefixes
    names = _names(session, encoded, recipes)
    if names is None:
        return Begun(seen(session, encoded, recipes, encoded.whole(device), run))
    entries = prefixes.known(names)
    missing = [name for name in dict.fromkeys(names) if name not in entries]
    if len(missing) == len(names):
        layout, lengths = encoded.whole(device), [row.prefix for row in encoded.rows]
        starts = [layout.prompt.columns - len(row.ids) for row in encoded.rows]
        return Begun(layout, None, names if keep and prefixes.limit else (), starts, lengths)
    if missing:
        rows = [names.index(name) for name in missing]
        if recipes is None or isinstance(recipes, Recipe):
            own = Run(run.actions)
        else:
            own = Run(*compile_actions(session.taps, [recipes[row] for row in rows]))
        layout = encoded.prefix(rows, device)
        with session.instrument.alone():
            cache = session.prefill(layout, own).cache
        width = layout.positions.shape[1]
        if not _plain(cache):
            return Begun(encoded.whole(device))
        for place, (row, name) in enumerate(zip(rows, missing, strict=True)):
            length = encoded.rows[row].prefix
            entries[name] = _cut(cache, place, width - length, length)
            if keep:
                prefixes.keep(name, entries[name])
    return Begun(encoded.suffix(device), _joined([entries[name] for name in names]))


def seen(session: Session, encoded: Encoded, recipes: Recipes, layout: Layout, run: Run) -> Layout:
    """The layout with what the vision tower gives for its images in place of these, where the family allows that."""
    look, model = session.family.look, session.model
    readers = session.instrument.readers()
    if look is None or readers is None or "mm_encoder_outputs" not in _parameters(model):
        return layout
    if any(states.grad or any(site.tower == "vision" for site in states.sites) for states in readers):
        return layout
    shown = [owner for owner in encoded.owners if owner >= 0]
    one = recipes is None or isinstance(recipes, Recipe)
    edits = [edit for recipe in _listed(recipes) if recipe for edit in recipe.edits if edit.strength]
    if not shown or (not one and any(edit.vectors.tower not in OF_ROWS for edit in edits)):
        return layout
    edits = [edit for edit in edits if edit.vectors.tower == "vision"]
    if any(edit.gate is not None for edit in edits):
        return layout
    about = (session.instrument.stamp(), *(_edit(session.prefixes, edit) for edit in edits))
    names = {owner: (*about, _hash(encoded.images[owner].values())) for owner in shown}
    entries = session.prefixes.known(names.values())
    missing = {name: owner for owner, name in names.items() if name not in entries}
    if missing:
        pixels = torch.cat([encoded.images[owner]["pixel_values"] for owner in missing.values()]).to(session.device)
        with session.instrument.alone(), session.acting(Run(run.actions)):
            states = look(model, pixels)
        for name, own in zip(missing, states.split(1), strict=True):
            entries[name] = (own.clone(),)
            session.prefixes.keep(name, entries[name])
    inputs = {name: value for name, value in layout.inputs.items() if name != "pixel_values"}
    inputs["image_states"] = torch.cat([entries[names[owner]][0] for owner in shown])
    return layout._replace(inputs=inputs)


def _listed(recipes: Recipes) -> list[Recipe | None]:
    return [recipes] if recipes is None or isinstance(recipes, Recipe) else list(recipes)


def _names(session: Session, encoded: Encoded, recipes: Recipes) -> list[Name] | None:
    """For each row what its beginning depends on; None if that is more than what is seen before the question."""
    readers = session.instrument.readers()
    if not session.family.image_first or readers is None or min(encoded.owners) < 0:
        return None
    for states in readers:
        if states.grad or states.positions not in LATE or any(site.tower != "text" for site in states.sites):
            return None
    if any(row.prefix >= len(row.ids) for row in encoded.rows):
        return None
    one = recipes is None or isinstance(recipes, Recipe)
    changes: dict[int, Name] = {}
    for recipe in _listed(recipes):
        early = _early(recipe)
        if early is None:
            return None
        changes[id(recipe)] = tuple(_edit(session.prefixes, edit) for edit in early)
    stamp, images = session.instrument.stamp(), [_hash(image.values()) for image in encoded.images]
    return [
        (*changes[id(recipe)], stamp, images[owner], _hash([row.ids[: row.prefix], row.positions[: row.prefix]]))
        for row, owner, recipe in zip(
            encoded.rows, encoded.owners, _listed(recipes) * (len(encoded.rows) if one else 1), strict=True
        )
    ]


def _early(recipe: Recipe | None) -> list[Edit] | None:
    """The edits that act before the question; None if what they do there depends on what follows."""
    early = []
    for edit in recipe.edits if recipe is not None else ():
        if not edit.strength:
            continue
        late = edit.vectors.tower == "text" and (edit.positions in LATE or edit.phase == "decode")
        if edit.gate is not None and (not late or edit.gate.positions == "all"):
            return None
        if not late and not isinstance(edit.positions, str):
            return None
        early += [] if late else [edit]
    return early


def _edit(prefixes: Prefixes, edit: Edit) -> Name:
    vectors = edit.fixed
    where = (vectors.tower, vectors.point, edit.positions, edit.phase)
    return (*where, edit.operation, float(edit.strength), prefixes.digest(vectors))


def _hash(tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _size(entry: Entry) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in entry)


def _parameters(model: Any) -> Mapping[str, Any]:
    return inspect.signature(model.forward).parameters


def _plain(cache: Any) -> bool:
    """True if a cache only grows, so that a part of it is what a shorter prompt would have left."""
    return all(type(layer).__name__ == "DynamicLayer" for layer in getattr(cache, "layers", [None]))


def _cut(cache: Any, row: int, start: int, length: int) -> Entry:
    """Copies of the keys and values of one row's columns, layer by layer: (1, heads, length, head_dim)."""
    both = (part for layer in cache.layers for part in (layer.keys, layer.values))
    return tuple(part[row : row + 1, :, start : start + length].clone() for part in both)


def _joined(entries: Sequence[Entry]) -> Any:
    """A cache with an entry a row, padded with zeros on the left; the entries stay as they are."""
    from transformers import DynamicCache

    longest = max(entry[0].shape[2] for entry in entries)
    cache = DynamicCache()
    parts = []
    for number, first in enumerate(entries[0]):
        if all(entry is entries[0] for entry in entries):
            parts.append(first.expand(len(entries), -1, -1, -1))
            continue
        own = [entry[number] for entry in entries]
        pads = [torch.nn.functional.pad(one, (0, 0, longest - one.shape[2], 0)) for one in own]
        parts.append(torch.cat(pads))
    for layer in range(len(parts) // 2):
        cache.update(parts[2 * layer], parts[2 * layer + 1], layer)
    return cache
