"""A batch of questions becomes answers or errors, whatever happens to one of them.

Questions about one image share its prefix (`Session.opened`), and the first token's yes and no are read off the same
prefill that the answer is written from. What memory does not hold is asked in halves. A question that fails alone is an
error with its sentence, never an empty answer, and the others go on. A question without an image is asked with what a
recipe changes elsewhere than in how an image is seen; where nothing is left of it, the model answers as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.errors import InputError, VlmsteerError
from vlmsteer.images import open_image
from vlmsteer.prompts import Encoded
from vlmsteer.recipe import Recipe
from vlmsteer.streams import greedy

if TYPE_CHECKING:
    from vlmsteer.session import Session

NEVER = -100.0  # nats: JSON has no minus infinity
DIGITS = 6
WORDS = {"yes": ("Yes", "yes"), "no": ("No", "no")}
READING = ("encoder", "text")  # the towers that read a prompt; the others see an image

Outcome = Answer | str  # an answer, or the sentence of an error


@dataclass(frozen=True)
class Decoding:
    """How answers are written, the same for all arms: greedily, with beams, or sampled.

    Attributes:
        beams: 1 is greedy. More are transformers' beams; then questions are asked one by one.
        temperature: 0 is greedy. Else sampled, each item with its own seed; then questions are asked one by one.
        seed: of the sampling.
    """

    beams: int = 1
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1 or self.temperature < 0:
            raise InputError(f"Beams are 1 or more, a temperature 0 or more; not {self.beams} and {self.temperature}.")

    def spec(self) -> dict[str, Any]:
        """As JSON values, without what has no effect."""
        if self.beams == 1 and not self.temperature:
            return {"kind": "greedy"}
        sampled = {"temperature": self.temperature, "seed": self.seed} if self.temperature else {}
        return {"kind": "sampling" if self.temperature else "beams", "beams": self.beams, **sampled}

    def generation(self) -> dict[str, Any]:
        """transformers' generate arguments; empty where the engine's own greedy loop does it."""
        more = {"do_sample": True, "temperature": self.temperature, "top_k": 0} if self.temperature else {}
        return {"num_beams": self.beams, **more} if more or self.beams > 1 else {}


class Batch:
    """Questions with their images, opened and encoded once for all arms.

    Attributes:
        failed: by row the sentence of an image that cannot be opened.
    """

    def __init__(self, session: Session, items: Sequence[Item]) -> None:
        self.session, self.items = session, items
        self.images: list[Image.Image | None] = []
        self.failed: dict[int, str] = {}
        self._encoded: dict[tuple[int, ...], Encoded] = {}
        opened: dict[str, Image.Image | str] = {}
        for row, item in enumerate(self.items):
            if item.image is not None and item.image not in opened:
                try:
                    opened[item.image] = open_image(item.image)
                except InputError as error:
                    opened[item.image] = str(error)
            image = None if item.image is None else opened[item.image]
            if isinstance(image, str):
                self.failed[row] = image
            self.images.append(None if isinstance(image, str) else image)

    def encoded(self, rows: tuple[int, ...]) -> Encoded:
        """The prompts of some rows."""
        if rows not in self._encoded:
            images, questions = self.shown(rows)
            self._encoded[rows] = self.session.encoder.encode(images, questions)
        return self._encoded[rows]

    def shown(self, rows: Sequence[int]) -> tuple[list[Image.Image | None], list[str]]:
        """Images and questions of some rows."""
        return [self.images[row] for row in rows], [self.items[row].prompt for row in rows]


class Asker:
    """Asks batches.

    Attributes:
        most: so many rows go together; less once the memory has not held more.
    """

    def __init__(self, session: Session, decoding: Decoding, most: int) -> None:
        self.session, self.decoding, self.most = session, decoding, most
        self._first: dict[str, Tensor] | None = None

    def ask(
        self, batch: Batch, rows: Sequence[int], recipe: Recipe | None, limit: int, yes_no: bool
    ) -> dict[int, Outcome]:
        """The answer or the error of each of the rows.

        Args:
            recipe: the arm's, None for the baseline.
            limit: the longest answer in tokens, 0 for items with choices.
            yes_no: also give the log-probabilities of yes and no as the first token.
        """
        found: dict[int, Outcome] = {row: batch.failed[row] for row in rows if row in batch.failed}
        good = [row for row in rows if row not in found]
        fitted: list[int] = []
        for first in range(0, len(good), self.most):
            found |= self._halving(
                tuple(good[first : first + self.most]),
                lambda part: self._together(batch, part, recipe, limit, yes_no),
                fitted,
            )
        if fitted:
            self.most = max(fitted)
        return found

    def _halving(
        self,
        rows: tuple[int, ...],
        ask: Callable[[tuple[int, ...]], list[Answer]],
        fitted: list[int],
        halved: bool = False,
    ) -> dict[int, Outcome]:
        """Ask all; if that fails, both halves. `fitted` collects what the memory held after it had not held more."""
        try:
            found = dict(zip(rows, ask(rows), strict=True))
        except Exception as error:  # whatever one question does, the others are asked
            if len(rows) == 1:
                return {rows[0]: sentence(error)}
            halved = halved or out_of_memory(error)
        else:
            if halved:
                fitted.append(len(rows))
            return dict(found)
        # Outside of the except block: until its end the error keeps every tensor of the failed forward alive.
        if halved and torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = (len(rows) + 1) // 2
        return {
            **self._halving(rows[:middle], ask, fitted, halved),
            **self._halving(rows[middle:], ask, fitted, halved),
        }

    def _together(
        self, batch: Batch, rows: tuple[int, ...], recipe: Recipe | None, limit: int, yes_no: bool
    ) -> list[Answer]:
        images, questions = batch.shown(rows)
        if recipe is not None and all(image is None for image in images):  # `plan.batches` never mixes them
            recipe = blind(recipe)
        if not limit:
            return self._chosen(images, questions, [batch.items[row].choices for row in rows], recipe)
        generation = self.decoding.generation()
        with torch.no_grad():
            if generation:
                first = self.session.logits(images, questions, recipe) if yes_no else None
                texts = [
                    self._generated(batch.items[row].id, image, question, recipe, limit, generation)
                    for row, image, question in zip(rows, images, questions, strict=True)
                ]
            elif recipe is not None and recipe.decoding:
                first = self.session.logits(images, questions, recipe) if yes_no else None
                texts = self.session.ask_many(images, questions, recipe, limit, len(rows))
            else:
                with self.session.opened(images, questions, recipe, batch.encoded(rows)) as stream:
                    first = stream.logits
                    tokens = torch.stack(list(greedy(stream, limit)), 1)
                texts = [self.session.encoder.decode(row) for row in tokens]
        if first is not None and bool(first.isnan().any()):
            raise ArithmeticError("the model's logits are not numbers (NaN), so it gave no answer")
        logprobs = [{} for _ in rows] if not yes_no or first is None else self._yes_no(first)
        return [Answer(text, said) for text, said in zip(texts, logprobs, strict=True)]

    def _generated(
        self, item: str, image: Any, question: str, recipe: Recipe | None, limit: int, generation: Mapping[str, Any]
    ) -> str:
        digest = hashlib.sha256(f"{self.decoding.seed} {item}".encode()).digest()
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(digest[:7]))
            return self.session.ask(image, question, recipe, limit, **generation)

    def _chosen(
        self, images: Sequence[Any], questions: Sequence[str], choices: Sequence[Sequence[str]], recipe: Recipe | None
    ) -> list[Answer]:
        counts = [len(one) for one in choices]
        owners = [row for row, count in enumerate(counts) for _ in range(count)]
        scores = iter(
            self.session.score(
                [images[row] for row in owners], [questions[row] for row in owners],
                [choice for own in choices for choice in own], recipe, len(counts),
            )
        )  # fmt: skip
        found = []
        for own in choices:
            sums = {choice: float(next(scores).sum()) for choice in own}
            if any(value != value for value in sums.values()):
                raise ArithmeticError("the model's logits are not numbers (NaN), so no choice has a probability")
            found.append(Answer("", {choice: _rounded(value) for choice, value in sums.items()}))
        return found

    def _yes_no(self, logits: Tensor) -> list[dict[str, float]]:
        """From (rows, vocabulary) logits the log-probability that the first token begins yes, and no."""
        if self._first is None:
            self._first = beginnings(self.session)
        logprobs = logits.float().log_softmax(-1)
        sums = {word: logprobs[:, ids.to(logits.device)].logsumexp(-1).tolist() for word, ids in self._first.items()}
        return [{word: _rounded(values[row]) for word, values in sums.items()} for row in range(len(logits))]


def blind(recipe: Recipe) -> Recipe | None:
    """What is left of a recipe where no image is shown: edits of how one is seen have nothing to act on."""
    edits = tuple(one for one in recipe.edits if one.vectors.tower in READING and one.positions != "image")
    return replace(recipe, edits=edits) if edits or recipe.rules else None


def beginnings(session: Session) -> dict[str, Tensor]:
    """The tokens that begin "Yes" or "yes", and "No" or "no", with and without a space before.

    A token that begins both (a lone space) says nothing and is left out; so is a word that no token is left for.
    """
    found: dict[str, set[int]] = {}
    for word, forms in WORDS.items():
        texts = [text for form in forms for text in (form, f" {form}")]
        ids = {int(session.tokenizer(text, add_special_tokens=False).input_ids[0]) for text in texts}
        found[word] = ids | {int(session.encoder.answer_tokens(form)[0][0]) for form in forms}
    both = found["yes"] & found["no"]
    return {word: torch.tensor(sorted(ids - both)) for word, ids in found.items() if ids - both}


def out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch could do."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    )


def sentence(error: Exception) -> str:
    """What an error is called in the row of its question."""
    if isinstance(error, VlmsteerError):
        return str(error)
    if out_of_memory(error):
        return f"One question alone does not fit into memory: {str(error).splitlines()[0] if str(error) else 'no more'}"
    return f"{type(error).__name__}: {error}"


def _rounded(value: float) -> float:
    return round(max(value, NEVER), DIGITS)
