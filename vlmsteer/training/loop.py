"""The training loop: seeded, resumable, one device.

Warm-up, constant rate, then a linear decay over the last fifth of the steps. Scenes are drawn while training in worker
processes, from seeds that depend only on the step, so a resumed run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vlmsteer.training.mix import sample
from vlmsteer.training.packing import IGNORED, collate, pack

LARGE_RENDERS = 0.25  # share of pictures drawn at twice the size and shrunk by the processor, as a user's would be


@dataclass(frozen=True)
class Plan:
    """How one bundled model is made: its builder, input size, and the numbers of its training.

    `published_names` maps prefixes of saved parameters to those of published files, where the library writes others;
    `history` says how the bundled weights came about where that is more than the one command.
    """

    build: Callable[[int], tuple[Any, Any]]
    image_size: int
    image_tokens: int
    steps: int
    batch: int
    peak_rate: float
    published_names: Mapping[str, str] = field(default_factory=dict)
    history: str = ""


class Batches(Dataset):
    """Batch `step` as tensors; any step can be drawn on its own."""

    def __init__(self, processor, image_size: int, image_tokens: int, batch: int, steps: int, seed: int) -> None:
        self.processor, self.image_size, self.image_tokens = processor, image_size, image_tokens
        self.batch, self.steps, self.seed = batch, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{self.seed}/{step}")
        samples = [sample(rng, step) for _ in range(self.batch)]
        images = []
        for drawn in samples:
            large = rng.random() < LARGE_RENDERS
            images.append(drawn.scene.render(self.image_size * (2 if large else 1)).image)
        tensors = collate(
            [pack(drawn, self.processor, self.image_tokens) for drawn in samples], self.processor.tokenizer.pad_token_id
        )
        tensors["pixel_values"] = pixel_values(images, self.processor.image_processor)
        return tensors


def pixel_values(images: list[Image.Image], image_processor) -> torch.Tensor:
    return image_processor(images, return_tensors="pt")["pixel_values"]


def rate(step: int, steps: int, peak: float, warmup: int = 150, decay: float = 0.2) -> float:
    """Learning rate at a step: linear warm-up, constant, linear decay to zero."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


def train(
    build: Callable[[int], tuple[Any, Any]],
    folder: Path,
    image_size: int,
    image_tokens: int,
    steps: int,
    batch: int,
    peak_rate: float,
    seed: int,
    workers: int,
    report: Callable[[int, float, float], None],
    save_every: int = 200,
) -> tuple[Any, Any]:
    """Train until `steps`, resuming from `folder` if it holds a checkpoint.

    Args:
        build: makes the untrained model and its processor from a seed.
        folder: where `state.pt` (every `save_every` steps and at the end) and `losses.jsonl` are written.
        report: called with (step, loss, seconds a step) every 20 steps.

    Returns:
        The trained model and its processor.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model, processor = build(seed)
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=peak_rate,
        betas=(0.9, 0.98),
    )
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    data = Batches(processor, image_size, image_tokens, batch, steps, seed)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(first, steps),
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        worker_init_fn=_one_thread,
    )
    recent, started = [], time.perf_counter()
    for step, tensors in enumerate(loader, start=first):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak_rate)
        loss = loss_of(model, {key: value.to(device) for key, value in tensors.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 20 == 0:
            mean = float(np.mean(recent))
            seconds = (time.perf_counter() - started) / len(recent)
            with (folder / "losses.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step + 1, "loss": round(mean, 4), "seconds": round(seconds, 3)}) + "\n")
            report(step + 1, mean, seconds)
            recent, started = [], time.perf_counter()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, folder / "state.part")
            os.replace(folder / "state.part", folder / "state.pt")
    return model.eval(), processor


def answer_logits(model, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits that predict each answer token of a collated batch: (answer tokens, vocabulary).

    bf16 autocast on a GPU, float32 on a CPU.
    """
    answered = tensors["labels"][:, 1:] != IGNORED
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=answered.is_cuda):
        dtype = torch.bfloat16 if answered.is_cuda else torch.float32
        hidden = torch.zeros(tensors["visible"].shape, dtype=dtype, device=answered.device)
        mask = hidden.masked_fill(~tensors["visible"], torch.finfo(dtype).min)
        states = model.model(
            input_ids=tensors["input_ids"],
            pixel_values=tensors["pixel_values"],
            attention_mask=mask,
            position_ids=tensors["position_ids"],
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(states[:, :-1][answered])


def loss_of(model, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weighted mean cross-entropy of the answers' tokens."""
    labels = tensors["labels"][:, 1:]
    answered = labels != IGNORED
    weights = tensors["weights"][:, 1:][answered]
    logits = answer_logits(model, tensors).float()
    losses = torch.nn.functional.cross_entropy(logits, labels[answered], reduction="none")
    return (losses * weights).sum() / weights.sum()


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
