"""Recorded episodes as a LeRobot data set, layout v2.1: for each episode a parquet table and an MP4, and `meta/`.

    export(demonstrations("reach", range(50)), "reach-expert")

pandas and pyarrow read the tables, PyAV the video, LeRobot the whole. Episodes are written one by one as they come,
beside the place where the data set will be; it is moved there when it is whole.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmsteer.errors import InputError
from vlmsteer_robotics.env import FPS
from vlmsteer_robotics.scene import JOINTS
from vlmsteer_robotics.video import save_mp4

VERSION = "v2.1"
CHUNK = 1000  # episodes in a folder
TABLE = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
NAMES = {7: POSE, 7 + JOINTS: [*POSE, *(f"joint_{number}" for number in range(JOINTS))]}
MOMENTS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


class Recorded(Protocol):
    """What is exported of an episode of t steps; `vlmsteer_robotics.Episode` is one."""

    @property
    def images(self) -> np.ndarray:
        """(t, height, width, 3) uint8, what the policy saw before each action."""
        ...

    @property
    def states(self) -> np.ndarray:
        """(t, m), before each action."""
        ...

    @property
    def actions(self) -> np.ndarray:
        """(t, n)."""
        ...

    @property
    def instruction(self) -> str: ...

    @property
    def success(self) -> bool: ...


def export(
    episodes: Iterable[Recorded], folder: str | Path, fps: int = FPS, robot: str = "ur5e", camera: str = "front"
) -> Path:
    """Write episodes as a data set.

    Args:
        episodes: with pictures, all of the same shapes; an iterator is read one by one.
        folder: must not exist; missing parents are made.
        fps: steps a second.
        robot: what LeRobot calls the robot's type.
        camera: its name in `observation.images.{camera}`.

    Returns:
        The folder. A column `next.success` tells, in an episode's last row, how it ended.

    Raises:
        InputError: the folder exists or cannot be written, PyAV is missing, there are no episodes, or one does not fit;
            nothing is left behind then.
    """
    target = Path(folder)
    if target.exists():
        raise InputError(f"{str(target)!r} is there already; give a folder that does not exist yet.")
    if fps < 1:
        raise InputError(f"{fps} steps a second were given; at least 1 is needed.")
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    with place as part:
        writer = _Writer(Path(part) / "whole", fps, f"observation.images.{camera}")
        for episode in episodes:
            with _writing(target):
                writer.add(episode)
        with _writing(target):
            writer.finish(robot)
            writer.root.rename(target)
    return target


class _Writer:
    def __init__(self, root: Path, fps: int, video: str) -> None:
        self.root, self.fps, self.video = root, fps, video
        self._tasks: dict[str, int] = {}
        self._lengths: list[dict[str, Any]] = []
        self._stats: list[dict[str, Any]] = []
        self._frames = 0
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, episode: Recorded) -> None:
        number = len(self._lengths)
        shapes = _shapes(episode, number)
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            raise InputError(
                f"Episode {number} has {shapes} a step, those before {self._shapes}; a data set has one shape each."
            )
        length = len(episode.actions)
        names = {"episode_chunk": number // CHUNK, "episode_index": number, "video_key": self.video}
        columns = self._columns(episode, number, length)
        table, video = (self.root / name.format(**names) for name in (TABLE, VIDEO))
        for path in (table, video):
            path.parent.mkdir(parents=True, exist_ok=True)
        save_mp4(video, list(episode.images), self.fps)
        pq.write_table(pa.table({name: _arrow(values) for name, values in columns.items()}), table)
        stats = {name: _stats(values) for name, values in columns.items()}
        self._stats.append({"episode_index": number, "stats": {**stats, self.video: _color_stats(episode.images)}})
        self._lengths.append({"episode_index": number, "tasks": [episode.instruction], "length": length})
        self._frames += length

    def finish(self, robot: str) -> None:
        if not self._lengths:
            raise InputError("There are no episodes to export.")
        count = len(self._lengths)
        info = {
            "codebase_version": VERSION,
            "robot_type": robot,
            "total_episodes": count,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "total_videos": count,
            "total_chunks": -(-count // CHUNK),
            "chunks_size": CHUNK,
            "fps": self.fps,
            "splits": {"train": f"0:{count}"},
            "data_path": TABLE,
            "video_path": VIDEO,
            "features": self._features(),
        }
        meta = self.root / "meta"
        meta.mkdir()
        (meta / "info.json").write_text(json.dumps(info, indent=4), encoding="utf-8")
        tasks = [{"task_index": number, "task": task} for task, number in self._tasks.items()]
        for name, rows in {"tasks": tasks, "episodes": self._lengths, "episodes_stats": self._stats}.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (meta / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def _columns(self, episode: Recorded, number: int, length: int) -> dict[str, np.ndarray]:
        steps = np.arange(length)
        last = steps == length - 1
        moments = (steps / self.fps, steps, number, self._frames + steps, self._task(episode.instruction))
        return {
            "observation.state": np.asarray(episode.states, np.float32),
            "action": np.asarray(episode.actions, np.float32),
            "next.done": last,
            "next.success": last & bool(episode.success),
            **{
                name: np.broadcast_to(np.asarray(values, np.float32 if name == "timestamp" else np.int64), length)
                for name, values in zip(MOMENTS, moments, strict=True)
            },
        }

    def _task(self, instruction: str) -> int:
        return self._tasks.setdefault(instruction, len(self._tasks))

    def _features(self) -> dict[str, Any]:
        height, width = (size // 2 * 2 for size in self._shapes["images"][:2])
        picture = {"video.fps": float(self.fps), "video.height": height, "video.width": width, "video.channels": 3}
        picture |= {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "has_audio": False}
        axes = ["height", "width", "channels"]
        vectors = {"observation.state": self._shapes["states"], "action": self._shapes["actions"]}
        return {
            self.video: {"dtype": "video", "shape": [height, width, 3], "names": axes, "info": picture},
            **{
                name: {"dtype": "float32", "shape": list(shape), "names": NAMES.get(shape[0])}
                for name, shape in vectors.items()
            },
            **{name: {"dtype": "bool", "shape": [1], "names": None} for name in ("next.done", "next.success")},
            **{
                name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
                for name in MOMENTS
            },
        }


def _shapes(episode: Recorded, number: int) -> dict[str, tuple[int, ...]]:
    """What a step of each kind looks like, of an episode that can be written."""
    arrays = {name: np.asarray(getattr(episode, name)) for name in ("images", "states", "actions")}
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not lengths["images"] and lengths["actions"]:
        raise InputError(f"Episode {number} has no pictures; record it with them.")
    if len(set(lengths.values())) > 1 or not lengths["actions"]:
        raise InputError(f"Episode {number} has {lengths} steps; as many of each are needed, at least one.")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < 2:
        raise InputError(
            f"The pictures of episode {number} are {images.dtype} of shape {images.shape}; "
            "uint8 of shape (steps, height, width, 3) is needed."
        )
    for name in ("states", "actions"):
        if arrays[name].ndim != 2 or not np.isfinite(arrays[name]).all():
            raise InputError(f"The {name} of episode {number} are not (steps, numbers), all of them finite.")
    return {name: array.shape[1:] for name, array in arrays.items()}


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _stats(values: np.ndarray) -> Mapping[str, list[float]]:
    rows = values.astype(np.float64).reshape(len(values), -1)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {**{name: array.tolist() for name, array in found.items()}, "count": [len(values)]}


def _color_stats(images: np.ndarray) -> Mapping[str, list]:
    """Of each channel from 0 to 1, in the shape (3, 1, 1); from counts of values, so that no float copy is made."""
    counts = np.zeros((3, 256))
    for frame in images:
        counts += [np.bincount(frame[..., channel].ravel(), minlength=256) for channel in range(3)]
    shares = counts / counts[0].sum()
    levels = np.arange(256) / 255
    mean = shares @ levels
    found = {
        "min": [levels[row > 0].min() for row in shares],
        "max": [levels[row > 0].max() for row in shares],
        "mean": mean,
        "std": np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1)),
    }
    return {**{name: np.reshape(value, (3, 1, 1)).tolist() for name, value in found.items()}, "count": [len(images)]}


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"The data set {str(target)!r} cannot be written: {error.strerror or error}.") from error
