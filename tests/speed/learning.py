"""Learning PvP, VTI (its text) and CAA: peak memory at 500 and at 5,000 pairs, and the time beside bare forwards.

The examples name image files, so that what grows with their number is the method's. 250 different ones are drawn and
used in turn; 250 is no multiple of a batch, so every round has other batches. `learning.py FEW MANY` takes others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from results import record

NAMES = ("pvp", "vti mean", "vti mean+pc1", "caa")
DRAWN, FEW, MANY = 250, 500, 5000
TIMED, REPEATS = 32, 24  # short rounds, because a busy machine has only short quiet moments


def main(few: int = FEW, many: int = MANY) -> None:
    # This process loads nothing: a new one starts from the peak memory of the one that made it.
    with TemporaryDirectory() as folder:
        child("draw", folder)
        for name in NAMES:
            low, high = (child("peak", folder, name, count) for count in (few, many))
            times = child("seconds", folder, name, TIMED)
            record(
                f"learning {name}", times, "forwards",
                f"tiny-llava, {TIMED} pairs, beside the same batches through session.run without reading, CPU time of "
                f"one thread, min of {REPEATS} interleaved; digest, a part of learning, hashes the data; peak memory "
                f"{low['loaded']} MB when loaded, {low['learned']} MB after {few} pairs, {high['learned']} MB after "
                f"{many} ({high['learned'] - low['learned']:+.1f} MB)",
            )  # fmt: skip
            print(f"learning {name}: peak MB {low} for {few} pairs, {high} for {many}")


def child(task: str, *arguments: object) -> Any:
    """What a task of this file gives in a process of its own."""
    command = [sys.executable, __file__, task, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def draw(folder: str) -> None:
    """Write the examples: captions, and pictures with PvP's two questions."""
    from vlmsteer.bench.drawn_examples import drawn_examples
    from vlmsteer.bench.pairs import drawn_pairs
    from vlmsteer.demo import question
    from vlmsteer.examples import save_examples

    save_examples(Path(folder, "captions.jsonl"), drawn_examples("captions", "learn", DRAWN))
    rows = []
    for pair in drawn_pairs("color", "learn", DRAWN):
        file = Path(folder, f"{pair.id}.png")
        file.write_bytes(pair.counterfactual)
        rows.append((str(file), question(pair, "this"), question(pair, "most")))
    Path(folder, "pairs.json").write_text(json.dumps(rows))


def peak(folder: str, name: str, count: str) -> dict[str, float]:
    """The most megabytes held when the model is loaded, and after learning."""
    session, examples, learn = prepared(folder, name, int(count))
    loaded = megabytes()
    learn(session, examples)
    return {"loaded": loaded, "learned": megabytes()}


def seconds(folder: str, name: str, count: str) -> dict[str, float]:
    """CPU seconds of learning, of the forwards that it needs, and of the hash of the data."""
    from vlmsteer.examples import digest
    from vlmsteer.images import open_image

    session, examples, learn = prepared(folder, name, int(count))
    if name == "pvp":
        images = [image for image, *_ in examples for _ in range(2)]
        questions, answers, size = [text for _, *both in examples for text in both], None, 32
    else:
        images = [one.image for one in examples for _ in range(2)]
        questions = [one.question for one in examples for _ in range(2)]
        answers, size = [text for one in examples for text in (one.right, one.wrong)], 16

    def forwards() -> None:
        for first in range(0, len(images), size):
            rows = slice(first, first + size)
            session.run(images[rows], questions[rows], None if answers is None else answers[rows])

    def hashing() -> None:
        _ = [open_image(image).tobytes() for image in images[::2]] if name == "pvp" else digest(examples)

    arms: dict[str, Callable[[], Any]] = {
        "forwards": forwards, "learning": lambda: learn(session, examples), "digest": hashing
    }  # fmt: skip
    best = dict.fromkeys(arms, float("inf"))
    for number in range(REPEATS):
        names = list(arms)
        for arm in names if number % 2 else reversed(names):  # what an arm costs depends on which one ran before it
            start = time.process_time()
            arms[arm]()
            best[arm] = min(best[arm], time.process_time() - start)
    return best


def prepared(folder: str, name: str, count: int) -> tuple[Any, list[Any], Callable[..., Any]]:
    """A session, so many examples, and how the method learns from them."""
    import torch
    from transformers.utils import logging

    import vlmsteer
    from vlmsteer.examples import load_examples
    from vlmsteer.methods import caa, pvp, vti

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    drawn: list[Any] = (
        json.loads(Path(folder, "pairs.json").read_text())
        if name == "pvp"
        else load_examples(Path(folder, "captions.jsonl"))
    )
    method, _, mode = name.partition(" ")
    learn = {"pvp": pvp.learn_pairs, "vti": partial(vti.learn, image=0, mode=mode), "caa": caa.learn}[method]
    return vlmsteer.load("tiny-llava"), list(islice(cycle(drawn), count)), learn


def megabytes() -> float:
    """The most memory this process has held so far; `demo.peak_memory_mb` in finer steps."""
    import resource

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(held / (1024**2 if sys.platform == "darwin" else 1024), 1)


TASKS: dict[str, Callable[..., Any]] = {"draw": draw, "peak": peak, "seconds": seconds}

if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in TASKS:
        print(json.dumps(TASKS[sys.argv[1]](*sys.argv[2:])))
    else:
        main(*map(int, sys.argv[1:]))
