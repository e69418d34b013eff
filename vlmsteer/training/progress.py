"""How a run gets on: its optimizer and rate, the losses that it logs, and the checkpoint from which it goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def adam(model: torch.nn.Module, peak: float) -> torch.optim.AdamW:
    """AdamW that lets matrices decay, but no norms or biases."""
    learned = [p for p in model.parameters() if p.requires_grad]
    matrices, others = [p for p in learned if p.dim() > 1], [p for p in learned if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
    )


def rate(step: int, steps: int, peak: float, warmup: int = 150, decay: float = 0.2) -> float:
    """Learning rate at a step: linear warm-up, constant, linear decay to zero."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


class Log:
    """Writes (and reports) step, loss and seconds a step every 20 steps, as means over them, to `losses.jsonl`."""

    def __init__(self, folder: Path, report: Callable[[int, float, float], None]) -> None:
        self.path, self.report = folder / "losses.jsonl", report
        self.recent, self.started = [], time.perf_counter()

    def __call__(self, step: int, loss: float) -> None:
        self.recent.append(loss)
        if step % 20 == 0:
            mean = float(np.mean(self.recent))
            seconds = (time.perf_counter() - self.started) / len(self.recent)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "loss": round(mean, 4), "seconds": round(seconds, 3)}) + "\n")
            self.report(step, mean, seconds)
            self.recent, self.started = [], time.perf_counter()


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write `state.pt`, whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, folder / "state.part")
    os.replace(folder / "state.part", folder / "state.pt")


def restore(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Read what `save` wrote; returns how many steps are done."""
    state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
