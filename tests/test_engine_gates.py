"""What an edit acts on: the rows that its gate lets through at their prompts, and tokens with vectors of their own."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, hooks, recipe
from PIL import Image
from raw_models import eyes
from torch import Tensor

from vlmsteer.errors import RecipeError, SiteError, VlmsteerError
from vlmsteer.recipe import Edit, Gate, Recipe
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
ASKED = [*QUESTIONS, "a", "What is it, here?", "yellow or blue"]
READ, STEPS = "text.0.block_out", 6


def shown(pictures: Pictures) -> Pictures:
    return [pictures[i % 3] for i in range(len(ASKED))]


def looking(session: Any, site: str = READ, seed: int = 5) -> Tensor:
    return torch.randn(session.taps[Site.parse(site)].width, generator=torch.Generator().manual_seed(seed))


def gated(steer: Recipe, gate: Gate) -> Recipe:
    return Recipe(tuple(replace(edit, gate=gate) for edit in steer.edits))


def scores(session: Any, images: Any, questions: Any, gate: Gate) -> Tensor:
    """(rows,) a gate's scores, from the states of each prompt read alone."""
    found = []
    for image, question in zip(images, questions, strict=True):
        with session.read(gate.site, "all") as seen:
            session.logits([image], [question])
        states = seen.rows(gate.site)[0].double()
        state, direction = states[-1] if gate.positions == "last" else states.mean(0), gate.direction.double()
        if gate.score == "logistic":
            found.append(1 / (1 + torch.exp(-(state @ direction) - gate.bias)))
            continue
        if gate.score == "projected":
            direction = torch.tanh(torch.outer(direction, direction) / (direction @ direction) @ state)
        found.append(state @ direction / state.norm() / direction.norm())
    return torch.stack(found)


