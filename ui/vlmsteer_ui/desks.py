"""What belongs to one visitor: a browser tab or a client. Bounded, and gone when the tab is closed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

from PIL import Image

MOST = 200  # visitors that are remembered
KEPT = 16  # results that each of them has
BYTES = 32_000_000  # of them


class Desk:
    """One visitor's results, and a flag for each work that runs for them, which stops it.

    Attributes:
        run: what the page shows last (`runs.Run`), or None.
    """

    def __init__(self) -> None:
        self.run: Any = None
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._works: list[threading.Event] = []
        self._shows = 0

    @contextmanager
    def working(self) -> Iterator[threading.Event]:
        """Work that looks at a stop flag of its own after each token, row or episode."""
        flag = threading.Event()
        self._works.append(flag)
        try:
            yield flag
        finally:
            self._works.remove(flag)

    def halt(self) -> None:
        """Stop whatever runs for this visitor."""
        for flag in [*self._works]:
            flag.set()

    def show(self, run: Any) -> int:
        """Make a run, or None, the one that the page shows; gives a number that no earlier one had."""
        self.run = run
        self._shows += 1
        return self._shows

    def recall(self, key: Any) -> Any:
        """What was kept under a key, or None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Any, value: Any) -> Any:
        """Keep a value for this visitor, at most `KEPT` of `BYTES` in all (one always); returns it. Old ones go."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and (len(self._kept) > KEPT or sum(map(size, [*self._kept.values()])) > BYTES):
            self._kept.popitem(last=False)
        return value


def size(value: Any) -> int:
    """About how many bytes a result holds."""
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(size(key) + size(part) for key, part in value.items())
    if isinstance(value, list | tuple | set):
        return sum(map(size, value))
    if is_dataclass(value):
        return size(vars(value))
    return int(getattr(value, "nbytes", 64))


class Desks:
    """The desks of all visitors, by the name that Gradio gives a session."""

    def __init__(self, most: int = MOST) -> None:
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._most, self._lock = most, threading.Lock()

    def __len__(self) -> int:
        return len(self._desks)

    def of(self, session: str | None) -> Desk:
        """A visitor's desk; a new one at the first visit. Without a name it is nobody's and is not kept."""
        if session is None:
            return Desk()
        with self._lock:
            desk = self._desks.setdefault(session, Desk())
            self._desks.move_to_end(session)
            while len(self._desks) > self._most:
                _, oldest = self._desks.popitem(last=False)
                oldest.halt()
            return desk

    def close(self, session: str | None) -> None:
        """Stop what runs for a visitor and forget them."""
        with self._lock:
            desk = self._desks.pop(session or "", None)
        if desk is not None:
            desk.halt()
