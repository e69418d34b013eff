"""The same questions to every arm, each answered once, however often the run is stopped.

A batch is the unit of work: it is asked as a whole, and its rows are written as soon as they are there. Which questions
make a batch is decided beforehand (`plan`), batches go to processes in turn, and an answer is known by the hash of all
that it depends on; so a run that was killed, or spread over processes and nodes, ends as an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmsteer.bench import plan, record, weights
from vlmsteer.bench.asking import Asker, Batch, Decoding, Outcome
from vlmsteer.bench.benchmark import Answer, Arm, Item
from vlmsteer.bench.ledger import Ledger, key, latest, merge, rows_in
from vlmsteer.bench.plan import Task
from vlmsteer.bench.ranks import Ranks
from vlmsteer.errors import InputError, VlmsteerError

if TYPE_CHECKING:
    from vlmsteer.session import Session

ROWS = 32  # questions asked together unless told otherwise
SAMPLES = "samples.jsonl"

# How many answers this process has still to get, then after each batch how many of them came, and what was asked.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Done:
    """A finished run: how many answers it has, how many rows this process wrote now, and errors by task and arm."""

    answers: int
    asked: int
    errors: dict[tuple[str, str], dict[str, str]]

    @property
    def failed(self) -> int:
        """How many questions have an error in place of an answer."""
        return sum(map(len, self.errors.values()))


def run(
    session: Session,
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    folder: str | Path,
    decoding: Decoding | None = None,
    batch_size: int = ROWS,
    retry_errors: bool = False,
    fail_on_error: bool = False,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda total, done, text: None,
    ranks: Ranks | None = None,
) -> Done:
    """Ask everything that the folder does not hold yet.

    Args:
        session: the model.
        tasks: what is asked (`plan.limited` shortens the items of one).
        arms: from `arms.make`.
        folder: begun, or gone on with if it holds this run. Processes on several nodes must share it.
        decoding: the same for all arms, by default greedy.
        batch_size: questions asked together; halved where the memory does not hold them.
        retry_errors: ask questions again that had an error.
        fail_on_error: stop at the first error.
        about: what run.json holds besides.
        progress: see `Progress`.
        ranks: this process among others; they must have been joined. By default it is alone.

    Raises:
        InputError: if the folder holds another run or cannot be written, or with `fail_on_error`. Rows that were
            written before are safe.
        RecipeError, SiteError: if a recipe was made for another model.
    """
    folder, decoding, ranks = Path(folder), decoding or Decoding(), ranks or Ranks()
    for arm in arms:  # what does not fit this model is refused before the first question
        session.check(arm.recipe)
        if arm.recipe is not None and not arm.recipe.per_question:
            with session.apply(arm.recipe):
                pass
    # Found out once: what is quantized on other devices need not be the same to the last bit.
    known = ranks.first(lambda: weights.digest(session.model))
    work = _Work(session, tasks, arms, decoding, batch_size, known)
    more = {"batch_size": batch_size, **(about or {})}
    ranks.first(lambda: record.open_folder(folder, work.asked, tasks, arms, more))
    failed: VlmsteerError | None = None
    count = 0
    with contextlib.ExitStack() as stack:  # the first process's file stays locked until all files are one
        try:
            ledger = stack.enter_context(
                Ledger(folder / (SAMPLES if ranks.rank == 0 else f"samples-{ranks.rank}.jsonl"))
            )
            had = latest(row for file in (folder / SAMPLES, *_others(folder)) for row in rows_in(file))
            own = [batch for number, batch in enumerate(work.batches) if number % ranks.world == ranks.rank]
            asker = Asker(session, decoding, batch_size)
            for rows in work.answered(asker, own, had, retry_errors, progress):
                ledger.append(rows)
                count += len(rows)
                if fail_on_error:
                    _stop(rows)
            ledger.sync()
        except VlmsteerError as error:
            failed = error
        ranks.all(failed)
        ranks.first(lambda: merge(folder, SAMPLES, _others(folder), work.keys()))
    final = rows_in(folder / SAMPLES)
    if fail_on_error:
        _stop(final)
    errors: dict[tuple[str, str], dict[str, str]] = {}
    for row in final:
        if row["error"] is not None:
            errors.setdefault((row["task"], row["arm"]), {})[row["item"]] = row["error"]
    return Done(sum(row["error"] is None for row in final), count, errors)


class _Work:
    """All batches of a run, and the keys of their answers."""

    def __init__(
        self,
        session: Session,
        tasks: Sequence[Task],
        arms: Sequence[Arm],
        decoding: Decoding,
        batch_size: int,
        known: str,
    ) -> None:
        self.session, self.tasks, self.arms = session, tasks, arms
        self.asked = record.asked(session, tasks, arms, decoding, known)
        self.batches = [(task, batch) for task in tasks for batch in plan.batches(task, batch_size)]
        self._decoding = decoding.spec()
        self._hashes = {row["name"]: row["recipe"] for row in self.asked["arms"]}
        self._images: dict[str, str] = {}

    def key(self, task: Task, item: Item, arm: Arm) -> str:
        """What an answer is known by."""
        return key(
            task.name, task.benchmark.version, item.id, item.prompt, list(item.choices), self._image(item.image),
            self._hashes[arm.name], self.asked["model"], self._decoding, task.limit(item),
        )  # fmt: skip

    def keys(self) -> Iterator[str]:
        """The keys of all answers, by task, arm and item."""
        return (self.key(task, item, arm) for task in self.tasks for arm in self.arms for item in task.items)

    def answered(
        self,
        asker: Asker,
        batches: Sequence[tuple[Task, list[Item]]],
        had: Mapping[str, Mapping[str, Any]],
        retry_errors: bool,
        progress: Progress,
    ) -> Iterator[list[dict[str, Any]]]:
        """Rows of one batch and arm after the other, without those that are there."""
        todo = []
        for task, items in batches:
            for arm in self.arms:
                keys = [self.key(task, item, arm) for item in items]
                new = [row for row, one in enumerate(keys) if one not in had]
                again = [row for row, one in enumerate(keys) if retry_errors and one in had and had[one]["error"]]
                # Cut off in the middle of its rows, a batch is asked as it was, so that its answers are what they were.
                asked = list(range(len(items))) if new else again
                todo.append((task, items, arm, keys, asked, {*new, *again}))
        total, done = sum(len(missing) for *_, missing in todo), 0
        progress(total, 0, "")
        opened: Batch | None = None
        for task, items, arm, keys, asked, missing in todo:
            if not missing:
                continue
            if opened is None or opened.items is not items:
                opened = Batch(self.session, items)
            started = time.perf_counter()
            found = asker.ask(opened, asked, arm.recipe, task.limit(items[0]), task.benchmark.yes_no)
            seconds = round((time.perf_counter() - started) / len(asked), 4)
            yield [_row(keys[row], task, arm, items[row], found[row], seconds) for row in sorted(missing)]
            done += len(missing)
            progress(total, done, f"{task.name}, {arm.name}")

    def _image(self, path: str | None) -> str | None:
        if path is None:
            return None
        if path not in self._images:
            try:
                with open(path, "rb") as file:
                    self._images[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                self._images[path] = "unreadable"  # its questions get an error; once it is repaired, the key is another
        return self._images[path]


def _others(folder: Path) -> list[Path]:
    """What further processes have written, those of earlier starts too."""
    return sorted(folder.glob("samples-*.jsonl"))


def _row(key: str, task: Task, arm: Arm, item: Item, found: Outcome, seconds: float) -> dict[str, Any]:
    good = isinstance(found, Answer)
    return {
        "key": key, "task": task.name, "item": item.id, "arm": arm.name, "answer": found.text if good else None,
        "logprobs": dict(found.logprobs) if good else {}, "error": None if good else found, "seconds": seconds,
    }  # fmt: skip


def _stop(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        if row["error"] is not None:
            raise InputError(
                f"{row['task']}, {row['arm']}, item {row['item']!r}: {row['error']} The other answers are kept; "
                "--retry-errors asks again."
            )
