"""Who draws the frames of a video: a graphics library where the machine has one, else the rays that always work.

A viewer has a `name` and `picture(data)`; all look from the same place. MuJoCo settles on one library for the process
when it is imported; here the context is made directly, so that no environment variable has to be set before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from vlmsteer.errors import InputError
from vlmsteer_robotics.camera import AIM, EYE, VIEW, Camera
from vlmsteer_robotics.simulator import mujoco
from vlmsteer_robotics.tasks import check

LIBRARIES = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa"}
RENDERERS = ("auto", *LIBRARIES, "rays")
LARGEST = 1280  # pixels, the framebuffer that the scene asks for
GEOMS = 200


class RayViewer:
    """Rays, as for the robot's own pictures."""

    name = "rays"

    def __init__(self, model: Any, side: int) -> None:
        self.picture = Camera(model, side).picture


class LibraryViewer:
    """A graphics library, `egl` or `osmesa`, drawing into memory; to be closed after use."""

    def __init__(self, model: Any, side: int, name: str) -> None:
        self.name, self.model, self.side = name, model, side
        if find_spec("triton"):  # torch brings it and loads it late; after Mesa's own LLVM that would crash the process
            import_module("triton")
        self._context = import_module(LIBRARIES[name]).GLContext(side, side)
        self._context.make_current()
        self._drawing = mujoco.MjrContext(model, int(mujoco.mjtFontScale.mjFONTSCALE_150))
        mujoco.mjr_setBuffer(int(mujoco.mjtFramebuffer.mjFB_OFFSCREEN), self._drawing)
        self._scene, self._option = mujoco.MjvScene(model, GEOMS), mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        self._eye = mujoco.MjvCamera()
        ahead = AIM - EYE
        distance = float(np.linalg.norm(ahead))
        self._eye.lookat[:], self._eye.distance = AIM, distance
        self._eye.azimuth = np.rad2deg(np.arctan2(ahead[1], ahead[0]))
        self._eye.elevation = np.rad2deg(np.arcsin(ahead[2] / distance))
        model.vis.global_.fovy = VIEW

    def picture(self, data: Any) -> np.ndarray:
        """What the camera sees: (side, side, 3), uint8, RGB. `data` has been through `mj_forward`."""
        self._context.make_current()
        everything = int(mujoco.mjtCatBit.mjCAT_ALL)
        mujoco.mjv_updateScene(self.model, data, self._option, None, self._eye, everything, self._scene)
        area = mujoco.MjrRect(0, 0, self.side, self.side)
        mujoco.mjr_render(area, self._scene, self._drawing)
        pixels = np.empty((self.side, self.side, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, area, self._drawing)
        return pixels[::-1].copy()

    def close(self) -> None:
        self._context.make_current()
        self._drawing.free()
        self._context.free()


@contextmanager
def viewer(model: Any, side: int = 480, renderer: str = "auto") -> Iterator[RayViewer | LibraryViewer]:
    """A viewer of one model, for as long as the `with` block lasts.

    Args:
        model: the `mujoco.MjModel`.
        side: pixels along each side.
        renderer: `egl`, `osmesa`, `rays`, or `auto` for the first of these that works here; the viewer's `name` says
            which it is.

    Raises:
        InputError: the renderer is unknown, does not work on this machine, or cannot draw so large a picture.
    """
    check("renderer", renderer, RENDERERS)
    if not 8 <= side <= LARGEST:
        raise InputError(f"A video of {side} pixels cannot be drawn; possible sides are 8 to {LARGEST}.")
    if renderer == "rays":
        yield RayViewer(model, side)
        return
    tried = (_library(model, side, name) for name in (LIBRARIES if renderer == "auto" else (renderer,)))
    found = next(filter(None, tried), None)
    if found is None and renderer != "auto":
        raise InputError(
            f"The renderer {renderer!r} does not work on this machine; install its library or take 'rays', which needs "
            f"none ('auto' does so by itself)."
        )
    if found is None:
        yield RayViewer(model, side)
        return
    try:
        yield found
    finally:
        found.close()


def _library(model: Any, side: int, name: str) -> LibraryViewer | None:
    try:
        return LibraryViewer(model, side, name)
    except Exception:  # a missing or broken library fails as ImportError, AttributeError, RuntimeError or EGLError
        return None
