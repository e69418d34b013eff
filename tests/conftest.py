"""Sessions on small random checkpoints, one for each family, loaded the way a user loads one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BUILDERS, save
from PIL import Image

import vlmsteer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder for each family, saved when first asked for."""

    class Folders(dict):
        def __missing__(self, name: str) -> Path:
            self[name] = save(name, tmp_path_factory.mktemp("checkpoints") / f"random-{name}")
            return self[name]

    return Folders()


@pytest.fixture(scope="session")
def llava_folder(folders: dict[str, Path]) -> Path:
    return folders["llava"]


@pytest.fixture(scope="session")
def sessions(folders: dict[str, Path]) -> dict[str, Any]:
    """A session for each family, loaded when first asked for. Tests leave it as they found it."""

    class Sessions(dict):
        def __missing__(self, name: str) -> Any:
            self[name] = vlmsteer.load(folders[name])
            return self[name]

    return Sessions()


@pytest.fixture(scope="session")
def llava(sessions: dict[str, Any]) -> Any:
    return sessions["llava"]


@pytest.fixture(scope="session")
def llava_next(sessions: dict[str, Any]) -> Any:
    return sessions["llava_next"]


@pytest.fixture(scope="session", params=["llava", "llava_next"])
def session(request: pytest.FixtureRequest, sessions: dict[str, Any]) -> Any:
    """The engine's families: one row an image, and several."""
    return sessions[request.param]


@pytest.fixture(scope="session", params=list(BUILDERS))
def everyone(request: pytest.FixtureRequest, sessions: dict[str, Any]) -> Any:
    """Each family in turn, for the contract that all of them keep."""
    return sessions[request.param]


@pytest.fixture(scope="session")
def anyone(everyone: Any) -> Any:
    """Each family that answers in words."""
    if everyone.family.silent:
        pytest.skip(f"{everyone.family.name} has no words")
    return everyone


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Three images of different shapes with structure in them; under NeXT they give different numbers of tiles."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for width, height in [(28, 28), (60, 28), (40, 44)]:
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        made.append(Image.fromarray(pixels.numpy()))
    return made


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The workbench of a server that offers the bundled models."""
    from vlmsteer_ui.workbench import Workbench

    return Workbench(["tiny-llava"], tmp_path_factory.mktemp("workbench"))


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a workbench is, a process of its own."""
    from serving import serving

    with serving(tmp_path_factory.mktemp("page")) as (url, _):
        yield url
