"""Reading and rewriting activations while a `with` block is open. The only file that registers a hook.

An `Instrument` belongs to one model. It puts a hook on a module while somebody uses that site and takes it off after
the last one; what a hook does is looked up in a ContextVar, so two threads run different recipes on one model and
nothing survives its `with` block. Hooks come first in the module's list: transformers' own collectors, which feed the
vision tower's states to the projector, then see the edited stream.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor, nn

from vlmsteer.actions import Tap
from vlmsteer.forwards import Forwards
from vlmsteer.gating import decide, let
from vlmsteer.runs import LOGITS, Enough, Run
from vlmsteer.sites import Site
from vlmsteer.states import States


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
        # What torch.compile made before a hook was there is made again: it would pass the hook by.
        torch._dynamo.config.skip_nnmodule_hook_guards = False  # pyright: ignore[reportPrivateUsage]
        self._order = {site: place for place, site in enumerate(self.taps)}
        self.forwards = Forwards(model, family, image_token)
        # Reentrant: the garbage collector may close an abandoned stream while this thread holds the lock.
        self._lock = threading.RLock()
        self._users: Counter[Site] = Counter()
        self._handles: dict[Site, Any] = {}
        self._calls: list[Any] = []

    @contextmanager
    def installed(self, sites: set[Site]) -> Iterator[None]:
        """Keep hooks on these sites while the block is open. Hooks do nothing without `active`."""
        with self._lock:
            for site in sites:
                self._users[site] += 1
                if site not in self._handles:
                    self._handles[site] = self._register(site)
            if sites and not self._calls:
                for module in self.forwards.described:
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

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        runs = self._runs()
        if kwargs is not None and runs:
            self.forwards.begin(module, args, kwargs, runs)

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.forwards.end(module)

    def readers(self) -> list[States] | None:
        """What open blocks read; None if one of them edits, too."""
        runs = self._runs()
        return None if any(run.states is None for run in runs) else [run.states for run in runs if run.states]

    def last_read(self) -> Site | None:
        """The last site, in network order, that open blocks read; None if they read none, or in a flow of steps."""
        read = {site for run in self._runs() if run.states is not None for site in run.states.sites}
        last = max(read, key=self._order.__getitem__, default=None)
        return None if last is None or last.tower == "expert" else last

    def stamp(self) -> int:
        """A number that changes with the model's weights, its modules, and hooks that are not ours."""
        found: list[Any] = []
        waiting: list[nn.Module | None] = [self.model]
        with self._lock:
            own = {handle.id for handle in (*self._handles.values(), *self._calls)}
            while waiting:
                module = waiting.pop()
                if module is None:
                    continue
                waiting += module._modules.values()
                for weight in module._parameters.values():
                    if weight is not None:
                        found += weight.data_ptr(), 0 if weight.is_inference() else weight._version
                for hooks in (module._forward_hooks, module._forward_pre_hooks):
                    if hooks:
                        found += [number for number in hooks if number not in own]
        return hash((self.model.training, len(found), *found))

    def _visit(self, site: Site, states: Tensor) -> Tensor:
        """Edit, then record, what passes through a site; the same tensor comes back if nothing was done to it."""
        active = self._runs()
        runs = [run for run in active if site in run.sites]
        if not runs:  # the hook may be another thread's, added in mid-forward
            return states
        if site is LOGITS:
            for run in runs:
                states = self._ruled(states, run)
            return states
        if site.tower == "text":
            for run in active:
                if run.branched:
                    rows = states.flatten(0, 1)[:, None]
                    worked = self._work(site, rows, runs, None)
                    return states if worked is rows else worked.view_as(states)
            states = self._work(site, states, runs, None)
        else:
            states = self._passed(site, states, runs)
        for run in runs:
            if run.end is not None and run.end == site:
                raise Enough
        return states

    def _passed(self, site: Site, states: Tensor, runs: Sequence[Run]) -> Tensor:
        """As `_work`, of images that may be laid out as one sequence."""
        parts = self.forwards.parts(site, states)
        if parts is None:
            return self._work(site, states, runs, None)
        rows = torch.nn.utils.rnn.pad_sequence([states[part] for part in parts], batch_first=True)
        lengths = [len(part) for part in parts]
        worked = self._work(site, rows, runs, torch.tensor(lengths, device=states.device))
        if worked is rows:
            return states
        flat = torch.cat([row[:length] for row, length in zip(worked, lengths, strict=True)])
        return flat[torch.cat(parts).argsort()]

    def _work(self, site: Site, states: Tensor, runs: Sequence[Run], lengths: Tensor | None) -> Tensor:
        forwards = self.forwards
        for run in runs:
            for action in run.actions.get(site, ()):
                group, owners = forwards.ownership(site, states, run)
                rows = None
                if action.active is not None and run.owners is None:  # with owners, no row lacks a token
                    rows = action.active if group == 1 else action.active.repeat_interleave(group)
                selection = forwards.select(site, states, lengths, action.positions, action.phase, rows)
                acts = let(run, action, len(states)) if action.gates and selection is not None else None
                states = action(states, selection, group, owners, acts)
            if run.gated:
                for action in run.gated.get(site, ()):
                    decide(forwards, site, states, run, action)
            if run.rules and site.point == "block_out" and any(site in rule.sites for rule in run.rules):
                run.passing[site] = states
        for run in runs:
            if run.states is not None and site in run.states._parts:
                selection = forwards.select(site, states, lengths, run.states.positions, run.states.phase)
                frame = forwards.frame(site.tower)
                new_prompt = frame is None or (frame.start == frame.begun and not frame.again)
                states = run.states.record(site, states, selection, new_prompt)
        return states

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
