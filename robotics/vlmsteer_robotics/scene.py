"""The tabletop as one MJCF text made of boxes, capsules and cylinders: a UR5e, a two-finger gripper, a tray, blocks.

The arm's kinematics are Universal Robots' published Denavit-Hartenberg numbers, its link masses theirs too; its looks
are capsules. No mesh and no texture is read, so the scene needs no file and a ray can hit everything in it. x points
from the robot to the camera, y to the right of the image, z up; the table's top is z = 0; meters, kilograms, seconds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vlmsteer_robotics.simulator import mujoco

JOINTS = 6
DH_A = (0.0, -0.425, -0.3922, 0.0, 0.0, 0.0)
DH_D = (0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996)
DH_ALPHA = (math.pi / 2, 0.0, 0.0, math.pi / 2, -math.pi / 2, 0.0)
LINK_MASS = (3.761, 8.058, 2.846, 1.37, 1.3, 0.365)
LINK_RADIUS = (0.06, 0.052, 0.042, 0.038, 0.038, 0.034)
TORQUE = (150, 150, 150, 28, 28, 28)  # N m, the limits of the six joints
STIFFNESS = (8000, 8000, 8000, 1500, 1500, 1500)
GRIP = 1000  # N/m of each finger: it holds a block with 25 N and keeps it in the middle
HOME = (-0.3007, -1.5979, 2.1117, -2.0847, -1.5708, -1.8714)  # gripper down over the middle, fingers open sideways

TOOL = 0.155  # from the flange to the point between the finger tips
OPEN = 0.042  # how far each finger stands from the middle when open
HALF = 0.025  # half the side of a block
BLOCK_MASS = 0.08
TRAY = (0.655, 0.0)  # where its middle is
TRAY_HALF = (0.055, 0.075)
TRAY_WALL = 0.012
TIMESTEP = 0.004
FIXED, MOVING = 0, 1  # groups of geoms

COLORS = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.12, 0.62, 0.16),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.97, 0.82, 0.08),
    "purple": (0.56, 0.16, 0.68),
    "cyan": (0.10, 0.78, 0.82),
}
LIGHT_GRAY, BLUE_GRAY, DARK = "0.80 0.81 0.83 1", "0.45 0.55 0.66 1", "0.14 0.14 0.16 1"


def build(blocks: int) -> Any:
    """A compiled `mujoco.MjModel` with bodies `block0`, `block1`, ... on the table, all gray until colored.

    Geoms that never move are in group `FIXED`, the others in group `MOVING`.
    """
    model = mujoco.MjModel.from_xml_string(mjcf(blocks))
    model.geom_group[:] = np.where(model.body_weldid[model.geom_bodyid] == 0, FIXED, MOVING)
    return model


def mjcf(blocks: int) -> str:
    """The scene with so many blocks, as MJCF."""
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="1280" offheight="1280"/>
    <quality shadowsize="1024" offsamples="0"/>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
  </visual>
  <default>
    <geom contype="0" conaffinity="0" rgba="{LIGHT_GRAY}"/>
    <joint axis="0 0 1" armature="0.1" range="-6.2832 6.2832"/>
    <default class="touch"><geom contype="1" conaffinity="1" condim="4" friction="1.2 0.02 0.001"/></default>
    <default class="finger">
      <joint type="slide" armature="0.05" damping="5" range="0 {OPEN}"/>
      <geom contype="1" conaffinity="1" condim="4" friction="2 0.05 0.001" solref="0.01 1" rgba="{DARK}" mass="0.03"/>
    </default>
  </default>
  <worldbody>
    <light pos="0.9 -0.5 1.6" dir="-0.3 0.35 -1" diffuse="0.6 0.6 0.6" specular="0 0 0"/>
    <geom name="floor" type="box" pos="0.3 0 -0.6" size="3 3 0.1" rgba="0.42 0.45 0.48 1"/>
    <geom name="table" class="touch" type="box" pos="0.4 0 -0.03" size="0.5 0.5 0.03" rgba="0.83 0.76 0.66 1"/>
    {_tray()}
    <geom name="base" type="cylinder" pos="0 0 0.04" size="0.075 0.04"/>
    {_arm()}
    {"".join(_block(number) for number in range(blocks))}
  </worldbody>
  <contact>{_hand_apart()}</contact>
  <actuator>
    {_motors()}
  </actuator>
</mujoco>"""


