"""Contrast: two raw forwards put together by hand answer alike: alone, in batches, streamed, sampled, by beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, hooks, recipe
from transformers import LogitsProcessor, LogitsProcessorList

from vlmsteer import decoding
from vlmsteer.decoding.contrast import mix, noisy
from vlmsteer.errors import InputError, RecipeError
from vlmsteer.methods import pai, vcd
from vlmsteer.recipe import Recipe, Rule

FAMILIES = ["llava", "instructblip", "qwen2_5_vl"]
LIMIT = 8


def rule(against: str = "noise", amount: float = 1.0, plausible: float = 0.1, strength: float = 1.0) -> Recipe:
    settings = {"against": against, "amount": amount, "plausible": plausible, "step": 500, "seed": 0}
    return Recipe((), rules=(Rule("contrast", settings, strength),))


def worse(inputs: dict[str, Any], against: str) -> dict[str, Any]:
    """The prompt's tensors with the image spoiled, by VCD's formula written out."""
    pixels = inputs["pixel_values"]
    if against == "blank":
        return {**inputs, "pixel_values": torch.zeros_like(pixels)}
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5
    alpha = torch.cumprod(1 - betas, 0)[500]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return {**inputs, "pixel_values": alpha.sqrt() * pixels + (1 - alpha).sqrt() * noise}


def forward(session: Any, image: Any, question: str, against: str | None, written: list[int]) -> torch.Tensor:
    """Next-token logits (vocabulary,) after what was written: the prompt, then all of that in one more forward."""
    encoded = session.encoder.encode([None if against == "no_image" else image], [question])
    layout = encoded.whole(session.device)
    inputs = dict(layout.inputs) if against in (None, "no_image") else worse(dict(layout.inputs), against)
    mask, last = inputs["attention_mask"], layout.positions[:, -1:]
    with torch.no_grad():
        outputs = session.family.call(session.model, inputs, layout.positions, None, True)
        if written:
            mask = torch.cat([mask, mask.new_ones(1, len(written))], 1)
            positions = torch.cat([last + 1 + step for step in range(len(written))], 1)
            more = {"input_ids": torch.tensor([written]), "attention_mask": mask}
            outputs = session.family.call(session.model, more, positions, outputs.past_key_values, True)
        return outputs.logits[0, -1]


def combined(own: torch.Tensor, other: torch.Tensor, amount: float, plausible: float) -> torch.Tensor:
    """(1 + a) l - a l' among the tokens with p >= beta max p."""
    shares = own.softmax(-1)
    result = (1 + amount) * own - amount * other
    return torch.where(shares < plausible * shares.max(), torch.tensor(-torch.inf), result)


def by_hand(session: Any, image: Any, question: str, against: str, amount: float, plausible: float) -> list[int]:
    written: list[int] = []
    while len(written) < LIMIT and not (written and written[-1] in session.ends.tolist()):
        own, other = (forward(session, image, question, one, written) for one in (None, against))
        written.append(int(combined(own, other, amount, plausible).argmax()))
    return written


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("against", "amount", "plausible"), [("noise", 1.0, 0.1), ("no_image", 0.4, 0.0), ("blank", 2.0, 0.2)]
)
def test_greedy_equals_two_forwards_combined_by_hand(
    sessions: Any, pictures: Any, family: str, against: str, amount: float, plausible: float
) -> None:
    session, contrasted = sessions[family], rule(against, amount, plausible)
    for image, question in zip(pictures[:2], QUESTIONS, strict=False):
        expected = by_hand(session, image, question, against, amount, plausible)
        *_, written = session_tokens(session, image, question, contrasted)
        assert written == expected
        assert session.ask(image, question, contrasted, LIMIT) == session.encoder.decode(torch.tensor(expected))
    assert any(
        session.ask(image, question, contrasted, LIMIT) != session.ask(image, question, None, LIMIT)
        for image, question in zip(pictures, QUESTIONS, strict=True)
    )


