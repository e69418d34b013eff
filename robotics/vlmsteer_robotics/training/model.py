"""tiny-openvla before training: the real OpenVLA class at small size, with its tokenizer and processor.

Two vision towers (DINOv2's with registers, SigLIP's) of 64 patches, the three-layer projector, a Llama, 256 action
tokens at the end of the vocabulary. Positions of patches and action tokens begin as sines and cosines: what is near is
alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from vlmsteer.openvla.configuration import OpenVLAConfig
from vlmsteer.openvla.images import ImageProcessor
from vlmsteer.openvla.model import OpenVLAForActionPrediction
from vlmsteer.openvla.processor import BLANK, V02, OpenVLAProcessor
from vlmsteer_robotics.camera import SIDE
from vlmsteer_robotics.training.lessons import language

PATCH = 12
WORDS = 420  # tokens before the action tokens
BINS = 256
PADDING = 64  # rows of the embedding behind the action tokens, the first for padding
VISION = {"patch_size": PATCH, "embed_dim": 96, "depth": 5, "num_heads": 4, "mlp_ratio": 4}
TEXT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4}


def build(norm_stats: dict[str, Any], seed: int = 0) -> tuple[OpenVLAForActionPrediction, OpenVLAProcessor]:
    """An untrained model and its processor; `norm_stats` says what an action of 1 stands for."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {
        "model_type": "llama", **TEXT, **special, "num_key_value_heads": TEXT["num_attention_heads"],
        "vocab_size": WORDS + BINS + PADDING, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    config = OpenVLAConfig(
        text_config=text,
        pad_to_multiple_of=PADDING,
        image_sizes=[SIDE, SIDE],
        timm_overrides=[{**VISION, "init_values": 1.0}, VISION],
        norm_stats=norm_stats,
        arch_specifier="no-align+fused-gelu-mlp",
        prompt="v0.2",
    )
    model = OpenVLAForActionPrediction(config)
    for module in [*model.language_model.modules(), *model.projector.modules()]:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
    words: Any = model.get_input_embeddings().weight
    said: Any = model.get_output_embeddings().weight
    with torch.no_grad():
        words.normal_(0, 0.1)
        said.normal_(0, 0.02)
        end = model.config.action_end
        words[end - BINS : end] = said[end - BINS : end] = ordered(BINS, words.shape[1])
        for tower in model.vision_backbone.children():
            tower.pos_embed.copy_(sines(SIDE // PATCH, VISION["embed_dim"]))  # pyright: ignore[reportCallIssue]
    model.generation_config.update(**special)
    processor = OpenVLAProcessor(ImageProcessor(SIDE), tokenizer, config.image_tokens, config.image_token_id, "v0.2")
    return model, processor


def sines(side: int, width: int) -> torch.Tensor:
    """Fixed positions of a square of patches, (1, side * side, width): half for the row, half for the column."""
    rates = 1 / 100 ** (np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * rates
    line = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    rows, columns = np.repeat(line, side, 0), np.tile(line, (side, 1))
    return 0.5 * torch.tensor(np.concatenate([rows, columns], 1), dtype=torch.float32)[None]


def ordered(count: int, width: int) -> torch.Tensor:
    """Embeddings (count, width) of numbers from 1 down to -1: the nearer two numbers, the more alike."""
    rates = 0.5 * np.pi * 1.6 ** np.arange(width // 16)
    angles = np.linspace(1, -1, count)[:, None] * rates
    lines = torch.tensor(np.concatenate([np.sin(angles), np.cos(angles)], 1), dtype=torch.float32)
    return 0.05 * lines @ torch.randn(lines.shape[1], width) / lines.shape[1] ** 0.5


def _tokenizer() -> PreTrainedTokenizerFast:
    """Words of the lessons, letters for any others, and as many action tokens as there are bins."""
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Metaspace(BLANK, "never"),
            pre_tokenizers.Punctuation("contiguous"),
        ]
    )
    learned.decoder = decoders.Metaspace(BLANK, "never")
    letters = ["\n", *(chr(code) for code in range(33, 127)), BLANK]
    trainer: Any = trainers.BpeTrainer
    learned.train_from_iterator(
        [V02.format(" " + line) + " " + line for line in language()],
        trainer(
            vocab_size=WORDS, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
        ),
    )
    unused = [f"<unused_{number}>" for number in range(WORDS - learned.get_vocab_size())]
    learned.add_tokens([AddedToken(name, normalized=False, special=True) for name in unused])
    learned.add_tokens([AddedToken(f"<action_{number}>", normalized=False, special=True) for number in range(BINS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=learned, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<PAD>"
    )
