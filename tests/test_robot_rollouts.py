"""Rollouts: paired, batched, resumable, replayable; what is measured of them; strengths that hold a speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlmsteer.errors import InputError, ModelError
from vlmsteer.methods.value_vectors import Neuron, recipe
from vlmsteer_robotics import tasks
from vlmsteer_robotics.arms import Arm, make
from vlmsteer_robotics.controller import Controller, Hold
from vlmsteer_robotics.effects import beyond, summarize
from vlmsteer_robotics.metrics import METRICS, measure
from vlmsteer_robotics.policy import Expert, Vla
from vlmsteer_robotics.rollouts import Setting, effect, replay, run

REACH = Setting("reach-red")
BASELINE = Arm("none", "baseline")


@pytest.fixture(scope="module")
def policy(sessions: Any) -> Vla:
    return Vla(sessions["openvla"])


@pytest.fixture(scope="module")
def turned(policy: Vla) -> Any:
    """A recipe that changes what the random policy does."""
    return recipe(
        policy.session, [Neuron(layer, number, 0, []) for layer in (0, 1) for number in (3, 11, 40)], value=6.0
    )


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reaching ends after a dozen steps."""
    monkeypatch.setitem(tasks.VERBS, "reach", 12)


def acts(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["actions"] for row in rows]


def test_rows_are_what_each_episode_is_alone(policy: Vla, turned: Any, tmp_path: Path, short: None) -> None:
    """Plain, steered and told otherwise in one batch, or one robot after the other."""
    arms = [BASELINE, Arm("turned", "recipe", turned), Arm("said: slow", "prompt", manner={"speed": "slow"})]
    together = run(policy, REACH, [0, 1], arms, tmp_path / "together.jsonl", 6)
    alone = run(policy, REACH, [0, 1], arms, tmp_path / "alone.jsonl", 1)
    assert acts(together) == acts(alone)
    assert [row["hand"] for row in together] == [row["hand"] for row in alone]
    plain, steered, told = acts(together[:2]), acts(together[2:4]), acts(together[4:])
    assert plain != steered and plain != told
    assert [row["instruction"] for row in together[::2]] == ["reach the red block"] * 2 + ["reach the red block slowly"]
    starts = {(row["seed"], str(row["hand"][0])) for row in together}
    assert len(starts) == 2  # a seed begins alike under every arm
    layouts = {str(replay(REACH, row, images=False).blocks[0].tolist()) for row in together[::2]}
    assert len(layouts) == 1


def test_tokens_that_are_no_actions_are_counted(policy: Vla, tmp_path: Path, short: None) -> None:
    (free,) = run(policy, REACH, [1], [BASELINE], tmp_path / "free.jsonl")
    (bound,) = run(Vla(policy.session, restrict=True), REACH, [1], [BASELINE], tmp_path / "free.jsonl")
    assert free["metrics"]["other_tokens"] > 0 == bound["metrics"]["other_tokens"]
    assert free["metrics"]["clipped"] > 0.5  # this policy's numbers reach from -1 to 2
    assert np.abs(np.array(free["actions"])[:, :3]).max() <= 0.08 + 1e-6


def test_a_policy_that_breaks_does_so_in_its_own_episode(policy: Vla, tmp_path: Path, short: None) -> None:
    broken = recipe(policy.session, [Neuron(0, number, 0, []) for number in range(40)], value=3e38)
    arms = [BASELINE, Arm("broken", "recipe", broken), Arm("said: fast", "prompt", manner={"speed": "fast"})]
    rows = run(policy, REACH, [0, 1], arms, tmp_path / "rows.jsonl", 6)
    assert [row["error"] is None for row in rows] == [True, True, False, False, True, True]
    assert "not numbers" in rows[2]["error"] and rows[2]["metrics"] == {}
    found = summarize(rows, arms)
    assert (found["broken"]["n"], found["broken"]["errors"]) == (0, 2)
    assert found["broken"]["change"]["success"]["rate"] is None
    assert found["none"]["n"] == 2
    assert run(policy, REACH, [0, 1], arms, tmp_path / "rows.jsonl") == rows
    with pytest.raises(InputError, match="broke off"):
        replay(REACH, rows[2])
    with pytest.raises(InputError, match="No episode"):
        effect(rows, "none", "broken", "displacement")


