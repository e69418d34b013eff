"""Rules of decoding: recipes that change how an answer is written, not only what passes through the layers.

One file a rule. A contrast changes logits, and goes together with any other; the other rules decide where the writing
goes on, so a recipe has at most one of them. Rows with the same rules are written together where a rule allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.decoding import adaptive, contrast, overtrust, probe_rollback, rollback
from vlmsteer.errors import InputError, RecipeError
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.streams import greedy

if TYPE_CHECKING:
    from vlmsteer.session import Recipes, Session

# Rules that decide alone how one answer is written: each gives the tokens so far, after each step.
WRITERS: dict[str, Callable[..., Iterator[list[int]]]] = {
    "rollback": rollback.write,
    "probe_rollback": probe_rollback.write,
    "overtrust": overtrust.write,
}


def answers(
    session: Session, images: Sequence[Any], questions: Sequence[str], recipes: Recipes, limit: int
) -> list[str]:
    """Answers in order, where at least one recipe has a rule of decoding.

    Raises:
        RecipeError: if a recipe has two rules that both decide how it goes on.
    """
    listed = [recipes] * len(questions) if recipes is None or isinstance(recipes, Recipe) else list(recipes)
    found: dict[int, str] = {}
    for rules, rows in _alike(listed):
        of, asked = [images[row] for row in rows], [questions[row] for row in rows]
        own = [listed[row] for row in rows]
        contrasts, control = _sorted(rules)
        if control is not None and control.name == "rollback" and not contrasts and rollback.together(session):
            written = rollback.write_many(session, of, asked, own, control, _checked(limit))
            found |= {row: session.encoder.decode(torch.tensor(one)) for row, one in zip(rows, written, strict=True)}
            continue
        if control is not None and control.name in WRITERS:
            for row, image, question, recipe in zip(rows, of, asked, own, strict=True):
                *_, written = _write(session, image, question, recipe, contrasts, control, limit)
                found[row] = session.encoder.decode(written)
            continue
        opened = adaptive.opened if control is not None else contrast.opened
        more = (control,) if control is not None else ()
        with opened(session, of, asked, own, contrasts, *more) as stream:
            tokens = torch.stack(list(greedy(stream, limit)), 1)  # pyright: ignore[reportArgumentType]
        found |= {row: session.encoder.decode(written) for row, written in zip(rows, tokens, strict=True)}
    return [found[row] for row in range(len(questions))]


def stream(session: Session, image: Any, question: str, recipe: Recipe, limit: int) -> Iterator[Tensor]:
    """The tokens of one answer so far, (tokens,), after each step; a rule may take some back."""
    contrasts, control = _sorted(recipe.decoding)
    yield from _write(session, image, question, recipe, contrasts, control, limit)


@contextmanager
def processors(session: Session, image: Any, question: str, recipe: Recipe | None) -> Iterator[list[Any]]:
    """The recipe's rules as logits processors for transformers' generate.

    Raises:
        RecipeError: if it has a rule that writes in its own way.
    """
    contrasts, control = _sorted(recipe.decoding if recipe is not None else ())
    if control is not None:
        raise RecipeError(
            f"The rule {control.name!r} writes greedily and in its own way, so it does not go with transformers' "
            "generation options; leave these out."
        )
    if not contrasts:
        yield []
        return
    with contrast.processor(session, image, question, contrasts) as processor:
        yield [processor]


def logits(
    session: Session, plain: Tensor, images: Sequence[Any], questions: Sequence[str], recipes: Recipes
) -> Tensor:
    """Next-token logits (rows, vocabulary) with the contrasts of the recipes; other rules have no say in them."""
    listed = [recipes] * len(questions) if recipes is None or isinstance(recipes, Recipe) else list(recipes)
    changed = None
    for rules, rows in _alike(listed):
        contrasts, _ = _sorted(rules)
        if contrasts:
            changed = plain.clone() if changed is None else changed
            of, asked = [images[row] for row in rows], [questions[row] for row in rows]
            changed[rows] = contrast.logits(session, plain[rows], of, asked, contrasts).to(plain.dtype)
    return plain if changed is None else changed


def _write(
    session: Session,
    image: Any,
    question: str,
    recipe: Recipe | None,
    contrasts: Sequence[Rule],
    control: Rule | None,
    limit: int,
) -> Iterator[Tensor]:
    if control is not None and control.name in WRITERS:
        steps = WRITERS[control.name](session, image, question, recipe, contrasts, control, _checked(limit))
        yield from map(torch.tensor, steps)
        return
    opened = adaptive.opened if control is not None else contrast.opened
    more = (control,) if control is not None else ()
    written: list[int] = []
    with opened(session, [image], [question], recipe, contrasts, *more) as one:
        for tokens in greedy(one, limit):  # pyright: ignore[reportArgumentType]
            written.append(int(tokens[0]))
            yield torch.tensor(written)


def _checked(limit: int) -> int:
    if limit < 1:
        raise InputError(f"An answer has at least one token; max_new_tokens is {limit}.")
    return limit


def _sorted(rules: Sequence[Rule]) -> tuple[list[Rule], Rule | None]:
    """The contrasts, and the rule that decides how the writing goes on."""
    contrasts = [rule for rule in rules if rule.name == "contrast"]
    control = [rule for rule in rules if rule.name != "contrast"]
    if len(control) > 1:
        names = " and ".join(repr(rule.name) for rule in control)
        raise RecipeError(f"The rules {names} both decide how the answer goes on; a recipe can have one of them.")
    for rule in contrasts:
        contrast.check(rule)
    return contrasts, control[0] if control else None


def _alike(recipes: Sequence[Recipe | None]) -> list[tuple[tuple[Rule, ...], list[int]]]:
    """The rows of each set of decoding rules; rules are the same if their tensors are the same objects."""
    found: dict[str, tuple[tuple[Rule, ...], list[int]]] = {}
    for row, recipe in enumerate(recipes):
        rules = recipe.decoding if recipe is not None else ()
        key = repr([(rule.spec(), [(name, id(tensor)) for name, tensor in rule.tensors.items()]) for rule in rules])
        found.setdefault(key, (rules, []))[1].append(row)
    return list(found.values())
