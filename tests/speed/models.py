"""Models to measure on: LLaVA with random weights at a size, and its language model alone for libraries without images.

Speed does not depend on what a model says. The sizes are those of `SIZES`; `twin` shares its weights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CLIPImageProcessor, LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

import vlmsteer
from vlmsteer.training.tiny_llava import build

SIZES = {"tiny": (64, 4, 4, 1400), "small": (512, 8, 8, 32000)}  # width, layers, heads, vocabulary
FOLDER = TemporaryDirectory()


def each(measure: Callable[[str], None]) -> None:
    """Measure at the sizes that the command line names, by default at all, on one thread and without gradients."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for size in sys.argv[1:] or SIZES:
        measure(size)


def llava(size: str, side: int = 84, patch: int = 12) -> Any:
    """A session of a LLaVA of a size whose images have (side / patch) ** 2 tokens; it never says the end."""
    width, layers, heads, vocabulary = SIZES[size]
    text = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": width // heads,
        "vocab_size": vocabulary, "max_position_embeddings": 1024,
    }  # fmt: skip
    session = random_llava(text, side // patch, patch)
    session.model.generation_config.eos_token_id = None
    session.ends = session.ends[:0]  # random weights may say the end at once; every answer is to be as long
    return session


def random_llava(text: Mapping[str, Any], side: int, patch: int = 12, tied: bool = True) -> Any:
    """A session on a LLaVA with side x side image tokens.

    Args:
        text: what the configuration of its language model has other than tiny-llava's.
        patch: pixels of an image token's side.
        tied: whether it says words by the embedding that it reads them by.
    """
    model, processor = build()
    config: Any = model.config
    for name, value in text.items():
        setattr(config.text_config, name, value)
    config.vision_config.image_size, config.vision_config.patch_size = side * patch, patch
    config.image_seq_length = side**2
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    torch.manual_seed(0)
    pixels = {"height": side * patch, "width": side * patch}
    images = CLIPImageProcessor(size={"shortest_edge": side * patch}, crop_size=pixels)
    folder = Path(
        FOLDER.name, str(len(list(Path(FOLDER.name).iterdir())))
    )  # some libraries read the tokenizer later on
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        images, processor.tokenizer, patch_size=patch, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=processor.chat_template,
    ).save_pretrained(folder)  # fmt: skip
    return vlmsteer.load(str(folder))


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
