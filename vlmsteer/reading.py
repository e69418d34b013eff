"""Reading many prompts batch by batch, so that what is learned from them never holds all of their states.

With `answers`, an answer's tokens follow its prompt in the same forward, and are to every site and position what they
would be had the model generated them. A forward ends after the last site that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.adapters.family import one_row_each
from vlmsteer.errors import InputError
from vlmsteer.recipe import Recipe
from vlmsteer.running import Mean
from vlmsteer.session import Recipes, Session
from vlmsteer.sites import Site, expand
from vlmsteer.states import States
from vlmsteer.tokens import Positions

Images = Sequence[Image.Image | str | None]
Kept = TypeVar("Kept")


def batches(
    session: Session,
    sites: str | Site | Sequence[str | Site],
    images: Images,
    questions: Sequence[str],
    answers: Sequence[str] | None = None,
    positions: Positions = "last",
    recipe: Recipes = None,
    batch_size: int = 16,
) -> Iterator[tuple[slice, States]]:
    """One forward a batch, and what it read: which rows these were, and their states.

    Args:
        answers: what follows each prompt. At positions "last" a row then has the prompt's last token and every token of
            the answer, at "generated" the answer's only.
        recipe: what is active meanwhile, one for all or one for each row.
    """
    _same_count(images, questions, answers)
    phase = "prefill" if answers is None else "both"
    for first in range(0, len(questions), batch_size):
        rows = slice(first, first + batch_size)
        part = recipe if recipe is None or isinstance(recipe, Recipe) else recipe[rows]
        with session.read(sites, positions, phase) as states:
            session.run(images[rows], questions[rows], None if answers is None else answers[rows], part, keep=0)
        yield rows, states


def reduce(
    session: Session,
    sites: str | Site | Sequence[str | Site],
    images: Images,
    questions: Sequence[str],
    answers: Sequence[str] | None = None,
    positions: Positions = "last",
    recipe: Recipes = None,
    batch_size: int = 16,
    into: Callable[[], Kept] = Mean,
    given: Tensor | None = None,
) -> dict[Site, Kept]:
    """What is kept of all rows at each site, taken in inside the hooks, from rows of like length read together.

    A row counts by the mean of its tokens at `positions`. Where images come before questions and only they are read,
    an image is read once for all its questions.

    Args:
        into: makes what takes in the rows of a site, by `update(rows)`: a class of `running`.
        given: (rows, ...) what `update` gets of each row besides its states: weights, marks or numbers.

    Raises:
        InputError: if there are not as many images, questions, answers and given things.
    """
    _same_count(images, questions, answers)
    if given is not None and len(given) != len(questions):
        raise InputError(f"There are {len(given)} things given for {len(questions)} rows.")
    chosen = expand(sites, session.sites)
    kept = {site: into() for site in chosen}
    copies = _copies(session, chosen, images, positions, recipe, answers)
    order = by_length(session, [images[row] for row in copies], [questions[row] for row in copies], answers)
    rows = [list(copies)[place] for place in order]
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        own = recipe if recipe is None or isinstance(recipe, Recipe) else [recipe[row] for row in part]

        def take(site: Site, numbers: Tensor, states: Tensor, part: list[int] = part) -> None:
            counts = torch.bincount(numbers, minlength=len(part))
            means = states.new_zeros(len(part), *states.shape[1:], dtype=torch.float32)
            means.index_add_(0, numbers, states.float())
            means /= counts.clamp(min=1).view(-1, *[1] * (means.dim() - 1))
            pairs = [(i, row) for i, count in enumerate(counts.tolist()) if count for row in copies[part[i]]]
            more = [] if given is None else [given[[row for _, row in pairs]]]
            kept[site].update(means[[i for i, _ in pairs]], *more)  # pyright: ignore[reportAttributeAccessIssue]

        with session.read(chosen, positions, "prefill" if answers is None else "both", into=take):
            texts = None if answers is None else [answers[row] for row in part]
            session.run([images[row] for row in part], [questions[row] for row in part], texts, own, keep=0)
    return kept


def by_length(
    session: Session, images: Images, questions: Sequence[str], answers: Sequence[str] | None = None
) -> list[int]:
    """The rows in an order in which neighbors have prompts of like length, so that batches of them need little padding.

    Images of different sizes are kept apart where a model sees these with different numbers of tokens.
    """
    if not len(questions):
        return []
    texts = [*questions] if answers is None else [f"{ask} {say}" for ask, say in zip(questions, answers, strict=True)]
    counts = [len(ids) for ids in session.tokenizer(texts, add_special_tokens=False).input_ids]
    tiled = session.family.patches is not None or session.family.image_rows is not one_row_each

    def length(row: int) -> tuple[int, int]:
        image = images[row]
        if image is None:
            return -1, counts[row]
        return (image.width * image.height if tiled and isinstance(image, Image.Image) else 0), counts[row]

    return sorted(range(len(questions)), key=length)


def _copies(
    session: Session,
    sites: Sequence[Site],
    images: Images,
    positions: Positions,
    recipe: Recipes,
    answers: Sequence[str] | None,
) -> dict[int, list[int]]:
    """The rows to read, each with the rows that it stands for."""
    before = session.family.image_first and positions == "image" and answers is None
    one = recipe is None or (isinstance(recipe, Recipe) and recipe.same_prefix)
    if not before or not one or any(site.tower == "expert" for site in sites):
        return {row: [row] for row in range(len(images))}
    first: dict[Any, int] = {}
    copies: dict[int, list[int]] = {}
    for row, image in enumerate(images):
        place = first.setdefault(image if isinstance(image, str) else id(image), row)
        copies.setdefault(place, []).append(row)
    return copies


def _same_count(images: Sequence[Any], questions: Sequence[Any], answers: Sequence[Any] | None) -> None:
    if len({len(images), len(questions), len(questions if answers is None else answers)}) > 1:
        raise InputError("There must be as many images, questions and answers.")
