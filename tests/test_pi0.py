"""pi0: the flow head against transformers' own, steered and not, its expert tower, and what it says it cannot do."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from engine_recipes import QUESTIONS, both, flags, hooks, recipe
from PIL import Image
from safetensors.torch import load_file, save_file
from test_published import LEROBOT, filed

import vlmsteer
from vlmsteer.errors import InputError, ModelError, RecipeError, SiteError
from vlmsteer.openvla import actions as openvla
from vlmsteer.pi0.actions import act
from vlmsteer.pi0.processor import PI0Processor
from vlmsteer.recipe import Edit, Recipe, Rule
from vlmsteer.vectors import Vectors

STEPS, CHUNK, NUMBERS = 3, 4, 7  # of the random checkpoint
STATES = [[0.5, -1.0, 2.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]
Pictures = list[Image.Image]


@pytest.fixture(scope="session")
def policy(sessions: Any) -> Any:
    return sessions["pi0"]


def steers(policy: Any) -> list[Recipe | None]:
    return [
        None,
        recipe(policy, "expert.*.block_out", positions="action", seed=1),
        both(
            recipe(policy, "vision.0.block_out", positions="image", seed=2, size=3.0),
            recipe(policy, "text.1.neuron", "clamp", strength=4.0, positions="all", seed=3),
        ),
        recipe(policy, "text.1.head", positions="question", seed=4, size=3.0),
        recipe(policy, "expert.0.block_out", "scale", -0.5, "all", seed=5),
    ]


def noise(seed: int) -> torch.Tensor:
    return torch.randn((CHUNK, NUMBERS), generator=torch.Generator().manual_seed(seed))


def test_actions_are_those_of_transformers(policy: Any, folders: Any, pictures: Pictures) -> None:
    """Its own processor, model and sampling, from the same noise and state."""
    own = transformers.PI0ForConditionalGeneration.from_pretrained(folders["pi0"]).eval()
    images = transformers.PI0ImageProcessor.from_pretrained(folders["pi0"])
    processor: Any = transformers.PI0Processor(images, copy.deepcopy(policy.tokenizer))
    for row, (picture, text) in enumerate(zip(pictures, QUESTIONS, strict=True)):
        made = processor(picture, text, padding=False, return_tensors="pt")
        state = torch.tensor([[*STATES[row], 0.0, 0.0, 0.0]])
        expected = own.sample_actions(**made, state=state, noise=noise(row)[None])
        done = act(policy, [picture], [text], states=STATES[row : row + 1], seed=row)
        np.testing.assert_allclose(done, expected.double().numpy(), atol=1e-4 * float(expected.abs().max()))
        once = own.sample_actions(**made, state=state, noise=noise(row)[None], num_steps=1)
        again = act(policy, [picture], [text], states=STATES[row : row + 1], seed=row, steps=1)
        np.testing.assert_allclose(again, once.double().numpy(), atol=1e-4 * float(once.abs().max()))
    assert done.shape == (1, CHUNK, NUMBERS) and done.dtype == np.float64


def test_it_sees_reads_and_feels(policy: Any, pictures: Pictures) -> None:
    white, black = (Image.new("RGB", (40, 40), color) for color in ("white", "black"))
    done = act(policy, [white, black, black], ["red?", "red?", "green?"], states=[[0.0]] * 3)
    assert not np.allclose(done[0], done[1], atol=1e-2) and not np.allclose(done[1], done[2], atol=1e-2)
    moved = act(policy, [black], ["red?"], states=[[2.0]])
    assert not np.allclose(moved[0], done[1], atol=1e-2)
    np.testing.assert_array_equal(act(policy, [black], ["red?"]), act(policy, [black], ["red?"], states=[[0.0] * 6]))


def test_rows_act_as_if_alone(policy: Any, pictures: Pictures) -> None:
    own = steers(policy)
    images, texts = [*pictures, pictures[0], pictures[1]], [*QUESTIONS, "red?", "a"]
    states, seeds = [*STATES, [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]], [0, 1, 2, 3, 4]
    together = act(policy, images, texts, own, states, seeds)
    rows = zip(images, texts, own, states, seeds, strict=True)
    alone = [act(policy, [image], [text], steer, [state], seed) for image, text, steer, state, seed in rows]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4 * np.abs(together).max())
    in_parts = act(policy, images, texts, own, states, seeds, batch_size=2)
    np.testing.assert_allclose(in_parts, together, atol=1e-4 * np.abs(together).max())
    plain = act(policy, images, texts, None, states, seeds)
    for row in range(5):
        assert np.allclose(plain[row], together[row], atol=1e-3) == (own[row] is None)


def test_noise_comes_from_the_seed(policy: Any, pictures: Pictures) -> None:
    images, texts = [pictures[0]] * 3, ["red?"] * 3
    first = act(policy, images, texts, seed=5)
    np.testing.assert_array_equal(first, act(policy, images, texts, seed=5))
    np.testing.assert_allclose(first[1:], first[:2], atol=1e-5)  # the same noise in every row
    mixed = act(policy, images, texts, seed=[5, 6, 5])
    np.testing.assert_allclose(mixed[[0, 2]], first[[0, 2]], atol=1e-5)
    assert not np.allclose(mixed[1], first[1], atol=1e-2)


def test_strength_zero_is_the_policy_itself(policy: Any, pictures: Pictures) -> None:
    before, plain = (hooks(policy.model), flags(policy.model)), act(policy, pictures, QUESTIONS)
    for steer in steers(policy)[1:]:
        assert steer is not None
        assert not np.allclose(act(policy, pictures, QUESTIONS, steer), plain, atol=1e-3)
        nothing = Recipe(tuple(replace(edit, strength=0.0) for edit in steer.edits))
        np.testing.assert_array_equal(act(policy, pictures, QUESTIONS, nothing), plain)
    zeros = recipe(policy, "expert.*.mlp_out", positions="all", size=0.0)  # really run
    np.testing.assert_array_equal(act(policy, pictures, QUESTIONS, zeros), plain)
    with pytest.raises(RuntimeError, match="stop"), policy.apply(steers(policy)[1]), policy.read("expert.*.block_out"):
        act(policy, pictures[:1], QUESTIONS[:1])
        raise RuntimeError("stop")
    assert (hooks(policy.model), flags(policy.model)) == before
    np.testing.assert_array_equal(act(policy, pictures, QUESTIONS), plain)


def test_every_site_that_is_said_to_matter_changes_the_actions(policy: Any, pictures: Pictures) -> None:
    plain = act(policy, pictures[:1], QUESTIONS[:1])
    last = policy.layers("text") - 1
    for site in policy.sites:
        edit = recipe(policy, str(site), positions="all", size=5.0)
        moved = not np.allclose(act(policy, pictures[:1], QUESTIONS[:1], edit), plain, atol=1e-4)
        dead = site.tower == "text" and site.layer == last and site.point != "block_in"
        assert moved != dead, site


def test_reading_the_expert_at_every_step(policy: Any, pictures: Pictures) -> None:
    site = "expert.1.block_out"
    with (
        policy.read(site, "all", "both") as every,
        policy.read(site, "action", "decode") as moving,
        policy.read(site) as still,
        policy.read("text.1.block_out", "all") as prompt,
    ):
        act(policy, pictures[:2], QUESTIONS[:2])
        act(policy, pictures[2:], QUESTIONS[2:])
    width = policy.taps[policy.sites[-1]].width
    assert every[site].shape == (3, STEPS * (1 + CHUNK), width)
    assert moving[site].shape == (3, STEPS * CHUNK, width) and still[site].shape == (3, STEPS, width)
    steps = every[site].unflatten(1, (STEPS, 1 + CHUNK))
    assert torch.equal(steps[:, :, 1:].flatten(1, 2), moving[site]) and torch.equal(steps[:, :, 0], still[site])
    assert len(prompt.rows("text.1.block_out")) == 3  # the prompt is read once
    with policy.read(site, "all", "both") as once:
        policy.run(pictures[:1], QUESTIONS[:1])
    assert once[site].shape == (1, 1 + CHUNK, width)


def test_an_edit_of_the_actions_leaves_the_state_alone(policy: Any, pictures: Pictures) -> None:
    """And one of the robot's state only is one at `last` in the prefill; both reach all actions."""
    plain = act(policy, pictures[:1], QUESTIONS[:1])
    for edit in (
        recipe(policy, "expert.0.block_out", positions="action", size=3.0),
        recipe(policy, "expert.0.block_out", positions="last", phase="prefill", size=30.0),
    ):
        with policy.apply(edit), policy.read("expert.0.block_out", "all", "both") as states:
            policy.run(pictures[:1], QUESTIONS[:1])
        with policy.read("expert.0.block_out", "all", "both") as before:
            policy.run(pictures[:1], QUESTIONS[:1])
        changed = (states["expert.0.block_out"] != before["expert.0.block_out"]).any(-1)[0]
        only_state = edit.edits[0].phase == "prefill"
        assert changed.tolist() == [only_state] + [not only_state] * CHUNK
        assert (np.abs(act(policy, pictures[:1], QUESTIONS[:1], edit) - plain).max(-1) > 1e-4).all()


