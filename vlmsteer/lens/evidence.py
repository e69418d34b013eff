"""The evidence for each word of an answer, as a map over the image: by activation, by attention, or by occlusion.

Three kinds that can disagree: what the image's tokens would say, where the words look, and what the answer cannot do
without. Only the last is a cause; `vlmsteer pointing` measures how often each finds the object it should.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.lens import overlay
from vlmsteer.lens.activation_maps import activation_maps
from vlmsteer.lens.answered import answered
from vlmsteer.lens.attention import attention, mean
from vlmsteer.lens.occlusion import occlusion
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session

METHODS = ("activation", "attention", "occlusion")


@dataclass(frozen=True)
class Evidence:
    """A map for each token of an answer.

    Attributes:
        method: "activation", "attention" or "occlusion".
        answer: the whole answer; `tokens` are its tokens as text and `places` where in it they lie.
        boxes: (cells, 4), left, top, right and bottom as fractions of the image. Cells may overlap and differ in size;
            one that shows nothing of the image is NaN.
        maps: (tokens, cells). Activation is in 0..1, attention a share of all attention, occlusion in nats.
        share: (tokens, layers), the part of a token's attention that goes to the image; None if it was not read.
    """

    method: str
    answer: str
    tokens: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    boxes: np.ndarray
    maps: np.ndarray
    share: np.ndarray | None = None

    def at(self, token: int | str | None = None) -> list[int]:
        """The numbers of a token, of the tokens that write a word (its first mention), or of all.

        Raises:
            InputError: if the answer has no such token or word.
        """
        if token is None:
            return list(range(len(self.tokens)))
        if isinstance(token, int):
            if not 0 <= token < len(self.tokens):
                raise InputError(f"The answer has the tokens 0 to {len(self.tokens) - 1}; there is no token {token}.")
            return [token]
        found = re.search(rf"(?<!\w){re.escape(token.strip())}(?!\w)", self.answer, re.IGNORECASE)
        if not token.strip() or found is None:
            words = re.findall(r"\w+", self.answer)
            raise InputError(f"The answer {self.answer!r} has no word {token!r}{did_you_mean(token, words)}")
        return [i for i, (start, stop) in enumerate(self.places) if start < found.end() and stop > found.start()]

    def map(self, token: int | str | None = None) -> np.ndarray:
        """(cells,): the map of a token, or the mean of those of a word's tokens, or of all."""
        return self.maps[self.at(token)].mean(0)

    def peak(self, token: int | str | None = None) -> tuple[float, float] | None:
        """Where the map is largest, (x, y) as fractions of the image; None if it is nowhere above 0."""
        return overlay.peak(self.boxes, self.map(token))

    def paint(self, image: Image.Image, token: int | str | None = None, **look: Any) -> Image.Image:
        """The map over the image; `look` as `overlay.paint` takes it."""
        return overlay.paint(image, self.boxes, self.map(token), **look)


def evidence(
    session: Session,
    image: Image.Image | str,
    question: str,
    answer: str | None = None,
    recipe: Recipe | None = None,
    method: str = "activation",
    **options: Any,
) -> Evidence:
    """The evidence for each token of an answer.

    Args:
        answer: taken as if the model had said it; by default what it says, under the recipe.
        recipe: active while the answer is written and while it is read; its rules of decoding choose words, so they
            act in writing only.
        method: "activation" (`activation_maps`), "attention" (`attention`, the mean of heads and layers) or "occlusion"
            (`occlusion`).
        options: of attention `layers`; of occlusion `window`, `stride`, `fill` and `batch_size`.

    Raises:
        InputError: if there is no such method, or the image, question or answer cannot be used.
        SiteError: by activation and attention, if the image's tokens are no cells of a grid.
        ModelError: if the model does not answer in words, or by attention, if its attention shows no weights.
    """
    check_method(method)
    if method != "occlusion":
        session.boxes(image)  # refused before the model is asked
    read = answered(session, image, question, answer, recipe)
    share = None
    if method == "occlusion":
        maps, boxes = (part.numpy() for part in occlusion(read, recipe, **options))
    elif method == "attention":
        found = attention(read, recipe)
        maps, boxes, share = mean(found.weights, **options).numpy(), read.boxes.numpy(), found.share.numpy()
    else:
        maps, boxes = activation_maps(read, recipe, **options), read.boxes.numpy()
    tokens = tuple(read.answer[start:stop].strip() or "␣" for start, stop in read.places)
    return Evidence(method, read.answer, tokens, read.places, boxes, maps, share)


def check_method(method: str) -> None:
    """Refuse what is no kind of evidence.

    Raises:
        InputError: if it is none.
    """
    if method not in METHODS:
        raise InputError(f"There is no evidence by {method!r}{did_you_mean(method, METHODS)}")
