"""Recipes add, scale and negate; each kind of edit, gate and rule survives a file; controls keep what is comparable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, recipe
from PIL import Image
from safetensors.torch import save

from vlmsteer.errors import RecipeError, VlmsteerError
from vlmsteer.operations import DIRECTED, OPERATIONS, WIDTHS
from vlmsteer.recipe import RULES, SCORES, Edit, Gate, Recipe, Rule
from vlmsteer.sites import Site
from vlmsteer.vectors import PerQuestion, Vectors

Pictures = list[Image.Image]
WIDTH = 12
MODEL = {"id": "m", "revision": None, "architecture": "A", "shapes": "s"}


def vector(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gate(score: str = "cosine", seed: int = 0) -> Gate:
    return Gate(Site("text", 0, "block_out"), vector(seed, WIDTH), 0.25, score, "all", "below", -0.5)


def edit(operation: str = "add", positions: Any = "last", **more: Any) -> Edit:
    layers = {layer: vector(layer, WIDTH * WIDTHS.get(operation, 1)) for layer in (3, 1)}
    return Edit(Vectors("text", "block_out", layers), operation, 0.5, positions, **more)


def kinds() -> dict[str, Recipe]:
    """One of every kind of edit, gate and rule."""
    made = {name: Recipe((edit(name),), MODEL, {"method": name}) for name in OPERATIONS}
    holes = torch.where(vector(1, WIDTH) > 0, vector(2, WIDTH), torch.nan)
    made["holes"] = Recipe((Edit(Vectors("text", "neuron", {0: holes}), "clamp"),))
    tokens = Vectors("vision", "mlp_out", {0: vector(0, 4, WIDTH), 1: vector(1, 4, WIDTH)})
    made["tokens"] = Recipe((Edit(tokens, "add_keep_norm", 0.9, "all"),))
    made |= {f"gate {score}": Recipe((edit(gate=gate(score)), edit())) for score in SCORES}
    asked = PerQuestion("text", "mlp_out", (2, 0), factor=0.5, seed=7)
    made["question"] = Recipe((Edit(asked, "add_opposed_keep_norm", 0.1, "all", gate=gate()),), MODEL)
    settings = {"layers": [1, 2], "share": 0.3, "normed": True, "words": ["a", None], "nested": {"k": 0.5}}
    tensors = {
        "weight": vector(0, 2, 3),
        "deep.bias": vector(1, 3),
        "scalar": torch.tensor(0.5),
        "on": torch.ones(2).bool(),
    }
    made |= {f"rule {name}": Recipe((), MODEL, {}, (Rule(name, settings, 0.7, tensors),)) for name in RULES}
    made["rules"] = Recipe(
        (edit(),), rules=tuple(Rule("contrast", {"i": i}, i, {"v": vector(i, 2)}) for i in range(12))
    )
    made["sum"] = made["scale"] + made["gate cosine"] + made["question"] + made["rule overtrust"]
    made["empty"] = Recipe(())
    return made


@pytest.mark.parametrize("name", kinds())
def test_files_hold_everything(name: str, tmp_path: Path) -> None:
    made = kinds()[name]
    made.save(tmp_path / "a.safetensors")
    loaded = Recipe.load(tmp_path / "a.safetensors")
    assert loaded.hash == made.hash and loaded.header() == json.loads(json.dumps(made.header()))
    assert {key: tensor.shape for key, tensor in loaded._tensors().items()} == {
        key: tensor.shape for key, tensor in made._tensors().items()
    }
    assert (loaded * 2.0).hash == (made * 2.0).hash
    assert loaded.random_like(5).hash == made.random_like(5).hash
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_hashes_differ() -> None:
    """Whatever is changed in a recipe changes its hash."""
    one = kinds()["sum"]
    first, gated = one.edits[0], one.edits[1]
    assert gated.gate is not None and isinstance(one.edits[3].vectors, PerQuestion)
    asked, rule = one.edits[3].vectors, one.rules[0]
    changed: list[Recipe] = [
        one * 2.0, -one, one.random_like(0), one.random_like(1), one + one, one.for_any_model(),
        *(replace(one, edits=(replace(first, gate=gate(seed=seed)),)) for seed in (0, 1)),
        *(
            replace(one, edits=(replace(gated, gate=replace(gated.gate, **{name: value})),))
            for name, value in [
                ("threshold", 0.3), ("bias", 0.1), ("when", "above"), ("positions", "last"), ("score", "logistic"),
                ("site", Site("text", 0, "mlp_out")),
            ]
        ),
        *(
            replace(one, edits=(replace(one.edits[3], vectors=replace(asked, **{name: value})),))
            for name, value in [("factor", 2.0), ("seed", None), ("seed", 8), ("layers", (1,))]
        ),
        *(
            replace(one, rules=(replace(rule, **{name: value}),))
            for name, value in [("strength", 1.0), ("settings", {}), ("tensors", {}), ("name", "rollback")]
        ),
    ]  # fmt: skip
    assert len({one.hash, *(other.hash for other in changed)}) == len(changed) + 1


def test_a_sum_is_both_in_order(session: Any, pictures: Pictures) -> None:
    """Adding, then replacing, is not replacing, then adding; a sum nests as two blocks do."""
    one = recipe(session, "text.1.block_out", "add", positions="all", seed=1, size=2.0)
    two = recipe(session, "text.1.block_out", "scale", positions="all", seed=2)
    for first, second in ((one, two), (two, one)):
        found = session.logits(pictures, QUESTIONS, first + second)
        assert torch.equal(found, session.logits(pictures, QUESTIONS, both(first, second)))
        with session.apply(first), session.apply(second):
            torch.testing.assert_close(session.logits(pictures, QUESTIONS), found, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(
        session.logits(pictures, QUESTIONS, one + two), session.logits(pictures, QUESTIONS, two + one), atol=1e-2
    )
    rows = session.logits(pictures, QUESTIONS, [one + two, two + one, None])
    alone = [session.logits(pictures, QUESTIONS, steer) for steer in (one + two, two + one, None)]
    for row in range(3):
        torch.testing.assert_close(rows[row], alone[row][row], atol=1e-4, rtol=1e-4)
    assert session.ask_grid(pictures, QUESTIONS, [one + two, None], 3) == [
        list(pair)
        for pair in zip(
            session.ask_many(pictures, QUESTIONS, one + two, 3),
            session.ask_many(pictures, QUESTIONS, None, 3),
            strict=True,
        )
    ]


def test_numbers_multiply_every_strength(session: Any, pictures: Pictures) -> None:
    steer = recipe(session, "text.1.block_out", size=2.0) + recipe(session, "text.2.mlp_out", seed=1, positions="all")
    for factor in (2, -1.5, 0.25):
        scaled = Recipe(tuple(replace(part, strength=factor * part.strength) for part in steer.edits))
        expected = session.logits(pictures, QUESTIONS, scaled)
        for found in (factor * steer, steer * factor, steer.scaled(factor)):
            assert torch.equal(session.logits(pictures, QUESTIONS, found), expected)
            assert found.about == steer.about
    assert (-steer).hash == (-1 * steer).hash and (-1 * -steer).hash == steer.hash
    plain = session.logits(pictures, QUESTIONS)
    assert torch.equal(session.logits(pictures, QUESTIONS, 0 * steer), plain)


def test_an_edit_and_its_opposite_cancel(session: Any, pictures: Pictures) -> None:
    steer = recipe(session, "text.1.block_out", size=2.0, positions="all")
    found = session.logits(pictures, QUESTIONS, steer + -steer)
    torch.testing.assert_close(found, session.logits(pictures, QUESTIONS), atol=1e-3, rtol=1e-3)


def test_rules_are_scaled_and_joined() -> None:
    one, two = Recipe((), rules=(Rule("contrast", strength=0.5),)), Recipe((edit(),), rules=(Rule("overtrust"),))
    assert [(rule.name, rule.strength) for rule in (2 * (one + two)).rules] == [("contrast", 1.0), ("overtrust", 2.0)]
    assert (one + two).decoding and not (0 * (one + two)).decoding
    assert not (one + two).last_only and two.edits == (one + two).edits


def test_what_a_sum_says_of_itself() -> None:
    one, two, three = (Recipe((edit(),), MODEL, {"method": name, "n": i}) for i, name in enumerate("abc"))
    total = one + two + three
    assert total.about["method"] == "a + b + c" and [part["n"] for part in total.about["parts"]] == [0, 1, 2]
    assert (one + (two + three)).hash == total.hash and total.model == MODEL
    assert (one + Recipe((edit(),))).model == MODEL and (Recipe((edit(),)) + one).model == MODEL


@pytest.mark.parametrize("key", MODEL)
def test_other_models_do_not_add(key: str) -> None:
    one, two = Recipe((edit(),), MODEL), Recipe((edit(),), {**MODEL, key: "other"})
    with pytest.raises(RecipeError, match="another model"):
        _ = one + two
    assert len((one + two.for_any_model()).edits) == 2


@pytest.mark.parametrize("factor", [math.nan, math.inf, "2", None, True, [1.0], torch.ones(2)])
def test_factors_that_are_no_numbers(factor: Any) -> None:
    for steer in (Recipe((edit(),)), Recipe((), rules=(Rule("contrast"),))):
        with pytest.raises(RecipeError, match="strength is a finite number"):
            steer.scaled(factor)


def damage(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Rewrite a recipe file with its header and tensors changed."""
    made = Recipe.load(path)
    header, tensors = json.loads(json.dumps(made.header())), made._tensors()
    change(header, tensors)
    kept = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    path.write_bytes(save(kept, {"vlmsteer": json.dumps(header)}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rule = Rule("self_logits", {"layers": [1], "share": 0.3}, tensors={"t": torch.ones(2)})
    asked = Edit(PerQuestion("text", "mlp_out", (0, 1)), "add", 1.0, "all")
    Recipe((edit(gate=gate()), asked), MODEL, {}, (rule,)).save(tmp_path / "steer.safetensors")
    return tmp_path / "steer.safetensors"


ODD: list[Any] = [None, 3, "x", "", [], {}, [["a"]], 10**400, math.nan]
GATE = ["site", "threshold", "score", "positions", "when", "bias"]


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:6])
@pytest.mark.parametrize("key", GATE)
def test_gates_of_wrong_types(key: str, value: Any, saved: Path) -> None:
    if (key, value) in [("threshold", 3), ("bias", 3)]:
        return
    damage(saved, lambda header, _: header["edits"][0]["gate"].update({key: value}))
    with pytest.raises(VlmsteerError):
        Recipe.load(saved)


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:6])
@pytest.mark.parametrize("key", ["read_point", "factor", "seed"])
def test_questions_of_wrong_types(key: str, value: Any, saved: Path) -> None:
    if (key, value) in [("factor", 3), ("seed", 3), ("seed", None)]:
        return
    damage(saved, lambda header, _: header["edits"][1]["per_question"].update({key: value}))
    with pytest.raises(VlmsteerError):
        Recipe.load(saved)


