"""Intervals: closed forms where they exist, coverage by simulation where not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmsteer.bench.statistics import Rate, paired_difference, rate
from vlmsteer.errors import InputError


def wilson(successes: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return center - half, center + half


def test_empty_is_nan_and_json_null() -> None:
    empty = rate([])
    assert empty.n == 0 and math.isnan(empty.rate) and all(map(math.isnan, empty.interval))
    assert json.dumps(empty.as_dict()) == '{"rate": null, "n": 0, "interval": [null, null]}'
    assert Rate(0.5, 2, (0.0, 1.0)).as_dict() == {"rate": 0.5, "n": 2, "interval": [0.0, 1.0]}


@pytest.mark.parametrize("n", [1, 2, 10, 500])
def test_unanimous_outcomes_get_wilson(n: int) -> None:
    assert rate([True] * n).interval == pytest.approx(wilson(n, n))
    assert rate([False] * n).interval == pytest.approx(wilson(0, n))


def test_one_cluster_is_one_observation() -> None:
    alone = rate([True] * 500, ["image"] * 500)
    assert alone.n == 500 and alone.interval == pytest.approx(wilson(1, 1))
    low, high = rate([True, False] * 50, ["image"] * 100).interval
    assert low < 0.15 and high > 0.85


def test_clusters_that_all_agree_do_not_give_zero_width() -> None:
    result = rate([1, 0] * 20, [item // 2 for item in range(40)])
    assert result.rate == 0.5 and result.interval[0] < 0.45 and result.interval[1] > 0.55


def test_independent_items_agree_with_the_normal_interval() -> None:
    outcomes = np.random.default_rng(1).random(2000) < 0.3
    result = rate(outcomes.tolist())
    half = 1.96 * math.sqrt(result.rate * (1 - result.rate) / 2000)
    assert result.interval == pytest.approx((result.rate - half, result.rate + half), abs=0.004)


def test_repeating_items_within_clusters_adds_no_certainty() -> None:
    outcomes = (np.random.default_rng(2).random(60) < 0.5).tolist()
    single = rate(outcomes)
    repeated = rate(np.repeat(outcomes, 10).tolist(), np.repeat(np.arange(60), 10).tolist())
    ignored = rate(np.repeat(outcomes, 10).tolist())
    assert repeated.interval == single.interval
    assert np.ptp(ignored.interval) < 0.5 * np.ptp(repeated.interval)


def test_unequal_clusters_weigh_items_not_clusters() -> None:
    assert rate([1, 1, 1, 0], ["a", "a", "a", "b"]).rate == 0.75


def test_coverage_with_clusters_is_near_95_percent() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for seed in range(200):
        means = generator.beta(2, 3, size=60)
        sizes = generator.integers(1, 6, size=60)
        labels = np.repeat(np.arange(60), sizes)
        result = rate((generator.random(len(labels)) < means[labels]).tolist(), labels.tolist(), draws=400, seed=seed)
        hits += result.interval[0] <= 0.4 <= result.interval[1]
    assert 178 <= hits <= 199


def test_same_seed_same_interval_and_many_clusters_in_pieces() -> None:
    outcomes = (np.random.default_rng(4).random(9000) < 0.8).tolist()
    first = rate(outcomes, draws=600, seed=7)
    assert first == rate(outcomes, draws=600, seed=7) and first != rate(outcomes, draws=600, seed=8)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_interval_lies_in_range_around_the_rate(items: list[tuple[float, int]]) -> None:
    outcomes, clusters = [value for value, _ in items], [label for _, label in items]
    result = rate(outcomes, clusters, draws=100)
    low, high = result.interval
    assert -1e-9 <= low <= high <= 1 + 1e-9 and result.n == len(items)
    assert result.rate == pytest.approx(sum(outcomes) / len(outcomes))


def test_paired_difference_uses_the_pairing() -> None:
    generator = np.random.default_rng(5)
    before = generator.random(300) < 0.5
    after = before.copy()
    after[:30] = True
    paired = paired_difference(before.tolist(), after.tolist())
    assert paired.rate == pytest.approx(after.mean() - before.mean()) and paired.n == 300
    assert paired.interval[0] > 0 and np.ptp(paired.interval) < np.ptp(rate(after.tolist()).interval)


def test_paired_difference_without_any_change_is_zero_but_not_certain() -> None:
    low, high = paired_difference([1, 0, 1, 1], [1, 0, 1, 1], clusters=list("abcd")).interval
    assert low == -high and 0 < high < 1
    assert paired_difference([0] * 50, [1] * 50).interval[1] == pytest.approx(1.0)
    assert paired_difference([], []).n == 0


def test_values_outside_0_and_1_have_no_fallback() -> None:
    assert math.isnan(rate([12.0, 12.0]).interval[0])
    assert rate([10.0, 14.0, 12.0]).interval[1] <= 14


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="3 items, 2 labels"):
        rate([1, 0, 1], ["a", "b"])
    with pytest.raises(InputError, match="finite"):
        rate([1, float("nan")])
    with pytest.raises(InputError, match="2 before, 1 after"):
        paired_difference([1, 0], [1])
    with pytest.raises(InputError, match="at least 1 draw"):
        rate([1, 0], draws=0)
