"""What the robot can be told: three verbs, a block by its color or its side, a speed, a height.

A task is a name: `reach`, `push` or `pick` alone, where each episode draws how its block is named, or with a color, a
side or both (`reach-red`, `push-left`, `pick-red-left`). Left and right are those of the picture. The words for speed
and height change how the expert moves and nothing about success.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_robotics.scene import COLORS

VERBS = {"reach": 40, "push": 40, "pick": 60}  # with the most steps an episode takes
SIDES = ("left", "right")
SPEEDS = {"slow": 0.02, "normal": 0.04, "fast": 0.06}  # meters a step
HEIGHTS = {"low": 0.095, "normal": 0.14, "high": 0.21}  # of the finger tips on the way, meters above the table
SPEED_WORDS = {"slow": " slowly", "normal": "", "fast": " quickly"}
HEIGHT_WORDS = {"low": ", staying low", "normal": "", "high": ", staying high"}
PHRASES = {
    "reach": ("reach {block}", "go to {block}", "move to {block}"),
    "push": ("push {block} to the {toward}", "move {block} to the {toward}", "slide {block} to the {toward}"),
    "pick": ("put {block} in the tray", "place {block} in the tray", "pick up {block} and put it in the tray"),
}


@dataclass(frozen=True)
class Task:
    """A verb and how the block is named; neither color nor side: each episode draws which of them, and its value."""

    verb: str
    color: str | None = None
    side: str | None = None

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.verb, self.color, self.side)))

    @property
    def steps(self) -> int:
        """The most steps an episode takes."""
        return VERBS[self.verb]


TASKS = {
    task.name: task
    for verb in VERBS
    for task in (
        Task(verb),
        *(Task(verb, color) for color in COLORS),
        *(Task(verb, None, side) for side in SIDES),
        *(Task(verb, color, side) for color in COLORS for side in SIDES),
    )
}


def task(name: str | Task) -> Task:
    """The task of a name.

    Raises:
        InputError: there is no such task.
    """
    if isinstance(name, Task):
        return name
    if name not in TASKS:
        raise InputError(f"There is no task {name!r}{did_you_mean(str(name), TASKS)}.")
    return TASKS[name]


def instruction(
    verb: str,
    color: str | None = None,
    side: str | None = None,
    toward: str = "left",
    speed: str = "normal",
    height: str = "normal",
    phrase: int = 0,
) -> str:
    """The sentence that tells the robot what to do.

    Args:
        verb: `reach`, `push` or `pick`.
        color: names the block by its color; with `side` by both.
        side: names the block by its side of the table.
        toward: the side that `push` pushes to.
        speed: `slow`, `normal` or `fast`; `normal` is not said.
        height: `low`, `normal` or `high`; `normal` is not said.
        phrase: which of three wordings.

    Raises:
        InputError: a value is none of the possible ones, or the block is not named.

    Example:
        >>> instruction("reach", "red", "left", speed="slow", height="high")
        'reach the red block on the left slowly, staying high'
    """
    check("verb", verb, VERBS)
    check("speed", speed, SPEEDS)
    check("height", height, HEIGHTS)
    check("side to push to", toward, SIDES)
    check("wording", phrase, range(len(PHRASES[verb])))
    if color is None and side is None:
        raise InputError("The block is not named; give its color, its side or both.")
    if color is not None:
        check("color", color, COLORS)
    if side is not None:
        check("side", side, SIDES)
    block = "the " + (f"{color} " if color else "") + "block" + (f" on the {side}" if side else "")
    words = PHRASES[verb][phrase].format(block=block, toward=toward)
    return words + SPEED_WORDS[speed] + HEIGHT_WORDS[height]


def check(what: str, given: object, possible: object) -> None:
    """Refuse a value that is none of the possible ones, with a sentence that lists them."""
    names = list(possible)  # type: ignore[call-overload]
    if given not in names:
        raise InputError(f"The {what} {given!r} is unknown{did_you_mean(str(given), map(str, names))}.")
