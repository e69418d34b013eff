"""Reading and rewriting activations while a `with` block is open. The only file that registers a hook.

An `Instrument` belongs to one model. It puts a hook on a module while somebody uses that site and takes it off after
the last one; what a hook does is looked up in a ContextVar, so two threads run different recipes on one model and
nothing survives its `with` block. Hooks come first in the module's list: transformers' own collectors, which feed the
vision tower's states to the projector, then see the edited stream.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmsteer.errors import RecipeError, SiteError
from vlmsteer.operations import OPERATIONS, WIDTHS
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.sites import Site
from vlmsteer.tokens import EVERY, Frame, Positions, Selection

PLAIN_IN_HALF = frozenset({"add", "replace", "clamp", "scale"})  # computed in the model's dtype; the rest in float32


class Tap(NamedTuple):
    """The module at a site, which side of it is meant, and the width; `heads` splits the width at `head` sites."""

    module: nn.Module
    side: str
    width: int
    heads: int | None = None


class Prompt(NamedTuple):
    """What the caller knows of the prompt: its columns with padding, and its question tokens, (rows, columns) bool."""

    columns: int
    question: Tensor | None = None


class Action:
    """One edit at one site, for one recipe or for a batch whose rows carry different vectors and strengths."""

    def __init__(self, edit: Edit, vectors: Tensor, strengths: Tensor, active: Tensor | None) -> None:
        self.positions, self.phase, self.operation = edit.positions, edit.phase, edit.operation
        self.vectors, self.strengths, self.active = vectors, strengths, active
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, states: Tensor, selection: Selection | None, group: int, owners: Tensor | None) -> Tensor:
        """The edited states; `owners` maps rows of this tower's batch to the caller's, None means rows // group."""
        if selection is None:
            return states
        dtype = states.dtype
        if self.operation not in PLAIN_IN_HALF:
            dtype = torch.promote_types(dtype, torch.float32)
        vectors, strengths = self._on(states.device, dtype)
        operation = OPERATIONS[self.operation]
        if selection is EVERY and self.active is None and states.dim() == 3:
            return operation(states.to(dtype), vectors[:, None], strengths[:, None]).to(states.dtype)
        rows, columns = selection
        if rows is None or columns is None:
            rows = torch.arange(states.shape[0], device=states.device).repeat_interleave(states.shape[1])
            columns = torch.arange(states.shape[1], device=states.device).repeat(states.shape[0])
        if self.active is not None:
            caller = rows // group if owners is None else owners.to(rows.device)[rows]
            keep = self.active.to(rows.device)[caller]
            rows, columns, caller = rows[keep], columns[keep], caller[keep]
            vectors, strengths = vectors[caller], strengths[caller]
        changed = operation(states[rows, columns].to(dtype), vectors, strengths).to(states.dtype)
        return states.index_put((rows, columns), changed)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        key = (device, dtype)
        if key not in self._placed:
            self._placed[key] = (self.vectors.to(device, dtype), self.strengths.to(device, dtype))
        return self._placed[key]