def test_an_episode_can_be_played_again(tmp_path: Path) -> None:
    (row,) = run(Expert(), Setting("pick"), [3], [BASELINE], tmp_path / "rows.jsonl")
    episode = replay(Setting("pick"), row, side=32)
    assert episode.success and row["metrics"]["success"] == 1 == row["metrics"]["right_block"]
    assert episode.images.shape == (len(row["actions"]), 32, 32, 3)
    np.testing.assert_allclose(episode.end_effector, row["hand"], atol=1e-5)
    assert episode.actions.tolist() == row["actions"]
    assert (episode.instruction, episode.speed) == (row["instruction"], "normal")


def test_words_move_the_expert_over_the_same_seeds(tmp_path: Path) -> None:
    arms = make({}, prompts=["slow", "high"])
    rows = run(Expert(), REACH, range(6), arms, tmp_path / "rows.jsonl")
    found = summarize(rows, arms)
    slower, higher = found["said: slow"]["change"], found["said: high"]["change"]
    assert slower["displacement"]["interval"][1] < -0.01 and higher["mean_height"]["interval"][0] > 0.01
    assert found["none"]["values"]["success"] == {"rate": 1.0, "n": 6, "interval": pytest.approx([0.61, 1.0], abs=0.01)}
    start, change = effect(rows, "none", "said: slow", "displacement")
    assert change == pytest.approx(slower["displacement"]["rate"]) and 0.02 < start < 0.04


WORKER = """
import sys
from pathlib import Path
from vlmsteer_robotics.arms import make
from vlmsteer_robotics.policy import Expert
from vlmsteer_robotics.rollouts import Setting, run
run(Expert(), Setting("reach"), range(30), make({}, prompts=["slow"]), Path(sys.argv[1]), 4)
"""


def test_a_killed_run_goes_on_and_does_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(path)], env=worker_environment())
    deadline = time.monotonic() + 120
    while (not path.exists() or path.read_bytes().count(b"\n") < 7) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = path.read_bytes()
    before = kept[: kept.rfind(b"\n") + 1]
    assert 7 <= before.count(b"\n") < 60
    path.write_bytes(before + b'{"key": "cut o')
    ran = []
    arms = make({}, prompts=["slow"])
    rows = run(Expert(), Setting("reach"), range(8), arms, path, 4, lambda done, of, arm: ran.append((done, of)))
    assert path.read_bytes().startswith(before)
    after = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len({row["key"] for row in after}) == len(after) == before.count(b"\n") + len(ran)
    assert ran[-1] == (16, 16)
    fresh = run(Expert(), Setting("reach"), range(8), arms, tmp_path / "fresh.jsonl", 3)
    assert rows == fresh


def worker_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def test_what_is_measured() -> None:
    """Four steps of 3, 4, 0 and 5 cm; the second goes 4 cm up, the last one 3 cm aside and 4 cm along."""
    hand = np.array([[0.4, 0, 0.1], [0.43, 0, 0.1], [0.43, 0, 0.14], [0.43, 0, 0.14], [0.47, 0.03, 0.14]])
    found = measure(hand, np.array([0.5, 0, 0.025]), False, True, 7, 1, 2)
    assert found.keys() == METRICS.keys()
    expected = {
        "displacement": 0.03, "speed": (0.03 + 0.05) / 4 * 5, "mean_height": (0.1 + 3 * 0.14) / 4, "max_height": 0.14,
        "drift": 0.03, "success": 0, "right_block": 1, "steps": 4, "other_tokens": 0.25, "clipped": 0.25,
        "unreachable": 0.5,
    }  # fmt: skip
    assert found == pytest.approx(expected)
    assert measure(hand[::-1], hand[4], True, True, 0, 0, 0)["drift"] == 0


def test_a_recipe_among_random_sets() -> None:
    sets = np.linspace(-1, 1, 21).tolist()
    assert beyond(2.0, sets) == {
        "changes": sets, "mean": pytest.approx(0), "bounds": pytest.approx([-0.95, 0.95]), "percentile": 100.0,
        "beyond": True,
    }  # fmt: skip
    inside = beyond(0.0, sets)
    assert inside is not None and not inside["beyond"] and inside["percentile"] == pytest.approx(50)
    assert beyond(None, sets) is None and beyond(1.0, [None]) is None


