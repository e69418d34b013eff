"""Episodes as a LeRobot data set: what pandas and PyAV read is what was recorded, and nothing half-written stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest

from vlmsteer.errors import InputError
from vlmsteer_robotics import Episode, demonstrations
from vlmsteer_robotics.lerobot import export

CAMERA = "observation.images.front"


@dataclass
class Roll:
    """A recorded episode of another robot than ours."""

    images: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    instruction: str = "open the drawer"
    success: bool = False


def roll(steps: int = 4, side: int = 32, **changed: Any) -> Roll:
    rng = np.random.default_rng(steps)
    smooth = np.linspace(0, 255, side)[None, :, None] * np.linspace(0.3, 1, steps)[:, None, None]
    images = np.broadcast_to(smooth[..., None], (steps, side, side, 3)).astype(np.uint8)
    made = Roll(images, rng.normal(size=(steps, 4)), rng.normal(size=(steps, 7)))
    return replace(made, **changed)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def expert() -> list[Episode]:
    return list(demonstrations("reach", range(4), speed="normal", height="normal"))


@pytest.fixture(scope="module")
def written(expert: list[Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(iter(expert), tmp_path_factory.mktemp("sets") / "new" / "reach")


def test_tables_hold_what_was_recorded(expert: list[Episode], written: Path) -> None:
    info = json.loads((written / "meta" / "info.json").read_text(encoding="utf-8"))
    tasks = {row["task_index"]: row["task"] for row in lines(written / "meta" / "tasks.jsonl")}
    whole = pd.concat(pd.read_parquet(path) for path in sorted(written.glob("data/chunk-000/*.parquet")))
    assert whole["index"].tolist() == list(range(info["total_frames"]))
    for number, (episode, table) in enumerate(zip(expert, (t for _, t in whole.groupby("episode_index")), strict=True)):
        assert np.array_equal(np.stack(list(table["action"])), episode.actions.astype(np.float32))
        assert np.array_equal(np.stack(list(table["observation.state"])), episode.states)
        assert table["frame_index"].tolist() == list(range(len(episode.actions)))
        np.testing.assert_allclose(table["timestamp"], np.arange(len(table)) / 5, atol=1e-6)
        assert {tasks[index] for index in table["task_index"]} == {episode.instruction}
        assert table["next.done"].tolist() == [False] * (len(table) - 1) + [True]
        assert table["next.success"].tolist() == [False] * (len(table) - 1) + [episode.success]
        assert set(table["episode_index"]) == {number}
    assert sorted(tasks.values()) == sorted({episode.instruction for episode in expert})
    listed = lines(written / "meta" / "episodes.jsonl")
    assert [row["length"] for row in listed] == [len(episode.actions) for episode in expert]
    assert [row["tasks"] for row in listed] == [[episode.instruction] for episode in expert]


def test_videos_show_what_was_recorded(expert: list[Episode], written: Path) -> None:
    for number, episode in enumerate(expert):
        with av.open(str(written / "videos" / "chunk-000" / CAMERA / f"episode_{number:06d}.mp4")) as file:
            frames = list(file.decode(video=0))
        assert len(frames) == len(episode.images)
        np.testing.assert_allclose([frame.time for frame in frames], np.arange(len(frames)) / 5, atol=1e-6)
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(float)
        assert np.abs(shown - episode.images).mean() < 4
        nearest = [int(np.abs(shown - image).mean((1, 2, 3)).argmin()) for image in episode.images]
        assert nearest == list(range(len(frames)))  # in order, none twice


def test_description_fits_the_files(expert: list[Episode], written: Path) -> None:
    info = json.loads((written / "meta" / "info.json").read_text(encoding="utf-8"))
    table = pd.read_parquet(written / info["data_path"].format(episode_chunk=0, episode_index=3))
    video = info["video_path"].format(episode_chunk=0, episode_index=3, video_key=CAMERA)
    features = info["features"]
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v2.1", 5, {"train": "0:4"})
    assert (info["total_episodes"], info["total_videos"], info["total_chunks"], info["chunks_size"]) == (4, 4, 1, 1000)
    assert info["total_frames"] == sum(len(episode.actions) for episode in expert)
    assert info["total_tasks"] == len({episode.instruction for episode in expert})
    assert set(table.columns) == set(features) - {CAMERA}
    for name in ("action", "observation.state"):
        assert features[name]["shape"] == [len(features[name]["names"])] == list(table[name][0].shape)
        assert features[name]["dtype"] == str(table[name][0].dtype)
    for name in set(table.columns) - {"action", "observation.state"}:
        assert features[name] == {"dtype": str(table[name].dtype), "shape": [1], "names": None}
    with av.open(str(written / video)) as file:
        stream, about = file.streams.video[0], features[CAMERA]["info"]
        assert [stream.height, stream.width, 3] == features[CAMERA]["shape"]
        assert (about["video.codec"], about["video.pix_fmt"]) == (stream.codec.canonical_name, stream.pix_fmt)
        assert about["video.fps"] == stream.average_rate == 5 and not about["has_audio"] and not file.streams.audio


def test_statistics_of_each_episode(expert: list[Episode], written: Path) -> None:
    for episode, row in zip(expert, lines(written / "meta" / "episodes_stats.jsonl"), strict=True):
        pixels = episode.images / 255
        for name, values, axes in (
            ("action", episode.actions.astype(np.float32).astype(float), 0),
            ("observation.state", episode.states.astype(float), 0),
            (CAMERA, pixels, (0, 1, 2)),
            ("next.success", np.eye(len(pixels))[-1] * episode.success, 0),
        ):
            found = row["stats"][name]
            for key in ("min", "max", "mean", "std"):
                value = np.asarray(getattr(values, key)(axes))
                shape = (3, 1, 1) if name == CAMERA else value.shape or (1,)
                np.testing.assert_allclose(found[key], value.reshape(shape), atol=1e-9)
            assert found["count"] == [len(pixels)]


def test_another_robot(tmp_path: Path) -> None:
    """Its own widths have no names; an odd side loses a pixel, and the description says so."""
    target = export([roll(side=33), roll(5, side=33)], tmp_path / "set", fps=80, robot="sawyer", camera="corner")
    info = json.loads((target / "meta" / "info.json").read_text(encoding="utf-8"))
    assert info["features"]["observation.images.corner"]["shape"] == [32, 32, 3]
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [4], "names": None}
    assert (info["fps"], info["robot_type"], info["total_tasks"], info["total_frames"]) == (80, "sawyer", 1, 9)


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    target = export([roll()], tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    with pytest.raises(InputError, match="is there already"):
        export([roll()], target)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, OSError])
def test_stopped_in_the_middle_it_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def episodes() -> Iterator[Roll]:
        yield roll()
        assert not (tmp_path / "set").exists() and len(list(tmp_path.rglob("*.parquet"))) == 1
        raise stop

    with pytest.raises(stop):
        export(episodes(), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("episodes", "sentence"),
    [
        ([], "no episodes"),
        ([roll(), roll(side=48)], "Episode 1 has .* one shape each"),
        ([roll(images=np.zeros((0, 32, 32, 3), np.uint8))], "Episode 0 has no pictures"),
        ([roll(actions=np.zeros((3, 7)))], "Episode 0 has .*'actions': 3.* as many of each"),
        ([roll(0)], "at least one"),
        ([roll(images=np.zeros((4, 32, 32, 3)))], "float64 of shape"),
        ([roll(images=np.zeros((4, 32, 32), np.uint8))], r"uint8 of shape \(4, 32, 32\)"),
        ([roll(actions=np.full((4, 7), np.nan))], "The actions of episode 0"),
        ([roll(states=np.zeros(4))], "The states of episode 0"),
    ],
)
def test_what_cannot_be_exported(tmp_path: Path, episodes: list[Roll], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        export(episodes, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export([roll()], tmp_path / "file" / "set")
    with pytest.raises(InputError, match="0 steps a second"):
        export([roll()], tmp_path / "set", fps=0)


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="needs PyAV: pip install"):
        export([roll()], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
