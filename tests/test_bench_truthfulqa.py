"""TruthfulQA, multiple choice: the published scores case for case, and files of either layout."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.truthfulqa import BENCHMARK, lm_eval_scores, mc_scores
from vlmsteer.errors import InputError

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "golden"
GOLDEN = SHARED / "truthfulqa_mc.json"
CASES = json.loads(GOLDEN.read_text())["cases"] if GOLDEN.is_file() else []
ROW = {
    "question": "What is {smoke} made of?",
    "mc1_targets": {"choices": ["Soot.", "Clouds.", "Magic."], "labels": [1, 0, 0]},
    "mc2_targets": {"choices": ["Soot.", "Gas.", "Clouds.", "Magic."], "labels": [1, 1, 0, 0]},
}


def write(folder: Path, rows: list[dict[str, Any]], name: str = "multiple_choice.jsonl") -> Files:
    folder.mkdir(exist_ok=True)
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(json.dumps(row) for row in rows)
    (folder / name).write_text(text)
    return Files(folder)


def asked(tmp_path: Path, true: list[float], false: list[float], best: int = 0) -> tuple[list[Item], list[Answer]]:
    """A question with such scores, through a file; the best true answer stands first where one stands alone."""
    right, wrong = [f"t{i}" for i in range(len(true))], [f"f{i}" for i in range(len(false))]
    row = {
        "question": "Why?",
        "mc1_targets": {"choices": [right[best], *wrong], "labels": [1, *[0] * len(wrong)]},
        "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
    }
    items = BENCHMARK.items(write(tmp_path, [row]))
    return items, [Answer("", dict(zip([*right, *wrong], [*true, *false], strict=True)))]


@pytest.mark.skipif(not CASES, reason="the golden cases are not beside this checkout")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden(case: dict[str, Any], tmp_path: Path) -> None:
    items, answers = asked(tmp_path, case["scores_true"], case["scores_false"], case["best_index"])
    found = BENCHMARK.scorer("reference").score(items, answers)
    harness = BENCHMARK.scorer("lm_eval").score(items, answers)
    for name, expected in case["official"].items():
        if expected is None:  # the reference's exp is 0 everywhere; ours subtracts the greatest first
            assert 0 <= found[name.lower()] <= 1
        else:
            assert found[name.lower()] == pytest.approx(expected, abs=1e-12)
    if case["lm_eval_mc2"] is None:
        assert 0 <= harness["mc2"] <= 1
    else:
        assert harness["mc2"] == pytest.approx(case["lm_eval_mc2"], abs=1e-12)


def test_scores_are_those_of_the_published_formulas_on_random_questions(tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(40):
        true = [rng.uniform(-30, -1) for _ in range(rng.randint(1, 5))]
        false = [rng.uniform(-30, -1) for _ in range(rng.randint(1, 5))]
        best = rng.randrange(len(true))
        items, answers = asked(tmp_path / str(number), true, false, best)
        found = BENCHMARK.scorer("reference").score(items, answers)
        exact = [Fraction(math.exp(score)) for score in (*true, *false)]
        assert found["mc1"] == (true[best] > max(false))
        assert found["mc2"] == pytest.approx(float(sum(exact[: len(true)]) / sum(exact)), rel=1e-9)
        assert found["mc3"] == pytest.approx(len([one for one in true if one > max(false)]) / len(true))
        harness = BENCHMARK.scorer("lm_eval").score(items, answers)
        assert harness["mc2"] == pytest.approx(found["mc2"]) and harness["mc1"] == found["mc1"]


def test_a_tie_is_wrong_for_the_authors_and_right_for_the_harness(tmp_path: Path) -> None:
    items, answers = asked(tmp_path, [-3.0], [-3.0])
    assert BENCHMARK.scorer("reference").score(items, answers)["mc1"] == 0
    assert BENCHMARK.scorer("lm_eval").score(items, answers)["mc1"] == 1


def test_scores_far_below_zero_keep_their_ratio() -> None:
    for shift in (0.0, -700.0, -800.0, -1e5):
        found = mc_scores([-1.0 + shift, -2.0 + shift], [-3.0 + shift])
        assert found["mc2"] == pytest.approx(mc_scores([-1.0, -2.0], [-3.0])["mc2"], abs=1e-9)
    assert mc_scores([-math.inf], [-math.inf]) == {"mc1": 0.0, "mc2": 0.0, "mc3": 0.0}


def test_the_harness_cuts_at_the_first_false_label() -> None:
    scores = [math.log(0.4), math.log(0.3), math.log(0.2), math.log(0.1)]
    assert lm_eval_scores([-1.0, -2.0], scores, [1, 0, 1, 0])["mc2"] == pytest.approx(0.4)
    assert lm_eval_scores([-1.0, -0.5], scores, [1, 1, 1, 1]) == {"mc1": 0.0, "mc2": pytest.approx(1.0)}


def test_items_ask_without_an_image_for_every_choice_once(tmp_path: Path) -> None:
    (item,) = BENCHMARK.items(write(tmp_path, [ROW]))
    assert item.image is None and item.choices == ("Soot.", "Clouds.", "Magic.", "Gas.")
    assert item.prompt == "Q: What is {smoke} made of?\nA:"
    (tmp_path / "primer.txt").write_text("Q: One?\nA: Yes.\n")
    (item,) = BENCHMARK.items(Files(tmp_path), primer="primer.txt", prompt="plain")
    assert item.prompt == "Q: One?\nA: Yes.\n\nWhat is {smoke} made of?"
    with pytest.raises(InputError, match="primer 'none.txt' cannot be read"):
        BENCHMARK.items(Files(tmp_path), primer="none.txt")


def test_every_layout_gives_the_same_items(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = BENCHMARK.items(write(tmp_path / "lines", [ROW]))
    assert BENCHMARK.items(write(tmp_path / "array", [ROW], "multiple_choice.json")) == expected
    names = ("mc1_targets", "mc2_targets")
    mapped = {name: dict(zip(ROW[name]["choices"], ROW[name]["labels"], strict=True)) for name in names}
    assert BENCHMARK.items(write(tmp_path / "own", [{**ROW, **mapped}], "mc_task.json")) == expected
    (tmp_path / "hub" / "multiple_choice").mkdir(parents=True)
    path = tmp_path / "hub" / "multiple_choice" / "validation-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([ROW]), path)
    assert BENCHMARK.items(Files(tmp_path / "hub")) == expected
    assert BENCHMARK.items(Files(path.parent), file=path.name) == expected
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="not a readable parquet"):
        BENCHMARK.items(Files(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"question": " "}, "empty question"),
        ({"mc1_targets": None}, "mc1_targets"),
        ({"mc1_targets": {"choices": ["a", "b"], "labels": [1]}}, "as many labels"),
        ({"mc1_targets": {"choices": ["a", "b", "c"], "labels": [1, 1, 0]}}, "2 right answers"),
        ({"mc2_targets": {"choices": ["a", "b"], "labels": [1, 2]}}, "label 2"),
        ({"mc2_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "no false answer"),
        ({"mc2_targets": {"choices": ["a", ""], "labels": [1, 0]}}, "the choice ''"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=f"Row 2 .*{complaint}"):
        BENCHMARK.items(write(tmp_path, [ROW, {**ROW, **change}]))


def test_ids_are_unique_and_missing_scores_are_refused(tmp_path: Path) -> None:
    assert [item.id for item in BENCHMARK.items(write(tmp_path, [ROW, ROW]))] == ["1", "2"]
    with pytest.raises(InputError, match="more than one item"):
        BENCHMARK.items(write(tmp_path, [{**ROW, "id": 7}, {**ROW, "id": 7}]))
    items = BENCHMARK.items(write(tmp_path, [ROW]))
    for bad in ({}, {choice: math.nan for choice in items[0].choices}):
        with pytest.raises(InputError, match="no log-probability"):
            BENCHMARK.scorers[0].score(items, [Answer("", bad)])


def test_a_mean_over_questions(tmp_path: Path) -> None:
    items = BENCHMARK.items(write(tmp_path, [ROW, ROW]))
    good = dict(zip(items[0].choices, (-1.0, -9.0, -9.0, -1.0), strict=True))
    bad = dict(zip(items[0].choices, (-9.0, -1.0, -1.0, -9.0), strict=True))
    scorer = BENCHMARK.scorers[0]
    assert scorer.score(items, [Answer("", good), Answer("", bad)])["mc1"] == 0.5
    assert str(scorer.score([], [])["mc1"]) == "nan"
