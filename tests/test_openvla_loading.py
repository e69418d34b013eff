"""Checkpoints in the published layout, written here by hand: every tensor arrives, and nothing beside it is run.

Names and shapes are those of `openvla/openvla-7b` (and of v0.1, which has one tower), with small numbers in the place
of the published ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import DECODER, _llama_tokenizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import vlmsteer
from vlmsteer.errors import ModelError
from vlmsteer.openvla.actions import act, bins
from vlmsteer.openvla.checkpoint import OpenVLAForActionPrediction, configuration

DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
WIDTHS, HIDDEN, DEPTH, SIDE, PATCH = {DINO: 32, SIGLIP: 24}, {DINO: 64, SIGLIP: 60}, 3, 28, 14
WIDTH, MLP, LAYERS, VOCABULARY = DECODER["hidden_size"], DECODER["intermediate_size"], 2, 512
STATS = {"q01": [-1.0] * 6 + [0.0], "q99": [1.0] * 6 + [1.0], "mask": [True] * 6 + [False]}


def linear(name: str, inputs: int, outputs: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}


def norm(name: str, width: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [width], f"{name}.bias": [width]}


def tower(prefix: str, model: str) -> dict[str, list[int]]:
    width, hidden = WIDTHS[model], HIDDEN[model]
    shapes = {f"{prefix}.pos_embed": [1, (SIDE // PATCH) ** 2, width]}
    shapes |= {
        f"{prefix}.patch_embed.proj.weight": [width, 3, PATCH, PATCH],
        f"{prefix}.patch_embed.proj.bias": [width],
    }
    for number in range(DEPTH):
        block = f"{prefix}.blocks.{number}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", width, 3 * width) | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", width, hidden) | linear(f"{block}.mlp.fc2", hidden, width)
        if model == DINO:
            shapes |= {f"{block}.ls1.scale_factor": [width], f"{block}.ls2.scale_factor": [width]}
    shapes |= norm(f"{prefix}.norm", width)
    if model == DINO:
        return shapes | {f"{prefix}.cls_token": [1, 1, width], f"{prefix}.reg_token": [1, 4, width]}
    pool = f"{prefix}.attn_pool"
    shapes |= {f"{pool}.latent": [1, 1, width]} | norm(f"{pool}.norm", width)
    shapes |= linear(f"{pool}.q", width, width) | linear(f"{pool}.kv", width, 2 * width)
    shapes |= linear(f"{pool}.proj", width, width)
    return shapes | linear(f"{pool}.mlp.fc1", width, hidden) | linear(f"{pool}.mlp.fc2", hidden, width)


def published(models: tuple[str, ...]) -> dict[str, list[int]]:
    """Every tensor of a checkpoint with its shape."""
    shapes: dict[str, list[int]] = {}
    for name, model in zip(("featurizer", "fused_featurizer"), models, strict=False):
        shapes |= tower(f"vision_backbone.{name}", model)
    features, fused = sum(WIDTHS[model] for model in models), len(models) > 1
    first = 4 * features if fused else WIDTH
    shapes |= linear("projector.fc1", features, first) | linear("projector.fc2", first, WIDTH)
    shapes |= linear("projector.fc3", WIDTH, WIDTH) if fused else {}
    text, pair = "language_model.model", WIDTH // 2  # two of four heads have keys and values
    shapes |= {f"{text}.embed_tokens.weight": [VOCABULARY, WIDTH], "language_model.lm_head.weight": [VOCABULARY, WIDTH]}
    for number in range(LAYERS):
        block = f"{text}.layers.{number}"
        shapes |= {f"{block}.self_attn.{kind}_proj.weight": [WIDTH, WIDTH] for kind in "qo"}
        shapes |= {f"{block}.self_attn.{kind}_proj.weight": [pair, WIDTH] for kind in "kv"}
        shapes |= {f"{block}.mlp.{kind}_proj.weight": [MLP, WIDTH] for kind in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": [WIDTH, MLP], f"{block}.input_layernorm.weight": [WIDTH]}
        shapes |= {f"{block}.post_attention_layernorm.weight": [WIDTH]}
    return shapes | {f"{text}.norm.weight": [WIDTH]}


def weights(models: tuple[str, ...] = (DINO, SIGLIP)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in published(models).items()}


def write(folder: Path, tensors: dict[str, Tensor], models: tuple[str, ...] = (DINO, SIGLIP), shards: int = 3) -> Path:
    """A folder as the publishers' converter leaves it, with code that must not be run."""
    folder.mkdir(exist_ok=True)
    sizes = [{"embed_dim": WIDTHS[model], "depth": DEPTH, "num_heads": 4} for model in models]
    ratios = {DINO: 2.0, SIGLIP: 2.5}
    config = {
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "auto_map": {
            "AutoConfig": "configuration_prismatic.OpenVLAConfig",
            "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
        },
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [SIDE] * len(models),
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": {"bridge_orig": {"action": STATS, "num_transitions": 2135463}},
        "output_projector_states": False,
        "pad_to_multiple_of": 64,
        "pad_token_id": 3,
        "text_config": {
            "model_type": "llama", "pad_token_id": 3, "torch_dtype": "bfloat16", "vocab_size": VOCABULARY,
            **DECODER, "num_hidden_layers": LAYERS,
        },
        "timm_model_ids": list(models),
        "timm_override_act_layers": [None] * len(models),
        "timm_overrides": [{**size, "mlp_ratio": ratios[model]} for size, model in zip(sizes, models, strict=True)],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_fused_vision_backbone": len(models) > 1,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    images = {
        "auto_map": {
            "AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor",
            "AutoProcessor": "processing_prismatic.PrismaticProcessor",
        },
        "image_processor_type": "PrismaticImageProcessor",
        "processor_class": "PrismaticProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, SIDE, SIDE]] * len(models),
        "interpolations": ["bicubic"] * len(models),
        "means": [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]][-len(models) :],
        "stds": [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]][-len(models) :],
        "tvf_do_letterbox": False,
        "use_fused_vision_backbone": len(models) > 1,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    _llama_tokenizer().save_pretrained(folder)
    for module in ("configuration_prismatic", "modeling_prismatic", "processing_prismatic"):
        (folder / f"{module}.py").write_text("raise SystemExit('code from a checkpoint was run')")
    names, index = sorted(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(tensor.numel() for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 4 * total}, "weight_map": index})
    )
    return folder


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return weights()


