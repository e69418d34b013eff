"""Small random checkpoints of the real classes, saved in the published layout and loaded the way a user loads one.

Weights are larger than a fresh initialization's, so that different prompts and edits give different answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
)

import vlmsteer

torch.set_num_threads(1)

TEXT = ["USER: [INST]", "What color is the strawberry here? ASSISTANT: red", "[/INST] green blue yellow small large"]
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
NEXT_TEMPLATE = (
    "{% for message in messages %}{{ '[INST] ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endfor %}"
)
SIZE, PATCH = 28, 14
PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def _tokenizer() -> LlamaTokenizer:
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Punctuation()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    trainer: Any = trainers.BpeTrainer
    learned.train_from_iterator(
        TEXT, trainer(vocab_size=420, special_tokens=special, initial_alphabet=letters, show_progress=False)
    )
    state = json.loads(learned.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        pad_token="<pad>",
        padding_side="left",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def _text(kind: Any, tokenizer: Any, **extra: Any) -> Any:
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **extra,
    )


def save_checkpoint(folder: Path, next_tiles: bool, seed: int = 0) -> Path:
    """Save a random LLaVA, or LLaVA-NeXT, as a published checkpoint is."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        initializer_factor=3.0,
    )
    shared: dict[str, Any] = {
        "vision_config": vision,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": (SIZE // PATCH) ** 2,
    }
    steps: dict[str, Any] = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    side: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    model: Any
    if next_tiles:
        text = _text(MistralConfig, tokenizer, sliding_window=None)
        model = LlavaNextForConditionalGeneration(
            LlavaNextConfig(text_config=text, image_grid_pinpoints=PINPOINTS, **shared)
        )
        images: Any = LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **side)
        processor: Any = LlavaNextProcessor(images, tokenizer, chat_template=NEXT_TEMPLATE, **steps)
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(text_config=_text(LlamaConfig, tokenizer), **shared))
        processor = LlavaProcessor(CLIPImageProcessor(**side), tokenizer, chat_template=LLAVA_TEMPLATE, **steps)
    with torch.no_grad():
        for module in model.model.multi_modal_projector.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 0.3)
        model.lm_head.weight[3:259] = 0  # bytes are hardly ever said: half a character would hide which byte it was
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random-llava", next_tiles=False)


@pytest.fixture(scope="session")
def next_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random-next", next_tiles=True, seed=1)


@pytest.fixture(scope="session")
def llava(llava_folder: Path) -> Any:
    """A random LLaVA session. Tests leave it as they found it."""
    return vlmsteer.load(llava_folder)


@pytest.fixture(scope="session")
def llava_next(next_folder: Path) -> Any:
    """A random LLaVA-NeXT session with tiles and a Mistral decoder."""
    return vlmsteer.load(next_folder)


@pytest.fixture(scope="session", params=["llava", "llava_next"])
def session(request: pytest.FixtureRequest) -> Any:
    """Each family in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Three images of different shapes with structure in them; under NeXT they give different numbers of tiles."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for width, height in [(28, 28), (60, 28), (40, 44)]:
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        made.append(Image.fromarray(pixels.numpy()))
    return made
