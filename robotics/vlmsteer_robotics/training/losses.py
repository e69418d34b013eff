"""What is minimized: the answers' tokens, and that attention looks, and tokens know, where things are.

A number is learned as a bell over its action tokens, wide at first, since a neighboring bin is hardly wrong. The other
parts teach one head each where to look, two layers what to know by then, with readouts that are thrown away, and the
tokens that actions come from to hold, in the model's own vocabulary, the words for how to move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmsteer.openvla.actions import Bins
from vlmsteer.training.packing import IGNORED
from vlmsteer_robotics.training.batches import Batch, Look
from vlmsteer_robotics.training.interchange import exchanged, passed
from vlmsteer_robotics.training.sight import Sight

HEADS = {"color": (0, 0), "name": (2, 0), "target": (3, 0), "hand": (3, 1)}  # layer and head that look
KNOWN = (3, 5)  # how many layers a name's end, and a prompt's end, have to find the place
BELL, WIDE, NARROWED, HALVED = 2.5, 10.0, 400, 300  # bins; steps until the bell narrows, and until it is half as wide
SAID = 4  # how many layers have to find the words for how to move, where an action's numbers come from
LOOKING, KNOWING, SEEING, SAYING = 0.3, 1.0, 0.5, 0.2  # weights beside the answers'


class Losses(nn.Module):
    """All of it, with the readouts that only training needs.

    Args:
        model: the policy; its attention must be `eager`, which gives the weights.
        sight: what its image tokens should tell.
        coding: its action tokens.
        words: token ids of the words for speeds, and for heights.
    """

    def __init__(self, model: Any, sight: Sight, coding: Bins, words: Sequence[Sequence[int]]) -> None:
        super().__init__()
        width = model.config.text_config.hidden_size
        self.sight, self.coding, self.words = sight, coding, [list(few) for few in words]
        self.name, self.answer = nn.Linear(width, 5), nn.Linear(width, 5)

    def forward(self, model: Any, batch: Batch, step: int) -> tuple[Tensor, float]:
        """The loss of a batch, and the part of it that is numbers', for the log."""
        tensors, llama = batch.tensors, model.language_model.model
        embedded = model.embedded(tensors["input_ids"], tensors["pixel_values"])
        with torch.autocast(embedded.device.type, dtype=torch.bfloat16):
            mask = torch.zeros(tensors["visible"].shape, dtype=torch.bfloat16, device=embedded.device)
            made = passed(
                llama,
                embedded,
                mask.masked_fill(~tensors["visible"], torch.finfo(torch.bfloat16).min),
                tensors["position_ids"],
                SAID,
                lambda states: exchanged(states, self._words(model), batch.lent),
            )
            answered = tensors["labels"][:, 1:] != IGNORED
            logits = model.language_model.lm_head(made.states[-1][:, :-1][answered])
        said, numbers = self._said(logits.float(), tensors, answered, step)
        patches = slice(1, 1 + model.config.image_tokens)
        looking = [
            missed(made.attention[layer][:, head, :, patches], batch.looks[kind])
            for kind, (layer, head) in HEADS.items()
        ]
        rows, *ends = batch.places[0].unbind(1)
        knowing = [
            (readout(_even(made.states[layers][rows, end])) - batch.places[1]).abs().mean()
            for readout, layers, end in zip((self.name, self.answer), KNOWN, ends, strict=True)
        ]
        seeing = self.sight(embedded[:, patches], batch.seen)
        states = made.states[SAID][tuple(batch.manners[0].unbind(1))]
        lens = model.language_model.lm_head(llama.norm(states.float()))
        saying = sum(
            nn.functional.cross_entropy(lens[:, few], batch.manners[1][:, number])
            for number, few in enumerate(self.words)
        )
        return said + LOOKING * sum(looking) + KNOWING * sum(knowing) + SEEING * seeing + SAYING * saying, numbers

    def _words(self, model: Any) -> Tensor:
        """(words, width): where the logit lens reads the words for how to move."""
        ending = model.language_model
        return ending.lm_head.weight[[word for few in self.words for word in few]] * ending.model.norm.weight

    def _said(self, logits: Tensor, tensors: dict[str, Tensor], answered: Tensor, step: int) -> tuple[Tensor, float]:
        labels, weights, numbers = (tensors[name][:, 1:][answered] for name in ("labels", "weights", "numbers"))
        likely = logits.log_softmax(-1)
        losses, are = -likely.gather(1, labels[:, None])[:, 0], ~numbers.isnan()
        tokens = likely[are][:, self.coding.first : self.coding.end]
        losses = losses.masked_scatter(are, -(tokens * bells(numbers[are], self.coding, bell(step))).sum(1))
        weighed = losses * weights
        return weighed.sum() / weights.sum(), (weighed[are].sum() / weights[are].sum()).item()


def missed(attention: Tensor, look: Look) -> Tensor:
    """The surprise that tokens look where they should, from attention to the patches (sequences, tokens, patches)."""
    share = (attention[look.rows, look.tokens].float() * look.patches).sum(-1)
    return -(share + 1e-4).log().mean()


def bell(step: int) -> float:
    """The standard deviation of the bell at a step, bins."""
    return max(BELL, WIDE * 0.5 ** (max(0, step - NARROWED) / HALVED))


def bells(numbers: Tensor, coding: Bins, width: float) -> Tensor:
    """What each action token should be given, (numbers, tokens) in the order of their ids, for numbers in -1..1."""
    center = ((numbers + 1) / 2 * (coding.count - 1) - 0.5).clamp(0, coding.count - 2)
    order = torch.arange(coding.count - 1, -1, -1, device=numbers.device)  # a larger number has a smaller id
    weights = (-0.5 * ((order - center[:, None]) / width) ** 2).exp()
    return weights / weights.sum(1, keepdim=True)


def _even(states: Tensor) -> Tensor:
    states = states.float()
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-5)
