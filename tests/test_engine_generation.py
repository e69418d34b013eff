"""Edits under transformers' own generate: cache or none, beams, samples, assistants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, recipe
from PIL import Image

import vlmsteer
from vlmsteer.errors import SiteError

Pictures = list[Image.Image]
QUESTION, STEPS = QUESTIONS[0], 6
STEERS = {
    "plain": None,
    "last": ("text.*.block_out", "last"),
    "generated": ("text.*.attn_out", "generated"),
    "all": ("text.1.mlp_out", "all"),
    "image": ("text.*.block_out", "image"),
    "question": ("text.1.block_in", "question"),
    "indices": ("text.1.block_in", (0, -1)),
    "vision": ("vision.0.block_out", "image"),
}


def steer_of(session: Any, name: str) -> Any:
    chosen = STEERS[name]
    return None if chosen is None else recipe(session, chosen[0], positions=chosen[1], size=8.0)


def generated(session: Any, picture: Any, question: str, steer: Any, **options: Any) -> torch.Tensor:
    """The new tokens of `model.generate` called by the user inside an apply block."""
    inputs = session.encoder.encode([picture], [question]).whole(session.device).inputs
    with session.apply(steer), torch.no_grad():
        tokens = session.model.generate(**inputs, max_new_tokens=STEPS, **options)
    return tokens[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("name", STEERS)
def test_with_and_without_a_cache(name: str, session: Any, pictures: Pictures) -> None:
    steer = steer_of(session, name)
    own = session.ask(pictures[1], QUESTION, steer, STEPS)
    assert session.ask(pictures[1], QUESTION, steer, STEPS, do_sample=False) == own
    assert session.ask(pictures[1], QUESTION, steer, STEPS, use_cache=False) == own
    if name != "plain":
        assert own != session.ask(pictures[1], QUESTION, None, STEPS)


@pytest.mark.parametrize("name", [name for name in STEERS if name != "question"])
def test_generate_called_directly(name: str, session: Any, pictures: Pictures) -> None:
    """Without a session's prompt the columns come from the first forward; who asks for the question must encode it."""
    steer = steer_of(session, name)
    tokens = generated(session, pictures[1], QUESTION, steer)
    assert session.encoder.decode(tokens[0]) == session.ask(pictures[1], QUESTION, steer, STEPS)


@pytest.mark.parametrize("name", STEERS)
def test_an_assistant(name: str, llava: Any, llava_folder: Path, pictures: Pictures) -> None:
    """Candidates come several to a forward; the answer is the greedy one."""
    steer, other = steer_of(llava, name), vlmsteer.load(llava_folder, check=False)
    own = llava.ask(pictures[1], QUESTION, steer, STEPS)
    assert llava.ask(pictures[1], QUESTION, steer, STEPS, assistant_model=other.model) == own


@pytest.mark.parametrize("name", ["plain", "last", "generated", "all", "question", "indices"])
def test_prompt_lookup(name: str, session: Any) -> None:
    """Without an image: transformers would propose image placeholders from the prompt, whoever asks."""
    steer, question = steer_of(session, name), "red red red red red"
    own = session.ask(None, question, steer, STEPS)
    assert session.ask(None, question, steer, STEPS, prompt_lookup_num_tokens=3) == own


def test_generated_hits_each_decode_step_and_only_those(session: Any, pictures: Pictures) -> None:
    """What leaves the edited layer differs from what a plain model would pass by exactly the vector, step by step."""
    steer = recipe(session, "text.0.block_out", positions="generated", size=2.0)
    vector = steer.edits[0].fixed.layers[0]
    sites = ["text.0.block_in", "text.0.attn_out", "text.0.mlp_out", "text.0.block_out"]
    with session.read(sites, "all", phase="both") as seen:
        session.ask(pictures[0], QUESTION, steer, STEPS)
    stream, attention, mlp, out = (seen.rows(site)[0] for site in sites)
    added = out - (stream + attention + mlp)
    prompt = len(session.encoder.encode(pictures[:1], [QUESTION]).rows[0].ids)
    assert added[:prompt].abs().max() < 1e-5
    torch.testing.assert_close(added[prompt:], vector.expand(len(added) - prompt, -1), atol=1e-4, rtol=1e-4)
    assert len(added) == prompt + STEPS - 1


