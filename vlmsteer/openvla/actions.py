"""Robot actions as OpenVLA's tokens, and the policy as a function from images and instructions to actions.

Each number of an action, scaled to -1..1, is rounded to one of 256 bins between even edges; bin k is the k-th token
from the end of the vocabulary, so a larger number has a smaller id. A token that is no action token decodes to the
nearest bin, as the authors' code has it; `Actions.action_tokens` says where that happened. (arXiv 2406.09246, 3.2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError, ModelError, did_you_mean
from vlmsteer.recipe import Recipe

if TYPE_CHECKING:
    from vlmsteer.session import Session

SUFFIX = "_no_noops"  # fine-tuned checkpoints name LIBERO's data sets with it


class Actions(NamedTuple):
    """What a policy answered, a row for each image.

    Attributes:
        actions: (rows, numbers) float64, in the units of the data set.
        tokens: (rows, numbers) token ids.
        action_tokens: (rows, numbers) bool, whether each token is an action token.
    """

    actions: np.ndarray
    tokens: np.ndarray
    action_tokens: np.ndarray


class Bins(NamedTuple):
    """How numbers in -1..1 become token ids.

    Attributes:
        count: how many edges there are, and action tokens; there is one bin center less.
        end: the id after the last action token.
    """

    count: int = 256
    end: int = 32000

    @property
    def first(self) -> int:
        """The smallest id of an action token."""
        return self.end - self.count

    def encode(self, scaled: Any) -> np.ndarray:
        """Token ids of numbers, which are cut to -1..1, of the same shape.

        Raises:
            InputError: if one is NaN.
        """
        scaled = np.asarray(scaled, dtype=np.float64)
        if np.isnan(scaled).any():
            raise InputError("An action to be encoded holds NaN.")
        return self.end - np.digitize(scaled.clip(-1, 1), self._edges)

    def decode(self, tokens: Any) -> np.ndarray:
        """The centers (float64) of the bins that token ids stand for, of the same shape; others give the nearest."""
        number = self.end - np.asarray(tokens) - 1
        centers = (self._edges[:-1] + self._edges[1:]) / 2
        return centers[number.clip(0, self.count - 2)]

    def has(self, tokens: Any) -> np.ndarray:
        """Whether token ids are action tokens."""
        tokens = np.asarray(tokens)
        return (tokens >= self.first) & (tokens < self.end)

    @property
    def _edges(self) -> np.ndarray:
        return np.linspace(-1, 1, self.count)


def bins(config: Any) -> Bins:
    """The bins of a model's configuration."""
    return Bins(config.n_action_bins, config.action_end)


def statistics(norm_stats: Mapping[str, Any], unnorm_key: str | None = None) -> Mapping[str, Any]:
    """What an action of 1 stands for in a data set: "q01" and "q99", and "mask", False where numbers are not scaled.

    Args:
        norm_stats: of the model's configuration.
        unnorm_key: the data set, also without the "_no_noops" at its end; None if there is only one.

    Raises:
        InputError: if the key is not there, or there are several and none was given.
        ModelError: if the checkpoint's numbers cannot be used.
    """
    if not norm_stats:
        raise InputError(
            "This checkpoint has no norm_stats, so what its actions stand for is not known: put the "
            "dataset_statistics.json of its training data beside it."
        )
    key = next(iter(norm_stats)) if unnorm_key is None and len(norm_stats) == 1 else unnorm_key
    if key is None:
        raise InputError(f"This policy knows several data sets: give unnorm_key{did_you_mean('', norm_stats)}.")
    key = f"{key}{SUFFIX}" if key not in norm_stats and f"{key}{SUFFIX}" in norm_stats else key
    if key not in norm_stats:
        raise InputError(
            f"The policy has no statistics of {key!r} (nor of {key + SUFFIX!r}){did_you_mean(key, norm_stats)}."
        )
    found = norm_stats[key].get("action", {})
    low, high = (np.asarray(found.get(name, ()), dtype=np.float64) for name in ("q01", "q99"))
    mask = np.asarray(found.get("mask", [True] * low.size), dtype=bool)
    if not low.size or not low.shape == high.shape == mask.shape or not np.isfinite([low, high]).all():
        raise ModelError(
            f"The statistics of {key!r} cannot be used: q01, q99 and mask must be lists of finite numbers, one for "
            "each number of an action."
        )
    return {**found, "q01": low, "q99": high, "mask": mask}


