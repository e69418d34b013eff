"""ViLP: the fixed table that answers are compared through, and Score and Prior as means over questions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.vilp import BENCHMARK, matches, normalize
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"


def items_of(truths: list[list[str]]) -> list[Item]:
    return [
        Item(f"{q}/{n}", "x.png", "?", str(q), {"image": n, "truth": truth, "prior": three[0]})
        for q, three in enumerate(truths)
        for n, truth in enumerate(three, 1)
    ]


@pytest.mark.skipif(not (SHARED / "vilp.json").is_file(), reason="the golden cases are not beside the repository")
def test_golden() -> None:
    for case in json.loads((SHARED / "vilp.json").read_text()):
        said, truth = case["prediction"], case["ground_truth"]
        assert [normalize(said), normalize(truth)] == case["normalised"]
        assert matches(said, truth) is case["match"]
        found = BENCHMARK.scorer("reference").score(items_of([[truth, "x", truth]]), [Answer(said)] * 3)
        assert (found["Prior"], found["Score"]) == (case["match"], case["match"] / 2)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Twenty", "20"),
        (" Four. ", "4"),
        ("Four..", "four."),
        ("twenty-one", "twenty-one"),
        ("men", "person"),
        ("Woman", "person"),
        ("donuts", "torus"),
        ("striped", "stripe"),  # a synonym of a plural goes on to the singular
        ("co2", "carbon dioxide"),  # and one synonym is not followed by another
        ("Carbon Dioxide", "carbondioxide"),
        ("New York", "new york city"),
        ("airconditioner", "AC"),
        ("lollipops", "lolipop"),
        ("candy", "lolipop"),
        ("glasses", "glasses"),
        ("buses", "buses"),
        ("America", "america"),  # the table's key is in upper case and never found
        ("flame", "fire"),
        ("", ""),
    ],
)
def test_normalizing(text: str, canonical: str) -> None:
    assert normalize(text) == canonical


def test_the_scripts_remove_every_period_first() -> None:
    items = items_of([["usa", "dog", "3.5"]])
    given = [Answer("U.S.A."), Answer("dog.."), Answer("3.5")]
    assert [BENCHMARK.scorer(name).score(items, given)[key] for name in ("reference", "scripts") for key in
            ("Prior", "Score")] == [0, 0.5, 1, 0.5]  # fmt: skip


def test_random_answers_against_a_matrix() -> None:
    rng = random.Random(5)
    truths = [["cat", "dog", "bird"] for _ in range(30)]
    items = items_of(truths)
    said = [rng.choice(["Cats", "dogs.", "bird", "none"]) for _ in items]
    right = np.array([text.lower().rstrip("s.") == item.gold["truth"] for item, text in zip(items, said, strict=True)])
    columns = right.reshape(-1, 3).mean(axis=0)
    found = BENCHMARK.scorer().score(items, [Answer(text) for text in said])
    assert found["Prior"] == columns[0]
    assert found["Score"] == pytest.approx(columns[1:3].mean())
    cats = [text == "Cats" for item, text in zip(items, said, strict=True) if item.gold["image"] > 1]
    assert found["prior_ratio"] == sum(cats) / len(cats)


def test_a_question_with_a_missing_answer_is_left_out() -> None:
    items = items_of([["a", "b", "c"], ["a", "b", "c"]])
    tally = BENCHMARK.scorer().tally(items[1:], [Answer("a")] * 5)
    assert tally.groups == ["1"] and tally.sums()["right1"] == 1


def question(path: Path, **more: Any) -> dict[str, Any]:
    Image.new("RGB", (4, 4)).save(path / "p.png")
    base: dict[str, Any] = {"question": "Most dogs have four legs. How many has this one?"}
    base |= {f"image{n}": "p.png" for n in (1, 2, 3)} | {f"answer{n}": str(3 + n) for n in (1, 2, 3)}
    return {**base, **more}


def test_load(tmp_path: Path) -> None:
    (tmp_path / "ViLP.json").write_text(json.dumps([question(tmp_path), question(tmp_path, question="It is. So?")]))
    items = BENCHMARK.items(Files(tmp_path))
    assert [item.id for item in items] == ["000/1", "000/2", "000/3", "001/1", "001/2", "001/3"]
    assert items[0].prompt == "Please answer with one word: Most dogs have four legs. How many has this one?"
    assert [item.gold["truth"] for item in items[:3]] == ["4", "5", "6"]
    assert {item.group for item in items} == {"000", "001"}
    bare = BENCHMARK.items(Files(tmp_path), fact=False)
    assert bare[0].prompt == "Please answer with one word: How many has this one?"


def test_load_published_parquet_with_pictures_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = []
    for n in (1, 2, 3):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / f"{n}.jpg")
        pictures.append((tmp_path / f"{n}.jpg").read_bytes())
    one = question(tmp_path) | {f"image{n}": pictures[n - 1] for n in (1, 2, 3)}
    pq.write_table(pa.Table.from_pylist([one]), tmp_path / "ViLP.parquet")
    items = BENCHMARK.items(Files(tmp_path))
    assert [Path(item.image or "").read_bytes() for item in items] == pictures
    assert all((item.image or "").endswith(".jpg") for item in items)


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        ({"answer2": None}, {}, "Row 1 .*'answer2'"),
        ({"image3": 7}, {}, "Row 1 .*'image3'"),
        ({"question": "No fact here?"}, {"fact": False}, "without a fact"),
        ({}, {"prompt": "x"}, "no prompt 'x'"),
        ({"image1": "gone.png"}, {}, "gone.png"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: dict[str, Any], options: dict[str, Any], complaint: str) -> None:
    (tmp_path / "ViLP.json").write_text(json.dumps([question(tmp_path, **change)]))
    with pytest.raises(InputError, match=complaint):
        BENCHMARK.items(Files(tmp_path), **options)


def test_a_question_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ViLP.json").write_text(json.dumps([question(tmp_path)] * 2))
    with pytest.raises(InputError, match="Row 2 .* is row 1 .* again"):
        BENCHMARK.items(Files(tmp_path))
