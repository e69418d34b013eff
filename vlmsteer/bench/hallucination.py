"""How much a model makes up, and what it costs to make up less: one arm measured on scenes whose contents are known.

CHAIR (Rohrbach et al., EMNLP 2018, arXiv 1809.02156) falls when captions get shorter, and accuracy on yes/no questions
(POPE, Li et al., EMNLP 2023, arXiv 2305.10355) moves with a bias to one answer. So recall, length, repetition and the
share of yes stand beside them, and how far the next token moves where nothing was wrong. Every number is a ratio of
sums over scenes, kept apart for each, so that arms are compared in pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.examples import Example
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session
from vlmsteer_counterfacts.facts import facts

UNRELATED = "What is this?"
CAPTION_TOKENS, ANSWER_TOKENS, BATCH = 64, 6, 50
FLOOR = -30.0  # smaller log-probabilities count as this
Parts = tuple[list[float], list[float]]  # numerators and denominators, by scene or question
Recipes = Recipe | Sequence[Recipe | None] | None


@dataclass(frozen=True)
class Measure:
    """One column: what it is, whether it lies in 0..1, and whether it is about captions or yes/no questions.

    `wanted` is -1 if less is better, 1 if more is, 0 if neither.
    """

    title: str
    about: str
    wanted: int = 0
    share: bool = True


MEASURES = {
    "chair_i": Measure("CHAIR_i", "captions", -1),
    "chair_s": Measure("CHAIR_s", "captions", -1),
    "recall": Measure("recall", "captions", 1),
    "words": Measure("words", "captions", share=False),
    "objects": Measure("objects", "captions", share=False),
    "repetition": Measure("repetition", "captions", -1),
    "accuracy": Measure("accuracy", "presence", 1),
    "f1": Measure("F1", "presence", 1),
    "yes": Measure("yes", "presence"),
    "neither": Measure("neither", "presence", -1),
    "kl_unrelated": Measure("KL, unrelated", "captions", -1, share=False),
    "kl_presence": Measure("KL, yes/no", "presence", -1, share=False),
}


@dataclass(frozen=True)
class Said:
    """What one arm said.

    Attributes:
        captions, answers: to the captions' and the yes/no questions.
        unrelated, presence: (captions, vocabulary) and (questions, vocabulary) log-probabilities of the next token
            after `UNRELATED` about the captions' images, and after the yes/no questions.
    """

    captions: list[str]
    answers: list[str]
    unrelated: Tensor
    presence: Tensor


def ask(
    session: Session,
    captions: Sequence[Example],
    presence: Sequence[Example],
    recipes: Recipe | Sequence[Recipe] | None = None,
    max_new_tokens: int = CAPTION_TOKENS,
) -> Said:
    """Ask everything under one arm, greedily.

    Args:
        captions: examples with a caption question.
        presence: examples with a yes/no question.
        recipes: the arm: None for the baseline, one recipe, or several that the examples have in turn.
        max_new_tokens: the longest caption.
    """

    def turns(count: int) -> Recipes:
        return (
            recipes
            if recipes is None or isinstance(recipes, Recipe)
            else [recipes[i % len(recipes)] for i in range(count)]
        )

    def many(examples: Sequence[Example], limit: int) -> list[str]:
        images, asked = [one.image for one in examples], [one.question for one in examples]
        return session.ask_many(images, asked, turns(len(examples)), limit, BATCH)

    def following(examples: Sequence[Example], questions: Sequence[str]) -> Tensor:
        arm, found = turns(len(examples)), []
        for first in range(0, len(examples), BATCH):
            rows = slice(first, first + BATCH)
            part = arm if arm is None or isinstance(arm, Recipe) else arm[rows]
            logits = session.logits([one.image for one in examples[rows]], questions[rows], part)
            found.append(logits.float().log_softmax(-1).cpu())
        return torch.cat(found) if found else torch.zeros(0, 0)

    return Said(
        many(captions, max_new_tokens),
        many(presence, ANSWER_TOKENS),
        following(captions, [UNRELATED] * len(captions)),
        following(presence, [one.question for one in presence]),
    )


def score(
    said: Said,
    baseline: Said,
    captions: Sequence[Example],
    presence: Sequence[Example],
    vocabulary: Mapping[str, str] | None = None,
) -> dict[str, Parts]:
    """Each measure of `MEASURES` as (numerators, denominators), one for each caption or yes/no question.

    The objects that a scene shows are those that its right caption names. As in CHAIR every mention counts, repeated
    ones too, and so does a denied one ("no dog").

    * chair_i: mentions of absent objects, of all mentions. chair_s: captions with one. recall: shown objects named.
    * words, objects: words and different objects a caption. repetition: of a caption's runs of three words, those
      that it had before.
    * accuracy (an answer that is neither yes nor no is wrong), f1 of yes, yes and neither: shares of the answers.
    * kl_unrelated, kl_presence: KL(baseline || arm) of the next token, in nats.

    Args:
        vocabulary: name of the object for each word or words that mention it, in lower case; None for the drawn world.

    Raises:
        InputError: if no right caption names a known object, or an answer to a yes/no question is not yes or no.
    """
    find = finder(vocabulary)
    shown = [set(find(one.right)) for one in captions]
    if captions and not any(shown):
        raise InputError(
            "None of the right captions names a known object, so nothing can be counted as made up; the drawn world's "
            "objects are known, for others pass a vocabulary."
        )
    named = [find(caption) for caption in said.captions]
    invented = [[one for one in names if one not in there] for names, there in zip(named, shown, strict=True)]
    runs = [_runs(caption) for caption in said.captions]
    right = [verdict(one.right) for one in presence]
    if "" in right:
        odd = presence[right.index("")].right
        raise InputError(f"The right answer to a yes/no question is 'Yes' or 'No', not {odd!r}.")
    given = [verdict(answer) for answer in said.answers]
    both = list(zip(given, right, strict=True))
    return {
        "chair_i": _parts(map(len, invented), map(len, named)),
        "chair_s": _parts(map(bool, invented)),
        "recall": _parts(
            (len(there.intersection(names)) for names, there in zip(named, shown, strict=True)), map(len, shown)
        ),
        "words": _parts(len(caption.split()) for caption in said.captions),
        "objects": _parts(len(set(names)) for names in named),
        "repetition": _parts((len(found) - len(set(found)) for found in runs), map(len, runs)),
        "accuracy": _parts(g == r for g, r in both),
        "f1": _parts((2.0 * (g == r == "yes") for g, r in both), ((g == "yes") + (r == "yes") for g, r in both)),
        "yes": _parts(g == "yes" for g, _ in both),
        "neither": _parts(g == "" for g, _ in both),
        "kl_unrelated": _parts(_divergence(baseline.unrelated, said.unrelated)),
        "kl_presence": _parts(_divergence(baseline.presence, said.presence)),
    }


def clusters(captions: Sequence[Example], presence: Sequence[Example]) -> dict[str, list[Hashable]]:
    """The groups that the rows of each measure belong to."""
    groups = {"captions": [one.group for one in captions], "presence": [one.group for one in presence]}
    return {name: list(groups[measure.about]) for name, measure in MEASURES.items()}


def verdict(answer: str) -> str:
    """ "yes" or "no", whichever whole word comes first in any case; "" if neither does."""
    found = re.search(r"\b(yes|no)\b", answer.lower())
    return found[1] if found else ""


def mentions(text: str) -> list[str]:
    """The drawn world's objects that a text mentions, in order, with repetitions: whole words, plurals too."""
    return finder()(text)