def unnormalize(scaled: np.ndarray, stats: Mapping[str, Any]) -> np.ndarray:
    """Actions (..., numbers) in a data set's units, float64, from numbers in -1..1."""
    low, high = (np.asarray(stats[name], dtype=np.float64) for name in ("q01", "q99"))
    mask = np.asarray(stats.get("mask", np.ones(low.shape)), dtype=bool)
    return np.where(mask, 0.5 * (scaled + 1) * (high - low) + low, scaled)


def normalize(actions: Any, stats: Mapping[str, Any]) -> np.ndarray:
    """Numbers in -1..1 from actions (..., numbers), as in training; one that never differs in the data is 0."""
    low, high = (np.asarray(stats[name], dtype=np.float64) for name in ("q01", "q99"))
    mask = np.asarray(stats.get("mask", np.ones(low.shape)), dtype=bool)
    actions = np.asarray(actions, dtype=np.float64)
    scaled = (2 * (actions - low) / (high - low + 1e-8) - 1).clip(-1, 1)
    still = np.asarray(stats.get("min", low)) == np.asarray(stats.get("max", high))
    return np.where(mask, np.where(still, 0.0, scaled), actions)


def act(
    session: Session,
    images: Sequence[Image.Image | str],
    instructions: Sequence[str],
    recipe: Recipe | Sequence[Recipe | None] | None = None,
    unnorm_key: str | None = None,
    restrict: bool = False,
    batch_size: int = 32,
) -> Actions:
    """One action for each image and instruction, greedy, as many tokens as the data set's actions have numbers.

    Args:
        session: a loaded OpenVLA.
        images: what the robot's camera shows.
        instructions: what it should do ("pick up the red block").
        recipe: one for all rows, or one (or None) for each.
        unnorm_key: the data set whose units the actions are wanted in (`statistics`).
        restrict: choose among action tokens only; else among all, so that a policy may answer with other tokens.
        batch_size: how many rows are run at once.

    Raises:
        InputError: if the rows do not match, a row has no image, the data set is not known, or a recipe has rules of
            decoding.
        ModelError: if the model is no OpenVLA, or gives logits that are not numbers.
    """
    if not hasattr(session.model.config, "norm_stats"):
        raise ModelError(f"{session.name!r} is a {session.family.name}, not a policy with action tokens.")
    recipes = each(images, instructions, recipe)
    if any(one is not None and one.decoding for one in recipes):
        raise InputError("Rules of decoding choose words, not actions: take a recipe without them.")
    stats, coding = statistics(session.model.config.norm_stats, unnorm_key), bins(session.model.config)
    parts = []
    for first in range(0, len(images), batch_size):
        rows = slice(first, first + batch_size)
        part = recipe if recipe is None or isinstance(recipe, Recipe) else recipes[rows]
        with session.opened(images[rows], instructions[rows], part, keep=False) as stream:
            steps = []
            for step in range(len(stats["q01"])):
                if step:
                    stream.push(steps[-1])
                steps.append(_chosen(stream.logits, coding, restrict, first))
            parts.append(torch.stack(steps, 1).cpu())
    tokens = torch.cat(parts).numpy()
    return Actions(unnormalize(coding.decode(tokens), stats), tokens, coding.has(tokens))


def each(
    images: Sequence[Any], instructions: Sequence[str], recipe: Recipe | Sequence[Recipe | None] | None
) -> list[Recipe | None]:
    """The recipe of each row, of any policy that acts on images and instructions.

    Raises:
        InputError: if the rows do not match, or one has no image.
    """
    recipes = [recipe] * len(images) if recipe is None or isinstance(recipe, Recipe) else list(recipe)
    if not len(images) == len(instructions) == len(recipes) or not len(images):
        raise InputError(
            f"There are {len(images)} images, {len(instructions)} instructions and {len(recipes)} recipes; give one of "
            "each a row, or one recipe for all."
        )
    if any(image is None for image in images):
        raise InputError("A policy acts on what it sees: every row needs an image.")
    return recipes


def _chosen(logits: Tensor, coding: Bins, restrict: bool, first: int) -> Tensor:
    """The likeliest token of each row."""
    if logits.isnan().any():
        row = first + int(logits.isnan().any(1).nonzero()[0])
        raise ModelError(
            f"The policy gives no action in row {row}: its logits are not numbers. Weaken the recipe, or load the "
            "model in bfloat16 or float32."
        )
    return logits[:, coding.first : coding.end].argmax(-1) + coding.first if restrict else logits.argmax(-1)
