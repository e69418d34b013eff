"""The answers to one question, token by token: the baseline once, the steered ones as often as a slider moves."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError, ModelError, VlmsteerError
from vlmsteer.images import open_image
from vlmsteer.lens.beliefs import first_tokens
from vlmsteer.recipe import Recipe
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.panel import Panel, completed
from vlmsteer_ui.residents import Stopped, acts
from vlmsteer_ui.runs import Run
from vlmsteer_ui.workbench import Workbench

LONGEST = 2000  # characters of a question
TOKENS = 48  # of an answer
MOST_TOKENS = 256
EVERY = 0.05  # seconds between two looks at an answer that grows


@dataclass(frozen=True)
class Asked:
    """What the top row says: which model is asked what about which image, and the recipe panel."""

    model: str
    image: Image.Image | None
    question: str
    prior: str
    pixel: str
    panel: Panel
    max_new_tokens: int = TOKENS

    @classmethod
    def of(cls, model: Any, image: Any, question: Any, prior: Any, pixel: Any, *panel: Any) -> Asked:
        """From the values of the page's controls, in the order of `page.Page.asked`.

        Raises:
            InputError: if one is not possible.
        """
        words = [question, prior or "", pixel or ""]
        if not all(isinstance(word, str) for word in words) or not words[0].strip():
            raise InputError("Write a question first.")
        if len(words[0]) > LONGEST or any(len(word) > 60 for word in words[1:]):
            raise InputError(f"A question has at most {LONGEST} characters, prior and pixel words 60.")
        opened = None if image is None else open_image(image)
        return cls(str(model), opened, words[0].strip(), words[1].strip(), words[2].strip(), Panel.of(*panel))

    @classmethod
    def again(cls, run: Run) -> Asked:
        """What was asked when a run was made."""
        asked = cls.of(run.model, run.image, run.question, run.prior, run.pixel, *completed(run.panel).values())
        return replace(asked, max_new_tokens=run.max_new_tokens)

    @cached_property
    def key(self) -> tuple[str, str, str, int]:
        """What a baseline answer depends on."""
        pixels = b"" if self.image is None else self.image.tobytes() + str(self.image.size).encode()
        return self.model, hashlib.sha256(pixels).hexdigest(), self.question, self.max_new_tokens

    def begun(self, session: Any, recipe: Recipe | None) -> Run:
        """The run that answers to this will fill."""
        header = None if recipe is None else {**recipe.header(), "hash": recipe.hash}
        dtype = str(session.model.dtype).removeprefix("torch.")
        return Run(
            self.model, self.question, self.image, f"{session.device}, {dtype}", session.layers(),
            self.prior, self.pixel, self.panel.as_dict(), header, self.max_new_tokens,
        )  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One arm's answer. `likely` (vocabulary,) are the probabilities of its first token."""

    text: str
    tokens: list[str]
    seconds: float
    likely: Tensor


def answers(bench: Workbench, desk: Desk, asked: Asked) -> Iterator[Run]:
    """The run as it grows; at its end it is the desk's run.

    What was answered before is not asked again: with another strength only the steered arms are.

    Raises:
        VlmsteerError: if the model or the recipe does not fit; at the end, if the words cannot be told apart.
    """
    resident = bench.residents(asked.model)
    session = resident.session
    if acts(session):
        raise no_words(asked.model)
    arms = asked.panel.arms(bench.vectors, session)
    run = asked.begun(session, arms.get("steered"))
    given: dict[str, Answer] = {}
    for arm, recipe in {"baseline": None, **arms}.items():
        key = (arm, *asked.key, None if recipe is None else recipe.hash)
        kept = desk.recall(key)
        if kept is not None:
            given[arm] = kept
        else:
            told = 0.0
            with desk.working() as stop, resident.turn(stop):
                for answer in _written(session, asked, recipe, stop):
                    given[arm] = answer
                    setattr(run, arm, answer.text)
                    if time.perf_counter() - told > EVERY:
                        yield run
                        told = time.perf_counter()
            desk.keep(key, given[arm])
        setattr(run, arm, given[arm].text)
        run.tokens[arm], run.seconds[arm] = given[arm].tokens, given[arm].seconds
    wrong = None
    try:
        run.chances = _chances(session, asked, list(given.values()))
    except VlmsteerError as error:
        wrong = error
    desk.run = run
    yield run
    if wrong is not None:
        raise wrong


def no_words(model: str) -> ModelError:
    """Why a robot's model is asked no questions."""
    return ModelError(f"{model} answers with a robot's actions, not in words: the Robot tab steers it.")


def _written(session: Any, asked: Asked, recipe: Recipe | None, stop: threading.Event) -> Iterator[Answer]:
    """One arm's answer so far, after each token."""
    start, tokens, text = time.perf_counter(), [], ""
    likely = session.logits([asked.image], [asked.question], recipe)[0].float().softmax(-1).cpu()
    for longer in session.stream(asked.image, asked.question, recipe, asked.max_new_tokens):
        if stop.is_set():
            raise Stopped
        tokens.append(longer[len(text) :] if longer.startswith(text) else longer)
        text = longer
        yield Answer(text, tokens, round(time.perf_counter() - start, 3), likely)


def _chances(session: Any, asked: Asked, given: list[Answer]) -> dict[str, list[float]]:
    """Of the first word of the answer, under each arm."""
    words = {kind: word for kind, word in (("prior", asked.prior), ("pixel", asked.pixel)) if word}
    ids = first_tokens(session, list(words.values()))
    return {
        kind: [round(float(answer.likely[torch.tensor(ids[word])].sum()), 4) for answer in given]
        for kind, word in words.items()
    }


def degenerate(text: str) -> bool:
    """True if an answer repeats itself or says nothing: what a recipe that is too strong makes."""
    words = text.split()
    often = len(words) >= 8 and len(set(words)) <= len(words) / 3
    return not words or often or re.search(r"(.{1,12}?)\1{7,}", text) is not None
