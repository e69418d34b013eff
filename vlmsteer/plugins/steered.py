"""A model with its recipe, as a harness names them: by words on a command line.

Harnesses keep answers and take them up again by the words that the model was named with, not by what a recipe file
holds. So where answers are kept, the recipe's hash is one of these words, and it must be true.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.loading import load
from vlmsteer.recipe import Recipe


def chosen(
    recipe: str | Path | Recipe | None,
    recipe_hash: str | None = None,
    strength: float | None = None,
    hash_needed: bool = False,
) -> Recipe | None:
    """The recipe to steer with, at the strength asked for; None is the model alone.

    Args:
        recipe: a file, or a recipe.
        recipe_hash: what `recipe.hash` must be, before `strength` scales it.
        strength: a factor of the recipe's own strength.
        hash_needed: refuse a recipe that comes without its hash.

    Raises:
        RecipeError: if the file cannot be read, or its hash is missing or another.
    """
    if recipe is None:
        if recipe_hash is not None or strength is not None:
            raise RecipeError("A recipe_hash or a strength was given without a recipe: give recipe=FILE too.")
        return None
    loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    name = "The recipe" if isinstance(recipe, Recipe) else f"The recipe {str(recipe)!r}"
    if hash_needed and recipe_hash is None:
        raise RecipeError(
            f"{name} came without its hash: write recipe_hash={loaded.hash} too. Answers are kept under the model's "
            "arguments, and without it those of another recipe of this file name would be taken for this one's."
        )
    if recipe_hash is not None and str(recipe_hash) != loaded.hash:
        raise RecipeError(
            f"{name} is not the one that recipe_hash={recipe_hash} names: its hash is {loaded.hash}. Write that one, "
            "or give the file that was meant."
        )
    return loaded if strength is None else loaded.scaled(strength)


def opened(pretrained: str | Path, recipe: Recipe | None, **loading: Any) -> Any:
    """A session with the model, after seeing that the recipe was made for it.

    Raises:
        ModelError, RecipeError, SiteError: if one does not load, or the two do not fit.
    """
    session = load(str(pretrained), **loading)
    with session.apply(recipe):  # compiles it for this model's sites
        return session


def one_image(images: list[Any], where: str) -> Any:
    """The image of a question, or None for a question without one.

    Raises:
        InputError: if there are several.
    """
    if len(images) > 1:
        raise InputError(f"{where} shows {len(images)} images; vlmsteer takes one image for each question.")
    return images[0] if images else None
