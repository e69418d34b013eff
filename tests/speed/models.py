"""Models to measure on: LLaVA with random weights at a size, and its language model alone for libraries without images.

Speed does not depend on what a model says. The sizes are those of `SIZES`; `twin` shares its weights.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CLIPImageProcessor, LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

import vlmsteer
from vlmsteer.training.tiny_llava import build

SIZES = {"tiny": (64, 4, 4, 1400), "small": (512, 8, 8, 32000)}  # width, layers, heads, vocabulary
FOLDER = TemporaryDirectory()


def llava(size: str, side: int = 84, patch: int = 12) -> Any:
    """A session of a LLaVA whose images have (side / patch) ** 2 tokens."""
    model, processor = build()
    config: Any = model.config
    width, layers, heads, vocabulary = SIZES[size]
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 4 * width, layers
    text.num_attention_heads = text.num_key_value_heads = heads
    text.head_dim, text.vocab_size, text.max_position_embeddings = width // heads, vocabulary, 1024
    config.vision_config.image_size, config.vision_config.patch_size = side, patch
    config.image_seq_length = (side // patch) ** 2
    torch.manual_seed(0)
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    folder = Path(FOLDER.name, f"{size}-{side}")  # some libraries look for the tokenizer's files later on
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        images, processor.tokenizer, patch_size=patch, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=processor.chat_template,
    ).save_pretrained(folder)  # fmt: skip
    session = vlmsteer.load(str(folder))
    session.model.generation_config.eos_token_id = None
    session.ends = session.ends[:0]  # random weights may say the end at once; every answer is to be as long
    return session


def twin(session: Any) -> Any:
    """The session's language model as a model of its own, with the same weights."""
    model = LlamaForCausalLM(session.model.config.text_config)
    weights = {f"model.{name}": value for name, value in session.model.model.language_model.state_dict().items()}
    model.load_state_dict({**weights, "lm_head.weight": session.model.lm_head.weight}, assign=True)
    model.generation_config.pad_token_id = session.tokenizer.pad_token_id
    model.generation_config.eos_token_id = None
    return model.eval()


def prompts(session: Any, count: int, shortest: int = 4, longest: int = 64, seed: int = 0) -> list[str]:
    """Questions of very different lengths, in words of the tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    words = ["red", "green", "blue", "small", "large", "what", "color", "is", "this", "picture"]
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [" ".join(words[i] for i in torch.randint(0, len(words), (n,), generator=generator)) for n in lengths]


def batch(session: Any, questions: list[str]) -> dict[str, torch.Tensor]:
    """What the language model alone is given for these questions: left-padded ids and their mask."""
    layout = session.encoder.encode([None] * len(questions), questions).whole(session.device)
    return {"input_ids": layout.inputs["input_ids"], "attention_mask": layout.inputs["attention_mask"]}
