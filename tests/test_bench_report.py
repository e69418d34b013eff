"""The tables, plots and page of a run: the same numbers everywhere, nothing that a model wrote is obeyed."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_runs import BENCHMARKS, JUDGED, write
from PIL import Image

from vlmsteer.bench import tables
from vlmsteer.bench.behavior import margin
from vlmsteer.bench.benchmark import Scorer, Tally
from vlmsteer.bench.flips import worst
from vlmsteer.bench.results import read_run, report
from vlmsteer.errors import InputError
from vlmsteer.registry import BENCHMARKS as REGISTERED

CONTROLS = ["↳ 2 random directions", "↳ beyond random", "↳ yes bias", "↳ beyond yes bias"]
EVIL = 'No. <script>alert("x")</script> <img src="https://example.org/x.png"> & <b>bold</b>'


def altered(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["arm"] == "vista" and row["task"] == "quiz":
        if row["item"] == "0-0":
            return {**row, "answer": "", "error": "<i>odd</i> image"}
        if row["answer"].startswith("No"):
            return {**row, "answer": EVIL}
    return row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("run"), change=altered)
    (folder / "images" / "1.png").write_bytes(b"not an image")
    markdown = report(folder, BENCHMARKS, draws=200)
    assert (folder / "table.md").read_text().startswith(markdown) and "## Further metrics" not in markdown
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


class Page(HTMLParser):
    """Every tag with its attributes, the text, and whether what was opened is closed."""

    VOID = {"meta", "link", "img"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_written(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"metrics.json", "table.md", "table.csv", "table.tex", "report.html"} <= names
    assert {"changes-quiz.png", "changes-colors.png", "strength-quiz.png", "strength-colors.png"} <= names
    assert not any(name.startswith(".") for name in names)
    for path in folder.glob("*.png"):
        width, height = Image.open(path).size
        assert width > 400 and height > 200


def test_markdown_shows_each_arm_with_its_controls_beneath(folder: Path, found: dict[str, Any]) -> None:
    text = (folder / "table.md").read_text()
    quiz = text[text.index("### quiz") : text.index("### colors")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in quiz.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == [
        "none (baseline)", "vista x0.5", *CONTROLS, "vista", *CONTROLS,
    ]  # fmt: skip
    assert rows[0][1:] == [
        "f1 %",
        "accuracy %",
        "precision %",
        "total",
        "yes %",
        "lost/gained (p)",
        "detectable",
        "n",
        "errors",
    ]
    assert len({len(row) for row in rows}) == 1
    arms = found["tasks"]["quiz"]["scorers"]["quiz@plain"]["arms"]
    f1 = arms["vista"]["change"]["f1"]
    low, high = (100 * bound for bound in f1["interval"])
    cell = f"{100 * arms['vista']['values']['f1']['rate']:.1f} ({100 * f1['rate']:+.1f} [{low:.1f}, {high:.1f}])"
    assert rows[8][1].strip("*") == cell and rows[8][1].startswith("**") == (low > 0 or high < 0)
    assert rows[8][2].startswith(("**", "8", "9")) and rows[8][-1] == "1" and rows[8][-2] == "47"
    assert rows[8][-3] == f"{100 * f1['minimum_detectable']:.1f}"
    for number, control in ((10, "random"), (12, "yes bias")):  # what the arm has beyond each control
        beyond = arms["vista"]["beyond"][control]["f1"]
        low, high = (100 * bound for bound in beyond["interval"])
        assert rows[number][1].strip("*") == f"{100 * beyond['rate']:+.1f} [{low:.1f}, {high:.1f}]"
        assert rows[number][1].startswith("**") == (low > 0 or high < 0) and rows[number][-2] == "47"


def test_a_change_is_bold_exactly_where_its_interval_excludes_zero(found: dict[str, Any]) -> None:
    sure = 0
    for table in tables.build(found):
        for row in table.rows:
            for cell in row.cells:
                bounds = re.search(r"\[(-?[\d.]+), (-?[\d.]+)\]", cell.change)
                if bounds and float(bounds[1]) > 0 or bounds and float(bounds[2]) < 0:
                    assert cell.bold
                if bounds and float(bounds[1]) < 0 < float(bounds[2]):
                    assert not cell.bold
                sure += cell.bold
    assert sure > 3


def test_csv_has_every_number_unrounded(folder: Path, found: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    row = next(r for r in rows if (r["task"], r["arm"], r["control"], r["metric"]) == ("quiz", "vista", "", "f1"))
    expected = found["tasks"]["quiz"]["scorers"]["quiz@plain"]["arms"]["vista"]
    assert float(row["value"]) == expected["values"]["f1"]["rate"] and float(row["low"]) < float(row["high"])
    assert [float(row[name]) for name in ("change_low", "change_high")] == expected["change"]["f1"]["interval"]
    assert [row["lost"], row["gained"]] == [str(expected["mcnemar"][name]) for name in ("lost", "gained")]
    base = next(r for r in rows if r["arm"] == "none" and r["metric"] == "chair_i")
    assert base["change"] == "" and base["scorer"] == "colors@words"
    assert {r["control"] for r in rows} == {"", *(name.removeprefix("↳ ") for name in CONTROLS)}
    beyond = next(r for r in rows if (r["arm"], r["control"], r["metric"]) == ("vista", "beyond random", "f1"))
    assert beyond["value"] == "" and float(beyond["change"]) == expected["beyond"]["random"]["f1"]["rate"]
    assert {r["unit"] for r in rows if r["metric"] in ("accuracy", "f1", "total")} == {"percent", "share", "number"}


def test_latex_is_escaped_and_balanced(folder: Path) -> None:
    text = (folder / "table.tex").read_text()
    assert r"A quiz of 100 \% \& more" in text and r"\quad 2 random directions" in text and r"chair\_i \%" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") > 2
    body = re.sub(r"\\[&%$#_{}]", "", text)
    assert body.count("{") == body.count("}") and not re.search(r"[$#^~–]", body)
    assert re.search(r"(?<!\\)[&%]", body.replace("% needs", "")) and "_" not in body
    for block in re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.S):
        for line in block[1].splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(block[0]) - 1


def test_the_page_needs_nothing_and_obeys_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "b", "i", "base", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value is not None and value.startswith(("data:image/", "#")), (tag, value)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert EVIL in page.text and "<i>odd</i> image" in page.text and "<b>Made up.</b>" in page.text
    assert "vista, 0-0" in page.text and "image not readable here" in page.text
    assert "tiny-made" in page.text and "max new tokens" in page.text
    anchors = {value for _, attributes in page.tags if (value := attributes.get("id"))}
    assert {value[1:] for _, a in page.tags if (value := a.get("href")) and value.startswith("#")} <= anchors


def test_thumbnails_are_small(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    sides = []
    for content in re.findall(r"data:image/jpeg;base64,([^\"]+)", text):
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        sides.append(max(image.size))
    assert sides and max(sides) <= 160


def test_flips_are_the_items_that_became_right_or_wrong(folder: Path) -> None:
    run = read_run(folder, BENCHMARKS)
    given, items = run.answers["quiz"], run.items["quiz"]
    worse, better = worst(items, given["none"], given["vista"], JUDGED, limit=3)
    right = {
        arm: {
            i.id: given[arm][i.id].text.startswith("Yes") == (i.gold["label"] == "yes")
            for i in items
            if i.id in given[arm]
        }
        for arm in ("none", "vista")
    }
    assert len(better) == 3 and all(right["vista"][f.item.id] and not right["none"][f.item.id] for f in better)
    assert all(right["none"][f.item.id] and not right["vista"][f.item.id] for f in worse)
    every = worst(items, given["none"], given["vista"], JUDGED, limit=100)[1]
    assert {f.item.id for f in every} == {i for i in right["vista"] if right["vista"][i] and not right["none"][i]}
    moved = [abs(margin(f.after) - margin(f.before)) for f in every]
    assert moved == sorted(moved, reverse=True)


def test_captions_flip_by_what_they_score_alone(folder: Path) -> None:
    run = read_run(folder, BENCHMARKS)
    scorer, items, given = run.benchmarks["colors"].scorers[0], run.items["colors"], run.answers["colors"]
    worse, better = worst(items, given["none"], given["vista"], scorer)
    for flips, sign in ((worse, 1), (better, -1)):
        changes = [
            scorer.score([f.item], [f.after])["chair_i"] - scorer.score([f.item], [f.before])["chair_i"] for f in flips
        ]
        assert changes and all(sign * change > 0 for change in changes)
        assert changes == sorted(changes, reverse=sign > 0)
    pairs = Scorer("p", "made up", lambda i, a: Tally(["g"], {"n": [1.0]}), lambda s: {"m": s["n"]}, {"m": 1})
    assert worst(items, given["none"], given["vista"], pairs) == ([], [])
    assert worst(items, {}, given["vista"], scorer) == ([], [])


def test_a_flip_shows_what_is_gold_of_its_own_item(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for path in folder.glob("items-*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["gold"] |= {"vocabulary": ["the same", "of all"], "asked": row["prompt"]}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(folder, BENCHMARKS, draws=20)
    text = Page((folder / "report.html").read_text()).text
    assert re.search("label: (yes|no)", text) and re.search(r"colors: \w+, \w+", text)
    assert "vocabulary" not in text and "asked:" not in text


@pytest.mark.parametrize(
    ("value", "unit", "signed", "text"),
    [
        (0.8704, "share", False, "87.0"), (0.013, "share", True, "+1.3"), (-0.0504, "share", True, "-5.0"),
        (44.62, "percent", False, "44.6"), (1510.334, "number", True, "+1510.33"), (12.384, "number", False, "12.38"),
        (None, "share", True, "–"), (-0.0004, "share", False, "0.0"), (-0.004, "number", True, "+0.00"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, unit: str, signed: bool, text: str) -> None:
    assert tables.number(value, unit, signed) == text


@pytest.mark.parametrize("name", REGISTERED)
def test_every_scorer_says_which_of_its_metrics_are_in_percent_and_which_are_numbers(name: str) -> None:
    for scorer in REGISTERED.load(name).scorers:
        assert scorer.percent | scorer.numbers <= scorer.wanted.keys() and not scorer.percent & scorer.numbers
        assert {scorer.unit(metric) for metric in scorer.wanted} <= {"share", "percent", "number"}
        assert all(scorer.unit(metric) == "number" for metric in ("words", "rating") if metric in scorer.wanted)


def test_a_name_with_any_character_survives_every_format(tmp_path: Path) -> None:
    name = r"a|b_c $x$ <i> \z{ ~^#"
    arms = [{"name": "none", "kind": "baseline"}, {"name": name, "kind": "recipe", "strength": 1.0}]
    folder = write(tmp_path, arms=arms)  # not one of the made arms
    markdown = report(folder, BENCHMARKS, draws=20)
    lines = [line for line in markdown.splitlines() if line.startswith("| a")]
    assert lines and all(line.startswith(r"| a\|b_c $x$") for line in lines)
    assert r"a|b\_c \$x\$ \textless{}i\textgreater{}" in (folder / "table.tex").read_text()
    assert any(row[2] == name for row in csv.reader(io.StringIO((folder / "table.csv").read_text())))
    assert name in Page((folder / "report.html").read_text()).text


def test_a_folder_that_cannot_be_written_is_said(folder: Path) -> None:
    before = (folder / "table.tex").read_bytes()
    (folder / "table.tex").unlink()
    (folder / "table.tex").mkdir()
    try:
        with pytest.raises(InputError, match=r"table\.tex.* cannot be written"):
            report(folder, BENCHMARKS, draws=10)
        assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*"))
    finally:
        (folder / "table.tex").rmdir()
        (folder / "table.tex").write_bytes(before)