def test_effects_are_paired_and_controls_belong_to_their_recipe(tmp_path: Path, policy: Vla, turned: Any) -> None:
    arms = make({"turned": turned}, [1.0, 0.5], 3, ["slow"], policy.session, seed=2)
    assert [arm.name for arm in arms[:4]] == ["none", "said: slow", "turned", "turned, random 1"]
    assert [arm.of for arm in arms if arm.kind == "random"] == ["turned"] * 3 + ["turned x0.5"] * 3
    assert len({str(arm.spec()) for arm in arms}) == len(arms) == 10
    rows = []
    for number, arm in enumerate(arms):
        for seed in range(5):
            metrics = {**dict.fromkeys(METRICS, 0.5), "displacement": 0.04 + 0.01 * number + 0.002 * seed}
            rows.append({"arm": arm.name, "seed": seed, "error": None, "metrics": metrics})
    rows[3]["error"] = "broke"  # the baseline's fourth seed leaves every pair
    found = summarize(rows, arms)
    assert found["turned"]["change"]["displacement"]["rate"] == pytest.approx(0.02)
    assert found["turned"]["change"]["displacement"]["n"] == 4 and found["turned"]["n"] == 5
    assert found["turned"]["against"]["said: slow"]["displacement"]["rate"] == pytest.approx(0.01)
    assert found["turned"]["random"]["displacement"]["changes"] == pytest.approx([0.03, 0.04, 0.05])
    assert found["turned"]["random"]["displacement"]["beyond"]
    assert found["turned"]["random"]["displacement"]["percentile"] == 0
    assert found["turned x0.5"]["random"]["sets"] == 3


@pytest.mark.parametrize(("target", "start", "slope"), [(0.02, 0.04, -0.015), (0.2, 0.13, 0.05)])
def test_a_controller_holds_a_linear_plant(target: float, start: float, slope: float) -> None:
    """The real effect is half of what was measured, and a disturbance comes halfway; the target is reached again."""
    controller = Controller(Hold("displacement", target, start, slope, (0.0, 6.0)))
    rng, held = np.random.default_rng(0), []
    for step in range(120):
        held.append(start + 0.5 * slope * controller.strength + (0.1 * slope if step > 60 else 0))
        controller.update(held[-1] + rng.normal(0, 0.02 * abs(slope)))
        assert 0 <= controller.strength <= 6
    for part in (held[40:60], held[100:]):
        assert np.mean(part) == pytest.approx(target, abs=0.03 * abs(slope))


def test_a_controller_does_not_wind_up() -> None:
    """Long at its limit, it leaves it at once when the target can be reached again."""
    controller = Controller(Hold("height", 0.3, 0.1, 0.05, (0.0, 2.0)))
    for _ in range(200):
        assert controller.update(0.1 + 0.05 * controller.strength) == 2.0
    assert controller.update(0.35) < 2.0


def test_a_held_arm_turns_its_recipe(policy: Vla, turned: Any, tmp_path: Path) -> None:
    hold = Hold("displacement", 0.03, 0.04, -0.02, (0.2, 1.5))
    (row,) = run(policy, REACH, [0], [Arm("held", "hold", turned, hold=hold)], tmp_path / "rows.jsonl")
    assert len(row["strengths"]) == len(row["actions"]) and row["strengths"][0] == 0.5
    assert len(set(row["strengths"])) > 3 and 0.2 <= min(row["strengths"]) <= max(row["strengths"]) <= 1.5


def test_what_cannot_be_run(sessions: Any, policy: Vla, turned: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a policy"):
        Vla(sessions["llava"])
    with pytest.raises(InputError, match="statistics"):
        Vla(policy.session, "kitchen")
    with pytest.raises(InputError, match="At least one"):
        run(policy, REACH, [], [BASELINE], tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="no task"):
        run(policy, Setting("fly"), [0], [BASELINE], tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="speed or height"):
        make({}, prompts=["normal"])
    with pytest.raises(InputError, match="no neurons"):
        make({"turned": turned}, random=1)
    with pytest.raises(InputError, match="too little"):
        Hold("displacement", 0.02, 0.04, 0.0)
    with pytest.raises(InputError, match="lower limit"):
        Hold("displacement", 0.02, 0.04, -0.01, (1.0, 1.0))
    with pytest.raises(InputError, match="quantity"):
        Hold("temper", 0.02, 0.04, -0.01)
