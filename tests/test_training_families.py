"""tiny-qwen-vl and tiny-instructblip: packing is what a single prompt is, files are as published, starts are copies."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from vlmsteer.loading import BUNDLED
from vlmsteer.training import first_stage, loop, mix, run, tiny_instructblip, tiny_llava, tiny_qwen_vl
from vlmsteer.training.mix import Sample
from vlmsteer.training.packing import IGNORED, Packed, collate, pack
from vlmsteer.training.questions import Exchange
from vlmsteer.training.start import Start
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.palette import COLORS

PUBLISHED = {
    "tiny-qwen-vl": {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "visual.blocks.0.attn.qkv.weight",
        "visual.merger.mlp.0.weight",
        "visual.patch_embed.proj.weight",
    },
    "tiny-instructblip": {
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_projection.weight",
        "qformer.encoder.layer.0.crossattention.attention.query.weight",
        "query_tokens",
        "vision_model.encoder.layers.0.self_attn.qkv.bias",
    },
}
PLANS = {"tiny-qwen-vl": tiny_qwen_vl.PLAN, "tiny-instructblip": tiny_instructblip.PLAN}


@dataclasses.dataclass
class Built:
    name: str
    plan: loop.Plan
    model: Any
    processor: Any


@functools.cache
def build(name: str) -> Built:
    torch.manual_seed(0)
    model, processor = PLANS[name].build(0)
    return Built(name, PLANS[name], model.eval(), processor)


@pytest.fixture(scope="module", params=sorted(PLANS))
def built(request: pytest.FixtureRequest) -> Built:
    return build(request.param)


@pytest.fixture(scope="module")
def drawn() -> list[Sample]:
    rng = random.Random(3)
    samples = [mix.sample(rng, mix.SCENES_FROM) for _ in range(400)]
    crowded = max(samples, key=lambda sample: len(sample.exchanges))
    unseen = next(sample for sample in samples if not all(asked.image for asked in sample.exchanges))
    return [samples[0], crowded, unseen, Sample(unseen.scene, unseen.exchanges[::-1])]


def one_prompt(built: Built, asked: Exchange, image: Image.Image) -> tuple[torch.Tensor, list[int]]:
    """The published forward on one exchange: logits of the answer's tokens, and these tokens."""
    processor = built.processor
    if processor.chat_template is None:
        prompt, answer = asked.question, " " + asked.answer
    else:
        content = [{"type": "image"}] * asked.image + [{"type": "text", "text": asked.question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        answer = asked.answer
    shown: dict[str, Any] = {"images": [image]} if asked.image else {}
    inputs = processor(text=[prompt], return_tensors="pt", **shown)
    length = inputs.input_ids.shape[1]
    whole = processor(text=[prompt + answer], return_tensors="pt", **shown)
    model = built.model
    if "qformer_input_ids" in inputs:  # the Q-Former reads the question, never the answer
        whole.update({name: value for name, value in inputs.items() if name.startswith("qformer")})
        if not asked.image:
            model = model.language_model
            whole = {name: whole[name] for name in ("input_ids", "attention_mask")}
    assert whole["input_ids"][0, :length].tolist() == inputs.input_ids[0].tolist()
    logits = model(**whole).logits[0, length - 1 :]
    return logits, [*whole["input_ids"][0, length:].tolist(), processor.tokenizer.eos_token_id]


def sharper(built: Built) -> Built:
    """Attention of a fresh model is nearly uniform; a mistake would hardly show."""
    model = copy.deepcopy(built.model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(2)
    return dataclasses.replace(built, model=model)


def sequences(drawn: list[Sample], processor: Any, plan: loop.Plan) -> tuple[list[Packed], list[int]]:
    rows = [
        (packed, number)
        for number, sample in enumerate(drawn)
        for packed in pack(sample, processor, plan.image_tokens, plan.tokenize)
    ]
    return [packed for packed, _ in rows], [number for _, number in rows]


def test_packed_questions_give_the_logits_of_single_prompts(built: Built, drawn: list[Sample]) -> None:
    built = sharper(built)
    plan, processor = built.plan, built.processor
    images = [sample.scene.render(plan.image_size).image for sample in drawn]
    packed, numbers = sequences(drawn, processor, plan)
    tensors = collate(packed, processor.tokenizer.pad_token_id, numbers) | loop.pixels(
        images, processor.image_processor
    )
    with torch.no_grad():
        together = loop.answer_logits(built.model, tensors, plan.states)
        singles = [
            one_prompt(built, asked, image)
            for sample, image in zip(drawn, images, strict=True)
            for asked in sample.exchanges
        ]
    alone = torch.cat([logits for logits, _ in singles])
    labels = tensors["labels"][:, 1:]
    assert labels[labels != IGNORED].tolist() == [token for _, ids in singles for token in ids]
    assert alone.std() > 0.3
    assert torch.allclose(together, alone, rtol=0, atol=1e-5), (together - alone).abs().max()


def test_the_picture_matters(built: Built, drawn: list[Sample]) -> None:
    asked = next(one for one in drawn[0].exchanges if one.image)
    built = sharper(built)
    images = [sample.scene.render(84).image for sample in drawn[:2]]
    with torch.no_grad():
        first, second = (one_prompt(built, asked, image)[0] for image in images)
    assert (first - second).abs().max() > 1e-3


def test_positions_are_those_of_the_model(drawn: list[Sample]) -> None:
    qwen = build("tiny-qwen-vl")
    model, processor = qwen.model, qwen.processor
    asked = next(one for one in drawn[0].exchanges if one.image)
    tokens = tiny_qwen_vl.tokenize(asked, processor, tiny_qwen_vl.IMAGE_TOKENS)
    ids = torch.tensor([tokens.ids])
    image = (ids == model.config.image_token_id).int()
    expected, _ = model.model.get_rope_index(ids, mm_token_type_ids=image, image_grid_thw=torch.tensor([[1, 14, 14]]))
    assert tokens.positions.T.tolist() == expected[:, 0].tolist()
    words = tiny_qwen_vl.tokenize(asked._replace(image=False), processor, tiny_qwen_vl.IMAGE_TOKENS)
    assert words.positions.tolist() == [[i] * 3 for i in range(len(words.ids))]


def test_every_question_to_instructblip_carries_what_the_qformer_makes_of_it(drawn: list[Sample]) -> None:
    plan = tiny_instructblip.PLAN
    processor = build("tiny-instructblip").processor
    packed, numbers = sequences(drawn, processor, plan)
    tensors = collate(packed, processor.tokenizer.pad_token_id, numbers)
    shown = [(row, asked.question) for row, sample in enumerate(drawn) for asked in sample.exchanges if asked.image]
    assert tensors["image_of"].tolist() == [row for row, _ in shown]
    reads = processor.qformer_tokenizer([question for _, question in shown], return_tensors="pt", padding=True)
    assert torch.equal(tensors["qformer_input_ids"], reads.input_ids)
    assert torch.equal(tensors["qformer_attention_mask"], reads.attention_mask)
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert int((tensors["input_ids"] == image_id).sum()) == tiny_instructblip.QUERIES * len(shown)
    for row, sees in zip(packed, tensors["visible"][:, 0], strict=True):
        length = len(row.input_ids)
        assert torch.equal(sees[:length], torch.ones_like(sees).tril()[:length])
    assert len(packed) == sum(len(sample.exchanges) for sample in drawn)


def test_instructblip_queries_differ() -> None:
    queries = build("tiny-instructblip").model.query_tokens[0]
    assert torch.cdist(queries, queries).fill_diagonal_(9).min() > 1


@pytest.mark.parametrize("side", [84, 90, 100, 168, 333, 1000])
def test_a_square_picture_has_seven_by_seven_tokens(side: int) -> None:
    processor = build("tiny-qwen-vl").processor
    grid = processor.image_processor(Image.new("RGB", (side, side)), return_tensors="pt")["image_grid_thw"]
    assert grid.tolist() == [[1, 14, 14]]


def test_other_shapes_have_other_grids() -> None:
    processor = build("tiny-qwen-vl").processor
    grid = processor.image_processor(Image.new("RGB", (400, 200)), return_tensors="pt")["image_grid_thw"]
    ((_, height, width),) = grid.tolist()
    assert width > 1.5 * height and height * width <= 14 * 14


def test_answers_are_one_token_a_word(built: Built) -> None:
    for phrase in [*facts(), *COLORS, "Yes", "No", "True", "False", "left", "right", "above", "below"]:
        tokens = built.plan.tokenize(Exchange("", "What is this?", phrase), built.processor, built.plan.image_tokens)
        said = [built.processor.tokenizer.decode([token]).strip() for token in tokens.ids[tokens.prompt : -1]]
        assert said == phrase.split()


def test_any_question_can_be_read(built: Built) -> None:
    rng = random.Random(11)
    asked = [one.question for step in (0, 10_000) for _ in range(300) for one in mix.sample(rng, step).exchanges]
    asked.append("Why is the sky so quaint, xylophone player? [1] {2}")
    readers = [built.processor.tokenizer, getattr(built.processor, "qformer_tokenizer", None)]
    for reader in filter(None, readers):
        assert not any(reader.unk_token_id in reader(question).input_ids for question in asked)
    for question in asked:
        ids = built.processor.tokenizer(question).input_ids
        assert built.processor.tokenizer.decode(ids, skip_special_tokens=True) == question


def test_files_are_those_of_a_published_checkpoint(built: Built, tmp_path: Path) -> None:
    model = copy.deepcopy(built.model).half()
    model.save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    run._rename(tmp_path / "model.safetensors", built.plan.published_names)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert PUBLISHED[built.name] <= set(file.keys())
    assert (tmp_path / "model.safetensors").stat().st_size <= 10_000_000
    loaded: Any
    told: Any
    loaded, told = AutoModelForImageTextToText.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert type(loaded) is type(model)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    again = loaded.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(again[name], value.float()), name
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is type(built.processor)
    assert type(processor.image_processor) is type(built.processor.image_processor)
    assert type(processor.tokenizer) is type(built.processor.tokenizer)
    assert processor.chat_template == built.processor.chat_template
    assert (tmp_path / "chat_template.jinja").exists() == (processor.chat_template is not None)
    assert loaded.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    asked = Exchange("color here", "What color is this strawberry?", "blue")
    first, second = (built.plan.tokenize(asked, each, built.plan.image_tokens) for each in (built.processor, processor))
    assert first.ids == second.ids and first.reads == second.reads


def test_the_text_tower_starts_as_tiny_llavas(built: Built) -> None:
    model = copy.deepcopy(built.model)
    assert built.plan.start
    copied = set(built.plan.start.copy_to(model, built.processor))
    donor = AutoModelForImageTextToText.from_pretrained(BUNDLED / "tiny-llava", dtype=torch.float32).model
    ours = getattr(model, "model", model).language_model
    ours = getattr(ours, "model", ours)
    theirs = dict(donor.language_model.named_parameters())
    for name, value in ours.named_parameters():
        if name.endswith("proj.bias"):
            assert not value.any(), "tiny-llava has none"
        elif not name.startswith("embed_tokens"):
            assert torch.equal(value, theirs[name])
    known = AutoTokenizer.from_pretrained(BUNDLED / "tiny-llava")
    for word in ("▁blue", "▁strawberry", "▁What", "?", "Yes"):
        here = built.processor.tokenizer.get_vocab()
        index = here[word] if word in here else here[word.replace("▁", "Ġ")]
        there = donor.language_model.embed_tokens.weight[known.get_vocab()[word]]
        assert torch.equal(ours.embed_tokens.weight[index], there)
    assert torch.isfinite(ours.embed_tokens.weight).all()
    untouched = dict(built.model.named_parameters())
    for name, value in model.named_parameters():
        assert name in copied or torch.equal(value, untouched[name])


def test_instructblips_vision_starts_as_tiny_llavas(drawn: list[Sample]) -> None:
    blip = build("tiny-instructblip")
    model = copy.deepcopy(blip.model)
    tiny_instructblip.PLAN.start.copy_to(model, blip.processor)  # pyright: ignore[reportOptionalMemberAccess]
    donor = AutoModelForImageTextToText.from_pretrained(BUNDLED / "tiny-llava", dtype=torch.float32).model.vision_tower
    states = torch.randn(2, 50, 128)
    with torch.no_grad():
        for ours, theirs in zip(model.vision_model.encoder.layers, donor.encoder.layers, strict=False):
            assert torch.allclose(ours.self_attn(states)[0], theirs.self_attn(states)[0], atol=1e-5)
            for module in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
                for one, other in zip(
                    ours.get_submodule(module).parameters(), theirs.get_submodule(module).parameters(), strict=True
                ):
                    assert torch.equal(one, other)
        image = drawn[0].scene.render(84).image
        seen = blip.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        llava = AutoProcessor.from_pretrained(BUNDLED / "tiny-llava").image_processor
        assert torch.allclose(seen, llava(image, return_tensors="pt")["pixel_values"], atol=1e-5)


def test_a_run_that_goes_on_does_not_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    blip, starts = build("tiny-instructblip"), []
    plain = Start.copy_to
    monkeypatch.setattr(Start, "copy_to", lambda self, *args: starts.append(self.model) or plain(self, *args))
    firsts: list[int] = []
    plan = dataclasses.replace(
        blip.plan,
        build=lambda seed: (copy.deepcopy(blip.model), blip.processor),
        first_stage=lambda model, processor, seed: firsts.append(seed),
        batch=2,
    )
    for steps in (1, 2):
        model, _ = loop.train(plan, tmp_path, steps, 0, 0, lambda step, loss, seconds: None)
        assert starts == ["tiny-llava"] and firsts == [0]
    donor = AutoModelForImageTextToText.from_pretrained(BUNDLED / "tiny-llava", dtype=torch.float32).model
    trained = model.language_model.model.layers[0].mlp.up_proj.weight
    assert 0 < (trained - donor.language_model.layers[0].mlp.up_proj.weight).abs().max() < 0.01


def test_in_the_first_stage_queries_learn_what_patches_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_stage, "SAMPLES", 32)
    monkeypatch.setattr(first_stage, "BATCH", 16)
    blip, left = build("tiny-instructblip"), {}
    model = copy.deepcopy(blip.model)
    assert blip.plan.start
    blip.plan.start.copy_to(model, blip.processor)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    first_stage.learn_to_see(model, blip.processor, "tiny-llava", 100, 0, left.__setitem__)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert 0 < left[100] < 0.9  # 1 explains nothing
    assert changed and all(name.startswith(first_stage.PARTS) for name in changed)


def test_the_card_says_what_a_model_started_from(built: Built) -> None:
    losses = [{"step": 20, "loss": 1.0, "seconds": 1.0}]
    text = run.card(built.name, built.plan, 20, f"vlmsteer train {built.name}", losses, {})
    assert built.plan.start and built.plan.start.says in text and "from scratch" not in text
    assert "from scratch" in run.card("tiny-llava", tiny_llava.PLAN, 20, "vlmsteer train tiny-llava", losses, {})
