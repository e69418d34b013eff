"""The eyes: what each image token has to say of what it shows, in directions that the language model can read.

Of a block or the hand whose middle is near, a token resembles the word ("red", "hand") in the language model's own
embedding, and says its place on the table along three fixed directions. Trained on every patch of every picture, this
takes minutes; a policy of this size that clones actions alone never learns to look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmsteer_robotics.camera import SIDE, pixel
from vlmsteer_robotics.scene import COLORS
from vlmsteer_robotics.training.frames import Frame, Frames
from vlmsteer_robotics.training.lessons import MIDDLE, SPAN

KINDS = [*COLORS, "hand"]
STEPS, BATCH, RATE = 900, 64, 1e-3
STEEP = 3.0  # the slope from a token's resemblance to a word to the logit that the thing is there
LOUD = 3.0  # how far a token of length sqrt(width) goes along a direction for a place at the table's edge
RARE = 5.0  # how much more a patch weighs that shows the thing
BEHIND = 0.5  # patches; of two things near a patch the hand tells its place only if so much nearer


class Sight(nn.Module):
    """What image tokens say, and how wrong that is.

    Args:
        model: the policy; its word embeddings are trained with the towers.
        words: token ids of `KINDS`.
    """

    directions: Tensor

    def __init__(self, model: Any, words: Sequence[int]) -> None:
        super().__init__()
        self.embedding, self.words = model.get_input_embeddings(), list(words)
        self.bias = nn.Parameter(torch.tensor(-4.0))
        drawn = torch.randn(model.config.text_config.hidden_size, 3, generator=torch.Generator().manual_seed(7))
        self.register_buffer("directions", torch.linalg.qr(drawn)[0])

    def forward(self, tokens: Tensor, targets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The loss of image tokens (images, patches, width) against what `targets` gave."""
        there, place, told = targets
        tokens = tokens.float() * torch.rsqrt(tokens.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        seen = STEEP * (tokens @ self.embedding.weight[self.words].T) + self.bias
        known = nn.functional.binary_cross_entropy_with_logits(seen, there, 1 + (RARE - 1) * there)
        away = ((tokens @ self.directions) / LOUD - place).abs().sum(-1)
        return known + (away * told).sum() / told.sum()


def near(point: np.ndarray, side: int) -> dict[int, float]:
    """The (at most four) patches whose middles surround a point of the world, and how far these are, in patches."""
    row, column = (value * side / SIDE - 0.5 for value in pixel(point))
    corners = [(a, b) for a in (int(row // 1), int(row // 1) + 1) for b in (int(column // 1), int(column // 1) + 1)]
    return {a * side + b: float(np.hypot(a - row, b - column)) for a, b in corners if 0 <= a < side and 0 <= b < side}


def targets(frames: Sequence[Frame], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which kinds are near each patch (n, patches, kinds), where (n, patches, 3), whether anything is (n, patches)."""
    shape = (len(frames), side * side)
    there, place, told = (
        np.zeros((*shape, len(KINDS)), np.float32),
        np.zeros((*shape, 3), np.float32),
        np.zeros(shape, np.float32),
    )
    for number, frame in enumerate(frames):
        nearest = np.full(side * side, np.inf)
        for name, point in [*zip(frame.colors, frame.blocks, strict=True), ("hand", frame.tool)]:
            for patch, away in near(point, side).items():
                there[number, patch, KINDS.index(name)] = told[number, patch] = 1
                away += BEHIND * (name == "hand")
                if away < nearest[patch]:
                    nearest[patch] = away
                    place[number, patch] = (point - [*MIDDLE, 0]) / SPAN
    return torch.from_numpy(there), torch.from_numpy(place), torch.from_numpy(told)


def open_eyes(
    model: Any,
    sight: Sight,
    pixels: Callable[[np.ndarray], Tensor],
    frames: Frames,
    seed: int,
    report: Callable[[int, float], None],
    steps: int = STEPS,
) -> None:
    """Train the towers, the projector and the words for what there is to see; the rest of the model stays as it is."""
    rng, device = np.random.default_rng([4, seed]), sight.directions.device
    learned = [*model.vision_backbone.parameters(), *model.projector.parameters(), *sight.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=RATE, betas=(0.9, 0.98))
    side, recent = model.config.vision_config.grid, []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50, (steps - step) / (0.3 * steps))
        chosen = rng.choice(len(frames), min(BATCH, len(frames)), replace=False)
        tokens = model.projector(model.vision_backbone(pixels(frames.images[chosen]).to(device)))
        wanted = targets([frames[index] for index in chosen], side)
        loss = sight(tokens, tuple(part.to(device) for part in wanted))
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 20 == 0:
            report(step + 1, float(np.mean(recent)))
            recent = []
