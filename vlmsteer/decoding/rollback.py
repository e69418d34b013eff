"""Going back before an untrue word is written, after TruthPrInt (Duan, Kong et al., ICCV 2025, arXiv 2503.10602).

A reconstruction, the authors' code is not available. A detector reads the state that predicts the next token. Where it
finds that an untrue word is coming, the answer is taken back to the token of the current sentence that the model was
least sure of, another candidate is written there, and the writing goes on; every candidate of a place is tried once,
and after so many times back everything is accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.decoding.watch import opened
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

    def places(self, logits: Tensor, states: Tensor) -> list[Place]:
        """The places after the last tokens, by their logits (rows, vocabulary) and states (rows, width)."""
        shares, tokens = logits.float().softmax(-1).topk(min(self.count, logits.shape[-1]))
        kept = shares >= (self.plausible * shares[:, :1]).clamp_min(torch.finfo(shares.dtype).tiny)
        rows = zip(tokens, kept, shares[:, 0].tolist(), self.perceptron.score(states).tolist(), strict=True)
        return [Place(token[keep].tolist() or token[:1].tolist(), share, score) for token, keep, share, score in rows]

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


class Answer:
    """One answer being written: its tokens, and the places where each of them is or will be.

    Attributes:
        written: the tokens so far.
    """

    def __init__(self, detector: Detector, session: Session) -> None:
        self.detector, self.tokenizer, self.ends = detector, session.tokenizer, set(session.ends.tolist())
        self.written: list[int] = []
        self.places: list[Place] = []
        self.begun = [0]  # where sentences or clauses begin
        self.left = detector.rollbacks

    def go_on(self, place: Place) -> tuple[int, bool]:
        """Write the next token, at the place after the last one or at an earlier one.

        Returns:
            How many of the tokens were taken back first, and whether the answer has ended.
        """
        before = len(self.written)
        self.places.append(place)
        token = place.best()
        while self.left and self.detector.fires(self.places[-1], token):
            target = self.detector.target(self.places, [*self.written, token], self.begun[-1])
            if target is None:
                break
            self.left -= 1
            self.places[target].tried.add([*self.written, token][target])
            del self.written[target:], self.places[target + 1 :]
            self.begun = [index for index in self.begun if index <= target]
            token = self.places[-1].best()
        back = before - len(self.written)
        self.written.append(token)
        text = self.tokenizer.decode([token]).strip(" ")
        if text.endswith(ENDS) or "\n" in text:
            self.begun.append(len(self.written))
        elif self.detector.clauses and (text.endswith(JOINTS) or text.lower() in JOINING):
            self.begun.append(len(self.written) - 1)  # the choice to go on belongs to what follows
        return back, token in self.ends


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
    detector = _detector(session, rule)
    answer = Answer(detector, session)
    with opened(session, image, question, recipe, contrasts, [detector.site]) as watched:
        while True:
            back, ended = answer.go_on(detector.places(watched.logits[None], watched.state(detector.site)[None])[0])
            watched.back(back)
            yield list(answer.written)
            if ended or len(answer.written) == limit:
                return
            watched.push(answer.written[-1])


def together(session: Session) -> bool:
    """Whether answers can be written as a batch: what one takes back then stays in the cache, hidden from it."""
    text = session.model.config.get_text_config()
    return session.family.reads_prompt == "text" and not getattr(text, "sliding_window", None)


def write_many(
    session: Session,
    images: Sequence[Any],
    questions: Sequence[str],
    recipes: Sequence[Recipe | None],
    rule: Rule,
    limit: int,
) -> list[list[int]]:
    """The tokens of several answers, written one token of each a step; only where `together` allows it."""
    detector, padding = _detector(session, rule), session.tokenizer.pad_token_id
    answers = [Answer(detector, session) for _ in images]
    columns: list[list[int]] = [[] for _ in answers]  # of the cache, where what is written is kept
    going = set(range(len(answers)))
    with session.instrument.installed({detector.site}), ExitStack() as stack:
        with session.read([detector.site], "last", "both") as states:
            stream = stack.enter_context(session.opened(images, questions, recipes))
        while True:
            seen = torch.stack([row[-1] for row in states.rows(detector.site)[: len(stream.left)]])
            places = detector.places(stream.logits, seen.float())
            for row, number in enumerate(stream.left.tolist()):
                if number not in going:
                    continue
                answer, kept = answers[number], columns[number]
                back, ended = answer.go_on(places[row])
                if back:
                    stream.mask[row, kept[-back:]] = 0
                    stream.position[row] -= back
                    del kept[-back:]
                kept.append(stream.mask.shape[1])
                if ended or len(answer.written) == limit:
                    going.remove(number)
            if not going:
                return [answer.written for answer in answers]
            if 2 * len(going) <= len(stream.left) and not session.instrument.busy:
                stream.select(torch.tensor([i for i, number in enumerate(stream.left.tolist()) if number in going]))
            following = [answers[i].written[-1] if i in going else padding for i in stream.left.tolist()]
            tokens = torch.tensor(following, device=stream.logits.device)
            stream.push(tokens, replace(stream.run, states=states))


def _detector(session: Session, rule: Rule) -> Detector:
    detector = Detector(rule)
    if detector.site not in session.taps:
        raise RecipeError(
            f"The detector reads {detector.site}; this model has text layers 0 to {session.layers() - 1}."
        )
    return detector


def linear(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """A linear probe (width,) as the tensors of a perceptron without a hidden layer."""
    return Perceptron((weight[:, None],), (bias.reshape(1),)).tensors()
