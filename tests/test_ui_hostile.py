"""What a hostile visitor sends: a sentence comes back, nothing leaks, nothing is executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from serving import ROOT

from vlmsteer.errors import VlmsteerError
from vlmsteer_ui import app, asking
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.gallery import Gallery
from vlmsteer_ui.workbench import Workbench

GARBAGE = (None, "<script>alert(1)</script>", -1, 1e308, float("nan"), True, [], ["../../etc/passwd"], {"item": "x"})


class Bomb:
    """Unpickled, it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_no_vector_and_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(VlmsteerError, match=r"\.$"):
        Gallery(tmp_path / "vectors").upload(tmp_path / "bomb.safetensors", "bomb")
    assert not (tmp_path / "trace").exists() and not list((tmp_path / "vectors").iterdir())


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "<b>x</b>", "..", "", "a" * 200, "x\0y", "x\ny", None, 3])
def test_no_name_of_a_vector_is_a_path_or_markup(bench: Workbench, name: Any, tmp_path: Path) -> None:
    recipe = bench.vectors["color to pixels"].recipe
    gallery = Gallery(tmp_path / "vectors")
    with pytest.raises(VlmsteerError):
        gallery.add(name, recipe)
    with pytest.raises(VlmsteerError):
        gallery[name]
    assert [path.name for path in tmp_path.rglob("*")] == ["vectors"]


def test_stop_stops_nobody_else(bench: Workbench) -> None:
    one, other = bench.desks.of("one"), bench.desks.of("other")
    steps = asking.answers(bench, one, Asked.of("tiny-llava", None, "What is usual?", "", "", [], 1.0, 0, 7, [], False))
    next(steps)
    other.halt()
    *_, run = steps
    assert run is one.run and run.baseline
    bench.desks.close("one")
    bench.desks.close("other")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        str(ROOT / "README.md"),
        str(ROOT / "vlmsteer" / "cli.py"),
        "../../README.md",
        "/proc/self/environ",
    ],
)
def test_files_of_the_machine_are_not_served(address: str, path: str) -> None:
    for route in ("gradio_api/file=", "file=", "gradio_api/file%3D"):
        told = httpx.get(f"{address}{route}{path}")
        held = Path(path).read_bytes()[:60] if Path(path).is_file() else b"HOME="
        assert told.status_code >= 400 and held not in told.content


def test_uploads_cannot_be_listed(address: str) -> None:
    for path in ("", "..", "uploads", "out/.."):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code >= 400


def test_a_path_in_place_of_an_upload_is_refused(address: str) -> None:
    told = call(address, "run", [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "What is this?"])
    assert "root:" not in told and "error" in told


def test_a_large_upload_and_what_is_no_image_are_refused(address: str, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(os.urandom(30_000_000))
    (tmp_path / "text.png").write_text("no image at all")
    client = Client(address, verbose=False)
    with pytest.raises(Exception, match="(?i)large|413|size"):
        client.predict(image=handle_file(tmp_path / "large.png"), question="What is this?", api_name="/run")
    with pytest.raises(Exception, match="not an image that can be read"):
        client.predict(image=handle_file(tmp_path / "text.png"), question="What is this?", api_name="/run")


def call(address: str, name: str, values: list[Any]) -> str:
    """An endpoint called by hand, without the client's help."""
    begun = httpx.post(f"{address}gradio_api/call/{name}", json={"data": values})
    if begun.status_code >= 400:
        return f"error {begun.text}"
    return httpx.get(f"{address}gradio_api/call/{name}/{begun.json()['event_id']}", timeout=60).text


def test_every_handler_answers_garbage_with_a_sentence(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a private event is sent, its last value is the status line's."""
    monkeypatch.chdir(bench.folder)  # where a server is
    handlers = [one for one in app.build(bench).fns.values() if one.api_visibility == "private" and one.fn]
    told = set()
    for handler in handlers:
        if getattr(handler.fn, "__name__", "") not in ("called", "streamed", "function"):
            continue
        for value in GARBAGE:
            told.add(last(handler.fn, value, len(handler.inputs)))
    assert told and all(isinstance(one, str) and "Traceback" not in one and str(ROOT) not in one for one in told)


def last(function: Any, value: Any, inputs: int) -> Any:
    """The status line after a call with the same value everywhere."""

    class Event:
        _data = value

    class Request:
        session_hash = "hostile"

    given = [Event()] if "event" in function.__annotations__ else []
    result = function(Request(), *given, *[value] * inputs)
    if not isinstance(result, list):
        *_, result = result
    return result[-1]
