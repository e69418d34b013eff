"""VISTA: the paper's vectors and push over raw transformers models, its mix of logits, and each way to ask with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, hooks, recipe
from PIL import Image
from raw_models import FAMILIES, assert_equal, changed, decoder, inputs, outputs
from torch import Tensor, nn

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.methods import vista
from vlmsteer.methods.method import Method
from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
PUSH, STEPS = 0.4, 6


def without(session: Any, question: str) -> tuple[Any, dict[str, Any]]:
    """What is called, and with what, for a question without its image."""
    if "InstructBlip" in type(session.model).__name__:
        return session.model.language_model, dict(session.tokenizer(question, return_tensors="pt"))
    messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    text = session.processor.apply_chat_template(messages, add_generation_prompt=True)
    return session.model, dict(session.tokenizer(text, return_tensors="pt"))


@torch.no_grad()
def added(session: Any, image: Image.Image, question: str) -> Tensor:
    """(layers, width) block outputs at the prompt's last token, with the image minus without."""
    given, prompt = inputs(session, image, question)
    blocks = list(decoder(session.model))
    with outputs(blocks) as kept:
        session.model(**given)
        seen = torch.stack([states[0, prompt - 1] for states in kept])
        model, bare = without(session, question)
        model(**{name: bare[name] for name in ("input_ids", "attention_mask")})
        return seen - torch.stack([states[0, -1] for states in kept])


def pushes(session: Any, vectors: Tensor, strength: float) -> dict[nn.Module, Any]:
    """The push of each layer's MLP output."""
    mlps: Any = [block.mlp for block in decoder(session.model)]
    return {mlp: push(vector, strength) for mlp, vector in zip(mlps, vectors, strict=True)}


def push(vector: Tensor, strength: float) -> Any:
    """x -> |x| normalize(x/|x| + strength (1 + max(0, cos(x, -v))) v/|v|), written out."""

    def change(x: Tensor) -> Tensor:
        size, aim = x.norm(dim=-1, keepdim=True), vector / vector.norm()
        weight = 1 + (-(x @ aim)[..., None] / size).clamp(min=0)
        turned = x / size + strength * weight * aim
        return size * turned / turned.norm(dim=-1, keepdim=True)

    return change


@torch.no_grad()
def paper(session: Any, image: Image.Image, question: str, strength: float, share: float, read: list[int]) -> Tensor:
    """(tokens, vocabulary) logits of a prompt by the paper's rule, every MLP output pushed by a plain hook."""
    vectors, blocks = added(session, image, question), list(decoder(session.model))
    given, _ = inputs(session, image, question)
    head = session.model.get_output_embeddings()
    with changed(pushes(session, vectors, strength)):
        with outputs(blocks) as kept:
            logits = session.model(**given).logits[0]
        said = torch.stack([head(kept[layer][0]) for layer in read]).mean(0)
    return (1 - share) * logits + share * said


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_image_adds(name: str, sessions: Any, pictures: Pictures) -> None:
    """The vectors of each row of a batch; one without a recipe stays so."""
    session = sessions[name]
    learned = vista.learn(session)
    settled = session.settle(learned, pictures, QUESTIONS)
    for steer, image, question in zip(settled, pictures, QUESTIONS, strict=True):
        vectors = steer.edits[0].vectors
        assert isinstance(vectors, Vectors) and sorted(vectors.layers) == list(range(session.layers()))
        found = torch.stack([vectors.layers[layer] for layer in sorted(vectors.layers)])
        assert_equal(found, added(session, image, question))
    assert session.settle([learned, None], pictures[:2], QUESTIONS[:2])[1] is None


