"""The scripted experts: they do what they are told, as fast and as high as they are told, and are recorded."""

from __future__ import annotations

import numpy as np
import pytest

import vlmsteer_robotics as robotics
from vlmsteer.errors import InputError

WORDS = ("slow", "normal", "fast"), ("low", "normal", "high")


@pytest.mark.parametrize("split", robotics.SPLITS)
@pytest.mark.parametrize("task", ["reach", "push", "pick"])
def test_experts_succeed(task: str, split: str) -> None:
    episodes = list(robotics.demonstrations(task, range(1000, 1015), split=split, images=False))
    assert [episode.seed for episode in episodes if not episode.success] == []
    assert max(len(episode.actions) for episode in episodes) < robotics.task(task).steps


@pytest.mark.slow
@pytest.mark.parametrize("split", robotics.SPLITS)
@pytest.mark.parametrize("distractors", [1, 2, 4])
@pytest.mark.parametrize("task", ["reach", "push", "pick"])
def test_experts_succeed_in_98_of_100_episodes(task: str, distractors: int, split: str) -> None:
    made = robotics.demonstrations(task, range(2000, 2200), split=split, distractors=distractors, images=False)
    assert np.mean([episode.success for episode in made]) >= 0.98


@pytest.mark.parametrize("task", ["reach", "push", "pick"])
def test_words_change_how_it_moves(task: str) -> None:
    """Over the same scenes: slow, normal and fast in meters a step, low, normal and high in the height on the way."""
    speeds, heights = WORDS
    steps = {
        speed: np.mean(
            [
                np.linalg.norm(np.diff(episode.end_effector, axis=0), axis=1).mean()
                for episode in robotics.demonstrations(task, range(6), speed=speed, height="normal", images=False)
            ]
        )
        for speed in speeds
    }
    assert steps["slow"] < 0.65 * steps["normal"] and steps["fast"] > 1.2 * steps["normal"]
    means = {
        height: np.mean(
            [
                episode.end_effector[:, 2].mean()
                for episode in robotics.demonstrations(task, range(6), speed="normal", height=height, images=False)
            ]
        )
        for height in heights
    }
    assert means["low"] < means["normal"] - 0.01 and means["high"] > means["normal"] + 0.02


def test_a_recorded_episode_can_be_played_again() -> None:
    (episode,) = robotics.demonstrations("pick", [4], side=32)
    count, blocks = len(episode.actions), len(episode.layout.colors)
    assert episode.images.shape == (count, 32, 32, 3) and episode.images.dtype == np.uint8
    assert episode.states.shape == (count, 13) and episode.actions.shape == (count, 7)
    assert episode.end_effector.shape == (count + 1, 3) and episode.blocks.shape == (count + 1, blocks, 3)
    env = robotics.make_env("pick", speed=episode.speed, height=episode.height, phrase=None, side=32)
    observation, info = env.reset(seed=4)
    assert info["instruction"] == episode.instruction
    for step, action in enumerate(episode.actions):
        assert (observation["image"] == episode.images[step]).all()
        assert (info["end_effector"] == episode.end_effector[step]).all()
        observation, _, over, _, info = env.step(action)
        assert over == (step == count - 1)
    assert info["success"] and episode.success


def test_with_noise_the_expert_answers_to_where_the_hand_is() -> None:
    (calm,) = robotics.demonstrations("reach-red", [4], images=False)
    (jogged,) = robotics.demonstrations("reach-red", [4], images=False, noise=0.01)
    (again,) = robotics.demonstrations("reach-red", [4], images=False, noise=0.01)
    assert (jogged.actions == again.actions[: len(jogged.actions)]).all()
    assert (jogged.actions[0] == calm.actions[0]).all()  # the answer, not what was carried out
    assert np.abs(jogged.end_effector[1] - calm.end_effector[1]).max() > 1e-3
    limit = robotics.SPEEDS[jogged.speed] + 1e-9
    assert (np.linalg.norm(jogged.actions[:, :3], axis=1) <= limit).all()
    noisy = robotics.demonstrations("pick", range(10), images=False, noise=0.008)
    assert np.mean([episode.success for episode in noisy]) >= 0.9


@pytest.mark.parametrize("task", ["reach-red", "push-left", "pick-cyan-right"])
def test_a_named_task_is_drawn_as_named(task: str) -> None:
    meant = robotics.task(task)
    for episode in robotics.demonstrations(task, range(4), images=False):
        layout = episode.layout
        assert meant.color in (None, layout.colors[layout.target])
        assert (layout.color, layout.side) == (meant.color, meant.side)
        assert all(word in episode.instruction for word in (meant.color or "", meant.side or ""))
        assert episode.success


def test_unknown_options_and_noise_are_refused() -> None:
    with pytest.raises(InputError, match="Noise of -1"):
        next(robotics.demonstrations("reach", [0], noise=-1))
    with pytest.raises(InputError, match="did you mean 'split'"):
        next(robotics.demonstrations("reach", [0], spilt="test"))
