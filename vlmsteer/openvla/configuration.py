"""The published config.json of OpenVLA, read as data.

The sizes of the vision towers are those that timm gives the models that the file names; `timm_overrides`, a key of
ours, makes them smaller. `dataset_statistics.json`, which fine-tuned checkpoints have beside it, replaces `norm_stats`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.hub import cached_file

from vlmsteer.errors import ModelError

STATISTICS = "dataset_statistics.json"
WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class VisionShape(NamedTuple):
    """The numbers of one vision tower, under transformers' names; `prefix_tokens` come before the patches."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    prefix_tokens: int

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size


class OpenVLAConfig(PreTrainedConfig):
    """What an OpenVLA checkpoint says of itself.

    Args:
        text_config: the Llama's configuration; what it leaves out is that of Llama 2 7B.
        timm_model_ids: the vision towers, in the order in which their features are joined.
        image_sizes: the side of each tower's image in pixels.
        timm_override_act_layers: another activation for a tower, or None.
        timm_overrides: for each tower arguments of `timm.create_model` that make it another size, or None.
        use_fused_vision_backbone: whether there are two towers (v0.1 has one).
        pad_to_multiple_of: how many rows of the embedding come after the last action token.
        n_action_bins: edges of the bins that an action is rounded to, one action token each.
        norm_stats: data set -> {"action": {"q01", "q99", "mask"}}, what an action of 1 stands for.
        prompt: "v0.1" or "v0.2"; None means what the checkpoint's name says.

    Raises:
        ModelError: if it describes no OpenVLA that can be built.
    """

    model_type = "openvla"
    sub_configs = {"text_config": AutoConfig}  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        text_config: Any = None,
        timm_model_ids: Any = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"),
        image_sizes: Any = (224, 224),
        timm_override_act_layers: Any = None,
        timm_overrides: Any = None,
        use_fused_vision_backbone: bool = True,
        pad_to_multiple_of: int = 64,
        n_action_bins: int = 256,
        norm_stats: Any = None,
        prompt: str | None = None,
        **others: Any,
    ) -> None:
        count = len(timm_model_ids)
        if count != 1 + bool(use_fused_vision_backbone) or len(image_sizes) != count or len(set(image_sizes)) != 1:
            raise ModelError(
                f"This config.json names {count} vision towers with images of {list(image_sizes)} pixels and says "
                f"use_fused_vision_backbone={use_fused_vision_backbone}; a checkpoint has one tower, or two and true, "
                "all with images of one size."
            )
        if not hasattr(text_config, "to_dict"):
            text_config = dict(text_config or {})
            kind = text_config.pop("model_type", "llama")
            if kind != "llama":
                raise ModelError(f"This OpenVLA has a {kind!r} language model; only those with a Llama are supported.")
            text_config = AutoConfig.for_model(kind, **text_config)
        self.text_config = text_config
        self.timm_model_ids, self.image_sizes = list(timm_model_ids), list(image_sizes)
        self.timm_override_act_layers = list(timm_override_act_layers or [None] * count)
        self.timm_overrides = [dict(given or {}) for given in timm_overrides or [None] * count]
        self.use_fused_vision_backbone = bool(use_fused_vision_backbone)
        self.pad_to_multiple_of, self.n_action_bins = pad_to_multiple_of, n_action_bins
        self.norm_stats, self.prompt = dict(norm_stats or {}), prompt
        super().__init__(**others)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers', with the statistics of a fine-tuned checkpoint in place of the base model's.

        Raises:
            ModelError: if these are not JSON.
        """
        where = {name: kwargs[name] for name in WHERE if kwargs.get(name) is not None}
        written, others = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = cached_file(
            pretrained_model_name_or_path, STATISTICS, _raise_exceptions_for_missing_entries=False, **where
        )
        if found is not None:
            try:
                with open(found, encoding="utf-8") as file:
                    written["norm_stats"] = json.load(file)
            except ValueError as error:
                raise ModelError(f"The {STATISTICS} beside the checkpoint is not JSON: {error}.") from error
        return written, others

    @property
    def variant(self) -> str:
        """Which declaration fits: by the number of vision towers."""
        return "two towers" if self.use_fused_vision_backbone else "one tower"

    @property
    def vision_configs(self) -> list[VisionShape]:
        """The sizes of the vision towers."""
        rows = zip(self.timm_model_ids, self.image_sizes, self.timm_overrides, strict=True)
        return [_shape(name, size, json.dumps(given)) for name, size, given in rows]

    @property
    def vision_config(self) -> VisionShape:
        """The first tower's sizes."""
        return self.vision_configs[0]

    @property
    def vision2_config(self) -> VisionShape:
        """The second tower's sizes."""
        return self.vision_configs[1]

    @property
    def image_tokens(self) -> int:
        """How many tokens an image takes."""
        return self.vision_config.grid**2

    @property
    def image_token_id(self) -> int:
        """The placeholder of a patch in `input_ids`: an id that no logit stands for, so it is never generated."""
        return self.text_config.vocab_size

    @property
    def action_end(self) -> int:
        """The id after the last action token; `n_action_bins` of them come before it."""
        return self.text_config.vocab_size - self.pad_to_multiple_of


def vision_tower(name: str, size: int, overrides: dict[str, Any], act_layer: str | None = None) -> Any:
    """A timm vision transformer without weights of its own and without a classifier.

    Raises:
        ModelError: if timm has no such model, or it is no plain vision transformer.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    try:
        tower = timm.create_model(
            name, pretrained=False, num_classes=0, img_size=size, act_layer=act_layer, **overrides
        )  # pyright: ignore[reportArgumentType]
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"timm {timm.__version__} cannot build the vision tower {name!r}: {error}.") from error
    if not isinstance(tower, VisionTransformer) or len(tower.blocks) < 2:
        raise ModelError(f"The vision tower {name!r} is no vision transformer of two blocks or more.")
    return tower


@cache
def _shape(name: str, size: int, overrides: str) -> VisionShape:
    with torch.device("meta"):
        tower = vision_tower(name, size, json.loads(overrides))
    block = tower.blocks[0]
    return VisionShape(
        len(tower.blocks), tower.embed_dim, block.attn.num_heads, block.mlp.fc1.out_features,
        size, tower.patch_embed.patch_size[0], tower.num_prefix_tokens,
    )  # fmt: skip