def test_without_an_image_nothing_is_pushed(anyone: Any, pictures: Pictures) -> None:
    """Nothing was added: rounding must not become a direction, whatever rows are beside it."""
    learned, images, questions = vista.learn(anyone, push=PUSH, share=0.0), [*pictures, None], [*QUESTIONS, "red?"]
    expected = anyone.logits(images, questions, [None] * 4)[3:]
    for recipes in (learned, [None, learned, None, learned]):
        found = anyone.logits(images, questions, recipes)[3:]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_push_is_the_papers(name: str, sessions: Any, pictures: Pictures) -> None:
    session = sessions[name]
    learned = vista.learn(session, push=PUSH, share=0.0)
    assert not learned.rules
    for image, question in zip(pictures, QUESTIONS, strict=True):
        expected = paper(session, image, question, PUSH, 0.0, [0])[-1]
        found = session.logits([image], [question], learned)[0]
        assert_equal(found, expected)
        assert (found - session.logits([image], [question])[0]).abs().max() > 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_push_and_mix_are_the_papers(name: str, sessions: Any, pictures: Pictures) -> None:
    """Also at other strengths, which scale both."""
    session = sessions[name]
    for factor in (1.0, 0.5, 1.7):
        learned = vista.learn(session, push=PUSH, first=0.3, last=1.0)
        read = learned.rules[0].settings["layers"]
        expected = paper(session, pictures[2], QUESTIONS[0], factor * PUSH, factor * 0.3, read)[-1]
        found = session.logits(pictures[2:], QUESTIONS[:1], factor * learned)[0]
        assert_equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_and_step(name: str, sessions: Any, pictures: Pictures) -> None:
    """Each token of the steered greedy answer is the likeliest by the paper's rule over the text so far."""
    session, learned = sessions[name], vista.learn(sessions[name], push=PUSH)
    vectors, blocks = added(session, pictures[1], QUESTIONS[0]), list(decoder(session.model))
    given, prompt = inputs(session, pictures[1], QUESTIONS[0])
    head, read = session.model.get_output_embeddings(), learned.rules[0].settings["layers"]
    with session.opened(pictures[1:2], QUESTIONS[:1], learned) as stream:
        tokens: list[int] = []
        for _ in range(STEPS):
            tokens.append(int(stream.logits.argmax()))
            stream.push(torch.tensor(tokens[-1:]))
    ids = torch.tensor([tokens])
    for key, more in (("input_ids", ids), ("attention_mask", torch.ones_like(ids)), ("mm_token_type_ids", 0 * ids)):
        if key in given:
            given[key] = torch.cat([given[key], more], 1)
    with changed(pushes(session, vectors, PUSH)), outputs(blocks) as kept:
        logits = session.model(**given).logits[0]
    logits = 0.7 * logits + 0.3 * torch.stack([head(kept[layer][0]) for layer in read]).mean(0)
    assert logits[prompt - 1 : -1].argmax(-1).tolist() == tokens


@pytest.mark.parametrize("name", [*FAMILIES, "llava_next", "instructblip_t5"])
def test_rows_equal_single_asks(name: str, sessions: Any, pictures: Pictures) -> None:
    session, learned = sessions[name], vista.learn(sessions[name], push=PUSH)
    images, questions = [*pictures, None, pictures[0]], [*QUESTIONS, "red?", QUESTIONS[0]]
    recipes = [learned, None, 2.0 * learned, learned, recipe(session, "text.1.block_out", size=3.0)]
    for rows in (learned, recipes):
        listed = rows if isinstance(rows, list) else [rows] * len(images)
        each = list(zip(images, questions, listed, strict=True))
        alone = torch.cat([session.logits([i], [q], r) for i, q, r in each])
        torch.testing.assert_close(session.logits(images, questions, rows), alone, atol=1e-3, rtol=1e-3)
        asked = [session.ask(*row, STEPS) for row in each]
        assert session.ask_many(images, questions, rows, STEPS) == asked
        assert session.ask_many(images, questions, rows, STEPS, batch_size=2) == asked
        assert [session.ask(*row, STEPS, do_sample=False) for row in each] == asked
        assert [list(session.stream(*row, STEPS))[-1] for row in each] == asked
    plain = session.ask_many(images, questions, None, STEPS)
    grid = session.ask_grid(images, questions, [None, learned], STEPS)
    assert grid == [list(pair) for pair in zip(plain, session.ask_many(images, questions, learned, STEPS), strict=True)]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "top_p": 0.9}], ids=["beams", "nucleus"])
@pytest.mark.parametrize("name", FAMILIES)
def test_beams_and_samples(name: str, options: Mapping[str, Any], sessions: Any, pictures: Pictures) -> None:
    """They equal generation with the paper's push as plain hooks, and leave no hook."""
    session, learned = sessions[name], vista.learn(sessions[name], push=PUSH, share=0.0)
    before = hooks(session.model)
    torch.manual_seed(0)
    found = session.ask(pictures[1], QUESTIONS[0], learned, STEPS, **options)
    assert hooks(session.model) == before
    vectors = added(session, pictures[1], QUESTIONS[0])
    torch.manual_seed(0)
    with changed(pushes(session, vectors, PUSH)):
        assert session.ask(pictures[1], QUESTIONS[0], None, STEPS, **options) == found
    torch.manual_seed(0)
    session.ask(pictures[1], QUESTIONS[0], vista.learn(session), STEPS, **options)
    assert hooks(session.model) == before


def test_beside_an_edit_of_the_image(session: Any, pictures: Pictures) -> None:
    """VTI and VISTA at once, under beams too: the vision tower's edit is for the one row there is."""
    both = recipe(session, "vision.0.block_out", positions="all", size=2.0) + vista.learn(session, push=PUSH)
    own = session.ask(pictures[1], QUESTIONS[0], both, STEPS)
    assert session.ask(pictures[1], QUESTIONS[0], both, STEPS, do_sample=False) == own
    assert session.ask(pictures[1], QUESTIONS[0], both, STEPS, num_beams=2)


def test_the_layers_of_the_self_logits_are_the_papers_share_of_any_depth() -> None:
    assert vista.between(vista.FIRST, vista.LAST, 32) == [*range(25, 31)]
    for depth in (2, 8, 16, 24, 28):  # what the last layer says is the logits themselves
        assert vista.between(vista.FIRST, vista.LAST, depth)[-1] == depth - 2
    assert vista.between(0.75, 1.0, 8) == [6, 7]
    assert vista.between(0.75, 0.875, 8) == [6]
    assert vista.between(0.9, 0.2, 8) == vista.between(0.5, 1.5, 8) == []


