"""Questions without an image under recipes that change how an image is seen: the rest of the recipe acts, no errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_worker import BENCHMARK, write

import vlmsteer
from vlmsteer.bench import arms, runner
from vlmsteer.bench.asking import blind
from vlmsteer.bench.benchmark import Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.ledger import rows_in
from vlmsteer.bench.plan import Task
from vlmsteer.bench.results import report
from vlmsteer.recipe import Edit, Recipe, Rule
from vlmsteer.vectors import Vectors


@pytest.fixture(scope="module")
def tiny() -> Any:
    return vlmsteer.load("tiny-llava")


def edit(session: Any, tower: str, layer: int, positions: str, seed: int = 1) -> Edit:
    width = next(tap.width for site, tap in session.taps.items() if str(site) == f"{tower}.{layer}.block_out")
    vector = 3 * torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return Edit(Vectors(tower, "block_out", {layer: vector}), positions=positions)


def test_what_is_left_of_a_recipe_without_an_image(tiny: Any) -> None:
    seeing = edit(tiny, "vision", 1, "all"), edit(tiny, "text", 2, "image")
    said = edit(tiny, "text", 3, "last")
    assert blind(Recipe(seeing)) is None
    assert blind(Recipe((*seeing, said))) == Recipe((said,))
    rule = Rule("contrast", {"against": "noise"})
    assert blind(Recipe(seeing, rules=(rule,))) == Recipe((), rules=(rule,))


def test_questions_without_an_image_are_answered(tiny: Any, tmp_path: Path) -> None:
    """Edits of the vision tower or of image tokens leave them as the model says; others act as they do alone."""
    items: list[Item] = BENCHMARK.items(Files(write(tmp_path / "data", 1)))
    without = [replace(item, id=f"{item.id}, none", image=None) for item in items]
    task = Task(BENCHMARK, [*items, *without])
    said = edit(tiny, "text", 3, "last")
    rule = Rule("contrast", {"against": "noise", "amount": 1.0, "plausible": 0.1})
    recipes = {
        "seen": Recipe((edit(tiny, "vision", 1, "all"), edit(tiny, "text", 2, "image"))),
        "both": Recipe((edit(tiny, "text", 2, "image"), said)),
        "said": Recipe((said,)),
        "contrast": Recipe((edit(tiny, "text", 2, "image"),), rules=(rule,)),
    }
    done = runner.run(tiny, [task], arms.make(recipes, controls=1), tmp_path / "run", batch_size=8)
    assert done.errors == {}
    rows = rows_in(tmp_path / "run" / "samples.jsonl")
    given = {(row["arm"], row["item"]): (row["answer"], row["logprobs"]) for row in rows}
    ids = [item.id for item in without]
    for id in ids:
        assert given["seen", id] == given["none", id] == given["seen, random 1", id]
        assert given["both", id] == given["said", id]
        assert given["contrast", id][0] == given["none", id][0]
    assert any(given["said", id] != given["none", id] for id in ids)
    assert any(given["seen", item.id] != given["none", item.id] for item in items)
    markdown = report(tmp_path / "run", {"seen": BENCHMARK}, draws=50)
    assert f"{len(without) + 1} of these questions show no image" in markdown
