"""MME: golden cases through the evaluation tool's own files, an independent oracle, both layouts, malformed files."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer
from vlmsteer.bench.files import Files
from vlmsteer.bench.mme import BENCHMARK, COGNITION, HALLUCINATION, PERCEPTION, TASKS
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared"
GOLDEN = SHARED / "golden" / "mme.json"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside the project")
QUESTION = "Is there a dog in this image? Please answer yes or no."
PERFECT = [["1.jpg", QUESTION, "Yes", "Yes"], ["1.jpg", QUESTION, "No", "No"]]
Tasks = dict[str, list[list[str]]]


def written(folder: Path, tasks: Tasks) -> Files:
    """The tool's files: image, question, answer and response, separated by tabs."""
    for task, rows in tasks.items():
        (folder / f"{task}.txt").write_text("".join("\t".join(one) + "\n" for one in rows))
        (folder / task).mkdir(exist_ok=True)
        for one in rows:
            path = folder / task / one[0]
            if not path.exists():
                Image.new("RGB", (2, 2)).save(path)
    return Files(folder)


def scored(folder: Path, tasks: Tasks, scorer: str, subset: str = "all") -> dict[str, float]:
    items = BENCHMARK.items(written(folder, tasks), subset=subset)
    said = [one[3] for task in TASKS if task in tasks for one in tasks[task]]
    return BENCHMARK.scorer(scorer).score(items, [Answer(text) for text in said])


def golden() -> list[dict[str, Any]]:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []


@needs_golden
@pytest.mark.parametrize("case", golden(), ids=lambda case: case["name"])
def test_golden(tmp_path: Path, case: dict[str, Any]) -> None:
    tasks = {task: case["tasks"].get(task, PERFECT) for task in TASKS}
    expected = case["eval_tool"]
    if "raises" in expected:
        with pytest.raises(InputError, match="two an image"):
            scored(tmp_path, tasks, "official")
        return
    found = scored(tmp_path, tasks, "official")
    for task in TASKS:
        assert found[task] == pytest.approx(expected[task]), task
    assert found["perception"] == pytest.approx(expected["Perception_total"])
    assert found["cognition"] == pytest.approx(expected["Cognition_total"])
    assert found["hallucination"] == pytest.approx(expected["hallucination_subset(existence+count+position+color)"])
    items = BENCHMARK.items(Files(tmp_path), subset="all")
    said = iter([one[3] for task in TASKS for one in tasks[task]])
    kept = [(item, Answer(text)) for item, text in zip(items, said, strict=True) if item.gold["task"] in case["tasks"]]
    lmms = BENCHMARK.scorer("lmms").score([item for item, _ in kept], [answer for _, answer in kept])
    assert lmms["perception"] == pytest.approx(case["lmms_eval_perception_sum"])


def core() -> list[dict[str, Any]]:
    path = SHARED / "golden" / "core.json"
    return [one for one in json.loads(path.read_text()) if one["scorer"] == "mme"] if path.exists() else []


@needs_golden
@pytest.mark.parametrize("case", core(), ids=lambda case: case["why"])
def test_core_golden(tmp_path: Path, case: dict[str, Any]) -> None:
    tasks = {task: case["input"].get(task, PERFECT) for task in TASKS}
    found = scored(tmp_path, tasks, "official")
    found["hallucination_subset(existence+count+position+color)"] = found["hallucination"]
    assert {name: found[name] for name in case["expected"]} == pytest.approx(case["expected"])


