"""Run folders in the documented layout, written by hand: two made-up benchmarks, their scorers, and answers to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share

ARMS: list[dict[str, Any]] = [
    {"name": "none", "kind": "baseline", "of": None, "strength": 0.0},
    {"name": "vista x0.5", "kind": "recipe", "of": None, "strength": 0.5},
    {"name": "vista x0.5, random 1", "kind": "random", "of": "vista x0.5", "strength": 0.5},
    {"name": "vista x0.5, random 2", "kind": "random", "of": "vista x0.5", "strength": 0.5},
    {"name": "vista", "kind": "recipe", "of": None, "strength": 1.0},
    {"name": "vista, random 1", "kind": "random", "of": "vista", "strength": 1.0},
    {"name": "vista, random 2", "kind": "random", "of": "vista", "strength": 1.0},
]
SHIFT = {"none": 0.0, "vista x0.5": -0.5, "vista": -1.0}  # what an arm adds to a margin, on top of noise
GAIN = {"none": 0.0, "vista x0.5": 0.4, "vista": 0.9}  # and in the right direction
COLORS = ["red", "green", "blue", "yellow"]


def judged(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    yes = [answer.text.lower().startswith("yes") for answer in answers]
    truth = [item.gold["label"] == "yes" for item in items]
    columns = {
        "n": [1.0] * len(items),
        "right": [float(a == b) for a, b in zip(yes, truth, strict=True)],
        "hits": [float(a and b) for a, b in zip(yes, truth, strict=True)],
        "said": [float(a) for a in yes],
        "true": [float(b) for b in truth],
    }
    return Tally([item.group for item in items], columns)


def judged_metrics(sums: Sums) -> dict[str, np.ndarray]:
    return {
        "f1": share(2 * sums["hits"], sums["said"] + sums["true"]),
        "accuracy": 100 * share(sums["right"], sums["n"]),
        "precision": share(sums["hits"], sums["said"]),
        "total": sums["right"],
    }


def named(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    found = [[color for color in COLORS if color in answer.text.split()] for answer in answers]
    wrong = [
        [color for color in one if color not in item.gold["colors"]] for item, one in zip(items, found, strict=True)
    ]
    counts = {
        "mentions": [float(len(one)) for one in found],
        "wrong": [float(len(one)) for one in wrong],
        "captions": [1.0] * len(items),
        "bad": [float(bool(one)) for one in wrong],
    }
    return Tally([item.group for item in items], counts)


def named_metrics(sums: Sums) -> dict[str, np.ndarray]:
    return {"chair_i": share(sums["wrong"], sums["mentions"]), "chair_s": share(sums["bad"], sums["captions"])}


JUDGED = Scorer("quiz@plain", "made up", judged, judged_metrics, {"f1": 1, "accuracy": 1, "precision": 1, "total": 1},
                frozenset({"accuracy"}), numbers=frozenset({"total"}))  # fmt: skip
NAMED = Scorer("colors@words", "made up", named, named_metrics, {"chair_i": -1, "chair_s": -1})


def nothing(files: Any) -> list[Item]:
    raise AssertionError("a report needs no data")


QUIZ = Benchmark(
    "quiz", "A quiz of 100 % & more", "made up", nothing, (JUDGED,), 4, yes_no=True, notes="<b>Made up.</b>"
)
COLORED = Benchmark("colors", "Colors", "made up", nothing, (NAMED,), 32)
BENCHMARKS = {"quiz": QUIZ, "colors": COLORED}


def quiz_items(folder: Path, groups: int, each: int) -> list[Item]:
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for group in range(groups):
        image = folder / f"{group}.png"
        Image.new("RGB", (400, 300), (group * 37 % 256, 90, 160)).save(image)
        for number in range(each):
            label = "yes" if (group + number) % 2 else "no"
            prompt = f"Is there a thing {number} in picture {group}?"
            items.append(Item(f"{group}-{number}", str(image), prompt, f"g{group}", {"label": label}))
    return items


def color_items(count: int) -> list[Item]:
    return [
        Item(f"c{i}", None, f"Describe picture {i}.", f"c{i}", {"colors": [COLORS[i % 4], COLORS[(i + 1) % 4]]})
        for i in range(count)
    ]


def quiz_answer(item: Item, arm: str, rng: np.random.Generator, ease: float) -> Answer:
    sign = 1 if item.gold["label"] == "yes" else -1
    of = arm.removeprefix("my ").split(", random")[0]
    noise = 0.3 * rng.standard_normal() if "random" in arm else 0.0
    steered = 0.0 if "random" in arm else SHIFT.get(of, -0.5) + GAIN.get(of, 0.4) * sign
    margin = round(ease + 0.6 * sign + 0.5 + steered + noise, 6)
    return Answer("Yes, there is." if margin > 0 else "No.", {"yes": margin / 2 - 1, "no": -margin / 2 - 1})


def color_answer(item: Item, arm: str, rng: np.random.Generator) -> Answer:
    lie = 0.7 if arm == "none" or "random" in arm else 0.4
    words = [item.gold["colors"][0]] + ([COLORS[int(rng.integers(4))]] if rng.random() < lie else [])
    return Answer("I see " + " and ".join(words) + " and it is there and it is there")


def write(
    folder: Path, groups: int = 12, each: int = 4, captions: int = 20, seed: int = 0,
    arms: Sequence[dict[str, Any]] = ARMS,
    change: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda row: row, model: str = "tiny-made",
) -> Path:  # fmt: skip
    """Write a run; `change` may alter a row of samples.jsonl, or leave it out with None."""
    folder.mkdir(parents=True, exist_ok=True)
    items = {"quiz": quiz_items(folder / "images", groups, each), "colors": color_items(captions)}
    ease = {
        item.id: 1.2 * float(np.random.default_rng([7, i]).standard_normal()) for i, item in enumerate(items["quiz"])
    }
    about = {
        "version": "0", "command": ["vlmsteer", "bench", "quiz", "colors"], "model": {"id": model, "revision": None},
        "decoding": {"greedy": True, "max_new_tokens": {"quiz": 4, "colors": 32}}, "arms": list(arms), "seed": seed,
        "tasks": [{"name": name, "version": 1, "options": {}, "items": len(rows)} for name, rows in items.items()],
        "versions": {"torch": "2"}, "started": "2026-01-01T00:00:00",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about))
    rows = []
    for task, found in items.items():
        (folder / f"items-{task}.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in found))
        for place, arm in enumerate(about["arms"]):
            for i, item in enumerate(found):
                rng = np.random.default_rng([seed, place, i])
                name = arm["name"]
                answer = (
                    quiz_answer(item, name, rng, ease[item.id]) if task == "quiz" else color_answer(item, name, rng)
                )
                rows.append(
                    {"key": f"{task}/{name}/{item.id}", "task": task, "item": item.id, "arm": name,
                     "answer": answer.text, "logprobs": dict(answer.logprobs), "error": None, "seconds": 0.01}
                )  # fmt: skip
    lines = [json.dumps(row) + "\n" for row in map(change, rows) if row is not None]
    (folder / "samples.jsonl").write_text("".join(lines))
    return folder
