"""A question about an image together with its answer, token by token: what every kind of evidence starts from.

The answer is the model's own, with the recipe it is read under, or one that is given and taken as if the model had
said it. Evidence for an answer's token is read at the position that predicts it, which is the token before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session


@dataclass(frozen=True)
class Answered:
    """One prompt and its answer.

    Attributes:
        image: as the model is shown it, before its own preprocessing.
        tokens: the ids of the answer (tokens,), `places` where in the answer's text each of them lies.
        prompt: the ids of the prompt (columns,), `asked` which of them are the question's.
    """

    session: Session
    image: Image.Image
    question: str
    answer: str
    tokens: Tensor
    places: tuple[tuple[int, int], ...]
    prompt: Tensor
    asked: Tensor

    @property
    def columns(self) -> int:
        """How many tokens prompt and answer have together."""
        return len(self.prompt) + len(self.tokens)

    @cached_property
    def boxes(self) -> Tensor:
        """(image tokens, 4): see `Session.boxes`."""
        return self.session.boxes(self.image)

    @property
    def shown(self) -> Tensor:
        """The columns of the image's tokens, one for each box."""
        return (self.prompt == self.session.encoder.image_token).nonzero().flatten()

    @property
    def predicting(self) -> Tensor:
        """The columns that the answer's tokens are predicted at."""
        return torch.arange(len(self.prompt) - 1, self.columns - 1)

    def run(self, recipe: Recipe | None, keep: int = 1) -> Tensor:
        """One forward over prompt and answer; gives the logits (keep, vocabulary) of the last columns."""
        return self.session.run([self.image], [self.question], [self.answer], recipe, keep)[0]


def answered(
    session: Session,
    image: Image.Image | str,
    question: str,
    answer: str | None = None,
    recipe: Recipe | None = None,
    max_new_tokens: int = 48,
) -> Answered:
    """The question with its answer, which the model writes under the recipe if none is given.

    Raises:
        InputError: if the image, the question or the answer cannot be used, or the model says nothing.
        ModelError: if the model does not answer in words.
    """
    session.check_words()
    opened = open_image(image)
    if answer is None:
        answer = session.ask(opened, question, recipe, max_new_tokens)
        if not answer:
            raise InputError("The model says nothing here, so there is no word to find evidence for; give an answer.")
    row = session.encoder.encode([opened], [question], [answer]).rows[0]
    _, places = session.encoder.answer_tokens(answer)
    return Answered(session, opened, question, answer, row.answer, tuple(places), row.ids, row.question)
