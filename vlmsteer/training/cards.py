"""What the cards of all bundled models say alike, and how a finished model takes its place: all of it or nothing."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

UNITS = {"%": 100, "dB": 1, "cm": 100}  # what a value is multiplied with


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows of `losses.jsonl`; resuming logs some steps twice, of which the last counts."""
    rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    return list({(row.get("stage"), row["step"]): row for row in rows}.values())


def command(name: str, steps: int, usual: int, seed: int) -> str:
    """The command that makes a model, without what is so by default."""
    return f"vlmsteer train {name}" + f" --seed {seed}" * bool(seed) + f" --steps {steps}" * (steps != usual)


def machine(note: str = "") -> str:
    """What training ran on: "CPU core (x86_64, torch 2.9)"."""
    kind = "GPU" if torch.cuda.is_available() else "CPU core"
    return f"{kind} ({platform.machine()}, torch {torch.__version__}{note})"


def minutes(losses: Sequence[Mapping[str, Any]]) -> str:
    """How long the logged steps took, in whole minutes."""
    return f"{sum(row['seconds'] * 20 for row in losses) / 60:.0f}"


def curve(rows: Sequence[Mapping[str, Any]], title: str = "step") -> list[str]:
    """Losses as the lines of a table, a column a step."""
    return [
        f"| {title} | " + " | ".join(str(row["step"]) for row in rows) + " |",
        "|---|" + "---|" * len(rows),
        "| loss | " + " | ".join(f"{row['loss']:.3f}" for row in rows) + " |",
        "",
    ]


def rates(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was measured as the lines of a table: in percent, or in the unit that a task's name ends in."""
    lines = []
    for task, value in measured.items():
        name, _, unit = task.rpartition(", ")
        if unit not in UNITS:
            name, unit = task, "%"
        scale = UNITS[unit]
        low, high = (float("nan") if bound is None else scale * bound for bound in value["interval"])
        said = f"{scale * value['rate']:.1f} {unit} | {low:.1f} to {high:.1f} | {value['n']}"
        lines.append(f"| {name} | {said} |")
    return lines


def publish(part: Path, finished: Path, losses: list[dict[str, Any]], measured: dict[str, Any], card: str) -> Path:
    """Put losses, measurements and the card beside the weights in `part`, and `part` in the place of `finished`."""
    text = json.dumps({"losses": losses, "tasks": measured}, indent=1)
    (part / "evaluation.json").write_text(text, encoding="utf-8")
    (part / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(finished, ignore_errors=True)
    part.rename(finished)
    return finished
