"""An optional judge: a language model behind any OpenAI-compatible endpoint, or verdicts that it gave before.

Ratings by different judges are not comparable (MMHal-Bench scores under gpt-4-0314, gpt-4o-mini and gpt-4-0125-preview
differ), and a judge costs money and changes. So its name and version belong to every verdict, each is saved before it
is used (`verdicts`), what is saved is never asked again, and nothing here is ever required.
"""

from __future__ import annotations

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

from vlmsteer.bench import verdicts
from vlmsteer.errors import InputError

LONGEST_PAUSE = 60.0  # seconds between two tries
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


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

    def check(self) -> None:
        """Find out before the work what would make asking fail.

        Raises:
            InputError: if the URL is none, the file of verdicts cannot be read, or, without an endpoint, it is not
                there or holds nothing by this judge.
        """
        if self.url is not None:
            try:
                parts = urlsplit(self.url)
                good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:  # brackets or a port that are none
                good = False
            if not good:
                raise InputError(f"A judge's URL is written like http://127.0.0.1:8000/v1, not {self.url!r}.")
        elif not self.verdicts.is_file():
            raise InputError(f"There is no file of verdicts {str(self.verdicts)!r}; give it, or an endpoint to ask.")
        given = {(row.get("judge"), row.get("version")) for row in verdicts.rows(self.verdicts)}
        if self.url is None and not given & {(self.name, self.version), (None, None)}:
            known = ", ".join(f"{name!r} (version {version!r})" for name, version in sorted(given, key=str))
            raise InputError(
                f"{str(self.verdicts)!r} has no verdict of the judge {self.name!r} (version {self.version!r}), only of "
                f"{known or 'nobody'}. Give the judge's name and version as they were, or an endpoint to ask."
            )

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
        saved = dict(verdicts.load(self.verdicts, self.name, self.version).texts)
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
        """What a verdict is saved under."""
        return verdicts.key(self.name, self.version, prompt)

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
        self.check()
        verdicts.mend(self.verdicts)
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
                about = {"key": self.key(prompt), "judge": self.name, "version": self.version, "served": served}
                verdicts.append(self.verdicts, [about | {"verdict": verdict, "prompt": prompt}])
                yield prompt, verdict
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if failure is not None:
            raise failure

    def _request(self, prompt: str) -> tuple[str, str | None]:
        """A verdict, and the name of the model that the endpoint says has given it."""
        body = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        url = f"{str(self.url).rstrip('/')}/chat/completions"
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