@pytest.fixture(scope="module")
def folder(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("published") / "openvla", tensors)


@pytest.fixture(scope="module")
def session(folder: Path) -> Any:
    return vlmsteer.load(folder)


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (50, 40), color) for color in ("black", "white")]


def test_every_published_tensor_arrives(session: Any, tensors: dict[str, Tensor]) -> None:
    """None is renamed, reordered or made anew: names, and each tensor to the last bit."""
    state = session.model.state_dict()
    assert set(state) == set(tensors)
    assert [name for name, tensor in tensors.items() if not torch.equal(state[name], tensor)] == []
    assert {parameter.dtype for parameter in session.model.parameters()} == {torch.float32}


def test_it_acts(session: Any) -> None:
    done = act(session, pictures(), ["lift it"] * 2, unnorm_key="bridge_orig")
    assert done.actions.shape == (2, 7) and (done.tokens[0] != done.tokens[1]).any()
    assert (bins(session.model.config).first, bins(session.model.config).end) == (192, 448)
    assert session.processor.prompt == "v0.2" and session.encoder.image_token == VOCABULARY
    assert {site.tower for site in session.sites} == {"vision", "vision2", "projector", "text"}
    assert len(session.boxes(pictures()[0])) == 4


def test_timms_own_name_of_the_layer_scale_loads_too(tensors: dict[str, Tensor], tmp_path: Path, session: Any) -> None:
    """`gamma` in the file; saved again, the name is the published one."""
    renamed = {name.replace("scale_factor", "gamma"): tensor for name, tensor in tensors.items()}
    assert set(renamed) != set(tensors)
    loaded = vlmsteer.load(write(tmp_path / "timm", renamed, shards=1), check=False)
    state = loaded.model.state_dict()
    assert set(state) == set(tensors) and all(torch.equal(state[name], tensors[name]) for name in tensors)
    loaded.model.save_pretrained(tmp_path / "again")
    loaded.processor.save_pretrained(tmp_path / "again")
    again = vlmsteer.load(tmp_path / "again")
    assert torch.equal(again.logits(pictures(), ["a", "b"]), session.logits(pictures(), ["a", "b"]))
    assert again.model.config.norm_stats == session.model.config.norm_stats


def test_dead_weights_may_be_missing_and_others_not(tensors: dict[str, Tensor], tmp_path: Path, session: Any) -> None:
    backbone = [f"vision_backbone.{name}" for name in ("featurizer", "fused_featurizer")]
    dead = (*(f"{name}.{part}." for name in backbone for part in ("blocks.2", "norm")), f"{backbone[1]}.attn_pool.")
    living = {name: tensor for name, tensor in tensors.items() if not name.startswith(dead)}
    assert len(tensors) - len(living) == 14 + 12 + 4 + 13
    pruned = vlmsteer.load(write(tmp_path / "pruned", living))
    assert torch.equal(pruned.logits(pictures(), ["a", "b"]), session.logits(pictures(), ["a", "b"]))
    for name in ("language_model.lm_head.weight", f"{backbone[0]}.blocks.1.ls1.scale_factor", "projector.fc3.bias"):
        lacking = {other: tensor for other, tensor in living.items() if other != name}
        with pytest.raises(ModelError, match=f"lacks 1 of the model's weights, for example '{name}'"):
            vlmsteer.load(write(tmp_path / "lacking", lacking), check=False)


