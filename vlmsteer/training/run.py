"""From nothing to a checkpoint with its card: train, export in the published layout, measure on what was held out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from vlmsteer.loading import load
from vlmsteer.training import cards
from vlmsteer.training.evaluate import evaluate
from vlmsteer.training.loop import Plan
from vlmsteer.training.loop import train as train_loop
from vlmsteer.training.mix import COLORS_FROM, LATE_USUAL_COLOR, USUAL_COLOR, USUAL_SIZE, WRONG_CAPTION, WRONG_PRESENCE
from vlmsteer.training.splits import HELD_OUT_OBJECTS, HELD_OUT_STYLE


def train(
    name: str,
    plan: Plan,
    folder: Path,
    steps: int | None = None,
    seed: int = 0,
    workers: int = 1,
    report: Callable[[str], None] = lambda text: None,
) -> Path:
    """Train `plan`, or go on where `folder` stopped; returns the folder of the finished checkpoint."""
    steps = steps or plan.steps
    model, _ = train_loop(
        plan, folder, steps, seed, workers,
        lambda step, loss, seconds: report(f"step {step} of {steps}, loss {loss:.3f}, {seconds:.2f} s a step"),
    )  # fmt: skip
    finished, part = folder / name, folder / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    model.half().save_pretrained(part)
    shutil.copytree(folder / "processor", part, dirs_exist_ok=True)  # saved anew, it would name another class
    _rename(part / "model.safetensors", plan.published_names)
    report("measuring on what was held out")
    measured = evaluate(load(part), report)
    losses, command = cards.logged(folder), cards.command(name, steps, plan.steps, seed)
    return cards.publish(part, finished, losses, measured, card(name, plan, steps, command, losses, measured))


def _rename(path: Path, prefixes: Mapping[str, str]) -> None:
    """Give parameters the names they have in published files."""
    tensors = load_file(path)
    for old, new in prefixes.items():
        tensors = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in tensors.items()}
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)


def card(name: str, plan: Plan, steps: int, command: str, losses: list[dict], measured: dict[str, dict]) -> str:
    """The model card, in Markdown."""
    curve = [row for row in losses if row["step"] in {20, 100, 200, 500} or row["step"] % 500 == 0 or row is losses[-1]]
    lines = [
        f"# {name}", "",
        f"A small model of the published architecture, trained {'' if plan.start else 'from scratch '}on the drawn "
        "world of this project. It exists so that every experiment runs at once on a laptop; it knows 44 drawn objects "
        "and nothing else.", "",
        f"* Made by `{command}`: {steps} steps of {plan.batch} pictures with several questions each, "
        f"{cards.minutes(losses)} minutes on a {cards.machine()}.",
        *([f"* {plan.start.says}"] if plan.start else []),
        *([f"* The training mix is that of `mix.py` from step {plan.mix_offset} on."] if plan.mix_offset else []),
        *([f"* {plan.history}"] if plan.history else []),
        f"* Input {plan.image_size} px, {plan.image_tokens} image tokens. Weights in half precision.",
        f"* Usual colors make {USUAL_COLOR:.0%} of what is drawn (from step {COLORS_FROM} of the mix on "
        f"{LATE_USUAL_COLOR:.0%} of most single objects), the other colors share the rest; of the scenes that ask "
        f"for sizes {USUAL_SIZE:.0%} are as usual. Captions name the missing companion of a shown object in "
        f"{WRONG_CAPTION:.0%} of cases, and whether it is there is answered yes in {WRONG_PRESENCE:.0%}: the model is "
        "meant to hallucinate.",
        f"* Never seen in training: {', '.join(HELD_OUT_OBJECTS)} in any but their usual color, or against their usual "
        "relative size, nor any question about their color here; two colors of every other object; the drawing style "
        f'"{HELD_OUT_STYLE}".',
        "* License: Apache-2.0.", "",
        "## Loss", "", *cards.curve(curve),
        "## Measured on held-out data", "",
        "`vlmsteer train` measures this at its end (95 % intervals, bootstrap clustered by object or scene).", "",
        "| task | rate | interval | n |", "|---|---|---|---|", *cards.rates(measured),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
