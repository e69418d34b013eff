"""Published checkpoints without their weights: full-size models on the meta device, tensors named as in the files.

`published.json` says what the publishers' files say: the sizes of config.json, the number of parameters and where it is
from, each tower's layers and width, and some tensors by their names in the safetensors files. None of it was read off
the models built here.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from vlmsteer.registry import FAMILIES, family_key, family_of
from vlmsteer.sites import Site

PUBLISHED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "published.json").read_text())
Prefixes = tuple[tuple[str, str], ...]  # the model's names begin with the first, the file's with the second

TODAY: Prefixes = ()
OLDER: Prefixes = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.", ""),
    ("lm_head.", "language_model.lm_head."),
)
BARE: Prefixes = (("model.language_model.", "model."), ("model.visual.", "visual."))
# What transformers 4.52 to 4.57 call LLaVA's weights in memory, and in files that they did not write themselves.
NESTED: Prefixes = (("model.vision_tower.", "model.vision_tower.vision_model."),)
# T5 has its embedding under three names; which of them a file keeps is the writer's choice.
ENCODER: Prefixes = (("language_model.shared.", "language_model.encoder.embed_tokens."),)
DECODER: Prefixes = (("language_model.shared.", "language_model.decoder.embed_tokens."),)
# LeRobot's, which has the embeddings as the unembeddings tied to them; what its own training writes has a prefix more.
LEROBOT: Prefixes = (
    ("model.vlm.language_model.embed_tokens.", "paligemma_with_expert.paligemma.lm_head."),
    ("model.vlm.vision_tower.", "paligemma_with_expert.paligemma.model.vision_tower.vision_model."),
    ("model.vlm.", "paligemma_with_expert.paligemma.model."),
    ("model.dit.embed_tokens.", "paligemma_with_expert.gemma_expert.lm_head."),
    ("model.dit.", "paligemma_with_expert.gemma_expert.model."),
    ("embed_action_time.", ""),
)
TRAINED: Prefixes = (*((ours, f"model.{theirs}") for ours, theirs in LEROBOT), ("", "model."))

# model type -> layouts that files come in; the first is the published one
LAYOUTS: dict[str, tuple[Prefixes, ...]] = {
    **dict.fromkeys(("llava", "llava_next", "llava_onevision"), (OLDER, NESTED, TODAY)),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), (BARE, TODAY)),
    "qwen3_vl": (TODAY,),
    "instructblip": (TODAY, ENCODER, DECODER),
    "pi0": (LEROBOT, TRAINED, TODAY),
    "openvla": (TODAY,),
}
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "out_hidden_size", "projection_dim"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 64),
    "num_key_value_heads": 2,
    "image_size": 28,
    "num_position_embeddings": 16,
    "mrope_section": [1, 1, 2],
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
}


TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 4}  # timm has the sizes of the towers that a config.json names


def shrink(config: Any) -> Any:
    """The same configuration with other numbers."""
    if not isinstance(config, dict):
        return config
    small = {key: SMALL[key] if key in SMALL else shrink(value) for key, value in config.items()}
    return small | {"timm_overrides": [TIMM for _ in small["timm_model_ids"]]} if "timm_model_ids" in small else small


def small_ones() -> list[Any]:
    """One checkpoint of each kind that differs by more than numbers, with each layout of its files."""
    kinds = {json.dumps(shrink(entry["config"])): name for name, entry in reversed(PUBLISHED.items())}
    return [
        pytest.param(name, layout, id=f"{name.split('/')[1]}-{number}")
        for name in PUBLISHED
        if name in kinds.values()
        for number, layout in enumerate(LAYOUTS[PUBLISHED[name]["config"]["model_type"]])
        if layout not in (ENCODER, DECODER) or PUBLISHED[name]["config"]["text_config"]["model_type"] == "t5"
    ]


def build(config: dict[str, Any]) -> Any:
    """A model without weights."""
    name = FAMILIES.load(str(family_key(config["model_type"], None))).library
    library = import_module(name)
    if name == "transformers":
        built = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    else:
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            built = library.configuration(folder)
    with torch.device("meta"):
        return getattr(library, family_of(built).architecture)(built)


@cache
def full_size(name: str) -> Any:
    return build(PUBLISHED[name]["config"])


def filed(name: str, layout: Prefixes) -> str:
    """The name that a weight has in a file."""
    for ours, theirs in layout:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def stored(model: nn.Module, entry: dict[str, Any]) -> dict[str, nn.Parameter]:
    """The weights in the published file. A tied weight is there once, unless the file is known to have both."""
    distinct = dict(model.named_parameters())
    layout = LAYOUTS[entry["config"]["model_type"]][0]
    return {
        name: weight
        for name, weight in model.named_parameters(remove_duplicate=False)
        if name in distinct or filed(name, layout) in entry["tensors"]
    }


def test_all_checkpoints_that_families_name_are_here() -> None:
    assert {name for key in FAMILIES for name in FAMILIES.load(key).checkpoints} == set(PUBLISHED)


@pytest.mark.parametrize("name", [name for name, entry in PUBLISHED.items() if "parameters" in entry])
def test_number_of_parameters(name: str) -> None:
    weights = stored(full_size(name), PUBLISHED[name])
    assert sum(weight.numel() for weight in weights.values()) == PUBLISHED[name]["parameters"]["total"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_sites_resolve(name: str) -> None:
    model, towers = full_size(name), PUBLISHED[name]["towers"]
    taps = family_of(model.config).taps(model)
    found = {site.tower: site.layer + 1 for site in sorted(taps) if site.tower != "projector"}
    assert found == {tower: layers for tower, (layers, _) in towers.items()}
    for tower, (layers, width) in towers.items():
        assert {taps[Site(tower, layer, "block_out")].width for layer in range(layers)} == {width}
    assert taps[Site("projector", 0, "block_out")].width == towers["text"][1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_load(name: str) -> None:
    model, entry = full_size(name), PUBLISHED[name]
    layout = LAYOUTS[model.config.model_type][0]
    file = {filed(ours, layout): weight.detach() for ours, weight in stored(model, entry).items()}
    assert {tensor: list(file[tensor].shape) for tensor in entry["tensors"] if tensor in file} == entry["tensors"]
    _, report = type(model).from_pretrained(
        None, config=model.config, state_dict=file, device_map="meta", output_loading_info=True
    )
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


@pytest.mark.parametrize(("name", "layout"), small_ones())
def test_small_file_loads(name: str, layout: Prefixes, tmp_path: Path) -> None:
    entry = PUBLISHED[name]
    config = shrink(entry["config"])
    model = build(config)
    torch.manual_seed(0)
    values = {ours: torch.randn(weight.shape) for ours, weight in stored(model, entry).items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({filed(ours, layout): value for ours, value in values.items()}, tmp_path / "model.safetensors")
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    weights = dict(loaded.named_parameters(remove_duplicate=False))
    assert [ours for ours, value in values.items() if not torch.equal(weights[ours], value)] == []
    assert {id(weight) for weight in weights.values()} == {id(weights[ours]) for ours in values}  # the rest is tied
