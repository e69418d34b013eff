"""PhD: questions in four modes, and an index that neither always yes nor always no can raise."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.phd import BENCHMARK, phd_index
from vlmsteer.errors import InputError


def items_of(truths: list[str]) -> list[Item]:
    return [Item(str(n), "x.png", "?", str(n // 2), {"truth": truth}) for n, truth in enumerate(truths)]


def test_random_answers_against_the_harmonic_mean() -> None:
    rng = random.Random(2)
    for _ in range(30):
        truths = [rng.choice(["yes", "no"]) for _ in range(20)] + ["yes", "no"]
        said = [rng.choice(["Yes, it is.", "no", "Perhaps"]) for _ in truths]
        found = BENCHMARK.scorer().score(items_of(truths), [Answer(text) for text in said])
        recall = {
            truth: sum(text.lower().startswith(truth) for text, one in zip(said, truths, strict=True) if one == truth)
            / truths.count(truth)
            for truth in ("yes", "no")
        }
        assert (found["yes_recall"], found["no_recall"]) == (recall["yes"], recall["no"])
        assert found["PhD_index"] == pytest.approx(harmonic_mean(recall.values()))
        assert found["unparsed"] == said.count("Perhaps") / len(said)
        assert found["yes_ratio"] == said.count("Yes, it is.") / len(said)


@pytest.mark.parametrize("word", ["Yes", "No", "I do not know"])
def test_always_the_same_answer_gives_zero(word: str) -> None:
    found = BENCHMARK.scorer().score(items_of(["yes"] * 9 + ["no"]), [Answer(word)] * 10)
    assert found["PhD_index"] == 0


def test_index_of_undefined_recall_is_undefined() -> None:
    found = phd_index(np.array([1.0, 0.0, 0.5, np.nan]), np.array([1.0, 0.0, 1.0, 1.0]))
    assert found[:3] == pytest.approx([1, 0, 2 / 3]) and np.isnan(found[3])


CONTEXT = {"iac": "It may be a fork.", "icc": "There is a fork."}
ROWS: list[dict[str, Any]] = [
    {"image_id": "7", "task": "object", "yes_question": "A cup?", "no_question": "A fork?", "context": CONTEXT},
    {"image_id": "8", "task": "object", "yes_question": "A dog?", "no_question": "A cat?", "context": CONTEXT},
    {"image_id": "0", "task": "object", "yes_question": "Odd?", "no_question": "Usual?", "ccs_description": "odd"},
]


def folder(path: Path, rows: list[dict[str, Any]]) -> Files:
    (path / "data.json").write_text(json.dumps(rows))
    for name in (
        "train2014/COCO_train2014_000000000007.jpg",
        "val2014/COCO_val2014_000000000008.jpg",
        "CCS_images/0.png",
    ):
        file = path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    return Files(path)


def test_load_base(tmp_path: Path) -> None:
    items = BENCHMARK.items(folder(tmp_path, ROWS))
    assert [(one.prompt, one.gold["truth"]) for one in items] == [
        ("A cup?", "yes"), ("A fork?", "no"), ("A dog?", "yes"), ("A cat?", "no"),
    ]  # fmt: skip
    assert [Path(one.image or "").name for one in items[::2]] == [
        "COCO_train2014_000000000007.jpg", "COCO_val2014_000000000008.jpg",
    ]  # fmt: skip
    assert items[0].group == items[1].group != items[2].group


def test_load_with_a_context(tmp_path: Path) -> None:
    said = " In case there is an inconsistency between the context and the image content, you should follow the image. "
    items = BENCHMARK.items(folder(tmp_path, ROWS), mode="icc")
    assert items[0].prompt == f"There is a fork.{said}A cup?"
    renamed = [{**ROWS[0], "context": {"sec": "Maybe.", "icc": "x"}}]
    assert BENCHMARK.items(folder(tmp_path, renamed), mode="iac")[0].prompt == f"Maybe.{said}A cup?"


def test_load_against_common_sense(tmp_path: Path) -> None:
    items = BENCHMARK.items(folder(tmp_path, ROWS), mode="ccs", prompt="one_word")
    assert [one.prompt.splitlines()[0] for one in items] == ["Odd?", "Usual?"]
    assert (items[0].image or "").endswith("0.png")
    (tmp_path / "data.json").rename(tmp_path / "data_ccs.json")
    path = {**ROWS[2], "image_path": "images/CCS_images/0.png"}
    (tmp_path / "data_ccs.json").write_text(json.dumps([path]))
    assert [one.image for one in BENCHMARK.items(Files(tmp_path), mode="ccs")] == [one.image for one in items]


def test_pictures_may_lie_in_another_folder(tmp_path: Path) -> None:
    folder(tmp_path, ROWS)
    other = tmp_path / "questions"
    other.mkdir()
    (tmp_path / "data.json").rename(other / "data.json")
    assert len(BENCHMARK.items(Files(other, [tmp_path / "images"]))) == 4


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([ROWS[0], ROWS[0]], {}, "Row 2 .* is row 1 again"),
        ([{**ROWS[0], "yes_question": None}], {}, "Row 1 .*'yes_question'"),
        ([{**ROWS[0], "context": {}}], {"mode": "icc"}, "Row 1 .*'context', has no 'icc'"),
        ([{**ROWS[0], "context": "x"}], {"mode": "iac"}, "Row 1 .*'context'"),
        ([ROWS[0]], {"mode": "ccs"}, "no rows of the mode 'ccs'"),
        ([ROWS[0]], {"mode": "bsae"}, "did you mean 'base'"),
        ([ROWS[0]], {"prompt": "x"}, "no prompt 'x'"),
        ([{**ROWS[0], "image_id": "9"}], {}, "COCO_val2014_000000000009.jpg"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, rows: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        BENCHMARK.items(folder(tmp_path, rows), **options)
