"""NaturalBench: golden cases, an independent oracle, rows as JSON and as parquet, malformed files."""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.naturalbench import BENCHMARK, KINDS, strict
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared"
GOLDEN = SHARED / "golden" / "naturalbench.json"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside the project")
METRICS = ("Q_Acc", "I_Acc", "Acc", "G_Acc")
SAY = {("yes_no", 1): "Yes.", ("yes_no", 0): "no", ("multiple_choice", 1): "A", ("multiple_choice", 0): "(B)"}


def row(number: int, kind: str = "yes_no", labels: tuple[int, int, int, int] = (1, 0, 0, 1)) -> dict[str, Any]:
    """A group with the labels of q0i0, q0i1, q1i0, q1i1."""
    names = ("No", "Yes") if kind == "yes_no" else ("B", "A")
    corners = ("Image_0_Question_0", "Image_1_Question_0", "Image_0_Question_1", "Image_1_Question_1")
    return {
        "Index": number, "Question_0": f"Is it {number}?", "Question_1": f"Is it not {number}?",
        "Image_0": f"{number}_a.png", "Image_1": f"{number}_b.png", "Question_Type": kind, "Source": "x",
        **{corner: names[label] for corner, label in zip(corners, labels, strict=True)},
    }  # fmt: skip


def loaded(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[Item]:
    (folder / "images").mkdir(exist_ok=True)
    for one in rows:
        for image in (one["Image_0"], one["Image_1"]):
            Image.new("RGB", (2, 2)).save(folder / "images" / image)
    (folder / "naturalbench.json").write_text(json.dumps(rows))
    return BENCHMARK.items(Files(folder), **options)


def answered(items: list[Item], results: list[list[int]]) -> list[Answer]:
    """Answers that the parser reads as 1, 0 or -1, in the order q0i0, q0i1, q1i0, q1i1."""
    flat = itertools.chain.from_iterable(results)
    return [Answer(SAY.get((item.gold["kind"], one), "neither")) for item, one in zip(items, flat, strict=True)]


def core() -> list[tuple[str, list[list[int]], dict[str, float]]]:
    if not GOLDEN.exists():
        return []
    cases = json.loads(GOLDEN.read_text())["scores"]
    found = [(one["name"], one["results_q0i0_q0i1_q1i0_q1i1"], one["reference"]) for one in cases]
    more = [one for one in json.loads((GOLDEN.parent / "core.json").read_text()) if one["scorer"] == "naturalbench"]
    return found + [(one["id"], one["input"], one["expected"]) for one in more]


@needs_golden
@pytest.mark.parametrize(("name", "results", "expected"), core())
def test_golden_scores(tmp_path: Path, name: str, results: list[list[int]], expected: dict[str, float]) -> None:
    for kind in KINDS:
        items = loaded(tmp_path, [row(number, kind) for number in range(len(results))])
        for scorer in BENCHMARK.scorers:  # where the labels are as the published scorer assumes, both agree
            found = scorer.score(items, answered(items, results))
            assert {name: found[name] for name in METRICS} == pytest.approx(expected), (name, kind, scorer.name)


@needs_golden
def test_golden_parsing() -> None:
    cases = json.loads(GOLDEN.read_text())["extract"]
    assert [yesno.naturalbench(one["text"], one["type"]) for one in cases] == [one["reference"] for one in cases]


@pytest.mark.parametrize("seed", range(5))
def test_like_an_oracle(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    groups = chance.randint(1, 12)
    labels = [chance.choice([(1, 0, 0, 1), (0, 1, 1, 0)]) for _ in range(groups)]
    rows = [row(number, chance.choice(list(KINDS)), labels[number]) for number in range(groups)]
    items = loaded(tmp_path, rows)
    results = [[chance.choice((1, 0, 0, 1, -1)) for _ in range(4)] for _ in range(groups)]
    for name, wanted in (("official", [(1, 0, 0, 1)] * groups), ("strict", labels)):
        found = BENCHMARK.scorer(name).score(items, answered(items, results))
        right = [[a == b for a, b in zip(one, label, strict=True)] for one, label in zip(results, wanted, strict=True)]
        questions = [all(one[i : i + 2]) for one in right for i in (0, 2)]
        images = [one[i] and one[i + 2] for one in right for i in (0, 1)]
        assert found["Q_Acc"] == pytest.approx(sum(questions) / len(questions))
        assert found["I_Acc"] == pytest.approx(sum(images) / len(images))
        assert found["Acc"] == pytest.approx(sum(map(sum, right)) / (4 * groups))
        assert found["G_Acc"] == pytest.approx(sum(map(all, right)) / groups)
        flat = list(itertools.chain.from_iterable(results))
        assert found["unparsed"] == pytest.approx(flat.count(-1) / len(flat))
        assert found["yes"] == pytest.approx(flat.count(1) / len(flat))


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("A man rides a horse", "multiple_choice", -1),
        ("A", "multiple_choice", 1),
        (" (b)", "multiple_choice", 0),
        ("B. red", "multiple_choice", 0),
        ("Option A.", "multiple_choice", 1),
        ("The answer is B: red", "multiple_choice", 0),
        ("**A**", "multiple_choice", 1),
        ("Both", "multiple_choice", -1),
        ("Answer: b", "multiple_choice", 0),
        ("Yes, no doubt", "yes_no", 1),
        ("notebook", "yes_no", -1),
    ],
)
def test_strict_reading(text: str, kind: str, expected: int) -> None:
    assert strict(text, kind) == expected


