"""Looking at a set that is there: checked again, counted, uploaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError
from vlmsteer_counterfacts.build import check
from vlmsteer_counterfacts.card import counted
from vlmsteer_counterfacts.record import METADATA, REJECTED, SEEN, load_records, read


@dataclass
class Rechecked:
    """How many pairs a set has, and for those that fail a check now, by id, why."""

    pairs: int = 0
    failed: dict[str, list[str]] = field(default_factory=dict)


def recheck(folder: str | Path, score: Callable[..., Any] | None = None) -> Rechecked:
    """Do all checks of every accepted pair again.

    Args:
        score: similarities of images and texts; without it the agreement is not checked.

    Raises:
        InputError: a picture is missing or is not the one that was written.
    """
    found = Rechecked()
    for record in read(folder):
        found.pairs += 1
        checks = check(record, [record.picture(which) for which in SEEN], score)
        reasons = [one.says for one in checks if not one.ok]
        if reasons:
            found.failed[record.id] = reasons
    return found


def statistics(folder: str | Path) -> dict[str, Any]:
    """What `card.counted` counts, by attribute with its objects and answers too."""
    rows = [
        {"ok": ok, "row": row}
        for path, ok in ((Path(folder), True), (Path(folder) / REJECTED, False))
        for row in _rows(path / METADATA, ok)
    ]
    numbers = counted(rows)
    for name, counts in numbers["by_attribute"].items():
        chosen = [row["row"] for row in rows if row["ok"] and row["row"]["attribute"] == name]
        counts["objects"] = len({row["object"] for row in chosen})
        counts["answers"] = len({row["pixel"] for row in chosen})
    return numbers


def _rows(path: Path, needed: bool) -> list[Mapping[str, Any]]:
    if not path.is_file():
        if needed:
            raise InputError(f"{str(path.parent)!r} holds no {METADATA}; give the folder of a set that was built.")
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{str(path)!r} is damaged: {error}.") from error


def upload(folder: str | Path, repo: str, private: bool = False) -> str:
    """Upload a set's accepted pairs to the Hugging Face hub; returns its address.

    Raises:
        InputError: the set is not whole, the hub cannot be reached, or it refuses.
    """
    load_records(folder)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repo, repo_type="dataset", ignore_patterns=["__*"])
    except Exception as error:  # the hub client's network errors share no root class across its versions
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{repo!r} could not be written on the hub: {first} Log in with `hf auth login`.") from error
    return str(address)
