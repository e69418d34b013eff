"""Every question under every recipe, computing nothing twice.

Recipes that only touch the last position share all of a prompt but its last token; each (question, recipe) is then one
row of single-token passes. Others share what comes before the first token that they change, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vlmsteer import branches, prefixes
from vlmsteer.errors import InputError, RecipeError, SiteError
from vlmsteer.prompts import Encoded, Layout
from vlmsteer.recipe import Recipe
from vlmsteer.runs import Run
from vlmsteer.streams import Prefilled, Stream, greedy

if TYPE_CHECKING:
    from vlmsteer.session import Session

Images = Sequence[Image.Image | str | None]


class Sweep(NamedTuple):
    """One recipe in each of some layers alone, at each of some strengths, for each question.

    `logits` are the next token's, (questions, layers, strengths, vocabulary); `answers` the same cells as text.
    """

    layers: list[int]
    strengths: list[float]
    logits: Tensor | None
    answers: list[list[list[str]]] | None


def sweep(
    session: Session,
    images: Images,
    questions: Sequence[str],
    recipe: Recipe,
    strengths: Sequence[float],
    layers: Sequence[int] | None,
    max_new_tokens: int,
    batch_size: int,
    cells: int,
) -> Sweep:
    """See `Session.sweep`."""
    if layers is None:
        layers = sorted(
            {layer for edit in recipe.edits if edit.vectors.tower == "text" for layer in edit.vectors.layers}
        )
    if not len(layers) or not len(strengths):
        raise InputError("A sweep needs at least one layer of the text tower that the recipe edits, and one strength.")
    if recipe.rules:
        raise RecipeError("A sweep goes over the layers of edits; this recipe has rules, which have none.")
    chosen: list[Recipe | None] = [recipe.narrowed([layer]).scaled(by) for layer in layers for by in strengths]
    width = len(strengths)
    if not max_new_tokens:
        said = logits(session, images, questions, chosen, batch_size, cells)
        return Sweep(list(layers), list(strengths), said.unflatten(1, (-1, width)), None)
    flat = answers(session, images, questions, chosen, max_new_tokens, batch_size, cells)
    by_layer = [[row[i : i + width] for i in range(0, len(row), width)] for row in flat]
    return Sweep(list(layers), list(strengths), None, by_layer)


def answers(
    session: Session,
    images: Images,
    questions: Sequence[str],
    recipes: Sequence[Recipe | None],
    limit: int,
    batch_size: int,
    cells: int,
) -> list[list[str]]:
    """Answers by question, then recipe; see `Session.ask_grid`."""
    _check(images, questions, recipes)
    if not all(recipe is None or recipe.last_only for recipe in recipes):
        said = session.ask_many(*_crossed(images, questions, recipes), limit, batch_size)
        return [said[i : i + len(recipes)] for i in range(0, len(said), len(recipes))]
    found: list[list[str]] = [[] for _ in questions]
    for rows, part in _parts(len(questions), recipes, batch_size, cells):
        encoded = session.encoder.encode(images[rows], questions[rows])
        last, cache, run = _read(session, encoded, part)
        with session.instrument.installed(run.sites):
            if branches.possible(session.model, cache):
                tokens = branches.answer(session, last, cache, run, len(part), limit)
            else:
                stream = Stream(session, _repeated(session, last, cache, run, len(part)), run)
                tokens = torch.stack(list(greedy(stream, limit)), 1)
        said = [session.encoder.decode(row) for row in tokens]
        for i, row in enumerate(range(*rows.indices(len(questions)))):
            found[row] += said[i * len(part) : (i + 1) * len(part)]
    return found


def logits(
    session: Session,
    images: Images,
    questions: Sequence[str],
    recipes: Sequence[Recipe | None],
    batch_size: int,
    cells: int,
) -> Tensor:
    """(questions, recipes, vocabulary) next-token logits."""
    _check(images, questions, recipes)
    if not all(recipe is None or recipe.last_only for recipe in recipes):
        shown, asked, steers = _crossed(images, questions, recipes)
        parts = []
        for first in range(0, len(asked), batch_size):
            rows = slice(first, first + batch_size)
            with session.opened(shown[rows], asked[rows], steers[rows]) as stream:
                parts.append(stream.logits)
        return torch.cat(parts).unflatten(0, (len(questions), len(recipes)))
    found: list[list[Tensor]] = [[] for _ in questions]
    for rows, part in _parts(len(questions), recipes, batch_size, cells):
        encoded = session.encoder.encode(images[rows], questions[rows])
        last, cache, run = _read(session, encoded, part)
        with session.instrument.installed(run.sites):
            if branches.possible(session.model, cache):
                said = branches.first(session, last, cache, run, len(part))
            else:
                said = _repeated(session, last, cache, run, len(part)).logits.unflatten(0, (-1, len(part)))
        for i, row in enumerate(range(*rows.indices(len(questions)))):
            found[row].append(said[i])
    return torch.stack([torch.cat(row) for row in found])


def _read(session: Session, encoded: Encoded, recipes: Sequence[Recipe | None]) -> tuple[Layout, Any, Run]:
    """The last token of each prompt, a cache of all before it, and what acts on each (question, recipe)."""
    run = session.ready([recipe for _ in encoded.rows for recipe in recipes])
    if session.instrument.busy:
        raise SiteError("A grid of recipes cannot run inside another read or apply block of the same model.")
    begun = prefixes.begin(session, encoded, None, Run())
    cache, (body, last) = begun.cache, begun.layout.cut(1)
    if body is not None:
        cache = session.prefill(body, Run(), cache).cache
        begun.keep(session.prefixes, cache)
    return last, cache, replace(run, prompt=last.prompt)


def _repeated(session: Session, last: Layout, cache: Any, run: Run, count: int) -> Prefilled:
    """The last tokens read, every prompt `count` times in a row."""
    if cache is not None:
        cache.batch_repeat_interleave(count)
    return session.prefill(last.repeat(count), run, cache)


def _parts(
    questions: int, recipes: Sequence[Recipe | None], batch_size: int, cells: int
) -> Iterator[tuple[slice, Sequence[Recipe | None]]]:
    """Questions and recipes in parts of at most `cells` pairs."""
    for start in range(0, len(recipes), cells):
        part = recipes[start : start + cells]
        count = max(1, min(batch_size, cells // len(part)))
        for first in range(0, questions, count):
            yield slice(first, first + count), part


def _crossed(
    images: Images, questions: Sequence[str], recipes: Sequence[Recipe | None]
) -> tuple[list[Any], list[str], list[Recipe | None]]:
    """Every question with every recipe, as rows."""
    pairs = [(row, recipe) for row in range(len(questions)) for recipe in recipes]
    return [images[row] for row, _ in pairs], [questions[row] for row, _ in pairs], [recipe for _, recipe in pairs]


def _check(images: Images, questions: Sequence[str], recipes: Sequence[Recipe | None]) -> None:
    if len(images) != len(questions) or not recipes:
        raise InputError("A grid needs as many images as questions, and at least one recipe (None is one).")
