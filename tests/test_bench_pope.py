"""POPE: its files and their generations, RePOPE's labels, and eight scorers against the recorded reference runs."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from vlmsteer.bench import pope, yesno
from vlmsteer.bench.answer_files import join, read
from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.intervals import metric_intervals
from vlmsteer.bench.pope import BENCHMARK
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared"
REFERENCES = {
    "aoidragon": "aoidragon_llava", "llava": "aoidragon_llava", "opera": "opera_vista", "vcd": "vcd",
    "lmms": "lmms_eval", "vlmevalkit": "vlmevalkit",
}  # fmt: skip
NAMES = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1", "yes_ratio": "yes_ratio"}
KIT = {"acc": "accuracy", "precision": "precision", "recall": "recall", "Overall": "f1"}


def golden(name: str):
    path = SHARED / "golden" / name
    if not path.is_file():
        pytest.skip(f"the recorded scorer cases ({name}) are not beside this checkout")
    return json.loads(path.read_text(encoding="utf-8"))


def asked(labels, split="random") -> list[Item]:
    return [
        Item(f"{split}/{n}", None, "", f"{n // 2}.jpg", {"label": label, "split": split})
        for n, label in enumerate(labels)
    ]


def scored(name: str, answers, labels) -> dict[str, float]:
    return BENCHMARK.scorer(name).score(asked(labels), [Answer(text) for text in answers])


@pytest.mark.parametrize("name", REFERENCES)
def test_recorded_sets(name):
    for case in golden("pope_metrics.json"):
        reference = case[REFERENCES[name]]
        found = scored(name, case["answers"], case["labels"])
        for theirs, ours in (KIT if name == "vlmevalkit" else NAMES).items():
            # where the original divides by zero, precision, recall and F1 that cannot be computed are 0
            if theirs in reference:
                assert found[ours] == reference[theirs], (case["name"], theirs)
        if "raises" in reference:
            cells = BENCHMARK.scorer(name).tally(asked(case["labels"]), [Answer(one) for one in case["answers"]]).sums()
            for cell in ("TP", "FP", "TN", "FN"):
                assert cells[f"random.{cell.lower()}"] == reference[cell]
            assert found["f1"] == 0


def test_core_sets():
    cases = [case for case in golden("core.json") if case["scorer"] == "pope-set:aoidragon"]
    assert cases
    for case in cases:
        found = scored("aoidragon", case["input"]["answers"], case["input"]["labels"])
        for name in NAMES:
            if name in case["expected"]:
                assert found[name] == case["expected"][name], case["why"]


@pytest.mark.parametrize("split", ["random", "popular"])
def test_released_answers_of_llava(split):
    folder = SHARED / "data" / "pope"
    if not folder.is_dir():
        pytest.skip("POPE's released files are not beside this checkout")
    recorded = golden("real_outputs_metrics.json")["pope"]["results"][f"{split}-greedy"]
    items = BENCHMARK.load(Files(folder), split=split, prompt="cd_rethink")
    saved = read(folder / f"llava-1.5-7b-{split}-greedy.jsonl")
    joined = join(items, saved, "released")
    assert joined.items == items and len(items) == recorded["questions_identical_to_AoiDragon"]
    for ours, theirs in {"aoidragon": "aoidragon", "opera": "vista", "vcd": "vcd", "lmms": "lmms_eval"}.items():
        found = BENCHMARK.scorer(ours).score(joined.items, joined.answers)
        assert {name: found[name] for name in NAMES} == {name: recorded[theirs][name] for name in NAMES}
    strict = BENCHMARK.scorer("strict")
    (f1,) = [
        rate for name, rate in metric_intervals(strict.tally(items, joined.answers), strict).items() if name == "f1"
    ]
    assert f1.interval[0] < recorded["aoidragon"]["f1"] < f1.interval[1]


def test_a_capital_no_is_a_positive_label_to_the_scripts_that_compare_it_exactly():
    for name in ("aoidragon", "llava", "opera"):
        assert scored(name, ["No", "Yes"], ["No", "Yes"])["accuracy"] == 0.5
    for name in ("vcd", "lmms", "vlmevalkit", "strict"):
        found = scored(name, ["no", "yes"], ["No", "Yes"])
        assert found["accuracy"] == (100 if name == "vlmevalkit" else 1)


def script(read_one, answers, labels) -> dict[str, float]:
    """The arithmetic that AoiDragon, OPERA and VCD share, on lists, with our zeros."""
    pairs = [(read_one(text, label), label) for text, label in zip(answers, labels, strict=True)]
    tp, fp, tn, fn = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")))
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    n = tp + fp + tn + fn
    return {
        "accuracy": (tp + tn) / n, "precision": precision, "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0, "yes_ratio": (tp + fp) / n,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parser"),
    [("aoidragon", lambda t, _: yesno.aoidragon(t)), ("opera", lambda t, _: yesno.opera(t)), ("vcd", yesno.vcd),
     ("repope", lambda t, _: yesno.repope(t))],
)  # fmt: skip
def test_arithmetic_on_random_sets(name, parser):
    draw = random.Random(3)
    said = ["Yes", "no", "No, it isn't", "There isn't one", "Unknown", "yes and no", "nothing", "", "eyes", "Yes. No."]
    for _ in range(40):
        n = draw.randint(1, 30)
        answers, labels = draw.choices(said[:-3] + ["No"], k=n), draw.choices(["yes", "no"], k=n)
        if all(parser(text, label) is None for text, label in zip(answers, labels, strict=True)):
            continue
        found = scored(name, answers, labels)
        assert {one: found[one] for one in NAMES} == pytest.approx(script(parser, answers, labels), abs=1e-12)


def test_all_no_is_no_crash():
    for scorer in BENCHMARK.scorers:
        found = scored(scorer.name, ["No"] * 4, ["yes", "no"] * 2)
        assert (found["precision"], found["recall"], found["f1"]) == (0, 0, 0)
        assert found["accuracy"] == (50 if "accuracy" in scorer.percent else 0.5)


def test_an_unread_answer_is_lost_in_each_script_its_own_way():
    answers, labels = ["Yes", "perhaps", "No", "perhaps"], ["yes", "yes", "no", "no"]
    assert scored("repope", answers, labels)["accuracy"] == 1 and scored("repope", answers, labels)["unparsed"] == 0.5
    assert scored("lmms", answers, labels)["recall"] == 1 and scored("lmms", answers, labels)["accuracy"] == 0.5
    assert scored("vlmevalkit", answers, labels)["recall"] == 50
    strict = scored("strict", answers, labels)
    assert (strict["accuracy"], strict["recall"], strict["unparsed"], strict["yes_ratio"]) == (0.5, 0.5, 0.5, 0.25)


def test_the_phd_index_sees_through_always_yes():
    found = scored("strict", ["Yes"] * 10, ["yes"] * 5 + ["no"] * 5)
    assert found["f1"] > 0.6 and found["phd_index"] == 0 and found["balanced_accuracy"] == 0.5
    mixed = scored("strict", ["Yes", "No", "No", "No"], ["yes", "yes", "no", "no"])
    assert mixed["phd_index"] == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert np.isnan(scored("strict", ["Yes"], ["yes"])["phd_index"])


def test_llavas_number_is_the_mean_over_splits():
    items = asked(["yes", "no"], "random") + asked(["yes", "yes", "no"], "popular")
    answers = [Answer(text) for text in ("Yes", "No", "Yes", "No", "Yes")]
    found = BENCHMARK.scorer("llava").score(items, answers)
    assert found["mean_f1"] == pytest.approx((1 + 0.5) / 2)
    assert found["f1"] == pytest.approx(2 / 3)


def test_scorers_are_declared_fully():
    for scorer in BENCHMARK.scorers:
        found = scored(scorer.name, ["Yes", "No"], ["yes", "no"])
        assert set(found) == set(scorer.wanted) and scorer.percent <= set(found)
        tally = scorer.tally(asked(["yes", "no"]), [Answer("Yes"), Answer("No")])
        assert len(tally.groups) == 2 and all(len(values) == 2 for values in tally.counts.values())
    assert BENCHMARK.scorer().name == "aoidragon"


ROWS = [
    {
        "question_id": 1,
        "image": "COCO_val2014_000000000007.jpg",
        "text": "Is there a cat in the image?",
        "label": "yes",
    },
    {
        "question_id": 2,
        "image": "COCO_val2014_000000000007.jpg",
        "text": "Is there an axe in the imange?",
        "label": "no",
    },
    {"question_id": 3, "image": "COCO_val2014_000000000009.jpg", "text": "Is there a cat in the image?", "label": "no"},
]


def write(path: Path, rows, lines=True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("folder", ["", "coco"])
def test_lines_and_lists_in_either_folder(tmp_path, lines, folder):
    write(tmp_path / folder / "coco_pope_random.json", ROWS, lines)
    for row in ROWS:
        (tmp_path / row["image"]).touch()
    items = BENCHMARK.items(Files(tmp_path))
    assert [item.id for item in items] == ["coco/random/1", "coco/random/2", "coco/random/3"]
    assert [item.gold["label"] for item in items] == ["yes", "no", "no"]
    assert [item.group for item in items] == [row["image"] for row in ROWS]
    assert items[0].image == str(tmp_path / ROWS[0]["image"]) and items[0].prompt == ROWS[0]["text"]


def test_prompts_of_the_protocols(tmp_path):
    write(tmp_path / "coco_pope_random.json", ROWS)
    said = {name: pope.load(Files(tmp_path), prompt=name)[0].prompt for name in pope.PROMPTS}
    question = ROWS[0]["text"]
    assert said["llava"] == question + "\nAnswer the question using a single word or phrase."
    assert said["cd_rethink"] == question + " Answer the question using a single word or phrase."
    assert said["vcd"] == question + " Please answer this question with one word."
    assert said["question"] == question


def test_missing_images_are_told_at_once(tmp_path):
    write(tmp_path / "coco_pope_random.json", ROWS)
    with pytest.raises(InputError, match="2 images are missing"):
        BENCHMARK.items(Files(tmp_path))


def test_all_splits_and_other_datasets(tmp_path):
    for split in pope.SPLITS:
        write(tmp_path / f"aokvqa_pope_seem_{split}.json", ROWS, lines=False)
    items = pope.load(Files(tmp_path), split="all", dataset="aokvqa")
    assert len(items) == 9 and len({item.id for item in items}) == 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "No"}, "Row 3 .* has the label 'No'"), ({"label": None}, "Row 3 .*None"),
        ({"question_id": 1}, "Row 3 .* question_id 1, which an earlier row has"), ({"image": 7}, "Row 3 .* 7"),
        ({"text": None}, "Row 3 .* None in 'text'"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named(tmp_path, change, says):
    write(tmp_path / "coco_pope_random.json", [*ROWS[:2], ROWS[2] | change])
    with pytest.raises(InputError, match=says):
        pope.load(Files(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"split": "popular "}, "did you mean 'popular'"), ({"dataset": "vqa"}, "no dataset 'vqa'"),
     ({"labels": "re"}, "no labels 're'"), ({"prompt": "x"}, "no prompt 'x'"),
     ({"labels": "repope", "dataset": "gqa"}, "COCO only"),
     ({"split": "adversarial"}, "no coco_pope_adversarial.json")],
)  # fmt: skip
def test_unknown_options(tmp_path, options, says):
    write(tmp_path / "coco_pope_random.json", ROWS)
    with pytest.raises(InputError, match=says):
        pope.load(Files(tmp_path), **options)


def test_a_known_file_under_another_splits_name_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "coco_pope_random.json", ROWS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(pope.KNOWN, digest[:12], "popular: some generation")
    with pytest.raises(InputError, match="should be the random split, but by its content it is popular"):
        pope.load(Files(tmp_path))
    assert {item.gold["split"] for item in pope.load(Files(tmp_path), questions=path.name)} == {"popular"}


def test_the_generations_are_recognized():
    folder = SHARED / "data" / "pope"
    if not folder.is_dir():
        pytest.skip("POPE's released files are not beside this checkout")
    said = {
        name: pope.load(Files(folder), questions=name)[0].gold["file"]
        for name in ("coco_pope_random.json", "coco_pope_popular.json", "coco_pope_random_2910.json")
    }
    assert "3000 rows, AoiDragon" in said["coco_pope_random.json"]
    assert "3000 rows, AoiDragon" in said["coco_pope_popular.json"]
    assert "2910 rows, the older generation of OPERA" in said["coco_pope_random_2910.json"]


def test_repope_labels_are_joined_and_checked(tmp_path):
    write(tmp_path / "coco_pope_random.json", ROWS)
    write(tmp_path / "coco_repope_random.json", [
        ROWS[0] | {"label": "no"}, ROWS[1] | {"text": "Is there an axe in the image?"},
    ])  # fmt: skip
    items = pope.load(Files(tmp_path), labels="repope")
    assert [item.gold["label"] for item in items] == ["no", "no", None]
    found = BENCHMARK.scorer("strict").tally(items, [Answer("No"), Answer("No"), Answer("Yes")])
    assert len(found.groups) == 2 and found.sums()["random.tn"] == 2
    write(tmp_path / "coco_repope_random.json", [ROWS[0] | {"image": "other.jpg"}])
    with pytest.raises(InputError, match="question_id 1 is .* about other.jpg there"):
        pope.load(Files(tmp_path), labels="repope")
