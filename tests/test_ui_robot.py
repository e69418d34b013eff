"""The Robot tab: paired episodes of a policy with and without vectors, its drawings, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmsteer.errors import InputError, ModelError
from vlmsteer.methods import value_vectors
from vlmsteer_ui import robot_figures, roboting
from vlmsteer_ui.panel import Panel
from vlmsteer_ui.residents import Stopped
from vlmsteer_ui.runs import Run
from vlmsteer_ui.tabs import robot
from vlmsteer_ui.workbench import Workbench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    bench = Workbench(["tiny-llava"], tmp_path_factory.mktemp("robot"))
    with bench.residents("tiny-openvla").turn() as session:
        neurons = value_vectors.nearest(session, ["slowly"], 4)
        bench.vectors.add("four neurons", value_vectors.recipe(session, neurons, "clamp", 2.0))
    return bench


@pytest.fixture(scope="module")
def known(bench: Workbench) -> dict[str, Any]:
    desk, wanted = bench.desks.of("one"), roboting.Wanted.of("reach-red", 2, "slowly", 1)
    seen = list(roboting.rolled(bench, desk, "tiny-openvla", Panel(("four neurons",)), wanted))
    assert [one["progress"].split(" ")[0] for one in seen[:-1]] == [str(number) for number in range(1, 9)]
    return seen[-1]


def test_episodes_are_paired_over_seeds(known: dict[str, Any]) -> None:
    assert known["arms"] == ["none", "said: slow", "four neurons"]
    assert [one["seed"] for one in known["seeds"]] == [0, 1]
    assert all(len(one["arms"]) == 3 and "mm a step" in one["arms"][0]["text"] for one in known["seeds"])
    assert "none (baseline)" in known["table"] and "1 random sets" in known["table"] and "†" not in known["table"]


def test_a_seed_has_its_curves(bench: Workbench, known: dict[str, Any]) -> None:
    found = roboting.motion(bench, known["folder"], 1)
    plain, slow, _ = found["arms"]
    assert plain["name"] == "none" and sum(slow["length"]) / len(slow["length"]) < plain["length"][0]
    drawings = robot_figures.motion(found)
    assert [one["kind"] for one in drawings[0]["lines"]] == ["baseline", "said", "steered"]
    spots = [spot.split(",") for one in drawings for line in one["lines"] for spot in line["points"].split()]
    assert all(44 <= float(x) <= 390 and 11 <= float(y) <= 161 for x, y in spots)


def test_a_film_is_made_once(bench: Workbench, known: dict[str, Any]) -> None:
    made = roboting.film(bench, known["folder"], known["seed"])
    assert made is not None and made.stat().st_size > 10_000
    before = made.stat().st_mtime_ns
    assert roboting.film(bench, known["folder"], known["seed"]) == made and made.stat().st_mtime_ns == before


def test_a_saved_run_shows_its_robot_without_a_model(bench: Workbench, known: dict[str, Any], tmp_path: Path) -> None:
    other = Workbench(["tiny-llava"], tmp_path)
    desk = other.desks.of("reader")
    kept = {**known, "motion": roboting.motion(bench, known["folder"], known["seed"])}
    desk.run = Run("tiny-llava", "?", found={"robot": kept})
    table, episodes, curves, video = robot.reopen(other, desk)
    assert table == known["table"] and len(episodes["rows"]) == 2 and len(curves) == 2 and video is None
    assert other.residents.loaded() == []


def test_stopped_it_keeps_finished_episodes(bench: Workbench) -> None:
    desk, wanted = bench.desks.of("two"), roboting.Wanted.of("reach-blue", 3, "nothing", 0)
    with pytest.raises(Stopped):
        for _ in roboting.rolled(bench, desk, "tiny-openvla", Panel(), wanted):
            desk.halt()
    last = list(roboting.rolled(bench, desk, "tiny-openvla", Panel(), wanted))
    assert len(last[-1]["seeds"]) == 3 and len(last) < 4


def test_a_model_that_answers_in_words_is_refused(bench: Workbench) -> None:
    wanted = roboting.Wanted.of("reach", 1, "nothing", 0)
    with pytest.raises(ModelError, match="not a policy"):
        list(roboting.rolled(bench, bench.desks.of("three"), "tiny-llava", Panel(), wanted))


@pytest.mark.parametrize(
    "values",
    [
        ("fly", 1, "nothing", 0), ("reach", 0, "nothing", 0), ("reach", 10**6, "nothing", 0), ("reach", 1, "sudo", 0),
        ("reach", 1, "nothing", 99), (None, None, None, None), ("reach", True, "nothing", 0),
    ],
)  # fmt: skip
def test_what_cannot_run_is_said(values: tuple[Any, ...]) -> None:
    with pytest.raises(InputError):
        roboting.Wanted.of(*values)


@pytest.mark.parametrize("folder", [None, "../../etc", "reach-0000000000", 3])
def test_forged_runs_and_seeds_are_refused(bench: Workbench, known: dict[str, Any], folder: Any) -> None:
    with pytest.raises(InputError):
        roboting.motion(bench, folder, 0)
    with pytest.raises(InputError):
        roboting.film(bench, known["folder"], "0" if folder is None else 99)
