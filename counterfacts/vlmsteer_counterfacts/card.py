"""What a set's README says: how it was made, what is in it, what was rejected and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of a set's rows ({"ok", "row"}): accepted by attribute and object, failed checks by name."""
    chosen = [row["row"] for row in rows if row["ok"]]
    failed = [
        check["name"] for row in rows if not row["ok"] for check in json.loads(row["row"]["checks"]) if not check["ok"]
    ]
    made = Counter(row["row"]["attribute"] for row in rows)
    return {
        "pairs": len(rows),
        "accepted": len(chosen),
        "by_attribute": {
            name: {"made": count, "accepted": sum(row["attribute"] == name for row in chosen)}
            for name, count in sorted(made.items())
        },
        "objects": len({row["object"] for row in chosen}),
        "by_object": dict(sorted(Counter(row["object"] for row in chosen).items())),
        "answers": dict(sorted(Counter(row["pixel"] for row in chosen).items())),
        "failed_checks": dict(sorted(Counter(failed).items())),
    }


def card(name: str, config: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The data card, in Markdown, with the header that the hub reads."""
    numbers = counted(rows)
    failed = ", ".join(f"{key} {value}" for key, value in numbers["failed_checks"].items())
    lines = [
        "---", "license: apache-2.0", "task_categories:", "- visual-question-answering", "---", "",
        f"# {name}", "",
        "Pairs of pictures that differ in one thing: in the original the answer from memory is right, in the "
        "counterfactual only the one in the pixels. Made and checked by vlmsteer "
        "(`vlmsteer counterfacts build config.json`); the same configuration gives the same bytes.", "",
        "| attribute | made | accepted |", "|---|---|---|",
        *(f"| {key} | {value['made']} | {value['accepted']} |" for key, value in numbers["by_attribute"].items()), "",
        f"{numbers['objects']} objects. Rejected pairs are kept under `__rejected__` with their reasons"
        + (f" (checks failed: {failed})." if failed else "; here there are none."), "",
        "Columns: `original`, `counterfactual` and `mask` (0 where both pictures are the same to the last bit), each "
        "with its SHA-256; `object`, `attribute`, `prior` (the answer from memory, known from `prior_source`), `pixel` "
        "(the answer in the counterfactual), `texts` (what each shows), `edit` and `checks` (JSON).", "",
        "```python", "from datasets import load_dataset", "",
        'pairs = load_dataset("imagefolder", data_dir="this folder", split="train")', "```", "",
        "The configuration:", "", "```json", config.rstrip(), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
