"""tiny-qwen-vl: the real Qwen2.5-VL classes at a size that trains and runs on a laptop.

A vision tower for any grid of patches (windows, then every second block all of it), patches merged two by two, M-RoPE,
a byte-level BPE tokenizer learned on the drawn world's language, and Qwen's chat format. Its text tower starts from
tiny-llava's. All files are those of a published checkpoint.
"""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vlmsteer.training.loop import Plan
from vlmsteer.training.mix import SCENES_FROM, sample
from vlmsteer.training.packing import Tokens, chat
from vlmsteer.training.questions import Exchange
from vlmsteer.training.start import Start

IMAGE_SIZE, PATCH, MERGE = 84, 6, 2
IMAGE_TOKENS = (IMAGE_SIZE // PATCH // MERGE) ** 2
VOCABULARY = 1500
SAMPLES = 4000  # drawn to learn the tokenizer from
VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build(seed: int = 0) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """An untrained model and its processor."""
    tokenizer = _tokenizer(seed)
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2},
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
    }
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=CHAT_TEMPLATE
    )
    ids = tokenizer.get_vocab()
    special: dict[str, Any] = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 4 * MERGE * PATCH,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": 160,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 160,
            "intermediate_size": 416,
            "num_hidden_layers": 8,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            **special,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        **special,
    )
    config._attn_implementation = "sdpa"
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.update(**special)
    return model, processor


def tokenize(exchange: Exchange, processor, image_tokens: int) -> Tokens:
    """The chat format with M-RoPE: text has one position on all three axes, image tokens lie on a square grid."""
    tokens = chat(exchange, processor, image_tokens)
    positions = np.repeat(tokens.positions[:, None], 3, 1)
    if exchange.image:
        side, start = math.isqrt(image_tokens), tokens.ids.index(processor.image_token_id)
        cell = np.arange(image_tokens)
        positions[start : start + image_tokens] = start + np.stack([0 * cell, cell // side, cell % side], 1)
        positions[start + image_tokens :] -= image_tokens - side
    return tokens._replace(positions=positions)


def _tokenizer(seed: int) -> Qwen2Tokenizer:
    rng = random.Random(seed)
    lines = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * SAMPLES
    for number in range(SAMPLES):
        for exchange in sample(rng, SCENES_FROM * (number % 2)).exchanges:
            lines += [exchange.question, exchange.answer]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=bytes_, show_progress=False)
    )
    state = json.loads(learned.to_str())["model"]
    model: dict[str, Any] = {"vocab": state["vocab"], "merges": [tuple(pair) for pair in state["merges"]]}
    return Qwen2Tokenizer(
        **model,
        unk_token=None,  # pyright: ignore[reportArgumentType]: as published; bytes leave nothing unknown
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=["<|im_start|>", *VISION],
    )


PLAN = Plan(
    build,
    IMAGE_SIZE,
    image_tokens=IMAGE_TOKENS,
    steps=4800,
    batch=20,
    peak_rate=1e-3,
    tokenize=tokenize,
    start=Start(
        "tiny-llava",
        {"model.language_model.": "model.language_model."},
        "The text tower starts from tiny-llava's, with the embeddings of the tokens that both tokenizers have.",
    ),
    mix_offset=3300,
    history="These weights were trained to step 2500 with a rate that fell to zero there, then on to 4800.",
)
