"""What a run was: everything that is needed to do it again, and to refuse another run in the same folder."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vlmsteer
from vlmsteer.bench.asking import Decoding
from vlmsteer.bench.benchmark import Arm
from vlmsteer.bench.files import read_json
from vlmsteer.bench.ledger import write_whole
from vlmsteer.bench.plan import Task
from vlmsteer.errors import InputError

if TYPE_CHECKING:
    from vlmsteer.session import Session

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "pillow", "scikit-learn")
ASKED = ("model", "decoding", "tasks", "arms")  # what answers depend on


def asked(
    session: Session, tasks: Sequence[Task], arms: Sequence[Arm], decoding: Decoding, weights: str
) -> dict[str, Any]:
    """What the answers depend on, as JSON values: two runs that agree in it are one run.

    Args:
        weights: the model's `weights.digest`.
    """
    quantization = getattr(session.model.config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    found = {
        "model": {
            **session.fingerprint,
            "weights": weights,
            "dtype": str(session.model.dtype).removeprefix("torch."),
            **({} if quantization is None else {"quantization": quantization}),
        },
        "decoding": {
            **decoding.spec(),
            "max_new_tokens": {task.name: task.longest or task.benchmark.max_new_tokens for task in tasks},
        },
        "tasks": [
            {
                "name": task.name, "title": task.benchmark.title, "source": task.benchmark.source,
                "version": task.benchmark.version, "options": dict(task.options), "items": len(task.items),
                "data": task.digest(),
            }
            for task in tasks
        ],
        "arms": [
            {
                "name": arm.name, "kind": arm.kind, "of": arm.of, "strength": arm.strength,
                "recipe": None if arm.recipe is None else arm.recipe.hash,
                "file": None if arm.recipe is None else f"recipes/{_file_name(arm.name)}.safetensors",
            }
            for arm in arms
        ],
    }  # fmt: skip
    return json.loads(json.dumps(found, default=str))  # as it will be read again


def open_folder(
    folder: Path, run: Mapping[str, Any], tasks: Sequence[Task], arms: Sequence[Arm], more: Mapping[str, Any]
) -> None:
    """Begin a run in a folder, or find that the run in it is this one.

    Args:
        run: from `asked`.
        more: what run.json holds besides, such as the seed; it may differ when a run goes on.

    Raises:
        InputError: if the folder holds another run, or files that are none, or cannot be written.
    """
    path = folder / "run.json"
    if path.exists():
        there = read_json(path)
        difference = next(filter(None, (_difference(name, there.get(name), run[name]) for name in ASKED)), None)
        if difference is not None:
            raise InputError(f"{str(folder)!r} holds another run: {difference}. Give another folder with --out.")
        return
    if any(folder.glob("samples*.jsonl")):
        raise InputError(f"{str(folder)!r} holds answers but no run.json that says whose. Give another folder.")
    try:
        (folder / "recipes").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {str(folder)!r} cannot be written: {error.strerror}.") from error
    for row, arm in zip(run["arms"], arms, strict=True):
        if arm.recipe is not None:
            arm.recipe.save(folder / row["file"])
    for task in tasks:
        rows = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in task.items]
        write_whole(folder / f"items-{task.name}.jsonl", "".join(rows))
    about = {
        "vlmsteer": vlmsteer.__version__, "command": sys.argv, **run, **more,
        "started": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version(),
        "platform": platform.platform(terse=True), "libraries": {name: _version(name) for name in LIBRARIES},
    }  # fmt: skip
    write_whole(path, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def note(folder: Path, name: str, value: Any) -> None:
    """Put a further entry into run.json, such as who judged the answers.

    Raises:
        InputError: if it cannot be read or written.
    """
    path = folder / "run.json"
    write_whole(path, json.dumps({**read_json(path), name: value}, indent=1, ensure_ascii=False) + "\n")


def _difference(where: str, there: Any, here: Any) -> str | None:
    """Where two JSON values first differ, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = dict.fromkeys([*there, *here])
        return next(filter(None, (_difference(f"{where}.{n}", there.get(n), here.get(n)) for n in names)), None)
    if isinstance(there, list) and isinstance(here, list):
        named = [[str(row.get("name")) if isinstance(row, dict) else str(row) for row in one] for one in (there, here)]
        if named[0] != named[1]:
            return f"its {where} are {', '.join(named[0])}, here {', '.join(named[1])}"
        pairs = zip(named[0], there, here, strict=True)
        return next(filter(None, (_difference(f"{where}.{name}", a, b) for name, a, b in pairs)), None)
    if there == here:
        return None
    if where == "model.weights":
        return f"its model has the same name but other weights (digest {there}, here {here})"
    return f"its {where} is {there!r}, here {here!r}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
