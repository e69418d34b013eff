"""OpenVLA as a transformers model: timm vision towers, a projector, a Llama that answers with action tokens.

The features of a patch are what the second-to-last block of each tower gives, not normed; what comes later in a tower
is in every checkpoint, but changes nothing. Whether the model sees depends on `pixel_values` alone, never on the
cache. Parameters have their published names (`vision_backbone.featurizer`, `ls1.scale_factor`, ...).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaForCausalLM, PreTrainedModel

from vlmsteer.errors import InputError, ModelError
from vlmsteer.openvla.configuration import OpenVLAConfig, vision_tower

RENAMED = {r"\.gamma$": ".scale_factor"}  # timm's own name of a layer scale


class LayerScale(nn.Module):
    """timm's, with the parameter's published name; transformers used to rename everything called gamma."""

    def __init__(self, scale_factor: nn.Parameter) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, states: Tensor) -> Tensor:
        return states * self.scale_factor


class VisionBackbone(nn.Module):
    """One or two towers that look at the same picture, each normalized in its own way."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        names = ("featurizer", "fused_featurizer")
        given = zip(config.timm_model_ids, config.image_sizes, config.timm_overrides, strict=True)
        for name, tower, act_layer in zip(names, given, config.timm_override_act_layers, strict=False):
            self.add_module(name, _renamed(vision_tower(*tower, act_layer)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features (images, patches, width of all towers) of pixels (images, 3 channels a tower, height, width)."""
        towers = list(self.children())
        pictures = pixel_values.split(3, 1)
        return torch.cat([second_to_last(tower, picture) for tower, picture in zip(towers, pictures, strict=True)], -1)


def _renamed(tower: nn.Module) -> nn.Module:
    for module in list(tower.modules()):
        for name, child in list(module.named_children()):
            if isinstance(getattr(child, "gamma", None), nn.Parameter):
                setattr(module, name, LayerScale(child.gamma))  # pyright: ignore[reportArgumentType]
    return tower


def second_to_last(tower: Any, picture: Tensor) -> Tensor:
    """(images, patches, width): what the second-to-last block gives, without class and register tokens."""
    return tower.get_intermediate_layers(picture, n=[len(tower.blocks) - 2])[0]


class Projector(nn.Module):
    """From the towers' features to the width of the language model: two layers after one tower, three after two."""

    def __init__(self, features: int, width: int, fused: bool) -> None:
        super().__init__()
        first = 4 * features if fused else width
        self.fc1, self.fc2 = nn.Linear(features, first), nn.Linear(first, width)
        if fused:
            self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        states = self.fc1(features)
        for layer in list(self.children())[1:]:
            states = layer(nn.functional.gelu(states))
        return states


class OpenVLAForActionPrediction(PreTrainedModel, GenerationMixin):
    """The policy. `actions.act` runs it on images and instructions."""

    config_class = OpenVLAConfig
    config: OpenVLAConfig
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionBackbone", "LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        self.vision_backbone = VisionBackbone(config)
        features = sum(shape.hidden_size for shape in config.vision_configs)
        self.projector = Projector(features, config.text_config.hidden_size, config.use_fused_vision_backbone)
        self.language_model = LlamaForCausalLM(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Towers and projector begin as timm and torch make them."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.lm_head = new_embeddings  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', from safetensors only, and every tensor must have its place.

        Weights that change nothing (`dead`) may be missing and are zeros then.

        Raises:
            ModelError: if the checkpoint holds tensors that the model has no place for.
        """
        wanted = kwargs.pop("output_loading_info", False)
        kwargs = {"key_mapping": RENAMED, "use_safetensors": True, **kwargs}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, report = loaded
        if hasattr(model, "_weight_conversions"):
            del model._weight_conversions  # saved again, the parameters keep their published names
        if report["unexpected_keys"]:
            extra = sorted(report["unexpected_keys"])
            raise ModelError(
                f"The checkpoint holds {len(extra)} tensors that an OpenVLA of this configuration has no place for, "
                f"for example {extra[0]!r}."
            )
        absent = {name for name in report["missing_keys"] if model.dead(name)}
        with torch.no_grad():
            for name in absent:
                model.get_parameter(name).zero_()
        report["missing_keys"] = set(report["missing_keys"]) - absent
        return (model, report) if wanted else model

    def dead(self, name: str) -> bool:
        """True of weights behind the features: each tower's last block, its final norm and its pooling."""
        backbone, _, rest = name.partition(".")
        tower, _, rest = rest.partition(".")
        if backbone != "vision_backbone":
            return False
        last = len(getattr(self.vision_backbone, tower).blocks) - 1
        return rest.startswith((f"blocks.{last}.", "norm.", "attn_pool."))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """One forward, as transformers' Llama; patches take the places of `config.image_token_id`.

        Args:
            input_ids: (rows, tokens); a row that shows an image has `config.image_tokens` placeholders.
            pixel_values: (images, 3 channels a tower, height, width), one for each row that shows an image.

        Raises:
            InputError: if placeholders and images do not match.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise InputError("The model was called without tokens: give input_ids or inputs_embeds.")
            inputs_embeds = self.embedded(input_ids, pixel_values)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(images, patches, width), what the Llama reads of pixels (images, 3 channels a tower, height, width)."""
        dtype = next(self.vision_backbone.parameters()).dtype
        return self.projector(self.vision_backbone(pixel_values.to(dtype)))

    def embedded(self, ids: Tensor, pixels: Tensor | None) -> Tensor:
        """(rows, tokens, width) embeddings, those of the patches in the places that are kept for them."""
        if pixels is None and ids.shape[1] == 1:  # a generated token
            return self.get_input_embeddings()(ids)
        shown = ids == self.config.image_token_id
        embedded = self.get_input_embeddings()(ids.masked_fill(shown, 0))
        count = int(shown.sum())
        wanted = 0 if pixels is None else len(pixels) * self.config.image_tokens
        if count != wanted:
            raise InputError(
                f"The tokens hold {count} places for patches of images, and the images given have {wanted} patches: "
                "give the processor's input_ids and pixel_values together."
            )
        if pixels is None:
            return embedded
        patches = self.get_image_features(pixels)
        return embedded.masked_scatter(shown[..., None].to(embedded.device), patches.to(embedded))
