"""The robot's pictures, against single rays, a pinhole worked out here and a graphics library; and videos of them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmsteer_robotics as robotics
from vlmsteer.errors import InputError
from vlmsteer_robotics import viewers
from vlmsteer_robotics.camera import AMBIENT, DIFFUSE, EYE, LIGHT, SHADE, Camera
from vlmsteer_robotics.layouts import draw
from vlmsteer_robotics.scene import COLORS, FIXED, MOVING
from vlmsteer_robotics.simulator import mujoco
from vlmsteer_robotics.video import captioned, film, save_gif, save_mp4, side_by_side


def seen_at(points: np.ndarray, side: int) -> np.ndarray:
    """Columns and rows (n, 2) of points (n, 3): looking down at 0.465, 0, 0.05 with 34.5 degrees across."""
    fall = np.arctan2(0.78 - 0.05, 1.02 - 0.465)
    x, y, z = (np.asarray(points) - [1.02, 0, 0.78]).T
    depth = -x * np.cos(fall) - z * np.sin(fall)
    height = -x * np.sin(fall) + z * np.cos(fall)
    half = np.tan(np.deg2rad(34.5 / 2))
    return (np.stack([y / depth, -height / depth], axis=1) / half + 1) * side / 2


@pytest.fixture(scope="module")
def env() -> Any:
    env = robotics.make_env("pick", seed=3)
    env.reset()
    return env


def test_every_pixel_is_what_single_rays_say(env: Any) -> None:
    """A pixel's color from `mj_ray`, which goes through all geoms one ray at a time, with its shading by hand."""
    model, data, side = env.model, env.robot.data, 96
    picture = Camera(model, side).picture(data).reshape(-1, 3).astype(int)
    columns, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    spots = np.stack([columns.ravel(), rows.ravel()], axis=1)
    half, fall = np.tan(np.deg2rad(34.5 / 2)), np.arctan2(0.78 - 0.05, 1.02 - 0.465)
    across, down = (spots / (side / 2) - 1).T * half
    ahead, up = np.array([-np.cos(fall), 0, -np.sin(fall)]), np.array([-np.sin(fall), 0, np.cos(fall)])
    groups, moving = np.zeros(6, np.uint8), np.zeros(6, np.uint8)
    groups[[FIXED, MOVING]], moving[MOVING] = 1, 1
    checked = shadowed = 0
    for number in np.random.default_rng(0).choice(side * side, 1500, replace=False):
        ray = ahead + across[number] * np.array([0, 1, 0]) - down[number] * up
        ray /= np.linalg.norm(ray)
        hit, normal = np.zeros(1, np.int32), np.zeros(3)
        far = mujoco.mj_ray(model, data, EYE, ray, groups, 1, -1, hit, normal)
        point = EYE + far * ray
        light = (LIGHT - point) / np.linalg.norm(LIGHT - point)
        expected = model.geom_rgba[hit[0], :3] * (AMBIENT + DIFFUSE * max(0.0, normal @ light))
        expected = np.minimum(expected, 1) * 255
        fixed = model.geom_group[hit[0]] == FIXED
        if fixed and mujoco.mj_ray(model, data, point + 0.003 * light, light, moving, 1, -1, None, None) >= 0:
            expected = expected * SHADE
            shadowed += 1
        checked += np.abs(picture[number] - expected).max() < 1.5
    assert checked >= 1497  # a ray along an edge may fall on either side
    assert shadowed > 50


def test_blocks_are_where_a_pinhole_shows_them(env: Any) -> None:
    """The box around a block's pixels is the box around its eight corners, and at least seven pixels wide."""
    corners = np.array(list(itertools.product((-0.025, 0.025), (-0.025, 0.025), (0, 0.05))))
    layout = draw(env.task, 0)
    for x, y in itertools.product((0.37, 0.47, 0.55), (-0.19, -0.1, 0.1, 0.19)):
        start = (0.45, -0.05 if y > 0 else 0.05, 0.29)  # the hand well away
        one = dataclasses.replace(
            layout, colors=("red",), places=((x, y),), target=0, color="red", side=None, start=start
        )
        image = env.reset(options={"layout": one})[0]["image"].astype(int)
        rows, columns = np.nonzero((image[..., 0] > 60) & (image[..., 0] > 3 * image[..., 1]))
        expected = seen_at(corners + [x, y, 0], 96)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        np.testing.assert_allclose(found, [*expected.min(axis=0), *expected.max(axis=0)], atol=1.01)
        assert found[2] - found[0] >= 7


