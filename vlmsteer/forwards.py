"""Which token is which in the forwards under way: worked out once a forward from what the model was called with.

`Forwards` belongs to one model. Every thread has its own forwards. What a call does not say (which tokens are the
question's, where a split prompt ends) comes from the prompt that a `Run` knows.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmsteer.errors import SiteError
from vlmsteer.runs import Prompt, Run
from vlmsteer.sites import Site
from vlmsteer.tokens import EVERY, OF_ROWS, Frame, Positions, Selection, check_tower


class Forwards:
    """The forwards of one model that are under way.

    Args:
        model: the root module.
        family: the declaration of the model's family (`adapters.family.Family`).
        image_token: the id of an image placeholder.

    Attributes:
        described: modules whose calls say which token is which, with the towers they describe; that of the whole model
            also says whose image is whose.
    """

    def __init__(self, model: nn.Module, family: Any, image_token: int | None) -> None:
        self.model, self.family, self.image_token = model, family, image_token
        self.described: dict[nn.Module, list[str]] = {model: []}
        for name, tower in family.towers.items():
            if tower.frame is not None:
                self.described.setdefault(model.get_submodule(tower.frame), []).append(name)
        self._framed = {name for name, tower in family.towers.items() if tower.frame is not None}
        self._arguments = {module: tuple(inspect.signature(module.forward).parameters) for module in self.described}
        self._allowed: set[tuple[str, Positions]] = set()
        self._local = _Described()
        self._prompt_columns: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def begin(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], runs: Sequence[Run]) -> None:
        """Before a call that says which token is which: describe the tokens it brings."""
        if args:
            kwargs = {**dict(zip(self._arguments[module], args, strict=False)), **kwargs}
        if module is self.model:
            self._whose(kwargs)
        for tower in self.described[module]:
            if tower == "vision":
                self._local.grids, self._local.parts = kwargs["grid_thw"], {}
            elif tower == "qformer":
                self._local.frames[tower] = _queries(kwargs)
            elif tower == "expert":
                self._local.frames[tower] = self._chunk(kwargs)
            else:
                self._local.frames[tower] = self._tokens(tower, kwargs, runs)

    def end(self, module: nn.Module) -> None:
        """After such a call: what comes next is not described by its tokens."""
        if module is self.model:
            self._local.image_rows = None
        for tower in self.described[module]:
            self._local.frames.pop(tower, None)
            if tower == "vision":
                self._local.grids, self._local.parts = None, {}

    def frame(self, tower: str) -> Frame | None:
        """The tokens that a tower works on just now, if a call has described them."""
        return self._local.frames.get(tower)

    def parts(self, site: Site, states: Tensor) -> list[Tensor] | None:
        """Where each image's tokens are, in a tower that takes all images as one sequence; None in others."""
        if self.family.patches is None or site.tower not in ("vision", "projector"):
            return None
        if self._local.grids is None:
            raise SiteError("Call the whole model or its vision tower: which patches are whose is not known otherwise.")
        count = states.shape[0]
        if count not in self._local.parts:
            self._local.parts[count] = self.family.patches(self.model.config, self._local.grids, count)
        return [part.to(states.device) for part in self._local.parts[count]]

    def select(
        self,
        site: Site,
        states: Tensor,
        lengths: Tensor | None,
        positions: Positions,
        phase: str,
        active: Tensor | None = None,
    ) -> Selection | None:
        """The tokens of `states` (batch, tokens, width) at these positions; None if there are none.

        Args:
            lengths: (batch,) tokens of each image, where images of different sizes were laid side by side.
            active: (batch,) the rows that matter.
        """
        if (site.tower, positions) not in self._allowed:
            check_tower(site.tower, positions, self.family.reads_prompt, self.family.answers)
            self._allowed.add((site.tower, positions))
        if site.tower not in ("text", "expert") and phase == "decode":
            return None
        frame = self._local.frames.get(site.tower)
        if site.tower in self._framed and lengths is None:
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

    def ownership(self, site: Site, states: Tensor, run: Run) -> tuple[int, Tensor | None]:
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

    def _tokens(self, tower: str, kwargs: Mapping[str, Any], runs: Sequence[Run]) -> Frame:
        """The frame of a tower that takes in tokens."""
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        source = ids if ids is not None else embeds
        if source is None:
            raise SiteError("The model was called without tokens.")
        branched = any(run.branched for run in runs)
        batch, length = (source.shape[0] * source.shape[1], 1) if branched else source.shape[:2]
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
        frame = Frame(batch, length, start, columns, source.device, begun=prompt.begun if prompt is not None else 0)
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
