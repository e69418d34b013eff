"""Both answers to one question, token by token: the baseline once, the steered one as often as a slider moves."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer.lens.beliefs import first_tokens
from vlmsteer.recipe import Recipe
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.panel import Panel
from vlmsteer_ui.residents import Stopped
from vlmsteer_ui.runs import Run
from vlmsteer_ui.workbench import Workbench

LONGEST = 2000  # characters of a question
TOKENS = 48  # of an answer
MOST_TOKENS = 256


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
        """From the values of the page's controls, in the order of `page.ASKED`.

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

    @property
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


def answers(bench: Workbench, desk: Desk, asked: Asked) -> Iterator[Run]:
    """The run as it grows, after each token; at its end it is the desk's run.

    Raises:
        VlmsteerError: if the model, the recipe or the words do not fit.
    """
    desk.stop.clear()
    resident = bench.residents(asked.model)
    with resident.turn(desk.stop) as session:
        recipe = asked.panel.recipe(bench.vectors, session)
        run = asked.begun(session, recipe)
        words = first_tokens(session, [asked.prior, asked.pixel]) if asked.prior and asked.pixel else {}
        plain = desk.recall(("baseline", asked.key))
        if plain is None:
            plain = replace(run)
            for text in _streamed(session, asked, None, desk, plain, "baseline"):
                run.baseline = text
                yield run
            desk.keep(("baseline", asked.key), plain)
        run.baseline, run.tokens, run.seconds = plain.baseline, dict(plain.tokens), dict(plain.seconds)
        if recipe is not None:
            for text in _streamed(session, asked, recipe, desk, run, "steered"):
                run.steered = text
                yield run
        if words:
            arms = [None] if recipe is None else [None, recipe]
            run.chances = _chances(session, asked, words, arms)
    desk.run = run
    yield run


def _streamed(session: Any, asked: Asked, recipe: Recipe | None, desk: Desk, run: Run, arm: str) -> Iterator[str]:
    start, tokens, before = time.perf_counter(), [], ""
    for text in session.stream(asked.image, asked.question, recipe, asked.max_new_tokens):
        if desk.stop.is_set():
            raise Stopped
        tokens.append(text[len(before) :] if text.startswith(before) else text)
        before = text
        yield text
    setattr(run, arm, before)
    run.tokens[arm], run.seconds[arm] = tokens, round(time.perf_counter() - start, 3)


def _chances(
    session: Any, asked: Asked, words: dict[str, list[int]], arms: Sequence[Recipe | None]
) -> dict[str, list[float]]:
    """Of the first word of the answer, under each arm."""
    likely = [session.logits([asked.image], [asked.question], recipe)[0].float().softmax(-1) for recipe in arms]
    return {
        name: [round(float(one[torch.tensor(words[word])].sum()), 4) for one in likely]
        for name, word in (("prior", asked.prior), ("pixel", asked.pixel))
    }


def degenerate(text: str) -> bool:
    """True if an answer repeats itself or says nothing: what a recipe that is too strong makes."""
    words = text.split()
    return not words or (len(words) >= 8 and len(set(words)) <= len(words) / 3)