class States:
    """What a reader collected: `states[site]` is (rows, width), or (rows, tokens, width) if a row has several."""

    def __init__(
        self, sites: Sequence[Site], positions: Positions, phase: str, taps: Mapping[Site, Tap], grad: bool
    ) -> None:
        self.sites, self.positions, self.phase, self.grad = list(sites), positions, phase, grad
        self._taps = taps
        self._parts: dict[Site, list[tuple[Tensor, Tensor]]] = {site: [] for site in sites}
        self._base: Counter[Site] = Counter()
        self._batch: Counter[Site] = Counter()

    def record(self, site: Site, states: Tensor, selection: Selection | None, new_prompt: bool) -> Tensor:
        """Keep the selected tokens of one forward.

        Returns:
            The states to go on with, equal to those given. With `grad` they are made from the tensors that `rows`
            gives, so that the output has gradients with respect to these.
        """
        if new_prompt:
            self._base[site] += self._batch[site]
            self._batch[site] = states.shape[0]
        if selection is None:
            return states
        rows, columns = selection
        if rows is None or columns is None:
            rows = torch.arange(states.shape[0], device=states.device).repeat_interleave(states.shape[1])
            columns = torch.arange(states.shape[1], device=states.device).repeat(states.shape[0])
        chosen, numbers = states[rows, columns], rows + self._base[site]
        if site.point == "head":
            chosen = chosen.unflatten(-1, (self._taps[site].heads or 1, -1))
        if not self.grad:
            self._parts[site].append((numbers, chosen.detach()))
            return states
        pieces = chosen.split(rows.unique_consecutive(return_counts=True)[1].tolist())
        self._parts[site] += zip(numbers.unique_consecutive()[:, None], pieces, strict=True)
        return states.index_put((rows, columns), torch.cat(pieces).flatten(1))

    def rows(self, site: Site | str) -> list[Tensor]:
        """For each row read, its tokens in order: (tokens, width), at `head` sites (tokens, heads, head_dim).

        Raises:
            SiteError: if the site was not read.
        """
        site = Site.parse(site) if isinstance(site, str) else site
        if site not in self._parts:
            raise SiteError(f"{site} was not read; read were {', '.join(map(str, self.sites[:6]))}...")
        if not self._parts[site]:
            raise SiteError(f"Nothing has been read at {site} yet: ask something inside the with block.")
        parts, count = self._parts[site], self._base[site] + self._batch[site]
        if self.grad and [int(rows[0]) for rows, _ in parts] == list(range(count)):
            return [values for _, values in parts]
        numbers = torch.cat([rows.expand(len(values)) for rows, values in parts])
        values = torch.cat([values for _, values in parts])
        return [values[numbers == row] for row in range(count)]

    def __getitem__(self, site: Site | str) -> Tensor:
        rows = self.rows(site)
        if len({len(row) for row in rows}) > 1:
            raise SiteError(
                f"Rows hold different numbers of {self.positions!r} tokens; use .rows({str(site)!r}) for a list."
            )
        stacked = torch.stack(rows)
        return stacked.squeeze(1) if stacked.shape[1] == 1 else stacked


@dataclass
class Run:
    """What is active on one model inside one `with` block."""

    actions: Mapping[Site, list[Action]] = field(default_factory=dict)
    rows: int | None = None
    states: States | None = None
    prompt: Prompt | None = None

    @property
    def sites(self) -> set[Site]:
        return set(self.actions) | set(self.states.sites if self.states else ())


@dataclass(eq=False)
class Block:
    """One open `with` block. A copied context may outlive it, so the block itself says when it is over."""

    owner: Instrument
    run: Run
    open: bool = True


_active: ContextVar[tuple[Block, ...]] = ContextVar("vlmsteer_active", default=())


