"""Answers being written: what has been read of a batch of prompts, and how the next token is taken in.

A `Stream` is the cache with everything that must stay in step with it. Rows may leave, tokens may be taken back; two
streams that take in the same tokens (one with the image, one without) make a contrast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.prompts import Layout
from vlmsteer.runs import Run

if TYPE_CHECKING:
    from vlmsteer.session import Session


class Prefilled(NamedTuple):
    """A prompt that has been read: its last token's logits (rows, vocabulary), the cache, the mask over its columns.

    `position` (rows, 1) or (rows, 1, axes) is the last token's.
    """

    logits: Tensor
    cache: Any
    mask: Tensor
    position: Tensor


class Stream:
    """Prompts that have been read, under what `run` does; its hooks must be installed.

    Attributes:
        logits: (rows, vocabulary) of the next token.
        left: which of the first rows the batch still has.
    """

    def __init__(self, session: Session, prefilled: Prefilled, run: Run) -> None:
        self.session, self.run = session, run
        self.logits, self.cache, self.mask, self.position = prefilled
        self.left = torch.arange(len(self.logits), device=self.logits.device)

    def push(self, tokens: Tensor, run: Run | None = None) -> Tensor:
        """Take in one token (rows,) a row; gives the next one's logits. `run` acts instead, in this step only."""
        self.take(tokens, run)
        return self.logits

    def take(self, tokens: Tensor, run: Run | None = None, **inputs: Any) -> Any:
        """As `push`; `inputs` go to the model too, and all that it gives is returned."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.position = self.position + 1
        inputs = {"input_ids": tokens[:, None], "attention_mask": self.mask, **inputs}
        run = self.run if run is None else run
        outputs = self.session.forward(Layout(inputs, self.position, run.prompt), run, self.cache)  # pyright: ignore[reportArgumentType]
        self.logits, self.cache = outputs.logits[:, -1].to(self.session.device), outputs.past_key_values
        return outputs

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only (or, with beams, in this order)."""
        self.left, self.logits = self.left[rows], self.logits[rows]
        self.mask, self.position = self.mask[rows], self.position[rows]
        self.cache.batch_select_indices(rows)
        self.run = replace(self.run, owners=self.left)

    def back(self, count: int) -> None:
        """Forget the last `count` tokens. `logits` are then those of before: push a token to go on.

        Raises:
            InputError: if this model's cache cannot forget.
        """
        if count == 0:
            return
        layers = getattr(self.cache, "layers", ())
        if not hasattr(self.cache, "crop") or any(getattr(layer, "is_sliding", False) for layer in layers):
            raise InputError("This model's cache keeps a window of tokens only, so an answer cannot be taken back.")
        self.cache.crop(-count)
        self.mask, self.position = self.mask[:, :-count], self.position - count


def greedy(stream: Stream, limit: int) -> Iterator[Tensor]:
    """The likeliest tokens (rows,), step by step; finished rows give padding, and leave the batch when they are half.

    Raises:
        InputError: if the limit is not positive.
    """
    if limit < 1:
        raise InputError(f"An answer has at least one token; max_new_tokens is {limit}.")
    session, padding = stream.session, stream.session.tokenizer.pad_token_id
    finished = torch.zeros(len(stream.logits), dtype=torch.bool, device=stream.logits.device)
    for step in range(limit):
        tokens = stream.logits.argmax(-1).masked_fill(finished[stream.left], padding)
        written = tokens.new_full(finished.shape, padding)
        written[stream.left] = tokens
        yield written
        finished[stream.left] |= torch.isin(tokens, session.ends.to(tokens.device))
        if step + 1 == limit or bool(finished.all()):
            return
        going = (~finished[stream.left]).nonzero().flatten()
        if 2 * len(going) <= len(stream.left) and not session.instrument.busy:
            stream.select(going)
            tokens = tokens[going]
        stream.push(tokens)