def split(session: Any, images: Any, questions: Any, gate: Gate) -> tuple[Gate, list[bool]]:
    """The gate with a threshold that lets about half of the rows through, and which."""
    found = scores(session, images, questions, gate)
    ordered = found.sort().values
    middle = float(ordered[len(found) // 2 - 1 : len(found) // 2 + 1].mean())
    acts = found > middle if gate.when == "above" else found < middle
    assert acts.any() and not acts.all()
    return replace(gate, threshold=middle), acts.tolist()


def gate_of(session: Any, **options: Any) -> Gate:
    site = options.pop("site", READ)
    return Gate(Site.parse(site), looking(session, site, options.pop("seed", 5)), 0.0, **options)


def close(seen: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)


def alone(session: Any, images: Any, questions: Any, recipes: Any) -> Tensor:
    rows = zip(images, questions, recipes, strict=True)
    return torch.cat([session.logits([image], [question], steer) for image, question, steer in rows])


@pytest.mark.parametrize("when", ["above", "below"])
@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("score", ["cosine", "projected", "logistic"])
def test_rows_decide_for_themselves(score: str, positions: Any, when: Any, llava: Any, pictures: Pictures) -> None:
    bias = 0.2 if score == "logistic" else 0.0
    images = shown(pictures)
    gate, acts = split(llava, images, ASKED, gate_of(llava, score=score, positions=positions, when=when, bias=bias))
    steer = recipe(llava, "text.1-2.block_out", size=3.0)
    expected = alone(llava, images, ASKED, [steer if act else None for act in acts])
    close(llava.logits(images, ASKED, gated(steer, gate)), expected)
    close(alone(llava, images, ASKED, [gated(steer, gate)] * len(ASKED)), expected)


def latched(session: Any, images: Any, gate: Gate, **options: Any) -> tuple[Recipe, list[str]]:
    """A gated recipe of every generated token, and the answers if each row had decided at its prompt."""
    gate, acts = split(session, images, ASKED, gate)
    steer = recipe(session, "text.1-2.block_out", positions=options.pop("at", "last"), size=8.0)
    rows = zip(images, ASKED, acts, strict=True)
    expected = [session.ask(image, text, steer if act else None, STEPS) for image, text, act in rows]
    assert sum(a != b for a, b in zip(expected, session.ask_many(images, ASKED, None, STEPS), strict=True))
    return gated(steer, gate), expected


@pytest.mark.parametrize("name", ["llava", "llava_next", "instructblip", "instructblip_t5", "qwen2_5_vl"])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_decided_once_an_answer(positions: str, name: str, sessions: Any, pictures: Pictures) -> None:
    """All ways to ask agree: together, alone, streamed, by transformers, in a grid beside other recipes."""
    session, images = sessions[name], shown(pictures)
    where = "encoder.0.block_out" if name == "instructblip_t5" and positions == "all" else READ
    steer, expected = latched(session, images, gate_of(session, site=where, positions=positions))
    assert session.ask_many(images, ASKED, steer, STEPS) == expected
    assert session.ask_many(images, ASKED, [steer] * len(ASKED), STEPS, batch_size=4) == expected
    rows = list(zip(images, ASKED, strict=True))
    assert [list(session.stream(*row, steer, STEPS))[-1] for row in rows] == expected
    assert [session.ask(*row, steer, STEPS, do_sample=False) for row in rows] == expected
    assert [session.ask(*row, steer, STEPS, use_cache=False) for row in rows] == expected
    plain = session.ask_many(images, ASKED, None, STEPS)
    grid = session.ask_grid(images, ASKED, [None, steer, steer.scaled(0.0)], STEPS)
    assert grid == [[one, other, one] for one, other in zip(plain, expected, strict=True)]


def test_questions_about_one_image(session: Any, pictures: Pictures) -> None:
    """Its prefix is shared and read without the gate, which decides at the prompts' ends."""
    images = [pictures[1]] * len(ASKED)
    steer, expected = latched(session, images, gate_of(session))
    assert session.ask_many(images, ASKED, steer, STEPS) == expected
    assert [row[0] for row in session.ask_grid(images, ASKED, [steer, None], STEPS)] == expected


@pytest.mark.parametrize("name", ["llava", "instructblip", "instructblip_t5", "qwen2_5_vl"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "top_k": 0, "temperature": 1.5}])
def test_beams_and_samples(options: dict[str, Any], name: str, sessions: Any, pictures: Pictures) -> None:
    session, images = sessions[name], shown(pictures)
    sites = [READ, "encoder.1.block_out"] if name == "instructblip_t5" else [READ]
    for site in sites:
        gate, acts = split(session, images, ASKED, gate_of(session, site=site))
        steer = recipe(session, "text.1-2.block_out", positions="all", size=4.0)
        for image, question, act in zip(images, ASKED, acts, strict=True):
            answers = []
            for one in (gated(steer, gate), steer if act else None):
                torch.manual_seed(0)
                answers.append(session.ask(image, question, one, STEPS, **options))
            assert answers[0] == answers[1]


def test_rows_with_gates_of_their_own(session: Any, pictures: Pictures) -> None:
    """Gates at other sites and positions, none, no recipe: each row is as it is alone."""
    images, steer = shown(pictures), recipe(session, "text.2.block_out", size=4.0)
    gates = [
        gate_of(session),
        gate_of(session, site="text.1.block_out", seed=6),
        gate_of(session, positions="all", seed=7),
        gate_of(session, site="text.1.norm_out", score="projected", seed=8),
        gate_of(session, when="below", seed=9),
    ]
    recipes: list[Any] = [gated(steer, split(session, images, ASKED, gate)[0]) for gate in gates]
    for turn in range(len(ASKED)):
        rows = ([*recipes, steer][turn:] + [*recipes, None][:turn])[: len(ASKED)]
        close(session.logits(images, ASKED, rows), alone(session, images, ASKED, rows))
    asked = [session.ask(*row, STEPS) for row in zip(images, ASKED, rows, strict=True)]
    assert session.ask_many(images, ASKED, rows, STEPS) == asked


def test_a_grid_of_gates(llava: Any, pictures: Pictures) -> None:
    """Recipes of one edit at one site whose gates read at different sites, as branches of one prompt."""
    images, steer = shown(pictures), recipe(llava, "text.2.block_out", size=4.0)
    sites = [READ, "text.1.block_out", "text.1.norm_out"] * 2
    gates = [gate_of(llava, site=site, seed=seed) for seed, site in enumerate(sites)]
    recipes = [None, steer, *(gated(steer, split(llava, images, ASKED, gate)[0]) for gate in gates)]
    columns = [llava.ask_many(images, ASKED, one, STEPS) for one in recipes]
    assert llava.ask_grid(images, ASKED, recipes, STEPS) == [list(row) for row in zip(*columns, strict=True)]


def test_rows_that_leave(llava: Any, pictures: Pictures) -> None:
    """Decisions stay with their rows when others leave the batch, or the order changes."""
    images = shown(pictures)
    steer, _ = latched(llava, images, gate_of(llava))
    order = torch.tensor([4, 0, 5, 1])
    for recipes in (steer, [steer, None, steer, steer, steer, steer]):
        with llava.opened(images, ASKED, recipes) as stream:
            tokens = stream.logits.argmax(-1)
            expected = stream.push(tokens)[order]
        with llava.opened(images, ASKED, recipes) as stream:
            stream.select(order)
            close(stream.push(tokens[order]), expected)


def test_answers_that_are_given(anyone: Any, pictures: Pictures) -> None:
    """The prompt decides, also where the answer's tokens follow in the same forward."""
    images, answers = shown(pictures), ["red", "small, yellow red", "is", "large", "blue red", "here"]
    gate, acts = split(anyone, images, ASKED, gate_of(anyone))
    steer = recipe(anyone, "text.2.block_out", positions="generated", size=4.0)
    expected = anyone.score(images, ASKED, answers, [steer if act else None for act in acts])
    for one, other in zip(anyone.score(images, ASKED, answers, gated(steer, gate)), expected, strict=True):
        torch.testing.assert_close(one, other, atol=5e-4, rtol=1e-4)


def test_gates_that_cannot_be_read(llava: Any, pictures: Pictures) -> None:
    steer = recipe(llava, "text.1.mlp_out")
    for site in ("text.1.mlp_out", "text.1.block_out", "text.2.block_in"):
        with pytest.raises(SiteError, match="must come before"):
            llava.ask(pictures[0], ASKED[0], gated(steer, gate_of(llava, site=site)))
    with pytest.raises(SiteError, match=r"text\.9\.block_out"):
        llava.ask(pictures[0], ASKED[0], gated(steer, Gate(Site.parse("text.9.block_out"), torch.ones(48), 0.0)))
    with pytest.raises(RecipeError, match="47 numbers; text.0.block_out has 48"):
        llava.logits(pictures[:1], ASKED[:1], gated(steer, Gate(Site.parse(READ), torch.ones(47), 0.0)))
    with pytest.raises(SiteError, match="gate"):  # before any edit runs, in words about the gate
        llava.ask(pictures[0], ASKED[0], gated(steer, gate_of(llava, site="vision.0.block_out")))
    for odd in ({"score": "cosin"}, {"when": "over"}, {"positions": "image"}, {"bias": float("nan")}):
        with pytest.raises(RecipeError):
            gate_of(llava, **odd)
    for direction in (torch.zeros(48), torch.ones(2, 48), torch.full((48,), float("nan"))):
        with pytest.raises(RecipeError):
            Gate(Site.parse(READ), direction, 0.0)


def test_a_split_prompt_has_no_mean(llava: Any) -> None:
    """A gate that needs the mean of the whole prompt is not given a part of it."""
    ids, steer = torch.arange(300, 309)[None], recipe(llava, "text.2.block_out")
    with llava.apply(gated(steer, gate_of(llava, positions="all"))), torch.no_grad():
        cache = llava.model(input_ids=ids[:, :5], use_cache=True).past_key_values
        with pytest.raises(SiteError, match="split"):
            llava.model(input_ids=ids[:, 5:], past_key_values=cache)


def test_two_threads(llava: Any, pictures: Pictures) -> None:
    images = shown(pictures)
    wanted = [
        latched(llava, images, gate_of(llava, seed=seed, when=when)) for seed, when in ((5, "above"), (5, "below"))
    ]
    assert wanted[0][1] != wanted[1][1]
    found: dict[int, list[list[str]]] = {0: [], 1: []}

    def ask(number: int) -> None:
        for _ in range(3):
            found[number].append(llava.ask_many(images, ASKED, wanted[number][0], STEPS))

    threads = [threading.Thread(target=ask, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [wanted[number][1]] * 3 for number in found}


def test_saved_gates(llava: Any, pictures: Pictures, tmp_path: Path) -> None:
    images = shown(pictures)
    steer, expected = latched(llava, images, gate_of(llava, score="logistic", bias=-0.1, when="below"))
    steer.save(tmp_path / "gated.safetensors")
    loaded = Recipe.load(tmp_path / "gated.safetensors")
    assert loaded.hash == steer.hash
    assert llava.ask_many(images, ASKED, loaded, STEPS) == expected


def test_an_exception_leaves_nothing(llava: Any, pictures: Pictures) -> None:
    before, plain = hooks(llava.model), llava.logits(pictures, QUESTIONS)
    broken = recipe(llava, "text.2.block_out", positions=(200,))
    with pytest.raises(SiteError):
        llava.ask_many(pictures, QUESTIONS, gated(recipe(llava, "text.1.block_out"), gate_of(llava)) + broken)
    assert hooks(llava.model) == before
    assert torch.equal(llava.logits(pictures, QUESTIONS), plain)


# Vectors for each token


def each(session: Any, site: str, count: int, positions: Any = "all", seed: int = 0, size: float = 1.0) -> Recipe:
    place, generator = Site.parse(site), torch.Generator().manual_seed(seed)
    vectors = size * torch.randn(count, session.taps[place].width, generator=generator)
    return Recipe((Edit(Vectors(place.tower, place.point, {place.layer: vectors}), "add", 1.0, positions),))


def tensor(edit: Edit, layer: int) -> Tensor:
    """An edit's vector at a layer."""
    assert isinstance(edit.vectors, Vectors)
    return edit.vectors.layers[layer]


def patches(session: Any, picture: Image.Image) -> int:
    with session.read("vision.0.block_out", "all") as seen:
        session.logits([picture], ["red?"])
    return len(seen.rows("vision.0.block_out")[0])


@pytest.mark.parametrize("name", ["llava", "instructblip", "qwen2_5_vl"])
def test_each_patch_its_vector(name: str, sessions: Any, pictures: Pictures) -> None:
    """As a plain hook that adds them; Qwen's windows put patches in an order of their own."""
    session = sessions[name]
    steer = each(session, "vision.1.mlp_out", patches(session, pictures[1]), size=2.0)
    vectors = tensor(steer.edits[0], 1)
    with session.read("vision.1.mlp_out", "all") as plain:
        before = session.logits(pictures[1:2], ["red?"])

    def add(module: Any, args: Any, output: Tensor) -> Tensor:
        order = torch.arange(len(vectors))
        if output.dim() == 2:  # find where each patch lies now by its state
            order = torch.cdist(output, plain.rows("vision.1.mlp_out")[0]).argmin(1)
        return output + vectors[order]

    mlp: Any = eyes(session.model)[1].mlp
    handle = mlp.register_forward_hook(add)
    try:
        expected = session.logits(pictures[1:2], ["red?"])
    finally:
        handle.remove()
    close(session.logits(pictures[1:2], ["red?"], steer), expected)
    assert (expected - before).abs().max() > 1e-2


def test_each_index_its_vector(session: Any, pictures: Pictures) -> None:
    """Text indices in order, also from the end, equal one edit an index; in another order they are refused."""
    for indices in ((0, 1, 2), (1, 3, -1), (-3, -1)):
        steer = each(session, "text.1.block_out", len(indices), indices, size=2.0)
        vectors = tensor(steer.edits[0], 1)
        one_by_one = Recipe(
            tuple(
                Edit(Vectors("text", "block_out", {1: vector}), "add", 1.0, (index,))
                for index, vector in zip(indices, vectors, strict=True)
            )
        )
        expected = session.logits(pictures, QUESTIONS, one_by_one)
        close(session.logits(pictures, QUESTIONS, steer), expected)
        assert session.ask_many(pictures, QUESTIONS, steer, 4) == session.ask_many(pictures, QUESTIONS, one_by_one, 4)
    for indices in ((2, 0), (-1, 1), (1, 1)):
        with pytest.raises(VlmsteerError):
            session.logits(pictures, QUESTIONS, each(session, "text.1.block_out", 2, indices))


def test_rows_with_vectors_for_each_token(sessions: Any, pictures: Pictures) -> None:
    """Only rows that have such a recipe need that many tokens: Qwen's images have as many patches as they are large."""
    session = sessions["qwen2_5_vl"]
    counts = [patches(session, picture) for picture in pictures]
    assert len(set(counts)) > 1
    steers: list[Any] = [each(session, "vision.1.block_out", n, seed=i) for i, n in enumerate(counts)]
    mean = recipe(session, "vision.1.block_out", positions="all")
    for rows in (steers, [steers[0], None, None], [steers[0], mean, steers[2]]):
        close(session.logits(pictures, QUESTIONS, rows), alone(session, pictures, QUESTIONS, rows))
    with pytest.raises(SiteError, match="vectors of their own for 64 tokens, but there are"):
        session.logits(pictures, QUESTIONS, steers[0])


def test_another_number_of_tokens(session: Any, pictures: Pictures) -> None:
    for wrong in (each(session, "vision.1.block_out", 3), each(session, "text.1.block_out", 4, (0, 1, 2))):
        with pytest.raises(SiteError, match="vectors of their own"):
            session.ask(pictures[0], QUESTIONS[0], wrong)
        assert torch.equal(session.logits(pictures, QUESTIONS, wrong.scaled(0.0)), session.logits(pictures, QUESTIONS))


def test_heads_of_each_token(llava: Any, pictures: Pictures) -> None:
    """At heads one factor a head is enough, also for each token."""
    factors = torch.tensor([[1.0, -1.0, 0.5, 2.0], [0.0, 1.0, 0.0, -0.5]])
    wide = factors.repeat_interleave(12, dim=1)
    few, many = (Recipe((Edit(Vectors("text", "head", {1: one}), "scale", 1.0, (0, 2)),)) for one in (factors, wide))
    assert torch.equal(llava.logits(pictures, QUESTIONS, few), llava.logits(pictures, QUESTIONS, many))


def test_random_vectors_for_each_token() -> None:
    """Each token's vector keeps its length; a token without a vector stays without."""
    vectors = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [[1.0], [3.0], [0.2], [0.0]]
    )
    for operation in ("add", "add_keep_norm", "project_out", "replace"):
        edit = Edit(Vectors("text", "block_out", {0: vectors}), operation, 1.0, (0, 1, 2, 3))
        control = tensor(edit.random_like(3), 0)
        torch.testing.assert_close(control.norm(dim=1), vectors.norm(dim=1))
        assert torch.cosine_similarity(control[:3], vectors[:3]).abs().max() < 0.9
