"""Pictures and instructions as pi0 takes them: the image's tokens, the start token, the instruction, a line's end.

transformers' own processor makes the same tokens, but only for rows that show an image, padded, and without saying
which token is which part of the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmsteer.errors import InputError, ModelError

STATISTICS = ("state_mean", "state_std", "actions_mean", "actions_std")  # as transformers' processor_config.json has it
EPSILON = 1e-8  # beside a standard deviation, as in transformers


class PI0Processor:
    """Prompts and pictures as the model takes them.

    Args:
        image_processor: transformers' `PI0ImageProcessor`.
        tokenizer: PaliGemma's.
        image_tokens: how many tokens an image takes.
        image_token_id: the placeholder of each.
        statistics: what the numbers of states and actions were normalized with, by the names in `STATISTICS`.

    Attributes:
        image_token: what a text begins with that is about an image.

    Raises:
        ModelError: if the tokenizer lacks a token that is needed.
    """

    image_token = "<image>"

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_tokens: int,
        image_token_id: int,
        statistics: Mapping[str, Sequence[float] | None] | None = None,
    ) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_tokens, self.image_token_id = image_tokens, image_token_id
        self.statistics = {name: (statistics or {}).get(name) for name in STATISTICS}
        if tokenizer.bos_token_id is None or tokenizer.pad_token_id is None:
            raise ModelError("The tokenizer lacks the start token or the padding token.")

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The prompt for one instruction.

        Raises:
            InputError: if there is more than one message.
        """
        if len(messages) != 1:
            raise InputError(f"A policy is given one instruction, not a conversation of {len(messages)} messages.")
        parts = messages[0]["content"]
        shown = self.image_token * any(part["type"] == "image" for part in parts)
        return shown + "".join(part["text"] for part in parts if part["type"] == "text") + "\n"

    def __call__(self, images: Any = None, text: str | Sequence[str] = (), **options: Any) -> dict[str, Any]:
        """Token ids of each text, unpadded, and the pictures' pixels.

        Offsets count from behind the image's mark; placeholders and the start token have (0, 0).

        Raises:
            InputError: if a text has the image's mark in another place than its beginning.
        """
        start = self.tokenizer.bos_token
        made: dict[str, Any] = {"input_ids": [], "attention_mask": [], "offset_mapping": []}
        for one in [text] if isinstance(text, str) else text:
            shown, rest = one.startswith(self.image_token), one.removeprefix(self.image_token)
            if self.image_token in rest:
                raise InputError(f"{self.image_token!r} stands for the image and can only begin a text.")
            read = self.tokenizer(start + rest, add_special_tokens=False, return_offsets_mapping=True)
            places = [tuple(max(0, place - len(start)) for place in pair) for pair in read["offset_mapping"]]
            patches = self.image_tokens * shown
            made["input_ids"].append([self.image_token_id] * patches + list(read["input_ids"]))
            made["attention_mask"].append([1] * len(made["input_ids"][-1]))
            made["offset_mapping"].append([(0, 0)] * patches + places)
        if images is not None:
            made["pixel_values"] = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return made

    def normalized(self, states: np.ndarray) -> np.ndarray:
        """States (rows, numbers) as the model takes them: those of the checkpoint's own robot less their mean.

        Raises:
            InputError: if there are more or fewer numbers than in the data.
        """
        mean, std = self.statistics["state_mean"], self.statistics["state_std"]
        if mean is None or std is None:
            return states
        if states.shape[1] != len(mean):
            raise InputError(f"A state of this policy's robot has {len(mean)} numbers, not {states.shape[1]}.")
        return (states - np.asarray(mean)) / (np.asarray(std) + EPSILON)

    def unnormalized(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., numbers) in the units of the data; as they are where these are not known."""
        mean, std = self.statistics["actions_mean"], self.statistics["actions_std"]
        if mean is None or std is None:
            return actions
        return actions[..., : len(mean)] * (np.asarray(std) + EPSILON) + np.asarray(mean)

    def save_pretrained(self, folder: Any) -> None:
        """Write the tokenizer's files, preprocessor_config.json and, with statistics, processor_config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        if any(self.statistics.values()):
            (Path(folder) / "processor_config.json").write_text(json.dumps(self.statistics), encoding="utf-8")
