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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmsteer.actions import Action, Rules, Tap
from vlmsteer.errors import SiteError
from vlmsteer.sites import Site
from vlmsteer.states import States
from vlmsteer.tokens import EVERY, OF_ROWS, Frame, Positions, Selection, check_tower


class Prompt(NamedTuple):
    """What the caller knows of the prompt: its columns with padding, its question and image tokens, (rows, columns).

    Where an encoder reads the prompt, `start` is how many tokens the decoder starts from.
    """

    columns: int
    question: Tensor | None = None
    image: Tensor | None = None
    start: int | None = None

    def repeat(self, count: int) -> Prompt:
        """Every row `count` times in a row."""
        question, image = (f if f is None else f.repeat_interleave(count, 0) for f in (self.question, self.image))
        return Prompt(self.columns, question, image, self.start)


LOGITS = Site("text", 0, "logits")  # what the unembedding gives; no site that users edit or read


@dataclass
class Run:
    """What is active on one model inside one `with` block.

    `rows` is how many rows have recipes of their own, None if one recipe is for all. `owners` says which of them the
    rows of the text tower's batch are, where only some are left; (rows, branches) where a row has a token of each.
    `decided` is what gates have decided at the prompt, `passing` what rules need of the forward under way.
    """

    actions: Mapping[Site, list[Action]] = field(default_factory=dict)
    rows: int | None = None
    states: States | None = None
    prompt: Prompt | None = None
    owners: Tensor | None = None
    rules: list[Rules] = field(default_factory=list)
    decided: dict[Action, Tensor] = field(default_factory=dict)
    passing: dict[Site, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gated: dict[Site, list[Action]] = {}
        for action in (action for actions in self.actions.values() for action in actions):
            for site in dict.fromkeys(gate.site for gate in action.gates if gate is not None):
                self.gated.setdefault(site, []).append(action)
        read = {site for rule in self.rules for site in rule.sites}
        self.sites = {*self.actions, *self.gated, *read, *(self.states.sites if self.states else ())}
        if self.rules:
            self.sites.add(LOGITS)


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
        model: the root module.
        taps: every site the model has.
        family: the declaration of the model's family (`adapters.family.Family`).
        image_token: the id of an image placeholder.
    """

    def __init__(self, model: nn.Module, taps: Mapping[Site, Tap], family: Any, image_token: int | None) -> None:
        self.model, self.family, self.image_token = model, family, image_token
        self._norm, self._unembedding = family.ending(model)
        self.taps = {**taps, LOGITS: Tap(self._unembedding, "out", 0)}
        # Reentrant: the garbage collector may close an abandoned stream while this thread holds the lock.
        self._lock = threading.RLock()
        self._users: Counter[Site] = Counter()
        self._handles: dict[Site, Any] = {}
        self._calls: list[Any] = []
        # Calls that say which token is which, by module; that of the whole model also says whose image is whose.
        self._described: dict[nn.Module, list[str]] = {model: []}
        for name, tower in family.towers.items():
            if tower.frame is not None:
                self._described.setdefault(model.get_submodule(tower.frame), []).append(name)
        self._arguments = {module: tuple(inspect.signature(module.forward).parameters) for module in self._described}
        self._local = _Described()
        self._prompt_columns: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @contextmanager
    def installed(self, sites: set[Site]) -> Iterator[None]:
        """Keep hooks on these sites while the block is open. Hooks do nothing without `active`."""
        with self._lock:
            for site in sites:
                self._users[site] += 1
                if site not in self._handles:
                    self._handles[site] = self._register(site)
            if sites and not self._calls:
                for module in self._described:
                    self._calls += [
                        module.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True),
                        module.register_forward_hook(self._end, always_call=True),
                    ]
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
                    while self._calls:
                        self._calls.pop().remove()

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

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing acts and nothing is read in forwards made in this block, whatever is open around it."""
        token = _active.set(())
        try:
            yield
        finally:
            _active.reset(token)

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
        if not any(site in run.sites for run in runs):  # the hook may be another thread's, added in mid-forward
            return states
        if site is LOGITS:
            for run in runs:
                states = self._ruled(states, run)
            return states
        if _branches(runs) and site.tower == "text":
            rows = states.flatten(0, 1)[:, None]
            worked = self._work(site, rows, runs, None)
            return states if worked is rows else worked.view_as(states)
        parts = self._parts(site, states)
        if parts is None:
            return self._work(site, states, runs, None)
        rows = torch.nn.utils.rnn.pad_sequence([states[part] for part in parts], batch_first=True)
        lengths = [len(part) for part in parts]
        worked = self._work(site, rows, runs, torch.tensor(lengths, device=states.device))
        if worked is rows:
            return states
        flat = torch.cat([row[:length] for row, length in zip(worked, lengths, strict=True)])
        return flat[torch.cat(parts).argsort()]

    def _parts(self, site: Site, states: Tensor) -> list[Tensor] | None:
        """Where each image's tokens are, in a tower that takes all images as one sequence; None in others."""
        if self.family.patches is None or site.tower not in ("vision", "projector"):
            return None
        if self._local.grids is None:
            raise SiteError("Call the whole model or its vision tower: which patches are whose is not known otherwise.")
        count = states.shape[0]
        if count not in self._local.parts:
            self._local.parts[count] = self.family.patches(self.model.config, self._local.grids, count)
        return [part.to(states.device) for part in self._local.parts[count]]

    def _work(self, site: Site, states: Tensor, runs: list[Run], lengths: Tensor | None) -> Tensor:
        for run in runs:
            for action in run.actions.get(site, ()):
                group, owners = self._ownership(site, states, run)
                rows = None
                if action.active is not None and run.owners is None:  # with owners, no row lacks a token
                    rows = action.active.repeat_interleave(group)
                selection = self._select(site, states, lengths, action.positions, action.phase, rows)
                acts = self._let(run, action, len(states)) if action.gates and selection is not None else None
                states = action(states, selection, group, owners, acts)
            for action in run.gated.get(site, ()):
                self._decide(site, states, run, action)
            if site.point == "block_out" and any(site in rule.sites for rule in run.rules):
                run.passing[site] = states
        for run in runs:
            if run.states is not None and site in run.states._parts:
                selection = self._select(site, states, lengths, run.states.positions, run.states.phase)
                frame = self._local.frames.get(site.tower)
                new_prompt = frame is None or (frame.start == 0 and not frame.again)
                states = run.states.record(site, states, selection, new_prompt)
        return states

    def _decide(self, site: Site, states: Tensor, run: Run, action: Action) -> None:
        """Let the gates of an action that read here decide, if this forward brings the end of the prompt."""
        whole = next(gate for gate in action.gates if gate is not None and gate.site == site).positions == "all"
        ended = self._select(site, states, None, "last", "prefill")
        if ended is None:
            return
        frame = self._local.frames.get(site.tower)
        if whole and frame is not None and frame.start:
            raise SiteError("A gate that reads the mean of the prompt needs it in one forward; this prompt was split.")
        group, owners = self._ownership(site, states, run)
        numbers = self._numbers(run, len(states))
        decided = torch.zeros(int(numbers.max()) + 1, dtype=torch.bool, device=states.device)
        selection = self._select(site, states, None, "all", "prefill") if whole else ended
        assert selection is not None
        rows, columns = selection
        if rows is None or columns is None:
            read = states.float().mean(1)
        else:
            read = torch.zeros(len(states), states.shape[-1], device=states.device)
            read.index_add_(0, rows, states[rows, columns].float())
            read /= torch.bincount(rows, minlength=len(states)).clamp(min=1)[:, None]
        if action.active is None:
            (gate,) = action.gates
            decided[numbers] = gate.decide(read) if gate is not None else True
        else:
            callers = torch.arange(len(states), device=states.device) // group if owners is None else owners
            for row, caller in enumerate(callers.tolist()):
                gate = action.gates[caller]
                decided[numbers[row]] = bool(gate.decide(read[row : row + 1])) if gate is not None else True
        run.decided[action] = decided

    def _let(self, run: Run, action: Action, batch: int) -> Tensor:
        if action not in run.decided:
            raise SiteError("A gate has not decided: its site comes later in this forward, or the prompt was split.")
        decided = run.decided[action]
        if run.owners is None:  # an encoder reads a prompt once, its decoder once a beam
            return decided.repeat_interleave(batch // len(decided))
        return decided[self._numbers(run, batch)]

    def _numbers(self, run: Run, batch: int) -> Tensor:
        """Which row of the prompt's batch each row of the text tower's batch is."""
        return torch.arange(batch) if run.owners is None else run.owners.flatten().cpu()

    def _ruled(self, logits: Tensor, run: Run) -> Tensor:
        """The logits (rows, columns, vocabulary) as the forward's rules have them."""
        shape = logits.shape
        for rule in run.rules if run.passing else ():  # the unembedding may be called by itself
            shares = rule.strengths.to(logits.device, logits.dtype)
            if len(shares) > 1 or run.rows is not None:
                group = 1 if run.owners is not None else shape[0] // len(shares)
                numbers = torch.arange(shape[0]) // group if run.owners is None else run.owners.cpu()
                shares = shares[numbers.to(shares.device)]
                shares = shares[..., None] if shares.dim() == 2 else shares[:, None, None]
            said = torch.zeros_like(logits)
            with self.alone():
                for site in rule.sites:
                    states = run.passing[site].reshape(shape[0], -1, run.passing[site].shape[-1])[:, -shape[1] :]
                    states = states.to(logits.device)
                    states = self._norm(states) if rule.normed else states
                    said = said + self._unembedding(states * self.family.logit_scale(self.model.config))
            logits = torch.lerp(logits, said / len(rule.sites), shares)
        run.passing.clear()
        return logits

    def _select(
        self,
        site: Site,
        states: Tensor,
        lengths: Tensor | None,
        positions: Positions,
        phase: str,
        active: Tensor | None = None,
    ) -> Selection | None:
        check_tower(site.tower, positions, self.family.reads_prompt, self.family.answers)
        if site.tower not in ("text", "expert") and phase == "decode":
            return None
        frame = self._local.frames.get(site.tower)
        tokens = self.family.towers[site.tower].frame is not None if site.tower in self.family.towers else False
        if tokens and lengths is None:
            if frame is None:
                raise SiteError(
                    "Call the whole model, not a part of it: which tokens are which is not known otherwise."
                )
            if site.tower != "qformer" or states.shape[1] == frame.length:
                selection = frame.select(positions, phase, active)
                if selection is None or selection.rows is None or selection.columns is None:
                    return selection
                return Selection(selection.rows.to(states.device), selection.columns.to(states.device))
            if positions == "question":
                raise SiteError(f"Only the queries pass {site}, not the question's tokens.")
        skip = self.family.skip(self.model.config) if site.tower == "vision" else 0
        if lengths is None and (positions == "all" or (positions == "image" and not skip)):
            return EVERY
        counts = lengths if lengths is not None else torch.full((len(states),), states.shape[1], device=states.device)
        place = torch.arange(states.shape[1], device=states.device)
        if isinstance(positions, tuple):
            chosen = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
            for index in positions:
                if not -int(counts.min()) <= index < int(counts.min()):
                    raise SiteError(
                        f"The {site.tower} tower has {int(counts.min())} tokens here; there is no token {index}."
                    )
                chosen |= place == (counts + index if index < 0 else torch.full_like(counts, index))[:, None]
        else:
            chosen = (place >= (skip if positions == "image" else 0)) & (place < counts[:, None])
        rows, columns = chosen.nonzero(as_tuple=True)
        return Selection(rows, columns)

    def _ownership(self, site: Site, states: Tensor, run: Run) -> tuple[int, Tensor | None]:
        """How this tower's batch maps to the caller's rows: (consecutive rows for each, or an explicit map)."""
        rows = run.rows
        if rows is None:
            return 1, None
        if run.owners is not None and site.tower == "text":
            return 1, run.owners.flatten()
        frame, owners, batch = self._local.frames.get(site.tower), self._local.image_rows, self._local.batch
        of_images = site.tower not in OF_ROWS
        if of_images and (owners is None or len(owners) != states.shape[0]):
            raise SiteError(
                f"Which image belongs to which row is not known, so rows cannot differ in the {site.tower} tower. "
                "transformers' generate reads images before it passes the tokens: use session.ask_many, or one recipe."
            )
        if not of_images:
            batch = frame.batch if frame is not None else states.shape[0]
        if batch % rows:
            raise SiteError(f"There are recipes for {rows} rows, but the batch has {batch}.")
        group = batch // rows
        return (1, owners // group) if of_images and owners is not None else (group, None)

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        """Before a call that says which token is which: describe the tokens it brings."""
        runs = self._runs()
        if kwargs is None or not runs:
            return
        kwargs = {**dict(zip(self._arguments[module], args, strict=False)), **kwargs}
        if module is self.model:
            self._whose(kwargs)
        for tower in self._described[module]:
            if tower == "vision":
                self._local.grids, self._local.parts = kwargs["grid_thw"], {}
            elif tower == "qformer":
                self._local.frames[tower] = _queries(kwargs)
            elif tower == "expert":
                self._local.frames[tower] = self._chunk(kwargs)
            else:
                self._local.frames[tower] = self._tokens(tower, kwargs, runs)

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        """After such a call: what comes next is not described by its tokens."""
        if module is self.model:
            self._local.image_rows = None
        for tower in self._described[module]:
            self._local.frames.pop(tower, None)
            if tower == "vision":
                self._local.grids, self._local.parts = None, {}

    def _tokens(self, tower: str, kwargs: Mapping[str, Any], runs: list[Run]) -> Frame:
        """The frame of a tower that takes in tokens."""
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        source = ids if ids is not None else embeds
        if source is None:
            raise SiteError("The model was called without tokens.")
        batch, length = (source.shape[0] * source.shape[1], 1) if _branches(runs) else source.shape[:2]
        cache = kwargs.get("past_key_values")
        start = cache.get_seq_length() if cache is not None else 0
        prompt = next((run.prompt for run in reversed(runs) if run.prompt), None)
        if prompt is not None and tower != self.family.reads_prompt:
            prompt = Prompt(prompt.start) if prompt.start else None
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
        if start < columns:
            mask = kwargs.get("attention_mask")
            if mask is not None and mask.dim() == 2:
                frame.valid = mask[:, -length:].bool().to(source.device)

            def flags(known: Tensor) -> Tensor:
                part = known[:, start : start + length].to(source.device)
                part = torch.nn.functional.pad(part, (0, length - part.shape[1]))
                return part.repeat_interleave(batch // part.shape[0], 0)

            if ids is not None and self.image_token is not None:
                frame.image = ids == self.image_token
            elif prompt is not None and prompt.image is not None:
                frame.image = flags(prompt.image)
            if prompt is not None and prompt.question is not None:
                frame.question = flags(prompt.question)
        return frame

    def _chunk(self, kwargs: Mapping[str, Any]) -> Frame:
        """The action expert's tokens: the robot's state, which is its prompt, then the actions under way.

        Every step of a flow brings all of them, with the cache of the prompt that the text tower has read.
        """
        states, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
        again = cache in self._prompt_columns
        if cache is not None:
            self._prompt_columns[cache] = 1
        return Frame(states.shape[0], states.shape[1], 0, 1, states.device, again=again)

    def _whose(self, kwargs: Mapping[str, Any]) -> None:
        """Note the text row that each vision row (an image, or a tile of one) belongs to."""
        self._local.image_rows = None
        ids, pixels = kwargs.get("input_ids"), kwargs.get("pixel_values")
        if ids is None or pixels is None or self.image_token is None:
            return
        counts = (ids == self.image_token).sum(1)
        tiles = self.family.image_rows(self.model.config, kwargs)
        rows = counts.nonzero().flatten()
        if len(rows) != len(tiles):
            rows = torch.arange(len(counts), device=counts.device).repeat_interleave(
                counts * len(tiles) // counts.sum().clamp(min=1)
            )
        self._local.batch = len(ids)
        self._local.image_rows = rows.repeat_interleave(torch.tensor(tiles, device=rows.device))


def _branches(runs: list[Run]) -> bool:
    """True if the tokens of a row are branches, to be edited as rows of one token."""
    return any(run.owners is not None and run.owners.dim() == 2 for run in runs)


class _Described(threading.local):
    """What the calls under way in this thread have said about their tokens."""

    def __init__(self) -> None:
        self.frames: dict[str, Frame] = {}
        self.grids: Tensor | None = None
        self.parts: dict[int, list[Tensor]] = {}  # by the length of the sequence: patches, or merged cells
        self.image_rows: Tensor | None = None
        self.batch = 0


def _queries(kwargs: Mapping[str, Any]) -> Frame:
    """The Q-Former's tokens: its queries, which stand for the image, then the question's."""
    valid, queries = kwargs["attention_mask"].bool(), kwargs["query_embeds"].shape[1]
    batch, length = valid.shape
    image = torch.arange(length, device=valid.device).expand_as(valid) < queries
    return Frame(batch, length, 0, length, valid.device, valid, image, valid & ~image)
