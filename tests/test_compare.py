"""Comparing arms on a small trained model, choosing a strength, and the tables."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from engine_recipes import both, recipe

import vlmsteer
from vlmsteer.bench.compare import Trial, choose, compare, tune
from vlmsteer.bench.compare_report import as_markdown
from vlmsteer.bench.drawn_examples import drawn_examples
from vlmsteer.bench.hallucination import MEASURES
from vlmsteer.bench.statistics import Rate
from vlmsteer.errors import InputError
from vlmsteer.recipe import Recipe
from vlmsteer_counterfacts.facts import facts

CAPTIONS, PRESENCE = drawn_examples("captions", "test", 10), drawn_examples("presence", "test", 12)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return vlmsteer.load("tiny-llava")


@pytest.fixture(scope="module")
def compared(tiny: Any) -> Any:
    first, second = (recipe(tiny, f"text.{layer}.block_out", seed=layer, size=2.0) for layer in (3, 5))
    arms = {"first": first, "second": second, "first+second": both(first, second), "nothing": Recipe(())}
    return compare(tiny, arms | {"zero": first.scaled(0)}, CAPTIONS, PRESENCE, controls=2)


def test_the_report_is_json_and_counts_as_a_naive_reader_does(tiny: Any, compared: Any) -> None:
    report = json.loads(json.dumps(compared.report))
    assert (report["captions"], report["presence"], list(report["arms"])[0]) == (10, 12, "first")
    for arm in ("baseline", "first"):
        captions, answers = compared.said[arm]["captions"], compared.said[arm]["answers"]
        values = report[arm]["values"] if arm == "baseline" else report["arms"][arm]["values"]
        made_up = named = 0
        for caption, one in zip(captions, CAPTIONS, strict=True):
            for name in facts():  # no name of the drawn world is part of another's
                count = caption.count(f" {name}")
                named += count
                made_up += count if f" {name}" not in one.right else 0
        assert values["chair_i"]["rate"] == pytest.approx(made_up / named) and named > 15
        right = [answer == one.right for answer, one in zip(answers, PRESENCE, strict=True)]
        assert values["accuracy"]["rate"] == pytest.approx(sum(right) / 12)
    assert compared.said["baseline"]["captions"] == [tiny.ask(o.image, o.question, None, 64) for o in CAPTIONS]


def test_changes_are_differences_from_the_baseline(compared: Any) -> None:
    before, row = compared.report["baseline"]["values"], compared.report["arms"]["first"]
    assert compared.said["first"] != compared.said["baseline"]
    for side in (row, row["random"]):
        for name in MEASURES:
            assert side["change"][name]["rate"] == pytest.approx(side["values"][name]["rate"] - before[name]["rate"])
    assert row["values"]["kl_unrelated"]["rate"] > 0.001 and before["kl_unrelated"]["rate"] == 0


def test_arms_that_do_nothing_change_nothing_and_edits_alone_have_a_control(compared: Any) -> None:
    for name in ("nothing", "zero"):
        assert compared.said[name] == compared.said["baseline"]
        assert {rate["rate"] for rate in compared.report["arms"][name]["change"].values()} == {0}
    assert compared.report["arms"]["nothing"]["random"] is None and "nothing, random" not in compared.said
    assert compared.report["arms"]["first"]["random"]["directions"] == 2
    assert compared.said["first, random"] != compared.said["first"]


def test_interference_is_what_the_sum_leaves(compared: Any) -> None:
    arms, (name,) = compared.report["arms"], compared.report["interference"]
    found = compared.report["interference"][name]
    assert name == "first+second" and found["of"] == ["first", "second"]
    for measure, beyond in found["beyond_sum"].items():
        joint, *separate = (arms[one]["change"][measure]["rate"] for one in (name, "first", "second"))
        assert beyond["rate"] == pytest.approx(joint - sum(separate))
        low, high = beyond["interval"]
        assert low is None or low <= beyond["rate"] + 1e-9 <= high + 2e-9


def test_the_tables_show_every_arm(compared: Any) -> None:
    text = as_markdown(compared.report)
    assert text.startswith("tiny-llava, greedy") and "10 captions, 12 yes/no" in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert {"baseline", "first", "first, 2 random directions", "nothing, no random control"} <= set(rows)
    accuracy = compared.report["arms"]["first"]["values"]["accuracy"]["rate"]
    assert f"| {100 * accuracy:.1f} % (" in rows["first"]
    widths = {len(line.split("|")) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 3 and "first+second: its change beyond the sum" in text


def test_intervals_that_exclude_zero_are_bold_and_empty_ones_left_out(compared: Any) -> None:
    report = json.loads(json.dumps(compared.report))
    report["arms"] = {"A": report["arms"]["nothing"]}
    change = report["arms"]["A"]["change"]
    change["recall"] = {"rate": -0.05, "n": 10, "interval": [-0.09, -0.01]}
    change["chair_s"] = {"rate": None, "n": 10, "interval": [None, None]}
    text = as_markdown(report | {"presence": 0, "interference": {}})
    assert "(**-5.0 [-9.0, -1.0]**)" in text and "(undefined)" in text and "Yes/no questions\n" not in text
    assert "(+0.00)" in text  # words: not a share, so nothing bounds its interval


def test_one_kind_of_examples_is_enough(tiny: Any) -> None:
    report = compare(tiny, {}, CAPTIONS[:2], []).report
    assert report["baseline"]["values"]["accuracy"]["rate"] is None
    assert report["baseline"]["values"]["recall"]["rate"] is not None
    report = compare(tiny, {}, [], PRESENCE[:2]).report
    assert report["baseline"]["values"]["recall"]["rate"] is None
    assert "### Captions" not in as_markdown(report)


def test_a_comparison_without_sense_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match="needs captions"):
        compare(tiny, {}, [], [])
    with pytest.raises(InputError, match="No arm may be called"):
        compare(tiny, {"baseline": Recipe(())}, CAPTIONS, PRESENCE)
    with pytest.raises(InputError, match="Possible: chair_i, chair_s"):
        tune(tiny, Recipe(()), [1.0], CAPTIONS, PRESENCE, "chair")
    with pytest.raises(InputError, match="at least one strength"):
        tune(tiny, Recipe(()), [], CAPTIONS, PRESENCE)


def trial(strength: float, **changes: float) -> Trial:
    known = {"chair_i": 0.0, "chair_s": 0.0, "recall": 0.0, "accuracy": 0.0} | changes
    return Trial(strength, {}, {name: Rate(value, 100, (value, value)) for name, value in known.items()})


def test_the_largest_fall_within_the_cost_is_chosen() -> None:
    trials = [
        trial(0.5, chair_i=-0.02),
        trial(1.0, chair_i=-0.05, recall=-0.01, accuracy=-0.02),
        trial(2.0, chair_i=-0.09, chair_s=-0.2, recall=-0.011),
        trial(3.0, chair_i=-0.2, accuracy=-0.03),
    ]
    chosen = choose(trials)
    assert chosen.strength == 1.0 and chosen.best is trials[1] and "Strength 1: CHAIR_i -5.0" in chosen.says
    assert choose([trials[0], trial(4.0, chair_s=-0.01)], "chair_s").strength == 4.0
    alone = choose([trial(1.0, chair_i=-0.03, accuracy=math.nan)])  # without yes/no questions
    assert alone.strength == 1.0 and "nan" not in alone.says


def test_where_none_helps_the_strength_is_zero_and_the_best_trade_shown() -> None:
    trials = [
        trial(1.0, chair_i=0.01),
        trial(2.0, chair_i=-0.06, recall=-0.03),
        trial(3.0, chair_i=-0.08, recall=-0.3),
        trial(4.0, chair_i=math.nan, recall=-0.7),
    ]
    chosen = choose(trials)
    assert chosen.strength == 0 and chosen.best.strength == 2.0 and chosen.says.startswith("No strength helps")


def test_tuning_measures_each_multiple(tiny: Any) -> None:
    push = recipe(tiny, "text.3.block_out", size=1.0)
    tuned = tune(tiny, push, (0.0, 40.0), CAPTIONS[:6], PRESENCE[:6])
    assert [one.strength for one in tuned.trials] == [0.0, 40.0] and tuned.strength == 0
    assert {rate.rate for rate in tuned.trials[0].change.values()} == {0}
    assert tuned.trials[1].change["recall"].rate < -0.1
