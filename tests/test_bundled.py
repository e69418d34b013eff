"""What ships with the project: its layout is that of a published checkpoint, and it can do what its card says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open

import vlmsteer
from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.bench.visual_counterfact import matches
from vlmsteer.demo import Kind, question, target
from vlmsteer.loading import bundled
from vlmsteer.selfcheck import check

PUBLISHED = {
    "tiny-llava": (
        "LlavaForConditionalGeneration",
        "LlavaProcessor",
        (
            "language_model.model.embed_tokens.weight",
            "language_model.model.layers.0.self_attn.q_proj.weight",
            "multi_modal_projector.linear_1.weight",
            "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight",
        ),
    ),
    "tiny-instructblip": (
        "InstructBlipForConditionalGeneration",
        "InstructBlipProcessor",
        (
            "query_tokens",
            "language_projection.weight",
            "language_model.model.layers.0.self_attn.q_proj.weight",
            "qformer.encoder.layer.0.crossattention.attention.query.weight",
            "vision_model.encoder.layers.0.self_attn.qkv.weight",
        ),
    ),
    "tiny-qwen-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLProcessor",
        (
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "visual.blocks.0.attn.qkv.weight",
            "visual.merger.mlp.2.weight",
        ),
    ),
}


@pytest.fixture(scope="module", params=list(bundled()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def session(name: str) -> Any:
    return vlmsteer.load(name)


def test_files_and_names_are_those_of_a_published_checkpoint(name: str) -> None:
    folder, (architecture, processor, names) = bundled()[name], PUBLISHED[name]
    assert json.loads((folder / "config.json").read_text())["architectures"] == [architecture]
    assert (folder / "tokenizer.json").exists()
    assert json.loads((folder / "processor_config.json").read_text())["processor_class"] == processor
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())  # noqa: SIM118
        assert set(names) <= set(file.keys())
    assert (folder / "model.safetensors").stat().st_size <= 10_000_000


def test_card_gives_command_losses_and_rates_with_n(name: str) -> None:
    card = (bundled()[name] / "README.md").read_text()
    assert f"vlmsteer train {name}" in card and "## Loss" in card
    tasks = json.loads((bundled()[name] / "evaluation.json").read_text())["tasks"]
    assert all(f"| {task} |" in card and value["n"] > 0 for task, value in tasks.items())


def test_declaration_fits(session: Any) -> None:
    check(session)


@pytest.mark.parametrize(
    ("attribute", "kind", "scope", "least"),
    [
        ("color", "original", "this", 0.9),
        ("color", "original", "most", 0.9),
        ("color", "counterfactual", "this", 0.9),
        ("color", "counterfactual", "most", 0.9),
        ("size", "original", "this", 0.85),
        ("size", "original", "most", 0.85),
        ("size", "counterfactual", "this", 0.75),
        ("size", "counterfactual", "most", 0.85),
    ],
)
def test_held_out_objects(session: Any, attribute: str, kind: Kind, scope: str, least: float) -> None:
    pairs = drawn_pairs(attribute, "test", 60, seed=5)
    answers = session.ask_many([p.image(kind) for p in pairs], [question(p, scope) for p in pairs], max_new_tokens=6)
    right = [matches(a, target(p, kind, scope), attribute, loose=False) for a, p in zip(answers, pairs, strict=True)]
    assert sum(right) / len(right) >= least


def test_it_describes_and_knows_priors_without_a_picture(session: Any) -> None:
    image = drawn_pairs("color", "test", 1)[0].image("original")
    assert session.ask(image, "Describe this image.").startswith("There is ")
    assert session.ask(None, "What color are most bananas?") == "yellow"
    assert session.ask(None, "Which is larger usually, frog or elephant?") == "elephant"
