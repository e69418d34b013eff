"""Meta-World with the face of our table: seeds, seven numbers for four, experts, refusals.

Where it is not installed, `stand_ins/metaworld` takes its place: the same names, arguments and traps.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlmsteer.errors import InputError
from vlmsteer_robotics import metaworld
from vlmsteer_robotics.metaworld_words import INSTRUCTIONS
from vlmsteer_robotics.simulator import mujoco

INSTALLED = importlib.util.find_spec("metaworld") is not None
STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Meta-World itself, or its stand-in in an environment with its MuJoCo."""
    if INSTALLED:
        yield
        return
    monkeypatch.syspath_prepend(Path(__file__).parent / "stand_ins")
    monkeypatch.setattr(mujoco, "__version__", "3.3.0")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "metaworld"]:
        del sys.modules[name]


def make(**options: Any) -> metaworld.MetaWorldEnv:
    return metaworld.make_env("reach-v3", pictures=False, **options)


def play(env: metaworld.MetaWorldEnv, seed: int, most: int = 500) -> tuple[bool, list[list[float]]]:
    """Whether the expert succeeds, and where the hand was."""
    _, info = env.reset(seed=seed)
    hands, over = [info["end_effector"].tolist()], False
    while not over and len(hands) <= most:
        _, _, terminated, truncated, info = env.step(metaworld.expert_action(env))
        hands.append(info["end_effector"].tolist())
        over = terminated or truncated
    return info["success"], hands


def test_experts_succeed_and_seeds_decide() -> None:
    env, other = make(), make()
    found = [play(env, seed) for seed in range(5)]
    assert all(success for success, _ in found) and all(5 < len(hands) < 100 for _, hands in found)
    assert [play(other, seed) for seed in (4, 2)] == [found[4], found[2]]  # in any order
    assert len({str(hands) for _, hands in found}) == 5
    env.close()


def test_later_episodes_follow_from_the_first_seed() -> None:
    def drawn(seed: int) -> list[tuple[int, list[float]]]:
        env = make(seed=seed)
        return [(env.reset()[1]["seed"], env.numbers[-3:].tolist()) for _ in range(3)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert drawn(3)[0][0] == 3 and len({str(goal) for _, goal in drawn(3)}) == 3


def test_an_action_moves_the_hand_by_meters() -> None:
    env = make()
    observation, info = env.reset(seed=0)
    assert info["instruction"] == env.instruction == "reach the goal" and not info["success"]
    assert env.observation_space.contains(observation) and env.action_space.contains(STILL.astype(np.float32))
    before = info["end_effector"]
    for _ in range(5):
        observation, *_, info = env.step([0.01, 0, 0.005, 1, -1, 0.5, 1])  # turning changes nothing
    moved = info["end_effector"] - before
    assert 0.02 < moved[0] <= 0.051 and moved[2] == pytest.approx(moved[0] / 2, abs=0.01) and abs(moved[1]) < 0.01
    np.testing.assert_allclose(observation["state"][:3], info["end_effector"], atol=1e-6)


def test_fingers() -> None:
    """1 opens, 0 closes, as on our table."""
    env = make()
    env.reset(seed=0)
    for _ in range(30):
        opened = env.step(STILL)[0]["state"][3]
    for _ in range(30):
        closed = env.step(np.zeros(7))[0]["state"][3]
    assert opened > 0.9 > 0.6 > closed


def test_an_episode_ends_after_500_steps() -> None:
    env = make()
    env.reset(seed=0)
    ends = [env.step(STILL)[2:4] for _ in range(500)]
    assert ends == [(False, False)] * 499 + [(False, True)]
    with pytest.raises(InputError, match="500 steps are used up; call reset"):
        env.step(STILL)
    env.reset()
    assert env.step(STILL)[2:4] == (False, False)


@pytest.mark.skipif(INSTALLED, reason="needs no graphics library in the stand-in alone")
def test_pictures_are_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    env = metaworld.make_env("reach-v3", seed=0, side=32)
    image = env.reset()[0]["image"]
    assert image.shape == (32, 32, 3) and image[-1, -1].min() == 255 and image.sum() == 3 * 255
    assert (env.inner.render_mode, env.inner.camera) == ("rgb_array", "corner2")
    assert make().reset(seed=0)[0]["image"].max() == 0
    monkeypatch.setattr(env.inner, "render", lambda: env.inner.context)
    with pytest.raises(InputError, match="cannot draw here .AttributeError.*MUJOCO_GL.*pictures=False"):
        env.reset()
    env.close()
    assert env.inner.closed


def test_every_task_has_words() -> None:
    import metaworld as library  # pyright: ignore[reportMissingImports]

    assert len(INSTRUCTIONS) == len(set(INSTRUCTIONS.values())) == 50
    assert {name.removesuffix("-v3") for name in library.ALL_V3_ENVIRONMENTS} <= set(INSTRUCTIONS)


@pytest.mark.parametrize(
    "action", [np.zeros(4), [0.02, 0, 0, 0, 0, 0, 0], [np.nan] * 7, [0, 0, 0, 0, 0, 0, 1.5], np.zeros((1, 7))]
)
def test_actions_that_are_not_possible(action: Any) -> None:
    env = make()
    with pytest.raises(InputError, match="call reset first"):
        env.step(STILL)
    env.reset(seed=0)
    with pytest.raises(InputError, match="is not possible: seven numbers are needed"):
        env.step(action)
    env.step(STILL)


def test_what_is_unknown() -> None:
    with pytest.raises(InputError, match="task of Meta-World 'reach-v9' is unknown; did you mean 'reach-v3'"):
        metaworld.make_env("reach-v9")
    with pytest.raises(InputError, match="option of the environment 'camera' is unknown.*pictures, side"):
        metaworld.make_env("reach-v3", camera="corner")
    with pytest.raises(InputError, match="no options; .'layout'. were given"):
        make().reset(options={"layout": 1})


def test_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as inside:
        inside.setattr(mujoco, "__version__", "4.0.0")
        with pytest.raises(InputError, match=r"Meta-World does not work with MuJoCo 4.0.0: pip install .* before 3.13"):
            make()
        inside.setitem(sys.modules, "metaworld", None)
        with pytest.raises(
            InputError, match=r"Meta-World is not installed: pip install 'vlmsteer\[metaworld\]' in an e"
        ):
            make()
    with monkeypatch.context() as inside:
        inside.setitem(sys.modules, "metaworld.policies", None)
        with pytest.raises(InputError, match="Meta-World lacks metaworld.policies"):
            make()
