"""The memory of a page that answers for long: a thousand questions and more from visitors who come and go.

Each visitor asks a few questions with a recipe of their own, looks at layers and evidence, and leaves. Aim: after the
warm-up, the server's memory grows by less than 100 MB.

    python tests/speed/soak.py [requests]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import psutil
from gradio_client import Client, handle_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving import ROOT, serving

REQUESTS, WARM_UP, VISIT, AIM = 2000, 200, 25, 100.0
PICTURES = [ROOT / "ui" / "vlmsteer_ui" / "pictures" / name for name in ("blue_strawberry.png", "lone_elephant.png")]
QUESTIONS = (
    "What color is this?", "What color are most strawberries?", "Is there a flamingo in this image?", "What is this?"
)  # fmt: skip
VECTORS = ("color to pixels", "color to prior", "fewer made-up objects")


def main() -> None:
    """Ask, and print the memory now and then."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (address, pid):
        server, start, warm = psutil.Process(pid), time.perf_counter(), 0.0
        client = Client(address, verbose=False)
        for number in range(WARM_UP + count):
            if number and number % VISIT == 0:
                client.close()
                client = Client(address, verbose=False)
            ask(client, number)
            if number == WARM_UP - 1:
                warm, start = memory(server), time.perf_counter()
                print(f"after {WARM_UP} requests of warm-up: {warm:.0f} MB", flush=True)
            elif number % 200 == 199:
                print(f"{number - WARM_UP + 1} requests: {memory(server) - warm:+.0f} MB", flush=True)
        grown, took = memory(server) - warm, time.perf_counter() - start
        kept = "less" if grown < AIM else "MORE"
        print(f"{count} requests in {took:.0f} s: {grown:+.1f} MB, {kept} than {AIM:g} MB")


def ask(client: Client, number: int) -> None:
    """One request: mostly a question, now and then layers or evidence."""
    name = {7: "/lens", 14: "/evidence"}.get(number % 20, "/run")
    client.predict(
        image=handle_file(PICTURES[number % 2]), question=QUESTIONS[number // 2 % 4],
        vectors=[] if name == "/evidence" else [VECTORS[number % 3]],
        strength=round(0.5 + number % 11 / 10, 1), api_name=name,
    )  # fmt: skip


def memory(server: psutil.Process) -> float:
    """Of a process, in MB."""
    return server.memory_info().rss / 1e6


if __name__ == "__main__":
    main()
