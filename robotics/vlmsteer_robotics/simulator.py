"""MuJoCo, untyped: its compiled parts, which are nearly all of it, carry no types that a checker could read."""

from importlib import import_module
from typing import Any

mujoco: Any = import_module("mujoco")
