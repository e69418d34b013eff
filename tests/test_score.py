"""Saved answers of other scripts: their forms, which question each belongs to, and `vlmsteer score` on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vlmsteer.bench.answer_files import join, read
from vlmsteer.bench.benchmark import Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.pope import BENCHMARK, load
from vlmsteer.errors import InputError
from vlmsteer.score_cli import score

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data" / "pope"
ASKED = [
    {
        "question_id": 10 + n, "image": f"COCO_val2014_{n // 2:012}.jpg",
        "text": f"Is there a {what} in the image?", "label": ("yes", "no")[n % 2],
    }
    for n, what in enumerate(["cat", "dog", "cat", "car", "tree", "axe"])
]  # fmt: skip
SAID = ["Yes", "No", "Yes, a cat.", "There isn't a car", "yes", "Unknown"]
QUESTIONS = [row["text"] for row in ASKED]
SUFFIX = "\nAnswer the question using a single word or phrase."
FORMS = {
    "pope": lambda row, said: {"question": row["text"], "answer": said},
    "pope with images": lambda row, said: {"question": row["text"], "answer": said, "image": row["image"]},
    "llava": lambda row, said: {"question_id": row["question_id"], "prompt": row["text"] + SUFFIX, "text": said},
    "cd_rethink": lambda row, said: {
        "question_id": row["question_id"], "prompt": row["text"], "text": said, "model_id": "m", "metadata": {},
    },
    "vcd": lambda row, said: {"question_id": row["question_id"], "text": said, "image": row["image"]},
    "ids as text": lambda row, said: {"question_id": str(row["question_id"]), "text": said},
    "vista": lambda row, said: {
        "query": row["text"], "label": int(row["label"] == "yes"), "ans": said, "question": f"USER: {row['text']}",
    },
    "amber": lambda row, said: {"id": row["question_id"], "response": said},
    "question rows": lambda row, said: row | {"response": said},
}  # fmt: skip
POSITIONAL = ("pope", "vista")


def write(path: Path, rows, lines=True) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def items(tmp_path) -> list[Item]:
    write(tmp_path / "coco_pope_random.json", ASKED)
    return load(Files(tmp_path), prompt="llava")


def saved(tmp_path, form, order: Sequence[int] = range(6), change=None):
    rows = [FORMS[form](ASKED[n], SAID[n]) for n in order]
    for n, values in (change or {}).items():
        rows[n] = rows[n] | values
    return read(write(tmp_path / "answers.jsonl", rows))


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_and_joined(tmp_path, items, form, lines):
    path = write(tmp_path / "a.json", [FORMS[form](row, said) for row, said in zip(ASKED, SAID, strict=True)], lines)
    joined = join(items, read(path), path.name)
    assert joined.items == items
    assert [answer.text for answer in joined.answers] == SAID


@pytest.mark.parametrize("form", [form for form in FORMS if form not in POSITIONAL])
def test_order_does_not_matter_where_there_are_ids_or_images(tmp_path, items, form):
    joined = join(items, saved(tmp_path, form, order=[4, 0, 5, 2, 1, 3]), "a")
    assert [answer.text for answer in joined.answers] == SAID


@pytest.mark.parametrize("form", POSITIONAL)
def test_position_counts_only_if_every_question_agrees(tmp_path, items, form):
    with pytest.raises(InputError, match="2 of 6 answers .* are not to these questions: row 1 answers .*dog"):
        join(items, saved(tmp_path, form, order=[1, 0, 2, 3, 4, 5]), "a")
    with pytest.raises(InputError, match="neither ids nor images, and 5 answers for 6 questions"):
        join(items, saved(tmp_path, form, order=range(5)), "a")
    with pytest.raises(InputError, match="neither ids nor images"):
        join(items, saved(tmp_path, form, order=range(5)), "a", partial=True)


@pytest.mark.parametrize("form", ["llava", "vcd", "amber", "pope with images"])
def test_missing_surplus_and_double_answers(tmp_path, items, form):
    with pytest.raises(InputError, match="1 of 6 questions .* have no answer in 'a'.*--partial"):
        join(items, saved(tmp_path, form, order=range(5)), "a")
    assert len(join(items, saved(tmp_path, form, order=[5, 1]), "a", partial=True).items) == 2
    with pytest.raises(InputError, match="Rows 1 and 7 of 'a' both answer the question of"):
        join(items, saved(tmp_path, form, order=[*range(6), 0]), "a")
    with pytest.raises(InputError, match="1 answers of 'a' belong to no question \\(row 6"):
        join(items[:5], saved(tmp_path, form), "a")


@pytest.mark.parametrize(
    ("form", "change", "says"),
    [
        ("llava", {"prompt": "Is there a fork in the image?"}, "row 3 answers 'Is there a fork"),
        ("vcd", {"image": "COCO_val2014_000000000077.jpg"}, "row 3 is about COCO_val2014_000000000077.jpg"),
        ("vista", {"label": 0}, "row 3 has the label 0"),
        ("question rows", {"text": "Is there a fork in the image?"}, "row 3 answers"),
    ],
)
def test_what_the_file_says_is_checked(tmp_path, items, form, change, says):
    with pytest.raises(InputError, match=f"1 of 6 answers .* are not to these questions: {says}"):
        join(items, saved(tmp_path, form, change={2: change}), "a")


def test_the_old_typo_is_the_same_question(tmp_path, items):
    older = {5: {"prompt": "Is there a axe in the imange?"}}
    assert join(items, saved(tmp_path, "llava", change=older), "a").how == "by id, checked by question"


def test_labels_are_not_compared_with_repopes(tmp_path):
    write(tmp_path / "coco_pope_random.json", ASKED)
    write(tmp_path / "coco_repope_random.json", [ASKED[0] | {"label": "no"}, *ASKED[2:]])
    items = load(Files(tmp_path), labels="repope")
    joined = join(items, saved(tmp_path, "vista"), "a")
    assert len(BENCHMARK.scorer().tally(joined.items, joined.answers).groups) == 5


def test_captions_are_found_by_their_image(tmp_path):
    items = [
        Item(f"{n}", f"/images/COCO_val2014_{n:012}.jpg", "Describe.", f"{n}", {"image_id": n}) for n in (9, 2239, 74)
    ]
    opera = [{"image_id": n, "caption": f"caption {n}"} for n in (2239, 9, 74)]
    eos = [{"image_id": f"{n:012}.jpg", "text": f"caption {n}"} for n in (74, 2239, 9)]
    for rows in (opera, eos):
        joined = join(items, read(write(tmp_path / "c.jsonl", rows)), "c")
        assert [answer.text for answer in joined.answers] == ["caption 9", "caption 2239", "caption 74"]
        assert joined.how == "by image"


def test_one_split_at_a_time(tmp_path):
    for split in ("random", "popular", "adversarial"):
        write(tmp_path / f"coco_pope_{split}.json", ASKED)
    with pytest.raises(InputError, match="id 10 stands for more than one question"):
        join(load(Files(tmp_path), split="all"), saved(tmp_path, "vcd"), "a")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "holds no answers"), (ASKED, "holds questions with labels, not answers"),
        ([{"a": 1}], "rows with a. Answer files have"), ([{"question_id": 1, "text": None}], "Row 1 .* None in 'text'"),
        ([{"question_id": 1, "text": "a"}, {"text": "b"}], "Row 2 .* no 'question_id'"),
        ([{"id": 1, "response": ["Yes"]}], "Row 1 .*should be text"),
    ],
)  # fmt: skip
def test_files_that_are_no_answers(tmp_path, rows, says):
    with pytest.raises(InputError, match=says):
        read(write(tmp_path / "a.jsonl", rows))


def test_the_two_generations_are_told_apart():
    if not SHARED.is_dir():
        pytest.skip("POPE's released files are not beside this checkout")
    answers = read(SHARED / "llava-1.5-7b-random-greedy.jsonl")
    old = load(Files(SHARED), questions="coco_pope_random_2910.json")
    new = load(Files(SHARED))
    with pytest.raises(InputError, match="3000 answers, .*AoiDragon/POPE.*'coco_pope_random_2910.json' .*OPERA, VISTA"):
        join(old, answers, "a")
    with pytest.raises(InputError, match="2910 answers, .*OPERA, VISTA.*'coco_pope_random.json' .*AoiDragon/POPE"):
        join(new, answers[:2910], "a")
    with pytest.raises(InputError, match="2816 of 2910 answers"):
        join(old, answers[:2910], "a")


def run(*arguments) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(score)
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output, result.exception


def test_the_command_scores_released_answers():
    if not SHARED.is_dir():
        pytest.skip("POPE's released files are not beside this checkout")
    code, text, _ = run(
        SHARED / "llava-1.5-7b-random-greedy.jsonl", "--benchmark", "pope", "--questions",
        SHARED / "coco_pope_random.json", "--scorer", "pope@aoidragon", "--scorer", "strict", "--json",
    )  # fmt: skip
    report = json.loads(text)
    values = report["scorers"]["aoidragon"]["metrics"]
    assert code == 0 and report["n"] == 3000 and list(report["scorers"]) == ["aoidragon", "strict"]
    assert [round(values[name]["rate"], 3) for name in ("accuracy", "f1", "yes_ratio")] == [0.870, 0.855, 0.397]
    assert values["f1"]["interval"][0] < 0.855 < values["f1"]["interval"][1]
    assert report["disagreements"] == {"any": 0, "pairs": {"aoidragon, strict": 0}}


@pytest.fixture
def made(tmp_path) -> tuple[Path, Path]:
    rows = [FORMS["llava"](row, said) for row, said in zip(ASKED, SAID, strict=True)]
    return write(tmp_path / "answers.jsonl", rows), write(tmp_path / "coco_pope_random.json", ASKED)


def test_the_command_counts_disagreements(made):
    answers, questions = made
    code, text, _ = run(answers, "--benchmark", "pope", "--questions", questions, "--json")
    report = json.loads(text)
    # "There isn't a car" and "Unknown" are a yes to aoidragon; opera hears the n't, strict neither, lmms three answers
    assert code == 0 and report["disagreements"]["pairs"]["aoidragon, opera"] == 1
    assert report["disagreements"]["pairs"]["aoidragon, strict"] == 2
    assert report["disagreements"]["any"] == 3
    assert set(report["scorers"]) == {scorer.name for scorer in BENCHMARK.scorers}
    code, text, _ = run(answers, "--benchmark", "pope", "--data", questions.parent)
    assert code == 0 and "The scorers disagree on 3 answers" in text and "by id, checked by question" in text


def test_the_command_says_when_no_answer_is_yes(tmp_path, made):
    rows = [FORMS["vcd"](row, "No") for row in ASKED]
    code, text, _ = run(
        write(tmp_path / "no.jsonl", rows), "--benchmark", "pope", "--data", tmp_path, "--scorer", "vcd"
    )
    assert code == 0 and "vcd: no answer was read as a yes" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--benchmark", "popes", "--data", "."], "did you mean 'pope'"),
        (["--benchmark", "pope"], "--questions FILE, or --data FOLDER"),
        (["--benchmark", "pope", "--data", ".", "--scorer", "strickt"], "did you mean 'strict'"),
        (["--benchmark", "pope", "--data", ".", "--set", "splt=random"], "did you mean 'split'"),
        (["--benchmark", "pope", "--questions", "nowhere.json"], "no question file 'nowhere.json'"),
    ],
)
def test_the_command_refuses_with_a_sentence(made, arguments, says):
    code, _, error = run(made[0], *arguments)
    assert code == 1 and isinstance(error, InputError) and says in str(error)
