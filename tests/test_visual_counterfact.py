"""Visual CounterFact: prompts word for word, the published counts case for case, our strict rule beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmsteer.bench.visual_counterfact import (
    NEAR_COLORS,
    FlipCounts,
    color_question,
    count_flips,
    flip_rates,
    matches,
    normalize,
    size_question,
)
from vlmsteer.errors import InputError

GOLDEN = Path(__file__).resolve().parents[1] / ".." / "shared" / "golden" / "visual_counterfact_flips.json"
CASES = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else []
WORDS = st.sampled_from(["red", "Red.", "the red", "gold", "yellow", "orange", "dark_blue", "gray", "black", ""])


def test_prompts_are_those_of_the_reference() -> None:
    assert color_question("banana") == "Answer with one word. What color is this banana?"
    assert color_question("banana", scope="most") == "Answer with one word. What color are most bananas?"
    assert color_question("grass", scope="most") == "Answer with one word. What color are most grass?"
    assert color_question("cherry", "cherries", "most") == "Answer with one word. What color are most cherries?"
    assert color_question("cherry", "cherries") == "Answer with one word. What color is this cherry?"
    assert size_question("ant", "bus") == "Answer with the correct option. Which is larger here, ant or bus?"
    assert size_question("ant", "bus", "most") == "Answer with the correct option. Which is larger usually, ant or bus?"
    with pytest.raises(InputError, match="did you mean 'most'"):
        color_question("banana", scope="mots")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "attribute", "expected"),
    [
        ("Yellow.", "color", "yellow"),
        (" dark_Blue\n", "color", "dark blue"),
        ("fire_truck is usually larger.", "size", "fire truck"),
        ("Trees are generally larger than ants", "size", "trees"),
        ("The car is larger here.", "size", "the car"),
        ("car is usually larger", "color", "car is usually larger"),
        ("The iris areola", "size", "the iris areola"),
    ],
)
def test_normalize(answer: str, attribute: str, expected: str) -> None:
    assert normalize(answer, attribute) == expected


@given(st.text(), st.sampled_from(["color", "size"]))
def test_normalize_is_stable(answer: str, attribute: str) -> None:
    once = normalize(answer, attribute)
    assert normalize(once, attribute).lower() == once.lower()


def test_loose_matching_is_directed() -> None:
    assert matches("Gold", "yellow", "color") and matches("Grey.", "black", "color")
    assert matches("pink", "purple", "color") and not matches("red", "pink", "color")
    assert matches("orange", "gold", "color") and not matches("gold", "orange", "color")
    assert not matches("gold", "yellow", "size")
    assert "grey" not in NEAR_COLORS["gray"] and "gray" in NEAR_COLORS["grey"]


def test_strict_matching_is_exact_up_to_an_article() -> None:
    assert matches("The car is usually larger.", "car", "size", loose=False)
    assert not matches("The car is usually larger.", "car", "size", loose=True)
    assert matches("An ant", "ant", "size", loose=False) and not matches("antelope", "ant", "size", loose=False)
    assert not matches("gold", "yellow", "color", loose=False)
    assert not matches("It is red", "red", "color", loose=False)
    assert not matches("", "red", "color", loose=False)


@pytest.mark.skipif(not CASES, reason=f"the golden cases are not beside the checkout: {GOLDEN}")
def test_reference_counts_match_the_published_code() -> None:
    for case in CASES:
        counts = count_flips(case["original"], case["edited"], case["target"], case["task"], scorer="reference")
        expected = case["reference"]
        printed = {
            "Flips %: ": counts.flips / counts.n,
            "Eligible Flip to World-Knowledge %: ": counts.flips_to_target / counts.eligible,
            "Eligible Flip %: ": counts.eligible_flips / counts.eligible,
        }
        assert "".join(f"{name} {value}\n" for name, value in printed.items()) == expected["stdout"], case["name"]
        for name in ("eligible", "flips", "eligible_flips", "flips_to_target"):
            assert getattr(counts, name) == expected[name], (case["name"], name)


def test_the_two_scorers_differ_where_documented() -> None:
    original, edited, target = {"a": "Red"}, {"a": "gold"}, {"a": "yellow"}
    assert count_flips(original, edited, target, "color", "reference") == FlipCounts(1, 1, 1, 1, 1)
    assert count_flips(original, edited, target, "color", "strict") == FlipCounts(1, 1, 1, 0, 1)
    unchanged = ({"a": "Red"}, {"a": "the red."}, {"a": "red"})
    assert count_flips(*unchanged, "color", "reference") == FlipCounts(1, 1, 1, 0, 1)
    assert count_flips(*unchanged, "color", "strict") == FlipCounts(0, 0, 0, 0, 1)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS.filter(bool)), max_size=12), st.sampled_from(["reference", "strict"]))
def test_counts_are_nested(rows: list[tuple[str, str, str]], scorer: str) -> None:
    original, edited, target = ({str(i): row[k] for i, row in enumerate(rows)} for k in range(3))
    counts = count_flips(original, edited, target, "color", scorer)  # type: ignore[arg-type]
    assert 0 <= counts.flips_to_target <= counts.eligible_flips <= min(counts.flips, counts.eligible) <= counts.n
    same = count_flips(original, original, target, "color", "strict")
    assert same.flips == same.flips_to_target == 0


def test_repair_and_break_rates_split_the_items() -> None:
    original = {"a": "red", "b": "Red.", "c": "blue", "d": "blue", "e": "blue"}
    edited = {"a": "red", "b": "blue", "c": "red", "d": "green", "e": "a red"}
    target = dict.fromkeys(original, "red")
    repaired, broken = flip_rates(original, edited, target, "color", {item: item for item in original})
    assert (repaired.rate, repaired.n) == (pytest.approx(2 / 3), 3)
    assert (broken.rate, broken.n) == (0.5, 2)
    counts = count_flips(original, edited, target, "color")
    assert repaired.rate == counts.flips_to_target / counts.eligible
    nothing_right = flip_rates({"a": "x"}, {"a": "red"}, {"a": "red"}, "color")
    assert nothing_right[0].rate == 1.0 and nothing_right[1].as_dict()["rate"] is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="'b' among them"):
        count_flips({"a": "x"}, {"a": "x", "b": "y"}, {"a": "x"}, "color")
    with pytest.raises(InputError, match="did you mean 'strict'"):
        count_flips({"a": "x"}, {"a": "x"}, {"a": "x"}, "color", "stric")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'color'"):
        normalize("red", "colour")
    with pytest.raises(InputError, match="'a' among them"):
        flip_rates({"a": "x"}, {"a": "x"}, {"a": "x"}, "color", {})
