"""Whole sets of counterfactual pairs from one configuration: seeded, parallel, and whole or not there.

Every pair is made from a seed that depends on its number alone, in chunks; a finished chunk is noted under `__parts__`.
A run that was stopped, or one of several machines, does the chunks that nobody has finished; when all are there the
metadata is written. The same configuration gives the same bytes, however often it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer_counterfacts import photos
from vlmsteer_counterfacts.card import card
from vlmsteer_counterfacts.checks import Check, check_edit
from vlmsteer_counterfacts.config import Config
from vlmsteer_counterfacts.drawn import Draft, draw_pair
from vlmsteer_counterfacts.record import METADATA, REJECTED, Record, png, replace_file, slug, write, write_lines

CONFIG, PARTS, CHUNK = "config.json", "__parts__", 25


@dataclass(frozen=True)
class Built:
    """What a run came to: pairs accepted and rejected, and how many chunks others still have to finish."""

    accepted: int
    rejected: int
    left: int


def build(
    config: Config, folder: str | Path, workers: int = 1, report: Callable[[int, int], None] = lambda done, all: None
) -> Built:
    """Make the pairs that are not there yet.

    Under `accelerate launch` (or with RANK and WORLD_SIZE set) each process makes its share of the chunks; whoever
    finishes last writes the metadata.

    Args:
        workers: processes on this machine.
        report: called with how many pairs of how many are done.

    Raises:
        InputError: the folder holds another set, or cannot be written.
    """
    root = Path(folder).expanduser()
    _claim(config, root)
    items = config.items()
    chunks = [items[first : first + CHUNK] for first in range(0, len(items), CHUNK)]
    if not (root / METADATA).is_file():
        rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        _own_device()
        todo = [n for n in range(len(chunks)) if n % world == rank and not _part(root, n).is_file()]
        done = sum(len(chunk) for n, chunk in enumerate(chunks) if n not in todo)
        for number in _worked(config, root, [(n, chunks[n]) for n in todo], workers):
            done += len(chunks[number])
            report(done, len(items))
        left = sum(not _part(root, n).is_file() for n in range(len(chunks)))
        if (root / METADATA).is_file():  # another process had them all, and has joined them
            shutil.rmtree(root / PARTS, ignore_errors=True)
        elif left:
            return Built(0, 0, left)
        else:
            _join(config, root, len(chunks))
    kept, lost = (_count(path) for path in (root / METADATA, root / REJECTED / METADATA))
    return Built(kept, lost, 0)


def check(pair: Draft | Record, pictures: Sequence[Image.Image], score: Callable[..., Any] | None) -> list[Check]:
    """What is checked of one pair, given its original, counterfactual and mask; see `checks.check_edit`."""
    previous, target = (pair.prior, pair.pixel) if pair.attribute == "color" else (None, None)
    return check_edit(
        *pictures, attribute=pair.attribute, target=target, previous=previous, score=score, texts=pair.texts
    )


def record_of(draft: Draft, name: str, score: Callable[..., Any] | None) -> Record:
    """A draft with its checks, as it is kept."""
    found = check(draft, (draft.original, draft.counterfactual, draft.mask), score)
    return Record(
        id=name, object=draft.object, attribute=draft.attribute, prior=draft.prior, pixel=draft.pixel,
        original=png(draft.original), counterfactual=png(draft.counterfactual), mask=png(draft.mask),
        edit=draft.edit, prior_source=draft.prior_source, texts=draft.texts, checks=tuple(asdict(one) for one in found),
    )  # fmt: skip


def scorer_of(name: str) -> Callable[..., Any] | None:
    """The scorer of that name; None for ""."""
    if not name:
        return None
    from vlmsteer_counterfacts.clip import load_scorer

    return load_scorer(name)


def _worked(config: Config, root: Path, todo: Sequence[tuple[int, list]], workers: int) -> Iterator[int]:
    """The numbers of chunks as they are finished."""
    if workers <= 1 or len(todo) <= 1:
        score = scorer_of(config.scorer) if todo else None
        for number, chunk in todo:
            _make(config, root, number, chunk, score)
            yield number
        return
    pool = ProcessPoolExecutor(min(workers, len(todo)), get_context("spawn"), _begin, (config.scorer,))
    waiting: dict[Future, int] = {pool.submit(_chunk, config, root, *one): one[0] for one in todo}
    try:
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                future.result()
                yield waiting.pop(future)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_score: Callable[..., Any] | None = None  # a worker process's own


def _begin(scorer: str) -> None:
    global _score
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it lets chunks under way finish
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if scorer:
        import torch

        torch.set_num_threads(1)
    _score = scorer_of(scorer)


def _chunk(config: Config, root: Path, number: int, chunk: list[tuple[str, int]]) -> None:
    _make(config, root, number, chunk, _score)


def _make(
    config: Config, root: Path, number: int, chunk: list[tuple[str, int]], score: Callable[..., Any] | None
) -> None:
    rows = []
    for attribute, index in chunk:
        if attribute:
            draft = draw_pair(attribute, config, random.Random(f"{config.seed}/{attribute}/{index}"))
            name = f"{attribute}-{index:06d}-{slug(draft.object)}-{slug(draft.pixel)}"
        else:
            draft = photos.edit(**config.photos[index])
            name = f"photo-{index:06d}-{slug(draft.object)}-{slug(draft.pixel)}"
        record = record_of(draft, name, score)
        rows.append({"ok": record.accepted, "row": write(record, root if record.accepted else root / REJECTED)})
    replace_file(_part(root, number), json.dumps(rows).encode())


def _own_device() -> None:
    """Under `accelerate launch` every process uses the GPU that is meant for it."""
    if "LOCAL_RANK" in os.environ:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _claim(config: Config, root: Path) -> None:
    """The folder is this configuration's, or nobody's yet."""
    path = root / CONFIG
    if path.is_file():
        if path.read_text(encoding="utf-8") != config.text():
            raise InputError(f"{str(root)!r} holds the set of another configuration; give another folder.")
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{str(root)!r} is not empty and holds no set; give a new folder.")
    else:
        replace_file(path, config.text().encode())


def _join(config: Config, root: Path, chunks: int) -> None:
    try:
        rows = [row for n in range(chunks) for row in json.loads(_part(root, n).read_text(encoding="utf-8"))]
    except FileNotFoundError:  # another process has joined them just now
        return
    for folder, ok in ((root / REJECTED, False), (root, True)):  # the metadata of a whole set comes last
        chosen = [row["row"] for row in rows if row["ok"] is ok]
        if ok:
            replace_file(root / "README.md", card(config.name, config.text(), rows).encode())
        if ok or chosen:
            write_lines(chosen, folder)
    shutil.rmtree(root / PARTS, ignore_errors=True)


def _part(root: Path, number: int) -> Path:
    return root / PARTS / f"{number:05d}.json"


def _count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def digest(folder: str | Path) -> str:
    """One SHA-256 over the names and bytes of all files of a set."""
    root, total = Path(folder), hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
