"""The workbench as a process of its own, as `vlmsteer ui` starts it, for clients and browsers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT, ROOT / "counterfacts", ROOT / "robotics", ROOT / "ui")


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of a page that keeps its runs in a folder."""
    code = "from vlmsteer.cli import main; main()"
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, PACKAGES)),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
    }  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-c", code, "ui", "--out", str(folder / "out")], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    told: list[str] = []
    try:
        for line in server.stderr or ():
            told.append(line)
            if "workbench is at" in line:
                yield line.split(" is at ")[1].split()[0], server.pid
                break
        else:
            raise RuntimeError("The page did not start:\n" + "".join(told[-20:]))
    finally:
        server.terminate()
        server.communicate()