@pytest.mark.parametrize("value", [*ODD, ["0"], [True], [0.5], [-1]], ids=lambda value: str(value)[:6])
def test_questions_layers_of_wrong_types(value: Any, saved: Path) -> None:
    damage(saved, lambda header, _: header["edits"][1].update({"layers": value}))
    with pytest.raises(VlmsteerError):
        Recipe.load(saved)


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:6])
@pytest.mark.parametrize("key", ["name", "settings", "strength"])
def test_rules_of_wrong_types(key: str, value: Any, saved: Path) -> None:
    if (key, value) in [("strength", 3), ("settings", ""), ("settings", []), ("settings", {})]:
        return
    damage(saved, lambda header, _: header["rules"][0].update({key: value}))
    with pytest.raises(VlmsteerError):
        Recipe.load(saved)


def _without(key: str, *path: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(header: dict[str, Any], _: Any) -> None:
        place: Any = header
        for step in path:
            place = place[step]
        del place[key]

    return change


DAMAGES: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]] = {
    "no gate tensor": lambda header, tensors: tensors.pop("0.gate"),
    "no vector": lambda header, tensors: tensors.pop("0.1"),
    "gate of two axes": lambda header, tensors: tensors.update({"0.gate": torch.ones(2, 3)}),
    "zero gate": lambda header, tensors: tensors.update({"0.gate": torch.zeros(WIDTH)}),
    "gate with NaN": lambda header, tensors: tensors.update({"0.gate": torch.full((WIDTH,), math.nan)}),
    "unknown rule": lambda header, _: header["rules"][0].update(name="self_logit"),
    "unknown score": lambda header, _: header["edits"][0]["gate"].update(score="cosin"),
    "unknown gate field": lambda header, _: header["edits"][0]["gate"].update(more=1),
    "unknown question field": lambda header, _: header["edits"][1]["per_question"].update(more=1),
    "rules a dict": lambda header, _: header.update(rules={"a": 1}),
    "rules a number": lambda header, _: header.update(rules=3),
    "rules None": lambda header, _: header.update(rules=None),
    "rules of text": lambda header, _: header.update(rules=["self_logits"]),
    "gate a list": lambda header, _: header["edits"][0].update(gate=[]),
    "gate text": lambda header, _: header["edits"][0].update(gate="x"),
    "gate None": lambda header, _: header["edits"][0].update(gate=None),
    "question a list": lambda header, _: header["edits"][1].update(per_question=[1]),
    "no rule name": _without("name", "rules", 0),
    "no rule settings": _without("settings", "rules", 0),
    "no rule strength": _without("strength", "rules", 0),
    "no gate site": _without("site", "edits", 0, "gate"),
    "no gate threshold": _without("threshold", "edits", 0, "gate"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_headers(name: str, saved: Path) -> None:
    damage(saved, DAMAGES[name])
    with pytest.raises(RecipeError):
        Recipe.load(saved)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_controls(operation: str) -> None:
    """Directions keep length and zeros; factors and values are the same numbers at other dimensions."""
    numbers = vector(1, 40 * WIDTHS.get(operation, 1)) * (vector(2, 40 * WIDTHS.get(operation, 1)) > 0)
    given = Vectors("text", "block_out", {0: numbers, 1: 2 * numbers})
    made = Edit(given, operation, 0.5, gate=gate())
    for seed in (100, 101):
        control = made.random_like(seed)
        assert control.gate is made.gate and control.operation == operation and control.strength == 0.5
        assert isinstance(control.vectors, Vectors)
        for layer, other in control.vectors.layers.items():
            own = given.layers[layer]
            assert not torch.equal(other, own)
            if operation in DIRECTED:
                torch.testing.assert_close(other.norm(), own.norm())
                assert torch.equal(other == 0, own == 0)
                assert torch.cosine_similarity(other, own, dim=0).abs() < 0.9
                continue
            halves = WIDTHS.get(operation, 1)
            own, other = own.view(halves, -1), other.view(halves, -1)
            assert sorted(map(tuple, own.T.tolist())) == sorted(map(tuple, other.T.tolist()))
    one, again, two = (Recipe((made.random_like(seed),)).hash for seed in (0, 0, 1))
    assert one == again != two


def test_controls_of_holes_and_heads() -> None:
    """Clamps leave as many dimensions alone; factors of heads go to other heads."""
    holes = torch.where(vector(1, 30) > 0, vector(2, 30), torch.nan)
    control = Edit(Vectors("text", "neuron", {0: holes}), "clamp").random_like(0).vectors
    assert isinstance(control, Vectors)
    assert sorted(control.layers[0][~control.layers[0].isnan()].tolist()) == sorted(holes[~holes.isnan()].tolist())
    heads = torch.tensor([4.0, 0, 0, 0, 4.0, 0])
    control = Edit(Vectors("text", "head", {0: heads}), "mean_of_others", positions="all").random_like(1).vectors
    assert isinstance(control, Vectors) and sorted(control.layers[0].tolist()) == sorted(heads.tolist())


def test_controls_do_not_depend_on_the_order_of_layers() -> None:
    """Recipes with one hash have one control; a file keeps layers sorted."""
    up, down = ({layer: vector(layer, 8) for layer in order} for order in ((0, 1, 2), (2, 1, 0)))
    for operation in ("add", "scale"):
        one, two = (Recipe((Edit(Vectors("text", "block_out", layers), operation),)) for layers in (up, down))
        assert one.hash == two.hash
        assert one.random_like(3).hash == two.random_like(3).hash
    states = {layer: vector(9 + layer, 8) for layer in range(3)}
    one, two = (PerQuestion("text", "mlp_out", order, seed=1).of(states) for order in ((0, 1, 2), (2, 1, 0)))
    assert all(torch.equal(one.layers[layer], two.layers[layer]) for layer in range(3))
