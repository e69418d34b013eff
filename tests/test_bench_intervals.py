"""Intervals of any function of sums, against loops that resample rows one by one, and against simulated truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binomtest

from vlmsteer.bench.benchmark import Answer, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.intervals import Estimate, mcnemar, metric_contrast, metric_intervals, minimum_detectable
from vlmsteer.bench.statistics import Rate, paired_difference, rate, ratio_contrast
from vlmsteer.errors import InputError


def _unused(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    raise NotImplementedError


def _metrics(sums: Sums) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = share(sums["hit"], sums["said"]), share(sums["hit"], sums["true"])
        harmonic = 2 / (1 / precision + 1 / recall)
    return {"right": share(sums["right"], sums["n"]), "f1": harmonic, "percent": 100 * share(sums["right"], sums["n"]),
            "words": share(sums["words"], sums["n"]), "rare": share(sums["hit"], sums["rare"])}  # fmt: skip


SCORER = Scorer("s", "made up", _unused, _metrics, {"right": 1}, frozenset({"percent"}), numbers=frozenset({"words"}))


def made(seed: int, rows: int = 60, groups: int = 20, ease: float = 0.0) -> Tally:
    rng = np.random.default_rng(seed)
    group = [f"g{i % groups}" for i in range(rows)]
    lean = rng.standard_normal(groups)
    true = rng.random(rows) < 0.5
    said = rng.random(rows) < np.where(true, 0.7 + ease, 0.4 - ease)
    words = 5 + lean[np.arange(rows) % groups] + rng.random(rows)
    counts = {"n": np.ones(rows), "right": said == true, "hit": said & true, "said": said, "true": true,
              "words": words, "rare": np.zeros(rows)}  # fmt: skip
    return Tally(group, {name: [float(v) for v in values] for name, values in counts.items()})


def slowly(tally: Tally, seed: int, draws: int) -> dict[str, list[float]]:
    """The metrics of each draw by adding up drawn rows one after the other."""
    order = list(dict.fromkeys(tally.groups))
    members = {group: [i for i, one in enumerate(tally.groups) if one == group] for group in order}
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for chosen in rng.integers(len(order), size=(draws, len(order))):
        sums = dict.fromkeys(tally.counts, 0.0)
        for number in chosen:
            for row in members[order[number]]:
                for name in sums:
                    sums[name] += tally.counts[name][row]
        for name, value in _metrics({name: np.asarray(total) for name, total in sums.items()}).items():
            found.setdefault(name, []).append(float(value))
    return found


def test_intervals_equal_a_loop_over_rows() -> None:
    tally = made(1)
    drawn = slowly(tally, seed=5, draws=300)
    found = metric_intervals(tally, SCORER, draws=300, seed=5)
    for name in ("right", "f1", "percent", "words"):
        assert found[name].interval == pytest.approx(np.percentile(drawn[name], [2.5, 97.5]))
        assert minimum_detectable(found[name]) == pytest.approx(2.8 * np.std(drawn[name], ddof=1))
        assert found[name].n == 60
    assert found["f1"].rate == pytest.approx(float(_metrics(tally.sums())["f1"]))
    assert math.isnan(found["rare"].rate) and all(map(math.isnan, found["rare"].interval))


def test_a_contrast_has_the_same_groups_in_every_arm() -> None:
    before, after = made(1), made(1, ease=0.15)
    one, two = (slowly(tally, seed=3, draws=200) for tally in (before, after))
    found = metric_contrast([before, after], SCORER, [-1, 1], draws=200, seed=3)
    for name in ("right", "f1", "words"):
        change = np.array(two[name]) - np.array(one[name])
        if np.ptp(change) > 1e-9:
            assert found[name].interval == pytest.approx(np.percentile(change, [2.5, 97.5]))
    three = metric_contrast([before, after, before], SCORER, [-1, 0.5, 0.5], draws=200, seed=3)
    assert three["f1"].rate == pytest.approx(found["f1"].rate / 2)
    assert three["f1"].interval == pytest.approx(tuple(bound / 2 for bound in found["f1"].interval))


def test_shares_agree_with_the_statistics_of_shares() -> None:
    before, after = made(2), made(2, ease=0.2)
    found = metric_intervals(before, SCORER, seed=1)
    expected = rate(before.counts["right"], before.groups, seed=1)
    assert (found["right"].rate, found["right"].n) == (pytest.approx(expected.rate), expected.n)
    assert found["right"].interval == pytest.approx(expected.interval)
    assert found["percent"].interval == pytest.approx([100 * bound for bound in expected.interval])
    change = metric_contrast([before, after], SCORER, [-1, 1], seed=1)
    paired = paired_difference(before.counts["right"], after.counts["right"], before.groups, seed=1)
    assert change["right"].interval == pytest.approx(paired.interval)
    words = ratio_contrast(
        [(one.counts["words"], one.counts["n"]) for one in (before, made(3))],
        (-1, 1),
        before.groups,
        seed=1,
        bounded=False,
    )
    assert metric_contrast([before, made(3)], SCORER, [-1, 1], seed=1)["words"].interval == pytest.approx(
        words.interval
    )


def all_right(rows: int, groups: int, words: float = 5.0) -> Tally:
    ones = [1.0] * rows
    counts = {"n": ones, "right": ones, "hit": ones, "said": ones, "true": ones, "words": [words] * rows}
    return Tally([f"g{i % groups}" for i in range(rows)], {**counts, "rare": [float(i < 3) / 3 for i in range(rows)]})


def test_where_no_draw_differs_wilson_takes_over() -> None:
    tally = all_right(40, 10)
    found = metric_intervals(tally, SCORER)
    assert found["right"].interval == pytest.approx(rate([1.0] * 10).interval)
    assert found["f1"].interval == pytest.approx(rate([1.0] * 10).interval)
    assert found["percent"].interval == pytest.approx([100 * bound for bound in rate([1.0] * 10).interval])
    assert found["words"].rate == 5.0 and all(map(math.isnan, found["words"].interval))
    one = metric_intervals(all_right(40, 10, words=1.0), SCORER)["words"]
    assert one.rate == 1.0 and all(map(math.isnan, one.interval)), "a mean of one word is no share"
    same = metric_contrast([tally, tally], SCORER, [-1, 1])
    assert same["right"].interval == pytest.approx(paired_difference([1.0] * 10, [1.0] * 10).interval)
    assert minimum_detectable(same["right"]) > 0 and math.isnan(minimum_detectable(same["words"]))


def test_wilson_counts_only_groups_that_have_the_metric() -> None:
    tally = all_right(40, 10)
    tally.counts["true"] = [float(group in ("g1", "g2")) for group in tally.groups]
    tally.counts["hit"] = tally.counts["said"] = tally.counts["true"]
    assert metric_intervals(tally, SCORER)["f1"].interval == pytest.approx(rate([1.0] * 2).interval)


def test_a_constant_change_of_an_unbounded_metric_has_no_wilson_interval() -> None:
    tally = all_right(12, 4, words=0.5)
    tally.counts["words"] = [2.0 if group in ("g0", "g1") else -1.0 for group in tally.groups]  # 0.5 on average
    moved = Tally(tally.groups, {**tally.counts, "words": [value + 0.25 for value in tally.counts["words"]]})
    found = metric_contrast([tally, moved], SCORER, [-1, 1])["words"]
    assert found.rate == pytest.approx(0.25) and all(map(math.isnan, found.interval))


def test_groups_missing_in_one_arm_are_left_out_of_both() -> None:
    before, after = made(1), made(1, ease=0.2)
    kept = [i for i, group in enumerate(after.groups) if group not in ("g3", "g17")]
    part = Tally([after.groups[i] for i in kept], {k: [v[i] for i in kept] for k, v in after.counts.items()})
    same = Tally([before.groups[i] for i in kept], {k: [v[i] for i in kept] for k, v in before.counts.items()})
    one, two = (metric_contrast([arm, part], SCORER, [-1, 1])["f1"] for arm in (before, same))
    assert (one.rate, one.n, one.interval) == (two.rate, two.n, two.interval) and one.n == 54


def test_nothing_to_count() -> None:
    empty = Tally([], {name: [] for name in made(1).counts})
    found = metric_intervals(empty, SCORER)
    assert found["right"].n == 0 and math.isnan(found["right"].rate)
    apart = metric_contrast([made(1, 4, 2), Tally(["x"], {k: [1.0] for k in made(1).counts})], SCORER, [-1, 1])
    assert apart["right"].n == 0 and math.isnan(apart["right"].rate)


def test_coverage_of_the_f1_interval_is_near_95_percent() -> None:
    truth = 2 * 0.7 * 0.5 / ((0.7 * 0.5 + 0.4 * 0.5) + 0.5)
    inside = 0
    for seed in range(200):
        low, high = metric_intervals(made(1000 + seed, 300, 150), SCORER, draws=300)["f1"].interval
        inside += low <= truth <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_the_detectable_difference_is_detected_four_times_out_of_five() -> None:
    rng = np.random.default_rng(4)
    groups = [str(i) for i in range(300)]
    base = all_right(300, 300).counts

    def pair(gain: float) -> list[Tally]:
        before = rng.random(300) < 0.5
        flipped = rng.random(300) < np.where(before, 0.1, 0.1 + 2 * gain)  # half are wrong, so accuracy gains `gain`
        return [Tally(groups, {**base, "right": one.astype(float).tolist()}) for one in (before, before ^ flipped)]

    gap = np.mean([minimum_detectable(metric_contrast(pair(0.06), SCORER, [-1, 1], 200)["right"]) for _ in range(20)])
    seen = [metric_contrast(pair(float(gap)), SCORER, [-1, 1], 200)["right"].interval[0] > 0 for _ in range(200)]
    assert 0.7 <= np.mean(seen) <= 0.9


def _with(tally: Tally, values: np.ndarray) -> Tally:
    return Tally(tally.groups, {**tally.counts, "right": [float(value) for value in values]})


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (5, 0), (3, 9), (40, 60), (700, 650), (6, 6)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    before = [True] * lost + [False] * gained + [True, False, True]
    after = [False] * lost + [True] * gained + [True, False, True]
    found = mcnemar(before, after)
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert found[:2] == (lost, gained) and found[2] == pytest.approx(expected)


def test_json_has_no_nan() -> None:
    found = Estimate(math.nan, 0, (math.nan, math.nan)).as_dict()
    assert found == {"rate": None, "n": 0, "interval": [None, None], "groups": 0, "standard_error": None,
                     "minimum_detectable": None}  # fmt: skip
    assert math.isnan(minimum_detectable(Rate(0.5, 2, (0.0, 1.0))))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="one weight"):
        metric_contrast([made(1)], SCORER, [1, 2])
    with pytest.raises(InputError, match="same counts"):
        metric_contrast([made(1), Tally(["g"], {"n": [1.0]})], SCORER, [-1, 1])
    with pytest.raises(InputError, match="'right' must be a finite number for each of 60 rows"):
        metric_intervals(_with(made(1), np.full(60, math.nan)), SCORER)
    with pytest.raises(InputError, match="same items twice"):
        mcnemar([1], [])
    with pytest.raises(InputError, match="at least 1 draw"):
        metric_intervals(made(1), SCORER, draws=0)
