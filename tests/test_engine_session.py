"""The session's own passes (greedy loop, shared prefix, grid) give what transformers' generate gives for one prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, recipe
from PIL import Image

from vlmsteer.errors import SiteError

Pictures = list[Image.Image]
STEPS = 7


def by_generate(session: Any, image: Any, question: str, steer: Any) -> str:
    return session.ask(image, question, steer, STEPS, do_sample=False)


def steers(session: Any) -> list[Any]:
    """Recipes of the last position only: what a grid and a shared prefix may split."""
    return [
        None,
        recipe(session, "text.*.block_out", seed=1, size=3.0),
        recipe(session, "text.*.block_out", seed=1, strength=-1.0, size=3.0),
        recipe(session, "text.0-1.head", "scale", positions="generated", seed=2, size=2.0),
        both(
            recipe(session, "text.1.mlp_out", "replace", seed=3, size=3.0),
            recipe(session, "text.2.attn_out", "add_keep_norm", seed=4, phase="prefill"),
        ),
        recipe(session, "text.2.norm_out", "project_out", phase="decode", seed=5),
    ]


def test_own_loop_equals_generate(session: Any, pictures: Pictures) -> None:
    for steer in steers(session):
        for image, question in zip([*pictures, None], [*QUESTIONS, "red?"], strict=True):
            assert session.ask(image, question, steer, STEPS) == by_generate(session, image, question, steer)


def test_ask_many_equals_ask(session: Any, pictures: Pictures) -> None:
    chosen = steers(session)
    images = [pictures[i % 3] for i in range(len(chosen))]
    questions = [QUESTIONS[(i + i // 3) % 3] for i in range(len(chosen))]
    expected = [by_generate(session, *row) for row in zip(images, questions, chosen, strict=True)]
    assert session.ask_many(images, questions, chosen, STEPS) == expected
    assert session.ask_many(images, questions, chosen, STEPS, batch_size=4) == expected
    assert len(set(expected)) > 3


def test_stream_ends_with_the_answer(session: Any, pictures: Pictures) -> None:
    for steer in steers(session):
        parts = list(session.stream(pictures[1], QUESTIONS[0], steer, STEPS))
        assert parts[-1] == session.ask(pictures[1], QUESTIONS[0], steer, STEPS)
        assert len(parts) <= STEPS


@pytest.mark.parametrize("images", [[0, 0, 0], [0, 1, 2], [1, 1, 2]])
def test_grid_equals_ask(images: list[int], session: Any, pictures: Pictures) -> None:
    """Shared images, different images, and both."""
    shown, chosen = [pictures[i] for i in images], steers(session)
    expected = [
        [by_generate(session, image, question, steer) for steer in chosen]
        for image, question in zip(shown, QUESTIONS, strict=True)
    ]
    assert session.ask_grid(shown, QUESTIONS, chosen, STEPS) == expected
    assert session.ask_grid(shown, QUESTIONS, chosen, STEPS, batch_size=2, cells=4) == expected
    assert len({answer for row in expected for answer in row}) > 6


def test_a_grid_keeps_every_prompt_once(session: Any, pictures: Pictures) -> None:
    cached: list[int] = []
    layer = session.model.model.language_model.layers[0]

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        cached.append(kwargs["past_key_values"].layers[0].keys.shape[0])

    handle = layer.register_forward_hook(note, with_kwargs=True)
    try:
        session.ask_grid(pictures, QUESTIONS, steers(session), 3)
    finally:
        handle.remove()
    assert len(cached) == 4 and max(cached) == len(QUESTIONS)


def test_grid_of_recipes_that_change_the_prompt(llava: Any, pictures: Pictures) -> None:
    chosen = [recipe(llava, "text.1.block_out", positions="image", size=6.0), None]
    expected = [[by_generate(llava, pictures[0], question, steer) for steer in chosen] for question in QUESTIONS]
    assert llava.ask_grid(pictures[:1] * 3, QUESTIONS, chosen, STEPS) == expected


def test_grid_without_images(session: Any) -> None:
    chosen = steers(session)
    expected = [[by_generate(session, None, question, steer) for steer in chosen] for question in QUESTIONS]
    assert session.ask_grid([None] * 3, QUESTIONS, chosen, STEPS) == expected


def test_grid_inside_a_block_is_refused(llava: Any, pictures: Pictures) -> None:
    with pytest.raises(SiteError, match="cannot run inside"), llava.read("text.0.block_out"):
        llava.ask_grid(pictures, QUESTIONS, [None])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_questions_about_one_image_share_its_prefix(count: int, session: Any, pictures: Pictures) -> None:
    """The image is read once, and nothing of it but its cache is used for the answers."""
    chosen = steers(session)[: 3 * count : count] if count else [None] * 3
    images = [pictures[1]] * 3
    expected = [by_generate(session, *row) for row in zip(images, QUESTIONS, chosen, strict=True)]
    seen: list[int] = []
    tower = session.taps[session.sites[0]].module
    handle = tower.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[0]))
    try:
        answers = session.ask_many(images, QUESTIONS, chosen, STEPS)
        shared, seen[:] = sum(seen), []
        session.logits([pictures[1]], QUESTIONS[:1])
    finally:
        handle.remove()
    assert answers == expected
    assert shared == sum(seen)


def test_what_reads_or_edits_the_prefix_is_not_shared(session: Any, pictures: Pictures) -> None:
    images = [pictures[1]] * 3
    steer = recipe(session, "text.0.block_out", positions="image", size=6.0)
    outer = recipe(session, "vision.0.block_out", positions="all", size=3.0)
    expected = [by_generate(session, pictures[1], question, steer) for question in QUESTIONS]
    assert session.ask_many(images, QUESTIONS, steer, STEPS) == expected
    with session.apply(outer):
        expected = [by_generate(session, pictures[1], question, None) for question in QUESTIONS]
        assert session.ask_many(images, QUESTIONS, None, STEPS) == expected
    with session.read("text.1.block_out", "image") as states:
        session.ask_many(images, QUESTIONS, None, STEPS)
    assert len(states.rows("text.1.block_out")) == 3


def test_shared_prefix_logits(session: Any, pictures: Pictures) -> None:
    """Mixed suffix lengths after one image: the same numbers as whole prompts, not only the same words."""
    encoded = session.encoder.encode([pictures[2]] * 3, QUESTIONS)
    steer = recipe(session, "text.*.block_out", size=2.0)
    with session.instrument.installed(session.ready(steer).sites):
        prefilled, _ = session._read_prompt(encoded, steer, session.ready(steer))
    whole = session.logits([pictures[2]] * 3, QUESTIONS, steer)
    torch.testing.assert_close(prefilled.logits, whole, atol=1e-4, rtol=1e-5)


def test_question_tokens_are_the_questions(session: Any, pictures: Pictures) -> None:
    """Also where its words stand elsewhere in the prompt, or where it has spaces around it, emoji, or line breaks."""
    for question in ["S", "INST", "USER", "ASSISTANT:", "T", " red? ", "what\ncolor", "süß 🍓?", "red? [/INST]", ":"]:
        for image in (None, pictures[0]):
            row = session.encoder.encode([image], [question]).rows[0]
            asked = [token for token, inside in zip(row.ids, row.question, strict=True) if inside]
            text = session.tokenizer.decode(asked)
            assert question.strip() in text, (question, text)
            assert len(text) <= len(question) + 2
            first = row.question.tolist().index(True)
            assert all(row.question[first : first + len(asked)])
            before = session.tokenizer.decode(row.ids[:first])
            assert before.strip().endswith(("USER:", "[INST]", "<image>"))


def test_unembed_normalizes_once(session: Any, pictures: Pictures) -> None:
    site = f"text.{session.layers() - 1}.block_out"
    with session.read(site) as states, torch.no_grad():
        logits = session.logits(pictures, QUESTIONS)
        torch.testing.assert_close(session.unembed(states[site]), logits, atol=1e-5, rtol=1e-5)
