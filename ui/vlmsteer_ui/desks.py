"""What belongs to one visitor: a browser tab or a client. Bounded, and gone when the tab is closed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

MOST = 200  # visitors that are remembered
KEPT = 16  # results that each of them has


class Desk:
    """One visitor's results, and the flag that stops what runs for them.

    Attributes:
        stop: set by the Stop button; whatever runs looks at it after each token, row or episode.
        run: what the page shows last (`runs.Run`), or None.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.run: Any = None
        self._kept: OrderedDict[Any, Any] = OrderedDict()

    def recall(self, key: Any) -> Any:
        """What was kept under a key, or None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Any, value: Any) -> Any:
        """Keep a value for this visitor, at most `KEPT`; returns it."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return value


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
                oldest.stop.set()
            return desk

    def close(self, session: str | None) -> None:
        """Stop what runs for a visitor and forget them."""
        with self._lock:
            desk = self._desks.pop(session or "", None)
        if desk is not None:
            desk.stop.set()
