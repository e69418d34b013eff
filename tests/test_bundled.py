"""What ships with the project: its layout is that of a published checkpoint, and it can do what its card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import vlmsteer
from vlmsteer.bench.arms import BASELINE
from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.bench.visual_counterfact import matches
from vlmsteer.demo import Kind, question, target
from vlmsteer.loading import bundled
from vlmsteer.methods.value_vectors import nearest, random_set, recipe
from vlmsteer.openvla.actions import act
from vlmsteer.recipe import Recipe
from vlmsteer.selfcheck import check
from vlmsteer_robotics import make_env
from vlmsteer_robotics.arms import Arm
from vlmsteer_robotics.demonstrations import demonstrations
from vlmsteer_robotics.policy import Vla
from vlmsteer_robotics.rollouts import Setting, run

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
    "tiny-openvla": (
        "OpenVLAForActionPrediction",
        "PrismaticProcessor",
        (
            "vision_backbone.featurizer.blocks.0.ls1.scale_factor",
            "vision_backbone.fused_featurizer.attn_pool.latent",
            "projector.fc3.weight",
            "language_model.model.layers.0.self_attn.q_proj.weight",
        ),
    ),
}


@pytest.fixture(scope="module", params=list(bundled()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def session(name: str) -> Any:
    return vlmsteer.load(name)


@pytest.fixture
def answering(session: Any, name: str) -> Any:
    """A model of the drawn world."""
    if name == "tiny-openvla":
        pytest.skip("knows the table, not the drawn world")
    return session


def test_files_and_names_are_those_of_a_published_checkpoint(name: str) -> None:
    folder, (architecture, processor, names) = bundled()[name], PUBLISHED[name]
    assert json.loads((folder / "config.json").read_text())["architectures"] == [architecture]
    assert (folder / "tokenizer.json").exists()
    written = next(folder.glob("*processor_config.json"))
    assert json.loads(written.read_text())["processor_class"] == processor
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())  # noqa: SIM118
        assert set(names) <= set(file.keys())
    assert (folder / "model.safetensors").stat().st_size <= 10_000_000


def test_card_gives_command_losses_and_rates_with_n(name: str) -> None:
    card = (bundled()[name] / "README.md").read_text()
    assert f"vlmsteer train {name}" in card and "## Loss" in card
    tasks = json.loads((bundled()[name] / "evaluation.json").read_text())["tasks"]
    named = [task.removesuffix(", cm") for task in tasks]
    assert all(f"| {task} |" in card for task in named) and all(value["n"] > 0 for value in tasks.values())


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
def test_held_out_objects(answering: Any, attribute: str, kind: Kind, scope: str, least: float) -> None:
    pairs = drawn_pairs(attribute, "test", 60, seed=5)
    answers = answering.ask_many([p.image(kind) for p in pairs], [question(p, scope) for p in pairs], max_new_tokens=6)
    right = [matches(a, target(p, kind, scope), attribute, loose=False) for a, p in zip(answers, pairs, strict=True)]
    assert sum(right) / len(right) >= least


def test_it_describes_and_knows_priors_without_a_picture(answering: Any) -> None:
    image = drawn_pairs("color", "test", 1)[0].image("original")
    assert answering.ask(image, "Describe this image.").startswith("There is ")
    assert answering.ask(None, "What color are most bananas?") == "yellow"
    assert answering.ask(None, "Which is larger usually, frog or elephant?") == "elephant"


@pytest.mark.parametrize(("task", "least"), [("reach", 0.8), ("push", 0.6)])
def test_the_policy_does_what_its_card_says(tmp_path: Path, task: str, least: float) -> None:
    policy = Vla(vlmsteer.load("tiny-openvla"))
    arms = [Arm(BASELINE, "baseline"), Arm("said: slow", "prompt", manner={"speed": "slow"})][: 1 + (task == "reach")]
    rows = run(policy, Setting(task), range(16), arms, tmp_path / "episodes.jsonl")
    plain, *slow = ([row["metrics"] for row in rows if row["arm"] == arm.name] for arm in arms)
    assert sum(row["success"] for row in plain) / 16 >= least
    assert all(
        sum(row["displacement"] for row in arm) < 0.7 * sum(row["displacement"] for row in plain) for arm in slow
    )


def test_the_policy_says_words_again() -> None:
    session = vlmsteer.load("tiny-openvla")
    image = Image.fromarray(make_env("reach-red", seed=0).reset()[0]["image"])
    assert session.ask(image, "say how fast to reach the red block quickly").strip() == "quickly"
    for height in ("low", "high"):
        assert session.ask(image, f"say how high to reach the red block, staying {height}").strip() == height


@pytest.mark.parametrize(("word", "against", "axis", "sign"), [("slowly", [], 0, -1), ("high", ["low"], 1, 1)])
def test_neurons_that_write_a_word_move_the_policy(word: str, against: list[str], axis: int, sign: int) -> None:
    session = vlmsteer.load("tiny-openvla")
    episodes = list(demonstrations("reach", range(16), split="test", speed="normal", height="normal"))
    pictures, told = [Image.fromarray(one.images[0]) for one in episodes], [one.instruction for one in episodes]

    def moved(chosen: Recipe | None) -> float:
        steps = act(session, pictures, told, chosen).actions[:, :3]
        return float((np.linalg.norm(steps, axis=1), steps[:, 2])[axis].mean())

    found = nearest(session, [word], 40, against=against, norm=True, layers=[0, 1, 2, 3])
    turned = recipe(session, found, "clamp", 4.0)
    others = [sign * (moved(random_set(session, turned, seed)) - moved(None)) for seed in range(8)]
    assert sign * (moved(turned) - moved(None)) > max(*others, 0.002)
