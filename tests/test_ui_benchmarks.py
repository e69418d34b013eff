"""The Benchmarks tab: what it asks, what it shows, and that it can be stopped and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmsteer.errors import InputError
from vlmsteer_ui import bench_figures, benching
from vlmsteer_ui.panel import Panel
from vlmsteer_ui.residents import Stopped
from vlmsteer_ui.tabs import benchmarks
from vlmsteer_ui.workbench import Workbench

PANEL = Panel(("color to pixels",))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(["tiny-llava"], tmp_path_factory.mktemp("bench"))


def test_answers_come_batch_by_batch_and_end_in_tables_and_curves(bench: Workbench) -> None:
    desk = bench.desks.of("one")
    wanted = benching.Wanted.of("vcf", 24, 0, [0.5, 1.0], True)
    seen = list(benching.asked(bench, desk, "tiny-llava", PANEL, wanted))
    done = [one["done"] for one in seen]
    assert done == sorted(done) and done[-1] == 24 * 5 == seen[-1]["total"] and len(set(done)) > 4
    assert [one["over"] for one in seen] == [False] * (len(seen) - 1) + [True]
    last = seen[-1]
    assert last["arms"] == ["none", "color to pixels x0.5", "color to pixels"] and len(last["rows"]) == 24
    assert all(not one["changed"] for row in last["rows"] for one in row["answers"][:1])
    table, *_ = last["tables"]
    assert [row["name"] for row in table["rows"] if not row["control"]][1:] == last["arms"][1:]
    (most,) = [curve for curve in last["curves"] if curve["metric"].startswith("counterfactual_most")]
    assert [point["strength"] for point in most["points"]] == [0.0, 0.5, 1.0]
    assert most["points"][2]["value"] < most["points"][0]["value"]  # steered to pixels, "most" is answered by them
    assert bench_figures.tables(last)["tables"] and len(bench_figures.rows(last)["rows"]) == 24

    image, question = benching.item(bench, last["folder"], 3)
    assert image is not None and question == last["rows"][3]["question"]
    again = list(benching.asked(bench, desk, "tiny-llava", PANEL, wanted))  # all is there
    assert again[-1]["total"] == 0 and again[-1]["tables"] == last["tables"]


def test_stopped_it_shows_what_there_is_and_goes_on(bench: Workbench) -> None:
    desk = bench.desks.of("two")
    wanted = benching.Wanted.of("pope", 48, 1, [1.0], False)
    running = benching.asked(bench, desk, "tiny-llava", PANEL, wanted)
    known: dict[str, Any] = {}
    with pytest.raises(Stopped):
        for known in running:
            if known["done"]:
                desk.halt()
    assert known["over"] and 0 < known["done"] < known["total"] == 96 and known["tables"]
    rest = list(benching.asked(bench, desk, "tiny-llava", PANEL, wanted))
    assert 0 < rest[-1]["total"] < 96 and len(rest[-1]["rows"]) == 48
    with bench.residents("tiny-llava").turn() as session:
        assert not session.instrument.busy


@pytest.mark.parametrize(
    "values",
    [
        ("no such", 24, 0, [1.0], True), ("pope", 0, 0, [1.0], True), ("pope", 10**9, 0, [1.0], True),
        ("pope", "24", 0, [1.0], True), ("pope", 24, -1, [1.0], True), ("pope", 24, 0, [99.0], True),
        ("pope", 24, 0, ["1"], True), ("../pope", 24, 0, [1.0], True), (None, None, None, None, None),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(values: tuple[Any, ...]) -> None:
    with pytest.raises(InputError):
        benching.Wanted.of(*values)


@pytest.mark.parametrize("event", [{}, None, {"item": "0"}, {"item": -1}, {"item": 10**9}, {"item": True}])
def test_forged_rows_are_refused(bench: Workbench, event: Any) -> None:
    desk = bench.desks.of("three")
    list(benching.asked(bench, desk, "tiny-llava", Panel(), benching.Wanted.of("pope", 12, 2, [1.0], False)))
    for folder in (None, "../../etc", "pope-0000000000"):
        desk.keep("bench", folder)
        with pytest.raises(InputError):
            benchmarks.pick(bench, desk, event)


def test_a_drawn_curve_stays_in_its_frame() -> None:
    side = {"value": 50.0, "low": 40.0, "high": 60.0}
    points = [{"strength": 0.0, **side, "random": None}, {"strength": 2.0, **side, "random": {**side, "value": 55.0}}]
    drawn = bench_figures.drawn({"metric": "accuracy %", "points": points})
    for spot in drawn["points"] + drawn["random"]:
        assert bench_figures.LEFT <= spot["x"] <= bench_figures.WIDTH and spot["high"] <= spot["y"] <= spot["low"]
    assert [mark["label"] for mark in drawn["marks"]] == ["0", "2"] and [t["label"] for t in drawn["ticks"]][0] == "40"
    flat = {"value": 1.0, "low": None, "high": None}
    assert bench_figures.drawn({"metric": "m", "points": [{"strength": 0.0, **flat, "random": None}]})["points"]
    assert bench_figures.drawn({"metric": "m", "points": []})["points"] == []


def test_templates_run_no_text() -> None:
    for path in (Path(bench_figures.__file__).parent / "templates").glob("*.html"):
        assert "${" not in path.read_text(encoding="utf-8")
