"""The robot's environment: gymnasium's rules, the same episode from the same seed, kinematics, splits, refusals."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import vlmsteer_robotics as robotics
from vlmsteer.errors import InputError
from vlmsteer_robotics.env import TabletopEnv
from vlmsteer_robotics.layouts import cells, checked, color_pairs, draw
from vlmsteer_robotics.robot import REACH
from vlmsteer_robotics.scene import COLORS

STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


def play(env: TabletopEnv, seed: int, actions: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Images as bytes, and states, of an episode."""
    observation, _ = env.reset(seed=seed)
    images, states = [observation["image"].tobytes()], [observation["state"]]
    for action in actions:
        observation, _, over, _, _ = env.step(action)
        images.append(observation["image"].tobytes())
        states.append(observation["state"])
        if over:
            break
    return images, np.stack(states)


@pytest.mark.parametrize("name", list(robotics.ENVIRONMENTS))
def test_gymnasium_accepts_it(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name, render_mode="rgb_array").unwrapped)


def test_same_seed_same_bytes_in_any_order() -> None:
    rng = np.random.default_rng(0)
    actions = np.concatenate([rng.uniform(-0.04, 0.04, (8, 3)), rng.uniform(-0.1, 0.1, (8, 3)), rng.random((8, 1))], 1)
    env, other = robotics.make_env("pick"), robotics.make_env("pick")
    images, states = play(env, 7, actions)
    play(other, 8, actions[::-1])  # what another episode leaves behind must not matter
    again, states_again = play(other, 7, actions)
    assert images == again
    assert (states == states_again).all()
    assert play(other, 8, actions)[0] != images


def test_later_episodes_follow_from_the_first_seed() -> None:
    def instructions(seed: int) -> list[tuple[int, str]]:
        env = robotics.make_env("reach", seed=seed, pictures=False)
        return [(info["seed"], info["instruction"]) for _, info in (env.reset() for _ in range(4))]

    assert instructions(3) == instructions(3) != instructions(4)
    assert instructions(3)[0][0] == 3


def test_kinematics_are_the_published_ones() -> None:
    """The product of the UR5e's Denavit-Hartenberg matrices, from the base turned by half a circle."""
    robot = robotics.make_env(pictures=False).robot
    rows = [  # a, d, alpha: Universal Robots, "DH parameters for calculations of kinematics and dynamics"
        (0, 0.1625, math.pi / 2), (-0.425, 0, 0), (-0.3922, 0, 0),
        (0, 0.1333, math.pi / 2), (0, 0.0997, -math.pi / 2), (0, 0.0996, 0),
    ]  # fmt: skip
    for joints in np.random.default_rng(1).uniform(-3, 3, (20, 6)):
        pose = np.diag([-1.0, -1.0, 1.0, 1.0])
        for angle, (a, d, alpha) in zip(joints, rows, strict=True):
            c, s, ca, sa = math.cos(angle), math.sin(angle), math.cos(alpha), math.sin(alpha)
            pose = pose @ [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
        position, rotation = robot.arm.pose(joints)
        np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-9)
        np.testing.assert_allclose(position, pose[:3, 3] + 0.155 * pose[:3, 2], atol=1e-9)


@pytest.mark.parametrize("axis", range(6))
def test_an_action_moves_and_turns_as_it_says(axis: int) -> None:
    env = robotics.make_env("reach", seed=1, pictures=False)
    before = env.reset()[0]["state"]
    action = STILL.copy()
    action[axis] = 0.05
    after = env.step(action)[0]["state"]
    expected = before[:6].copy()
    expected[axis] += 0.05
    np.testing.assert_allclose(after[:3], expected[:3], atol=5e-3)
    np.testing.assert_allclose(after[3:6], expected[3:], atol=1.2e-2)


