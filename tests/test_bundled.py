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


@pytest.fixture(scope="module")
def session() -> Any:
    return vlmsteer.load("tiny-llava")


def test_files_and_names_are_those_of_a_published_llava() -> None:
    folder = bundled()["tiny-llava"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert (folder / "tokenizer.json").exists() and (folder / "chat_template.jinja").exists()
    assert json.loads((folder / "processor_config.json").read_text())["processor_class"] == "LlavaProcessor"
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert all(file.get_tensor(name).dtype == torch.float16 for name in names)
    for published in (
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight",
    ):
        assert published in names
    assert (folder / "model.safetensors").stat().st_size <= 10_000_000


def test_card_gives_command_losses_and_rates_with_n() -> None:
    folder = bundled()["tiny-llava"]
    card = (folder / "README.md").read_text()
    assert "vlmsteer train tiny-llava" in card and "## Loss" in card
    tasks = json.loads((folder / "evaluation.json").read_text())["tasks"]
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
