"""Contrast: what the image says beyond what a worse one, or none, would say.

VCD (Leng et al., CVPR 2024, arXiv 2311.16922) reads the same question with a noisy image and takes a share of these
logits away from the image's own, among the tokens that are plausible with the image. PAI (Liu, Zheng and Chen, ECCV
2024, arXiv 2407.21771) does so with no image at all. Both streams take in the same tokens; a recipe's edits act on the
one with the image only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.errors import InputError, RecipeError, did_you_mean
from vlmsteer.hooks import Run
from vlmsteer.prompts import Encoded
from vlmsteer.recipe import Rule
from vlmsteer.streams import Stream

if TYPE_CHECKING:
    from vlmsteer.session import Recipes, Session

AGAINST = ("noise", "no_image", "blank")
STEPS = 1000  # of the diffusion that noise is taken from


def check(rule: Rule) -> None:
    """Refuse a rule that cannot be meant.

    Raises:
        RecipeError: for an unknown opponent, or numbers out of range.
    """
    against, step = rule.settings.get("against", "noise"), rule.settings.get("step", 500)
    if against not in AGAINST:
        raise RecipeError(f"Nothing is contrasted against {against!r}{did_you_mean(str(against), AGAINST)}.")
    if not 0 <= step < STEPS or not 0 <= rule.settings.get("plausible", 0.0) < 1:
        raise RecipeError(
            f"A contrast takes a noise step from 0 to {STEPS - 1} and a share of plausible tokens from 0 to below 1, "
            f"not {step!r} and {rule.settings.get('plausible')!r}."
        )


def mix(logits: Tensor, others: Sequence[Tensor], rules: Sequence[Rule]) -> Tensor:
    """l + sum a (l - l'), with -inf for tokens of less than a share of the likeliest's probability.

    Args:
        logits: (rows, vocabulary) with the image.
        others: for each rule the same of its opponent.
        rules: amount a times strength; `plausible` is the share (beta), 0 for all tokens.
    """
    own = logits.float()
    mixed = own
    for rule, other in zip(rules, others, strict=True):
        mixed = mixed + rule.settings["amount"] * rule.strength * (own - other.float())
    share = max(float(rule.settings.get("plausible", 0.0)) for rule in rules)
    if share > 0:
        mixed = mixed.masked_fill(own < own.amax(-1, keepdim=True) + math.log(share), -torch.inf)
    return mixed


def noisy(pixels: Tensor, step: int, seed: int) -> Tensor:
    """An image tensor as the model sees it, after `step` of 1000 diffusion steps with VCD's schedule."""
    betas = torch.linspace(-6, 6, STEPS).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    kept = (1 - betas).cumprod(0)[step]
    drawn = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return (kept.sqrt() * pixels.float().cpu() + (1 - kept).sqrt() * drawn).to(pixels.device, pixels.dtype)


class Contrasted:
    """A stream and its opponents, to be used as one stream: they take in and forget the same tokens.

    Attributes:
        logits: (rows, vocabulary) of the next token, contrasted.
    """

    def __init__(self, main: Stream, others: Sequence[Stream], rules: Sequence[Rule]) -> None:
        self.main, self.others, self.rules, self.session = main, list(others), list(rules), main.session
        self.logits = self._mixed()

    @property
    def left(self) -> Tensor:
        """Which of the first rows are still there."""
        return self.main.left

    @property
    def run(self) -> Run:
        """What acts on the stream with the image."""
        return self.main.run

    def push(self, tokens: Tensor, run: Run | None = None) -> Tensor:
        """As `Stream.push`; `run` is for the stream with the image."""
        self.main.push(tokens, run)
        return self.follow(tokens)

    def follow(self, tokens: Tensor) -> Tensor:
        """Let the opponents take in what the stream with the image has taken in."""
        with self.session.instrument.alone():
            for other in self.others:
                other.push(tokens)
        self.logits = self._mixed()
        return self.logits

    def select(self, rows: Tensor) -> None:
        """As `Stream.select`."""
        for stream in (self.main, *self.others):
            stream.select(rows)
        self.logits = self.logits[rows]

    def back(self, count: int) -> None:
        """As `Stream.back`."""
        for stream in (self.main, *self.others):
            stream.back(count)

    def _mixed(self) -> Tensor:
        return mix(self.main.logits, [other.logits for other in self.others], self.rules)


@contextmanager
def opponent(session: Session, images: Sequence[Any], questions: Sequence[str], rule: Rule) -> Iterator[Stream]:
    """The questions, read with what the rule contrasts against; no edit and no reader of the caller's acts on it."""
    check(rule)
    against = rule.settings.get("against", "noise")
    encoded = session.encoder.encode([None] * len(images) if against == "no_image" else images, questions)
    if against != "no_image":
        _spoil(encoded, against, rule)
    with ExitStack() as stack:
        with session.instrument.alone():
            stream = stack.enter_context(session.opened(images, questions, encoded=encoded))
        yield stream


def _spoil(encoded: Encoded, against: str, rule: Rule) -> None:
    """Every image of the batch with noise, the same whichever others are in the batch, or in one mean color."""
    step, seed = int(rule.settings.get("step", 500)), int(rule.settings.get("seed", 0))
    for image in encoded.images:
        pixels = image["pixel_values"]
        image["pixel_values"] = noisy(pixels, step, seed) if against == "noise" else torch.zeros_like(pixels)


@contextmanager
def opened(
    session: Session, images: Sequence[Any], questions: Sequence[str], recipes: Recipes, rules: Sequence[Rule]
) -> Iterator[Stream | Contrasted]:
    """As `Session.opened`, with these contrasts."""
    with ExitStack() as stack:
        main = stack.enter_context(session.opened(images, questions, recipes))
        if not rules:
            yield main
            return
        others = [stack.enter_context(opponent(session, images, questions, rule)) for rule in rules]
        yield Contrasted(main, others, rules)


class Processor:
    """The contrast under transformers' generate: follows sampled rows and beams by the tokens they have written."""

    def __init__(self, session: Session, rules: Sequence[Rule], others: list[Stream]) -> None:
        self.session, self.rules, self.others = session, rules, others
        self.start: int | None = None
        self.written = torch.zeros(1, 0, dtype=torch.long)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) log-probabilities of the next token; `input_ids` is (rows, prompt and answer so far).

        Raises:
            InputError: if a row goes on from tokens that no row has written.
        """
        if self.start is None:
            self.start = input_ids.shape[1]
        answer = input_ids[:, self.start :].cpu()
        known = self.written.shape[1]
        if answer.shape[1] > known + 1:
            raise self._lost()
        same = (answer[:, None, :known] == self.written[None, :, :]).all(-1)  # (rows, rows before)
        if not bool(same.any(1).all()) or answer.shape[1] < known:
            raise self._lost()
        origin = same.int().argmax(1)
        with self.session.instrument.alone():
            for other in self.others:
                other.select(origin.to(other.logits.device))
                if answer.shape[1] > known:
                    other.push(input_ids[:, -1].to(other.logits.device))
        self.written = answer
        logs = [other.logits.to(scores.device).float().log_softmax(-1) for other in self.others]
        mixed = mix(scores.float().log_softmax(-1), logs, self.rules)
        return mixed.log_softmax(-1)

    @staticmethod
    def _lost() -> InputError:
        return InputError(
            "A contrast follows greedy search, sampling and beams, which add one token a step; this generation does "
            "something else. Leave out its options, or the rule."
        )


@contextmanager
def processor(session: Session, image: Any, question: str, rules: Sequence[Rule]) -> Iterator[Processor]:
    """A logits processor for one question."""
    with ExitStack() as stack:
        others = [stack.enter_context(opponent(session, [image], [question], rule)) for rule in rules]
        yield Processor(session, rules, others)


def logits(
    session: Session, plain: Tensor, images: Sequence[Any], questions: Sequence[str], rules: Sequence[Rule]
) -> Tensor:
    """Next-token logits (rows, vocabulary) after each prompt, contrasted."""
    with ExitStack() as stack:
        others = [stack.enter_context(opponent(session, images, questions, rule)) for rule in rules]
        return mix(plain, [other.logits for other in others], rules)
