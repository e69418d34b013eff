"""From a pose of the gripper to joint angles: differential inverse kinematics with damped least squares.

The step for a pose error e is J^T (J J^T + damping^2 I)^-1 e (Wampler 1986; Nakamura and Hanafusa 1986), repeated on a
copy of the kinematics until the error is gone. A pose that is not reached in `STEPS` steps is out of the arm's reach.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmsteer_robotics.scene import JOINTS
from vlmsteer_robotics.simulator import mujoco

DAMPING = 0.02
STEPS = 40
NEAR = 2e-4  # meters and radians
LIMIT = 2 * np.pi - 0.1  # a joint stops at a whole turn either way, radians
TURN = 0.3  # the most a joint turns in one step of the search, radians


class Arm:
    """The kinematics of one model, beside its simulation: asking where a joint angle leads moves nothing."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self.site = model.site("tool").id
        self._position, self._rotation = np.zeros((3, model.nv)), np.zeros((3, model.nv))

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the gripper is at these joint angles: position (3,) in meters, rotation (3, 3)."""
        self.data.qpos[:JOINTS] = joints
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self.site].copy(), self.data.site_xmat[self.site].reshape(3, 3).copy()

    def solve(self, joints: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> np.ndarray | None:
        """Joint angles (6,) near `joints` that put the gripper there, or None where the arm does not reach."""
        joints = np.array(joints, dtype=float)
        for _ in range(STEPS):
            here, turned = self.pose(joints)
            error = np.concatenate([position - here, rotation_vector(rotation @ turned.T)])
            if np.abs(error).max() < NEAR:
                return joints if np.abs(joints).max() < LIMIT else None
            mujoco.mj_comPos(self.model, self.data)
            mujoco.mj_jacSite(self.model, self.data, self._position, self._rotation, self.site)
            jacobian = np.concatenate([self._position[:, :JOINTS], self._rotation[:, :JOINTS]])
            square = jacobian @ jacobian.T + DAMPING**2 * np.eye(6)
            step = jacobian.T @ np.linalg.solve(square, error)
            joints += step * min(1.0, TURN / max(np.abs(step).max(), 1e-12))
        return None


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """The axis (3,) of a rotation (3, 3), as long as its angle in radians."""
    quaternion, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_of(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """The rotation (3, 3) by roll about x, then pitch about y, then yaw about z, axes of the world, radians."""
    (cr, cp, cy), (sr, sp, sy) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def euler(rotation: np.ndarray) -> np.ndarray:
    """Roll, pitch and yaw (3,) of a rotation (3, 3): what `rotation_of` was given, at less than a quarter turn."""
    roll = np.arctan2(rotation[2, 1], rotation[2, 2])
    pitch = np.arcsin(np.clip(-rotation[2, 0], -1.0, 1.0))
    return np.array([roll, pitch, np.arctan2(rotation[1, 0], rotation[0, 0])])