@pytest.mark.parametrize("positions", [(0,), (-1,), "image", "question"])
def test_prompt_positions_are_not_hit_again(positions: Any, session: Any, pictures: Pictures) -> None:
    steer = recipe(session, "text.0.block_out", positions=positions, size=2.0)
    sites = ["text.0.block_in", "text.0.attn_out", "text.0.mlp_out", "text.0.block_out"]
    with session.read(sites, "generated", phase="decode") as seen:
        session.ask(pictures[0], QUESTION, steer, STEPS)
    stream, attention, mlp, out = (seen.rows(site)[0] for site in sites)
    assert (out - (stream + attention + mlp)).abs().max() < 1e-5
    assert len(out) == STEPS - 1


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_phases_add_up(phase: str, session: Any, pictures: Pictures) -> None:
    """`last` in one phase is what it is in both, restricted to that phase."""
    last = recipe(session, "text.*.block_out", positions="last", phase=phase, size=2.0)
    logits = session.logits(pictures[:1], [QUESTION], last)
    same = torch.equal(logits, session.logits(pictures[:1], [QUESTION]))
    assert same == (phase == "decode")
    if phase == "decode":
        other = recipe(session, "text.*.block_out", positions="generated", size=2.0)
        assert session.ask(pictures[0], QUESTION, last, STEPS) == session.ask(pictures[0], QUESTION, other, STEPS)


def beams(session: Any, images: list, questions: list[str], steers: Any, **options: Any) -> list[str]:
    layout = session.encoder.encode(images, questions).whole(session.device)
    with session.apply(steers), torch.no_grad():
        tokens = session.model.generate(**layout.inputs, max_new_tokens=STEPS, **options)
    return [session.encoder.decode(row[layout.prompt.columns :]) for row in tokens]


@pytest.mark.parametrize("site", ["text.*.block_out", "text.0.head"])
def test_beams_keep_rows_aligned(site: str, session: Any, pictures: Pictures) -> None:
    steers = [recipe(session, site, positions="all", size=2.0), None, recipe(session, site, "scale", positions="all")]
    rows = list(zip(pictures, QUESTIONS, steers, strict=True))
    alone = [beams(session, [image], [text], steer, num_beams=3)[0] for image, text, steer in rows]
    assert beams(session, pictures, QUESTIONS, steers, num_beams=3) == alone
    assert [session.ask(*row, STEPS, num_beams=3) for row in rows] == alone
    assert alone != beams(session, pictures, QUESTIONS, None, num_beams=3)


def test_beams_about_a_changed_image(session: Any, pictures: Pictures) -> None:
    """transformers encodes the images before it passes tokens, so only one recipe for all rows can reach them."""
    steer = recipe(session, "vision.0.block_out", positions="all", size=2.0)
    alone = [
        session.ask(image, text, steer, STEPS, num_beams=3) for image, text in zip(pictures, QUESTIONS, strict=True)
    ]
    assert beams(session, pictures, QUESTIONS, steer, num_beams=3) == alone
    assert alone != beams(session, pictures, QUESTIONS, None, num_beams=3)
    session.logits(pictures, QUESTIONS, [steer, None, None])  # what is known of this batch is not used for the next
    with pytest.raises(SiteError, match="ask_many"):
        beams(session, pictures, QUESTIONS, [steer, None, None], num_beams=3)


def test_several_samples_a_row(session: Any, pictures: Pictures) -> None:
    """A recipe that fixes the final state makes every sample of its row the same; the row beside it goes on varying."""
    fixed = recipe(session, f"text.{session.layers() - 1}.block_out", "replace", positions="last", size=4.0)
    options = {"do_sample": True, "num_return_sequences": 4, "top_k": 0}
    torch.manual_seed(0)
    answers = beams(session, pictures[:2], QUESTIONS[:2], [fixed, None], temperature=0.05, **options)
    assert len(set(answers[:4])) == 1
    torch.manual_seed(0)
    answers = beams(session, pictures[:2], QUESTIONS[:2], [fixed, None], temperature=3.0, **options)
    assert len(set(answers[4:])) > 1
    torch.manual_seed(0)
    first = session.ask(pictures[0], QUESTION, fixed, STEPS, **options)
    torch.manual_seed(0)
    assert session.ask(pictures[0], QUESTION, fixed, STEPS, **options) == first
