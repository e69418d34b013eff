"""What every command shares: where it prints, how it loads a model, and what it refuses before the work begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vlmsteer.errors import InputError

out, err = Console(), Console(stderr=True)
SMALL = 50_000_000  # parameters; below, a second thread costs more than it brings
placement: dict[str, Any] = {}  # how `load` is to place a large model, from the options before the command

Model = Annotated[str, typer.Option("--model", "-m", help="A bundled model, a folder, or a hub name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


@contextmanager
def working(text: str) -> Iterator[Any]:
    """A spinner on a terminal, lines of text elsewhere; yields a function that changes the text."""
    if err.is_terminal:
        with err.status(text) as status:
            yield status.update
    else:
        yield lambda new: err.print(new, markup=False, highlight=False)


def load(model: str) -> Any:
    """A session on a model, placed as the options before the command say."""
    import torch
    from transformers.utils import logging

    from vlmsteer.loading import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with working(f"Loading {model}"):
        session = load(model, **placement)
    small = sum(weight.numel() for weight in session.model.parameters()) < SMALL
    if small and session.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return session


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def layers_in(text: str) -> list[int]:
    """The layers written as "2" or "14-16".

    Raises:
        InputError: if that is not what the text says.
    """
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()) or (last and int(last) < int(first)):
        raise InputError(f"Layers are written 2 or 14-16, not {text!r}.")
    return list(range(int(first), int(last or first) + 1))


def writable(folder: Path) -> None:
    """Find out before the work that its result can be written.

    Raises:
        InputError: if it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"The folder {str(folder)!r} cannot be written: {error.strerror}.") from error


def recipe_file(path: Path) -> Path:
    """The path, if a recipe can be saved there.

    Raises:
        InputError: if it cannot.
    """
    if path.suffix != ".safetensors" or not path.parent.is_dir() or path.is_dir():
        raise InputError(f"{str(path)!r} must be a .safetensors file in a folder that exists.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{str(path)!r} cannot be written: permission denied.")
    return path
