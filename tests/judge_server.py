"""A judge for tests: a real server on 127.0.0.1 that speaks the protocol of OpenAI's chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]


class Server:
    """A judge on 127.0.0.1: `reply` says what to answer to the number of a request and its body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reply: Callable[[int, dict[str, Any]], Reply] = lambda _, body: said(body["messages"][0]["content"][::-1])
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                    number = len(outer.requests)
                status, value, headers = outer.reply(number, body)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                try:
                    self.send_response(status)
                    for name, one in headers.items():
                        self.send_header(name, one)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client has given up waiting

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def said(text: Any) -> Reply:
    return 200, {"model": "judge-0314", "choices": [{"message": {"role": "assistant", "content": text}}]}, {}


@contextmanager
def serving() -> Iterator[Server]:
    """A server that answers until the block is left."""
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        found.http.shutdown()
        thread.join()
        found.http.server_close()