SAID = {  # an answer -> what the tool, lmms-eval and a strict reader take it for
    "Yes": ("yes", "yes", "yes"), "no": ("no", "no", "no"), "Know what, yes": ("no", "no", "yes"),
    "Nothing like that": ("no", "no", None), "Sure, yes": (None, None, "yes"), "": (None, None, None),
    "y": (None, "yes", None), " N.": (None, "no", None), "     no": (None, "no", "no"), ".Yes.": ("yes", "yes", "yes"),
    "...Yes": ("other", "yes", "yes"),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_like_an_oracle(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    tasks: Tasks = {}
    for task in TASKS:
        rows = []
        for image in range(chance.randint(1, 4)):
            labels = chance.sample(["Yes", "No"], 2)
            rows += [[f"{image}.png", QUESTION, label, chance.choice(list(SAID))] for label in labels]
        tasks[task] = rows
    for reader, name in enumerate(("official", "lmms", "strict")):
        found, scores = scored(tmp_path, tasks, name), {}
        for task, rows in tasks.items():
            right = [SAID[one[3]][reader] == one[2].lower() for one in rows]
            both = [right[i] and right[i + 1] for i in range(0, len(right), 2)]
            scores[task] = 100 * sum(right) / len(right) + 100 * sum(both) / len(both)
        assert {task: found[task] for task in TASKS} == pytest.approx(scores)
        for total, parts in (("hallucination", HALLUCINATION), ("perception", PERCEPTION), ("cognition", COGNITION)):
            assert found[total] == pytest.approx(sum(scores[task] for task in parts))
        everything = [SAID[one[3]][reader] for rows in tasks.values() for one in rows]
        assert found["yes"] == pytest.approx(everything.count("yes") / len(everything))
        unread = [one for one in everything if one not in ("yes", "no")]
        assert found["other"] == pytest.approx(len(unread) / len(everything))


def test_always_yes_is_50_and_no_answer_at_all_is_0(tmp_path: Path) -> None:
    rows = [["1.jpg", QUESTION, "Yes", ""], ["1.jpg", QUESTION, "No", ""]]
    items = BENCHMARK.items(written(tmp_path, dict.fromkeys(HALLUCINATION, rows)))
    assert len(items) == 8
    for scorer in BENCHMARK.scorers:
        assert scorer.score(items, [Answer("Yes")] * 8)["hallucination"] == 200
        assert scorer.score(items, [Answer("perhaps")] * 8)["hallucination"] == 0
        assert list(scorer.wanted)[0] == "hallucination"
        assert math.isnan(scorer.score(items, [Answer("Yes")] * 8)["cognition"])


def test_totals_of_some_tasks(tmp_path: Path) -> None:
    items = BENCHMARK.items(written(tmp_path, dict.fromkeys(HALLUCINATION, PERFECT)))
    answers = [Answer(item.gold["label"]) for item in items]
    official, lmms = (BENCHMARK.scorer(name).score(items, answers) for name in ("official", "lmms"))
    assert official["hallucination"] == lmms["hallucination"] == lmms["perception"] == 800
    assert math.isnan(official["perception"])


def test_a_pair_with_a_missing_answer_is_left_out(tmp_path: Path) -> None:
    rows = [[f"{image}.jpg", QUESTION, label, ""] for image in range(2) for label in ("Yes", "No")]
    items = BENCHMARK.items(written(tmp_path, dict.fromkeys(HALLUCINATION, rows)))
    answers = [Answer("yes" if item.gold["label"] == "no" else "no") for item in items]
    answers[:2] = [Answer("yes"), Answer("no")]
    found = BENCHMARK.scorer("official").tally(items[:3], answers[:3])
    assert found.groups == ["existence/0.jpg"] and found.counts["existence both"] == [1.0]


def released(folder: Path, task: str, split: bool) -> None:
    images, texts = (folder / task / "images", folder / task / "questions_answers_YN") if split else [folder / task] * 2
    for place in (images, texts):
        place.mkdir(parents=True, exist_ok=True)
    for name, suffix in (("0001", "jpg"), ("0002", "png")):
        Image.new("RGB", (2, 2)).save(images / f"{name}.{suffix}")
        (texts / f"{name}.txt").write_text(f"{QUESTION}\tYes\nIs there a cat? Please answer yes or no.\tNo\n\n")


def test_released_folders_give_the_same_items_as_the_tools_files(tmp_path: Path) -> None:
    for task in PERCEPTION:
        released(tmp_path / "released", task, split=task in ("artwork", "celebrity", "landmark", "posters", "scene"))
    items = BENCHMARK.items(Files(tmp_path / "released"), subset="perception")
    assert [item.id for item in items[:4]] == [
        f"existence/000{name}/{k}" for name in ("1.jpg", "2.png") for k in (0, 1)
    ]
    assert all(item.image and Path(item.image).is_file() for item in items)
    assert len({item.image for item in items}) == len({item.group for item in items}) == 20
    tool = tmp_path / "tool"
    tool.mkdir()
    for task in PERCEPTION:
        lines = [
            f"{Path(str(item.image)).name}\t{item.prompt}\t{item.gold['label'].title()}\n"
            for item in items
            if item.gold["task"] == task
        ]
        (tool / f"{task}.txt").write_text("".join(lines))
    assert BENCHMARK.items(Files(tool, [tmp_path / "released"]), subset="perception") == items


def test_released_folders_of_either_shape(tmp_path: Path) -> None:
    for number, task in enumerate(HALLUCINATION):
        released(tmp_path, task, split=number % 2 == 0)
    items = BENCHMARK.items(Files(tmp_path))
    assert len(items) == 16 and len({item.image for item in items}) == 8


def test_prompts(tmp_path: Path) -> None:
    files = written(tmp_path, dict.fromkeys(HALLUCINATION, PERFECT))
    assert BENCHMARK.items(files)[0].prompt == QUESTION
    wanted = "Is there a dog in this image?\nAnswer the question using a single word or phrase."
    assert BENCHMARK.items(files, prompt="lmms")[0].prompt == wanted
    for options in ({"prompt": "lmm"}, {"subset": "al"}):
        with pytest.raises(InputError, match="did you mean"):
            BENCHMARK.items(files, **options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["1.jpg", QUESTION, "Yes", ""]], "1 questions"),
        ([["1.jpg", QUESTION, "Yes", ""], ["2.jpg", QUESTION, "No", ""]], "1 questions in 'existence'"),
        (PERFECT * 2, "4 questions in 'existence'"),
        ([["1.jpg", QUESTION, "Yes", ""], ["1.jpg", QUESTION, "Maybe", ""]], "Line 2 .*'Maybe'"),
        ([["1.jpg", "Yes"], ["1.jpg", "No"]], "Line 1 .* 2 columns"),
    ],
)
def test_malformed_files(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    tasks = dict.fromkeys(HALLUCINATION, PERFECT) | {"existence": rows}
    with pytest.raises(InputError, match=message):
        BENCHMARK.items(written(tmp_path, tasks))


def test_missing_tasks_and_images(tmp_path: Path) -> None:
    files = written(tmp_path, dict.fromkeys(HALLUCINATION, PERFECT))
    with pytest.raises(InputError, match="neither posters.txt .* nor a folder posters"):
        BENCHMARK.items(files, subset="all")
    (tmp_path / "count" / "1.jpg").unlink()
    with pytest.raises(InputError, match="1 image is missing .*1.jpg"):
        BENCHMARK.items(Files(tmp_path))
