"""How tiny-openvla is made: lessons keep the splits apart, a sequence is the prompts themselves, a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlmsteer
from vlmsteer.openvla.actions import bins
from vlmsteer.training.packing import IGNORED
from vlmsteer_robotics import color_pairs
from vlmsteer_robotics.camera import SIDE, pixel
from vlmsteer_robotics.experts import expert_action
from vlmsteer_robotics.layouts import SPLITS
from vlmsteer_robotics.training import frames as framing
from vlmsteer_robotics.training import sight, tiny_openvla
from vlmsteer_robotics.training.batches import Teacher, lending
from vlmsteer_robotics.training.frames import Frames
from vlmsteer_robotics.training.interchange import exchanged, passed
from vlmsteer_robotics.training.lessons import lessons, named
from vlmsteer_robotics.training.losses import bells
from vlmsteer_robotics.training.model import BINS, build

STATS = {"q01": [-0.05] * 3 + [0.0] * 4, "q99": [0.05] * 3 + [0.0] * 3 + [1.0], "mask": [True] * 6 + [False]}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "SHARD", 40)
        return framing.collect(tmp_path_factory.mktemp("frames"), shards=1, report=lambda text: None)


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    return build({"tabletop": {"action": STATS}})


def test_frames_are_drawn_once(frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "SHARD", 40)
    again = framing.collect(tmp_path, shards=1, report=lambda text: None)
    assert np.array_equal(again.images, frames.images) and np.array_equal(again.numbers, frames.numbers, equal_nan=True)
    said: list[str] = []
    framing.collect(tmp_path, shards=1, report=said.append)
    assert not said


def test_a_frame_comes_back_as_it_was(frames: Frames) -> None:
    for number in range(len(frames)):
        frame = frames[number]
        count = len(frame.colors)
        assert 2 <= count <= 4 and frame.blocks.shape == frame.blocks_at_start.shape == (count, 3)
        assert np.isfinite(frame.blocks).all() and -1 <= frame.held < count and 0 <= frame.opening <= 1.1


def test_lessons_ask_about_nothing_that_the_test_split_asks(frames: Frames) -> None:
    assert set(SPLITS) == {"train", "test"}
    held_out, rng = set(color_pairs("test")), np.random.default_rng(0)
    asked = 0
    for number in range(len(frames)):
        frame = frames[number]
        for lesson in (*lessons(frame, rng), *lessons(frame, rng, early=True)):
            if lesson.about is not None:
                asked += 1
                own = frame.colors[lesson.about.number]
                assert not held_out & {(own, other) for other in frame.colors}
    assert asked > 300


def test_a_name_is_true_of_one_block(frames: Frames) -> None:
    for frame in (frames[number] for number in range(len(frames))):
        for name in named(frame):
            fits = [
                number
                for number, color in enumerate(frame.colors)
                if name.color in (None, color)
                and (
                    name.side is None
                    or frame.blocks[number, 1] == {"left": min, "right": max}[name.side](frame.blocks[:, 1])
                )
            ]
            assert fits == [name.number]


def test_actions_are_the_experts(frames: Frames) -> None:
    rng = np.random.default_rng(1)
    for number in range(len(frames)):
        asked = lessons(frames[number], rng)
        for lesson in asked:
            if lesson.about is not None and lesson.acts and lesson.instruction.startswith(("reach", "go")):
                told = lesson.instruction if lesson.lender is None else asked[lesson.lender].instruction
                speed = {"slowly": "slow", "quickly": "fast"}.get(said(told, "slowly", "quickly"), "normal")
                height = said(told, "low", "high") or "normal"
                state = frames[number].state("reach", lesson.about.number, "left", speed, height)
                assert np.array_equal(lesson.numbers, expert_action(state))


def said(instruction: str, *words: str) -> str:
    """The word that the instruction has, or nothing."""
    return next((word for word in words if word in instruction.replace(",", "").split()), "")


def test_a_packed_sequence_is_the_prompts_themselves(frames: Frames, made: tuple[Any, Any]) -> None:
    model, processor = made
    teacher, rng = Teacher(processor, model.config, STATS), np.random.default_rng(2)
    number = next(number for number in range(len(frames)) if named(frames[number]))
    state = rng.bit_generator.state
    batch = teacher.batch(frames, np.array([number]), rng, early=False)
    rng.bit_generator.state = state
    asked = lessons(frames[number], rng)
    model.eval()
    with torch.no_grad():
        mask = torch.zeros(batch.tensors["visible"].shape).masked_fill(~batch.tensors["visible"], -1e9)
        packed = model(
            input_ids=batch.tensors["input_ids"],
            pixel_values=batch.tensors["pixel_values"],
            attention_mask=mask,
            position_ids=batch.tensors["position_ids"],
        ).logits
        found = packed[:, :-1][batch.tensors["labels"][:, 1:] != IGNORED]
        rows = []
        for lesson in asked:
            taught = teacher.taught(lesson)
            alone = model(input_ids=torch.tensor([taught.ids]), pixel_values=batch.tensors["pixel_values"]).logits[
                0, -taught.answer - 1 : -1
            ]
            rows.append(alone)
    assert torch.allclose(found, torch.cat(rows), atol=1e-4)


def test_half_of_the_later_actions_are_in_the_manner_of_others(frames: Frames, made: tuple[Any, Any]) -> None:
    model, processor = made
    teacher = Teacher(processor, model.config, STATS)
    number = next(number for number in range(len(frames)) if named(frames[number]))
    asked = lessons(frames[number], np.random.default_rng(4))
    assert [lesson.lender for lesson in asked if lesson.acts] == [None, None, 0, 1]
    sequence, numbers = teacher.packed(asked)
    pairs = list(lending(asked, sequence))
    assert len(pairs) == 6
    for to, lender in pairs:
        assert sequence.branches[to] - 2 == sequence.branches[lender] >= 0
        assert np.isfinite(numbers[[to + 1, lender + 1]]).all()
    early = teacher.batch(frames, np.array([number]), np.random.default_rng(4), early=True)
    assert early.lent.shape == (0, 3)


def test_a_run_by_layers_is_the_models_own(made: tuple[Any, Any]) -> None:
    model, _ = made
    llama, embedded = model.language_model.model, torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(0))
    mask, positions = torch.full((9, 9), -1e9).triu(1).expand(2, 1, 9, 9), torch.arange(9).expand(2, 9)
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        own = llama(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            output_hidden_states=True,
            output_attentions=True,
        )
        found = passed(llama, embedded, mask, positions, 4, lambda states: states)
        other = passed(llama, embedded, mask, positions, 4, lambda states: states + 1)
    model.set_attn_implementation(before)
    assert all(torch.equal(one, other) for one, other in zip(found.states, own.hidden_states, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(found.attention, own.attentions, strict=True))
    same = [torch.equal(one, two) for one, two in zip(found.states, other.states, strict=True)]
    assert same == [True] * 5 + [False] * 2


def test_an_exchange_moves_one_span_of_some_tokens() -> None:
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    found = exchanged(states, directions, torch.tensor([[1, 4, 2], [0, 3, 0]]))
    for row, to, lender in ((1, 4, 2), (0, 3, 0)):
        assert torch.allclose(directions @ found[row, to], directions @ states[row, lender], atol=1e-5)
        across = torch.linalg.svd(directions)[2][3:]
        assert torch.allclose(across @ found[row, to], across @ states[row, to], atol=1e-5)
        found[row, to] = states[row, to]
    assert torch.equal(found, states)


def test_looks_point_at_what_is_named(frames: Frames, made: tuple[Any, Any]) -> None:
    model, processor = made
    teacher = Teacher(processor, model.config, STATS)
    chosen = np.arange(len(frames))
    batch = teacher.batch(frames, chosen, np.random.default_rng(3), early=True)
    assert set(batch.looks) == {"color", "name", "target", "hand"}
    for look in batch.looks.values():
        assert len(look.rows) == len(look.tokens) == len(look.patches)
        assert (look.patches.sum(1) >= 1).all() and (look.patches.sum(1) <= 16).all()
    words = batch.tensors["input_ids"][batch.looks["color"].rows, batch.looks["color"].tokens].tolist()
    assert {processor.tokenizer.decode(word).strip() for word in words} <= set(sight.KINDS[:-1])


def test_what_is_near_surrounds_the_point(frames: Frames) -> None:
    frame = frames[0]
    side = SIDE // 12
    row, column = pixel(frame.blocks[0])
    found = sight.near(frame.blocks[0], side)
    assert int(row * side / SIDE) * side + int(column * side / SIDE) in found and len(found) <= 4
    there, place, told = sight.targets([frame], side)
    kind = sight.KINDS.index(frame.colors[0])
    assert set(found) <= set(there[0, :, kind].nonzero()[:, 0].tolist())
    assert (told[0] > 0).sum() == (there[0].sum(1) > 0).sum() and place.abs().max() < 1.5


def test_a_bell_stands_over_its_number(made: tuple[Any, Any]) -> None:
    coding = bins(made[0].config)
    numbers = torch.linspace(-1, 1, 41)
    weights = bells(numbers, coding, 2.0)
    assert weights.shape == (41, BINS) and torch.allclose(weights.sum(1), torch.ones(41))
    said = coding.decode(weights.argmax(1).numpy() + coding.first)
    assert np.abs(said - numbers.numpy()).max() < 1.5 * 2 / 255


def test_a_stopped_run_goes_on_as_if_nothing_were(
    frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_openvla, "BATCH", 4)
    monkeypatch.setattr(tiny_openvla, "SAVE_EVERY", 2)
    monkeypatch.setattr(sight, "BATCH", 8)
    monkeypatch.setattr(tiny_openvla, "EYES", 2)

    class Stopped(Exception):
        pass

    def stop(text: str) -> None:
        if "step 20" in text:
            raise Stopped

    whole, _ = tiny_openvla.train(tmp_path / "whole", 22, 0, lambda text: None, frames)
    with pytest.raises(Stopped):
        tiny_openvla.train(tmp_path / "parts", 22, 0, stop, frames)
    parts, processor = tiny_openvla.train(tmp_path / "parts", 22, 0, lambda text: None, frames)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other), name
    tiny_openvla.export(parts, processor, tmp_path / "made")
    session = vlmsteer.load(str(tmp_path / "made"))
    assert session.family.name == "OpenVLA" and (tmp_path / "made" / "dataset_statistics.json").is_file()
