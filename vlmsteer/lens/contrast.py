"""Two runs that differ in one thing, the image or the question, and which of their tokens correspond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmsteer.errors import InputError, SiteError, did_you_mean
from vlmsteer.lens.prompt_states import PromptStates

DIRECTIONS = {
    "denoise": "clean states into the corrupted run: what is enough to bring the answer back",
    "noise": "corrupted states into the clean run: what the answer cannot do without",
}
NAMED = ("all", "image", "question", "last")


@dataclass(frozen=True, eq=False)
class Contrast:
    """A clean and a corrupted run.

    Attributes:
        clean, corrupted: what was read of them.
        direction: from `DIRECTIONS`.
        partners: for each token of the recipient the token of the donor in its place, or -1.
    """

    clean: PromptStates
    corrupted: PromptStates
    direction: str
    partners: Tensor

    @property
    def donor(self) -> PromptStates:
        """The run that states are taken from."""
        return self.clean if self.direction == "denoise" else self.corrupted

    @property
    def recipient(self) -> PromptStates:
        """The run that they are put into."""
        return self.corrupted if self.direction == "denoise" else self.clean

    def groups(self, positions: str | Sequence[int | Sequence[int]]) -> list[tuple[int, ...]]:
        """The recipient's tokens that are patched together, in order, from a name or from indices.

        Args:
            positions: "all", "image" or "question", each of these tokens by itself; "last"; or a list in which an
                index stands for itself and a list of indices for tokens patched at once. Negative ones count from the
                end.

        Raises:
            SiteError: if there is no such token.
            InputError: if a token has no partner in the other run.
        """
        count = len(self.recipient)
        if isinstance(positions, str):
            if positions not in NAMED:
                raise SiteError(f"There are no positions called {positions!r}{did_you_mean(positions, NAMED)}")
            run = self.recipient
            named = {"image": run.shown, "question": run.asked, "last": torch.tensor([count - 1])}
            chosen = named.get(positions, torch.arange(count)).tolist()
            found = [(index,) for index in chosen if self.partners[index] >= 0]
            if not found:
                raise SiteError(f"No {positions} token of this prompt can be patched.")
            return found
        try:
            groups = [[one] if isinstance(one, int) else list(one) for one in positions]
        except TypeError:
            groups = []
        flat = [index for group in groups for index in group]
        if not groups or not all(groups) or any(type(index) is not int for index in flat):
            raise SiteError(f"Positions are {', '.join(NAMED)}, or a list of token indices, not {positions!r}.")
        for index in flat:
            if not -count <= index < count:
                raise SiteError(f"The prompt has {count} tokens; there is no token {index}.")
            if self.partners[index] < 0:
                raise InputError(
                    f"Token {index} of one prompt has no partner in the other, which has {len(self.donor)} tokens; "
                    f"it has {count}. Take questions of equal length, or tokens nearer to the end."
                )
        return [tuple(sorted({index % count for index in group})) for group in groups]


def contrast(clean: PromptStates, corrupted: PromptStates, direction: str = "denoise") -> Contrast:
    """Pair the tokens of two runs.

    Prompts of one length are paired token by token. Of others, the tokens up to the end of the image are, if they
    are the same, and what follows it from the right, as far as the shorter one goes.

    Raises:
        InputError: for an unknown direction, or if the images have different numbers of tokens.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"There is no direction {direction!r}{did_you_mean(direction, DIRECTIONS)}")
    if not torch.equal(clean.shown, corrupted.shown):
        raise InputError(
            f"The images have {len(clean.shown)} and {len(corrupted.shown)} tokens in their prompts, so these do not "
            "correspond: take images of one size, before questions of one form."
        )
    recipient, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    partners = torch.arange(len(recipient))
    if len(recipient) != len(donor):
        tail = min(len(recipient) - recipient.prefix, len(donor) - donor.prefix)
        partners[recipient.prefix : len(recipient) - tail] = -1
        partners[len(recipient) - tail :] += len(donor) - len(recipient)
        if not torch.equal(recipient.ids[: recipient.prefix], donor.ids[: donor.prefix]):
            partners[: recipient.prefix] = -1
    return Contrast(clean, corrupted, direction, partners)
