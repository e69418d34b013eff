"""One answer being written while some states are read: those of the token that predicts the next one.

Nothing stays active between two steps, so a caller who stops in the middle of an answer leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.decoding import contrast
from vlmsteer.hooks import Run
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.sites import Site
from vlmsteer.states import States
from vlmsteer.streams import Stream

if TYPE_CHECKING:
    from vlmsteer.session import Session


class Watched:
    """A stream of one row whose last token's states are known.

    Attributes:
        stream: what is written to.
    """

    def __init__(self, stream: Stream | contrast.Contrasted, states: States) -> None:
        self.stream, self._states = stream, states

    @property
    def logits(self) -> Tensor:
        """(vocabulary,) of the next token."""
        return self.stream.logits[0]

    def state(self, site: Site) -> Tensor:
        """(width,), at `head` sites (heads, head_dim), of the token taken in last; float32."""
        return self._states.rows(site)[0][-1].float()

    def push(self, token: int, run: Run | None = None) -> None:
        """Take in one token; `run` acts in this step in place of the recipe's."""
        run = replace(run or self.stream.run, states=self._states)
        self.stream.push(torch.tensor([token], device=self.stream.logits.device), run)

    def back(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self.stream.back(count)


@contextmanager
def opened(
    session: Session, image: Any, question: str, recipe: Recipe | None, contrasts: Sequence[Rule], sites: Sequence[Site]
) -> Iterator[Watched]:
    """One prompt read for a rule that watches `sites`."""
    with session.instrument.installed(set(sites)), ExitStack() as stack:
        with session.read(list(sites), "last", "both") as states:
            stream = stack.enter_context(contrast.opened(session, [image], [question], recipe, contrasts))
        yield Watched(stream, states)
