"""Hallucination measures against hand-counted cases, naive recounts and raw logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from engine_recipes import recipe
from PIL import Image

from vlmsteer.bench.hallucination import MEASURES, UNRELATED, Said, ask, clusters, mentions, score, verdict
from vlmsteer.bench.statistics import paired_difference, rate, ratio_contrast
from vlmsteer.errors import InputError
from vlmsteer.examples import Example

CAPTIONS = [
    Example(None, "Describe.", "There is a red tomato and a green tree.", "x", "one"),
    Example(None, "Describe.", "There is a grey mouse, a white sheep and a red rose.", "x", "two"),
    Example(None, "Describe.", "There is a black tire.", "x", "three"),
]
PRESENCE = [Example(None, f"{i}?", right, "x", f"{i // 2}", "presence") for i, right in enumerate(["Yes", "No"] * 3)]


def said(captions: list[str], answers: list[str], unrelated: Any = None, presence: Any = None) -> Said:
    flat = torch.full((1, 4), 0.25).log()
    return Said(
        captions,
        answers,
        flat.repeat(len(captions), 1) if unrelated is None else unrelated,
        flat.repeat(len(answers), 1) if presence is None else presence,
    )


def total(part: tuple[list[float], list[float]]) -> float:
    return sum(part[0]) / sum(part[1])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A panda beside a trees-lined bus, roses!", ["tree", "rose"]),
        ("Two mice, a FIRE TRUCK and top  hats.", ["mouse", "fire truck", "top hat"]),
        ("treetop, bearing, pigs' rosebush", ["pig"]),
        ("a pear, a pearl, a bear; bear", ["bear", "bear"]),
        ("grapes and jeans and cacti\nand a school\nbus", ["grapes", "jeans", "cactus", "school bus"]),
        ("There is no swan.", ["swan"]),
        ("", []),
    ],
)
def test_mentions_are_whole_words_in_any_number(text: str, names: list[str]) -> None:
    assert mentions(text) == names


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", "yes"), ("no.", "no"), ("NO, yes", "no"), ("\nThe answer is yes", "yes"), ("I know, snow", ""), ("", "")],
)
def test_verdict_is_the_first_whole_word(answer: str, expected: str) -> None:
    assert verdict(answer) == expected


def test_every_measure_of_a_case_counted_by_hand() -> None:
    captions = [
        "There is a red tomato and a red tomato.",  # 2 mentions, 1 of 2 shown objects
        "There are mice, a crow and a crow, a sheep.",  # 4 mentions, 2 of them of an absent crow; 2 of 3 shown
        "I see nothing here.",  # no mention; 0 of 1
    ]
    answers = ["Yes", "Yes.", "no", "No", "perhaps", "yes"]  # right: yes no yes no yes no
    found = score(said(captions, answers), said(captions, answers), CAPTIONS, PRESENCE)
    assert total(found["chair_i"]) == 2 / 6 and total(found["chair_s"]) == 1 / 3 and total(found["recall"]) == 3 / 6
    assert total(found["words"]) == (9 + 10 + 4) / 3 and total(found["objects"]) == (1 + 3 + 0) / 3
    # runs of three words: 7, 8, 2; "a red tomato" comes twice, and no run of the second does
    assert total(found["repetition"]) == 1 / 17
    assert total(found["accuracy"]) == 2 / 6 and total(found["yes"]) == 3 / 6 and total(found["neither"]) == 1 / 6
    assert total(found["f1"]) == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))  # 1 hit, 2 false alarms, 2 misses
    assert total(found["kl_unrelated"]) == 0 == total(found["kl_presence"])
    assert all(list(map(len, found[name])) == [len(rows)] * 2 for name, rows in clusters(CAPTIONS, PRESENCE).items())
    assert set(found) == set(MEASURES)


def test_divergence_is_that_of_the_baseline_and_finite() -> None:
    generator = np.random.default_rng(0)
    p, q = (generator.dirichlet(np.ones(5), size=3) for _ in range(2))
    before = said([""] * 3, [""] * 6, unrelated=torch.tensor(p).log())
    after = said([""] * 3, [""] * 6, unrelated=torch.tensor(q).log())
    found = score(after, before, CAPTIONS, PRESENCE)["kl_unrelated"][0]
    assert found == pytest.approx((p * np.log(p / q)).sum(1))
    ruled_out = said(
        [""] * 3, [""] * 6, unrelated=torch.tensor([[0.0, -math.inf, -math.inf, -math.inf, -math.inf]] * 3)
    )
    assert np.isfinite(score(ruled_out, before, CAPTIONS, PRESENCE)["kl_unrelated"][0]).all()
    assert score(before, ruled_out, CAPTIONS, PRESENCE)["kl_unrelated"][0] == pytest.approx(-np.log(p[:, 0]), abs=1e-6)


def test_other_objects_need_a_vocabulary() -> None:
    captions = [Example(None, "Describe.", "A cat on a dining table.", "x", "one")]
    answered = said(["Cats and a table."], [])
    with pytest.raises(InputError, match="pass a vocabulary"):
        score(answered, answered, captions, [])
    words = {"cat": "cat", "cats": "cat", "table": "table", "dining table": "dining table"}
    found = score(answered, answered, captions, [], words)
    assert total(found["chair_i"]) == 0.5 and total(found["recall"]) == 0.5  # the longest name was taken in the truth


def test_a_right_answer_that_is_neither_is_refused() -> None:
    odd = [Example(None, "?", "red", "blue", "g", "presence")]
    with pytest.raises(InputError, match="not 'red'"):
        score(said([], ["yes"]), said([], ["yes"]), [], odd)


def examples(pictures: list[Image.Image]) -> tuple[list[Example], list[Example]]:
    captions = [Example(one, "What color is it?", "a tree", "x", str(i)) for i, one in enumerate(pictures)]
    return captions, [Example(one, "red?", "Yes", "No", str(i), "presence") for i, one in enumerate(pictures[:2])]


def test_arms_are_asked_as_one_by_one_and_in_turn(llava: Any, pictures: list[Image.Image]) -> None:
    captions, presence = examples(pictures)
    pushes = [recipe(llava, "text.1.block_out", seed=seed, size=3.0) for seed in (1, 2)]
    in_turn = ask(llava, captions, presence, pushes, max_new_tokens=5)
    expected = [llava.ask(one.image, one.question, pushes[i % 2], 5) for i, one in enumerate(captions)]
    assert in_turn.captions == expected and len(set(expected)) > 1
    assert in_turn.answers == [llava.ask(one.image, one.question, pushes[i], 6) for i, one in enumerate(presence)]
    plain, first = ask(llava, captions, presence), ask(llava, captions, presence, pushes[0])
    raw = torch.cat([llava.logits([one.image], [UNRELATED]) for one in captions]).log_softmax(-1)
    torch.testing.assert_close(plain.unrelated, raw, atol=1e-4, rtol=0)
    torch.testing.assert_close(in_turn.unrelated[::2], first.unrelated[::2], atol=1e-4, rtol=0)
    assert (in_turn.presence[1] - first.presence[1]).abs().max() > 0.1


def test_a_contrast_of_means_is_the_mean_and_its_difference() -> None:
    generator = np.random.default_rng(1)
    before, after = (generator.random(50).round().tolist() for _ in range(2))
    labels, ones = [i // 2 for i in range(50)], [1.0] * 50
    assert ratio_contrast([(before, ones)], (1,), labels) == rate(before, labels)
    both = ratio_contrast([(before, ones), (after, ones)], (-1, 1), labels)
    difference = paired_difference(before, after, labels)
    assert both.rate == pytest.approx(difference.rate) and both.interval == pytest.approx(difference.interval)


def test_a_contrast_of_ratios_covers_the_truth() -> None:
    generator, hits = np.random.default_rng(2), 0
    for seed in range(150):
        below = generator.integers(0, 5, size=(2, 80)).astype(float)
        below[1] = np.maximum(below[0] - generator.integers(0, 2, size=80), 0)  # the arms are paired
        above = generator.binomial(below.astype(int), np.array([[0.3], [0.2]])).astype(float)
        parts = [(above[i].tolist(), below[i].tolist()) for i in range(2)]
        found = ratio_contrast(parts, (-1, 1), draws=400, seed=seed)
        assert found.rate == pytest.approx(above[1].sum() / below[1].sum() - above[0].sum() / below[0].sum())
        hits += found.interval[0] <= -0.1 <= found.interval[1]
    assert 134 <= hits <= 149  # 95 % of 150 is 142.5


def test_pairing_makes_the_interval_of_a_difference_of_ratios_smaller() -> None:
    generator = np.random.default_rng(3)
    below = generator.integers(1, 6, size=100).astype(float)
    above = generator.binomial(below.astype(int), 0.4).astype(float)
    fewer = np.maximum(above - (generator.random(100) < 0.2), 0)
    pair = [(above.tolist(), below.tolist()), (fewer.tolist(), below.tolist())]
    shuffled = generator.permutation(100)
    apart = [pair[0], (fewer[shuffled].tolist(), below[shuffled].tolist())]
    widths = [np.ptp(ratio_contrast(parts, (-1, 1)).interval) for parts in (pair, apart)]
    assert widths[0] < 0.6 * widths[1]


def test_a_contrast_without_any_change_is_not_certain_and_without_mentions_undefined() -> None:
    same = ([1.0, 0.0, 2.0], [2.0, 0.0, 4.0])
    low, high = ratio_contrast([same, same], (-1, 1)).interval
    assert low == -high and 0.1 < high < 1
    assert math.isnan(ratio_contrast([same, same], (-1, 1), bounded=False).interval[0])
    none = ([0.0] * 3, [0.0] * 3)
    assert math.isnan(ratio_contrast([none], (1,)).rate) and ratio_contrast([none], (1,)).n == 3
    assert math.isnan(ratio_contrast([([], [])], (1,)).rate)
    one = ratio_contrast([([1.0, 0.0], [3.0, 0.0])], (1,))  # draws without a mention are left out
    assert one.rate == pytest.approx(1 / 3) and one.interval[0] < 1 / 3 < one.interval[1]


def test_bad_contrasts_are_refused() -> None:
    ones = ([1.0, 1.0], [1.0, 1.0])
    for ratios, weights, labels, complaint in [
        ([ones], (1, 1), None, "1 ratios, 2 weights"),
        ([ones, ([1.0], [1.0])], (1, 1), None, "the same items"),
        ([ones], (1,), ["a"], "2 items, 1 labels"),
        ([([math.nan, 1.0], [1.0, 1.0])], (1,), None, "finite"),
    ]:
        with pytest.raises(InputError, match=complaint):
            ratio_contrast(ratios, weights, labels)
