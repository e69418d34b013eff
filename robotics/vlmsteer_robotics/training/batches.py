"""Lessons as the policy gets them: one sequence a picture; its branches share the picture and the prompt's first words.

Beside the tokens a batch says where attention should go: from a color's name to the patches of that color, from the end
of a block's name to that block, from the places where an answer begins to the block and to the hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmsteer.openvla.actions import bins, normalize
from vlmsteer.training.packing import IGNORED, PREFIX, Packed, collate
from vlmsteer_robotics.scene import COLORS
from vlmsteer_robotics.tasks import HEIGHTS, SIDES
from vlmsteer_robotics.training.frames import Frame, Frames
from vlmsteer_robotics.training.lessons import ADVERBS, FAR, MIDDLE, SPAN, Lesson, lessons
from vlmsteer_robotics.training.sight import near, targets

WEIGHTS = (1.0, 1.0, 1.0, 0.05, 0.05, 0.05, 0.3)  # of an action's numbers: it never turns, and the fingers are easy
PLACE, WORD, END = 0.7, 1.0, 0.05  # of a number of a place, of words (over the root of their number), of the end
MANNERS = {word: number for words in (ADVERBS, HEIGHTS) for number, word in enumerate(words)}
FIRST = 3  # answer tokens from which attention is told where to go


class Taught(NamedTuple):
    """A lesson as token ids, of which the last `answer` are learned; the numbers (NaN: a word) and weights of these."""

    ids: list[int]
    answer: int
    numbers: list[float]
    weights: list[float]


class Look(NamedTuple):
    """Where tokens are to look: sequence and token of each, (n,), and the patches that count, (n, patches)."""

    rows: Tensor
    tokens: Tensor
    patches: Tensor


class Batch(NamedTuple):
    """Everything one step needs.

    Attributes:
        tensors: what `packing.collate` gives, `pixel_values`, and `numbers` (sequences, tokens), NaN where none is
            meant.
        looks: "color", "name", "target" and "hand" -> `Look`.
        places: for each named block the sequence, the name's last token and the prompt's, (n, 3); and its place on the
            table, two shares, with its offset from the hand, three, (n, 5).
        manners: for each token that an action's numbers come from, where it should be known how to move: (n, 2)
            sequences and tokens, (n, 2) numbers of the speed and the height, as `ADVERBS` and `HEIGHTS` have them.
        lent: for each of these tokens whose answer is in another's manner: its sequence, itself, the other, (n, 3).
        seen: what the image tokens should tell (`sight.targets`).
    """

    tensors: dict[str, Tensor]
    looks: dict[str, Look]
    places: tuple[Tensor, Tensor]
    manners: tuple[Tensor, Tensor]
    lent: Tensor
    seen: tuple[Tensor, Tensor, Tensor]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(
            {name: value.to(device) for name, value in self.tensors.items()},
            {kind: Look(*(part.to(device) for part in look)) for kind, look in self.looks.items()},
            (self.places[0].to(device), self.places[1].to(device)),
            (self.manners[0].to(device), self.manners[1].to(device)),
            self.lent.to(device),
            (self.seen[0].to(device), self.seen[1].to(device), self.seen[2].to(device)),
        )


class Teacher:
    """Makes batches for one policy.

    Args:
        processor, config: the policy's.
        statistics: what an action of 1 stands for.
    """

    def __init__(self, processor: Any, config: Any, statistics: Mapping[str, Any]) -> None:
        self.processor, self.statistics, self.bins = processor, statistics, bins(config)
        self.side = config.vision_config.grid
        known = processor.tokenizer.get_vocab()
        self.colors = {known[f"▁{color}"] for color in COLORS}
        self.block, self.sides = known["▁block"], {known[f"▁{side}"] for side in SIDES}
        self._prompt = lru_cache(maxsize=50_000)(self._prompted)

    def batch(self, frames: Frames, chosen: np.ndarray, rng: np.random.Generator, early: bool) -> Batch:
        """The lessons of some frames; `early` as in `lessons`."""
        shown = [frames[index] for index in chosen]
        packed, numbers, looks, places, manners, lent = [], [], {}, [], [], []
        for row, frame in enumerate(shown):
            asked = lessons(frame, rng, early)
            sequence, values = self.packed(asked)
            packed.append(sequence)
            numbers.append(values)
            lent += [(row, *pair) for pair in lending(asked, sequence)]
            for kind, token, patches in self._looks(frame, asked, sequence, places, manners, row):
                looks.setdefault(kind, []).append((row, token, patches))
        tensors = collate(packed, self.processor.tokenizer.pad_token_id)
        length = tensors["input_ids"].shape[1]
        padded = [np.pad(values, (0, length - len(values)), constant_values=np.nan) for values in numbers]
        tensors |= {"numbers": torch.from_numpy(np.stack(padded)), "pixel_values": self.pixels(frames.images[chosen])}
        told = {kind: Look(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))
                for kind, rows in looks.items()}  # fmt: skip
        where = (torch.tensor([tokens for tokens, _ in places]), torch.tensor(np.stack([place for _, place in places])))
        how = (torch.tensor([list(row) for row, _ in manners]), torch.tensor([words for _, words in manners]))
        borrowed = torch.tensor(lent, dtype=torch.long).view(-1, 3)
        return Batch(tensors, told, where, how, borrowed, targets(shown, self.side))

    def pixels(self, images: np.ndarray) -> Tensor:
        """Pixel values of pictures (n, side, side, 3), as the processor makes them."""
        return self.processor.image_processor([Image.fromarray(np.asarray(image)) for image in images])["pixel_values"]

    def taught(self, lesson: Lesson) -> Taught:
        """A lesson as tokens."""
        prompt, end = list(self._prompt(lesson.instruction)), self.processor.tokenizer.eos_token_id
        if lesson.words:
            ids = [*self.processor.tokenizer(" " + lesson.words).input_ids, end]
            return Taught(prompt + ids, len(ids), [np.nan] * len(ids), [WORD / len(ids) ** 0.5] * len(ids))
        numbers = normalize(lesson.numbers, self.statistics) if lesson.acts else lesson.numbers.clip(-1, 1)
        weights = WEIGHTS if lesson.acts else [PLACE] * len(numbers)
        ids = [*self.bins.encode(numbers).tolist(), end]
        return Taught(prompt + ids, len(ids), [*numbers, np.nan], [*weights, END])

    def packed(self, asked: list[Lesson]) -> tuple[Packed, np.ndarray]:
        """One sequence, and the number that each of its tokens stands for."""
        rows = [self.taught(lesson) for lesson in asked]
        shared, most = 0, min(len(row.ids) - row.answer for row in rows)
        while shared < most and len({row.ids[shared] for row in rows}) == 1:
            shared += 1
        parts = [(rows[0].ids[:shared], 0, PREFIX, rows[0])]
        parts += [(row.ids[shared:], row.answer, branch, row) for branch, row in enumerate(rows)]
        ids, labels, positions, branches, weights, numbers = [], [], [], [], [], []
        for tokens, answer, branch, row in parts:
            silent = len(tokens) - answer
            start = 0 if branch == PREFIX else shared
            ids += tokens
            labels += [IGNORED] * silent + tokens[silent:]
            positions += range(start, start + len(tokens))
            branches += [branch] * len(tokens)
            weights += [0.0] * silent + (row.weights if answer else [])
            numbers += [np.nan] * silent + (row.numbers if answer else [])
        packed = Packed(
            np.array(ids), np.array(positions), np.array(labels), np.array(branches), np.ones(len(ids), bool),
            np.array(weights, np.float32),
        )  # fmt: skip
        return packed, np.array(numbers, np.float32)

    def _prompted(self, instruction: str) -> tuple[int, ...]:
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}])
        return tuple(self.processor(text=text)["input_ids"][0])

    def _looks(
        self, frame: Frame, asked: list[Lesson], sequence: Packed, places: list[Any], manners: list[Any], row: int
    ) -> Iterator[tuple[str, int, np.ndarray]]:
        """Which tokens look where; notes in `places` and `manners` what tokens should know."""
        hand = self._patches(frame.tool)
        for branch, lesson in enumerate(asked):
            tokens = np.flatnonzero(sequence.branches == branch)
            ids = sequence.input_ids[tokens].tolist()
            if lesson.about is None or self.block not in ids:
                continue
            block, (number, color, side) = self._patches(frame.blocks[lesson.about.number]), lesson.about
            end = ids.index(self.block)
            if side:
                end = next(at for at in range(end, len(ids)) if ids[at] in self.sides)
            answers = answering(sequence, branch) - tokens[0]
            yield "name", int(tokens[end]), block
            if color:
                at = next(at for at, token in enumerate(ids) if token in self.colors)
                alike = [
                    self._patches(place)
                    for place, other in zip(frame.blocks, frame.colors, strict=True)
                    if other == color
                ]
                yield "color", int(tokens[at]), np.maximum.reduce(alike)
            for at in answers[:FIRST]:
                yield "target", int(tokens[at]), block
                yield "hand", int(tokens[at]), hand
                if lesson.acts:
                    manners.append(((row, int(tokens[at])), [MANNERS[word] for word in lesson.manner]))
            place = frame.blocks[number]
            told = np.concatenate([(place[:2] - MIDDLE) / SPAN, (place - frame.tool) / FAR]).astype(np.float32)
            places.append(((row, int(tokens[end]), int(tokens[answers[0]])), told))

    def _patches(self, point: np.ndarray) -> np.ndarray:
        patches = np.zeros(self.side**2, np.float32)
        patches[list(near(point, self.side))] = 1
        return patches


def answering(sequence: Packed, branch: int) -> np.ndarray:
    """The tokens of a sequence that a branch's answer comes from."""
    return np.flatnonzero((sequence.branches == branch) & (sequence.labels != IGNORED)) - 1


def lending(asked: list[Lesson], sequence: Packed) -> Iterator[tuple[int, int]]:
    """Pairs of tokens that the same number comes from, of a lesson in another's manner, and of that other one."""
    for branch, lesson in enumerate(asked):
        if lesson.lender is not None:
            pairs = zip(answering(sequence, branch)[:FIRST], answering(sequence, lesson.lender)[:FIRST], strict=True)
            yield from ((int(to), int(lender)) for to, lender in pairs)
