"""Simulators of others, each an extra of its own: they need an older MuJoCo than our table does.

They are imported when they are asked for. In an environment that has one of them this package works, but for the table
itself, whose rays need MuJoCo 4.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

from vlmsteer.errors import InputError
from vlmsteer_robotics.simulator import mujoco


class Simulator(NamedTuple):
    """Attributes: title; package to import; extra that installs it; below, the first MuJoCo it does not work with."""

    title: str
    package: str
    extra: str
    below: tuple[int, int]

    def load(self, module: str = "") -> ModuleType:
        """A module of the package, or the package.

        Raises:
            InputError: it, or something it needs, is not installed, or this environment's MuJoCo is too new for it.
        """
        limit = ".".join(map(str, self.below))
        install = (
            f"pip install 'vlmsteer[{self.extra}]' in an environment of its own, for it needs a MuJoCo before {limit} "
            "and our table a later one"
        )
        if find_spec(self.package) is None:
            raise InputError(f"{self.title} is not installed: {install}.")
        if tuple(map(int, mujoco.__version__.split(".")[:2])) >= self.below:
            raise InputError(f"{self.title} does not work with MuJoCo {mujoco.__version__}: {install}.")
        try:
            return import_module(f"{self.package}{module}")
        except ImportError as error:
            raise InputError(f"{self.title} lacks {error.name or error}: {install}.") from error
