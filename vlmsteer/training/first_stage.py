"""The first stage of a model with a Q-Former: its queries learn to give what another model's patches give.

As published, a Q-Former learns to read pictures before a language model listens to it. Ours learns it from a bundled
model that reads patches directly: query i gives what that model's projector gives for patch i. Through the language
model's loss alone the queries would find out where a patch is only after thousands of steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmsteer.loading import BUNDLED
from vlmsteer.training.mix import sample

SAMPLES, BATCH, RATE, WARMUP, DECAY = 3000, 32, 1e-3, 50, 0.2
MIX_STEP = 5500  # scenes and single objects
PARTS = ("vision_model.", "qformer.", "query_tokens", "language_projection.")


def learn_to_see(
    model: Any, processor: Any, donor: str, steps: int, seed: int, report: Callable[[int, float], None]
) -> None:
    """Train all but the language model of an InstructBLIP, whose queries are as many as the donor's patches.

    Args:
        donor: a bundled LLaVA.
        report: called with (step, share of the variance that is not explained yet) every 100 steps.
    """
    rng = random.Random(f"first stage/{seed}")
    drawn = [sample(rng, MIX_STEP) for _ in range(SAMPLES)]
    images = [one.scene.render(processor.image_processor.size["height"]).image for one in drawn]
    asked = [[exchange.question for exchange in one.exchanges] for one in drawn]
    device = next(model.parameters()).device
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(device)
    wanted = _patches(donor, images).to(device)
    spread = wanted.std()
    learned = [p for name, p in model.named_parameters() if name.startswith(PARTS)]
    optimizer = torch.optim.AdamW(learned, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    recent = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))
        rows = [rng.randrange(SAMPLES) for _ in range(BATCH)]
        questions = [rng.choice(asked[row]) for row in rows]
        read = processor.qformer_tokenizer(questions, return_tensors="pt", padding=True).to(device)
        seen = model.vision_model(pixel_values=pixels[rows]).last_hidden_state
        given = model.language_projection(queries(model, seen, read.input_ids, read.attention_mask))
        loss = ((given - wanted[rows]) / spread).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            report(step + 1, sum(recent) / len(recent))
            recent = []


def _patches(donor: str, images: list[Image.Image]) -> Tensor:
    """(images, patches, text width): what the donor's language model is given."""
    model: Any = AutoModelForImageTextToText.from_pretrained(BUNDLED / donor, dtype=torch.float32)
    processor: Any = AutoProcessor.from_pretrained(BUNDLED / donor)
    parts = []
    with torch.no_grad():
        for first in range(0, len(images), 100):
            shown = processor.image_processor(images[first : first + 100], return_tensors="pt")["pixel_values"]
            parts += list(model.model.get_image_features(pixel_values=shown).pooler_output)
    return torch.stack(parts)


def queries(model: Any, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """(rows, queries, width): what the Q-Former makes of each picture's states with a question."""
    tokens = model.query_tokens.expand(len(seen), -1, -1)
    read = model.qformer(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones_like(tokens[..., 0]).long(), mask], 1),
        query_embeds=tokens,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones_like(seen[..., 0]).long(),
    )
    return read.last_hidden_state[:, : tokens.shape[1]]
