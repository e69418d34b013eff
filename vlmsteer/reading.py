"""Reading many prompts batch by batch, so that what is learned from them never holds all of their states.

With `answers`, an answer's tokens follow its prompt in the same forward, and are to every site and position what they
would be had the model generated them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer.recipe import Recipe
from vlmsteer.session import Recipes, Session
from vlmsteer.sites import Site
from vlmsteer.states import States
from vlmsteer.tokens import Positions


def batches(
    session: Session,
    sites: str | Site | Sequence[str | Site],
    images: Sequence[Image.Image | str | None],
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
    if len({len(images), len(questions), len(questions if answers is None else answers)}) > 1:
        raise InputError("There must be as many images, questions and answers.")
    phase = "prefill" if answers is None else "both"
    for first in range(0, len(questions), batch_size):
        rows = slice(first, first + batch_size)
        part = recipe if recipe is None or isinstance(recipe, Recipe) else recipe[rows]
        with session.read(sites, positions, phase) as states:
            session.run(images[rows], questions[rows], None if answers is None else answers[rows], part)
        yield rows, states
