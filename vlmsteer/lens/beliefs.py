"""What each layer would answer: its residual state put through the model's own final norm and unembedding (logit lens).

A word's probability is that of the first tokens of all its spellings together (with and without a leading space,
lower case and capitalized). States are read before the final norm at every layer, so the norm is applied exactly once,
and the last layer gives the model's own output distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session
from vlmsteer.sites import Site

MARGIN = 0.05  # by how much the pixel must lead to have overtaken, as in the PvP paper


def first_tokens(session: Session, words: Sequence[str]) -> dict[str, list[int]]:
    """For each word, the token ids that begin one of its spellings and no other given word's.

    Raises:
        InputError: if a word has no token of its own.
    """
    found = {word: _first_tokens(session, word) for word in words}
    own: dict[str, list[int]] = {}
    for word in words:
        others = set().union(*(ids for other, ids in found.items() if other.lower() != word.lower()))
        own[word] = sorted(found[word] - others)
        if not own[word]:
            raise InputError(
                f"For this model {word!r} begins like another of the words {', '.join(words)}, "
                "so they cannot be told apart."
            )
    return own


def _first_tokens(session: Session, word: str) -> set[int]:
    if not word.strip():
        raise InputError("A word to look for is empty.")
    ids = set()
    for spelling in {word.lower(), word.capitalize(), word}:
        for anchor in ("a ", "\n"):
            alone = session.tokenizer(anchor.rstrip(" "), add_special_tokens=False).input_ids
            joined = session.tokenizer(anchor + spelling, add_special_tokens=False).input_ids
            if joined[: len(alone)] == alone and len(joined) > len(alone):
                ids.add(joined[len(alone)])
    return ids


@dataclass(frozen=True)
class Curves:
    """Probabilities of the prior and the pixel answer at the answer position, (samples, layers) each."""

    prior: np.ndarray
    pixel: np.ndarray

    @property
    def crossing(self) -> int | None:
        """`crossing_layer` of the mean curves."""
        return crossing_layer(self.prior.mean(0), self.pixel.mean(0))


def crossing_layer(prior: np.ndarray, pixel: np.ndarray) -> int | None:
    """The first layer from which on the pixel answer leads, by at least 0.05 there; None if it never does."""
    behind = np.flatnonzero(pixel <= prior)
    first = int(behind[-1]) + 1 if len(behind) else 0
    ahead = np.flatnonzero(pixel[first:] - prior[first:] >= MARGIN)
    return first + int(ahead[0]) if len(ahead) else None


def curves(
    session: Session,
    images: Sequence[Image.Image | str],
    questions: Sequence[str],
    priors: Sequence[str],
    pixels: Sequence[str],
    recipe: Recipe | None = None,
    batch_size: int = 32,
) -> Curves:
    """How strongly each layer believes in the prior and in the pixel answer, at the last prompt token.

    Args:
        priors, pixels: for each question, the answer from memory and the answer in the picture.
        recipe: read with this recipe active.

    Raises:
        InputError: if the two answers of a question begin with the same token.
    """
    sites = [Site("text", layer, "block_out") for layer in range(session.layers())]
    pairs = {pair: first_tokens(session, pair) for pair in set(zip(priors, pixels, strict=True))}
    rows: list[np.ndarray] = []
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        with session.read(sites) as states:
            session.logits(images[part], questions[part], recipe)
        with torch.no_grad():
            believed = torch.stack([session.unembed(states[site]).float().softmax(-1) for site in sites], 1)
        for row, pair in zip(believed, list(zip(priors, pixels, strict=True))[part], strict=True):
            rows.append(torch.stack([row[:, pairs[pair][word]].sum(-1) for word in pair]).cpu().numpy())
    stacked = np.stack(rows)
    return Curves(stacked[:, 0], stacked[:, 1])


@dataclass(frozen=True)
class Grid:
    """The likeliest words after each token at each layer.

    Attributes:
        tokens: the prompt's tokens as text, image tokens left out.
        words: words[layer][token] is a list of (word, probability), likeliest first.
    """

    tokens: list[str]
    words: list[list[list[tuple[str, float]]]]


def grid(
    session: Session, image: Image.Image | str | None, question: str, top: int = 3, recipe: Recipe | None = None
) -> Grid:
    """The logit lens over all layers and all prompt tokens but the image's."""
    encoded = session.encoder.encode([image], [question])
    ids = encoded.rows[0].ids
    shown = (ids != session.encoder.image_token).nonzero().flatten()
    sites = [Site("text", layer, "block_out") for layer in range(session.layers())]
    with session.read(sites, positions="all") as states:
        session.logits([image], [question], recipe)
    words = []
    for site in sites:
        with torch.no_grad():
            probabilities = session.unembed(states.rows(site)[0][shown]).float().softmax(-1)
        best = probabilities.topk(top)
        words.append(
            [
                [
                    (session.tokenizer.decode([token]).strip(), float(p))
                    for p, token in zip(values, indices, strict=True)
                ]
                for values, indices in zip(best.values, best.indices, strict=True)
            ]
        )
    return Grid([session.tokenizer.decode([token]).strip() or "⏎" for token in ids[shown]], words)