def test_the_article_is_an_answer_to_the_official_scorer_only(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row(0, "multiple_choice")])
    answers = [Answer("A man"), Answer("B"), Answer("B"), Answer("A man")]
    assert BENCHMARK.scorer("official").score(items, answers)["G_Acc"] == 1
    found = BENCHMARK.scorer("strict").score(items, answers)
    assert (found["G_Acc"], found["Acc"], found["unparsed"]) == (0, 0.5, 0.5)


def test_prompts_and_types(tmp_path: Path) -> None:
    rows = [row(0), row(1, "multiple_choice")]
    items = loaded(tmp_path, rows)
    assert items[0].prompt == "Is it 0?Please answer Yes or No."
    assert items[4].prompt == "Is it 1?Please output the letter corresponding to the correct option."
    assert loaded(tmp_path, rows, prompt="lmms")[2].prompt == "Is it not 0? Please answer Yes or No."
    assert {item.group for item in loaded(tmp_path, rows, kind="multiple_choice")} == {"1"}
    assert [Path(str(item.image)).name for item in items[:4]] == ["0_a.png", "0_b.png"] * 2


def test_a_group_with_a_missing_answer_is_left_out(tmp_path: Path) -> None:
    items = loaded(tmp_path, [row(0), row(1)])
    answers = answered(items, [[1, 0, 0, 1], [0, 0, 0, 0]])
    tally = BENCHMARK.scorer("official").tally(items[:-1], answers[:-1])
    assert tally.groups == ["0"] and tally.counts["whole"] == [1.0]


def picture(color: str, kind: str) -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", (3, 2), color).save(data, kind)
    return {"bytes": data.getvalue(), "path": None}


def test_parquet_holds_the_same_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [row(0), row(1, "multiple_choice")]
    plain = loaded(tmp_path, rows)
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    table = [one | {"Image_0": picture("red", "PNG"), "Image_1": picture("blue", "JPEG")} for one in rows]
    path = folder / "data" / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    items = BENCHMARK.items(Files(folder))
    assert [(one.id, one.prompt, one.gold) for one in items] == [(one.id, one.prompt, one.gold) for one in plain]
    with Image.open(str(items[0].image)) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)
    assert Path(str(items[1].image)).suffix == ".jpg"
    Path(str(items[0].image)).write_bytes(b"cut off")
    with Image.open(str(BENCHMARK.items(Files(folder))[0].image)) as image:
        assert image.size == (3, 2)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table).drop(["Question_1"]), path)
    with pytest.raises(InputError, match="no column 'Question_1'"):
        BENCHMARK.items(Files(folder))
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        BENCHMARK.items(Files(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Question_Type": "open"}, "Row 2 .* 'open'"),
        ({"Image_1_Question_0": "Maybe"}, "Row 2 .* 'Maybe' in 'Image_1_Question_0'"),
        ({"Image_0_Question_0": "A"}, "Row 2 .* 'A' in 'Image_0_Question_0'"),
        ({"Question_1": 7}, "Row 2 .* 7 in 'Question_1'"),
        ({"Index": 0}, "more than one item"),
        ({"Image_0": None}, "Row 2 .* None in 'Image_0'"),
    ],
)
def test_malformed_rows(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    loaded(tmp_path, [row(0), row(1)])
    (tmp_path / "naturalbench.json").write_text(json.dumps([row(0), row(1) | change]))
    with pytest.raises(InputError, match=message):
        BENCHMARK.items(Files(tmp_path))


def test_missing_images_and_columns(tmp_path: Path) -> None:
    loaded(tmp_path, [row(0)])
    (tmp_path / "images" / "0_b.png").unlink()
    with pytest.raises(InputError, match="1 image is missing .*0_b.png"):
        BENCHMARK.items(Files(tmp_path))
    (tmp_path / "naturalbench.json").write_text(json.dumps([{"Question": "?", "Image": "a.png"}]))
    with pytest.raises(InputError, match="Row 1 .* has no 'Question_0'"):
        BENCHMARK.items(Files(tmp_path))
