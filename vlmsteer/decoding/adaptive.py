"""Strength that follows need, token by token: Dynamic Activation Composition (Scalena, Sarti and Nissim, 2024, arXiv
2406.17563).

Two companions take in the same tokens, one without the recipe's edits, one with all of them at the limit. How far apart
they are about the next token, KL(steered || plain) among the tokens that either finds likely, cut off at the limit, is
what the edits are multiplied with at this step. The prompt is read with the strength that its end calls for; a token
that has been written keeps the strength of its own step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.actions import compile_actions, compile_rules
from vlmsteer.decoding import contrast
from vlmsteer.errors import RecipeError
from vlmsteer.hooks import Run
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.streams import Stream

if TYPE_CHECKING:
    from vlmsteer.session import Recipes, Session


class Adaptive:
    """A stream whose edits act at each step as strongly as its two companions differ.

    Attributes:
        strengths: (rows,) of the last step, for the rows of the beginning.
        logits: (rows, vocabulary) of the next token.
    """

    def __init__(
        self,
        main: Stream | contrast.Contrasted,
        plain: Stream,
        full: Stream,
        recipes: Sequence[Recipe | None],
        strengths: Tensor,
        rule: Rule,
    ) -> None:
        self.main, self.plain, self.full, self.session = main, plain, full, main.session
        self.recipes, self.strengths, self.rule, self.logits = list(recipes), strengths, rule, main.logits

    @property
    def left(self) -> Tensor:
        """Which of the first rows are still there."""
        return self.main.left

    def push(self, tokens: Tensor) -> Tensor:
        """As `Stream.push`."""
        with self.session.instrument.alone():
            self.plain.push(tokens)
            self.full.push(tokens)
        self.strengths[self.left.cpu()] = strengths(self.full.logits, self.plain.logits, self.rule)
        scaled = [_edited(recipe, float(by)) for recipe, by in zip(self.recipes, self.strengths, strict=True)]
        actions, rows = compile_actions(self.session.taps, scaled)
        rules = compile_rules(scaled, self.session.layers())
        run = Run(actions, rows, prompt=self.main.run.prompt, owners=self.left, rules=rules)
        self.logits = self.main.push(tokens, run)
        return self.logits

    def select(self, rows: Tensor) -> None:
        """As `Stream.select`."""
        for stream in (self.main, self.plain, self.full):
            stream.select(rows)
        self.logits = self.logits[rows]


def strengths(steered: Tensor, plain: Tensor, rule: Rule) -> Tensor:
    """(rows,) on the CPU: the divergence of (rows, vocabulary) logits, from 0 to the rule's limit."""
    return divergence(steered, plain, rule.settings["top_p"]).clamp(0, rule.settings["limit"]).cpu()


def divergence(steered: Tensor, plain: Tensor, top_p: float) -> Tensor:
    """(rows,): KL(steered || plain), both renormalized on the union of their sets of likeliest tokens."""
    kept = _likely(steered, top_p) | _likely(plain, top_p)
    one, other = (logits.double().masked_fill(~kept, -torch.inf).log_softmax(-1) for logits in (steered, plain))
    return torch.where(kept, one.exp() * (one - other), 0.0).sum(-1).float()


def _likely(logits: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens that together reach a probability of `top_p`."""
    ordered, order = logits.float().softmax(-1).sort(-1, descending=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, ordered.cumsum(-1) - ordered < top_p)


def _edited(recipe: Recipe | None, factor: float) -> Recipe | None:
    """The recipe with the strengths of its edits multiplied, and its rules as they are."""
    return recipe if recipe is None else replace(recipe, edits=recipe.scaled(factor).edits)


@contextmanager
def opened(
    session: Session,
    images: Sequence[Any],
    questions: Sequence[str],
    recipes: Recipes,
    contrasts: Sequence[Rule],
    rule: Rule,
) -> Iterator[Adaptive]:
    """As `Session.opened`, with strengths that adapt.

    Raises:
        RecipeError: if the settings are out of range, or an edit has a gate, which decides about strength too.
    """
    top_p, limit = rule.settings["top_p"], rule.settings["limit"]
    if not 0 < top_p <= 1 or limit <= 0:
        raise RecipeError(
            f"Adaptive strength takes top_p from 0 to 1 and a positive limit, not {top_p!r} and {limit!r}."
        )
    settled = session.settle(recipes, images, questions)
    listed = [settled] * len(questions) if settled is None or isinstance(settled, Recipe) else list(settled)
    if any(edit.gate is not None for recipe in listed if recipe is not None for edit in recipe.edits):
        raise RecipeError("A gate and adaptive strength both decide how strongly an edit acts; a recipe can have one.")
    with ExitStack() as stack:
        with session.instrument.alone():
            unedited = [_edited(recipe, 0.0) for recipe in listed]
            plain = stack.enter_context(session.opened(images, questions, unedited))
            full = stack.enter_context(session.opened(images, questions, [_edited(r, limit) for r in listed]))
        found = strengths(full.logits, plain.logits, rule)
        scaled = [_edited(recipe, float(by)) for recipe, by in zip(listed, found, strict=True)]
        main = stack.enter_context(contrast.opened(session, images, questions, scaled, contrasts))
        yield Adaptive(main, plain, full, listed, found, rule)
