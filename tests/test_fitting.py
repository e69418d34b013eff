"""A method is learned on the examples it needs, and set up on scenes that nothing else is measured on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_recipes import recipe

import vlmsteer
from vlmsteer.bench import fitting
from vlmsteer.bench.compare import Trial
from vlmsteer.bench.drawn_examples import drawn_examples
from vlmsteer.bench.fitting import fit, learned, material, windows
from vlmsteer.bench.hallucination import mentions
from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.bench.statistics import Rate
from vlmsteer.errors import InputError
from vlmsteer.examples import Example, save_examples
from vlmsteer.methods import pvp
from vlmsteer.methods.method import NEEDS, Method
from vlmsteer.recipe import Recipe, Rule

Settings = Sequence[tuple[float, list[int] | None]]


@pytest.fixture(scope="module")
def tiny() -> Any:
    return vlmsteer.load("tiny-llava")


def method(learn: Any, needs: str = "nothing", **more: Any) -> Method:
    return Method("made", "Made for a test", "no paper", needs, learn, **more)


def test_windows_are_all_layers_and_three_halves() -> None:
    assert windows(8) == [None, [0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    assert windows(5) == [None, [0, 1], [1, 2], [3, 4]]
    assert windows(32)[1:] == [list(range(16)), list(range(8, 24)), list(range(16, 32))]
    assert windows(3) == [None]


@pytest.mark.parametrize("needs", sorted(set(NEEDS) - {"own", "cut"}))
def test_every_kind_of_needs_gets_its_examples(needs: str) -> None:
    given: list[Any] = []

    def learn(session: Any, examples: Sequence[Any], *, weight: float = 1.0) -> Recipe:
        given.extend([session, weight, *examples])
        return Recipe(())

    learned("no session", method(learn, needs), "drawn", 6, 3, weight=0.5)  # pyright: ignore[reportArgumentType]
    assert given[:2] == ["no session", 0.5]
    if needs == "nothing":
        assert len(given) == 2
    elif needs == "pairs":
        pairs = drawn_pairs("color", "learn", 6, 3)
        assert [one[0].tobytes() for one in given[2:]] == [pair.image("counterfactual").tobytes() for pair in pairs]
        assert all("this" in this and "most" in most for _, this, most in given[2:])
    else:
        assert given[2:] == drawn_examples(needs, "learn", 6, 3)
        assert all((one.edited is not None) == (needs == "edits") for one in given[2:])


def test_own_examples_are_what_the_model_itself_gets_wrong(tiny: Any) -> None:
    given: list[Example] = []
    learned(tiny, method(lambda session, examples: given.extend(examples) or Recipe(()), "own"), "lures", 12)
    scenes = {one.group: one for one in drawn_examples("captions", "learn", 12, data="lures")}
    assert 2 < len(given) < 12
    for one in given:
        scene = scenes.pop(one.group)
        assert one.wrong == tiny.ask(scene.image, scene.question, max_new_tokens=64)
        assert (one.right, set(mentions(one.wrong)) <= set(mentions(one.right))) == (scene.right, False)
    for scene in scenes.values():
        named = mentions(tiny.ask(scene.image, scene.question, max_new_tokens=64))
        assert set(named) <= set(mentions(scene.right))


def test_a_variant_may_need_other_examples() -> None:
    kinds: list[str] = []

    def learn(session: Any, examples: Sequence[Example]) -> Recipe:
        kinds.append(examples[0].kind)
        return Recipe(())

    for options in ({}, {"needs": "captions"}):
        learned(None, method(learn, "presence"), "drawn", 2, **options)  # pyright: ignore[reportArgumentType]
    assert kinds == ["presence", "caption"]


def test_a_file_without_the_kind_is_refused(tmp_path: Path) -> None:
    save_examples(tmp_path / "set.jsonl", drawn_examples("captions", "learn", 8))
    assert 0 < len(material("captions", str(tmp_path / "set.jsonl"), 100)) < 8  # half of a file is to learn from
    with pytest.raises(InputError, match="0 examples of the kind 'presence'"):
        material("presence", str(tmp_path / "set.jsonl"), 100)


def test_pvp_pairs_are_learned_as_its_own_command_learns_them(tiny: Any) -> None:
    from vlmsteer.demo import learn

    through = learned(tiny, pvp.METHOD, "drawn", 6, layers=[1, 2])
    assert through.hash == learn(tiny, drawn_pairs("color", "learn", 6)).recipe(1.0, [1, 2]).hash


class Made:
    """Trials whose results are a formula of strength, layers and recipe; they remember what they were asked."""

    def __init__(self, formula: Any) -> None:
        self.formula, self.calls = formula, []

    def __call__(self, session: Any, recipe: Recipe, settings: Settings, captions: Any, presence: Any) -> list[Trial]:
        self.calls.append((recipe, list(settings), captions, presence))
        found = []
        for strength, layers in settings:
            known = {"chair_i": 0.0, "chair_s": 0.0, "recall": 0.0, "accuracy": 0.0 if presence else math.nan}
            known |= self.formula(strength, layers, recipe)
            change = {name: Rate(value, 100, (value, value)) for name, value in known.items()}
            found.append(Trial(strength, {}, change, layers))
        return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Few validation scenes, and trials made by a formula."""

    def use(formula: Any) -> Made:
        made = Made(formula)
        for name, value in (("SCENES", 4), ("AGAIN", 6), ("QUESTIONS", 4)):
            monkeypatch.setattr(fitting, name, value)
        monkeypatch.setattr(fitting, "trials", made)
        return made

    return use


