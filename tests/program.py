"""The program as a user starts it: its entry point inside a test, or a process that can be killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from vlmsteer import cli, console

Main = Callable[..., tuple[int, str, str]]


def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs a command through the entry point: its exit code, what it printed, and its complaints."""
    monkeypatch.setattr(console, "placement", {})

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlmsteer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err.replace("\n", " ")

    return run


def forked(work: Callable[[], Any]) -> int:
    """A process that does this and nothing more; what is loaded here is loaded there, so it begins at once."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)
