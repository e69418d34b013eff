"""`import vlmsteer`, and all that loading a model imports, beside torch's own import, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

from results import record

ARMS = {
    "torch": "import torch",
    "vlmsteer": "import vlmsteer",
    "vlmsteer and torch": "import torch, vlmsteer",
    "vlmsteer with its session": "import torch, vlmsteer.session",
}
TIMED = "import time; start = time.process_time(); {}; print(time.process_time() - start)"


def main() -> None:
    best = dict.fromkeys(ARMS, float("inf"))
    for _ in range(5):
        for name, code in ARMS.items():
            command = [sys.executable, "-c", TIMED.format(code)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            best[name] = min(best[name], float(said))
    more = best["vlmsteer with its session"] - best["torch"]
    record(
        "import", best, "torch", f"session's import is torch's and {more:.2f} s more; CPU time, min of 5 interleaved"
    )


if __name__ == "__main__":
    main()
