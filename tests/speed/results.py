"""Where measurements land: one entry a row in results.json, with the versions it was made with."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "results.json"


def fastest(arms: dict[str, Callable[[], Any]], repeats: int = 7, inner: int = 5) -> dict[str, float]:
    """Seconds of each arm: the minimum over interleaved repeats, so that a busy moment hits all arms alike."""
    best = dict.fromkeys(arms, float("inf"))
    for run in arms.values():
        run()
    for _ in range(repeats):
        for name, run in arms.items():
            start = time.perf_counter()
            for _ in range(inner):
                run()
            best[name] = min(best[name], (time.perf_counter() - start) / inner)
    return best


def record(row: str, seconds: dict[str, float], base: str, notes: str) -> None:
    """Print the ratios to `base` and keep them."""
    ratios = {name: round(value / seconds[base], 3) for name, value in seconds.items()}
    for name, ratio in ratios.items():
        print(f"{row}: {name} x{ratio:.3f} ({1000 * seconds[name]:.2f} ms)")
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    versions = {name: version(name) for name in ("torch", "transformers", "vlmsteer")}
    table[row] = {"ratios": ratios, "base": base, "notes": notes, "versions": versions, "machine": platform.machine()}
    FILE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
