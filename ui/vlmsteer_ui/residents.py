"""Models that are loaded: several at once up to a limit of memory, each used by one visitor at a time."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
from transformers.utils import logging

from vlmsteer.errors import ModelError, VlmsteerError, did_you_mean
from vlmsteer.loading import bundled, load

SHARE = 0.5  # of the memory that is free at the start, for models
WAIT = 0.1  # seconds between two looks at the stop flag while a visitor waits for a model
ACTORS = ("openvla", "pi0")  # model types whose words are a robot's actions
GAP = 0.002  # seconds that long work leaves the model to others between its steps


class Stopped(VlmsteerError):
    """A visitor asked to stop."""

    def __init__(self) -> None:
        super().__init__("Stopped.")


def acts(session: Any) -> bool:
    """True if a model answers with actions: there is no question to ask it."""
    return session.model.config.model_type in ACTORS


@dataclass
class Resident:
    """One loaded model. `bytes` are those of its weights.

    The lock belongs to no thread: a generator is moved on, and closed, by whichever thread the server has free.
    """

    session: Any
    bytes: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def turn(self, stop: threading.Event | None = None) -> Iterator[Any]:
        """The session, for one visitor at a time. One turn is never taken inside another.

        Raises:
            Stopped: if `stop` is set before it is free.
        """
        while not self.lock.acquire(timeout=WAIT):
            if stop is not None and stop.is_set():
                raise Stopped
        try:
            yield self.session
        finally:
            self.lock.release()

    def give_way(self) -> None:
        """Inside a turn: let one who waits go first."""
        self.lock.release()
        time.sleep(GAP)
        self.lock.acquire()


class Residents:
    """The models that visitors may choose, loaded when one is first used.

    Args:
        names: bundled names, folders or hub names; the first one is loaded at the start.
        limit: bytes of weights that stay loaded; by default half of the free memory. One model may always stay.
        options: how `vlmsteer.load` places them.
    """

    def __init__(self, names: list[str], limit: int | None = None, **options: Any) -> None:
        self.names = list(dict.fromkeys([*names, *bundled()]))
        self.limit = int(SHARE * psutil.virtual_memory().available) if limit is None else limit
        self.options = options
        self._loaded: OrderedDict[str, Resident] = OrderedDict()
        self._lock, self._loading = threading.Lock(), threading.Lock()

    @property
    def speaking(self) -> list[str]:
        """The names without those known to answer with a robot's actions."""
        places = bundled()
        kinds = {name: json.loads((places[name] / "config.json").read_text())["model_type"] for name in places}
        return [name for name in self.names if kinds.get(name) not in ACTORS]

    def __call__(self, name: str, told: Callable[[str], None] = lambda text: None) -> Resident:
        """The model of that name, loaded now if it is not yet.

        Raises:
            ModelError: if it may not be chosen here, or cannot be loaded.
        """
        if name not in self.names:
            raise ModelError(f"There is no model {name!r} on this page{did_you_mean(str(name), self.names)}")
        resident = self._loaded.get(name)
        if resident is None:
            with self._loading:  # whose model is loaded already does not wait here
                resident = self._loaded.get(name) or self._load(name, told)
        with self._lock:
            self._loaded[name] = resident
            self._loaded.move_to_end(name)
            self._make_room()
        return resident

    def _load(self, name: str, told: Callable[[str], None]) -> Resident:
        told(f"Loading {name}")
        logging.disable_progress_bar()
        session = load(name, **self.options)
        return Resident(session, sum(one.nbytes for one in [*session.model.parameters(), *session.model.buffers()]))

    def loaded(self) -> list[str]:
        """Which models are loaded, the one used last at the end."""
        return list(self._loaded)

    def _make_room(self) -> None:
        """Drop the models that were not used for longest; one that is in use stays with its user until that is done."""
        while len(self._loaded) > 1 and sum(one.bytes for one in self._loaded.values()) > self.limit:
            self._loaded.popitem(last=False)
