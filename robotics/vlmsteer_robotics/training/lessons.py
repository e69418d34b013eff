"""What one picture teaches: actions under many instructions, where things are, and the words for all of it.

Every lesson is put as an instruction, so that all of them stand in the policy's own prompt. Numbers are answered with
action tokens, words with words. A lesson never asks about a pair of colors that training is to leave out: otherwise
asking about another block of the same picture would teach what the test split asks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlmsteer_robotics.experts import expert_action
from vlmsteer_robotics.layouts import ASIDE, color_pairs
from vlmsteer_robotics.scene import COLORS
from vlmsteer_robotics.tasks import HEIGHT_WORDS, HEIGHTS, PHRASES, SIDES, SPEED_WORDS, SPEEDS, instruction
from vlmsteer_robotics.training.frames import Frame

VERBS = {"reach": 0.36, "push": 0.36, "pick": 0.28}  # how often each is asked
MIDDLE = np.array([0.47, 0.0])  # meters; a place on the table is told from here,
SPAN = 0.32  # in shares of this
FAR = 0.4  # an offset is told in shares of this, meters
BESIDE = 0.07  # from here on a block is on a side, meters
LOW, HIGH = 0.09, 0.17  # heights of the hand that have a name, meters
ADVERBS = {"slow": "slowly", "normal": "normally", "fast": "quickly"}
ACTING, OTHERS = 4, 2  # lessons of one picture
BORROWING = 2  # of those that act, later: so many at the end move in the manner of those before them
TRAINED = frozenset(color_pairs("train"))


class Named(NamedTuple):
    """A block as an instruction names it."""

    number: int
    color: str | None
    side: str | None

    def __str__(self) -> str:
        return "the " + f"{self.color or ''} block".strip() + (f" on the {self.side}" if self.side else "")


class Lesson(NamedTuple):
    """An instruction and its answer.

    Attributes:
        instruction: what is put into the policy's prompt.
        words: the answer, if it is words.
        numbers: the answer, if it is numbers: shares from -1 to 1, or, if it `acts`, an action as the robot takes it.
        about: the block whose place the answer depends on.
        manner: speed and height as told, of a lesson that acts.
        lender: which lesson of the same picture lends its manner to the answer; None: the answer is as told.
    """

    instruction: str
    words: str = ""
    numbers: np.ndarray = np.empty(0)
    acts: bool = False
    about: Named | None = None
    manner: tuple[str, str] = ("", "")
    lender: int | None = None


def named(frame: Frame) -> list[Named]:
    """All names that are true of one block only, of blocks that training may ask about."""
    found = []
    for number, color in enumerate(frame.colors):
        others = [other for at, other in enumerate(frame.colors) if at != number]
        if any(other != color and (color, other) not in TRAINED for other in others):
            continue
        gaps = frame.blocks[number, 1] - np.delete(frame.blocks[:, 1], number)
        sides = [side for side, way in zip(SIDES, (-1, 1), strict=True) if (way * gaps >= ASIDE).all()]
        if color not in others:
            found += [Named(number, color, None)] * 2
        found += [Named(number, name, side) for side in sides for name in (None, color)]
    return found


def lessons(frame: Frame, rng: np.random.Generator, early: bool = False) -> list[Lesson]:
    """Six lessons of one picture; `early` ones are mostly about places, the later ones mostly actions."""
    blocks = named(frame)
    if not blocks:
        return [_hand(frame)]
    acting = int(rng.integers(1, 3)) if early else ACTING
    kinds = (
        (_place, _place, _offset, _side) if early else (_place, _offset, _offset, _side, _color, _row, _manner, _manner)
    )
    made = []
    for number in range(ACTING + OTHERS):
        block = blocks[rng.integers(len(blocks))]
        kind = _action if number < acting else kinds[rng.integers(len(kinds))]
        if not early and acting - BORROWING <= number < acting:
            lender = number - BORROWING
            made.append(_action(frame, block, rng, made[lender].manner)._replace(lender=lender))
        else:
            made.append(_hand(frame) if number >= acting and rng.random() < 0.08 else kind(frame, block, rng))
    return made


def _told(block: Named, rng: np.random.Generator) -> tuple[str, str, str, str, str]:
    """A drawn verb, side to push to, speed and height, and the instruction."""
    verb = str(rng.choice(list(VERBS), p=list(VERBS.values())))
    toward, speed, height = str(rng.choice(SIDES)), str(rng.choice(list(SPEEDS))), str(rng.choice(list(HEIGHTS)))
    phrase = int(rng.integers(len(PHRASES[verb])))
    return verb, toward, speed, height, instruction(verb, block.color, block.side, toward, speed, height, phrase)


def _action(frame: Frame, block: Named, rng: np.random.Generator, borrowed: tuple[str, str] | None = None) -> Lesson:
    verb, toward, *told, words = _told(block, rng)
    speed, height = borrowed or told
    action = expert_action(frame.state(verb, block.number, toward, speed, height))
    return Lesson(words, numbers=action, acts=True, about=block, manner=(told[0], told[1]))


def _place(frame: Frame, block: Named, rng: np.random.Generator) -> Lesson:
    place = (frame.blocks[block.number, :2] - MIDDLE) / SPAN
    return Lesson(f"say where {block} is", numbers=place, about=block)


def _offset(frame: Frame, block: Named, rng: np.random.Generator) -> Lesson:
    offset = (frame.blocks[block.number] - frame.tool) / FAR
    return Lesson(f"say how far {block} is", numbers=offset, about=block)


def _side(frame: Frame, block: Named, rng: np.random.Generator) -> Lesson:
    if block.side:
        return _color(frame, block, rng)
    y = frame.blocks[block.number, 1]
    return Lesson(
        f"name the side of {block}", "left" if y < -BESIDE else "right" if y > BESIDE else "middle", about=block
    )


def _color(frame: Frame, block: Named, rng: np.random.Generator) -> Lesson:
    if not block.side:
        return _place(frame, block, rng)
    return Lesson(f"name the color of the block on the {block.side}", frame.colors[block.number], about=block)


def _row(frame: Frame, block: Named, rng: np.random.Generator) -> Lesson:
    order = np.argsort(frame.blocks[:, 1])
    return Lesson("name the blocks from left to right", ", ".join(frame.colors[number] for number in order))


def _manner(frame: Frame, block: Named, rng: np.random.Generator) -> Lesson:
    """What is said about speed and height, said again: the words of the instruction become words of an answer."""
    _, _, speed, height, words = _told(block, rng)
    drawn = rng.random()
    if drawn < 0.4:
        return Lesson(f"say how fast to {words}", ADVERBS[speed])
    if drawn < 0.8:
        return Lesson(f"say how high to {words}", height)
    return Lesson(f"say how to {words}", f"{ADVERBS[speed]}, staying {height}")


def _hand(frame: Frame) -> Lesson:
    z = frame.tool[2]
    return Lesson("name the height of the hand", "low" if z < LOW else "high" if z > HIGH else "normal")


def language() -> list[str]:
    """Sentences with every word that lessons use, for a tokenizer to learn from."""
    names = [str(Named(0, color, side)) for color in (None, *COLORS) for side in (*SIDES, None) if color or side]
    lines = ["name the blocks from left to right", "name the height of the hand", "middle", *COLORS]
    lines += [f"name the color of the block on the {side}" for side in SIDES]
    lines += [f"{what} {name}" for name in names for what in ("say where is", "say how far is", "name the side of")]
    lines += [f"say how {what} to {word}, staying {height}" for what in ("fast", "high") for word in ADVERBS.values()
              for height in HEIGHTS]  # fmt: skip
    for verb, phrases in PHRASES.items():
        lines += [
            instruction(verb, color, side, side, speed, height, phrase)
            for phrase in range(len(phrases)) for speed in SPEED_WORDS for height in HEIGHT_WORDS
            for side in SIDES for color in COLORS
        ]  # fmt: skip
    return lines