def finder(vocabulary: Mapping[str, str] | None = None) -> Callable[[str], list[str]]:
    """What finds the objects that a text mentions; see `score` for the vocabulary."""
    find = placer(vocabulary)
    return lambda text: [name for _, name in find(text)]


def placer(vocabulary: Mapping[str, str] | None = None) -> Callable[[str], list[tuple[int, str]]]:
    """The same with the place where each mention ends, of a text whose words are joined by single spaces."""
    return _drawn() if vocabulary is None else _placer(vocabulary)


@cache
def _drawn() -> Callable[[str], list[tuple[int, str]]]:
    return _placer({word: name for name, fact in facts().items() for word in (name, fact.plural)})


def _placer(vocabulary: Mapping[str, str]) -> Callable[[str], list[tuple[int, str]]]:
    """Of names that begin alike the longest is taken ("fire truck", not "fire")."""
    words = sorted(vocabulary, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(" + "|".join(re.escape(word) for word in words) + r")(?!\w)")
    return lambda text: [
        (found.end(), vocabulary[found[1]]) for found in pattern.finditer(" ".join(text.lower().split()))
    ]


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return list(zip(words, words[1:], words[2:], strict=False))


def _parts(above: Iterable[float], below: Iterable[float] | None = None) -> Parts:
    numerators = [float(value) for value in above]
    return numerators, [1.0] * len(numerators) if below is None else [float(value) for value in below]


def _divergence(plain: Tensor, steered: Tensor) -> list[float]:
    # A rule may rule a token out altogether, and one such token would make the mean infinite.
    plain, steered = plain.clamp_min(FLOOR), steered.clamp_min(FLOOR)
    return (plain.exp() * (plain - steered)).sum(-1).tolist()
