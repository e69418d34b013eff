"""MMHal-Bench: golden judgments, what the runner counts without a judge, what a judge is asked, malformed files."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.mmhal import BENCHMARK, JUDGED, TEMPLATE, TYPES, official, strict, vti
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared"
GOLDEN = SHARED / "golden" / "mmhal_judge_parsing.json"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside the project")


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "question_type": TYPES[number % 8], "question_topic": "food", "image_id": f"id{number}",
        "image_src": f"https://example.org/65535/{number}_o.jpg", "image_content": ["Cup", f"Plate {number}"],
        "question": f"How many, {number}?", "gt_answer": f"There are {number}.", "model_answer": "",
    } | more  # fmt: skip


def loaded(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[Item]:
    (folder / "images").mkdir(exist_ok=True)
    for one in rows:
        Image.new("RGB", (2, 2)).save(folder / "images" / one["image_src"].rsplit("/", 1)[-1])
    (folder / "response_template.json").write_text(json.dumps(rows))
    return BENCHMARK.items(Files(folder), **options)


def score(name: str, items: list[Item], verdicts: dict[str, str]) -> dict[str, float]:
    scorer = next(one for one in JUDGED.scorers(verdicts) if one.name == name)
    return scorer.score(items, [Answer("two words")] * len(items))


@needs_golden
def test_golden(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row(0)])
    for case in json.loads(GOLDEN.read_text()):
        text = case["judge_text"]
        assert (official(text), vti(text)) == (case["llava_rlhf_score"], case["vti_score"]), text
        for name, prefix in (("official", "llava_rlhf"), ("vti", "vti")):
            found = score(name, items, {items[0].id: text})
            assert found["rating"] == case[f"{prefix}_score"], text
            assert found["hallucination"] == case[f"{prefix}_hallucination"], text
            assert found[TYPES[0]] == case[f"{prefix}_score"] and math.isnan(found[TYPES[1]])


@pytest.mark.parametrize(
    ("text", "ratings"),
    [  # official, vti, strict
        ("Rating: 6, very informative", (6, 6, 6)),
        ("I hesitate between Rating: 2 and Rating: 5", (0, 0, 5)),
        ("Rating: 3\nRating: 3", (3, 3, 3)),
        ("**Rating**: 4", (0, 4, 4)),
        ("**Rating: 4**", (4, 4, 4)),
        ("**Rating:** 4", (0, 0, 4)),
        ("Rating:4", (0, 0, 4)),
        ("Rating: 10", (1, 1, None)),
        ("Rating: 12", (1, 1, None)),
        ("rating is 5.", (0, 0, 5)),
        ("Rating: 2.5", (2, 2, None)),
        ("Rating: 7", (0, 0, None)),
        ("My operating: 5", (5, 5, None)),
        ("Rating: 1 **Rating**: 2", (1, 0, 2)),
        ("no number", (0, 0, None)),
    ],
)
def test_readings(text: str, ratings: tuple[int, int, int | None]) -> None:
    assert (official(text), vti(text), strict(text)) == ratings


@pytest.mark.parametrize("seed", range(3))
def test_means_like_an_oracle(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    items = loaded(tmp_path, [row(number) for number in range(24)])
    values = [chance.choice([0, 1, 2, 3, 4, 5, 6, None]) for _ in items]
    verdicts = {
        item.id: "unreadable" if value is None else f"Rating: {value}"
        for item, value in zip(items, values, strict=True)
    }
    for name in ("official", "vti", "strict"):
        counted = [(i, 0 if v is None else v) for i, v in enumerate(values) if v is not None or name != "strict"]
        found = score(name, items, verdicts)
        assert found["rating"] == pytest.approx(sum(v for _, v in counted) / len(counted))
        assert found["hallucination"] == pytest.approx(sum(v < 3 for _, v in counted) / len(counted))
        for place, kind in enumerate(TYPES):
            part = [v for i, v in counted if i % 8 == place]
            assert found[kind] == pytest.approx(sum(part) / len(part) if part else math.nan, nan_ok=True)
        assert found["unparsed"] == pytest.approx(values.count(None) / len(values)) and found["unrated"] == 0


def test_without_a_judge_length_and_empty_answers_are_counted(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row(0), row(1)])
    for scorer in BENCHMARK.scorers:
        found = scorer.score(items, [Answer("three short words"), Answer(" \n")])
        assert (found["words"], found["empty"], found["unrated"]) == (1.5, 0.5, 1.0)
        assert all(math.isnan(found[name]) for name in ("rating", "hallucination", *TYPES, "unparsed"))
        assert list(scorer.wanted) == list(found)
    assert "need a judge" in BENCHMARK.notes


def test_answers_without_a_verdict_do_not_count(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row(0), row(1)])
    found = score("official", items, {items[1].id: "Rating: 5"})
    assert (found["rating"], found["hallucination"], found["unrated"]) == (5, 0, 0.5)


def test_what_a_judge_is_asked(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row(3)], prompt="brief")
    answer = Answer("There {} are {question} four.")
    asked = JUDGED.prompts(items, [answer])[items[0].id]
    lines = asked.split("\n")
    for wanted in (
        "Image Contents: Cup, Plate 3",
        "Question: How many, 3?",
        "Standard answer: There are 3.",
        f"LMM response: {answer.text}",
    ):
        assert wanted in lines
    assert all(any(line.startswith(f"{rating} for") for line in lines) for rating in range(7))
    (tmp_path / "gpt4.txt").write_text("C {}\nQ {}\nA {}\nR {}\n{json}")
    items = loaded(tmp_path, [row(3)], template="gpt4.txt")
    wanted = "C Cup, Plate 3\nQ How many, 3?\nA There are 3.\nR There {} are {question} four.\n{json}"
    assert JUDGED.prompts(items, [answer]) == {items[0].id: wanted}
    (tmp_path / "gpt4.txt").write_text(TEMPLATE.replace("{}", "", 1))
    with pytest.raises(InputError, match="3 slots .* image contents, question"):
        loaded(tmp_path, [row(3)], template="gpt4.txt")
    with pytest.raises(InputError, match="has no gpt3.txt; did you mean 'gpt4.txt'"):
        loaded(tmp_path, [row(3)], template="gpt3.txt")


def test_loading(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row(0), row(1)])
    assert items[1].prompt == "How many, 1?" and Path(str(items[1].image)).name == "1_o.jpg"
    assert items[1].group != items[0].group
    (tmp_path / "images" / "1_o.jpg").rename(tmp_path / "images" / "id1.jpg")
    assert Path(str(BENCHMARK.items(Files(tmp_path))[1].image)).name == "id1.jpg"
    (tmp_path / "images" / "id1.jpg").unlink()
    with pytest.raises(InputError, match="1 image is missing .*1_o.jpg"):
        BENCHMARK.items(Files(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "elsewhere" / "1_o.jpg")
    found = BENCHMARK.items(Files(tmp_path, [tmp_path / "elsewhere"]))
    assert found[1].image == str(tmp_path / "elsewhere" / "1_o.jpg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_type": "count"}, "Row 2 .*'count'; did you mean 'counting'"),
        ({"image_content": "Cup"}, "Row 2 .* in 'image_content'; it should be a list"),
        ({"image_content": [1]}, "Row 2 .* than texts"),
        ({"image_id": "id0"}, "more than one item"),
        ({"gt_answer": None}, "Row 2 .* None in 'gt_answer'"),
    ],
)
def test_malformed_rows(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(tmp_path, [row(0), row(1) | change])
