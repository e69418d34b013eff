"""Which token is which: prompt or generated, image or question, padding or not.

A `Frame` describes one forward pass. It is worked out once, before the first layer, from what the model was called
with and from how much its cache already holds; layers only look it up. Columns count padding; the prompt ends at
`prompt_columns`, so a token is generated exactly if its column lies behind that, whatever the step, the number of
tokens a step brings (assisted decoding), or how the prompt was split (a reused image prefix).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from vlmsteer.errors import SiteError, did_you_mean

POSITIONS = {
    "last": "the last prompt token, then every generated token",
    "image": "the image's tokens in the prompt",
    "question": "the tokens of the question itself",
    "generated": 'every generated token; "action" is another name for it',
    "all": "every token but padding",
}
IN_TOWER = {
    "vision": ("image", "all"),
    "vision2": ("image", "all"),
    "qformer": ("image", "question", "all"),
    "projector": ("image", "all"),
    "encoder": ("image", "question", "last", "all"),
    "text": tuple(POSITIONS),
    "expert": ("last", "generated", "all"),
}
OF_ROWS = ("encoder", "text", "expert")  # towers whose rows are those of the prompt; others have a row an image
ALIASES = {"action": "generated"}  # a policy generates its action
PHASES = ("prefill", "decode", "both")
Positions = str | tuple[int, ...]


class Selection(NamedTuple):
    """Tokens of one forward: `rows` and `columns` (n,), or every token of the batch if both are None."""

    rows: torch.Tensor | None
    columns: torch.Tensor | None


EVERY = Selection(None, None)


def check_positions(positions: Positions) -> Positions:
    """Positions as given, or a sentence why they cannot be meant."""
    if isinstance(positions, str):
        positions = ALIASES.get(positions, positions)
        if positions not in POSITIONS:
            raise SiteError(
                f"There are no positions called {positions!r}{did_you_mean(positions, [*POSITIONS, *ALIASES])}"
            )
        return positions
    try:
        indices = tuple(positions)
    except TypeError:
        indices = ()
    if not indices or not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
        raise SiteError(f"Positions are a name ({', '.join(POSITIONS)}) or a list of token indices, not {positions!r}.")
    return indices


@dataclass
class Frame:
    """One forward pass over (batch, length) tokens that follow `start` cached columns.

    Args:
        valid: (batch, length) False at padding; None if nothing is padded.
        image: (batch, length) True at image tokens; None where the caller gave embeddings instead of ids.
        question: (batch, length) True at the question's tokens; None if unknown.
        prompt_columns: how many columns the whole prompt has.
        begun: how many columns of the prompt were read before, by themselves.
        again: whether these are the rows of the forward before, with other values (a further step of a flow).
    """

    batch: int
    length: int
    start: int
    prompt_columns: int
    device: torch.device
    valid: torch.Tensor | None = None
    image: torch.Tensor | None = None
    question: torch.Tensor | None = None
    begun: int = 0
    again: bool = False
    _selections: dict[tuple[Positions, str], Selection | None] = field(default_factory=dict)
    _missing: dict[tuple[Positions, str], dict[int, str]] = field(default_factory=dict)

    @property
    def whole_prompt(self) -> bool:
        return self.start == 0 and self.length >= self.prompt_columns

    def select(self, positions: Positions, phase: str, active: torch.Tensor | None = None) -> Selection | None:
        """The chosen tokens of this forward; None if there are none.

        Args:
            active: (batch,) the rows that matter; only these must have such a token.

        Raises:
            SiteError: if the whole prompt is here and a row has no such token.
        """
        key = (positions, phase)
        if key not in self._selections:
            missing: dict[int, str] = {}
            self._selections[key] = self._select(positions, phase, missing)
            self._missing[key] = missing
        for row, sentence in sorted(self._missing[key].items()):
            if active is None or active[row]:
                raise SiteError(sentence)
        return self._selections[key]

    def _select(self, positions: Positions, phase: str, missing: dict[int, str]) -> Selection | None:
        """As `select`; what a row lacks is written into `missing`."""
        prompt = max(0, min(self.length, self.prompt_columns - self.start))
        if prompt == 0:
            return EVERY if phase != "prefill" and positions in ("last", "generated", "all") else None
        mask = torch.zeros(self.batch, self.length, dtype=torch.bool, device=self.device)
        if phase != "decode" and positions != "generated":
            mask[:, :prompt] = self._in_prompt(positions, prompt, missing)
            if self.whole_prompt:
                for row in (~mask.any(1)).nonzero().flatten().tolist():
                    missing.setdefault(row, f"Row {row} of the batch has no token at positions {positions!r}.")
        if phase != "prefill" and positions in ("last", "generated", "all"):
            mask[:, prompt:] = True if self.valid is None else self.valid[:, prompt:]
        if mask.all():
            return EVERY
        rows, columns = mask.nonzero(as_tuple=True)
        return Selection(rows, columns) if len(rows) else None

    def _in_prompt(self, positions: Positions, prompt: int, missing: dict[int, str]) -> torch.Tensor:
        """(batch, prompt) True at the chosen tokens of the part of the prompt that this forward brings."""
        valid = torch.ones(self.batch, prompt, dtype=torch.bool, device=self.device)
        if self.valid is not None:
            valid = self.valid[:, :prompt]
        if positions == "all":
            return valid
        if positions == "last":
            if self.start + prompt < self.prompt_columns:
                return torch.zeros_like(valid)
            index = torch.arange(prompt, device=self.device).expand_as(valid)
            return index == torch.where(valid, index, -1).amax(1, keepdim=True)
        if isinstance(positions, str):
            roles = self.image if positions == "image" else self.question
            if roles is None:
                raise SiteError(
                    f"Which tokens are {positions} tokens is not known here: encode the prompt with session.encode, "
                    "or give token indices."
                )
            return roles[:, :prompt] & valid
        if self.start or prompt < self.prompt_columns:
            raise SiteError("Token indices need the whole prompt in one forward; this prompt was split.")
        return _indexed(positions, valid, missing)


def check_tower(tower: str, positions: Positions, reads_prompt: str = "text", answers: str = "text") -> None:
    """Refuse positions that a tower does not have.

    Args:
        reads_prompt: the tower that takes in the prompt, "text" or the "encoder" before it.
        answers: the tower that the answer comes from, "text" or the "expert" behind it.

    Raises:
        SiteError: if it does not.
    """
    if isinstance(positions, str) and positions not in IN_TOWER[tower]:
        named = ", ".join(map(repr, IN_TOWER[tower]))
        raise SiteError(f"In the {tower} tower, positions are {named} or indices, not {positions!r}.")
    if tower == "text" and reads_prompt == "encoder" and positions in ("image", "question"):
        raise SiteError(
            f"This model's text tower is a decoder that begins with one start token; the {positions}'s tokens are in "
            "its encoder tower."
        )
    if tower == "text" and answers != "text" and positions == "generated":
        raise SiteError(f"This model's text tower reads the prompt only; what it generates is in its {answers} tower.")


def _indexed(indices: tuple[int, ...], valid: torch.Tensor, missing: dict[int, str]) -> torch.Tensor:
    """(batch, prompt) True at the given token numbers, padding not counted, negative ones from the end."""
    counts = valid.sum(1)
    number = valid.long().cumsum(1) - 1
    chosen = torch.zeros_like(valid)
    for index in indices:
        for row in ((index >= counts) | (index < -counts)).nonzero().flatten().tolist():
            sentence = f"Row {row} of the batch has {int(counts[row])} prompt tokens; there is no token {index}."
            missing.setdefault(row, sentence)
        target = counts + index if index < 0 else torch.full_like(counts, index)
        chosen |= valid & (number == target[:, None])
    return chosen
