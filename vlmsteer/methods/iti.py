"""ITI, inference-time intervention (Li et al., NeurIPS 2023, arXiv 2306.03341), and NL-ITI (arXiv 2403.18680).

A probe for each attention head tells true from untrue answers by the head's output before the output projection. The
heads whose probes do best on groups they have not seen are pushed along the mean of the true minus the mean of the
untrue states, by so many standard deviations. NL-ITI (Hoscilowicz et al., 2024) ranks by perceptrons, on the mean of
the last few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from vlmsteer.errors import InputError, RecipeError, did_you_mean
from vlmsteer.examples import Example, digest
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.perceptron import fit_perceptron
from vlmsteer.probes import fit_many, split
from vlmsteer.reading import batches
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.running import Mean
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

VERSION = 1
SHARE = 48 / 1024  # the paper's 48 of the 1024 heads of Llama-7B
SPREADS = ("auto", "question", "answer")
SCOPES = ("last", "all")


class Heads(NamedTuple):
    """What was read at `head` sites; `true` and `false` are means over all examples, the rest is of a sample.

    Attributes:
        true, false: (layers, heads, head_dim), means over the right and the wrong answers.
        answers: (2 examples, layers, heads, head_dim), what probes see, right and wrong in turn.
        questions: (examples, layers, heads, head_dim), at the prompt's last token.
        groups: (2 examples,), of `answers`.
    """

    true: Tensor
    false: Tensor
    answers: Tensor
    questions: Tensor
    groups: list[str]

    @property
    def labels(self) -> Tensor:
        """(2 examples,), true for right answers."""
        return torch.arange(len(self.answers)) % 2 == 0


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    heads: int = 0,
    strength: float = 15.0,
    spread: str = "auto",
    scope: str = "last",
    layers: Sequence[int] | None = None,
    test: float = 0.2,
    limit: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
) -> Recipe:
    """Push the most truthful heads towards the truth; logistic probes on the answer's last token.

    Args:
        heads: how many are edited; 0 is the paper's share, 48 of 1024, and at least one.
        strength: standard deviations; 15 in the paper.
        spread: the states whose standard deviation along the direction counts: of the "question"'s end (the prompt's
            last token, as in the authors' code), or of the "answer" (the probes' states, true and untrue). "auto" is
            the first, but the second where an encoder reads the prompt: a decoder's first token is always the same.
        scope: "last" edits the prompt's last and every generated token, "all" every token.
        layers: of the text tower; all by default.
        test: the share of groups that heads are ranked on and probes do not see.
        limit: examples that probes and standard deviations are from, at most; the direction is from all.

    Raises:
        InputError: if there are fewer than two groups.
    """
    chosen = checked_layers(session, layers)
    _check(session, chosen, heads, spread, scope)
    read = read_heads(session, examples, chosen, 1, 1, limit, batch_size, seed)
    options = {"strength": strength, "spread": spread, "scope": scope, "test": test, "limit": limit, "seed": seed}
    return _recipe(session, examples, "iti", read, linear_accuracy(read, test, seed), chosen, heads, options)


def learn_nonlinear(
    session: Session,
    examples: Sequence[Example],
    *,
    heads: int = 0,
    strength: float = 15.0,
    probe_tokens: int = 4,
    tokens: int = 6,
    spread: str = "auto",
    scope: str = "last",
    layers: Sequence[int] | None = None,
    test: float = 0.2,
    limit: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
) -> Recipe:
    """As `learn`, with a perceptron for each head and means over the last tokens.

    Args:
        probe_tokens, tokens: over how many last tokens probes and the direction take the mean; 4 and 6 in the paper.
            The prompt's last token is the first that can be among them: it is the first that is edited.
    """
    if min(probe_tokens, tokens) < 1:
        raise InputError(f"A mean needs one token or more, not {probe_tokens} and {tokens}.")
    chosen = checked_layers(session, layers)
    _check(session, chosen, heads, spread, scope)
    read = read_heads(session, examples, chosen, probe_tokens, tokens, limit, batch_size, seed)
    options = {"strength": strength, "probe_tokens": probe_tokens, "tokens": tokens}
    options |= {"spread": spread, "scope": scope, "test": test, "limit": limit, "seed": seed}
    return _recipe(session, examples, "nl_iti", read, nonlinear_accuracy(read, test, seed), chosen, heads, options)


def statements(
    examples: Sequence[Example],
) -> tuple[list[Image.Image | str | None], list[str], list[str]]:
    """Images, questions and answers, the right and the wrong answer of each example in turn."""
    asked = [(one.image, one.question, answer) for one in examples for answer in (one.right, one.wrong)]
    images, questions, answers = zip(*asked, strict=True)
    return list(images), list(questions), list(answers)


def sampled(count: int, limit: int, seed: int) -> list[int]:
    """At most `limit` of the numbers below `count`, by chance, in order."""
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].tolist())


def read_heads(
    session: Session,
    examples: Sequence[Example],
    layers: Sequence[int],
    probe_tokens: int,
    tokens: int,
    limit: int,
    batch_size: int,
    seed: int,
) -> Heads:
    """One forward an answer. The last `tokens` are averaged for the means, the last `probe_tokens` for the probes."""
    enough(examples, "ITI")
    sites = [Site("text", layer, "head") for layer in layers]
    kept = {number: place for place, number in enumerate(sampled(len(examples), limit, seed))}
    groups = [examples[number].group for number in kept for _ in range(2)]
    images, questions, answers = statements(examples)
    true, false = Mean(), Mean()
    probed = ended = torch.zeros(0)
    step = max(2, batch_size // 2 * 2)
    for rows, states in batches(session, sites, images, questions, answers, "last", batch_size=step):
        by_site = [states.rows(site) for site in sites]
        for i, number in enumerate(range(rows.start, rows.start + len(by_site[0]))):
            own = torch.stack([site[i].float().cpu() for site in by_site], 1)  # (1 + tokens, layers, heads, head_dim)
            (false if number % 2 else true).update(own[-tokens:].mean(0, keepdim=True))
            place = kept.get(number // 2)
            if place is None:
                continue
            if not len(probed):
                probed = torch.zeros(2 * len(kept), *own.shape[1:])
                ended = torch.zeros(len(kept), *own.shape[1:])
            probed[2 * place + number % 2] = own[-probe_tokens:].mean(0)
            ended[place] = own[0]
    return Heads(true.mean.float(), false.mean.float(), probed, ended, groups)


def _check(session: Session, layers: Sequence[int], heads: int, spread: str, scope: str) -> None:
    """Refuse options that would only fail after all examples are read."""
    if spread not in SPREADS:
        raise RecipeError(f"There is no spread {spread!r}{did_you_mean(spread, SPREADS)}.")
    if scope not in SCOPES:
        raise RecipeError(f"There is no scope {scope!r}{did_you_mean(scope, SCOPES)}.")
    there = sum(session.taps[Site("text", layer, "head")].heads or 1 for layer in layers)
    if not 0 <= heads <= there:
        raise InputError(f"{heads} heads cannot be edited; these layers have {there}, and 0 is the paper's share.")


def linear_accuracy(read: Heads, test: float = 0.2, seed: int = 0) -> Tensor:
    """How often the logistic probe of each head, (layers, heads), is right about groups it has not seen."""
    fit, held = split(read.groups, test, seed)
    x, y = read.answers.flatten(1, 2), read.labels
    return _accuracy(fit_many(x[fit], y[fit]).score(x[held]), y[held], read)


def nonlinear_accuracy(read: Heads, test: float = 0.2, seed: int = 0) -> Tensor:
    """As `linear_accuracy`, of the perceptron of each head."""
    fit, held = split(read.groups, test, seed)
    x, y = read.answers.flatten(1, 2), read.labels
    probe = fit_perceptron(x[fit], y[fit], [read.groups[row] for row in fit.tolist()], seed=seed)
    return _accuracy(probe.score(x[held]), y[held], read)


def _accuracy(scores: Tensor, labels: Tensor, read: Heads) -> Tensor:
    return ((scores > 0) == labels[:, None]).double().mean(0).view(read.true.shape[:2])


def displacements(read: Heads, spread: str = "question") -> tuple[Tensor, Tensor]:
    """Unit directions (layers, heads, head_dim), true minus untrue, and the deviations (layers, heads) along them."""
    direction = normalize(read.true - read.false, dim=-1)
    states = read.questions if spread == "question" else read.answers
    return direction, (states * direction).sum(-1).std(0, unbiased=False)


def _recipe(
    session: Session,
    examples: Sequence[Example],
    name: str,
    read: Heads,
    accuracy: Tensor,
    layers: Sequence[int],
    heads: int,
    options: dict[str, float | int | str],
) -> Recipe:
    if options["spread"] == "auto":
        options["spread"] = "answer" if session.family.reads_prompt == "encoder" else "question"
    direction, deviation = displacements(read, str(options["spread"]))
    width = accuracy.shape[1]
    count = heads or max(1, round(SHARE * accuracy.numel()))
    best = accuracy.flatten().argsort(descending=True, stable=True)[:count].tolist()
    places = [(i // width, i % width) for i in best]
    push = torch.zeros_like(direction)
    for at, head in places:
        push[at, head] = float(options["strength"]) * deviation[at, head] * direction[at, head]
    about = {
        "method": name, "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {**options, "heads": count, "layers": list(layers)},
        # The same held-out groups chose the heads, so the best of many accuracies flatter.
        "heads": [
            {"layer": layers[at], "head": head, "accuracy": round(float(accuracy[at, head]), 4),
             "spread": round(float(deviation[at, head]), 6)}
            for at, head in places
        ],
        "accuracy_of_all_heads": round(float(accuracy.mean()), 4),
    }  # fmt: skip
    vectors = {layers[at]: push[at].flatten() for at in sorted({at for at, _ in places})}
    kept = Vectors("text", "head", vectors, session.fingerprint, about)
    return Recipe((Edit(kept, "add", 1.0, str(options["scope"])),), session.fingerprint, about)


METHOD = Method(
    name="iti",
    title="ITI, inference-time intervention",
    paper="Li et al., NeurIPS 2023, arXiv 2306.03341",
    needs="presence",
    learn=learn,
    strengths=(0.1, 0.25, 1.0),
    variants=({"needs": "captions"}, {"needs": "captions", "heads": 8}),
    notes="Strength 1 is 15 standard deviations. True and untrue statements are right and wrong answers to a question "
    "about an image, yes/no or captions. As many should be true with yes as with no, else the direction is a liking "
    "for one of them.",
)
NL_ITI = Method(
    name="nl_iti",
    title="NL-ITI, ITI by perceptron probes over several tokens",
    paper="Hoscilowicz et al., 2024, arXiv 2403.18680",
    needs="presence",
    learn=learn_nonlinear,
    strengths=(0.25, 0.5, 1.0, 2.0),
    notes="Means over the last tokens begin at the prompt's last token at the earliest, so that short answers are "
    "averaged over the tokens that the edit changes.",
)
