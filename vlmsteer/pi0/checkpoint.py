"""A pi0 checkpoint's files: `loading` takes its classes from here.

The model is transformers'. LeRobot's config.json names its type as `type` and leaves the towers' sizes out: they are
transformers' defaults then. It comes without a tokenizer; PaliGemma's belongs to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.utils.hub import cached_file

from vlmsteer.errors import InputError, ModelError
from vlmsteer.pi0.processor import STATISTICS, PI0Processor

TRAINED = {r"^model\.(?=paligemma_with_expert\.|state_proj\.|action_)": ""}  # LeRobot writes `model.` when it trains

__all__ = ["PI0ForConditionalGeneration", "configuration", "processor"]


class PI0Config(transformers.PI0Config):
    """transformers' configuration, with the sections of its vision-language model in the usual places."""

    @property
    def text_config(self) -> Any:
        return self.vlm_config.text_config  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

    @property
    def vision_config(self) -> Any:
        return self.vlm_config.vision_config  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

    @property
    def image_token_id(self) -> int:
        return self.vlm_config.image_token_id  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


class PI0ForConditionalGeneration(transformers.PI0ForConditionalGeneration):
    """transformers' model, called with images one after the other, so that a row of a batch may show none."""

    config_class = PI0Config
    config: PI0Config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', also from what LeRobot's training writes."""
        return super().from_pretrained(pretrained_model_name_or_path, *args, **{"key_mapping": TRAINED, **kwargs})

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        state: Tensor | None = None,
        noise: Tensor | None = None,
        timestep: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The velocity (rows, chunk, numbers) of the flow, as `logits`, and the cache.

        Args:
            input_ids: (rows, tokens); without them, `past_key_values` hold a prompt that has been read.
            pixel_values: (images, 3, height, width), in the order of their places in `input_ids`.
            state: (rows, numbers) of the robot, normalized; zeros by default, which is their mean.
            noise: (rows, chunk, numbers), the actions under way; zeros by default.
            timestep: (rows,), 1 (noise, the default) to 0 (actions).

        Raises:
            InputError: if there is no prompt, or its places and the images do not match.
        """
        if past_key_values is None:
            if input_ids is None:
                raise InputError("The model was called without a prompt: give input_ids, or past_key_values.")
            embedded = self._embedded(input_ids, pixel_values)
            past_key_values = self.model.vlm(
                inputs_embeds=embedded,
                attention_mask=attention_mask,
                position_ids=position_ids,
                token_type_ids=torch.zeros_like(embedded[..., 0]),  # every token of a prompt sees all others
                use_cache=True,
            ).past_key_values
        given = next(one for one in (input_ids, state, noise, attention_mask) if one is not None)
        rows, config = len(given), self.config
        blank = self.action_out_proj.weight.new_zeros
        state = blank(rows, config.max_state_dim, device=given.device) if state is None else state
        if noise is None:
            noise = blank(rows, config.chunk_size, config.max_action_dim, device=given.device)
        if timestep is None:
            timestep = torch.ones(rows, device=given.device)
        return super().forward(
            state=state,
            noise=noise,
            timestep=timestep,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )

    def _embedded(self, ids: Tensor, pixels: Tensor | None) -> Tensor:
        """(rows, tokens, width) embeddings, those of images in the places that are kept for them."""
        shown = ids == self.config.image_token_id
        embedded = self.get_input_embeddings()(ids.masked_fill(shown, 0))
        count, side = int(shown.sum()), self.config.vision_config.image_size // self.config.vision_config.patch_size
        wanted = 0 if pixels is None else len(pixels) * side**2
        if count != wanted:
            raise InputError(
                f"The tokens hold {count} places for patches of images, and the images given have {wanted} patches: "
                "give the processor's input_ids and pixel_values together."
            )
        if pixels is None:
            return embedded
        features = self.model.vlm.get_image_features(pixels.to(self.action_out_proj.weight.dtype)).pooler_output
        return embedded.masked_scatter(shown[..., None].to(embedded.device), features.to(embedded))


def configuration(source: Any, revision: str | None = None) -> PI0Config:
    """The configuration of a folder or of a name on the hub."""
    return PI0Config.from_pretrained(source, revision=revision or "main")


def processor(source: Any, config: PI0Config, revision: str | None = None) -> PI0Processor:
    """The processor of a folder or of a name on the hub.

    Raises:
        ModelError: if there is no tokenizer, or it or the image processor does not fit the model.
    """
    where: dict[str, Any] = {} if revision is None else {"revision": revision}
    found = {
        name: cached_file(source, f"{name}.json", _raise_exceptions_for_missing_entries=False, **where)
        for name in ("tokenizer", "preprocessor_config", "processor_config")
    }
    if found["tokenizer"] is None:
        raise ModelError(
            f"{str(source)!r} has no tokenizer.json. LeRobot's checkpoints come without: put the tokenizer's files of "
            "google/paligemma-3b-pt-224 into the folder."
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
    if len(tokenizer) > config.image_token_id + 1:
        raise ModelError(f"The tokenizer has {len(tokenizer)} tokens, the model {config.image_token_id + 1}.")
    side = config.vision_config.image_size
    patches = (side // config.vision_config.patch_size) ** 2
    make: Any = transformers.PI0ImageProcessor
    if found["preprocessor_config"] or found["processor_config"]:
        images = make.from_pretrained(source, **where)
    else:
        fit, pad = {"max_height": side, "max_width": side}, {"height": side, "width": side}
        images = make(size=fit, pad_size=pad, image_seq_length=patches)
    if {images.pad_size["height"], images.pad_size["width"]} != {side}:
        raise ModelError(f"The image processor pads to {dict(images.pad_size)} pixels, the vision tower takes {side}.")
    written = Path(found["processor_config"]).read_text(encoding="utf-8") if found["processor_config"] else "{}"
    known = {name: json.loads(written).get(name) for name in STATISTICS}
    return PI0Processor(images, tokenizer, patches, config.image_token_id, known)
