"""Long work, such as a benchmark, in its own thread: it reports, leaves the model to others, and can be stopped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vlmsteer_ui.desks import Desk
from vlmsteer_ui.residents import Resident, Stopped

Told = Callable[[Any], None]


def steps(resident: Resident, desk: Desk, work: Callable[[Any, Told], Any]) -> Iterator[tuple[bool, Any]]:
    """What `work` reports, as (False, report), and at last what it returns, as (True, result).

    Args:
        work: called with the model's session and a function that takes a report. At each report the model goes to
            whoever waits for it, and the work ends with `Stopped` if the visitor stopped it or is gone.

    Raises:
        VlmsteerError: what the work raised; `Stopped` if it was stopped.
    """
    reports: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def told(report: Any) -> None:
        reports.put(("report", report))
        if stop.is_set():
            raise Stopped
        resident.give_way()

    def run() -> None:
        try:
            with resident.turn(stop) as session:
                reports.put(("done", work(session, told)))
        except BaseException as error:
            reports.put(("error", error))

    with desk.working() as stop:
        threading.Thread(target=run, daemon=True).start()
        try:
            while True:
                kind, value = reports.get()
                if kind == "error":
                    raise value
                yield kind == "done", value
                if kind == "done":
                    return
        finally:
            stop.set()  # the visitor is gone
