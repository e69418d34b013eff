"""Videos of episodes: drawn afterwards from recorded joint positions, two beside each other, with captions.

An episode keeps `env.positions()` of each step; that is all a video needs, and no step waits for a drawing. GIF is
written by Pillow, which is always there; MP4 (H.264) by PyAV, of the extra `robotics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmsteer.errors import InputError
from vlmsteer_robotics.simulator import mujoco
from vlmsteer_robotics.viewers import viewer

FPS = 20
BETWEEN = 4  # frames a policy step of a fifth of a second: real time
SHADES = 96  # colors of a GIF; more only make its file larger
BAND = 28  # pixels of a caption's line


def film(
    model: Any, positions: Sequence[np.ndarray], side: int = 480, renderer: str = "auto", between: int = BETWEEN
) -> list[np.ndarray]:
    """The frames of an episode.

    Args:
        model: `env.model`, with the episode's colors.
        positions: `env.positions()` after the reset and after each step.
        side: pixels along each side.
        renderer: as in `viewer`.
        between: frames from one step to the next; the positions between them are interpolated.

    Returns:
        (side, side, 3) uint8, RGB, `between * (len(positions) - 1) + 1` of them.
    """
    if not len(positions) or between < 1:
        raise InputError("A video needs the positions of at least one step, and at least one frame a step.")
    stops = np.stack(positions)
    moments = np.linspace(0, len(stops) - 1, between * (len(stops) - 1) + 1)
    data = mujoco.MjData(model)
    frames = []
    with viewer(model, side, renderer) as view:
        for moment in moments:
            before = int(moment)
            after, part = min(before + 1, len(stops) - 1), moment - before
            data.qpos[:] = (1 - part) * stops[before] + part * stops[after]
            mujoco.mj_normalizeQuat(model, data.qpos)
            mujoco.mj_forward(model, data)
            frames.append(view.picture(data))
    return frames


def side_by_side(
    left: Sequence[np.ndarray], right: Sequence[np.ndarray], captions: tuple[str, str]
) -> list[np.ndarray]:
    """Two episodes in one picture, each under its caption; the shorter one stands still at its end."""
    if not left or not right or left[0].shape != right[0].shape:
        raise InputError("Two videos stand beside each other only if both have frames, and of the same size.")
    length = max(len(left), len(right))
    pairs = (
        (captioned(left[min(i, len(left) - 1)], captions[0]), captioned(right[min(i, len(right) - 1)], captions[1]))
        for i in range(length)
    )
    return [np.concatenate(pair, axis=1) for pair in pairs]


def captioned(frame: np.ndarray, caption: str) -> np.ndarray:
    """A frame (h, w, 3) under a band with a line of text, cut to fit: (h + 28, w, 3)."""
    band = Image.new("RGB", (frame.shape[1], BAND), (24, 26, 30))
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(15)
    while caption and draw.textlength(caption, font) > frame.shape[1] - 16:
        caption = caption[:-2].rstrip("…") + "…" if len(caption) > 2 else ""
    draw.text((8, 5), caption, fill=(235, 235, 235), font=font)
    return np.concatenate([np.asarray(band), frame])


def save_gif(path: str | Path, frames: Sequence[np.ndarray], fps: int = FPS) -> Path:
    """Write an animation that repeats without end; a GIF's clock counts hundredths of a second.

    Raises:
        InputError: there are no frames, or the file cannot be written.
    """
    first, *rest = (Image.fromarray(frame) for frame in _checked(frames))
    # By coverage: a palette by number of pixels has no color left for a small block.
    palette = first.quantize(SHADES, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in rest]
    try:
        palette.save(path, format="GIF", save_all=True, append_images=others, duration=1000 // fps, loop=0)
    except OSError as error:
        raise InputError(f"The animation cannot be written to {path}: {error.strerror or error}.") from error
    return Path(path)


def save_mp4(path: str | Path, frames: Sequence[np.ndarray], fps: int = FPS) -> Path:
    """Write an H.264 video that players and browsers show; odd sides lose one pixel, as the format demands.

    Raises:
        InputError: PyAV is missing, there are no frames, or the file cannot be written.
    """
    frames = _checked(frames)
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise InputError("MP4 needs PyAV: pip install 'vlmsteer[robotics]'; a GIF can be written without.") from error
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])
    try:
        with av.open(str(path), "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                image = np.ascontiguousarray(frame[:height, :width])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode())
    except (OSError, FFmpegError) as error:
        raise InputError(f"The video cannot be written to {path}: {error}.") from error
    return Path(path)


def _checked(frames: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    if not len(frames):
        raise InputError("There are no frames to write.")
    return frames
