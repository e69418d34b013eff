"""V-SEAM (Wang, Hu and Jiang, EMNLP 2025, arXiv 2509.14837): which attention heads carry an answer, and turning them.

A head counts by how much the probability of the answer's first token falls when the head's output, at every token, is
replaced by the mean of its layer's other heads. Helpful heads are then turned up and harmful ones down, by the factor
1 + fall, kept within 0 and 2. Every question is asked about a picture and about its edit, of which another answer is
true, so that no head can look helpful by favoring one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError, RecipeError, did_you_mean
from vlmsteer.examples import KINDS, Example, digest, split_groups
from vlmsteer.methods.iti import sampled
from vlmsteer.methods.method import Method, checked_layers
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.session import Session
from vlmsteer.sites import Site, expand
from vlmsteer.vectors import Vectors

VERSION = 1
FORMS = ("signed", "split")
MODES = ("mean", "zeros")
SELECTIONS = ("all", "positive", "negative")


class Asked(NamedTuple):
    """A question about one picture; `right` and `wrong` are the first tokens of the true and the other answer."""

    image: Image.Image | str | None
    question: str
    right: int
    wrong: int


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    kind: str = "",
    form: str = "signed",
    mode: str = "mean",
    select: str = "all",
    layers: Sequence[int] | None = None,
    test: float = 0.25,
    limit: int = 100,
    batch_size: int = 64,
    seed: int = 0,
) -> Recipe:
    """Score every head on some groups, and measure what rescaling does on the others.

    Scoring costs one forward a head, picture and question: 2 x 100 x 1024 for a model of 7 billion parameters.

    Args:
        kind: only examples of this level, "object", "attribute" or "relation"; "" takes all.
        form: "signed", the mean fall; or "split", the mean fall where the answer was right minus the mean rise where it
            was wrong, each counting 0 where it is negative.
        mode: replace a head by the "mean" of the layer's others, or by "zeros".
        select: rescale "all" heads, only the "positive" (turned up) or only the "negative" ones (turned down).
        test: the share of groups that no head is scored on.
        limit: examples scored, at most, by chance if there are more.
        batch_size: heads, or questions, in one forward.

    Raises:
        InputError: if an example has no edited picture, if the two answers begin with the same token, or if there are
            fewer than two groups.
        RecipeError: if an option is not one of those named.
    """
    for given, possible, what in ((form, FORMS, "form"), (mode, MODES, "mode"), (select, SELECTIONS, "selection")):
        if given not in possible:
            raise RecipeError(f"There is no {what} {given!r}{did_you_mean(given, possible)}.")
    if kind and kind not in KINDS:
        raise RecipeError(f"There is no kind {kind!r}{did_you_mean(kind, KINDS)}.")
    chosen = checked_layers(session, layers)
    of_kind = [one for one in examples if kind in ("", one.kind)]
    scored, held = split_groups(of_kind, 1 - test, seed)
    scored = [scored[number] for number in sampled(len(scored), limit, seed)]
    falls, correct = importance(session, questions_of(session, scored), chosen, mode, batch_size)
    score = signed(falls) if form == "signed" else separate(falls, correct)
    if select != "all":
        score = score.clamp(min=0) if select == "positive" else score.clamp(max=0)
    about = {
        "method": "vseam", "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {
            "kind": kind, "form": form, "mode": mode, "select": select, "layers": chosen, "test": test,
            "limit": limit, "seed": seed,
        },
        "scored": len(falls), "positive": _extreme(score, chosen, 1), "negative": _extreme(score, chosen, -1),
    }  # fmt: skip
    vectors = {layer: row.clone() for layer, row in zip(chosen, score, strict=True)}

    def recipe() -> Recipe:
        made = Vectors("text", "head", vectors, session.fingerprint, about)
        return Recipe((Edit(made, "rescale", 1.0, "all"),), session.fingerprint, about)

    asked = questions_of(session, held)
    about["held_out"] = {
        "before": round(accuracy(session, asked, None, batch_size), 4),
        "after": round(accuracy(session, asked, recipe(), batch_size), 4),
        "n": len(asked), "groups": len({one.group for one in held}),
    }  # fmt: skip
    return recipe()


def questions_of(session: Session, examples: Sequence[Example]) -> list[Asked]:
    """Each example's question about its picture and about the edited one.

    Raises:
        InputError: if there is no edited picture, or both answers begin with the same token.
    """
    asked = []
    for one in examples:
        if one.edited is None:
            raise InputError(f"V-SEAM needs an edited picture with every question, and {one.question!r} has none.")
        right, wrong = (int(session.encoder.answer_tokens(answer)[0][0]) for answer in (one.right, one.wrong))
        if right == wrong:
            raise InputError(
                f"{one.right!r} and {one.wrong!r} begin with the same token for this model; use answers that do not."
            )
        asked += [Asked(one.image, one.question, right, wrong), Asked(one.edited, one.question, wrong, right)]
    return asked


def importance(
    session: Session, asked: Sequence[Asked], layers: Sequence[int], mode: str = "mean", batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """How much the answer's probability falls without each head, (questions, layers, heads), and who was right.

    Many heads are rows of one batch, each with its own edit. (questions,) is True where the answer's first token was
    likelier than the other answer's.
    """
    without = [recipe for layer in layers for recipe in replaced(session, layer, mode)]
    falls = torch.zeros(len(asked), len(without))
    correct = torch.zeros(len(asked), dtype=torch.bool)
    for row, one in enumerate(asked):
        base = session.logits([one.image], [one.question]).float().softmax(-1)[0]
        correct[row] = bool(base[one.right] > base[one.wrong])
        for first in range(0, len(without), batch_size):
            part = without[first : first + batch_size]
            logits = session.logits([one.image] * len(part), [one.question] * len(part), part)
            falls[row, first : first + len(part)] = (base[one.right] - logits.float().softmax(-1)[:, one.right]).cpu()
    return falls.unflatten(1, (len(layers), -1)), correct


def replaced(session: Session, layer: int, mode: str = "mean") -> list[Recipe]:
    """For each head of a layer, the recipe that replaces it at every token, as in `importance`."""
    site = Site("text", layer, "head")
    expand(site, session.sites)
    heads = session.taps[site].heads or 1
    if mode == "mean" and heads < 2:
        raise InputError("A layer with a single head has no others to take the mean of; use mode='zeros'.")
    operation, mark = ("mean_of_others", float(heads)) if mode == "mean" else ("scale", -1.0)
    marks = mark * torch.eye(heads)
    return [Recipe((Edit(Vectors("text", "head", {layer: row}), operation, 1.0, "all"),)) for row in marks]


def signed(falls: Tensor) -> Tensor:
    """The mean fall of each head, (layers, heads), of falls (questions, layers, heads)."""
    return falls.mean(0)


def separate(falls: Tensor, correct: Tensor) -> Tensor:
    """How much heads help right answers, minus how much they harm wrong ones.

    The first is the mean over questions answered right of max(0, fall), the second over those answered wrong of
    max(0, rise); 0 where there is no such question.
    """
    helped = falls[correct].clamp(min=0).sum(0) / max(1, int(correct.sum()))
    harmed = (-falls[~correct]).clamp(min=0).sum(0) / max(1, int((~correct).sum()))
    return helped - harmed


def accuracy(session: Session, asked: Sequence[Asked], recipe: Recipe | None, batch_size: int = 64) -> float:
    """The share of questions whose answer's first token is likelier than the other answer's."""
    right = 0
    for first in range(0, len(asked), batch_size):
        part = asked[first : first + batch_size]
        logits = session.logits([one.image for one in part], [one.question for one in part], recipe)
        right += sum(bool(row[one.right] > row[one.wrong]) for row, one in zip(logits, part, strict=True))
    return right / len(asked)


def _extreme(score: Tensor, layers: Sequence[int], sign: int, count: int = 10) -> list[list[float | int]]:
    """The heads that score most, or least, as [layer, head, score]."""
    order = (sign * score).flatten().argsort(descending=True, stable=True)[:count].tolist()
    found = [(layers[i // score.shape[1]], i % score.shape[1], float(score.flatten()[i])) for i in order]
    return [[layer, head, round(value, 6)] for layer, head, value in found if sign * value > 0]


METHOD = Method(
    name="vseam",
    title="V-SEAM, rescaling attention heads",
    paper="Wang, Hu and Jiang, EMNLP 2025, arXiv 2509.14837",
    needs="edits",
    learn=learn,
    strengths=(1.0, 2.0, 5.0, 20.0),
    notes="Answers are compared by their first tokens. Scores are small (hundredths), so strength 1, the paper's, "
    "hardly changes anything: try more. The authors score and test on the same questions, nearly all answered by yes.",
)