def session_tokens(session: Any, image: Any, question: str, contrasted: Recipe) -> list[list[int]]:
    return [tokens.tolist() for tokens in decoding.stream(session, image, question, contrasted, LIMIT)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_single_rows_give_though_rows_end_at_different_times(
    sessions: Any, pictures: Any, family: str
) -> None:
    session = sessions[family]
    images, questions = [*pictures, pictures[0]], [*QUESTIONS, QUESTIONS[2]]
    recipes = [rule(), None, rule("no_image"), rule()]
    singly = [
        session.ask(image, question, one, 12) for image, question, one in zip(images, questions, recipes, strict=True)
    ]
    assert session.ask_many(images, questions, recipes, 12) == singly
    all_of_one = [session.ask(image, question, rule(), 12) for image, question in zip(images, questions, strict=True)]
    assert session.ask_many(images, questions, rule(), 12) == all_of_one
    assert len({len(answer) for answer in all_of_one}) > 1
    assert [list(session.stream(i, q, rule(), 12))[-1] for i, q in zip(images[:3], questions, strict=False)] == (
        all_of_one[:3]
    )


class ByHand(LogitsProcessor):
    """Contrasts each row by a forward over all it has written: no cache that could go wrong."""

    def __init__(self, session: Any, image: Any, question: str, against: str) -> None:
        self.session, self.asked, self.start = session, (image, question, against), 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.start = self.start or input_ids.shape[1]
        rows = []
        for ids, score in zip(input_ids, scores, strict=True):
            other = forward(self.session, *self.asked, ids[self.start :].tolist()).log_softmax(-1)
            rows.append(combined(score.log_softmax(-1), other, 1.0, 0.1).log_softmax(-1))
        return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("generation", [{"num_beams": 3}, {"do_sample": True, "top_k": 0}])
def test_beams_and_samples_equal_contrasts_made_without_a_cache(
    sessions: Any, pictures: Any, family: str, generation: dict[str, Any]
) -> None:
    session, changed = sessions[family], False
    for image, question in zip(pictures[:2], QUESTIONS[1:], strict=True):
        processor = LogitsProcessorList([ByHand(session, image, question, "noise")])
        said = []
        for one, more in ((rule(), {}), (None, {"logits_processor": processor}), (None, {})):
            torch.manual_seed(3)
            said.append(session.ask(image, question, one, 6, **generation, **more))
        assert said[0] == said[1]
        changed |= said[0] != said[2]
    assert changed


def test_greedy_under_generate_is_our_greedy(llava: Any, pictures: Any) -> None:
    for image, question in zip(pictures, QUESTIONS, strict=True):
        assert llava.ask(image, question, rule(), LIMIT, do_sample=False) == llava.ask(image, question, rule(), LIMIT)


def test_a_way_of_generating_that_it_cannot_follow_is_refused(llava: Any, pictures: Any) -> None:
    scores = torch.zeros(1, llava.model.config.text_config.vocab_size)
    with decoding.processors(llava, pictures[0], QUESTIONS[0], rule()) as (processor,):
        processor(torch.tensor([[1, 5]]), scores)
        with pytest.raises(InputError, match="sampling and beams"):
            processor(torch.tensor([[1, 5, 9, 9, 9]]), scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_token_logits_are_contrasted_for_the_rows_that_ask_for_it(
    sessions: Any, pictures: Any, family: str
) -> None:
    session = sessions[family]
    found = session.logits(pictures, QUESTIONS, [rule(plausible=0.0), None, rule("no_image")])
    plain = session.logits(pictures, QUESTIONS)
    torch.testing.assert_close(found[1], plain[1], rtol=0, atol=0)
    for row, against, plausible in ((0, "noise", 0.0), (2, "no_image", 0.1)):
        own, other = (forward(session, pictures[row], QUESTIONS[row], one, []) for one in (None, against))
        torch.testing.assert_close(found[row], combined(own, other, 1.0, plausible), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(found[row], plain[row])


def test_at_strength_0_nothing_changes_to_the_last_bit(llava: Any, pictures: Any) -> None:
    off = rule(strength=0.0)
    assert torch.equal(llava.logits(pictures, QUESTIONS, off), llava.logits(pictures, QUESTIONS))
    assert llava.ask_many(pictures, QUESTIONS, off, LIMIT) == llava.ask_many(pictures, QUESTIONS, None, LIMIT)
    beams = {"num_beams": 3}
    assert llava.ask(pictures[0], QUESTIONS[0], off, LIMIT, **beams) == llava.ask(
        pictures[0], QUESTIONS[0], None, LIMIT, **beams
    )


def test_strength_multiplies_the_amount_and_edits_act_on_the_stream_with_the_image(llava: Any, pictures: Any) -> None:
    edit = recipe(llava, "text.1.block_out", size=0.5)
    image, question = pictures[0], QUESTIONS[0]
    found = llava.logits([image], [question], edit + rule(plausible=0.0, strength=0.5))[0]
    own, other = llava.logits([image], [question], edit)[0], forward(llava, image, question, "noise", [])
    torch.testing.assert_close(found, 1.5 * own - 0.5 * other, rtol=1e-4, atol=1e-4)


def test_a_reader_around_it_sees_the_stream_with_the_image_only(llava: Any, pictures: Any) -> None:
    with llava.read("text.1.block_out", phase="both") as alone:
        llava.ask(pictures[0], QUESTIONS[0], None, 1)
    with llava.read("text.1.block_out", phase="both") as states:
        llava.ask(pictures[0], QUESTIONS[0], rule(), 1)
    assert torch.equal(states["text.1.block_out"], alone["text.1.block_out"])


def test_a_stream_closed_in_the_middle_leaves_no_hook(llava: Any, pictures: Any) -> None:
    before = hooks(llava.model)
    stream = llava.stream(pictures[0], QUESTIONS[0], rule() + recipe(llava, "text.1.block_out"), LIMIT)
    next(stream)
    stream.close()
    assert hooks(llava.model) == before
    assert not llava.instrument.busy


def test_noise_is_the_same_in_every_batch_and_none_at_all_at_its_beginning() -> None:
    pixels = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(noisy(pixels, 500, 0), noisy(pixels, 500, 0))
    assert not torch.equal(noisy(pixels, 500, 0), noisy(pixels, 500, 1))
    torch.testing.assert_close(noisy(pixels, 0, 0), pixels, rtol=0, atol=0.05)
    assert torch.corrcoef(torch.stack([noisy(pixels, 999, 0).flatten(), pixels.flatten()]))[0, 1].abs() < 0.5


def test_the_formula_of_each_method_is_the_papers() -> None:
    own, other = torch.tensor([[2.0, 1.0, -3.0]]), torch.tensor([[1.0, 3.0, 0.0]])
    (vcd_rule,), (pai_rule,) = (
        Recipe((), rules=rules).rules
        for rules in ((vcd.rule(),), (pai.rule(),))
    )  # fmt: skip
    found = mix(own, [other], [vcd_rule])
    assert found.tolist() == [[3.0, -1.0, -torch.inf]]  # 2 l - l', and the third has less than a tenth of the first
    torch.testing.assert_close(mix(own, [other], [pai_rule]), 1.1 * own - 0.1 * other)


@pytest.mark.parametrize("settings", [{"against": "dark"}, {"step": 1000}, {"plausible": 1.0}])
def test_settings_that_mean_nothing_are_refused(llava: Any, pictures: Any, settings: dict[str, Any]) -> None:
    wrong = Recipe((), rules=(Rule("contrast", {"amount": 1.0, **settings}),))
    with pytest.raises(RecipeError):
        llava.ask(pictures[0], QUESTIONS[0], wrong, 2)
