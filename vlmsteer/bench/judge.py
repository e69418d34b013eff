"""An optional judge: a language model behind any OpenAI-compatible endpoint, or verdicts that it gave before.

Ratings by different judges are not comparable (MMHal-Bench scores under gpt-4-0314, gpt-4o-mini and gpt-4-0125-preview
differ), and a judge costs money and changes. So every verdict is saved before it is used, under the SHA-256 of the
judge's name, its version and the prompt; what is saved is never asked again; and nothing here is ever required.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlmsteer.bench.benchmark import Answer, Item, Scorer
from vlmsteer.errors import InputError

LONGEST_PAUSE = 60.0  # seconds between two tries
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
SLOT = "{}"


@dataclass(frozen=True)
class Judged:
    """What a benchmark needs of a judge; its module has one of these as `JUDGED`.

    Attributes:
        prompts: what to ask about answers, by a key of the benchmark's own (an item's id, and where a second question
            is asked about it that id with a suffix).
        scorers: all scorers of the benchmark, those that need verdicts first; verdicts are texts by the same keys, and
            an item without one counts as `unjudged` and for nothing else.
    """

    prompts: Callable[[Sequence[Item], Sequence[Answer]], dict[str, str]]
    scorers: Callable[[Mapping[str, str]], tuple[Scorer, ...]]


@dataclass(frozen=True)
class Judge:
    """Who judges, and where its verdicts are kept.

    Attributes:
        name: the model's name, as the endpoint knows it.
        verdicts: a JSONL file; it is made if it is not there and only ever appended to.
        url: the endpoint's base, "http://127.0.0.1:8000/v1"; None to use saved verdicts only.
        version: whatever else tells this judge from another of the same name (a date, a quantization).
        key_variable: the environment variable that holds the key; no key is sent where it is empty.
        timeout: seconds for one request.
        tries: how often a request is made before giving up.
        pause: seconds before the second try; doubled for each further one.
        at_once: requests in flight.
    """

    name: str
    verdicts: Path
    url: str | None = None
    version: str = ""
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    tries: int = 5
    pause: float = 1.0
    at_once: int = 4

    def ask(
        self, prompts: Mapping[str, str], report: Callable[[int, int], None] = lambda done, of: None
    ) -> dict[str, str]:
        """The verdicts on prompts, saved ones first, by the keys of the prompts.

        Without an endpoint prompts that have no saved verdict are left out of the result.

        Args:
            prompts: texts by any key.
            report: called with how many of the missing verdicts are there, and how many were missing.

        Raises:
            InputError: if the file is malformed or cannot be written; the endpoint refuses, cannot be reached or
                answers something else (verdicts given until then are saved); or, without an endpoint, if no prompt has
                a saved verdict.
        """
        saved = {key: row["verdict"] for key, row in _read(self.verdicts)}
        keys = {name: self.key(prompt) for name, prompt in prompts.items()}
        missing = list({keys[name]: prompt for name, prompt in prompts.items() if keys[name] not in saved}.values())
        if self.url is not None and missing:
            for done, (prompt, verdict) in enumerate(self._given(missing), 1):
                saved[self.key(prompt)] = verdict
                report(done, len(missing))
        found = {name: saved[key] for name, key in keys.items() if key in saved}
        if prompts and not found:
            raise InputError(
                f"{str(self.verdicts)!r} has no verdict of the judge {self.name!r} (version {self.version!r}) on any "
                f"of the {len(prompts)} prompts. Give the judge's name and version as they were, or an endpoint to ask."
            )
        return found

    def key(self, prompt: str) -> str:
        """What a verdict is saved under: the SHA-256 of judge, version and prompt, in hexadecimal."""
        return hashlib.sha256(json.dumps([self.name, self.version, prompt]).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """What a result says about its judge, as JSON values; no key, and of the URL no name and no password."""
        return {
            "name": self.name,
            "version": self.version,
            "url": None if self.url is None else _bare(self.url),
            "verdicts": str(self.verdicts),
            "temperature": 0,
        }

    def _given(self, prompts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """New verdicts as they come in, each saved before it is given."""
        _mend(self.verdicts)
        pool = ThreadPoolExecutor(max(1, self.at_once))
        failure: InputError | None = None
        try:
            waiting = {pool.submit(self._request, prompt): prompt for prompt in prompts}
            for future in as_completed(waiting):
                if future.cancelled():
                    continue
                prompt = waiting[future]
                try:
                    verdict, served = future.result()
                except InputError as error:  # those in flight are paid for, so they are still waited for and saved
                    failure = failure or error
                    for other in waiting:
                        other.cancel()
                    continue
                row = {"key": self.key(prompt), "judge": self.name, "version": self.version, "served": served}
                _append(self.verdicts, row | {"verdict": verdict, "prompt": prompt})
                yield prompt, verdict
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if failure is not None:
            raise failure

    def _request(self, prompt: str) -> tuple[str, str | None]:
        """A verdict, and the name of the model that the endpoint says has given it."""
        url = f"{str(self.url).rstrip('/')}/chat/completions"
        if urlsplit(url).scheme not in ("http", "https"):
            raise InputError(f"A judge's URL begins with http:// or https://, not {self.url!r}.")
        body = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        number = 0
        while True:
            number += 1
            try:
                return self._tried(request)
            except _Transient as error:
                if number >= self.tries:
                    raise InputError(f"{self._who()} gave no verdict in {number} tries: {error}.") from error
                time.sleep(min(LONGEST_PAUSE, max(error.wait, self.pause * 2 ** (number - 1))))

    def _tried(self, request: urllib.request.Request) -> tuple[str, str | None]:
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(300).decode(errors="replace").strip()
            if error.code in TRANSIENT:
                raise _Transient(f"{error.code} {said}", _seconds(error.headers.get("Retry-After"))) from error
            raise InputError(f"{self._who()} answers {error.code}: {said}{self._hint(error.code)}.") from error
        except (OSError, http.client.HTTPException) as error:  # no connection, a time-out, half an answer
            raise _Transient(str(error) or type(error).__name__) from error
        try:
            value = json.loads(body)
            content = value["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            content, value = None, {}
        if not isinstance(content, str):
            raise _Transient(f"it answers no chat completion but {body[:200]!r}")
        return content, value.get("model")

    def _who(self) -> str:
        return f"The judge {self.name!r} at {urlsplit(str(self.url)).hostname!r}"

    def _hint(self, code: int) -> str:
        if code in (401, 403):
            state = "is set" if os.environ.get(self.key_variable, "").strip() else "is empty"
            return f" (the key comes from the environment variable {self.key_variable}, which {state})"
        return ""


def fill(template: str, *values: str) -> str:
    """The template with its slots, "{}", filled in order; other braces, and braces in the values, stay as they are."""
    parts = template.split(SLOT)
    return parts[0] + "".join(value + part for value, part in zip(values, parts[1:], strict=True))


def read_template(path: str | Path, slots: Sequence[str]) -> str:
    """A judge's template from a text file.

    Args:
        path: the file.
        slots: what goes into its slots, "{}", in order.

    Raises:
        InputError: if it cannot be read, or has another number of slots.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The judge's template {str(path)!r} cannot be read: {error}.") from error
    if text.count(SLOT) != len(slots):
        raise InputError(
            f"The judge's template {str(path)!r} has {text.count(SLOT)} slots {SLOT}; it needs {len(slots)}, in this "
            f"order: {', '.join(slots)}."
        )
    return text


