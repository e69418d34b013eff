"""What one forward over a prompt leaves: the states at some sites at every token, the logits, and the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from vlmsteer.hooks import Run
from vlmsteer.session import Session
from vlmsteer.sites import Site


@dataclass(frozen=True, eq=False)
class PromptStates:
    """One prompt that was read.

    Attributes:
        image, question: what was asked.
        ids: (tokens,) of the prompt.
        prefix: how many tokens come up to the end of the image.
        shown, asked: the numbers of the tokens that stand for the image, and of the question's.
        positions: (1, tokens), with several axes (1, tokens, axes).
        logits: (vocabulary,) of the first token of the answer.
        states: (tokens, width) at each site that was read, (tokens, heads, head_dim) at heads.
        cache: the model's own, of the whole prompt.
    """

    image: Image.Image | str | None
    question: str
    ids: Tensor
    prefix: int
    shown: Tensor
    asked: Tensor
    positions: Tensor
    logits: Tensor
    states: dict[Site, Tensor]
    cache: Any

    def __len__(self) -> int:
        return len(self.ids)


def read_prompt(
    session: Session,
    image: Image.Image | str | None,
    question: str,
    sites: Sequence[Site],
    grad: bool = False,
) -> PromptStates:
    """Read a prompt once.

    Args:
        sites: in the tower that takes in the prompt.
        grad: keep the graph from the states to the logits.

    Raises:
        InputError: if the image or the question cannot be used.
        ModelError: if the model does not answer in words.
    """
    session.check_words()
    encoded = session.encoder.encode([image], [question])
    layout, row = encoded.whole(session.device), encoded.rows[0]
    with session.read(sites, positions="all", grad=grad) as states:
        outputs = session.forward(layout, Run(prompt=layout.prompt), None, grad)
    shown = (row.ids == encoded.image_token).nonzero().flatten()
    read = {site: states.rows(site)[0] for site in sites}
    logits = outputs.logits[0, -1].to(session.device)
    return PromptStates(
        image, question, row.ids, row.prefix, shown, row.question.nonzero().flatten(), layout.positions, logits, read,
        outputs.past_key_values,
    )  # fmt: skip
