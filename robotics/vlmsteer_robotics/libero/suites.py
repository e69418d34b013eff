"""LIBERO's suites and environments, from `hf-libero` where it is installed and its scenes are at hand.

Its initial states are pickles that come with the package and are read by it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError
from vlmsteer_robotics.optional import Simulator

CAMERA = 256  # pixels
SIMULATOR = Simulator("LIBERO", "libero", "libero", (3, 9))


def suite(name: str) -> Any:
    """The suite, once it is certain that everything it needs is here.

    Raises:
        InputError: if something is not.
    """
    found = find_spec(SIMULATOR.package)
    if found is not None and found.origin is not None:
        _configure(Path(found.origin).parent / "libero")
    library = SIMULATOR.load(".libero")
    benchmark, _ = SIMULATOR.load(".libero.benchmark"), SIMULATOR.load(".libero.envs")
    assets = Path(library.get_assets_path())
    if not assets.is_dir():
        raise InputError(
            f"LIBERO's scenes are not on this machine and could not be fetched: put the data set lerobot/libero-assets "
            f"of the hub at {str(assets)!r}."
        )
    return benchmark.get_benchmark_dict()[name]()


def _configure(root: Path) -> None:
    """Give LIBERO a config.yaml where there is none: it would ask questions on the terminal when it is imported."""
    folder = Path(os.environ.get("LIBERO_CONFIG_PATH", Path.home() / ".libero"))
    if (folder / "config.yaml").is_file():
        return
    if "LIBERO_CONFIG_PATH" not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="libero-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    places = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files"}
    places |= {"datasets": root.parent / "datasets", "assets": root / "assets"}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: str(place) for name, place in places.items()})  # JSON is YAML
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def environment(source: Any, number: int) -> Any:
    """LIBERO's environment for a task, made as OpenVLA's authors make it.

    Raises:
        InputError: if it cannot be made.
    """
    envs = SIMULATOR.load(".libero.envs")
    path = source.get_task_bddl_file_path(number)
    try:
        env = envs.OffScreenRenderEnv(bddl_file_name=path, camera_heights=CAMERA, camera_widths=CAMERA)
        env.seed(0)
    except Exception as error:
        raise InputError(
            f"LIBERO's environment for task {number} cannot be made ({type(error).__name__}: {error}). It draws "
            "with EGL or OSMesa: set MUJOCO_GL to egl or osmesa, and see that its scenes are whole."
        ) from error
    return env
