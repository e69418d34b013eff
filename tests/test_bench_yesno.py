"""Yes/no parsers: the recorded outputs of the published scripts, and further answers worked out from their rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmsteer.bench import yesno
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"
PARSERS = {
    "aoidragon_llava": yesno.aoidragon,
    "opera_vista": yesno.opera,
    "vcd_if_label_yes": lambda text: yesno.vcd(text, "yes"),
    "vcd_if_label_no": lambda text: yesno.vcd(text, "no"),
    "lmms_eval_exact": yesno.lmms,
    "lmms_eval_correct_if_label_yes": lambda text: yesno.lmms(text) == "yes",
    "lmms_eval_correct_if_label_no": lambda text: yesno.lmms(text) == "no",
    "vlmevalkit": yesno.vlmevalkit,
    "mme_tool": yesno.mme_tool,
    "mme_lmms_eval": yesno.mme_lmms,
    "naturalbench_yes_no": yesno.naturalbench,
    "vlind_true_false": yesno.vlind,
    "mats": yesno.mats,
}


def golden(name: str) -> list[dict]:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"the recorded scorer cases ({name}) are not beside this checkout")
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_recorded_answer_is_read_as_its_script_read_it():
    cases = golden("yesno_parsing.json")
    assert all(set(case) == {"answer", *PARSERS} for case in cases)
    wrong = [
        (parser, case["answer"])
        for case in cases
        for parser in PARSERS
        if PARSERS[parser](case["answer"]) != case[parser]
    ]
    assert wrong == []


def test_the_core_cases():
    cases = [case for case in golden("core.json") if case["scorer"].startswith("yes/no:")]
    assert len(cases) >= 15
    for case in cases:
        assert PARSERS[case["scorer"].removeprefix("yes/no:")](case["input"]) == case["expected"], case


@pytest.mark.parametrize(
    ("answer", "aoidragon", "opera", "repope", "vlmevalkit", "mme_tool", "strict"),
    [
        ("NOT", "yes", "yes", "no", "Unknown", "no", None),
        ("no,", "no", "no", "no", "No", "no", "no"),
        ("no;", "yes", "yes", "no", "No", "no", "no"),
        ("No\tdog", "yes", "yes", "no", "No", "no", "no"),
        ("Yes, not only one", "no", "no", "yes", "Yes", "yes", "yes"),
        ("No. Yes.", "no", "no", "yes", "Unknown", "no", "no"),
        ("There are. No more", "yes", "no", "no", "No", "other", "no"),
        (".no", "yes", "no", "no", "No", "no", "no"),
        ("It can't be seen", "yes", "no", None, "Unknown", "other", None),
        ("don't.", "yes", "no", None, "Unknown", "other", None),
        ("don't!", "yes", "yes", None, "Unknown", "other", None),
        ("  yes", "yes", "yes", "yes", "Yes", "other", "yes"),
        (" yes", "yes", "yes", "yes", "Yes", "yes", "yes"),
        ("yes/no", "yes", "yes", "yes", "Unknown", "yes", "yes"),
        ("yes-man", "yes", "yes", "yes", "Yes", "yes", None),
        ("yesterday", "yes", "yes", "yes", "Unknown", "yes", None),
        ("no-one", "yes", "yes", "no", "No", "no", None),
        ("eyes", "yes", "yes", "yes", "Unknown", "yes", None),
        ("1,000 dogs: no(ne)", "yes", "yes", "no", "Unknown", "other", "no"),
        ("_No_", "yes", "yes", "no", "No", "no", "no"),
    ],
)  # fmt: skip
def test_answers_on_which_the_scripts_part(answer, aoidragon, opera, repope, vlmevalkit, mme_tool, strict):
    assert yesno.aoidragon(answer) == aoidragon
    assert yesno.opera(answer) == opera
    assert yesno.repope(answer) == repope
    assert yesno.vlmevalkit(answer) == vlmevalkit
    assert yesno.mme_tool(answer) == mme_tool
    assert yesno.strict(answer) == strict


def test_vlmevalkit_removes_at_most_thirty_two_periods():
    assert yesno.vlmevalkit("so. " * 31 + "no.") == "No"
    assert yesno.vlmevalkit("so. " * 32 + "no.") == "Unknown"


def test_vcd_reads_the_label_first_and_takes_any_case_of_it():
    assert yesno.vcd("Definitely", "yes") == "no"
    assert yesno.vcd("Definitely", "no") == "yes"
    assert yesno.vcd("It is snowing", " No ") == "no"
    with pytest.raises(InputError, match="yes or no, not 'maybe'"):
        yesno.vcd("Yes", "maybe")


def test_mme_of_lmms_eval_takes_single_letters_and_forgets_periods():
    given = ["N", "y.", " . no", "N/A", "", ".", "a yes"]
    assert [yesno.mme_lmms(text) for text in given] == ["no", "yes", "no", "other", "other", "other", "other"]
    assert [yesno.mme_tool(text) for text in given] == ["other", "other", "other", "other", "other", "other", "other"]


@pytest.mark.parametrize(
    ("answer", "found"), [("A", 1), ("It is a B", 1), ("B) or A", 0), ("banana", -1), ("Option: b", 0), ("", -1)]
)
def test_naturalbench_letters(answer, found):
    assert yesno.naturalbench(answer, "multiple_choice") == found


def test_naturalbench_knows_two_kinds():
    with pytest.raises(InputError, match="did you mean 'yes_no'"):
        yesno.naturalbench("yes", "yesno")


@pytest.mark.parametrize(
    ("answer", "found"),
    [("The statement\nis FALSE, not true", "False"), ("True/False", "NA"), ("T.r.u.e", "True"), ("untrue", "NA")],
)
def test_vlind(answer, found):
    assert yesno.vlind(answer) == found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("0.51", True), ("0.5", False), (" 1e3 ", True), ("nan", False), ("not wrong", True), ("It isnt true", False),
        ("This correctly shows it", True), ("definitely not", True), ("absolutely not true", False), ("n", False),
        ("Nope", False), ("left of", None), ("", None), ("does not apply", None), ("that's wrong", False),
    ],
)  # fmt: skip
def test_mats(answer, found):
    assert yesno.mats(answer) is found


@given(st.text(alphabet="yesnoYESNO.,!? '\n-tA1", max_size=20))
def test_no_answer_breaks_a_parser(text):
    for parser in (*PARSERS.values(), yesno.repope, yesno.strict):
        parser(text)
    assert yesno.strict(text) in ("yes", "no", None)
    assert yesno.strict(text) == yesno.strict(text.swapcase())
