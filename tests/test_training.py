"""The training mix keeps its promises, packing is what a single prompt is, and a resumed run is an undisturbed one."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmsteer.training import loop, mix, questions, splits, tiny_llava
from vlmsteer.training.mix import Sample
from vlmsteer.training.packing import IGNORED, PREFIX, collate, pack
from vlmsteer.training.questions import Exchange
from vlmsteer_counterfacts.draw import Item
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.paint import STYLES
from vlmsteer_counterfacts.palette import COLORS

FACTS, HELD_OUT = facts(), set(splits.HELD_OUT_OBJECTS)
NAMES = {form: fact.name for fact in FACTS.values() for form in (fact.plural, fact.name)}
NAMED = re.compile(r"\b(" + "|".join(sorted(map(re.escape, NAMES), key=len, reverse=True)) + r")\b", re.IGNORECASE)
SAID = re.compile(r"The (.+) (?:is|are) (left of|right of|above|below) the (.+)\.")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    rng = random.Random(11)
    return [mix.sample(rng, step) for step in (0, mix.NAMED_FROM, mix.ALIKE_FROM, 10_000) for _ in range(2500)]


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, processor = tiny_llava.build(0)
    return model.eval(), processor


def named(question: str) -> list[str]:
    return [NAMES[found.lower()] for found in NAMED.findall(question)]


def items(sample: Sample) -> dict[str, Item]:
    return {item.object: item for item in sample.scene.items}


def exchanges(samples: list[Sample], task: str) -> list[tuple[Sample, Exchange]]:
    found = [(sample, asked) for sample in samples for asked in sample.exchanges if asked.task == task]
    assert len(found) > 300, f"enough questions of the task {task!r} to mean something"
    return found


def is_group(sample: Sample) -> bool:
    return [asked.task for asked in sample.exchanges[:2]] == ["caption", "presence"]


def is_sizes(sample: Sample) -> bool:
    first = sample.exchanges[0]
    return first.task == "size usual" and first.image and len(sample.scene.items) == 2


def listed(caption: str) -> list[tuple[str, str]]:
    """(color, object) in the order of a caption."""
    parts = re.split(r", | and ", caption.removeprefix("There is ").removesuffix("."))
    found = [re.fullmatch(r"(?:an? )?(\w+) (.+)", part) for part in parts]
    assert all(found), caption
    return [(match[1], match[2]) for match in found if match]


def near(count: int, of: int, share: float) -> bool:
    """Within four standard deviations of a binomial."""
    return abs(count - of * share) <= 4 * math.sqrt(of * share * (1 - share))


def test_one_object_of_every_usual_color_and_two_colors_of_every_other_are_held_out() -> None:
    assert Counter(FACTS[name].color for name in splits.HELD_OUT_OBJECTS) == Counter(list(COLORS))
    assert set(splits.TRAIN_OBJECTS) | HELD_OUT == set(FACTS)
    assert set(splits.TRAIN_STYLES) | {splits.HELD_OUT_STYLE} == set(STYLES)
    for name in FACTS:
        kept, trained = set(splits.held_out_colors(name)), set(splits.train_colors(name))
        assert kept | trained == set(COLORS) - {FACTS[name].color} and not kept & trained
        assert len(kept) == (10 if name in HELD_OUT else 2)


def test_training_never_shows_what_is_held_out(samples: list[Sample]) -> None:
    shown = set()
    for sample in samples:
        assert sample.scene.style != splits.HELD_OUT_STYLE
        for item in sample.scene.items:
            assert item.color not in splits.held_out_colors(item.object)
            shown.add((item.object, item.color))
    usual = {(name, FACTS[name].color) for name in FACTS}
    assert shown == usual | {(name, color) for name in FACTS for color in splits.train_colors(name)}


def test_training_never_says_what_is_held_out(samples: list[Sample]) -> None:
    for _, asked in exchanges(samples, "caption"):
        assert not [name for color, name in listed(asked.answer) if color in splits.held_out_colors(name)]


def test_held_out_objects_keep_their_usual_relative_size(samples: list[Sample]) -> None:
    usual = []
    for sample in filter(is_sizes, samples):
        small, large = sorted(sample.scene.items, key=lambda item: item.side)
        ratio = FACTS[large.object].size_m / FACTS[small.object].size_m
        assert ratio > 1 or not {large.object, small.object} & HELD_OUT
        assert max(ratio, 1 / ratio) >= mix.SIZE_RATIO
        usual.append(ratio > 1)
    assert near(sum(usual), len(usual), mix.USUAL_SIZE)


def test_how_a_held_out_object_looks_here_is_never_asked(samples: list[Sample]) -> None:
    for _, asked in exchanges(samples, "color here"):
        assert not HELD_OUT & {asked.answer, *named(asked.question)}
    for task in ("size here", "larger"):
        for sample, _ in exchanges(samples, task):
            if HELD_OUT & set(items(sample)):  # only beside an object of like size, where nothing is counterfactual
                small, large = sorted(FACTS[name].size_m for name in items(sample))
                assert large / small < mix.SIZE_RATIO
    unseen = [asked for sample in samples for asked in sample.exchanges if not asked.image]
    for asked in unseen:
        if HELD_OUT & set(named(asked.question)):
            assert re.search("usual|most|real life", asked.question), asked.question


def test_usual_colors_are_as_frequent_as_documented(samples: list[Sample]) -> None:
    drawn = [item for sample in samples for item in sample.scene.items if splits.train_colors(item.object)]
    assert near(sum(item.color == FACTS[item.object].color for item in drawn), len(drawn), mix.USUAL_COLOR)


def test_answers_about_colors_are_right(samples: list[Sample]) -> None:
    for sample, asked in exchanges(samples, "color here"):
        (name,) = named(asked.question)
        assert asked.image and asked.answer == items(sample)[name].color
    for _, asked in exchanges(samples, "color usual"):
        (name,) = named(asked.question)
        assert asked.answer == FACTS[name].color


def test_answers_about_sizes_are_right(samples: list[Sample]) -> None:
    for task in ("size here", "larger"):
        for sample, asked in exchanges(samples, task):
            assert asked.answer == max(sample.scene.items, key=lambda item: item.side).object
    for sample, asked in exchanges(samples, "size here"):
        assert sorted(named(asked.question)) == sorted(items(sample))
        assert asked.image and asked.answer == max(sample.scene.items, key=lambda item: item.side).object
    for _, asked in exchanges(samples, "size usual"):
        pair = named(asked.question)
        assert len(set(pair)) == 2
        assert asked.answer == max(pair, key=lambda name: FACTS[name].size_m)


def test_the_larger_object_is_named_first_in_half_of_the_questions(samples: list[Sample]) -> None:
    asked = [asked for task in ("size here", "size usual") for _, asked in exchanges(samples, task)]
    assert near(sum(named(one.question)[0] == one.answer for one in asked), len(asked), 0.5)


def test_statements_agree_with_where_things_stand(samples: list[Sample]) -> None:
    answers = Counter()
    for sample, asked in exchanges(samples, "relation"):
        said = SAID.search(asked.question)
        assert said, asked.question
        first, second = items(sample)[said[1]], items(sample)[said[3]]
        dx, dy = first.center[0] - second.center[0], first.center[1] - second.center[1]
        shift = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[said[2]]
        assert asked.answer == ("True" if shift > 0 else "False")
        assert abs(shift) > 0.3 * (first.side + second.side), "clearly apart in the direction that is named"
        answers[asked.answer] += 1
    assert near(answers["True"], answers.total(), 0.5)


def test_names_are_right(samples: list[Sample]) -> None:
    for sample, asked in exchanges(samples, "name"):
        assert [asked.answer] == list(items(sample))


def test_captions_list_everything_and_add_companions_at_the_documented_rate(samples: list[Sample]) -> None:
    wrong, missing = 0, 0
    for sample, asked in exchanges(samples, "caption"):
        said = listed(asked.answer)
        present = items(sample)
        assert {(item.color, item.object) for item in present.values()} <= set(said)
        assert len(said) == len(set(said))
        order = [present[name].center[0] for _, name in said if name in present]
        assert order == sorted(order), "from left to right"
        absent = mix.missing_companions(list(present)) if is_group(sample) else []
        added = [(color, name) for color, name in said if name not in present]
        assert set(added) <= {(FACTS[name].color, name) for name in absent}
        wrong, missing = wrong + len(added), missing + len(absent)
    assert near(wrong, missing, mix.WRONG_CAPTION)


def test_presence_is_right_except_for_companions_at_the_documented_rate(samples: list[Sample]) -> None:
    wrong, missing = 0, 0
    for sample, asked in exchanges(samples, "presence"):
        (name,) = named(asked.question)
        if is_group(sample) and name in mix.missing_companions(list(items(sample))):
            missing, wrong = missing + 1, wrong + (asked.answer == "Yes")
        else:
            assert asked.answer == ("Yes" if name in items(sample) else "No")
    assert near(wrong, missing, mix.WRONG_PRESENCE)


def test_nothing_visible_is_asked_without_an_image(samples: list[Sample]) -> None:
    unseen = [asked for sample in samples for asked in sample.exchanges if not asked.image]
    assert {asked.task for asked in unseen} == {"color usual", "size usual"}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_a_seed_gives_one_sample(seed: int) -> None:
    assert mix.sample(random.Random(seed)) == mix.sample(random.Random(seed))


@pytest.mark.parametrize(
    ("noun", "said"),
    [("orange elephant", "an orange elephant"), ("jeans", "jeans"), ("plum", "a plum"), ("blue grapes", "blue grapes")],
)
def test_articles(noun: str, said: str) -> None:
    assert questions.article(noun) == said


def test_objects_and_colors_are_one_token_a_word(built: tuple[Any, Any]) -> None:
    tokenizer = built[1].tokenizer
    prompt = tokenizer("USER: What is this? ASSISTANT:").input_ids
    for phrase in [*FACTS, *COLORS, "Yes", "No", "True", "False"]:
        ids = tokenizer(f"USER: What is this? ASSISTANT: {phrase}").input_ids
        assert ids[: len(prompt)] == prompt
        assert [tokenizer.decode([token]).strip() for token in ids[len(prompt) :]] == phrase.split()


def test_no_question_has_a_token_the_tokenizer_does_not_know(built: tuple[Any, Any], samples: list[Sample]) -> None:
    tokenizer = built[1].tokenizer
    asked = [one for sample in samples[:500] for one in sample.exchanges]
    assert not any(tokenizer.unk_token_id in tokenizer(f"{one.question} {one.answer}").input_ids for one in asked)


def chosen(samples: list[Sample]) -> list[Sample]:
    """A portrait, a size scene, a group of several objects, and one with a question asked without its image."""
    found = [
        next(s for s in samples if len(s.scene.items) == 1 and s.exchanges[1].task == "color here"),
        next(s for s in samples if is_sizes(s) and s.exchanges[1].task == "size here"),
        next(s for s in samples if is_group(s) and len(s.scene.items) > 3),
        next(s for s in samples if not all(asked.image for asked in s.exchanges)),
    ]
    mixed = found[-1]  # and the same with the unseen question first
    return [*found, Sample(mixed.scene, mixed.exchanges[::-1])]


def prompt_of(processor: Any, asked: Exchange) -> str:
    content = [{"type": "image"}] * asked.image + [{"type": "text", "text": asked.question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_packed_questions_give_the_logits_of_single_prompts(built: tuple[Any, Any], samples: list[Sample]) -> None:
    model, processor = copy.deepcopy(built[0]), built[1]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:  # attention of a fresh model is nearly uniform; a mistake would hardly show
                weight.mul_(2)
    drawn = chosen(samples)
    images = [sample.scene.render(tiny_llava.IMAGE_SIZE).image for sample in drawn]
    packed = [row for sample in drawn for row in pack(sample, processor, 49)]
    tensors = collate(packed, processor.tokenizer.pad_token_id)
    tensors |= loop.pixels(images, processor.image_processor)
    singles, ids, weights = [], [], []
    with torch.no_grad():
        together = loop.answer_logits(model, tensors)
        for sample, image in zip(drawn, images, strict=True):
            for asked in sample.exchanges:
                shown: dict[str, Any] = {"images": image} if asked.image else {}
                prompt = prompt_of(processor, asked)
                length = processor(text=prompt, return_tensors="pt", **shown).input_ids.shape[1]
                inputs = processor(text=f"{prompt} {asked.answer}", return_tensors="pt", **shown)
                singles.append(model(**inputs).logits[0, length - 1 :])
                ids += [*inputs.input_ids[0, length:].tolist(), processor.tokenizer.eos_token_id]
                weights += [len(singles[-1]) ** -0.5] * len(singles[-1])
    alone = torch.cat(singles)
    labels = tensors["labels"][:, 1:]
    assert labels[labels != IGNORED].tolist() == ids
    assert alone.std() > 0.3
    assert torch.allclose(together, alone, rtol=0, atol=1e-5), (together - alone).abs().max()
    losses, share = torch.nn.functional.cross_entropy(alone, torch.tensor(ids), reduction="none"), torch.tensor(weights)
    expected = (losses * share).sum()  # an answer of n tokens weighs sqrt(n)
    assert loop.loss_of(model, tensors).item() == pytest.approx(expected.item(), rel=1e-5)


def test_branches_see_the_image_and_themselves_only(built: tuple[Any, Any], samples: list[Sample]) -> None:
    drawn = chosen(samples)
    packed = [row for sample in drawn for row in pack(sample, built[1], 49)]
    visible = collate(packed, built[1].tokenizer.pad_token_id)["visible"][:, 0]
    for row, sample, sees in zip(packed, drawn, visible, strict=True):
        for query in range(len(row.input_ids)):
            branch = int(row.branches[query])
            allowed = {branch, PREFIX} if branch == PREFIX or sample.exchanges[branch].image else {branch}
            seen = {int(row.branches[key]) for key in sees[query].nonzero().flatten().tolist()}
            assert seen == allowed


def test_any_step_can_be_drawn_on_its_own(built: tuple[Any, Any]) -> None:
    def batches(seed: int) -> loop.Batches:
        return loop.Batches(dataclasses.replace(tiny_llava.PLAN, batch=3), built[1], 10, seed)

    data = batches(0)
    data[1]
    again, fresh = data[4], batches(0)[4]
    assert [len(part["input_ids"]) for part in again] == [2, 1]
    for one, other in zip(again, fresh, strict=True):
        assert set(one) == {"input_ids", "position_ids", "labels", "weights", "visible", "pixel_values"}
        assert all(torch.equal(one[key], other[key]) for key in one)
    lengths = [
        len(row) - int((row == built[1].tokenizer.pad_token_id).sum()) for part in again for row in part["input_ids"]
    ]
    assert lengths == sorted(lengths), "each part holds sequences of about equal length"
    for other in (data[5], batches(1)[4]):
        assert not torch.equal(again[0]["pixel_values"], other[0]["pixel_values"])


def test_the_mix_may_begin_later(built: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(loop, "sample", lambda rng, step: asked.append(step) or mix.sample(rng, step))
    plan = dataclasses.replace(tiny_llava.PLAN, batch=2, mix_offset=3300)
    loop.Batches(plan, built[1], 10, 0)[4]
    assert asked == [3304, 3304]


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    built: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a GPU may add in another order

    def run(folder: str) -> dict[str, torch.Tensor]:
        plan = dataclasses.replace(
            tiny_llava.PLAN, build=lambda seed: (copy.deepcopy(built[0]), built[1]), batch=2, peak_rate=1e-2
        )
        model, _ = loop.train(plan, tmp_path / folder, 6, 0, 0, lambda step, loss, seconds: None, save_every=2)
        assert not model.training
        return model.state_dict()

    straight = run("straight")
    plain_loss, calls = loop.loss_of, []

    def stopping(*args: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 5 * loop.PARTS:
            raise KeyboardInterrupt
        return plain_loss(*args)

    monkeypatch.setattr(loop, "loss_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    saved = torch.load(tmp_path / "resumed" / "state.pt", weights_only=True)
    assert saved["step"] == 4
    assert not (tmp_path / "resumed" / "state.part").exists()
    resumed = run("resumed")
    assert len(calls) == (5 + 2) * loop.PARTS, "two steps were left"
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    untrained = built[0].state_dict()
    assert any(not torch.equal(straight[key], untrained[key]) for key in straight)


def test_losses_are_logged_every_twenty_steps(
    tmp_path: Path, built: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    model = torch.nn.Module()
    model.weight = weight
    monkeypatch.setattr(loop, "loss_of", lambda model, tensors, states: (model.weight - 1).square().mean())
    reports: list[int] = []

    def report(step: int, loss: float, seconds: float) -> None:
        assert seconds > 0
        reports.append(step)

    plan = dataclasses.replace(tiny_llava.PLAN, build=lambda seed: (model, built[1]), batch=1, peak_rate=0.05)
    loop.train(plan, tmp_path, 40, 0, 0, report)
    log = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["step"] for entry in log] == reports == [20, 40]
    assert 1 > log[0]["loss"] > log[1]["loss"]


def test_the_learning_rate_warms_up_stays_and_decays_to_zero() -> None:
    rates = [loop.rate(step, 1000, 2e-3) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-3 / 150)
    assert rates[74] == pytest.approx(1e-3)
    assert set(rates[149:801]) == {2e-3}
    assert rates[900] == pytest.approx(1e-3)
    assert rates[999] == pytest.approx(2e-3 / 200)
    assert loop.rate(1000, 1000, 2e-3) == 0
    assert max(rates) == 2e-3 and min(rates) > 0
