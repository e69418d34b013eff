"""Pictures by rays through `mujoco.mj_multiRay`: the same bytes in every run, without a graphics library.

A ray a pixel tells which geom it meets, how far away and with which normal. Light comes from one point. What never
moves is met once, when the camera is made; each picture then asks only about what moves: a ray a pixel from the eye,
and one from the light to what lies there fixed, for the shadow (the arm and the blocks throw it, only the table and the
tray catch it).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from vlmsteer.errors import InputError
from vlmsteer_robotics.scene import FIXED, MOVING
from vlmsteer_robotics.simulator import mujoco

SIDE = 96
EYE = np.array([1.02, 0.0, 0.78])
AIM = np.array([0.465, 0.0, 0.05])
VIEW = 34.5  # degrees that a picture spans
LIGHT = np.array([0.9, -0.5, 1.6])
AMBIENT, DIFFUSE = 0.42, 0.66
SHADE = 0.65  # how bright shadow is
NEAR = 0.004  # meters; what is met this close to a point lies at the point
FAR = 10.0


class Camera:
    """Looks at one model's table from the front, obliquely from above.

    Args:
        model: the `mujoco.MjModel` to look at; the colors of what moves are read at every picture.
        side: pixels along each side of a picture.
    """

    def __init__(self, model: Any, side: int = SIDE) -> None:
        if not 8 <= side <= 2048:
            raise InputError(f"A picture of {side} pixels cannot be drawn; possible sides are 8 to 2048.")
        self.model, self.side, self.rays = model, side, rays(side)
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        geoms, self._depth, normals = self._cast(data, EYE, self.rays, FIXED)
        self._depth[geoms < 0] = FAR
        points = EYE + self.rays * self._depth[:, None]
        self._ground = shaded(model.geom_rgba[geoms, :3], points, normals)
        from_light = points - LIGHT
        self._light_depth = np.linalg.norm(from_light, axis=1)
        self._light_rays = np.ascontiguousarray(from_light / self._light_depth[:, None])

    def picture(self, data: Any) -> np.ndarray:
        """What the camera sees: (side, side, 3), uint8, RGB. `data` has been through `mj_forward`."""
        geoms, distances, normals = self._cast(data, EYE, self.rays, MOVING)
        hit, hidden, _ = self._cast(data, LIGHT, self._light_rays, MOVING)
        colors = self._ground.copy()
        colors[(hit >= 0) & (hidden < self._light_depth - NEAR)] *= SHADE
        (seen,) = np.nonzero((geoms >= 0) & (distances < self._depth))
        points = EYE + self.rays[seen] * distances[seen, None]
        colors[seen] = shaded(self.model.geom_rgba[geoms[seen], :3], points, normals[seen])
        return (colors * 255 + 0.5).astype(np.uint8).reshape(self.side, self.side, 3)

    def _cast(self, data: Any, start: np.ndarray, directions: np.ndarray, group: int) -> tuple[np.ndarray, ...]:
        """What each ray meets first among the geoms of a group: number (-1 for nothing), distance and normal."""
        count = len(directions)
        groups = np.zeros(6, np.uint8)
        groups[group] = 1
        geoms, distances, normals = np.empty(count, np.int32), np.empty(count), np.zeros((count, 3))
        mujoco.mj_multiRay(
            self.model, data, start, directions.ravel(), groups, True, -1,
            geoms, distances, normals.reshape(-1), count, FAR,
        )  # fmt: skip
        return geoms, distances, normals


def shaded(colors: np.ndarray, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Colors (n, 3) between 0 and 1 of surfaces at `points` (n, 3) that face along `normals` (n, 3)."""
    to_light = LIGHT - points
    facing = np.einsum("ij,ij->i", normals, to_light) / np.sqrt(np.einsum("ij,ij->i", to_light, to_light))
    return np.minimum(colors * (AMBIENT + DIFFUSE * np.maximum(facing, 0.0))[:, None], 1.0)


@lru_cache(maxsize=8)
def rays(side: int) -> np.ndarray:
    """Unit directions (side * side, 3) from the eye through the pixels' middles, row by row from the top left."""
    right, up = axes()
    across = np.tan(np.deg2rad(VIEW) / 2) * ((np.arange(side) + 0.5) / side * 2 - 1)
    directions = _forward() + across[None, :, None] * right - across[:, None, None] * up
    return np.ascontiguousarray((directions / np.linalg.norm(directions, axis=-1, keepdims=True)).reshape(-1, 3))


def axes() -> tuple[np.ndarray, np.ndarray]:
    """The directions (3,) of the picture's right and up in the world."""
    right = np.cross(_forward(), [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return right, np.cross(right, _forward())


def pixel(point: np.ndarray, side: int = SIDE) -> tuple[float, float]:
    """Row and column, in pixels from the top left corner, where a point (3,) of the world is seen."""
    right, up = axes()
    ahead = point - EYE
    scale = side / 2 / np.tan(np.deg2rad(VIEW) / 2) / (ahead @ _forward())
    return float(side / 2 - scale * (ahead @ up)), float(side / 2 + scale * (ahead @ right))


def _forward() -> np.ndarray:
    return (AIM - EYE) / np.linalg.norm(AIM - EYE)
