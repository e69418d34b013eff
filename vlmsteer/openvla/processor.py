"""From an instruction and a picture to OpenVLA's tokens.

The model reads the start token, then the patches, then the prompt; here each patch has a placeholder in `input_ids`,
so that it is known which token is which. A prompt that ends in a space ends with the empty token (29871 in Llama 2),
which came before every action in training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vlmsteer.errors import InputError, ModelError, did_you_mean
from vlmsteer.openvla.images import ImageProcessor

BLANK = "▁"
V01 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: What action should the robot take to {}? ASSISTANT:"
)
V02 = "In: What action should the robot take to {}?\nOut:"
PROMPTS = {"v0.1": V01, "v0.2": V02}


class OpenVLAProcessor:
    """Prompts and pictures as the model takes them.

    Args:
        image_processor: prepares pictures.
        tokenizer: a fast Llama tokenizer.
        image_tokens: how many tokens an image takes.
        image_token_id: the placeholder of each.
        prompt: one of `PROMPTS`.

    Attributes:
        image_token: what a text begins with that is about an image.

    Raises:
        ModelError: if the tokenizer lacks the empty token, or there is no such prompt.
    """

    image_token = "<image>"

    def __init__(
        self, image_processor: ImageProcessor, tokenizer: Any, image_tokens: int, image_token_id: int, prompt: str
    ) -> None:
        if prompt not in PROMPTS:
            raise ModelError(f"OpenVLA has no prompt {prompt!r}{did_you_mean(str(prompt), PROMPTS)}")
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_tokens, self.image_token_id, self.prompt = image_tokens, image_token_id, prompt
        self.blank = tokenizer.get_vocab().get(BLANK)
        if self.blank is None or tokenizer.bos_token_id is None or tokenizer.pad_token_id is None:
            raise ModelError(f"The tokenizer lacks the start token, the padding token or the empty token {BLANK!r}.")

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **options: Any
    ) -> str:
        """The prompt for one instruction; as in training, v0.2 writes it in small letters.

        Raises:
            InputError: if there is more than one message.
        """
        if len(messages) != 1:
            raise InputError(f"A policy is given one instruction, not a conversation of {len(messages)} messages.")
        parts = messages[0]["content"]
        instruction = "".join(part["text"] for part in parts if part["type"] == "text")
        instruction = instruction.lower() if self.prompt == "v0.2" else instruction
        shown = self.image_token * any(part["type"] == "image" for part in parts)
        return shown + PROMPTS[self.prompt].format(instruction) + " " * add_generation_prompt

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] = (),
        return_offsets_mapping: bool = False,
        return_tensors: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Token ids of each text, and the pictures' pixels.

        Offsets count from behind the image's mark; placeholders have (0, 0). With `return_tensors` the rows are padded
        on the left.

        Raises:
            InputError: if a text has the image's mark in another place than its beginning.
        """
        texts = [text] if isinstance(text, str) else list(text)
        made: dict[str, Any] = {"input_ids": [], "attention_mask": []}
        if return_offsets_mapping:
            made["offset_mapping"] = []
        for one in texts:
            ids, offsets = self._row(one)
            made["input_ids"].append(ids)
            made["attention_mask"].append([1] * len(ids))
            if return_offsets_mapping:
                made["offset_mapping"].append(offsets)
        if return_tensors:
            longest = max(map(len, made["input_ids"]))
            for name, fill in (("input_ids", self.tokenizer.pad_token_id), ("attention_mask", 0)):
                made[name] = torch.tensor([[fill] * (longest - len(row)) + row for row in made[name]])
        return made if images is None else {**made, **self.image_processor(images)}

    def _row(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        shown = text.startswith(self.image_token)
        text = text.removeprefix(self.image_token)
        if self.image_token in text:
            raise InputError(f"{self.image_token!r} stands for the image and can only begin a text.")
        blank = text.endswith(" ")
        read = self.tokenizer(text[: len(text) - blank], add_special_tokens=False, return_offsets_mapping=True)
        before = [self.tokenizer.bos_token_id] + [self.image_token_id] * (self.image_tokens * shown)
        after = [self.blank] * blank
        offsets = [(0, 0)] * len(before) + list(read["offset_mapping"]) + [(len(text) - 1, len(text))] * blank
        return before + list(read["input_ids"]) + after, offsets

    def save_pretrained(self, folder: Any) -> None:
        """Write the tokenizer's files and preprocessor_config.json, as published."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        path = Path(folder) / "preprocessor_config.json"
        path.write_text(json.dumps(self.image_processor.written(), indent=2), encoding="utf-8")
