"""Going back before an untrue word is written, after TruthPrInt (Duan, Kong et al., ICCV 2025, arXiv 2503.10602).

A reconstruction, the authors' code is not available. A detector reads the state that predicts the next token. Where it
finds that an untrue word is coming, the answer is taken back to the token of the current sentence that the model was
least sure of, another candidate is written there, and the writing goes on; every candidate of a place is tried once,
and after so many times back everything is accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.decoding.watch import Watched, opened
from vlmsteer.errors import RecipeError, did_you_mean
from vlmsteer.perceptron import Perceptron
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.sites import Site

if TYPE_CHECKING:
    from vlmsteer.session import Session

WHERE = ("any", "starts")
PICKS = ("lowest", "highest")
SCOPES = ("sentence", "clause")
ENDS = (".", "!", "?")
JOINTS = (",", ";", ":")
JOINING = ("and", "or")


@dataclass
class Place:
    """Where a token is or will be written: its candidates, the model's confidence and the detector's score there."""

    candidates: list[int]
    confidence: float
    score: float
    tried: set[int] = field(default_factory=set)

    def best(self) -> int:
        """The likeliest candidate that has not been tried; the likeliest of all if all have."""
        return next((token for token in self.candidates if token not in self.tried), self.candidates[0])


class Detector:
    """A rule's probe and the tokens it is asked about.

    The rule's tensors are a perceptron's (`vlmsteer.perceptron`), larger scores meaning "true", and `starts`, the
    tokens that may begin an object's name. Its settings are `layer`, `threshold` (the detector fires below it), `where`
    ("any" token, or "starts"), `pick` ("lowest" or "highest" confidence to go back to), `scope` (as far back as the
    "sentence" began, or the "clause", with the comma or word that joins it to the one before), `candidates` (so many of
    a place are tried, if they have the share `plausible` of the likeliest one's probability) and `max_rollbacks`,
    which the rule's strength multiplies.
    """

    def __init__(self, rule: Rule) -> None:
        settings = rule.settings
        for name, known in (("where", WHERE), ("pick", PICKS), ("scope", SCOPES)):
            if settings[name] not in known:
                raise RecipeError(f"A rollback has no {name} {settings[name]!r}{did_you_mean(settings[name], known)}.")
        self.clauses = settings["scope"] == "clause"
        self.site, self.threshold = Site("text", int(settings["layer"]), "block_out"), float(settings["threshold"])
        self.perceptron = Perceptron.of(rule.tensors)
        self.starts = set(rule.tensors["starts"].tolist()) if settings["where"] == "starts" else None
        self.highest, self.count = settings["pick"] == "highest", int(settings["candidates"])
        self.plausible = float(settings.get("plausible", 0.0))
        self.rollbacks = round(settings["max_rollbacks"] * abs(rule.strength))

    def place(self, watched: Watched) -> Place:
        """The place after the last token."""
        shares, tokens = watched.logits.float().softmax(-1).topk(min(self.count, watched.logits.shape[-1]))
        kept = shares >= max(self.plausible * float(shares[0]), torch.finfo(shares.dtype).tiny)
        score = self.perceptron.score(watched.state(self.site)[None])
        return Place(tokens[kept].tolist() or tokens[:1].tolist(), float(shares[0]), float(score[0]))

    def fires(self, place: Place, token: int) -> bool:
        """Whether `token` would begin something untrue."""
        return place.score < self.threshold and (self.starts is None or token in self.starts)

    def target(self, places: Sequence[Place], now: Sequence[int], first: int) -> int | None:
        """The place from `first` on to go back to, if one has a candidate left; `now` are their present tokens."""
        free = [
            index for index in range(first, len(places))
            if any(token != now[index] and token not in places[index].tried for token in places[index].candidates)
        ]  # fmt: skip
        sign = -1 if self.highest else 1
        return min(free, key=lambda index: sign * places[index].confidence, default=None)


def write(
    session: Session,
    image: Any,
    question: str,
    recipe: Recipe | None,
    contrasts: Sequence[Rule],
    rule: Rule,
    limit: int,
) -> Iterator[list[int]]:
    """The tokens so far, after each that is written; some of them may be gone the next time."""
    detector, ends = Detector(rule), set(session.ends.tolist())
    if detector.site not in session.taps:
        raise RecipeError(
            f"The detector reads {detector.site}; this model has text layers 0 to {session.layers() - 1}."
        )
    written: list[int] = []
    begun = [0]  # where sentences or clauses begin
    left = detector.rollbacks
    with opened(session, image, question, recipe, contrasts, [detector.site]) as watched:
        places = [detector.place(watched)]
        while True:
            token = places[-1].best()
            if left and detector.fires(places[-1], token):
                target = detector.target(places, [*written, token], begun[-1])
                if target is not None:
                    left -= 1
                    places[target].tried.add([*written, token][target])
                    watched.back(len(written) - target)
                    del written[target:], places[target + 1 :]
                    begun = [index for index in begun if index <= target]
                    continue
            written.append(token)
            yield list(written)
            if token in ends or len(written) == limit:
                return
            text = session.tokenizer.decode([token]).strip(" ")
            if text.endswith(ENDS) or "\n" in text:
                begun.append(len(written))
            elif detector.clauses and (text.endswith(JOINTS) or text.lower() in JOINING):
                begun.append(len(written) - 1)  # the choice to go on belongs to what follows
            watched.push(token)
            places.append(detector.place(watched))


def linear(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """A linear probe (width,) as the tensors of a perceptron without a hidden layer."""
    return Perceptron((weight[:, None],), (bias.reshape(1),)).tensors()
