"""What a model makes up as examples: which captions, and where they are cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import vlmsteer
from vlmsteer.bench.drawn_examples import drawn_examples
from vlmsteer.bench.fitting import answered, learned
from vlmsteer.bench.hallucination import mentions
from vlmsteer.bench.own_captions import cut_captions, own_captions
from vlmsteer.examples import Example
from vlmsteer.methods import iti
from vlmsteer.methods.method import Method
from vlmsteer.recipe import Recipe

RIGHT = "There is a red tomato, a green tree and a gray mouse."


@pytest.fixture(scope="module")
def tiny() -> Any:
    return vlmsteer.load("tiny-llava")


def cut(wrong: str, seed: int = 0, right: str = RIGHT) -> tuple[str, str] | None:
    made = cut_captions([Example(None, "Describe.", right, wrong, "one")], seed=seed)
    return (made[0].right, made[0].wrong) if made else None


def test_a_caption_is_cut_before_what_is_made_up_and_before_what_is_true_or_the_end() -> None:
    assert cut("There is a red tomato and a white sheep.") == (
        "There is a red tomato and a white sheep",  # nothing follows
        "There is a red tomato",  # an absent sheep follows
    )
    told = "There is a red tomato, a green tree, a white sheep and a brown crow."
    found = {cut(told, seed) for seed in range(40)}
    first = "There is a red tomato"
    fine, bad = {first, told[:-1]}, {"There is a red tomato, a green tree", told[: told.index(" and")]}
    assert found == {(right, wrong) for right in fine for wrong in bad}


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "There is nothing.",
        "There is a white sheep.",  # the first object has none before it
        "There is a white sheep and a red tomato.",  # nothing made up follows a name
        "There is a red tomato and a green tree.",
    ],
)
def test_captions_without_a_place_of_each_kind_are_left_out(wrong: str) -> None:
    assert cut(wrong) is None


def test_cuts_depend_on_the_group_and_the_seed_alone_and_words_may_be_given() -> None:
    told = "There is a tomato, a tree, a sheep and a crow."
    examples = [Example(None, "Describe.", RIGHT, told, f"{i}") for i in range(30)]
    made = cut_captions(examples)
    assert made == cut_captions(examples) != cut_captions(examples, seed=1)
    assert cut_captions(examples[::-1]) == made[::-1] and len({one.wrong for one in made}) == 2
    told = "A  fire truck\nand a dog."
    words = {"fire truck": "fire truck", "dog": "dog"}
    (one,) = cut_captions([Example(None, "?", "A fire truck.", told, "a")], words)
    assert (one.right, one.wrong) == ("A fire truck and a dog", "A fire truck")


def test_the_kind_cut_is_the_models_own_captions_cut(tiny: Any) -> None:
    scenes = drawn_examples("captions", "learn", 16, data="lures")
    own, made = own_captions(tiny, scenes), answered(tiny, "cut", scenes)
    assert made == cut_captions(own) and 2 < len(made) <= len(own) < 16
    whole = {one.group: one for one in own}
    for one in made:
        told = whole[one.group]
        assert told.wrong.startswith(one.wrong) and told.wrong.startswith(one.right) and one.image is told.image
        following = mentions(told.wrong)[len(mentions(one.wrong))]
        assert following not in mentions(told.right)
        rest = mentions(told.wrong)[len(mentions(one.right)) :]
        assert not rest or rest[0] in mentions(told.right)
        assert replace(one, right=told.right, wrong=told.wrong) == told


def test_heads_tell_what_comes_next_and_a_method_learns_from_cut_captions(tiny: Any) -> None:
    made = Method("made", "Made for a test", "no paper", "captions", iti.learn)
    recipe = learned(tiny, made, "lures", 120, 0, needs="cut", heads=3, spread="answer")
    assert isinstance(recipe, Recipe) and len(recipe.about["heads"]) == 3
    assert min(head["accuracy"] for head in recipe.about["heads"]) > 0.75