def test_colors_can_be_told_apart(env: Any) -> None:
    """In the picture each color is nearest to its own name, on the top and on the front of a block."""
    names = list(COLORS)
    layout = draw(env.task, 0)
    for name in names:
        one = dataclasses.replace(layout, colors=(name,), places=((0.5, 0.15),), target=0, color=name, side=None)
        image = env.reset(options={"layout": one})[0]["image"]
        for point in ([0.5, 0.15, 0.05], [0.525, 0.15, 0.02]):
            column, row = seen_at(np.array([point]), 96)[0].astype(int)
            shade = image[row, column] / np.linalg.norm(image[row, column].astype(float))
            hues = np.array([COLORS[other] for other in names])
            assert names[int((hues @ shade / np.linalg.norm(hues, axis=1)).argmax())] == name


def test_the_hand_is_in_the_picture(env: Any) -> None:
    for seed in range(6):
        observation, info = env.reset(seed=seed)
        tool = info["end_effector"]
        (left, top), (right, bottom) = seen_at(np.array([tool + [0, -0.06, 0.1], tool + [0, 0.06, 0.0]]), 96).astype(
            int
        )
        assert 0 <= left < right < 96 and 0 <= top < bottom < 96
        assert (observation["image"][top:bottom, left:right].max(axis=2) < 60).mean() > 0.3


def test_moving_away_leaves_the_table_as_it_was(env: Any) -> None:
    """Pictures keep nothing of the one before."""
    first = env.reset(seed=3)[0]["image"]
    env.step([0.05, 0.05, 0.05, 0, 0, 0, 0])
    assert (env.reset(seed=3)[0]["image"] == first).all()


@pytest.mark.parametrize("name", ["egl", "osmesa"])
def test_a_graphics_library_draws_the_same(env: Any, name: str) -> None:
    env.reset(seed=3)
    try:
        with viewers.viewer(env.model, 192, name) as view:
            assert view.name == name
            drawn = view.picture(env.robot.data).astype(float)
    except InputError:
        pytest.skip(f"no {name} here")
    rays = Camera(env.model, 192).picture(env.robot.data).astype(float)
    away = np.abs(drawn - rays).max(axis=2)
    assert (away < 40).mean() > 0.93  # shadows' edges and the light's falling off differ


def test_without_a_graphics_library_rays_draw_the_video(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "LIBRARIES", {"egl": "mujoco.there_is_no_such_module"})
    with viewers.viewer(env.model, 64) as view:
        assert view.name == "rays"
        assert (view.picture(env.robot.data) == Camera(env.model, 64).picture(env.robot.data)).all()
    with pytest.raises(InputError, match="take 'rays'"), viewers.viewer(env.model, 64, "egl"):
        pass
    with pytest.raises(InputError, match="renderer 'vulkan'"), viewers.viewer(env.model, 64, "vulkan"):
        pass


def test_a_video_shows_two_episodes_and_can_be_read_back(env: Any, tmp_path: Path) -> None:
    import av

    env.reset(seed=3)
    stops = [env.positions()]
    for _ in range(3):
        env.step([0.03, 0, 0, 0, 0, 0, 1])
        stops.append(env.positions())
    frames = film(env.model, stops, side=64, renderer="rays", between=2)
    assert len(frames) == 7
    assert (frames[-1] == Camera(env.model, 64).picture(env.robot.data)).all()
    both = side_by_side(frames, frames[:3], ("baseline", "slow, strength 4"))
    assert both[0].shape == (64 + 28, 128, 3)
    assert (both[-1][28:, 64:] == frames[2]).all()

    with av.open(str(save_mp4(tmp_path / "two.mp4", both))) as file:
        read = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]
    assert len(read) == 7
    assert np.abs(read[3] - both[3]).mean() < 6
    with Image.open(save_gif(tmp_path / "two.gif", both)) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (7, (128, 92), 50)  # type: ignore[attr-defined]
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - both[0]).mean() < 6


def test_a_caption_is_cut_to_its_frame() -> None:
    frame = np.zeros((10, 120, 3), np.uint8)
    short, long = captioned(frame, "slow"), captioned(frame, "slow " * 40)
    assert short.shape == long.shape == (38, 120, 3)
    assert short[:28].max() > 200
    assert long[:28, -6:].max() < 40  # the margin stays empty


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    frames = [np.zeros((16, 16, 3), np.uint8)]
    for save, name in ((save_gif, "a.gif"), (save_mp4, "a.mp4")):
        with pytest.raises(InputError, match="no frames"):
            save(tmp_path / name, [])
        with pytest.raises(InputError, match="cannot be written"):
            save(tmp_path / "nowhere" / name, frames)
    with pytest.raises(InputError, match="same size"):
        side_by_side(frames, [], ("", ""))
