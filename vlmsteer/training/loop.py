"""The training loop: seeded, resumable, one device.

Warm-up, constant rate, then a linear decay over the last fifth of the steps. Scenes are drawn while training in worker
processes, from seeds that depend only on the step, so a resumed run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import AutoProcessor

from vlmsteer.training.mix import sample
from vlmsteer.training.packing import IGNORED, Tokens, chat, collate, pack
from vlmsteer.training.progress import Log, adam, rate, restore, save
from vlmsteer.training.questions import Exchange
from vlmsteer.training.start import Start

PARTS = 2  # a batch goes through the model in as many parts, sorted by length, so that little of it is padding
IMAGES = ("pixel_values", "image_grid_thw")  # what image processors give, as models take it
LARGE_RENDERS = 0.25  # share of pictures drawn at twice the size and shrunk by the processor, as a user's would be


def prompt_states(model, tensors: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """The text tower's last hidden states, (batch, tokens, hidden), of a model that takes one image a sequence.

    `mask` is added to attention scores, (batch, 1, tokens, tokens). Positions may have several axes.
    """
    positions = tensors["position_ids"]
    images = {name: tensors[name] for name in IMAGES if name in tensors}
    return model.model(
        input_ids=tensors["input_ids"],
        attention_mask=mask,
        position_ids=positions.permute(2, 0, 1) if positions.dim() == 3 else positions,
        use_cache=False,
        **images,
    ).last_hidden_state


@dataclass(frozen=True)
class Plan:
    """How one bundled model is made: its builder, input size, and the numbers of its training.

    Attributes:
        build: makes the untrained model and its processor from a seed.
        tokenize: one exchange as token ids with positions (`packing.Tokens`).
        states: the text tower's last hidden states of a collated batch.
        start: what a new run takes over from a model that is already trained.
        first_stage: trains parts of a new run's model before the first step.
        mix_offset: the mix is that of so many steps later: a text tower that starts trained needs no first words.
        published_names: prefixes of saved parameters -> those of published files, where the library writes others.
        history: how the bundled weights came about where that is more than the one command.
    """

    build: Callable[[int], tuple[Any, Any]]
    image_size: int
    image_tokens: int
    steps: int
    batch: int
    peak_rate: float
    tokenize: Callable[[Exchange, Any, int], Tokens] = chat
    states: Callable[[Any, dict[str, torch.Tensor], torch.Tensor], torch.Tensor] = prompt_states
    start: Start | None = None
    first_stage: Callable[[Any, Any, int], None] | None = None
    mix_offset: int = 0
    published_names: Mapping[str, str] = field(default_factory=dict)
    history: str = ""


class Batches(Dataset):
    """Batch `step` as tensors, in parts of about equal length; any step can be drawn on its own."""

    def __init__(self, plan: Plan, processor, steps: int, seed: int) -> None:
        self.plan, self.processor, self.steps, self.seed = plan, processor, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[dict[str, torch.Tensor]]:
        plan, processor = self.plan, self.processor
        rng = random.Random(f"{self.seed}/{step}")
        samples = [sample(rng, step + plan.mix_offset) for _ in range(plan.batch)]
        rows, images = [], []
        for number, drawn in enumerate(samples):
            large = rng.random() < LARGE_RENDERS
            images.append(drawn.scene.render(plan.image_size * (2 if large else 1)).image)
            rows += [(packed, number) for packed in pack(drawn, processor, plan.image_tokens, plan.tokenize)]
        rows.sort(key=lambda row: len(row[0].input_ids))
        size, parts = -(-len(rows) // PARTS), []
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            shown = list(dict.fromkeys(number for _, number in part))
            numbers = [shown.index(number) for _, number in part]
            tensors = collate([packed for packed, _ in part], processor.tokenizer.pad_token_id, numbers)
            parts.append(tensors | pixels([images[number] for number in shown], processor.image_processor))
        return parts


def pixels(images: list[Image.Image], image_processor) -> dict[str, torch.Tensor]:
    """What the processor makes of pictures: their pixels and, for some families, their grids."""
    made = image_processor(images, return_tensors="pt")
    return {name: made[name] for name in IMAGES if name in made}


def train(
    plan: Plan,
    folder: Path,
    steps: int,
    seed: int,
    workers: int,
    report: Callable[[int, float, float], None],
    save_every: int = 200,
) -> tuple[Any, Any]:
    """Train until `steps`, resuming from `folder` if it holds a checkpoint.

    Args:
        plan: the model and the numbers of its training, but for `steps`.
        folder: where `state.pt` (every `save_every` steps and at the end), the processor the run began with (a run
            that goes on keeps its tokenizer) and `losses.jsonl` are written.
        report: called with (step, loss, seconds a step) every 20 steps.

    Returns:
        The trained model and its processor.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model, processor = plan.build(seed)
    model.to(device).train()
    optimizer = adam(model, plan.peak_rate)
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    if (folder / "state.pt").exists():
        processor = AutoProcessor.from_pretrained(folder / "processor", local_files_only=True)
        first = restore(folder, model, optimizer, device)
    else:
        if plan.start:
            plan.start.copy_to(model, processor)
        if plan.first_stage:
            plan.first_stage(model, processor, seed)
        processor.save_pretrained(folder / "processor")
    data = Batches(plan, processor, steps, seed)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(first, steps),
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        worker_init_fn=_one_thread,
    )
    log = Log(folder, report)
    for step, parts in enumerate(loader, start=first):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, plan.peak_rate)
        weight, loss = sum(float(part["weights"].sum()) for part in parts), 0.0
        for tensors in parts:
            share = loss_of(model, {key: value.to(device) for key, value in tensors.items()}, plan.states) / weight
            share.backward()
            loss += share.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log(step + 1, loss)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save(folder, model, optimizer, step + 1)
    return model.eval(), processor


def answer_logits(
    model,
    tensors: dict[str, torch.Tensor],
    states: Callable[[Any, dict[str, torch.Tensor], torch.Tensor], torch.Tensor] = prompt_states,
) -> torch.Tensor:
    """The logits that predict each answer token of a collated batch: (answer tokens, vocabulary).

    bf16 autocast on a GPU, float32 on a CPU.
    """
    answered = tensors["labels"][:, 1:] != IGNORED
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=answered.is_cuda):
        dtype = torch.bfloat16 if answered.is_cuda else torch.float32
        hidden = torch.zeros(tensors["visible"].shape, dtype=dtype, device=answered.device)
        mask = hidden.masked_fill(~tensors["visible"], torch.finfo(dtype).min)
        return model.get_output_embeddings()(states(model, tensors, mask)[:, :-1][answered])


def loss_of(
    model,
    tensors: dict[str, torch.Tensor],
    states: Callable[[Any, dict[str, torch.Tensor], torch.Tensor], torch.Tensor] = prompt_states,
) -> torch.Tensor:
    """Weighted sum of the cross-entropies of the answers' tokens."""
    labels = tensors["labels"][:, 1:]
    answered = labels != IGNORED
    weights = tensors["weights"][:, 1:][answered]
    logits = answer_logits(model, tensors, states).float()
    losses = torch.nn.functional.cross_entropy(logits, labels[answered], reduction="none")
    return (losses * weights).sum()


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
