"""Action tokens by hand-computed cases, and the policy: every row as it would act alone, and as it would say itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_recipes import QUESTIONS, both, recipe
from PIL import Image

from vlmsteer.errors import InputError, ModelError, SiteError
from vlmsteer.openvla.actions import Actions, Bins, act, bins, normalize, statistics, unnormalize
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.tokens import check_positions
from vlmsteer.vectors import Vectors

LLAMA = Bins()  # 256 edges from -1 to 1, 2/255 apart; 32,000 tokens
STEP = 1 / 255  # half a bin
STATS = {"q01": [-1.0, 0.0, 10.0], "q99": [2.0, 0.5, 30.0], "mask": [True, True, False]}


@pytest.fixture(scope="session")
def policy(sessions: Any) -> Any:
    return sessions["openvla"]


def test_tokens_of_numbers() -> None:
    given = [-1, -3, -1 + 2.5 * STEP, 0, 1 - 3 * STEP, 1 - STEP, 1, 7]
    assert LLAMA.encode(given).tolist() == [31999, 31999, 31998, 31872, 31746, 31745, 31744, 31744]
    assert (LLAMA.first, LLAMA.end) == (31744, 32000)
    assert Bins(5, 100).encode([[-1, -0.6], [0.1, 0.5]]).tolist() == [[99, 99], [97, 96]]  # edges -1, -0.5, 0, 0.5, 1


def test_numbers_of_tokens() -> None:
    given = [31999, 31998, 31872, 31745, 31744]
    np.testing.assert_allclose(LLAMA.decode(given), [-1 + STEP, -1 + 3 * STEP, 0, 1 - STEP, 1 - STEP], atol=1e-12)
    # Other tokens give the nearest bin, as in the authors' code: text the largest number, padding the smallest.
    np.testing.assert_allclose(LLAMA.decode([[29871, 2], [32000, 32063]]), [[1 - STEP] * 2, [STEP - 1] * 2])
    assert LLAMA.has([31743, 31744, 31999, 32000, 29871]).tolist() == [False, True, True, False, False]


def test_every_bin_comes_back() -> None:
    """256 tokens, 255 centers: the two largest share one; no number moves by more than half a bin."""
    tokens = np.arange(31744, 32000)
    numbers = LLAMA.decode(tokens)
    assert LLAMA.encode(numbers).tolist() == [31745, *tokens[1:].tolist()]
    assert len(set(numbers.tolist())) == 255
    fine = np.linspace(-1, 1, 10001)
    assert np.abs(LLAMA.decode(LLAMA.encode(fine)) - fine).max() <= STEP + 1e-12
    assert (np.diff(LLAMA.encode(fine)) <= 0).all()


def test_actions_in_the_units_of_the_data() -> None:
    moved = unnormalize(np.array([[-1, 1, 0.25], [0, -0.5, -1], [STEP - 1, 0, 1]]), STATS)
    np.testing.assert_allclose(moved, [[-1, 0.5, 0.25], [0.5, 0.125, -1], [1.5 * STEP - 1, 0.25, 1]], atol=1e-12)
    assert moved.dtype == np.float64
    back = normalize([[-1, 0.5, 0.25], [0.5, 0.125, -1], [9, -9, 1]], STATS)
    np.testing.assert_allclose(back, [[-1, 1, 0.25], [0, -0.5, -1], [1, -1, 1]], atol=1e-6)
    still = normalize([[3.0, 7.0]], {"q01": [3, 0], "q99": [3, 9], "min": [3, 0], "max": [3, 9]})
    np.testing.assert_allclose(still, [[0, 14 / 9 - 1]], atol=1e-6)
    unmasked = unnormalize(np.array([1.0, 1.0]), {"q01": [0, 0], "q99": [4, 8]})
    assert unmasked.tolist() == [4, 8]


def test_which_data_set() -> None:
    table = {"bridge_orig": {"action": STATS}, "libero_10_no_noops": {"action": {**STATS, "q01": [0.0] * 3}}}
    assert statistics(table, "bridge_orig")["q01"].tolist() == STATS["q01"]
    assert statistics(table, "libero_10")["q01"].tolist() == [0, 0, 0]  # as the authors' evaluation takes it
    assert statistics({"bridge_orig": {"action": STATS}})["mask"].tolist() == [True, True, False]
    with pytest.raises(InputError, match="give unnorm_key; possible: bridge_orig, libero_10_no_noops"):
        statistics(table)
    with pytest.raises(InputError, match="'libero_11' .nor of 'libero_11_no_noops'.*libero_10_no_noops"):
        statistics(table, "libero_11")
    with pytest.raises(InputError, match="dataset_statistics.json"):
        statistics({})
    for wrong in ({**STATS, "q99": [1.0]}, {**STATS, "q01": [0.0, float("nan"), 0.0]}, {"mask": [True]}):
        with pytest.raises(ModelError, match="'a' cannot be used"):
            statistics({"a": {"action": wrong}}, "a")
    with pytest.raises(InputError, match="NaN"):
        LLAMA.encode([0.0, float("nan")])


def said(policy: Any, picture: Image.Image, instruction: str) -> list[int]:
    """Seven tokens by whole forwards of the model, without a cache and without the session's loops."""
    text = f"<image>In: What action should the robot take to {instruction}?\nOut: "
    inputs = policy.processor(images=picture, text=text, return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(7):
            logits = policy.model(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids[0, -7:].tolist()


def test_an_action_is_what_whole_forwards_say(policy: Any, pictures: list[Image.Image]) -> None:
    coding = bins(policy.model.config)
    assert coding == Bins(256, policy.model.config.text_config.vocab_size - 8)
    texts = ["red", "a large one", "green"]
    done = act(policy, pictures, texts)
    assert [said(policy, *row) for row in zip(pictures, texts, strict=True)] == done.tokens.tolist()
    # q01 = -1 and q99 = 2 but for the gripper, which is not scaled: 0.5 (a + 1) 3 - 1 = 1.5 a + 0.5
    center = -1 + STEP + 2 * STEP * (coding.end - done.tokens - 1).clip(0, 254)
    np.testing.assert_allclose(done.actions[:, :6], 1.5 * center[:, :6] + 0.5, atol=1e-9)
    np.testing.assert_allclose(done.actions[:, 6], center[:, 6], atol=1e-9)
    assert done.actions.dtype == np.float64 and done.actions.shape == (3, 7)
    assert (done.action_tokens == ((done.tokens >= coding.end - 256) & (done.tokens < coding.end))).all()


def steers(policy: Any) -> list[Recipe | None]:
    return [
        None,
        recipe(policy, "text.*.block_out", positions="action", seed=1),
        both(
            recipe(policy, "vision2.0.block_out", positions="image", seed=2, size=3.0),
            recipe(policy, "text.1.neuron", "clamp", strength=4.0, positions="all", seed=3),
        ),
        recipe(policy, "vision.1.head", positions="all", seed=4, size=3.0),
        recipe(policy, "text.0.block_out", "scale", -0.5, "image", seed=5),
    ]


@pytest.mark.parametrize("restrict", [False, True])
def test_rows_act_as_if_alone(policy: Any, pictures: list[Image.Image], restrict: bool) -> None:
    """Instructions of different lengths, one picture twice, each row with its own recipe, in batches of any size."""
    own = steers(policy)
    images, texts = [*pictures, pictures[0], pictures[1]], [*QUESTIONS, "red?", "a"]
    together = act(policy, images, texts, own, restrict=restrict)
    alone = [act(policy, [row[0]], [row[1]], row[2], restrict=restrict) for row in zip(images, texts, own, strict=True)]
    assert together.tokens.tolist() == [one.tokens[0].tolist() for one in alone]
    np.testing.assert_array_equal(together.actions, np.concatenate([one.actions for one in alone]))
    assert act(policy, images, texts, own, restrict=restrict, batch_size=2).tokens.tolist() == together.tokens.tolist()
    plain = act(policy, images, texts, restrict=restrict).tokens
    assert all((plain[row] != together.tokens[row]).any() == (own[row] is not None) for row in range(5))
    assert together.action_tokens.all() or not restrict


def test_strength_zero_is_the_policy_itself(policy: Any, pictures: list[Image.Image]) -> None:
    for steer in steers(policy)[1:]:
        assert steer is not None
        nothing = Recipe(tuple(replace(edit, strength=0.0) for edit in steer.edits if edit.operation != "clamp"))
        assert torch.equal(policy.logits(pictures, QUESTIONS, nothing), policy.logits(pictures, QUESTIONS))
        same, plain = act(policy, pictures, QUESTIONS, nothing), act(policy, pictures, QUESTIONS)
        assert all((left == right).all() for left, right in zip(same, plain, strict=True))


def test_a_policy_that_answers_with_text(policy: Any, pictures: list[Image.Image]) -> None:
    """Its tokens are decoded as the authors' code does, and reported; `restrict` keeps it to actions."""
    coding, word = bins(policy.model.config), policy.tokenizer.convert_tokens_to_ids("<s>")
    assert word < coding.first
    direction = policy.model.language_model.lm_head.weight[word].detach()
    push = Recipe((Edit(Vectors("text", "block_out", {2: direction}), strength=1000.0),))
    done = act(policy, pictures, QUESTIONS, [push, None, push])
    assert (done.tokens[[0, 2]] == word).all() and not done.action_tokens[[0, 2]].any()
    np.testing.assert_allclose(done.actions[0], [1.5 * (1 - STEP) + 0.5] * 6 + [1 - STEP], atol=1e-9)
    assert done.tokens[1].tolist() == act(policy, pictures[1:2], QUESTIONS[1:2]).tokens[0].tolist()
    kept = act(policy, pictures, QUESTIONS, push, restrict=True)
    assert kept.action_tokens.all() and kept.tokens.min() >= coding.first and kept.tokens.max() < coding.end


def test_the_restriction_only_leaves_tokens_out(policy: Any, pictures: list[Image.Image]) -> None:
    coding, logits = bins(policy.model.config), policy.logits(pictures, QUESTIONS)
    outside = torch.ones_like(logits, dtype=torch.bool)
    outside[:, coding.first : coding.end] = False
    best = logits.masked_fill(outside, -torch.inf).argmax(-1)
    assert act(policy, pictures, QUESTIONS, restrict=True).tokens[:, 0].tolist() == best.tolist()


def test_what_a_policy_cannot_do(policy: Any, llava: Any, pictures: list[Image.Image]) -> None:
    flood = Recipe((Edit(Vectors("text", "block_out", {1: torch.full((48,), 3e38)}), strength=2.0),))
    with pytest.raises(ModelError, match="no action in row 1: its logits are not numbers"):
        act(policy, pictures[:2], QUESTIONS[:2], [None, flood])
    with pytest.raises(InputError, match="3 images, 2 instructions and 3 recipes"):
        act(policy, pictures, QUESTIONS[:2])
    with pytest.raises(InputError, match="3 images, 3 instructions and 1 recipes"):
        act(policy, pictures, QUESTIONS, [None])
    with pytest.raises(InputError, match="every row needs an image"):
        act(policy, [None], ["red"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="possible: blocks"):
        act(policy, pictures, QUESTIONS, unnorm_key="zzz")
    with pytest.raises(ModelError, match="LLaVA, not a policy"):
        act(llava, pictures, QUESTIONS)
    assert isinstance(act(policy, pictures[:1], ["red"], unnorm_key="blocks"), Actions)


def test_action_is_a_name_for_generated(policy: Any, pictures: list[Image.Image]) -> None:
    assert check_positions("action") == "generated"
    with policy.read("text.*.block_out", "action", phase="decode") as states:
        done = act(policy, pictures[:1], ["red"])
    assert done.tokens.shape == (1, 7)
    assert states.rows("text.0.block_out")[0].shape == (6, 48)  # the seventh token is not taken in again
    with pytest.raises(SiteError, match="In the vision2 tower"):
        policy.logits(pictures[:1], ["red"], recipe(policy, "vision2.0.block_out", positions="action"))