def test_fingers_open_and_close() -> None:
    env = robotics.make_env("reach", seed=1, pictures=False)
    opened = [env.reset()[0]["state"][6]]
    for fingers in (0.0, 0.5, 1.0):
        for _ in range(3):
            observation = env.step([*STILL[:6], fingers])[0]
        opened.append(observation["state"][6])
    np.testing.assert_allclose(opened, [1, 0, 0.5, 1], atol=0.03)


@pytest.mark.parametrize(
    ("action", "complaint"),
    [
        (np.full(7, np.nan), "not finite"),
        ([0, 0, np.inf, 0, 0, 0, 1], "not finite"),
        (np.zeros(6), r"shape \(6,\)"),
        (np.zeros((1, 7)), r"shape \(1, 7\)"),
        ([0.2, 0, 0, 0, 0, 0, 1], "out of range"),
        ([0, 0, 0, 0, 0, 0, -1], "out of range"),
    ],
)
def test_an_action_that_cannot_be_meant_is_refused(action: Any, complaint: str) -> None:
    env = robotics.make_env("reach", seed=0, pictures=False)
    env.reset()
    with pytest.raises(InputError, match=complaint):
        env.step(action)
    assert env.step(STILL)[4]["end_effector"].shape == (3,)  # the episode goes on


def test_a_target_out_of_reach_is_held_or_refused() -> None:
    up = [0, 0, 0.08, 0, 0, 0, 1]
    env = robotics.make_env("reach", seed=0, pictures=False)
    env.reset()
    flags, heights = zip(*[(info["unreachable"], info["end_effector"][2]) for *_, info in map(env.step, [up] * 5)],
                         strict=True)  # fmt: skip
    assert flags == (False, False, True, True, True)
    assert max(heights) < REACH[1, 2] + 0.005
    strict = robotics.make_env("reach", seed=0, pictures=False, unreachable="refuse")
    strict.reset()
    with pytest.raises(InputError, match="cannot reach"):
        for _ in range(5):
            strict.step(up)