class _Transient(Exception):
    """A failure that may pass; `wait` is how many seconds the endpoint asks for."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, as a GET without the prompt."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _bare(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _seconds(header: str | None) -> float:
    try:
        return min(LONGEST_PAUSE, max(0.0, float(header or 0)))
    except ValueError:  # a date
        return 0.0


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Saved verdicts by key; of several under one key the last is the one a caller's dict keeps."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The verdicts {str(path)!r} cannot be read: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # killed while it was written, and the line has no end
                return
            raise InputError(f"Line {number} of {str(path)!r} is not valid JSON: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not isinstance(row.get("verdict"), str):
            raise InputError(f"Line {number} of {str(path)!r} is no verdict; it needs the texts 'key' and 'verdict'.")
        yield row["key"], row


def _mend(path: Path) -> None:
    """Make a file that ends in the middle of a line end with a whole one, so that more can be appended."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            whole, end, last = file.read().rpartition(b"\n")
            if not last.strip():
                return
            try:
                json.loads(last)
                file.write(b"\n")
            except ValueError:
                file.truncate(len(whole) + len(end))
    except OSError as error:
        raise InputError(f"Verdicts cannot be saved to {str(path)!r}: {error}.") from error


def _append(path: Path, row: Mapping[str, Any]) -> None:
    try:
        with path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
    except OSError as error:
        raise InputError(f"A verdict cannot be saved to {str(path)!r}: {error}.") from error