def test_transformers_own_sampling_is_steered_too(policy: Any, pictures: Pictures) -> None:
    """A direct call of the model's parts, without the session's loop."""
    layout = policy.encoder.encode(pictures[:1], ["red?"]).whole(policy.device)
    made = dict(layout.inputs)
    pixels = made.pop("pixel_values")[:, None]
    arguments = {"state": torch.zeros(1, 6), "noise": noise(0)[None], "pixel_values": pixels}
    arguments["pixel_attention_mask"] = torch.ones(1, 1, dtype=torch.bool)
    for steer in (
        recipe(policy, "expert.*.block_out", positions="action"),
        recipe(policy, "text.0.mlp_out", positions="all"),
    ):
        with policy.apply(steer):
            seen = policy.model.sample_actions(**made, **arguments)
        expected = act(policy, pictures[:1], ["red?"], steer)
        np.testing.assert_allclose(seen.double().numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_units_of_the_data(policy: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = act(policy, pictures, QUESTIONS, states=[[1.0, 1.0]] * 3)
    known = {"state_mean": [1.0, -1.0], "state_std": [2.0, 4.0], "actions_mean": [10.0, 0.0], "actions_std": [2.0, 0.5]}
    monkeypatch.setattr(policy.processor, "statistics", known)
    assert policy.processor.normalized(np.array([[3.0, 3.0]])).round(6).tolist() == [[1.0, 1.0]]
    done = act(policy, pictures, QUESTIONS, states=[[3.0, 3.0]] * 3)
    np.testing.assert_allclose(done, plain[..., :2] * [2.0, 0.5] + [10.0, 0.0], atol=1e-3)
    with pytest.raises(InputError, match="has 2 numbers, not 3"):
        act(policy, pictures, QUESTIONS, states=STATES)


def test_units_are_kept_in_the_folder(policy: Any, folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["pi0"], tmp_path / "known")
    known = {"state_mean": [0.0], "state_std": [1.0], "actions_mean": [1.0] * 3, "actions_std": [2.0] * 3}
    old = policy.processor
    processor = PI0Processor(old.image_processor, old.tokenizer, old.image_tokens, old.image_token_id, known)
    processor.save_pretrained(folder)
    assert vlmsteer.load(folder, check=False).processor.statistics == known


def test_it_has_no_words(policy: Any, llava: Any, pictures: Pictures) -> None:
    one = pictures[:1], ["red?"]
    for ask in (
        lambda: policy.ask(pictures[0], "red?"),
        lambda: policy.ask(pictures[0], "red?", do_sample=False),
        lambda: policy.ask_many(*one),
        lambda: policy.ask_grid(*one, [None]),
        lambda: next(policy.stream(pictures[0], "red?")),
        lambda: policy.score(*one, ["red"]),
        lambda: policy.run(*one, ["red"]),
    ):
        with pytest.raises(ModelError, match="is a pi0, without words. It answers with actions: vlmsteer.pi0.actions"):
            ask()
    with pytest.raises(ModelError, match="is a pi0, not a policy with action tokens"):
        openvla.act(policy, *one)
    with pytest.raises(ModelError, match="is a LLaVA, not a policy with a flow head"):
        act(llava, *one)
    rule = Recipe((), rules=(Rule("self_logits", {"layers": [0], "share": 0.5}),))
    run: Any
    for run in (act, lambda session, *rows: session.logits(*rows)):
        with pytest.raises(RecipeError, match="Rules choose words"):
            run(policy, *one, rule)
    with pytest.raises(SiteError, match="read from expert states, of width 40, not 48"):
        policy.unembed(torch.zeros(1, 48))


def test_what_cannot_be_done(policy: Any, pictures: Pictures) -> None:
    for rows, sentence in (
        ((pictures, QUESTIONS[:2]), "3 images, 2 instructions and 3 recipes"),
        ((pictures, QUESTIONS, [None]), "3 images, 3 instructions and 1 recipes"),
        (([], []), "0 images, 0 instructions"),
        (([None], ["red?"]), "every row needs an image"),
        ((pictures[:1], [""]), "question is empty"),
        ((pictures[:1], ["an <image>"]), "stands for the image"),
    ):
        with pytest.raises(InputError, match=sentence):
            act(policy, *rows)  # pyright: ignore[reportArgumentType]
    one: Any = pictures[:1], ["red?"]
    for states in ([[1.0] * 7], [[]], [1.0], [[float("nan")]], [["a"]], [[1.0], [1.0]], [[1.0], [1.0, 2.0]]):
        with pytest.raises(InputError, match="States are"):
            act(policy, *one, states=states)
    wrong: Any
    for wrong in (0, -1, 1.5, True, "3"):
        with pytest.raises(InputError, match="whole number of steps"):
            act(policy, *one, steps=wrong)
    for wrong in ([1, 2], True, 1.0, "a", None, [0.5], -(2**70)):
        with pytest.raises(InputError, match="seed is a whole number"):
            act(policy, *one, seed=wrong)
    with pytest.raises(InputError, match="batch_size is 0"):
        act(policy, *one, batch_size=0)
    flood = Recipe((Edit(Vectors("expert", "block_out", {1: torch.full((40,), 3e38)}), strength=2.0, positions="all"),))
    with pytest.raises(ModelError, match="no action in row 1: its velocities are not numbers"):
        act(policy, pictures[:2], QUESTIONS[:2], [None, flood])
    with pytest.raises(SiteError, match="reads the prompt only; what it generates is in its expert tower"):
        act(policy, *one, recipe=recipe(policy, "text.0.block_out", positions="action"))
    for positions in ("image", "question"):
        with pytest.raises(SiteError, match="In the expert tower, positions are 'last', 'generated', 'all' or indices"):
            act(policy, *one, recipe=recipe(policy, "expert.0.block_out", positions=positions))


def test_a_folder_as_lerobot_writes_it(policy: Any, folders: Any, pictures: Pictures, tmp_path: Path) -> None:
    """`type` for the kind of model, other names of the weights, no processor's files but the tokenizer's."""
    folder = tmp_path / "policy"
    folder.mkdir()
    config = json.loads((folders["pi0"] / "config.json").read_text())
    assert config.pop("model_type") == "pi0"
    written = {"type": "pi0", "n_obs_steps": 1, "device": "cpu", "paligemma_variant": "gemma_2b", **config}
    (folder / "config.json").write_text(json.dumps(written))
    weights = {filed(name, LEROBOT): weight.detach() for name, weight in policy.model.named_parameters()}
    assert "paligemma_with_expert.paligemma.lm_head.weight" in weights
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match="no tokenizer.json. LeRobot's checkpoints come without: put"):
        vlmsteer.load(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["pi0"] / name, folder)
    loaded = vlmsteer.load(folder)
    np.testing.assert_array_equal(act(loaded, pictures, QUESTIONS), act(policy, pictures, QUESTIONS))
    del weights["action_out_proj.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match="lacks 1 of the model's weights, for example 'action_out_proj.bias'"):
        vlmsteer.load(folder)


def test_what_it_saves_transformers_loads(policy: Any, folders: Any) -> None:
    own = transformers.PI0ForConditionalGeneration.from_pretrained(folders["pi0"])
    theirs, ours = dict(own.named_parameters()), dict(policy.model.named_parameters())
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert len(load_file(folders["pi0"] / "model.safetensors")) == len(ours)


def test_an_image_processor_for_another_size(folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["pi0"], tmp_path / "small")
    path = folder / "preprocessor_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "pad_size": {"height": 14, "width": 14}}))
    with pytest.raises(ModelError, match="pads to .*14.* pixels, the vision tower takes 28"):
        vlmsteer.load(folder)
