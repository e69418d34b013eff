"""VLMs are Biased: two ways to read a count, how often it is right and how often it is what memory says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.vlms_are_biased import BENCHMARK, braced, lmms, strict
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"


def item(truth: str, bias: str, name: str = "1") -> Item:
    return Item(name, "x.png", "?", name, {"truth": truth, "bias": bias})


@pytest.mark.skipif(not (SHARED / "core.json").is_file(), reason="the golden cases are not beside the repository")
def test_golden() -> None:
    cases = [
        (one["prediction"], one["ground_truth"], one["expected_bias"], one["lmms_eval"])
        for one in json.loads((SHARED / "vlms_are_biased.json").read_text())
    ]
    cases += [
        (*one["input"], one["expected"])
        for one in json.loads((SHARED / "core.json").read_text())
        if one["scorer"] == "vlms_are_biased:lmms-eval"
    ]
    assert len(cases) > 2
    for said, truth, bias, expected in cases:
        found = BENCHMARK.scorer("lmms").score([item(truth, bias)], [Answer(said)])
        assert {name: found[name] for name in ("accuracy", "bias_ratio")} == expected, said


@pytest.mark.parametrize(
    ("said", "truth", "bias", "by_lmms", "by_us"),
    [
        ("I count {3} legs, so {4}", "4", "3", (False, False), (True, False)),
        ("{4}.", "4", "3", (True, False), (True, False)),
        ("The answer is {3}", "4", "3", (False, True), (False, True)),
        ("{3} or 4", "34", "3", (True, False), (False, True)),
        ("There are 4", "4", "3", (True, False), (False, False)),  # no braces and more than one word
        ("4", "4", "3", (True, False), (True, False)),
        ("Yes.", "Yes", "No", (False, False), (True, False)),
        ("{YES}", "Yes", "No", (True, False), (True, False)),
        ("{yes} it is", "Yes", "No", (False, False), (True, False)),
        ("{}", "4", "3", (False, False), (False, False)),
        ("", "4", "3", (False, False), (False, False)),
        ("{4}", "4", "4", (True, True), (True, True)),
        ("²", "²", "2", (True, False), (True, False)),
    ],
)
def test_reading(said: str, truth: str, bias: str, by_lmms: tuple[bool, bool], by_us: tuple[bool, bool]) -> None:
    assert lmms(said, truth, bias) == by_lmms
    assert strict(said, truth, bias) == by_us


def test_unparsed_answers_are_counted() -> None:
    given = [Answer(text) for text in ("{4}", "there are four of them", "{}", "{3}")]
    items = [item("4", "3", str(n)) for n in range(4)]
    found = BENCHMARK.scorer("strict").score(items, given)
    assert found == {"accuracy": 0.25, "bias_ratio": 0.25, "unparsed": 0.5, "words": 2.0}
    assert [braced(one.text) for one in given] == ["4", None, None, "3"]


def published(n: int, pixel: int, **more: Any) -> dict[str, Any]:
    name = f"dog_{n // 10}_notitle_px{pixel}.png"
    base = {"ID": f"{n}_{pixel}", "image_path": f"images/{name}", "topic": "Animals", "sub_topic": "Mammals"}
    base |= {"prompt": "How many legs? Answer with a number in curly brackets, e.g., {9}.", "ground_truth": "5"}
    return {**base, "expected_bias": "4", "type_of_question": f"Q{n}", "pixel": pixel, **more}


def pictures(path: Path, rows: list[dict[str, Any]]) -> None:
    (path / "images").mkdir(exist_ok=True)
    for one in rows:
        Image.new("RGB", (4, 4)).save(path / one["image_path"])


def test_load(tmp_path: Path) -> None:
    rows = [published(n, pixel) for n in (1, 2, 11) for pixel in (384, 768)]
    pictures(tmp_path, rows)
    (tmp_path / "main.json").write_text(json.dumps(rows))
    items = BENCHMARK.items(Files(tmp_path))
    assert [one.id for one in items] == [row["ID"] for row in rows]
    assert items[0].prompt == rows[0]["prompt"]
    assert (items[0].gold["truth"], items[0].gold["bias"]) == ("5", "4")
    # Two questions and two resolutions of one picture are one group.
    assert [one.group for one in items] == [items[0].group] * 4 + [items[4].group] * 2
    assert items[0].group != items[4].group


def test_load_the_hubs_parquet_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "data").mkdir()
    for part in (0, 1):
        rows = [{**published(part, 384), "image": {"bytes": content, "path": "x.png"}}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"main-0000{part}-of-00002.parquet")
    items = BENCHMARK.items(Files(tmp_path))
    assert [one.id for one in items] == ["0_384", "1_384"]
    assert Path(items[0].image or "").read_bytes() == content
    assert items[0].group == items[1].group == "dog_0_notitle.png"


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        ({"ID": "1_384"}, {}, "Row 2 .* has the ID '1_384' of row 1"),
        ({"ground_truth": " "}, {}, "Row 2 .*empty 'ground_truth'"),
        ({"expected_bias": None}, {}, "Row 2 .*'expected_bias'"),
        ({}, {"split": "mian"}, "did you mean 'main'"),
        ({}, {"split": "original"}, "for a table original"),
        ({}, {"prompt": "x"}, "no prompt 'x'"),
        ({"image_path": "gone.png"}, {}, "gone.png"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], options: dict[str, Any], complaint: str
) -> None:
    hub.offline(monkeypatch, tmp_path / "hub")
    rows = [published(1, 384), published(2, 384)]
    pictures(tmp_path, rows)
    (tmp_path / "main.json").write_text(json.dumps([rows[0], {**rows[1], **change}]))
    with pytest.raises(InputError, match=complaint):
        BENCHMARK.items(Files(tmp_path), **options)


def test_a_damaged_parquet_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "main.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a readable parquet file"):
        BENCHMARK.items(Files(tmp_path))
