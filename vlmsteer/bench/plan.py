"""Which questions are asked, and which of them together, decided before the first is asked.

Batches depend on the items alone: not on how many processes there are, nor on what a stopped run has done already. So
one process or eight, undisturbed or killed and started again, every question is asked beside the same others.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmsteer.bench.benchmark import Benchmark, Item
from vlmsteer.errors import InputError


@dataclass(frozen=True)
class Task:
    """A benchmark's items as they are asked in one run.

    Attributes:
        options: that the benchmark's files were loaded with.
        longest: the longest answer, in place of the benchmark's and the items' own; None for these.
    """

    benchmark: Benchmark
    items: list[Item]
    options: Mapping[str, Any] = field(default_factory=dict)
    longest: int | None = None

    @property
    def name(self) -> str:
        return self.benchmark.name

    def limit(self, item: Item) -> int:
        """The longest answer to an item, in tokens; 0 if it has choices and nothing is written."""
        return 0 if item.choices else self.longest or item.max_new_tokens or self.benchmark.max_new_tokens

    def digest(self) -> str:
        """SHA-256 of the items, wherever their images lie."""
        rows = [{**asdict(one), "image": one.image and Path(one.image).name} for one in self.items]
        return hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def limited(items: Sequence[Item], most: int | None, shuffle: int | None = None) -> list[Item]:
    """At most so many items, in their order, of whole groups: the first ones, or shuffled ones.

    The first group is always taken, however large. A larger limit takes the groups of a smaller one and more.

    Raises:
        InputError: if the limit is not positive.
    """
    if most is None:
        return list(items)
    if most < 1:
        raise InputError(f"A limit is at least 1, not {most}.")
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.group] = sizes.get(item.group, 0) + 1
    groups = list(sizes)
    if shuffle is not None:
        random.Random(shuffle).shuffle(groups)
    taken, count = {groups[0]} if groups else set(), 0
    for group in groups:
        count += sizes[group]
        if count > most:
            break
        taken.add(group)
    return [item for item in items if item.group in taken]


def batches(task: Task, size: int) -> list[list[Item]]:
    """The items in batches of at most `size`, questions about one image side by side so that they share its prefix.

    An image's questions are in one batch unless there are more than `size`. A batch has questions with an image or
    without, with choices or without, and of one longest answer.

    Raises:
        InputError: if the size is not positive.
    """
    if size < 1:
        raise InputError(f"A batch has at least one question, not {size}.")
    kinds: dict[tuple[bool, int], dict[str, list[Item]]] = {}
    for item in task.items:
        runs = kinds.setdefault((item.image is None, task.limit(item)), {})
        runs.setdefault(item.group if item.image is None else item.image, []).append(item)
    found: list[list[Item]] = []
    for runs in kinds.values():
        batch: list[Item] = []
        for run in runs.values():
            if batch and len(batch) + len(run) > size:
                found.append(batch)
                batch = []
            batch = batch + run
            while len(batch) > size:
                found.append(batch[:size])
                batch = batch[size:]
        found += [batch] if batch else []
    return found
