"""Token activation maps: where in the image a word of the answer would be said, without what earlier words would say.

TAM (Li et al., ICCV 2025, arXiv 2506.23270): the logit of the word at every token of the image, above zero, minus the
part that the maps of earlier words explain (estimated causal interference), smoothed by a rank-Gaussian filter.

What differs from the authors' code: the earlier words are those of the question and the answer, found by the family's
own prompt and not by special tokens of each model; repeated words are told by their ids; the interference's scale has
its closed form where they search for it; several grids (tiles) are filtered each by itself; a window of equal values,
which gives NaN there, keeps its value; nothing is rounded to 8 bits. Prompt and answer are read in one forward.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vlmsteer.lens.answered import Answered
from vlmsteer.recipe import Recipe


def activation_maps(answer: Answered, recipe: Recipe | None = None) -> np.ndarray:
    """(tokens, image tokens): a map in 0..1 for each token of the answer; NaN where a token shows no part of the image.

    Raises:
        SiteError: if the image's tokens are no cells of a grid.
    """
    boxes = answer.boxes.numpy()
    grids = list(grids_of(boxes))
    asked, predicting = answer.asked.nonzero().flatten(), answer.predicting
    with torch.no_grad():
        logits = answer.run(recipe, answer.columns).cpu()
    # The first earlier word is what the model would say there, as in the authors' code.
    words = torch.cat([logits[asked[0]].argmax()[None], answer.prompt[asked[1:]], answer.tokens])
    activations = logits[:, words].float().clamp(min=0).T.numpy()  # (words, columns)
    images, text = activations[:, answer.shown], activations[:, torch.cat([asked, predicting])]
    maps = np.full((len(answer.tokens), len(boxes)), np.nan)
    for row, word in enumerate(range(len(asked), len(words))):
        earlier = [i for i in range(word) if words[i] != words[word]]
        alone = without(images[word], images[earlier], text[word, earlier])
        scaled = scale(alone, text[word, :word])
        for cells in grids:
            maps[row, cells] = rank_gaussian(scaled[cells])
    return maps


def without(image: np.ndarray, earlier: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A word's activations over the image without the interference of earlier words, not below zero.

    Args:
        image: (cells,).
        earlier: (words, cells), the activations of the earlier words.
        weights: (words,), the word's own activations at these, not negative.
    """
    interference = weights @ earlier / (weights.sum() + 1e-8)
    power = float(interference @ interference)
    if not power:
        return image
    return (image - interference * (float(image @ interference) / power)).clip(min=0)


def scale(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The activations over the image in 0..1, from the least to the most of image and text together."""
    together = np.concatenate([image, text])
    low, high = together.min(), together.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def rank_gaussian(grid: np.ndarray) -> np.ndarray:
    """A map (rows, columns) in which each value is a mean of its 3 x 3 neighborhood, weighted by rank.

    The weights are a Gaussian of the rank's distance to the median's, as wide as the neighborhood's standard deviation
    is to its mean: where values agree it is a median, where they do not a mean.
    """
    padded = np.pad(grid, 1, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*grid.shape, 9)
    ordered = np.sort(windows, -1)
    mean = ordered.mean(-1, keepdims=True)
    width = ordered.std(-1, keepdims=True) / np.where(mean > 0, mean, 1)
    kernel = np.exp(-((np.arange(9) - 4) ** 2) / (2 * width**2 + 1e-12))
    return (ordered * kernel).sum(-1) / kernel.sum(-1) * (mean[..., 0] > 0)


def grids_of(boxes: np.ndarray) -> Iterator[np.ndarray]:
    """The grids (rows, columns) that the image's tokens form, each as numbers of tokens.

    Tokens come row by row, and where a token lies above the one before it, or left of it in the same row, the next
    grid begins. Tokens with a box of NaN are in none.
    """
    real = np.flatnonzero(~np.isnan(boxes).any(1))
    left, top = boxes[real, 0], boxes[real, 1]
    up, back = np.diff(top) < 0, (np.diff(top) == 0) & (np.diff(left) <= 0)
    for cells in np.split(real, np.flatnonzero(up | back) + 1):
        count = len(np.unique(boxes[cells, 1]))
        yield cells.reshape(count, -1)
