"""What is computed from a run folder, against plain loops over its lines; and what a killed run leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import ARMS, BENCHMARKS, COLORED, JUDGED, QUIZ, write

from vlmsteer.bench.behavior import FIRST_TOKEN, TEXTS, YES_NO, margin, yes_bias
from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer
from vlmsteer.bench.results import Run, read_run
from vlmsteer.bench.run_compare import as_markdown, compare_runs
from vlmsteer.bench.summary import summarize
from vlmsteer.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        failed = row["arm"] == "vista" and row["task"] == "quiz" and row["item"] in ("0-0", "5-2")
        return {**row, "answer": "", "error": "the image is odd"} if failed else row

    return read_run(write(tmp_path_factory.mktemp("run"), change=change), BENCHMARKS)


@pytest.fixture(scope="module")
def found(run: Run) -> dict[str, Any]:
    return json.loads(json.dumps(summarize(run, draws=200), allow_nan=False))


def samples(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]


def accuracy_and_f1(run: Run, arm: str, among: set[str] | None = None) -> tuple[float, float]:
    label = {item.id: item.gold["label"] for item in run.items["quiz"]}
    right = hit = said = true = n = 0
    for row in samples(run):
        if row["task"] != "quiz" or row["arm"] != arm or row["error"] or (among and row["item"] not in among):
            continue
        yes, truth = row["answer"].startswith("Yes"), label[row["item"]] == "yes"
        n, right, hit, said, true = n + 1, right + (yes == truth), hit + (yes and truth), said + yes, true + truth
    return 100 * right / n, 2 * hit / (said + true)


@pytest.mark.parametrize("arm", [arm["name"] for arm in ARMS])
def test_every_arm_has_its_metrics(run: Run, found: dict[str, Any], arm: str) -> None:
    row = found["tasks"]["quiz"]["scorers"]["quiz@plain"]["arms"][arm]
    accuracy, f1 = accuracy_and_f1(run, arm)
    assert row["values"]["accuracy"]["rate"] == pytest.approx(accuracy)
    assert row["values"]["f1"]["rate"] == pytest.approx(f1)
    assert row["values"]["f1"]["n"] == 48 - 2 * (arm == "vista")


def test_changes_are_over_items_that_both_answered(run: Run, found: dict[str, Any]) -> None:
    both = {item.id for item in run.items["quiz"]} - {"0-0", "5-2"}
    row = found["tasks"]["quiz"]["scorers"]["quiz@plain"]["arms"]["vista"]
    before, after = (accuracy_and_f1(run, arm, both) for arm in ("none", "vista"))
    for place, metric in enumerate(("accuracy", "f1")):
        change = row["change"][metric]
        assert change["rate"] == pytest.approx(after[place] - before[place]) and change["n"] == 46
        assert change["interval"][0] < change["rate"] < change["interval"][1]
        assert change["minimum_detectable"] == pytest.approx(2.8 * change["standard_error"])
    assert row["values"]["accuracy"]["rate"] - before[0] == pytest.approx(row["change"]["accuracy"]["rate"])
    unpaired = row["values"]["f1"]["rate"] - accuracy_and_f1(run, "none")[1]
    assert unpaired != pytest.approx(row["change"]["f1"]["rate"])


def test_mcnemar_counts_flips_of_right_answers(run: Run, found: dict[str, Any]) -> None:
    label = {item.id: item.gold["label"] for item in run.items["quiz"]}
    given: dict[str, dict[str, bool]] = {"none": {}, "vista": {}}
    for row in samples(run):
        if row["task"] == "quiz" and row["arm"] in given and not row["error"]:
            given[row["arm"]][row["item"]] = row["answer"].startswith("Yes") == (label[row["item"]] == "yes")
    both = given["none"].keys() & given["vista"].keys()
    test = found["tasks"]["quiz"]["scorers"]["quiz@plain"]["arms"]["vista"]["mcnemar"]
    assert test["lost"] == sum(given["none"][i] and not given["vista"][i] for i in both)
    assert test["gained"] == sum(not given["none"][i] and given["vista"][i] for i in both) > 0
    assert found["tasks"]["colors"]["scorers"]["colors@words"]["arms"]["vista"]["mcnemar"] is None


def test_random_directions_are_pooled_beneath_their_arm(run: Run, found: dict[str, Any]) -> None:
    arms = found["tasks"]["quiz"]["scorers"]["quiz@plain"]["arms"]
    pooled, base = arms["vista x0.5"]["random"], accuracy_and_f1(run, "none")
    each = [accuracy_and_f1(run, f"vista x0.5, random {i}") for i in (1, 2)]
    assert pooled["directions"] == 2
    for place, metric in enumerate(("accuracy", "f1")):
        mean = (each[0][place] + each[1][place]) / 2
        assert pooled["values"][metric]["rate"] == pytest.approx(mean)
        assert pooled["change"][metric]["rate"] == pytest.approx(mean - base[place])
        beyond = arms["vista x0.5"]["beyond"]["random"][metric]["rate"]
        assert beyond == pytest.approx(accuracy_and_f1(run, "vista x0.5")[place] - mean)


def test_the_yes_bias_control_says_yes_as_often_and_is_scored_like_an_arm(run: Run, found: dict[str, Any]) -> None:
    quiz = found["tasks"]["quiz"]
    rows = quiz["scorers"]["quiz@plain"]["arms"]
    base = {r["item"]: r["logprobs"] for r in samples(run) if r["task"] == "quiz" and r["arm"] == "none"}
    label = {item.id: item.gold["label"] for item in run.items["quiz"]}
    for arm in ("vista x0.5", "vista"):
        steered = {
            r["item"]: r["answer"] for r in samples(run) if (r["task"], r["arm"]) == ("quiz", arm) and not r["error"]
        }
        count = sum(text.startswith("Yes") for text in steered.values())
        order = sorted(steered, key=lambda item: base[item]["yes"] - base[item]["no"], reverse=True)
        yes = set(order[:count])  # no two margins are equal here
        control = rows[f"{arm}, yes bias"]
        expected = np.mean([(item in yes) == (label[item] == "yes") for item in steered])
        assert control["values"]["accuracy"]["rate"] == pytest.approx(100 * expected)
        assert quiz["scorers"]["yes or no"]["arms"][f"{arm}, yes bias"]["values"]["yes"]["rate"] == pytest.approx(
            count / len(steered)
        )
        nats = quiz["arms"][f"{arm}, yes bias"]["added_nats"]
        assert {item for item in steered if base[item]["yes"] - base[item]["no"] + nats > 0} == yes
        beyond = rows[arm]["beyond"]["yes bias"]["accuracy"]
        assert beyond["rate"] == pytest.approx(
            rows[arm]["values"]["accuracy"]["rate"] - control["values"]["accuracy"]["rate"]
        )
        assert beyond["rate"] > 0 <= beyond["interval"][0]  # these arms do more than say no
    assert not any("yes bias" in arm for arm in found["tasks"]["colors"]["arms"])


def test_an_arm_that_only_shifts_margins_is_not_better_than_its_control() -> None:
    rng = np.random.default_rng(3)
    items = [Item(str(i), None, "?", str(i), {"label": "yes" if i % 2 else "no"}) for i in range(200)]
    margins = rng.standard_normal(200) + np.where(np.arange(200) % 2, 1.5, 0.5)
    base, shifted = (
        {str(i): Answer("Yes" if m > 0 else "No", {"yes": m, "no": 0.0}) for i, m in enumerate(values)}
        for values in (margins, margins - 1.1)
    )
    control = yes_bias(items, base, shifted)
    assert control is not None
    assert {i: a.text for i, a in control[0].items()} == {i: a.text for i, a in shifted.items()}
    same = yes_bias(items, base, base)
    assert (
        same is not None
        and same[1] == 0.0
        and {i: a.text for i, a in same[0].items()} == {i: a.text for i, a in base.items()}
    )


def test_yes_bias_with_equal_margins_and_without_any() -> None:
    items = [Item(str(i), None, "?", "g", {}) for i in range(4)]
    base = {str(i): Answer("No", {"yes": value, "no": 0.0}) for i, value in enumerate([-2.0, -1.0, -1.0, -1.0])}
    steered = {str(i): Answer("Yes" if i < 2 else "No") for i in range(4)}
    found = yes_bias(items, base, steered)  # 2 yes are wanted; 0, 3 and 4 are possible
    assert found is not None and [found[0][str(i)].text for i in range(4)] == ["No", "Yes", "Yes", "Yes"]
    assert yes_bias(items, {"0": Answer("Yes")}, steered) is None and yes_bias(items, {}, {}) is None
    kept = yes_bias(items, {**base, "3": Answer("Maybe")}, steered)
    assert kept is not None and kept[0]["3"].text == "Maybe" and "1" in kept[0]


def test_texts_words_and_first_tokens() -> None:
    items = [Item(str(i), None, "?", str(i), {"label": label}) for i, label in enumerate(["yes", "No", "yes", "maybe"])]
    said = ["Yes it is so, yes it is so", " \n", "It is not; no.", "unsure"]
    pairs = [(-0.5, -1.0), (-2.0, -1.0), (-3.0, -1.0), (-1.0, -1e9)]
    answers = [Answer(text, {"yes": y, "no": n}) for text, (y, n) in zip(said, pairs, strict=True)]
    texts = TEXTS.score(items, answers)
    # "yes it is", "it is so", "is so yes", "so yes it", "yes it is", "it is so": two again; "it is not", "is not no"
    assert texts == pytest.approx({"words": (8 + 0 + 4 + 1) / 4, "repetition": 2 / 8, "empty": 1 / 4})
    assert YES_NO.score(items, answers) == pytest.approx(dict.fromkeys(("yes", "no", "neither"), 1 / 3))
    first = FIRST_TOKEN.score(items, answers)  # the last one wants neither yes nor no
    assert first["accuracy"] == pytest.approx(2 / 3) and first["F1"] == pytest.approx(2 / 3)
    assert first["yes"] == pytest.approx(1 / 3) and first["margin"] == pytest.approx((0.5 - 1 - 2) / 3)
    assert first["right margin"] == pytest.approx((0.5 + 1 - 2) / 3)
    unknown = [Item(item.id, None, "?", item.id, {}) for item in items]
    assert YES_NO.score(unknown, answers) == pytest.approx({"yes": 0.25, "no": 0.25, "neither": 0.5})
    assert FIRST_TOKEN.score(unknown, answers)["margin"] == pytest.approx((0.5 - 1 - 2 + 50) / 4)


def test_the_yes_bias_control_keeps_the_baselines_wording() -> None:
    items = [Item(str(i), None, "?", "g", {"label": "yes"}) for i in range(5)]
    texts = ["No, none.", "No.", "No.", "Yes!", "Unsure"]
    base = {
        str(i): Answer(text, {"yes": value, "no": 0.0})
        for i, (text, value) in enumerate(zip(texts, (-3.0, -2.0, -1.0, 1.0, 2.0), strict=True))
    }

    def controlled(*yes: int) -> list[str]:
        found = yes_bias(items, base, {str(i): Answer("Yes" if i in yes else "No") for i in range(5)})
        assert found is not None
        return [found[0][str(i)].text for i in range(5)]

    assert controlled(3, 4) == texts
    assert controlled(2, 3, 4) == ["No, none.", "No.", "Yes!", "Yes!", "Unsure"]
    assert controlled(4) == ["No, none.", "No.", "No.", "No.", "Unsure"]
    assert controlled() == ["No, none.", "No.", "No.", "No.", "No."]


def test_captions_among_yes_no_questions_are_left_out_of_the_yes_bias() -> None:
    items = [Item("caption", None, "Describe it.", "g", {"truth": ["cat"]})]
    items += [Item(str(i), None, "?", "g", {"truth": "yes" if i % 2 else "no"}) for i in range(4)]
    texts = ["A cat; there is no dog.", "No", "No", "Yes", "Yes"]
    base = {
        item.id: Answer(text, {"yes": value, "no": 0.0})
        for item, text, value in zip(items, texts, (9.0, -2.0, -1.0, 1.0, 2.0), strict=True)
    }
    steered = {item.id: Answer("Yes" if item.id in ("caption", "3") else "No") for item in items}
    found = yes_bias(items, base, steered)
    assert found is not None and found[0]["caption"] == base["caption"]
    assert [found[0][str(i)].text for i in range(4)] == ["No", "No", "No", "Yes"]
    assert YES_NO.score(items, list(base.values())) == {"yes": 0.5, "no": 0.5, "neither": 0.0}
    assert FIRST_TOKEN.score(items, list(base.values()))["accuracy"] == 0.5
    assert math.isnan(margin(Answer("Yes"))) and margin(Answer("", {"Yes": 1.0, "NO": 0.0})) == 1.0
    chosen = [Item("x", None, "?", "x", {}, choices=("a", "b"))]
    assert TEXTS.tally(chosen, [Answer("", {"a": -1.0, "b": -2.0})]).groups == []


def test_errors_are_counted_and_not_scored(found: dict[str, Any]) -> None:
    arms = found["tasks"]["quiz"]["arms"]
    assert arms["vista"]["errors"] == 2 and arms["vista"]["unanswered"] == pytest.approx(2 / 48)
    assert arms["none"]["errors"] == 0 and arms["none"]["answered"] == 48 and arms["none"]["unanswered"] == 0
    texts = found["tasks"]["quiz"]["scorers"]["answers"]["arms"]["vista"]["values"]
    assert texts["empty"]["rate"] == 0 and texts["empty"]["n"] == 46


def test_a_killed_run_is_read_as_far_as_it_went(tmp_path: Path) -> None:
    folder = write(tmp_path)
    whole = read_run(folder, BENCHMARKS)
    path = folder / "samples.jsonl"
    content = path.read_bytes()
    end = content.rfind(b"\n", 0, -2) + 1
    path.write_bytes(content[: end + 30])
    torn = read_run(folder, BENCHMARKS)
    assert torn.unreadable == 1
    assert len(torn.answers["colors"]["vista, random 2"]) == len(whole.answers["colors"]["vista, random 2"]) - 1
    path.write_bytes(content[: end + 30] + b"\n" + content[end:])  # went on after the torn line
    again = read_run(folder, BENCHMARKS)
    assert again.answers == whole.answers and again.unreadable == 1
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[::2]))
    (folder / "samples-1.jsonl").write_bytes(b"".join(lines[1::2]))
    assert read_run(folder, BENCHMARKS).answers == whole.answers  # two processes, not merged yet
    (folder / "samples-1.jsonl").unlink()
    path.write_bytes("é".encode()[:1])
    assert not any(any(arm.values()) for arm in read_run(folder, BENCHMARKS).answers["quiz"].values())
    path.unlink()
    empty = summarize(read_run(folder, BENCHMARKS), draws=10)
    assert empty["tasks"]["quiz"]["arms"]["none"]["answered"] == 0


def test_the_last_row_without_an_error_counts(tmp_path: Path) -> None:
    folder = write(tmp_path)
    row = {"key": "k", "task": "quiz", "item": "0-0", "arm": "none", "logprobs": {}, "seconds": 1}
    more = [
        {**row, "answer": "first", "error": None}, {**row, "answer": "second", "error": None},
        {**row, "answer": "", "error": "later"}, {**row, "item": "nobody", "answer": "x", "error": None},
        {**row, "arm": "nobody", "answer": "x", "error": None}, {**row, "task": "nobody", "answer": "x", "error": None},
    ]  # fmt: skip
    with (folder / "samples.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in more)
        file.write(json.dumps({**row, "item": "0-1", "arm": "vista", "answer": None, "error": "never came"}) + "\n")
    run = read_run(folder, BENCHMARKS)
    assert run.answers["quiz"]["none"]["0-0"].text == "second" and "0-0" not in run.errors["quiz"]["none"]
    assert run.answers["quiz"]["vista"].get("0-1") is not None  # it had an answer before
    assert run.unreadable == 0 and "nobody" not in run.answers


def test_scorers_can_be_chosen_and_one_that_cannot_run_is_said(tmp_path: Path) -> None:
    def unable(items: Any, answers: Any) -> Any:
        raise InputError("This scorer needs a judge.")

    judge = Scorer("quiz@judge", "made up", unable, JUDGED.metrics, {"f1": 1})
    both = Benchmark(QUIZ.name, QUIZ.title, QUIZ.source, QUIZ.load, (judge, JUDGED), 4, yes_no=True)
    run = read_run(write(tmp_path), {"quiz": both, "colors": COLORED})
    task = summarize(run, draws=20)["tasks"]["quiz"]
    assert task["skipped_scorers"] == {"quiz@judge": "This scorer needs a judge."} and "quiz@plain" in task["scorers"]
    with pytest.raises(InputError, match="needs a judge"):
        summarize(run, {"quiz": ["quiz@judge"]}, draws=20)
    with pytest.raises(InputError, match="no scorer 'quiz@plan'; did you mean 'quiz@plain'"):
        summarize(run, {"quiz": ["quiz@plan"]}, draws=20)


def test_a_run_without_a_baseline_has_values_and_no_changes(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, arms=ARMS[4:]), BENCHMARKS)
    found = summarize(run, draws=20)
    assert found["baseline"] is None
    row = found["tasks"]["quiz"]["scorers"]["quiz@plain"]["arms"]["vista"]
    assert "change" not in row and row["values"]["f1"]["n"] == 48 and row["random"]["directions"] == 2


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the folder of a run"):
        read_run(tmp_path, BENCHMARKS)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json.*JSON"):
        read_run(tmp_path, BENCHMARKS)
    (tmp_path / "run.json").write_text('{"arms": [{"name": "none"}], "tasks": []}')
    with pytest.raises(InputError, match="does not say its arms and tasks"):
        read_run(tmp_path, BENCHMARKS)
    folder = write(tmp_path / "run")
    with (folder / "items-quiz.jsonl").open("a") as file:
        file.write('{"id": "x"}\n')
    with pytest.raises(InputError, match="Line 49 .*not an item"):
        read_run(folder, BENCHMARKS)


def test_two_runs_are_compared_in_pairs(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", captions=15, seed=1, model="other")
    for folder in (a, b):  # the images of a run lie in its own folder, what is asked is the same
        assert (folder / "images" / "0.png").is_file()
    found = compare_runs(a, b, BENCHMARKS, draws=100)
    one, two = read_run(a, BENCHMARKS), read_run(b, BENCHMARKS)
    task = found["tasks"]["colors"]
    assert task["items"] == 15 and task["only"] == [5, 0] and found["models"] == ["tiny-made", "other"]
    shared = [item for item in one.items["colors"] if item.id in {item.id for item in two.items["colors"]}]
    scores = [
        COLORED.scorers[0].score(shared, [run.answers["colors"]["vista"][item.id] for item in shared])
        for run in (one, two)
    ]
    row = task["arms"]["vista"]
    assert row["a"]["chair_i"]["rate"] == pytest.approx(scores[0]["chair_i"])
    assert row["change"]["chair_i"]["rate"] == pytest.approx(scores[1]["chair_i"] - scores[0]["chair_i"])
    assert set(found["tasks"]["quiz"]["arms"]) == {"none", "vista x0.5", "vista"}
    text = as_markdown(found)
    assert "The models differ: tiny-made in a, other in b" in text and "5 only in a, left out" in text
    across = compare_runs(a, a, BENCHMARKS, arms=("none", "vista"), draws=50)["tasks"]["quiz"]["arms"]["none → vista"]
    test = summarize(one, draws=50)["tasks"]["quiz"]["scorers"]["quiz@plain"]["arms"]["vista"]
    assert across["mcnemar"] == test["mcnemar"] and across["change"]["f1"] == test["change"]["f1"]


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    with pytest.raises(InputError, match="has no arm 'vist'; did you mean 'vista'"):
        compare_runs(a, b, BENCHMARKS, arms=("vist", "none"))

    def altered(name: str, old: str, new: str) -> Path:
        folder = write(tmp_path / "c")
        path = folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        return folder

    with pytest.raises(InputError, match="differ in their prompt"):
        compare_runs(a, altered("items-quiz.jsonl", "Is there a thing 1", "Do you see thing 1"), BENCHMARKS)
    with pytest.raises(InputError, match="differ in their gold"):
        compare_runs(a, altered("items-quiz.jsonl", '"label": "yes"', '"label": "no"'), BENCHMARKS)
    with pytest.raises(InputError, match="max_new_tokens of colors is 32 and 64"):
        compare_runs(a, altered("run.json", '"colors": 32', '"colors": 64'), BENCHMARKS)
    other = [{**arm, "name": f"my {arm['name']}", "of": arm["of"] and f"my {arm['of']}"} for arm in ARMS]
    with pytest.raises(InputError, match="share no arm"):
        compare_runs(a, write(tmp_path / "d", arms=other), BENCHMARKS)
    (a / "items-colors.jsonl").write_text("")
    with pytest.raises(InputError, match="colors: the runs share no item"):
        compare_runs(a, b, BENCHMARKS)
