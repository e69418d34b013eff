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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmsteer.actions import Action, Tap
from vlmsteer.errors import SiteError
from vlmsteer.sites import Site
from vlmsteer.states import States
from vlmsteer.tokens import EVERY, Frame, Positions, Selection


class Prompt(NamedTuple):
    """What the caller knows of the prompt: its columns with padding, and its question tokens, (rows, columns) bool."""

    columns: int
    question: Tensor | None = None


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
