"""Given answers: an answer's tokens after its prompt are, to every site and edit, what they are when generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, recipe
from PIL import Image
from torch import Tensor

from vlmsteer import reading
from vlmsteer.errors import InputError
from vlmsteer.streams import greedy

Pictures = list[Image.Image]
ANSWERS = ["red", "strawberry is small, yellow.", "large is the strawberry here? red"]
ODD = ["red, green; (blue)!", "Größe: 日本 é", "red\nsmall", "🙂 ok", "  red ", "What's it?", "a-b 3.5%"]
STEPS = 5


def tolerance(session: Any) -> float:
    """T5's attention scores are larger, so sums in another order differ more."""
    return 5e-4 if session.encoder.start is not None else 1e-4


def prompt_of(session: Any, question: str, image: Any) -> str:
    if session.family.bare_prompt:
        return question
    content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": question}]
    return session.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


@torch.no_grad()
def raw_scores(session: Any, image: Any, question: str, answer: str) -> Tensor:
    """(tokens,) log-probabilities from transformers' processor and model alone."""
    processor, prompt = session.processor, prompt_of(session, question, image)
    shown = {} if image is None else {"images": image}
    model = session.model.language_model if image is None and session.family.bare_prompt else session.model
    asked = processor(text=prompt, return_tensors="pt", **shown)
    if image is None:
        asked = {name: asked[name] for name in ("input_ids", "attention_mask")}
    start = session.model.config.get_text_config().__dict__.get("decoder_start_token_id")
    if session.encoder.start is not None:
        ids = torch.cat(
            [
                torch.tensor([start]),
                session.tokenizer(answer, add_special_tokens=False, return_tensors="pt").input_ids[0],
            ]
        )
        logits = model(**asked, decoder_input_ids=ids[None]).logits[0]
        return logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    text = prompt + ("" if prompt[-1].isspace() else " ") + answer
    whole = dict(processor(text=text, return_tensors="pt", **shown))
    if image is None:
        whole = {name: whole[name] for name in asked}
    whole |= {name: value for name, value in asked.items() if name.startswith("qformer")}
    # OpenVLA's prompt ends in a space that is a token of its own only while no word follows.
    begun = processor(text=prompt.rstrip(" "), return_tensors="pt", **shown)["input_ids"]
    assert torch.equal(whole["input_ids"][:, : begun.shape[1]], begun)
    assert torch.equal(asked["input_ids"][:, : begun.shape[1]], begun)
    ids, count = whole["input_ids"][0, begun.shape[1] :], asked["input_ids"].shape[1]
    whole["input_ids"] = torch.cat([asked["input_ids"], ids[None]], 1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    return model(**whole).logits[0, count - 1 : -1].log_softmax(-1).gather(1, ids[:, None])[:, 0]


def test_scores_equal_a_raw_forward(anyone: Any, pictures: Pictures) -> None:
    for image, question, answer in zip(pictures, QUESTIONS, ANSWERS, strict=True):
        (score,) = anyone.score([image], [question], [answer])
        expected = raw_scores(anyone, image, question, answer)
        torch.testing.assert_close(score, expected, atol=tolerance(anyone), rtol=1e-4)
        assert len(score) == len(anyone.encoder.answer_tokens(answer)[0])


def test_a_row_without_an_image(anyone: Any) -> None:
    (score,) = anyone.score([None], ["red?"], [ANSWERS[1]])
    expected = raw_scores(anyone, None, "red?", ANSWERS[1])
    torch.testing.assert_close(score, expected, atol=tolerance(anyone), rtol=1e-4)


def test_unequal_answers_in_a_batch(anyone: Any, pictures: Pictures) -> None:
    """Rows with and without an image and an edit, answers of different lengths, in one batch or in several."""
    rows = list(zip([*pictures, None], [*QUESTIONS, "What is it, red?"], [*ANSWERS, "a b c d e f g"], strict=True))
    steer = recipe(anyone, "text.*.block_out", positions="last", size=1.5)
    mixed = [steer, None, recipe(anyone, "text.1.mlp_out", "scale", positions="all", seed=1), steer]
    images, questions, answers = (list(column) for column in zip(*rows, strict=True))
    for recipes in (None, mixed):
        listed = recipes or [None] * 4
        alone = [
            anyone.score([image], [text], [answer], steer)[0]
            for (image, text, answer), steer in zip(rows, listed, strict=True)
        ]
        for size in (16, 3):
            together = anyone.score(images, questions, answers, recipes, batch_size=size)
            for one, other in zip(together, alone, strict=True):
                torch.testing.assert_close(one, other, atol=tolerance(anyone), rtol=1e-4)


def steers(session: Any) -> dict[str, Any]:
    """Edits of the prompt's end, of what is generated, of both, and of what comes before."""
    return {
        "plain": None,
        "last": recipe(session, "text.*.block_out", positions="last", size=2.0),
        "prefill": recipe(session, "text.*.block_out", positions="last", phase="prefill", size=2.0),
        "decode": recipe(session, "text.*.attn_out", positions="last", phase="decode", size=2.0),
        "generated": recipe(session, "text.1.head", positions="generated", size=2.0),
        "all": both(
            recipe(session, "text.1.mlp_out", "add_keep_norm", positions="all"),
            recipe(session, "text.0.neuron", "scale", positions="all", phase="decode", seed=1),
        ),
        "index": recipe(session, "text.0.block_out", positions=(-1,), size=2.0),
    }


def written(session: Any, image: Any, question: str, steer: Any) -> Tensor:
    """(steps,) the tokens that the session's own greedy loop gives, whatever ends an answer."""
    with session.opened([image], [question], steer) as stream:
        tokens = []
        for _ in range(STEPS):
            tokens.append(stream.logits.argmax(-1))
            stream.push(tokens[-1])
        return torch.cat(tokens)


def given(session: Any, image: Any, question: str, tokens: Tensor, steer: Any) -> Tensor:
    """(tokens + 1, vocabulary) logits of one forward over the prompt and these tokens."""
    encoded = session.encoder.encode([image], [question])
    encoded.rows = [encoded.rows[0]._replace(answer=tokens)]
    with torch.no_grad():
        return session._run_whole(encoded, steer, len(tokens) + 1)[0]


@pytest.mark.parametrize("name", ["plain", "last", "prefill", "decode", "generated", "all", "index"])
def test_given_as_generated(name: str, anyone: Any, pictures: Pictures) -> None:
    """Each token of a steered answer is the likeliest when it is given, and every state is the one it had."""
    steer, sites = steers(anyone)[name], ["text.*.block_out", "text.1.head", "text.2.neuron"]
    for positions in ("last", "generated"):
        with anyone.read(sites, positions, phase="both") as spoken:
            tokens = written(anyone, pictures[1], QUESTIONS[0], steer)
        with anyone.read(sites, positions, phase="both") as read:
            logits = given(anyone, pictures[1], QUESTIONS[0], tokens, steer)
        assert torch.equal(logits[:-1].argmax(-1), tokens)
        for site in spoken.sites:
            assert len(read.rows(site)[0]) == len(tokens) + (positions == "last")
            bound = 1e-5 * float(spoken.rows(site)[0].abs().max()) + tolerance(anyone)
            torch.testing.assert_close(read.rows(site)[0], spoken.rows(site)[0], atol=bound, rtol=1e-4)


def test_edits_change_given_answers(anyone: Any, pictures: Pictures) -> None:
    """An edit of generated tokens leaves the first token's score and changes those after it; one of the prompt all."""
    plain = anyone.score(pictures[:1], QUESTIONS[:1], ANSWERS[1:2])[0]
    later = anyone.score(pictures[:1], QUESTIONS[:1], ANSWERS[1:2], steers(anyone)["generated"])[0]
    first = anyone.score(pictures[:1], QUESTIONS[:1], ANSWERS[1:2], steers(anyone)["prefill"])[0]
    assert torch.equal(plain[0], later[0]) and (plain[1:] - later[1:]).abs().max() > 1e-3
    assert (plain[0] - first[0]).abs() > 1e-3


def test_what_batches_read(anyone: Any, pictures: Pictures) -> None:
    """Which rows each batch had; the prompt's own tokens are the same with and without an answer after them."""
    site, images, questions = "text.1.block_out", [*pictures, pictures[0]], [*QUESTIONS, "a"]
    answers = [*ANSWERS, "red, red"]
    counts = [len(anyone.encoder.answer_tokens(answer)[0]) for answer in answers]

    def read(positions: Any, answers: Sequence[str] | None, size: int = 3) -> list[Tensor]:
        found, seen = [], []
        for rows, states in reading.batches(anyone, site, images, questions, answers, positions, batch_size=size):
            seen += range(*rows.indices(4))
            found += states.rows(site)
        assert seen == [0, 1, 2, 3]
        return found

    prompts = [len(row) for row in read("all", None)]
    last, spoken, whole = read("last", answers), read("generated", answers), read("all", answers, 2)
    size = max(float(states.abs().max()) for states in whole)
    near = max(tolerance(anyone), 1e-4 * size)
    for i, ended in enumerate(read("last", None)):
        assert len(last[i]) == 1 + counts[i] and len(whole[i]) == prompts[i] + counts[i]
        torch.testing.assert_close(last[i][:1], ended, atol=near, rtol=1e-4)
        torch.testing.assert_close(last[i][1:], spoken[i], atol=near, rtol=1e-4)
        torch.testing.assert_close(whole[i][-1 - counts[i] :], last[i], atol=near, rtol=1e-4)
    if anyone.family.reads_prompt == "text":
        for positions in ("question", "image", (0, -2)):
            for one, other in zip(read(positions, answers), read(positions, None), strict=True):
                torch.testing.assert_close(one, other, atol=near, rtol=1e-4)


@pytest.mark.parametrize("answer", [*ANSWERS, *ODD])
def test_offsets_cover_the_words(answer: str, anyone: Any) -> None:
    ids, offsets = anyone.encoder.answer_tokens(answer)
    assert len(ids) == len(offsets) and all(0 <= first <= last <= len(answer) for first, last in offsets)
    assert [first for first, _ in offsets] == sorted(first for first, _ in offsets)
    covered = {place for first, last in offsets for place in range(first, last)}
    assert {i for i, character in enumerate(answer) if not character.isspace()} <= covered
    for word in answer.split():
        place = answer.index(word)
        inside = [i for i, (first, last) in enumerate(offsets) if first < place + len(word) and last > place]
        assert inside == list(range(inside[0], inside[-1] + 1))


@pytest.mark.parametrize("answer", ["red", "red, green; blue", "日本", "é", "🙂 ok"])
def test_tokens_follow_the_prompt(answer: str, llava: Any, pictures: Pictures) -> None:
    """They are what the tokenizer makes of the answer where it stands, after the prompt and a space."""
    prompt = prompt_of(llava, QUESTIONS[0], pictures[0])
    before, whole = (llava.tokenizer(text).input_ids for text in (prompt, f"{prompt} {answer}"))
    assert whole[: len(before)] == before
    assert llava.encoder.answer_tokens(answer)[0].tolist() == whole[len(before) :]


@pytest.mark.parametrize("answer", ["", " \n", None, 3])
def test_empty_answers_are_refused(answer: Any, llava: Any, pictures: Pictures) -> None:
    with pytest.raises(InputError, match="answer is empty"):
        llava.score(pictures[:2], QUESTIONS[:2], ["red", answer])


def test_answers_that_cannot_be_read_are_refused(anyone: Any, pictures: Pictures) -> None:
    if anyone.encoder.limit:
        with pytest.raises(InputError, match=r"Prompt and answer have \d+ tokens; this model takes 256"):
            anyone.score(pictures[:1], QUESTIONS[:1], ["7 " * 300])
    with pytest.raises(InputError, match="stands for the image"):
        anyone.score(pictures[:1], QUESTIONS[:1], [f"red {anyone.processor.image_token} blue"])


def test_counts_must_agree(llava: Any, pictures: Pictures) -> None:
    """Also where a batch happens to have as many of each."""
    for answers in (ANSWERS[:2], [*ANSWERS, "red"], []):
        for size in (16, 3, 1):
            with pytest.raises(InputError):
                llava.score(pictures, QUESTIONS, answers, batch_size=size)
            with pytest.raises(InputError):
                list(reading.batches(llava, "text.0.block_out", pictures, QUESTIONS, answers, batch_size=size))
    steer = recipe(llava, "text.0.block_out")
    with pytest.raises(InputError):  # two recipes for four rows are not two rows each
        llava.score([None] * 4, ["a", "b", "c", "d"], ["red"] * 4, [steer, None])


def test_greedy_answers_score_highest(llava: Any, pictures: Pictures) -> None:
    """A greedy answer's first token scores higher than any other answer's first token."""
    with llava.opened(pictures[:1], QUESTIONS[:1]) as stream:
        first = int(next(greedy(stream, 1))[0])
    best = float(given(llava, pictures[0], QUESTIONS[0], torch.tensor([first]), None)[0].log_softmax(-1)[first])
    assert all(float(llava.score(pictures[:1], QUESTIONS[:1], [answer])[0][0]) <= best + 1e-5 for answer in ANSWERS)
