"""The robot and the table in motion: a change of the gripper's pose becomes joint angles, and motors follow them.

The pose that is aimed at stays within the reach and never runs far ahead of a gripper that something blocks, so that
pushing against the table builds up no force that later throws things. A move takes a fifth of a second.
"""

from __future__ import annotations

import numpy as np

from vlmsteer.errors import InputError
from vlmsteer_robotics.arm import Arm, euler, rotation_of
from vlmsteer_robotics.layouts import START, Layout
from vlmsteer_robotics.scene import COLORS, HALF, HOME, JOINTS, OPEN, build
from vlmsteer_robotics.simulator import mujoco

REACH = np.array([[0.30, -0.32, 0.015], [0.72, 0.32, 0.30]])  # where the gripper may go
SLIP = 0.03  # how far the aim may run ahead of the gripper before a move, meters
SUBSTEPS = 5  # physics steps in each part of a move
# How far the motors' goal has come in each part: gently, so that nothing held slips; at the end the arm catches up.
PATH = [part**2 * (3 - 2 * part) for part in (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.0, 1.0)]
DOWN = np.diag([1.0, -1.0, -1.0])  # the gripper's rotation when it points at the table


class Robot:
    """One robot at one table.

    Attributes:
        model, data: MuJoCo's own.
        arm: the kinematics, to ask where joint angles lead.
    """

    def __init__(self, blocks: int) -> None:
        self.model = build(blocks)
        self.data = mujoco.MjData(self.model)
        self.arm = Arm(self.model)
        self._fingers = [self.model.geom(f"finger_{name}").id for name in ("left", "right")]
        self._blocks = [self.model.geom(f"block{number}").id for number in range(blocks)]
        self._places = JOINTS + 2 + 7 * np.arange(blocks)[:, None] + np.arange(3)

    @property
    def tool(self) -> np.ndarray:
        """(3,) the point between the finger tips, meters."""
        return self.data.site_xpos[self.arm.site].copy()

    @property
    def turned(self) -> np.ndarray:
        """(3,) roll, pitch and yaw away from pointing at the table, radians."""
        return euler(self.data.site_xmat[self.arm.site].reshape(3, 3) @ DOWN.T)

    @property
    def opening(self) -> float:
        """Of the fingers, 0 closed to 1 open."""
        return float(self.data.qpos[JOINTS : JOINTS + 2].mean()) / OPEN

    @property
    def blocks(self) -> np.ndarray:
        """(n, 3) the blocks' middles, meters."""
        return self.data.qpos[self._places].copy()

    def held(self) -> int:
        """The block that both fingers touch, or -1."""
        pairs = self.data.contact.geom
        touched = [set(pairs[(pairs == finger).any(axis=1)].ravel().tolist()) for finger in self._fingers]
        both = touched[0] & touched[1]
        return next((number for number, geom in enumerate(self._blocks) if geom in both), -1)

    def place(self, layout: Layout, opening: float) -> None:
        """Lay out a scene, at rest; `opening` of the fingers as in `move`."""
        mujoco.mj_resetData(self.model, self.data)
        self._aim, self._rotation = np.array(layout.start), DOWN
        joints = self.arm.solve(np.array(HOME), self._aim, DOWN)
        if joints is None or (self._aim != np.clip(self._aim, *REACH)).any():
            raise InputError(
                f"The gripper cannot begin at {layout.start}; the middle of the table is {START.tolist()}."
            )
        self._joints = joints
        self.data.qpos[:JOINTS], self.data.qpos[JOINTS : JOINTS + 2] = joints, opening * OPEN
        self.data.ctrl[:JOINTS], self.data.ctrl[JOINTS:] = joints, opening * OPEN
        for number, (x, y) in enumerate(layout.places):
            self.data.qpos[self._places[number]] = x, y, HALF
            self.model.geom_rgba[self._blocks[number], :3] = COLORS[layout.colors[number]]
        mujoco.mj_forward(self.model, self.data)

    def aim(self, change: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Where a change of the pose leads.

        Args:
            change: (6,) dx, dy, dz in meters; droll, dpitch, dyaw in radians about the world's axes.

        Returns:
            The position (3,) that is wanted, the rotation (3, 3), and the joint angles (6,) of the nearest position
            that the gripper may go to, or None where the arm cannot turn it so.
        """
        here = self.data.site_xpos[self.arm.site]
        wanted = here + np.clip(self._aim - here, -SLIP, SLIP) + change[:3]
        rotation = rotation_of(*change[3:]) @ self._rotation
        return wanted, rotation, self.arm.solve(self._joints, np.clip(wanted, *REACH), rotation)

    def move(self, wanted: np.ndarray, rotation: np.ndarray, joints: np.ndarray | None, opening: float) -> None:
        """Carry out what `aim` returned, with the fingers from 0 (closed) to 1 (open); the arm holds still at None."""
        if joints is None:
            joints = self._joints
        else:
            self._aim, self._rotation = np.clip(wanted, *REACH), rotation
        self.data.ctrl[JOINTS:] = opening * OPEN
        for part in PATH:
            self.data.ctrl[:JOINTS] = self._joints + (joints - self._joints) * part
            mujoco.mj_step(self.model, self.data, SUBSTEPS)
        self._joints = joints
        mujoco.mj_forward(self.model, self.data)  # a step leaves the poses of the moment before
