"""ITI and NL-ITI: the papers' rules over raw transformers models, the closed form of the edit, and planted heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image
from raw_models import FAMILIES, decoder, inputs
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.examples import Example
from vlmsteer.methods import iti
from vlmsteer.probes import split
from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
STATEMENTS = [
    ("What color?", "red strawberry.", "blue strawberry."),
    ("Is this large?", "small and green.", "large, yellow and green here."),
]
SEED = 3


def examples(pictures: Pictures) -> list[Example]:
    return [
        Example(picture, asked, right, wrong, str(number))
        for number, picture in enumerate(pictures)
        for asked, right, wrong in STATEMENTS
    ]


@contextmanager
def entering(modules: list[nn.Module], act: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """`act` sees the input of each module, and may give another."""

    def before(number: int) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            given = act(number, args[0])
            return None if given is None else (given, *args[1:])

        return hook

    handles = [module.register_forward_pre_hook(before(number)) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def projections(session: Any) -> list[Any]:
    blocks: Any = decoder(session.model)
    return [block.self_attn.o_proj for block in blocks]


@torch.no_grad()
def head_inputs(session: Any, one: Example, answer: str) -> tuple[Tensor, int]:
    """(layers, tokens, heads, head_dim) before the output projections, and the length of the prompt."""
    given, prompt = inputs(session, one.image, one.question, answer)
    kept: dict[int, Tensor] = {}
    with entering(projections(session), lambda number, states: kept.update({number: states[0]})):
        session.model(**given)
    heads = session.model.config.text_config.num_attention_heads
    return torch.stack([kept[number].unflatten(-1, (heads, -1)) for number in sorted(kept)]), prompt


def written_out(session: Any, chosen: list[Example], count: int) -> Tensor:
    """(layers, heads, head_dim) what the paper adds, by scikit-learn and loops over heads."""
    last, ends, groups = [], [], []
    for one in chosen:
        for answer in (one.right, one.wrong):
            states, prompt = head_inputs(session, one, answer)
            last.append(states[:, -1])
            groups.append(one.group)
        ends.append(states[:, prompt - 1])
    x, y = torch.stack(last).double(), torch.arange(len(last)) % 2 == 0
    fit, held = split(groups, 0.2, SEED)
    layers, heads = x.shape[1:3]
    accuracy, push = torch.zeros(layers * heads), torch.zeros(x.shape[1:], dtype=torch.float64)
    for layer in range(layers):
        for head in range(heads):
            z = x[:, layer, head]
            probe = LogisticRegression(max_iter=1000).fit(z[fit].numpy(), y[fit].numpy())
            accuracy[layer * heads + head] = probe.score(z[held].numpy(), y[held].numpy())
            theta = z[y].mean(0) - z[~y].mean(0)
            theta = theta / theta.norm()
            deviation = torch.stack([end[layer, head] for end in ends]).double().numpy() @ theta.numpy()
            push[layer, head] = 15 * deviation.std() * theta
    for index in range(layers * heads):
        better = int((accuracy > accuracy[index]).sum() + (accuracy[:index] == accuracy[index]).sum())
        if better >= count:
            push[index // heads, index % heads] = 0
    return push.float()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_papers_rule(family: str, sessions: Any, pictures: Pictures) -> None:
    session, chosen = sessions[family], examples(pictures)
    learned = iti.learn(session, chosen, heads=4, seed=SEED)
    push = written_out(session, chosen, 4)

    vectors: Any = learned.edits[0].vectors.layers
    found = torch.zeros_like(push)
    for layer, vector in vectors.items():
        found[layer] = vector.view(push.shape[1:])
    assert int((found != 0).any(-1).sum()) == 4
    torch.testing.assert_close(found, push, rtol=1e-5, atol=1e-5 * float(push.abs().max()))

    given, prompt = inputs(session, pictures[1], "Which is here?", "green and small")

    def add(number: int, states: Tensor) -> Tensor:
        steered = states.clone()
        steered[:, prompt - 1 :] += push[number].flatten()
        return steered

    plain = session.model(**given).logits
    with entering(projections(session), add):
        expected = session.model(**given).logits
    asked = ([pictures[1]], ["Which is here?"], ["green and small"])
    steered = session.run(*asked, learned, keep=given["input_ids"].shape[1] - prompt + 1)
    expected = expected[:, prompt - 1 :]
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(steered, plain[:, prompt - 1 :], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_means_over_tokens_are_nl_itis(family: str, sessions: Any, pictures: Pictures) -> None:
    session, chosen = sessions[family], examples(pictures)[:4]
    read = iti.read_heads(session, chosen, range(session.layers()), 2, 3, 100, 16, 0)
    probed, true = [], []
    for one in chosen:
        for answer in (one.right, one.wrong):
            states, prompt = head_inputs(session, one, answer)
            probed.append(states[:, prompt - 1 :][:, -2:].mean(1))
            true += [states[:, prompt - 1 :][:, -3:].mean(1)] if answer == one.right else []
    for seen, expected in ((read.answers, torch.stack(probed)), (read.true, torch.stack(true).mean(0))):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert read.labels.tolist() == [True, False] * 4


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_edit_is_a_bias_of_the_output_projection(family: str, sessions: Any, pictures: Pictures) -> None:
    session = sessions[family]
    learned = iti.learn(session, examples(pictures), heads=5, scope="all", seed=SEED)
    steered = session.logits(pictures, ["red?"] * 3, learned)
    modules, vectors = projections(session), learned.edits[0].vectors
    assert isinstance(vectors, Vectors)
    try:
        for layer, vector in vectors.layers.items():
            modules[layer].bias = nn.Parameter(modules[layer].weight @ vector)
        expected = session.logits(pictures, ["red?"] * 3)
    finally:
        for module in modules:
            module.bias = None
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(steered, session.logits(pictures, ["red?"] * 3), atol=1e-2)


def planted(n: int, shape: tuple[int, int, int], at: tuple[int, int], odd: bool) -> tuple[iti.Heads, Tensor]:
    """Noise, and in one head the truth: along a direction, or (odd) only in the product of two dimensions."""
    generator = torch.Generator().manual_seed(1)
    answers, ends = (torch.randn(rows, *shape, generator=generator) for rows in (2 * n, n))
    true = torch.arange(2 * n) % 2 == 0
    direction = torch.nn.functional.normalize(torch.randn(shape[2], generator=generator), dim=0)
    if odd:
        corner = torch.where(torch.rand(2 * n, generator=generator) < 0.5, -3.0, 3.0)
        answers[:, at[0], at[1], 0] += corner
        answers[:, at[0], at[1], 1] += torch.where(true, corner, -corner)
    else:
        answers[:, at[0], at[1]] += torch.where(true, 4.0, -4.0)[:, None] * direction
        ends[:, at[0], at[1]] += 2 * torch.randn(n, 1, generator=generator) * direction
    groups = [str(row // 2) for row in range(2 * n)]
    return iti.Heads(answers[true].mean(0), answers[~true].mean(0), answers, ends, groups), direction


def test_a_planted_head_and_its_direction_are_found() -> None:
    read, direction = planted(150, (3, 4, 8), (1, 2), odd=False)
    accuracy = iti.linear_accuracy(read)
    assert accuracy.shape == (3, 4)
    assert int(accuracy.argmax()) == 1 * 4 + 2
    assert accuracy[1, 2] > 0.98
    assert accuracy.flatten().sort().values[-2] < 0.8
    theta, deviation = iti.displacements(read)
    assert float(theta[1, 2] @ direction) > 0.99
    assert abs(float(deviation[1, 2]) - 5**0.5) < 0.4  # the ends' variance is 1 of noise and 4 along the direction
    assert abs(float(iti.displacements(read, "answer")[1][1, 2]) - 17**0.5) < 0.4


def test_a_perceptron_finds_a_head_that_no_line_can() -> None:
    read, _ = planted(600, (2, 2, 4), (1, 0), odd=True)
    assert iti.linear_accuracy(read)[1, 0] < 0.65
    accuracy = iti.nonlinear_accuracy(read)
    assert int(accuracy.argmax()) == 2
    assert accuracy[1, 0] > 0.85


@pytest.fixture(scope="module")
def learned(sessions: Any, pictures: Pictures) -> Recipe:
    return iti.learn(sessions["llava"], examples(pictures))


def test_what_a_recipe_says_of_itself(learned: Recipe, llava: Any) -> None:
    about = dict(learned.about)
    assert about["method"] == "iti"
    assert about["options"]["heads"] == 1  # 48 of 1024, of 12 heads
    assert len(about["heads"]) == 1
    assert learned.model == llava.fingerprint
    (edit,) = learned.edits
    assert (edit.operation, edit.positions, edit.phase) == ("add", "last", "both")


def test_strength_zero_changes_no_bit(learned: Recipe, llava: Any, pictures: Pictures) -> None:
    asked = (pictures, ["red?"] * 3)
    assert torch.equal(llava.logits(*asked, learned.scaled(0.0)), llava.logits(*asked))


def test_a_sample_is_enough_for_probes_but_the_direction_is_from_all(llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    few, full = (iti.read_heads(llava, chosen, range(3), 1, 1, limit, 16, 2) for limit in (4, 100))
    assert len(few.answers) == len(few.groups) == 8
    assert len(few.questions) == 4
    torch.testing.assert_close(few.true, full.true)
    torch.testing.assert_close(few.true, full.answers[0::2].mean(0))
    kept = iti.sampled(6, 4, 2)
    assert few.groups == [chosen[number].group for number in kept for _ in range(2)]
    torch.testing.assert_close(few.questions, full.questions[kept])


@pytest.mark.parametrize("method", [iti.METHOD, iti.NL_ITI])
def test_it_runs_on_every_family(method: Any, anyone: Any, pictures: Pictures) -> None:
    found = method.learn(anyone, examples(pictures), heads=3)
    assert found.about["method"] == method.name
    assert len(anyone.ask_many(pictures, ["red?"] * 3, found, max_new_tokens=3)) == 3
    assert not torch.equal(anyone.logits(pictures[:1], ["red?"], found), anyone.logits(pictures[:1], ["red?"]))


def test_what_cannot_be_learned_is_refused(llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    with pytest.raises(InputError, match="groups"):
        iti.learn(llava, chosen[:2])
    with pytest.raises(InputError, match="12"):
        iti.learn(llava, chosen, heads=13)
    with pytest.raises(RecipeError, match="question"):
        iti.learn(llava, chosen, spread="questions")
    with pytest.raises(RecipeError, match="last"):
        iti.learn(llava, chosen, scope="first")
    with pytest.raises(InputError, match="one token"):
        iti.learn_nonlinear(llava, chosen, tokens=0)