def test_pressing_on_the_table_and_turning_far_do_no_harm() -> None:
    env = robotics.make_env("reach-red", seed=2, pictures=False)
    env.reset()
    for action in ([0, 0, -0.08, 0.35, 0, 0, 0], [0, 0, -0.08, 0, 0.35, 0.35, 1]) * 8:
        observation, *_, info = env.step(action)
    assert np.isfinite(observation["state"]).all()
    assert env.observation_space.contains(observation)
    assert (info["blocks"][:, 2] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"task": "reach-rde"}, "did you mean 'reach-red'"),
        ({"speed": "slowly"}, "did you mean 'slow'"),
        ({"split": "validation"}, "possible: test, train"),
        ({"distractors": 5}, "number of distractors 5"),
        ({"split": "test", "distractors": 0}, "number of distractors 0"),
        ({"hight": "low"}, "did you mean 'height'"),
        ({"side": 3}, "sides are 8 to 2048"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        robotics.make_env(**arguments)


def test_step_before_reset_is_refused() -> None:
    with pytest.raises(InputError, match="call reset"):
        robotics.make_env().step(STILL)


def test_vectorized_environments_equal_single_ones() -> None:
    seeds, actions = [3, 4, 5], np.tile([0.02, -0.01, -0.01, 0, 0, 0, 0.5], (3, 1)).astype(np.float32)
    many: Any = gymnasium.make_vec("vlmsteer/Push-v0", num_envs=3, vectorization_mode="sync", distractors=1)
    together, info = many.reset(seed=seeds)
    moved, *_ = many.step(actions)
    for number, seed in enumerate(seeds):
        env = robotics.make_env("push", distractors=1)
        alone, own = env.reset(seed=seed)
        assert info["instruction"][number] == own["instruction"]
        assert (together["image"][number] == alone["image"]).all()
        assert (moved["image"][number] == env.step(actions[number])[0]["image"]).all()
    many.close()


def where(place: tuple[float, float]) -> tuple[int, int]:
    return int((place[0] - 0.36) / 0.05), int((place[1] + 0.20) / 0.05)


@pytest.mark.parametrize("task", ["reach", "push", "pick-left", "reach-cyan-right"])
def test_splits_share_no_target_cell_and_no_color_pair(task: str) -> None:
    assert not set(cells("train")) & set(cells("test"))
    assert not set(color_pairs("train")) & set(color_pairs("test"))
    for split in robotics.SPLITS:
        assert {one for one, _ in color_pairs(split)} == {other for _, other in color_pairs(split)} == set(COLORS)
    for seed in range(60):
        for split in robotics.SPLITS:
            layout = draw(robotics.task(task), seed, split)
            target = layout.colors[layout.target]
            pairs = {(target, color) for color in layout.colors} - {(target, target)}
            if split == "train":
                assert {where(place) for place in layout.places} <= set(cells("train"))
                assert pairs <= set(color_pairs("train"))
            else:
                assert where(layout.places[layout.target]) in cells("test")
                assert pairs & set(color_pairs("test"))


def test_the_instruction_names_one_block() -> None:
    """By color there is one of it; by side none lies further out; by both, none of that color lies further out."""
    kinds = set()
    for seed in range(80):
        layout = draw(robotics.task("reach"), seed)
        kinds.add((layout.color is not None, layout.side is not None))
        meant = [number for number, color in enumerate(layout.colors) if layout.color in (None, color)]
        across = [layout.places[number][1] for number in meant]
        if layout.side:
            meant = [meant[int(np.argmin(across) if layout.side == "left" else np.argmax(across))]]
        assert meant == [layout.target]
    assert kinds == {(True, False), (False, True), (True, True)}


def test_reaching_a_wrong_block_ends_the_episode_without_success() -> None:
    env = robotics.make_env("reach-red", seed=5, pictures=False)
    _, info = env.reset()
    wrong = (info["target"] + 1) % 3
    over = False
    while not over:
        action = robotics.expert_action(dataclasses.replace(env.state(), target=wrong))
        _, reward, over, truncated, info = env.step(action)
        assert not truncated
    assert (reward, info["success"], info["chosen"]) == (0.0, False, wrong)


def test_steps_run_out() -> None:
    env = robotics.make_env("reach", seed=5, pictures=False)
    env.reset()
    ends = [env.step(STILL)[2:4] for _ in range(robotics.task("reach").steps)]
    assert ends == [(False, False)] * (len(ends) - 1) + [(False, True)]


def test_a_scene_can_be_given() -> None:
    env = robotics.make_env("reach", seed=0, pictures=False)
    layout = dataclasses.replace(draw(env.task, 0), places=((0.4, -0.1), (0.5, 0.1)), colors=("blue", "cyan"), target=1)
    _, info = env.reset(options={"layout": layout, "speed": "slow"})
    np.testing.assert_allclose(info["blocks"][:, :2], layout.places)
    assert info["instruction"].endswith(" slowly")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"places": ((0.9, 0.0), (0.4, 0.1), (0.5, -0.1))}, "out of the robot's reach"),
        ({"places": ((0.4, 0.0), (0.41, 0.01), (0.5, -0.1))}, "apart"),
        ({"places": ((0.4, 0.0),)}, "shape"),
        ({"colors": ("red", "pink", "blue")}, "color 'pink'"),
        ({"target": 3}, "there are 3 blocks"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(change: dict[str, Any], complaint: str) -> None:
    layout = dataclasses.replace(draw(robotics.task("reach"), 0), **change)
    with pytest.raises(InputError, match=complaint):
        checked(layout)


def test_instructions() -> None:
    say = robotics.instruction
    assert say("reach", "red", "left", speed="slow", height="high") == (
        "reach the red block on the left slowly, staying high"
    )
    assert say("push", side="right", toward="left", phrase=2) == "slide the block on the right to the left"
    assert say("pick", "blue", speed="fast") == "put the blue block in the tray quickly"
    with pytest.raises(InputError, match="not named"):
        say("reach")
    with pytest.raises(InputError, match="color 'pink'"):
        say("reach", "pink")
