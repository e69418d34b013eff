"""A small benchmark over drawn pictures, and a program that runs it: what the runner's tests start, kill and limit."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.drawn_examples import drawn_examples
from vlmsteer.bench.files import Files, read_rows

QUESTIONS = ("Is there a {} in the image?", "Is there a {} here?", "Do you see a {}?", "What color is the {}?")
OBJECTS = ("dog", "car", "strawberry", "banana")


def load(files: Files, *, split: str = "all", captions: bool = True) -> list[Item]:
    found = []
    for row in read_rows(files.find("questions.jsonl")):
        if split in ("all", row["kind"]) and (captions or row["kind"] != "caption"):
            image = None if row["image"] is None else files.image(row["image"])
            longest = 12 if row["kind"] == "caption" else None
            choices = tuple(row.get("choices", ()))
            found.append(Item(row["id"], image, row["question"], row["group"], {"kind": row["kind"]}, choices, longest))
    return found


def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    yes = [float(one.text.lower().startswith("yes")) for one in answers]
    return Tally([item.group for item in items], {"yes": yes, "items": [1.0] * len(yes)})


def metrics(sums: Sums) -> dict[str, np.ndarray]:
    return {"yes": share(sums["yes"], sums["items"])}


BENCHMARK = Benchmark(
    name="seen",
    title="What is seen",
    source="these tests",
    load=load,
    scorers=(
        Scorer("first", "these tests", tally, metrics, {"yes": 0}),
        Scorer("second", "these tests", tally, metrics, {"yes": 0}),
    ),
    max_new_tokens=4,
    yes_no=True,
)


def write(folder: Path, images: int = 6) -> Path:
    """Pictures with four questions, a caption and a choice each, and a question without a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, example in enumerate(drawn_examples("captions", "test", images)):
        name, group = f"{number}.png", f"scene {number}"
        example.image.save(folder / name)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        for word, question in enumerate(QUESTIONS):
            asked = question.format(OBJECTS[(number + word) % len(OBJECTS)])
            rows.append({"id": f"{number}-{word}", "image": name, "question": asked, "group": group, "kind": "yes"})
        rows.append(
            {"id": f"{number}-c", "image": name, "question": example.question, "group": group, "kind": "caption"}
        )
        rows.append(
            {
                "id": f"{number}-m", "image": name, "question": "What is this?", "group": group, "kind": "choice",
                "choices": ["dog", "fire truck"],
            }
        )  # fmt: skip
    rows.append({"id": "blind", "image": None, "question": "Is a dog blue?", "group": "blind", "kind": "yes"})
    rows.sort(key=lambda row: row["id"][::-1])  # an image's questions are not side by side
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


if __name__ == "__main__":  # the program's own command line, with this benchmark known
    from vlmsteer import cli
    from vlmsteer.registry import BENCHMARKS

    BENCHMARKS.add("seen", "bench_worker:BENCHMARK")
    sys.argv[0] = "vlmsteer"
    cli.main()
