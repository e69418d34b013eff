"""Where measurements land: one entry a row in results.json, with the versions it was made with."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

RIVALS = ("pyvene", "nnsight", "transformer-lens")
FILE = Path(__file__).parent / "results.json"


def fastest(arms: dict[str, Callable[[], Any]], repeats: int = 5, inner: int = 1) -> dict[str, float]:
    """CPU seconds of each arm: the minimum over interleaved repeats, so that a busy moment hits all arms alike."""
    best = dict.fromkeys(arms, float("inf"))
    for run in arms.values():
        run()
    for number in range(repeats):
        names = list(arms)
        for name in names if number % 2 else reversed(names):  # what an arm costs depends on which one ran before it
            start = time.process_time()
            for _ in range(inner):
                arms[name]()
            best[name] = min(best[name], (time.process_time() - start) / inner)
    return best


def rival(name: str) -> Any:
    """An installed library to compare with; None, with a sentence, if it is not installed or does not import."""
    try:
        return import_module(name)
    except Exception as error:  # a library may break at import on newer dependencies in any way
        print(f"{name} is left out: {type(error).__name__}: {error}")
        return None


def record(row: str, seconds: dict[str, float], base: str, notes: str) -> None:
    """Print the ratios to `base` and keep them."""
    ratios = {name: round(value / seconds[base], 3) for name, value in seconds.items()}
    for name, ratio in ratios.items():
        print(f"{row}: {name} x{ratio:.3f} ({1000 * seconds[name]:.2f} ms)")
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    versions = {name: version(name) for name in ("torch", "transformers", "vlmsteer")}
    versions |= {name: version(name) for name in RIVALS if any(arm.startswith(name) for arm in seconds)}
    table[row] = {"ratios": ratios, "base": base, "notes": notes, "versions": versions, "machine": platform.machine()}
    FILE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