def test_a_reader_does_not_see_the_two_prompts(session: Any, pictures: Pictures) -> None:
    """What a user reads around an ask are its own forwards, with the push in them."""
    learned = vista.learn(session, push=PUSH, share=0.0)
    with session.read("text.1.mlp_out", "all", phase="both") as plain:
        session.logits(pictures[:1], QUESTIONS[:1])
    with session.read("text.*.mlp_out", "all", phase="both") as seen:
        session.logits(pictures[:1], QUESTIONS[:1], learned)
    assert len(seen.rows("text.1.mlp_out")) == 1
    assert len(seen.rows("text.1.mlp_out")[0]) == len(plain.rows("text.1.mlp_out")[0])
    expected = push(added(session, pictures[0], QUESTIONS[0])[0], PUSH)
    with session.read("text.0.mlp_out", "all") as first:
        session.logits(pictures[:1], QUESTIONS[:1])
    assert_equal(seen.rows("text.0.mlp_out")[0], expected(first.rows("text.0.mlp_out")[0]))
    with session.read("text.1.block_out", "last", phase="both") as seen:
        session.ask(pictures[0], QUESTIONS[0], learned, STEPS)
    assert len(seen.rows("text.1.block_out")) == 1 and 1 <= len(seen.rows("text.1.block_out")[0]) <= STEPS


def test_the_vectors_are_read_of_the_plain_model(session: Any, pictures: Pictures) -> None:
    """Whatever block is open around the question."""
    learned, steer = vista.learn(session), recipe(session, "text.0.block_out", positions="all", size=3.0)
    expected = session.settle([learned], pictures[:1], QUESTIONS[:1])[0].hash
    with session.apply(steer):
        assert session.settle([learned], pictures[:1], QUESTIONS[:1])[0].hash == expected


def test_an_apply_block_says_what_to_use(llava: Any) -> None:
    with pytest.raises(RecipeError, match="session.ask"), llava.apply(vista.learn(llava)):
        pass


def test_strength_zero_is_exact(anyone: Any, pictures: Pictures) -> None:
    learned = vista.learn(anyone)
    plain = anyone.logits(pictures, QUESTIONS)
    assert torch.equal(anyone.logits(pictures, QUESTIONS, 0.0 * learned), plain)
    assert torch.equal(anyone.logits(pictures, QUESTIONS, [learned, None, 0.0 * learned])[1:], plain[1:])


def test_scores_follow(anyone: Any, pictures: Pictures) -> None:
    """Scores of given answers equal the logits after the prompt, for the first token."""
    learned = vista.learn(anyone, push=PUSH)
    token = anyone.encoder.answer_tokens("red")[0][0]
    expected = anyone.logits(pictures, QUESTIONS, learned).log_softmax(-1)[:, token]
    found = torch.stack([score[0] for score in anyone.score(pictures, QUESTIONS, ["red", "red small", "red"], learned)])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_the_random_control(session: Any, pictures: Pictures) -> None:
    """As long as each question's own vectors, another way, the same each time."""
    learned = vista.learn(session)
    control = learned.random_like(4)
    own, random = (session.settle([one], pictures[:1], QUESTIONS[:1])[0].edits[0].vectors for one in (learned, control))
    assert random.norms() == pytest.approx(own.norms(), rel=1e-5)
    assert max(abs(value) for value in random.cosines(own).values()) < 0.7
    assert (
        session.settle([control], pictures[:1], QUESTIONS[:1])[0].hash
        == session.settle([learned.random_like(4)], pictures[:1], QUESTIONS[:1])[0].hash
    )
    assert control.hash != learned.hash


def test_saved(session: Any, pictures: Pictures, tmp_path: Path) -> None:
    for learned in (vista.learn(session), vista.learn(session, push=0.2, layers=[2, 0]).random_like(3)):
        learned.save(tmp_path / "vista.safetensors")
        loaded = Recipe.load(tmp_path / "vista.safetensors")
        assert loaded.hash == learned.hash
        expected = session.logits(pictures, QUESTIONS, learned)
        assert torch.equal(session.logits(pictures, QUESTIONS, loaded), expected)


def test_options(llava: Any) -> None:
    assert isinstance(vista.METHOD, Method) and vista.METHOD.name == "vista"
    assert vista.learn(llava, layers=[1]).edits[0].sites[0].layer == 1
    assert not vista.learn(llava, push=0.0).edits
    with pytest.raises(InputError, match="changes nothing"):
        vista.learn(llava, push=0.0, share=0.0)
    with pytest.raises(InputError, match="No layer lies between"):
        vista.learn(llava, first=0.9, last=0.2)
    with pytest.raises(RecipeError, match="at least one layer"):
        vista.learn(llava, layers=[])
