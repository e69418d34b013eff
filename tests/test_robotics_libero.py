"""OpenVLA's protocol on LIBERO: pictures as TensorFlow makes them, commands, seeds, waiting, limits, errors, resuming.

LIBERO is not installed here, so `stand_ins/libero` takes its place: the same names, arguments and traps.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_recipes import recipe
from PIL import Image

from vlmsteer.errors import InputError, ModelError, RecipeError
from vlmsteer.openvla.actions import act
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors
from vlmsteer_robotics import libero
from vlmsteer_robotics.libero import images, suites
from vlmsteer_robotics.libero.trials import Player, command
from vlmsteer_robotics.policy import Choice
from vlmsteer_robotics.simulator import mujoco

SUITES = ("spatial", "goal", "object", "10", "90")
STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """LIBERO's stand-in in an environment with its MuJoCo; gives the module of its environments."""
    monkeypatch.syspath_prepend(STAND_INS)
    monkeypatch.setattr(mujoco, "__version__", "3.8.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "config"))
    suites.suite("libero_spatial")
    yield importlib.import_module("libero.libero.envs")
    for name in [name for name in sys.modules if name.partition(".")[0] == "libero"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def policy(sessions: Any) -> Any:
    return sessions["openvla"]


class Still:
    """A policy without a model, which holds the hand where it is."""

    name, side, spec = "still", 224, {}

    def __call__(self, moments: Any, recipes: Any) -> list[Choice]:
        return [Choice(np.zeros(7)) for _ in moments]


def run(policy: Any, **options: Any) -> libero.Evaluation:
    return libero.evaluate(policy, "libero_spatial", **{"trials": 4, "tasks": [0], "unnorm_key": "blocks", **options})


def steps(env: Any) -> list[list[list[float]]]:
    """The commands of each trial of an environment."""
    trials: list[list[list[float]]] = []
    for name, value in env.calls:
        if name == "state":
            trials.append([])
        elif name == "step":
            trials[-1].append(value)
    return trials


def stripes() -> np.ndarray:
    row, column, channel = np.mgrid[0:256, 0:256, 0:3]
    return ((3 * column + 5 * row + 40 * channel) % 256).astype(np.uint8)


def test_pictures_are_tensorflows() -> None:
    """TensorFlow 2.21: tf.image.resize(lanczos3, antialias), tf.image.crop_and_resize; at every 45th pixel, green."""
    small = images.resized(stripes())
    wanted = [
        [41, 195, 93, 255, 146], [42, 196, 94, 255, 147], [43, 197, 95, 247, 148], [44, 198, 97, 232, 149],
        [45, 199, 98, 255, 150],
    ]  # fmt: skip
    np.testing.assert_allclose(small[::45, ::45, 1].astype(int), wanted, atol=1)
    assert abs(int(small.sum()) - 19193199) < 2000
    cut = images.center_crop(small)
    wanted = [
        [92, 239, 129, 20, 166], [80, 227, 118, 7, 154], [68, 215, 106, 222, 142], [56, 203, 93, 238, 130],
        [44, 191, 81, 228, 118],
    ]  # fmt: skip
    np.testing.assert_allclose(cut[::45, ::45, 1].astype(int), wanted, atol=1)
    assert abs(int(cut.sum()) - 19137954) < 4000


def test_pictures_are_turned_and_cut_in_the_middle() -> None:
    frame = np.zeros((256, 256, 3), np.uint8)
    frame[:40, :40] = (250, 20, 20)  # above on the left as LIBERO draws it: below on the right
    frame[-4:] = 255  # a border of 4 pixels is cut off: a side loses (1 - sqrt 0.9) / 2 of its 256 pixels, 6.6
    seen, whole = images.prepared(frame), images.prepared(frame, crop=False)
    assert seen.shape == whole.shape == (224, 224, 3) and seen.dtype == np.uint8
    assert seen[-10:, -10:].mean((0, 1)) == pytest.approx((250, 20, 20), abs=6)
    assert seen[:100].max() < 12 and whole[0].min() > 240
    red = (whole[-1, :, 0] > 125).mean(), (seen[-1, :, 0] > 125).mean()
    side = 0.9**0.5
    assert red == pytest.approx((40 / 256, (40 / 256 - (1 - side) / 2) / side), abs=1 / 200)
    with pytest.raises(InputError, match="height, width, 3"):
        images.prepared(frame[..., 0])


def test_jpeg_changes_a_picture_little() -> None:
    row, column = np.mgrid[0:256, 0:256]
    smooth = np.stack([127 + 120 * np.sin(column / 30), 127 + 120 * np.cos(row / 40), 127 + 0 * row], 2).astype(
        np.uint8
    )
    away = np.abs(images.through_jpeg(smooth).astype(int) - smooth)
    assert 0 < away.mean() < 1.5 and away.max() < 12


def test_gripper_conventions() -> None:
    """OpenVLA: 1 open, 0 closed; LIBERO: -1 open, 1 closed; in between the nearer one."""
    action = np.array([0.1, -0.2, 0.3, 0, 0.5, -0.5, 1.0])
    assert command(action).tolist() == [0.1, -0.2, 0.3, 0, 0.5, -0.5, -1]
    grip = [command(np.array([0.0] * 6 + [given]))[6] for given in (0, 0.2, 0.498, 0.502, 0.9)]
    assert grip == [1, 1, 1, -1, -1]


def test_the_protocol(policy: Any, outside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(libero.STEPS, "libero_spatial", 4)
    found = run(policy, tasks=None)
    assert [(trial.task, trial.trial) for trial in found.trials] == [
        (task, trial) for task in (0, 1) for trial in range(4)
    ]
    assert [(trial.success, trial.steps) for trial in found.trials[:4]] == [(True, 3), (False, 4), (None, 1), (True, 1)]
    assert [trial.instruction for trial in found.trials[::4]] == ["pick up the red bowl", "Open the drawer"]
    env = outside.made[0]
    assert env.calls[0] == ("seed", 0) and [name for name, _ in env.calls].count("seed") == 1
    assert [name for name, _ in env.calls[1:3]] == ["reset", "state"]
    assert env.size == (256, 256) and env.file.endswith("bddl_files/libero_spatial/pick_up_the_red_bowl.bddl")
    assert len(outside.made) == 2 and all(env.closed for env in outside.made)
    for one in steps(env):
        assert one[:10] == [[0, 0, 0, 0, 0, 0, -1]] * 10
        assert all(action[6] in (-1, 1) for action in one)
    assert [len(one) - 10 for one in steps(env)] == [3, 4, 2, 1]


def test_step_limits(outside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' numbers, and what becomes of a trial that would need one step more."""
    spatial, goals, objects, long, ninety = (libero.STEPS[f"libero_{name}"] for name in SUITES)
    assert (spatial, objects, goals, long, ninety) == (220, 280, 300, 520, 400)
    monkeypatch.setattr("libero.libero.benchmark.STATES", [(12, 0), (13, 0)])
    player = Player(Still(), None, 12, 2, False)
    found = list(player.play(suites.suite("libero_spatial"), 1, 2))
    assert [(trial.success, trial.steps) for trial in found] == [(True, 12), (False, 12)]


def test_actions_are_the_policys(policy: Any, outside: Any) -> None:
    """The first trial once more, by hand."""
    run(policy, trials=1)
    env = outside.OffScreenRenderEnv("", 256, 256)
    env.seed(0)
    env.reset()
    env.set_init_state([3, 0])
    for _ in range(10):
        seen = env.step([0, 0, 0, 0, 0, 0, -1])[0]
    for taken in steps(outside.made[0])[0][10:]:
        picture = Image.fromarray(images.prepared(seen["agentview_image"]))
        action = act(policy, [picture], ["pick up the red bowl"], unnorm_key="blocks").actions[0]
        assert taken == [*action[:6], -1 if action[6] > 0.5 else 1]
        seen = env.step(taken)[0]


def test_a_recipe_and_the_crop_change_what_is_done(policy: Any, outside: Any) -> None:
    steer = recipe(policy, "text.*.block_out", positions="all", seed=1, size=3.0)
    found = [run(policy, trials=1), run(policy, trials=1, recipe=steer), run(policy, trials=1, crop=False)]
    plain, steered, whole = (steps(env)[0] for env in outside.made)
    assert plain[:10] == steered[:10] == whole[:10] and plain != steered and plain != whole
    assert len({json.dumps(dict(one.settings)) for one in found}) == 3
    assert found[1].settings["recipe"] == steer.hash


def test_errors_are_no_failures(policy: Any, outside: Any, tmp_path: Path) -> None:
    found = run(policy)
    assert [(trial.trial, trial.error) for trial in found.errors] == [(2, "RuntimeError: the simulation is unstable")]
    assert (found.success.n, found.success.rate) == (3, 1)
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (told["errors"], told["tasks"][0]["success"]["n"], told["trials"][2]["success"]) == (1, 3, None)


def test_a_policy_that_breaks_in_one_robot(policy: Any, outside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = Recipe((Edit(Vectors("text", "block_out", {1: torch.full((48,), 3e38)}), strength=2.0),))
    found = run(policy, recipe=flood, together=3)
    assert all("its logits are not numbers" in str(trial.error) for trial in found.trials)
    assert found.success.n == 0 and found.as_dict()["success"]["rate"] is None


def test_together(policy: Any, outside: Any) -> None:
    """Two robots act by one forward; each trial begins in its own state, and every action is as if alone."""
    found = run(policy, together=2)
    assert [(trial.success, trial.steps) for trial in found.trials] == [(True, 3), (True, 5), (None, 1), (True, 1)]
    left, right = outside.made
    assert [call for call in left.calls if call[0] == "state"] == [("state", (3, 0)), ("state", (2, 12))]
    assert [len(one) for one in steps(left)] == [13, 12] and [len(one) for one in steps(right)] == [15, 11]
    alone = run(policy, together=2, trials=1)
    assert alone.trials[0].success and len(outside.made) == 3


def test_a_stopped_run_goes_on(policy: Any, outside: Any, tmp_path: Path) -> None:
    """Finished trials are kept, broken ones are tried again, and what resets draw is what it would have been."""
    whole, path = run(policy), tmp_path / "trials.jsonl"

    def stop(done: int, of: int, trial: libero.Trial) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(policy, out=path, progress=stop)
    assert len(path.read_text().splitlines()) == 2 and outside.made[1].closed
    told: list[tuple[int, int]] = []
    assert run(policy, out=path, progress=lambda done, of, _: told.append((done, of))) == whole
    assert told == [(3, 4), (4, 4)]
    assert steps(outside.made[2]) == steps(outside.made[0])[2:]
    assert run(policy, out=path) == whole
    assert [len(one) for one in steps(outside.made[3])] == [12]  # the broken one alone
    assert run(policy, out=path, trials=2).trials == whole.trials[:2] and len(outside.made) == 4
    assert [row["suite"] for row in map(json.loads, path.read_text().splitlines())] == ["libero_spatial"] * 5


def test_it_asks_no_questions(monkeypatch: pytest.MonkeyPatch, outside: Any, tmp_path: Path) -> None:
    """Without LIBERO_CONFIG_PATH a folder for this process is made; a config that is there is left as it is."""
    written = tmp_path / "config" / "config.yaml"
    assert json.loads(written.read_text())["bddl_files"].endswith("stand_ins/libero/libero/bddl_files")
    written.write_text('{"bddl_files": "/mine"}')
    suites.suite("libero_spatial")
    assert written.read_text() == '{"bddl_files": "/mine"}'
    monkeypatch.delenv("LIBERO_CONFIG_PATH")
    for name in [name for name in sys.modules if name.partition(".")[0] == "libero"]:
        del sys.modules[name]
    assert suites.suite("libero_goal").n_tasks == 2
    assert not (tmp_path / ".libero").exists()
    assert Path(os.environ["LIBERO_CONFIG_PATH"], "config.yaml").is_file()


def test_what_is_missing(policy: Any, monkeypatch: pytest.MonkeyPatch, outside: Any, tmp_path: Path) -> None:
    library = importlib.import_module("libero.libero")
    monkeypatch.setattr(library, "assets", tmp_path / "nowhere")
    with pytest.raises(InputError, match="scenes are not on this machine.*lerobot/libero-assets.*nowhere"):
        run(policy)
    monkeypatch.setattr(library, "assets", tmp_path)
    monkeypatch.setattr(outside.OffScreenRenderEnv, "seed", lambda self, seed: self.gone)
    with pytest.raises(InputError, match="task 0 cannot be made .AttributeError.*MUJOCO_GL"):
        run(policy)
    with pytest.MonkeyPatch.context() as inside:
        inside.setitem(sys.modules, "libero.libero.envs", None)
        with pytest.raises(InputError, match=r"LIBERO lacks libero.libero.envs: pip install 'vlmsteer\[libero\]'"):
            run(policy)
        inside.setattr(mujoco, "__version__", "4.0.0")
        with pytest.raises(InputError, match=r"does not work with MuJoCo 4.0.0: pip .* before 3.9"):
            run(policy)
        inside.setitem(sys.modules, "libero", None)
        with pytest.raises(InputError, match=r"LIBERO is not installed: pip install 'vlmsteer\[libero\]' in an env"):
            run(policy)


def test_what_cannot_be_evaluated(policy: Any, llava: Any, outside: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="suite 'libero_11' is unknown.*libero_10"):
        libero.evaluate(policy, "libero_11")
    with pytest.raises(InputError, match="libero_spatial_no_noops"):  # whose units?
        libero.evaluate(policy, "libero_spatial", trials=1)
    with pytest.raises(InputError, match="5 trials were asked for; task 0 has 4 initial states"):
        run(policy, trials=5)
    with pytest.raises(InputError, match="task 2 is unknown.*0, 1"):
        run(policy, tasks=[2])
    with pytest.raises(InputError, match="0 trials and 1 robots"):
        run(policy, trials=0)
    with pytest.raises(InputError, match="cannot be written"):
        run(policy, out=tmp_path)
    with pytest.raises(ModelError, match="not a policy"):
        libero.evaluate(llava, "libero_spatial", unnorm_key="blocks")
    with pytest.raises(RecipeError, match="made for"):
        run(
            policy, recipe=Recipe((Edit(Vectors("text", "block_out", {0: torch.ones(48)}), strength=1.0),), {"id": "x"})
        )
    assert outside.made == []
