"""Events: every one is guarded, private and bound to its visitor; an error becomes a sentence in the status line."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any

import gradio as gr

from vlmsteer.errors import VlmsteerError
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.workbench import Workbench

log = logging.getLogger("vlmsteer_ui")
MODEL = "model"  # the queue of events that use a model
AT_ONCE = 64  # of them may be under way; each waits, and can be stopped, for its model's turn
THREADS = AT_ONCE + 32  # of the server
END = object()
BROKEN = "Something went wrong inside the workbench; its log has the details."
READY, BUSY = "Ready.", "Working …"


class Wiring:
    """Connects controls to handlers.

    A handler is `handler(bench, desk, *values)`, a function or a generator, and gives one value, or a tuple with one
    for each output. It raises `VlmsteerError` for whatever the visitor can mend.
    """

    def __init__(self, bench: Workbench, status: Any) -> None:
        self.bench, self.status = bench, status

    def __call__(
        self,
        trigger: Callable[..., Any],
        handler: Callable[..., Any],
        inputs: Sequence[Any] = (),
        outputs: Sequence[Any] = (),
        *,
        model: bool = False,
        data: bool = False,
        said: str = READY,
        **options: Any,
    ) -> Any:
        """Call `handler` at an event.

        Args:
            model: it uses a model, and waits in the models' queue; other events run at once.
            data: the event's own data (`evt._data`, from the client, unchecked) is the handler's first value.
            said: what the status line says when it is done.

        Returns:
            Gradio's event, for `then` and `cancels`.
        """
        outputs, many = list(outputs), len(outputs)
        bench = self.bench

        def shown(result: Any) -> list[Any]:
            values = list(result) if isinstance(result, tuple) else [result] if many else []
            return [*values, said]

        def failed(error: BaseException) -> list[Any]:
            if not isinstance(error, VlmsteerError):
                log.exception("A handler failed", exc_info=error)
            return [*[gr.skip() for _ in outputs], str(error) if isinstance(error, VlmsteerError) else BROKEN]

        def desk(request: gr.Request) -> Desk:
            return bench.desks.of(getattr(request, "session_hash", None))

        def called(request: gr.Request, *values: Any) -> list[Any]:
            try:
                return shown(handler(bench, desk(request), *values))
            except Exception as error:
                return failed(error)

        def streamed(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
            context = copy_context()  # of all steps: each may run in another thread
            values_shown = [gr.skip() for _ in outputs]
            try:
                steps = handler(bench, desk(request), *values)
                try:
                    while (result := context.run(next, steps, END)) is not END:
                        values_shown = shown(result)[:-1]
                        yield [*values_shown, BUSY]
                finally:
                    context.run(steps.close)
                yield [*values_shown, said]  # a page that is behind may show the last message only
            except Exception as error:
                yield failed(error)

        plain: Any = streamed if inspect.isgeneratorfunction(handler) else called
        function = plain
        if data:
            if inspect.isgeneratorfunction(handler):

                def function(request: gr.Request, event: gr.EventData, *values: Any) -> Any:
                    yield from plain(request, event._data, *values)
            else:

                def function(request: gr.Request, event: gr.EventData, *values: Any) -> Any:
                    return plain(request, event._data, *values)

            function.__annotations__ |= {"request": gr.Request, "event": gr.EventData}
        plain.__annotations__ |= {"request": gr.Request}
        queue = (
            {"concurrency_id": MODEL, "concurrency_limit": AT_ONCE} if model else {"queue": options.pop("queue", True)}
        )
        return trigger(
            function, list(inputs), [*outputs, self.status], api_visibility="private",
            show_progress=options.pop("show_progress", "hidden"), **queue, **options,
        )  # fmt: skip
