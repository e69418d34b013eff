"""HallusionBench: golden cases, an independent oracle on made-up sets, what is asked of a judge, malformed files."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.hallusionbench import BENCHMARK, JUDGED, SAME, verdict
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared"
GOLDEN = SHARED / "golden" / "hallusionbench.json"
WORDS = {"0": "Incorrect.", "1": "This is correct", "2": "unclear"}  # a judge's text for each recorded verdict
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside the project")


def row(category: str, figure: int, question: int, gt: int, set_id: int = 0, visual: int | None = None, **more: Any):
    if visual is None:
        visual = figure if category == "VS" else min(figure, 1) + 1
    name = None if visual == 0 else f"./hallusion_bench/{category}/x/{set_id}_{figure}.png"
    return {
        "category": category, "subcategory": "x", "visual_input": str(visual), "set_id": str(set_id),
        "figure_id": str(figure), "sample_note": "n", "question_id": str(question), "question": f"Q{question}?",
        "gt_answer_details": f"details {gt}", "gt_answer": str(gt), "filename": name,
    } | more  # fmt: skip


def loaded(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[Item]:
    (folder / "HallusionBench.json").write_text(json.dumps(rows))
    for one in rows:
        if one["filename"]:
            path = folder / "hallusion_bench" / one["filename"].removeprefix("./hallusion_bench/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.new("RGB", (2, 2)).save(path)
    return BENCHMARK.items(Files(folder), **options)


def judged_score(items: list[Item], verdicts: dict[str, str]) -> dict[str, float]:
    scorer = JUDGED.scorers(verdicts)[0]
    assert scorer.name == "official"
    return scorer.score(items, [Answer("whatever")] * len(items))


def golden(part: str) -> Any:
    return json.loads(GOLDEN.read_text())[part] if GOLDEN.exists() else []


@needs_golden
@pytest.mark.parametrize("case", golden("judged"), ids=lambda case: case["name"])
def test_judged_golden(tmp_path: Path, case: dict[str, Any]) -> None:
    rows = case["rows"]
    items = loaded(tmp_path, rows)
    verdicts = {item.id: WORDS[one["gpt4v_output_gpt_check"]] for item, one in zip(items, rows, strict=True)}
    verdicts |= {item.id + SAME: ("different", "same")[int(one["same"])] for item, one in zip(items, rows, strict=True)}
    found, expected = judged_score(items, verdicts), case["reference"]
    for name in ("aAcc", "qAcc", "fAcc"):
        assert found[name] == expected[name]
    for name in ("easy", "hard"):
        assert found[name] == round(100 * expected[name]["correct"] / expected[name]["total"], 4)
    figure, pair = expected["figure"], expected["pair"]
    assert found["figures inconsistent"] == round(100 * figure["inconsistent"] / figure["total"], 4)
    assert found["figures wrong"] == round(100 * figure["wrong"] / figure["total"], 4)
    assert found["figures score"] == pytest.approx(figure["score"])
    bias = expected["yes_no_bias"] or {"diff": 0.0, "fp": math.nan}
    assert found["yes bias"] == pytest.approx(bias["diff"])
    assert found["no among errors"] == pytest.approx(bias["fp"], nan_ok=True)
    errors = pair["LH_cg"] + pair["VI_cg"] + pair["Mix_cg"]
    for name, count in (("language", "LH_cg"), ("vision", "VI_cg"), ("both", "Mix_cg")):
        wanted = round(100 * pair[count] / errors, 4) if errors else math.nan
        assert found[name] == pytest.approx(wanted, nan_ok=True)


@needs_golden
def test_string_matched_golden(tmp_path: Path) -> None:
    case = golden("lmms_eval_intern")
    items = loaded(tmp_path, case["rows"])
    answers = [Answer(one["model_prediction"]) for one in case["rows"]]
    found = BENCHMARK.scorer("lmms").score(items, answers)
    assert {name: found[name] for name in case["result"]} == pytest.approx(case["result"])


def made_up(seed: int) -> list[dict[str, Any]]:
    """Sets of both categories; every question on every figure, as in the published file."""
    chance = random.Random(seed)
    return [
        row(category, figure, question, chance.randint(0, 1), set_id)
        for category in ("VD", "VS")
        for set_id in range(6)
        for figures, questions in [(chance.randint(2, 3), chance.randint(1, 3))]
        for figure in range(figures)
        for question in range(questions)
    ]


def oracle(rows: list[dict[str, Any]], checks: list[int], same: list[int]) -> dict[str, float]:
    """The published rules once more, row by row: whole questions and figures, and the tree of causes as a table."""
    right = [
        check == 1 or (check == 2 and one["category"] == "VS" and one["figure_id"] == "0")
        for one, check in zip(rows, checks, strict=True)
    ]
    groups: dict[str, dict[tuple, list[bool]]] = {name: defaultdict(list) for name in ("q", "f", "easy", "hard")}
    for one, ok in zip(rows, right, strict=True):
        key = (one["category"], one["set_id"])
        groups["q"][*key, one["question_id"]].append(ok)
        groups["hard" if one["visual_input"] == "2" else "easy"][*key, one["question_id"]].append(ok)
        if not (one["category"] == "VS" and one["figure_id"] == "0"):
            groups["f"][*key, one["figure_id"]].append(ok)
    found = {name: round(100 * sum(map(all, of.values())) / len(of), 4) for name, of in groups.items()}
    found["a"] = round(100 * sum(right) / len(rows), 4)
    first = {
        (one["category"], one["set_id"], one["question_id"]): check
        for one, check in zip(rows, checks, strict=True)
        if one["figure_id"] == "0"
    }
    causes = []
    for one, check, agrees in zip(rows, checks, same, strict=True):
        before = first[one["category"], one["set_id"], one["question_id"]]
        if one["figure_id"] == "0":
            table = {("VD", 0): "vision", ("VD", 2): "vision", ("VS", 0): "language"}
            causes.append(table.get((one["category"], check)))
        elif one["category"] == "VD":
            overridden = before == 1 and check == 0 and agrees
            causes.append(None if check == 1 else "both" if overridden else "vision")
        elif before == 0:
            causes.append({0: "language" if agrees else "both", 1: None, 2: "both"}[check])
        else:
            overridden = before == 1 and check == 0 and one["visual_input"] == "2" and agrees
            causes.append(None if check == 1 else "language" if overridden else "vision")
    errors = [cause for cause in causes if cause]
    found |= {name: round(100 * errors.count(name) / len(errors), 4) for name in ("language", "vision", "both")}
    guesses = [int(ok) == int(one["gt_answer"]) for one, ok in zip(rows, right, strict=True)]
    found["bias"] = (sum(guesses) - sum(int(one["gt_answer"]) for one in rows)) / len(rows)
    wrong = [one["gt_answer"] for one, ok in zip(rows, right, strict=True) if not ok]
    return found | {"fp": wrong.count("0") / len(wrong)}


@pytest.mark.parametrize("seed", range(8))
def test_judged_like_an_oracle(tmp_path: Path, seed: int) -> None:
    rows, chance = made_up(seed), random.Random(100 + seed)
    checks, same = [chance.choice((0, 1, 1, 2)) for _ in rows], [chance.randint(0, 1) for _ in rows]
    items = loaded(tmp_path, rows)
    verdicts = {item.id: WORDS[str(check)] for item, check in zip(items, checks, strict=True)}
    verdicts |= {item.id + SAME: "same" if one else "different" for item, one in zip(items, same, strict=True)}
    found, expected = judged_score(items, verdicts), oracle(rows, checks, same)
    names = {"qAcc": "q", "fAcc": "f", "aAcc": "a", "yes bias": "bias", "no among errors": "fp"}
    for name in (*names, "easy", "hard", "language", "vision", "both"):
        assert found[name] == pytest.approx(expected[names.get(name, name)]), name
    assert found["unclear"] == pytest.approx(checks.count(2) / len(checks))


def test_counts_of_a_set_add_up(tmp_path: Path) -> None:
    rows = made_up(3)
    items = loaded(tmp_path, rows)
    answers = [Answer("yes" if number % 3 else "no") for number in range(len(items))]
    for scorer in BENCHMARK.scorers:
        tally = scorer.tally(items, answers)
        assert sorted(tally.groups) == sorted({item.group for item in items})
        assert all(len(values) == len(tally.groups) for values in tally.counts.values())
    strict = BENCHMARK.scorer("strict")
    whole = strict.tally(items, answers)
    apart = [
        strict.tally(*zip(*[(i, a) for i, a in zip(items, answers, strict=True) if i.group == group], strict=True))
        for group in whole.groups
    ]
    for name, values in whole.counts.items():
        assert [one.counts[name] for one in apart] == [[value] for value in values]


def test_strict_needs_a_whole_word_and_forgives_only_where_no_figure_is_shown(tmp_path: Path) -> None:
    rows = [row("VS", 0, 0, 0), row("VS", 1, 0, 1), row("VS", 2, 0, 0)]
    items = loaded(tmp_path, rows)
    texts = ["I cannot know without the chart", "yesterday's figure", "No, it is not."]
    answers = [Answer(text) for text in texts]
    strict, lmms = (BENCHMARK.scorer(name).score(items, answers) for name in ("strict", "lmms"))
    assert strict["aAcc"] == pytest.approx(2 / 3) and strict["unclear"] == pytest.approx(2 / 3)
    assert strict["easy"] == 0 and strict["hard"] == 1 and strict["fAcc"] == 0.5
    assert lmms["aAcc"] == 1 and lmms["fAcc"] == 1 and lmms["qAcc"] == 1


def test_what_lacks_a_part_is_left_out(tmp_path: Path) -> None:
    rows = [row("VD", figure, question, 1) for figure in (0, 1) for question in (0, 1)]
    items = loaded(tmp_path, rows)
    answers = [Answer("Yes")] * 4
    found = BENCHMARK.scorer("strict").tally(items[:3], answers[:3]).sums()
    assert (found["pair"], found["figure"], found["easy"], found["hard"], found["questions"]) == (1, 1, 2, 1, 3)
    part = judged_score(items, {items[0].id: "correct", items[1].id: "correct"})
    assert part["unjudged"] == 0.5 and part["aAcc"] == 100 and math.isnan(part["qAcc"]) and part["fAcc"] == 100


def test_causes_need_the_second_verdicts(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row("VD", 0, 0, 1), row("VD", 1, 0, 0)])
    verdicts = {items[0].id: "correct", items[1].id: "incorrect"}
    assert math.isnan(judged_score(items, verdicts)["vision"])
    assert judged_score(items, verdicts | {items[1].id + SAME: "Different"})["vision"] == 100
    assert judged_score(items, verdicts | {items[1].id + SAME: "Same"})["both"] == 100


def test_verdicts_and_no_verdicts(tmp_path: Path) -> None:
    assert [verdict(text) for text in ("Incorrect", "not incorrect, correct", "CORRECT", "1", "", "?")] == [
        0, 0, 1, 2, 2, 2,
    ]  # fmt: skip
    items = loaded(tmp_path, [row("VD", 0, 0, 1)])
    found = BENCHMARK.scorer("official").score(items, [Answer("Yes")])
    assert found["unjudged"] == 1 and all(math.isnan(found[name]) for name in ("qAcc", "fAcc", "aAcc", "yes bias"))
    assert BENCHMARK.scorer().name == "lmms"


def test_what_a_judge_is_asked(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row("VD", 0, 0, 1), row("VD", 1, 0, 0)])
    asked = JUDGED.prompts(items, [Answer("First {answer}."), Answer("Second {} answer.")])
    assert set(asked) == {items[0].id, items[1].id, items[1].id + SAME}
    assert all(part in asked[items[1].id] for part in ("Q0?", "details 0", "Second {} answer."))
    assert "First {answer}." in asked[items[1].id + SAME] and "Second {} answer." in asked[items[1].id + SAME]
    (tmp_path / "published.txt").write_text("Q {} R {} P {} {keep}")
    items = loaded(tmp_path, [row("VD", 0, 0, 1)], template="published.txt")
    assert JUDGED.prompts(items, [Answer("Yes")]) == {items[0].id: "Q Q0? R details 1 P Yes {keep}"}
    (tmp_path / "published.txt").write_text("Q {} R {}")
    with pytest.raises(InputError, match="2 slots"):
        loaded(tmp_path, [row("VD", 0, 0, 1)], template="published.txt")


def test_loading(tmp_path: Path) -> None:
    rows = [row("VS", figure, 0, 1) for figure in (0, 1, 2)]
    items = loaded(tmp_path, rows, prompt="yes_no")
    assert [item.image is None for item in items] == [True, False, False]
    assert items[0].prompt == "Q0?\nPlease answer yes or no." and len({item.group for item in items}) == 1
    assert len(loaded(tmp_path, rows, subset="image")) == 2
    assert items[1].image is not None and Path(items[1].image).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gt_answer": "yes"}, "'yes' in 'gt_answer'"),
        ({"category": "VX"}, "'VX' in 'category'"),
        ({"filename": None}, "file name None"),
        ({"gt_answer_details": 3}, "gt_answer_details"),
        ({"filename": "./hallusion_bench/VD/x/nowhere.png"}, None),
    ],
)
def test_malformed_rows(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    good = row("VD", 0, 0, 1)
    assert len(loaded(tmp_path, [good])) == 1
    (tmp_path / "HallusionBench.json").write_text(json.dumps([good, row("VD", 1, 0, 1) | change]))
    with pytest.raises(InputError, match=message or "nowhere.png"):
        BENCHMARK.items(Files(tmp_path))


def test_duplicates_and_older_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than one item"):
        loaded(tmp_path, [row("VD", 0, 0, 1), row("VD", 0, 0, 1)])
    older = row("VD", 0, 0, 1)
    del older["gt_answer_details"]
    with pytest.raises(InputError, match="Row 1 .* has no 'gt_answer_details'"):
        loaded(tmp_path, [older])
    for options in ({"subset": "images"}, {"prompt": "offical"}):
        with pytest.raises(InputError, match="did you mean"):
            loaded(tmp_path, [row("VD", 0, 0, 1)], **options)