class Instrument:
    """The hooks of one model.

    Args:
        model: the root module; its forward is one frame.
        taps: every site the model has.
        image_token: the id of an image placeholder.
        skip: how many leading tokens of the vision tower are not patches.
        tiles: how many vision rows each image has, from the forward's arguments; None means one.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[Site, Tap],
        image_token: int | None,
        skip: int,
        tiles: Callable[[Mapping[str, Any]], list[int] | None],
    ) -> None:
        self.model, self.taps, self.image_token, self.skip, self.tiles = model, taps, image_token, skip, tiles
        # Reentrant: the garbage collector may close an abandoned stream while this thread holds the lock.
        self._lock = threading.RLock()
        self._users: Counter[Site] = Counter()
        self._handles: dict[Site, Any] = {}
        self._root: tuple[Any, ...] = ()
        self._arguments = tuple(inspect.signature(model.forward).parameters)
        self._local = threading.local()
        self._prompt_columns: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @contextmanager
    def installed(self, sites: set[Site]) -> Iterator[None]:
        """Keep hooks on these sites while the block is open. Hooks do nothing without `active`."""
        with self._lock:
            for site in sites:
                self._users[site] += 1
                if site not in self._handles:
                    self._handles[site] = self._register(site)
            if sites and not self._root:
                self._root = (
                    self.model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True),
                    self.model.register_forward_hook(self._end, always_call=True),
                )
        try:
            yield
        finally:
            with self._lock:
                for site in sites:
                    self._users[site] -= 1
                    if not self._users[site]:
                        del self._users[site]
                        self._handles.pop(site).remove()
                if not self._users:
                    for handle in self._root:
                        handle.remove()
                    self._root = ()

    @contextmanager
    def active(self, run: Run) -> Iterator[None]:
        """Let `run` act on forwards made in this context. Blocks may close in any order."""
        block = Block(self, run)
        _active.set((*_active.get(), block))
        try:
            yield
        finally:
            block.open = False
            _active.set(tuple(other for other in _active.get() if other.open))

    @property
    def busy(self) -> bool:
        """True inside a read or apply block of this model."""
        return bool(self._runs())

    def _runs(self) -> list[Run]:
        return [block.run for block in _active.get() if block.owner is self and block.open]

    def compile(self, recipes: Recipe | Sequence[Recipe | None] | None) -> tuple[dict[Site, list[Action]], int | None]:
        """Actions by site for one recipe for all rows, or for one recipe (or None) for each row.

        Edits of strength 0 are left out, so they cannot change a bit.

        Raises:
            SiteError: if an edit's site, layer or positions do not exist in this model.
            RecipeError: if a vector has the wrong width.
        """
        single = recipes is None or isinstance(recipes, Recipe)
        listed: Sequence[Recipe | None] = [recipes] if single else recipes  # pyright: ignore[reportAssignmentType]
        gathered: dict[tuple, dict[int, tuple[Edit, Tensor]]] = {}
        for row, recipe in enumerate(listed):
            for index, edit in enumerate(recipe.edits if recipe else ()):
                for site in edit.sites:
                    vector = self._checked(site, edit)
                    if edit.strength != 0:
                        key = (site, index, edit.operation, edit.positions, edit.phase)
                        gathered.setdefault(key, {})[row] = (edit, vector)
        actions: dict[Site, list[Action]] = {}
        for (site, *_), by_row in sorted(gathered.items(), key=lambda entry: entry[0][1]):
            edit, vector = next(iter(by_row.values()))
            if single:
                action = Action(edit, vector[None], torch.tensor([[float(edit.strength)]]), None)
            else:
                vectors = torch.zeros(len(listed), vector.shape[-1])
                strengths, active = torch.zeros(len(listed), 1), torch.zeros(len(listed), dtype=torch.bool)
                for row, (edit, vector) in by_row.items():
                    vectors[row], strengths[row], active[row] = vector, float(edit.strength), True
                action = Action(edit, vectors, strengths, active)
            actions.setdefault(site, []).append(action)
        return actions, None if single else len(listed)

    def _checked(self, site: Site, edit: Edit) -> Tensor:
        if site not in self.taps:
            layers = sorted(tap.layer for tap in self.taps if (tap.tower, tap.point) == (site.tower, site.point))
            have = f"layers {layers[0]} to {layers[-1]} there" if layers else "no such point"
            raise SiteError(f"The recipe edits {site}, but this model has {have}.")
        if site.tower != "text" and edit.positions in ("last", "question", "generated"):
            raise SiteError(
                f"In the {site.tower} tower an edit can be at positions 'image' or 'all', not {edit.positions!r}."
            )
        vector, width = edit.vectors.layers[site.layer].float(), self.taps[site].width * WIDTHS.get(edit.operation, 1)
        heads = self.taps[site].heads
        if heads and site.point == "head" and edit.operation == "scale" and vector.shape[-1] == heads:
            vector = vector.repeat_interleave(width // heads)
        if vector.shape[-1] != width:
            raise RecipeError(f"The vector for {site} has {vector.shape[-1]} numbers; this model needs {width} there.")
        return vector

    def _register(self, site: Site) -> Any:
        tap = self.taps[site]
        if tap.side == "in":

            def before(module: nn.Module, args: tuple, kwargs: dict | None = None) -> tuple[tuple, dict] | None:
                if kwargs is None:  # called without its flag: another thread is adding or removing it just now
                    return None
                states = args[0] if args else kwargs["hidden_states"]
                edited = self._visit(site, states)
                if edited is states:
                    return None
                return ((edited, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": edited})

            return tap.module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)

        def after(module: nn.Module, args: tuple, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            edited = self._visit(site, states)
            if edited is states:
                return None
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return tap.module.register_forward_hook(after, prepend=True)

    def _visit(self, site: Site, states: Tensor) -> Tensor:
        """Edit, then record, what passes through a site; the same tensor comes back if nothing was done to it."""
        runs = self._runs()
        if not runs:
            return states
        frame: Frame | None = getattr(self._local, "frame", None)
        for run in runs:
            for action in run.actions.get(site, ()):
                group, owners = self._ownership(site, states, frame, run.rows)
                rows = None if action.active is None else action.active.repeat_interleave(group)
                selection = self._select(site, states, frame, action.positions, action.phase, rows)
                states = action(states, selection, group, owners)
        for run in runs:
            if run.states is not None and site in run.states._parts:
                selection = self._select(site, states, frame, run.states.positions, run.states.phase)
                new_prompt = site.tower != "text" or frame is None or frame.start == 0
                states = run.states.record(site, states, selection, new_prompt)
        return states

    def _select(
        self,
        site: Site,
        states: Tensor,
        frame: Frame | None,
        positions: Positions,
        phase: str,
        active: Tensor | None = None,
    ) -> Selection | None:
        if site.tower == "text":
            if frame is None:
                raise SiteError(
                    "Call the whole model, not a part of it: which tokens are which is not known otherwise."
                )
            selection = frame.select(positions, phase, active)
            if selection is None or selection.rows is None or selection.columns is None:
                return selection
            return Selection(selection.rows.to(states.device), selection.columns.to(states.device))
        if phase == "decode":
            return None
        skip = self.skip if site.tower == "vision" else 0
        if positions == "all" or (positions == "image" and not skip):
            return EVERY
        count = states.shape[1]
        if positions == "image":
            columns = torch.arange(skip, count, device=states.device)
        elif isinstance(positions, tuple):
            outside = [index for index in positions if not -count <= index < count]
            if outside:
                raise SiteError(f"The {site.tower} tower has {count} tokens here; there is no token {outside[0]}.")
            columns = torch.tensor([index % count for index in positions], device=states.device)
        else:
            raise SiteError(f"In the {site.tower} tower, positions are 'image', 'all' or indices, not {positions!r}.")
        rows = torch.arange(states.shape[0], device=states.device)
        return Selection(rows.repeat_interleave(len(columns)), columns.repeat(len(rows)))

    def _ownership(
        self, site: Site, states: Tensor, frame: Frame | None, rows: int | None
    ) -> tuple[int, Tensor | None]:
        """How this tower's batch maps to the caller's rows: (consecutive rows for each, or an explicit map)."""
        if rows is None:
            return 1, None
        owners = getattr(self._local, "image_rows", None)
        if site.tower != "text" and (frame is None or owners is None or len(owners) != states.shape[0]):
            raise SiteError(
                f"Which image belongs to which row is not known, so rows cannot differ in the {site.tower} tower. "
                "transformers' generate reads images before it passes the tokens: use session.ask_many, or one recipe."
            )
        batch = frame.batch if frame is not None else states.shape[0]
        if batch % rows:
            raise SiteError(f"There are recipes for {rows} rows, but the batch has {batch}.")
        group = batch // rows
        return (group, None) if site.tower == "text" or owners is None else (1, owners // group)

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        """Before the root's forward: describe the tokens it brings."""
        runs = self._runs()
        if kwargs is None or not runs:
            return
        kwargs = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        source = ids if ids is not None else embeds
        if source is None:
            raise SiteError("The model was called without tokens.")
        batch, length = source.shape[:2]
        cache = kwargs.get("past_key_values")
        start = cache.get_seq_length() if cache is not None else 0
        prompt = next((run.prompt for run in reversed(runs) if run.prompt), None)
        columns: int
        if prompt is not None:
            columns = prompt.columns
        elif start == 0:
            columns = length
        else:
            known = self._prompt_columns.get(cache)
            columns = known if known is not None else start if length == 1 else start + length
        if cache is not None and start == 0:
            self._prompt_columns[cache] = columns
        frame = Frame(batch, length, start, columns, source.device)
        self._local.image_rows = None
        if start < columns:
            mask = kwargs.get("attention_mask")
            if mask is not None and mask.dim() == 2:
                frame.valid = mask[:, -length:].bool()
            if ids is not None and self.image_token is not None:
                image = frame.image = ids == torch.tensor(self.image_token, device=ids.device)
                self._local.image_rows = self._image_rows(image, kwargs)
            if prompt is not None and prompt.question is not None:
                question = prompt.question[:, start : start + length].to(source.device)
                question = torch.nn.functional.pad(question, (0, length - question.shape[1]))
                frame.question = question.repeat_interleave(batch // question.shape[0], 0)
        self._local.frame = frame

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        """After the root's forward: what comes next is not described by its tokens."""
        self._local.frame = self._local.image_rows = None

    def _image_rows(self, image: Tensor, kwargs: Mapping[str, Any]) -> Tensor | None:
        """(vision rows,) the text row that each image (or tile of one) belongs to."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            return None
        images, counts = pixels.shape[0], image.sum(1)
        rows = counts.nonzero().flatten()
        if len(rows) != images:
            rows = torch.arange(len(counts), device=counts.device).repeat_interleave(
                counts * images // counts.sum().clamp(min=1)
            )
        tiles = self.tiles(kwargs)
        return rows if tiles is None else rows.repeat_interleave(torch.tensor(tiles, device=rows.device))