def _arm() -> str:
    """Nested bodies: each turns about its z, then goes by d along z and a along x, and tilts by alpha about x."""
    opened = '<body name="mount" quat="0 0 0 1">'  # a UR's own x points away from where its arm reaches
    place = "0 0 0", "1 0 0 0"
    for i in range(JOINTS):
        a, d, alpha = DH_A[i], DH_D[i], DH_ALPHA[i]
        mass, radius = LINK_MASS[i], LINK_RADIUS[i]
        opened += f'<body name="link{i}" pos="{place[0]}" quat="{place[1]}" gravcomp="1"><joint name="joint{i}"/>'
        reach = f"{a} 0 {d}"
        opened += f'<geom type="capsule" fromto="0 0 0 {reach}" size="{radius}" mass="{mass}"/>'
        if i in (1, 2, 3):
            opened += f'<geom type="cylinder" size="{radius + 0.008} {radius + 0.012}" rgba="{BLUE_GRAY}" mass="0"/>'
        place = reach, f"{math.cos(alpha / 2)} {math.sin(alpha / 2)} 0 0"
    return opened + _gripper(f'pos="{place[0]}" quat="{place[1]}"') + "</body>" * (JOINTS + 1)


def _gripper(place: str) -> str:
    finger = 0.011  # half its thickness; its inner face is at the joint's value
    sides = "".join(
        f"""<body name="finger_{name}" pos="0 {sign * finger} 0.105" gravcomp="1">
          <joint name="finger_{name}" class="finger" axis="0 {sign} 0"/>
          <geom name="finger_{name}" class="finger" type="box" pos="0 0 0.027" size="0.013 {finger} 0.033"/>
        </body>"""
        for name, sign in (("left", -1), ("right", 1))
    )
    return f"""
    <body name="hand" {place} gravcomp="1">
      <geom type="cylinder" fromto="0 0 0 0 0 0.055" size="0.034" rgba="{DARK}" mass="0.4"/>
      <geom name="palm" class="touch" type="box" pos="0 0 0.075" size="0.024 0.066 0.022" rgba="{DARK}" mass="0.3"/>
      <site name="tool" pos="0 0 {TOOL}"/>
      {sides}
    </body>"""


def _hand_apart() -> str:
    return "".join(
        f'<exclude body1="{one}" body2="{other}"/>'
        for one, other in (("hand", "finger_left"), ("hand", "finger_right"), ("finger_left", "finger_right"))
    )


def _tray() -> str:
    (x, y), (a, b), wall = TRAY, TRAY_HALF, TRAY_WALL
    walls = (
        (x - a, y, 0.004, b + 0.004),
        (x + a, y, 0.004, b + 0.004),
        (x, y - b, a + 0.004, 0.004),
        (x, y + b, a + 0.004, 0.004),
    )
    made = f'<geom class="touch" type="box" pos="{x} {y} 0.002" size="{a} {b} 0.002" rgba="0.32 0.33 0.36 1"/>'
    for px, py, sx, sy in walls:
        made += (
            f'<geom class="touch" type="box" pos="{px} {py} {wall}" size="{sx} {sy} {wall}" rgba="0.96 0.96 0.96 1"/>'
        )
    return made


def _block(number: int) -> str:
    return f"""
    <body name="block{number}" pos="0.45 {0.1 * number} {HALF}">
      <freejoint/>
      <geom name="block{number}" class="touch" type="box" size="{HALF} {HALF} {HALF}" mass="{BLOCK_MASS}"/>
    </body>"""


def _motors() -> str:
    fingers = "".join(
        f'<position name="grip_{name}" joint="finger_{name}" kp="{GRIP}" dampratio="1" ctrlrange="0 {OPEN}"/>'
        for name in ("left", "right")
    )
    arm = "".join(
        f'<position name="motor{i}" joint="joint{i}" kp="{STIFFNESS[i]}" dampratio="1" '
        f'forcerange="-{TORQUE[i]} {TORQUE[i]}"/>'
        for i in range(JOINTS)
    )
    return arm + fingers