def test_the_setting_that_helps_within_the_cost_is_taken(tiny: Any, small: Any) -> None:
    whole = recipe(tiny, "text.*.block_out")
    half = windows(tiny.layers())[3]
    assert half is not None

    def formula(strength: float, layers: list[int] | None, recipe: Recipe) -> dict[str, float]:
        if strength == 4.0:
            return {"chair_i": -0.5, "recall": -0.3}
        return {"chair_i": -0.1 * strength if layers == half else 0.02}

    made = small(formula)
    fitted = fit(tiny, method(lambda session, examples: whole, strengths=(1.0, 2.0, 4.0)), "drawn", 4)
    assert (fitted.strength, fitted.layers, fitted.helps) == (2.0, half, True)
    assert fitted.recipe.hash == replace(whole.scaled(2.0).narrowed(half), about=fitted.recipe.about).hash
    assert fitted.recipe.about["chosen"] == {"strength": 2.0, "layers": half, "variant": {}, "helps": True}
    (_, first, scenes, none), (_, second, others, asked) = made.calls
    assert len(first) == 3 * len(windows(tiny.layers())) and set(map(str, second)) < set(map(str, first))
    assert len(second) == fitting.FINALISTS and (len(scenes), len(none), len(others)) == (4, 0, 6)
    assert not {one.group for one in scenes} & {one.group for one in others} and asked
    assert json.loads(json.dumps(fitted.as_dict()))["tried"][0]["change"]["chair_i"]["rate"] == pytest.approx(-0.2)


def test_where_nothing_helps_the_papers_setting_is_kept(llava: Any, small: Any) -> None:
    whole = recipe(llava, "text.*.block_out")
    for change in ({"chair_i": 0.01}, {"chair_i": -0.2, "accuracy": -0.05}):
        small(lambda strength, layers, recipe, change=change: {name: strength * v for name, v in change.items()})
        fitted = fit(llava, method(lambda session, examples: whole, strengths=(0.5, 2.0)), "drawn", 4)
        assert (fitted.strength, fitted.layers, fitted.helps) == (1.0, None, False)
        assert [edit.strength for edit in fitted.recipe.edits] == [edit.strength for edit in whole.edits]
        assert set(fitted.recipe.edits[0].vectors.layers) == set(whole.edits[0].vectors.layers)
        assert fitted.recipe.about["chosen"]["helps"] is False


def test_the_variant_that_helps_is_taken(llava: Any, small: Any) -> None:
    def learn(session: Any, examples: Sequence[Any], *, seed: int = 0) -> Recipe:
        return recipe(llava, "text.0.block_out", seed=seed)

    good = learn(llava, (), seed=7)
    small(lambda strength, layers, recipe: {"chair_i": -0.1 if recipe.hash == good.hash else 0.1})
    fitted = fit(llava, method(learn, strengths=(1.0,), variants=({"seed": 3}, {"seed": 7})), "drawn", 4)
    assert fitted.helps and fitted.recipe.about["chosen"]["variant"] == {"seed": 7}
    assert replace(fitted.recipe, about={}).hash == good.hash


def test_rules_and_single_layers_are_tried_whole(llava: Any, small: Any) -> None:
    rules = Recipe((), rules=(Rule("self_logits", {"first": 0.5, "last": 1.0, "normed": False}),))
    for whole in (rules, recipe(llava, "text.1.block_out"), recipe(llava, "vision.*.block_out", positions="all")):
        made = small(lambda strength, layers, recipe: {"chair_i": -0.1})
        fit(llava, method(lambda session, examples, whole=whole: whole, strengths=(1.0, 2.0)), "drawn", 4)
        assert made.calls[0][1] == [(1.0, None), (2.0, None)]


def test_a_small_file_of_captions_alone_will_do(llava: Any, small: Any, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    save_examples(path, drawn_examples("captions", "learn", 14))
    made = small(lambda strength, layers, recipe: {"chair_i": -0.1 * strength})
    whole = recipe(llava, "text.1.block_out")
    fitted = fit(llava, method(lambda session, examples: whole, strengths=(1.0, 2.0)), str(path), 4, questions=0)
    (_, _, scenes, _), (_, _, others, presence) = made.calls
    groups = [{one.group for one in part} for part in (scenes, others)]
    assert all(groups) and not groups[0] & groups[1] and presence == []
    assert fitted.strength == 2.0 and fitted.helps