def test_what_has_no_place_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    more = {**tensors, "action_head.fc1.weight": torch.zeros(3, 3)}
    with pytest.raises(ModelError, match="1 tensors .* no place for, for example 'action_head.fc1.weight'"):
        vlmsteer.load(write(tmp_path / "more", more), check=False)
    wrong = {**tensors, "projector.fc3.bias": torch.zeros(7)}
    with pytest.raises(ModelError, match="could not be loaded"):
        vlmsteer.load(write(tmp_path / "wrong", wrong), check=False)


def test_statistics_of_a_fine_tuned_checkpoint(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    tuned = write(tmp_path / "tuned", tensors, shards=4)
    mine = {"libero_10_no_noops": {"action": {**STATS, "q01": [0.0] * 7, "q99": [4.0] * 7}}}
    (tuned / "dataset_statistics.json").write_text(json.dumps(mine))
    loaded = vlmsteer.load(tuned, check=False)
    assert loaded.model.config.norm_stats == mine
    done = act(loaded, pictures(), ["lift it"] * 2, unnorm_key="libero_10", restrict=True)
    assert done.actions[:, :6].min() >= 0 and done.actions.max() <= 4
    (tuned / "dataset_statistics.json").write_text("{")
    with pytest.raises(ModelError, match="dataset_statistics.json beside the checkpoint is not JSON"):
        vlmsteer.load(tuned)


def test_v01_has_one_tower_and_its_own_prompt(tmp_path: Path) -> None:
    one = weights((SIGLIP,))
    loaded = vlmsteer.load(write(tmp_path / "openvla-v01-tiny", one, (SIGLIP,)))
    assert set(loaded.model.state_dict()) == set(one)
    assert loaded.family.name == "OpenVLA (one tower)"
    assert {site.tower for site in loaded.sites} == {"vision", "projector", "text"}
    done = act(loaded, pictures(), ["Lift it"] * 2)
    assert (done.tokens[0] != done.tokens[1]).any()
    prompt = loaded.processor.apply_chat_template([{"content": [{"type": "text", "text": "Lift it"}]}])
    assert prompt.endswith("USER: What action should the robot take to Lift it? ASSISTANT: ")


@pytest.mark.parametrize(
    "where", ["auto", {"": "cpu"}, {"vision_backbone": "cpu", "projector": "cpu", "language_model": "cpu"}]
)
def test_it_can_be_placed(folder: Path, session: Any, where: Any) -> None:
    placed = vlmsteer.load(folder, device_map=where)
    assert torch.equal(placed.logits(pictures(), ["a", "b"]), session.logits(pictures(), ["a", "b"]))


def test_half_precision(folder: Path) -> None:
    half = vlmsteer.load(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.model.config.text_config.vocab_size == VOCABULARY
    assert act(half, pictures(), ["lift it"] * 2).actions.shape == (2, 7)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text_config": {"model_type": "mistral"}}, "'mistral' language model"),
        ({"use_fused_vision_backbone": False}, "names 2 vision towers"),
        ({"image_sizes": [28, 56]}, r"images of \[28, 56\] pixels"),
        ({"timm_model_ids": [DINO, "no_such_tower"]}, "cannot build the vision tower 'no_such_tower'"),
        ({"timm_model_ids": [DINO, "resnet18"], "timm_overrides": None}, "vision tower 'resnet18'"),
        ({"image_sizes": [56, 56]}, "makes 2 pictures of 28 pixels, the vision towers take 2 of 56"),
        ({"prompt": "v3"}, "no prompt 'v3'"),
    ],
)
def test_configurations_that_are_refused(
    tensors: dict[str, Tensor], tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    broken = write(tmp_path / "broken", tensors, shards=1)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, **change}))
    if change.get("image_sizes") == [56, 56]:  # the towers' positions are for another grid then
        save_file({**tensors, **{name: tensors[name].repeat(1, 4, 1) for name in tensors if "pos_embed" in name}},
                  broken / "model-00001-of-00001.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(ModelError, match=sentence):
        vlmsteer.load(broken, check=False)


def test_full_size_is_the_published_one(tmp_path: Path) -> None:
    """config.json of `openvla/openvla-7b` leaves the sizes to timm and Llama 2: 982 tensors, 7,541,237,184 numbers."""
    written = {
        "model_type": "openvla",
        "text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064},
    }
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = configuration(tmp_path)
    with torch.device("meta"):
        model = OpenVLAForActionPrediction(config)
    state = model.state_dict()
    assert len(state) == 982 and sum(tensor.numel() for tensor in state.values()) == 7_541_237_184
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.vision_backbone.named_children()}
    assert parts == {"featurizer": 303_230_976, "fused_featurizer": 427_680_704}
    assert sum(parameter.numel() for parameter in model.projector.parameters()) == 71_385_600
    assert sum(parameter.numel() for parameter in model.language_model.parameters()) == 6_738_939_904
    assert (config.image_tokens, bins(config).first, bins(config).end) == (256, 31744, 32000)
    names = {
        "vision_backbone.featurizer.blocks.23.ls2.scale_factor",
        "vision_backbone.fused_featurizer.attn_pool.latent",
    }
    assert names < set(state)
