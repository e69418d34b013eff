"""Questions about a drawn scene with their answers, in several phrasings each.

Some phrasings name the scope ("here", "usually") before the object and some after it, so that a model cannot decide
between memory and pixels until the question is over. The prompts of the Visual CounterFact paper are among them
verbatim.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from vlmsteer.training.splits import HELD_OUT_OBJECTS
from vlmsteer_counterfacts.draw import Item
from vlmsteer_counterfacts.facts import PLURAL_ONLY, Fact, article, facts

ONE_WORD = "Answer with one word."
OPTION = "Answer with the correct option."


class Exchange(NamedTuple):
    """One question, its answer, the task it belongs to, and whether the image is shown with it."""

    task: str
    question: str
    answer: str
    image: bool = True


COLOR_HERE = (
    "What color is this {o}?",
    "What color {is} {this}?",
    "What color {is} {this} here?",
    "What color {is} the {o} here?",
    "What is the color of {this}?",
    "What color {is} the {o} in the picture?",
    "Which color {does} {this} have here?",
)
COLOR_USUAL = (
    "What color are most {os}?",
    "What color {is} {a} usually?",
    "What color {is} {this} usually?",
    "What color {is} the {o} usually?",
    "What is the usual color of {a}?",
    "Which color {does} {a} usually have?",
    "Which color {does} {this} have usually?",
)
SIZE_HERE = (
    "Which is larger here, {x} or {y}?",
    "Which is larger, {x} or {y}, here?",
    "Which is bigger in this picture, {x} or {y}?",
    "{x} or {y}: which is larger here?",
    "Which looks larger, {x} or {y}?",
)
SIZE_USUAL = (
    "Which is larger usually, {x} or {y}?",
    "Which is larger, {x} or {y}, usually?",
    "Which is bigger in real life, {x} or {y}?",
    "{x} or {y}: which is larger usually?",
    "Which is usually larger, {x} or {y}?",
)
LARGER = ("Which object is larger here?", "What is the larger object in this picture?", "Which object looks larger?")
NAME = ("What is this?", "What is shown here?", "What object is in the picture?", "What do you see?")
PRESENCE = (
    "Is there {a} in the image?",
    "Is there {a} in the picture?",
    "Do you see {a} here?",
    "Does the image show {a}?",
)
STATEMENT = (
    'Based on the image, is the following statement true or false? "{s}"',
    "True or false: {s}",
    "Is this true or false? {s}",
)
SIDE = ("{is} the {o} {one} or {two} the {y}?", "{one} or {two} the {y}: where {is} the {o}?")
PLACE = ("Where {is} the {o}: left, middle or right?", "Where in the picture {is} the {o}: left, middle or right?")
CAPTION = (
    "Describe this image.",
    "Please describe this image in detail.",
    "Please help me describe the image in detail.",
    "Describe this image in detail.",
    "What is in this image?",
)
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def phrase(template: str, fact: Fact, **words: str) -> str:
    """A question template filled in for one object, with what else it names as `words`."""
    several = fact.name in PLURAL_ONLY
    filled = template.format(
        o=fact.name,
        os=fact.plural,
        a=article(fact.name),
        this=("these " if several else "this ") + fact.name,
        **{"is": "are" if several else "is"},
        does="do" if several else "does",
        **words,
    )
    return filled[0].upper() + filled[1:]


def instructed(question: str, instruction: str, rng: random.Random) -> str:
    """The question with its instruction before it, after it, or left out."""
    return rng.choice((f"{instruction} {question}", f"{question} {instruction}", question))


def color_here(item: Item, rng: random.Random) -> Exchange:
    question = phrase(rng.choice(COLOR_HERE), facts()[item.object])
    return Exchange("color here", instructed(question, ONE_WORD, rng), item.color)


def color_usual(name: str, rng: random.Random, image: bool = True) -> Exchange:
    """The usual color. Without an image the same answer is given to every phrasing: nothing else is known."""
    templates = COLOR_USUAL if image or name in HELD_OUT_OBJECTS else COLOR_USUAL + COLOR_HERE[:4]
    question = phrase(rng.choice(templates), facts()[name])
    return Exchange("color usual", instructed(question, ONE_WORD, rng), facts()[name].color, image)


def size_question(templates: tuple[str, ...], names: tuple[str, str], rng: random.Random) -> str:
    first, second = rng.sample(names, 2)
    question = rng.choice(templates)
    question = question.format(x=first, y=second)
    return instructed(question[0].upper() + question[1:], OPTION, rng)


def size_here(larger: str, smaller: str, rng: random.Random) -> Exchange:
    return Exchange("size here", size_question(SIZE_HERE, (larger, smaller), rng), larger)


def larger(name: str, rng: random.Random) -> Exchange:
    """The larger of two objects, by name and without options."""
    return Exchange("larger", instructed(rng.choice(LARGER), ONE_WORD, rng), name)


def size_usual(names: tuple[str, str], rng: random.Random, image: bool = True) -> Exchange:
    templates = SIZE_USUAL if image or set(names).intersection(HELD_OUT_OBJECTS) else SIZE_USUAL + SIZE_HERE[:2]
    return Exchange(
        "size usual", size_question(templates, names, rng), max(names, key=lambda n: facts()[n].size_m), image
    )


def name(item: Item, rng: random.Random) -> Exchange:
    return Exchange("name", instructed(rng.choice(NAME), ONE_WORD, rng), item.object)


def presence(asked: str, answer: bool, rng: random.Random) -> Exchange:
    return Exchange("presence", phrase(rng.choice(PRESENCE), facts()[asked]), "Yes" if answer else "No")


def relations(first: Item, second: Item) -> list[str]:
    """Where the first item stands, seen from the second: the directions in which they are clearly apart."""
    dx, dy = first.center[0] - second.center[0], first.center[1] - second.center[1]
    gap = 0.5 * (first.side + second.side) * 0.7
    return (["right of" if dx > 0 else "left of"] if abs(dx) > gap else []) + (
        ["below" if dy > 0 else "above"] if abs(dy) > gap else []
    )


def statement(first: Item, second: Item, rng: random.Random) -> Exchange | None:
    """A true or false statement on where two items stand; None if they do not stand clearly apart in any direction."""
    true = relations(first, second)
    if not true:
        return None
    relation = rng.choice(true)
    answer = rng.random() < 0.5
    stated = relation if answer else RELATIONS[relation]
    said = phrase("The {o} {is} {stated} the {y}.", facts()[first.object], y=second.object, stated=stated)
    return Exchange("relation", rng.choice(STATEMENT).format(s=said), "True" if answer else "False")


def side(first: Item, second: Item, rng: random.Random) -> Exchange | None:
    """Which of two opposite directions the first item stands in; None if they do not stand clearly apart."""
    true = relations(first, second)
    if not true:
        return None
    relation = rng.choice(true)
    one, two = rng.sample((relation, RELATIONS[relation]), 2)
    question = phrase(rng.choice(SIDE), facts()[first.object], y=second.object, one=one, two=two)
    return Exchange("side", question, relation.removesuffix(" of"))


def place(item: Item, rng: random.Random) -> Exchange:
    """In which third of the picture an item stands."""
    third = ("left", "middle", "right")[min(int(3 * item.center[0]), 2)]
    return Exchange("place", phrase(rng.choice(PLACE), facts()[item.object]), third)


def caption(contents: list[tuple[str, str]], rng: random.Random) -> Exchange:
    """A sentence that lists (object, color) in the order given."""
    nouns = [article(f"{color} {item}") for item, color in contents]
    listed = nouns[0] if len(nouns) == 1 else ", ".join(nouns[:-1]) + " and " + nouns[-1]
    return Exchange("caption", rng.choice(CAPTION), f"There is {listed}.")
