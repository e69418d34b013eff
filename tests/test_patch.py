"""Patching equals what a hook a site does, whatever the family; its direction; its ends; what it refuses."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlmsteer.errors import InputError, ModelError, SiteError
from vlmsteer.lens.decoder import walk
from vlmsteer.lens.patch import exact, patch
from vlmsteer.lens.patch_map import PatchMap, mean
from vlmsteer.lens.patch_metrics import METRICS
from vlmsteer.lens.patch_plan import Plan, plan
from vlmsteer.lens.patch_values import POINTS
from vlmsteer.sites import Site

QUESTION, OTHER = "What color is the strawberry here?", "Is the strawberry here red or green?"
WORDS = ("red", "green")
WALKED = ("llava", "llava_next", "llava_onevision", "instructblip", "qwen2_vl", "qwen2_5_vl", "openvla")
NOT_WALKED = ("instructblip_t5", "qwen3_vl")
TEXT_BLOCKS = ("language_model.layers", "language_model.model.layers")
MODULES = {
    "block_in": ("", "in"), "block_out": ("", "out"), "attn_out": ("self_attn", "out"), "mlp_out": ("mlp", "out"),
    "head": ("self_attn.o_proj", "in"), "neuron": ("mlp.down_proj", "in"),
    "norm_out": ("post_attention_layernorm", "out"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shown() -> tuple[Image.Image, Image.Image]:
    """Two images of one size that are no more alike than any two."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 28, 28, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(pixels[0]), Image.fromarray(pixels[1])


def planned(session: Any, shown: tuple[Image.Image, Image.Image], point: str = "block_out", **more: Any) -> Plan:
    return plan(session, (shown[0], QUESTION), (shown[1], QUESTION), WORDS, point, **more)


def by_hand(planned: Plan) -> np.ndarray:
    """One plain torch hook a site, and one forward of the whole model: (sites, groups, units) of the metric."""
    session, pair = planned.session, planned.contrast
    blocks = next(m for name, m in session.model.named_modules() if name.endswith(TEXT_BLOCKS) and "vision" not in name)
    layout = session.encoder.encode([pair.recipient.image], [pair.recipient.question]).whole(session.device)
    found = np.zeros(planned.shape)
    for (i, site), (j, group), k in product(
        enumerate(planned.sites), enumerate(planned.groups), range(planned.shape[2])
    ):
        name, side = MODULES[site.point]
        module = blocks[site.layer].get_submodule(name)
        new = pair.donor.states[site][pair.partners[list(group)]]

        def put(states: torch.Tensor, group=group, new=new, site=site, k=k) -> torch.Tensor:
            changed = states.clone()
            at, aim = changed[0, list(group)].view(new.shape), new.clone()
            if planned.units is not None:
                aim = at.clone()
                aim[:, planned.units[k]] = new[:, planned.units[k]]
            changed[0, list(group)] = aim.flatten(1)
            return changed

        def before(_: Any, args: tuple, kwargs: dict, put=put) -> tuple[tuple, dict]:
            return (
                ((put(args[0]), *args[1:]), kwargs)
                if args
                else (args, kwargs | {"hidden_states": put(kwargs["hidden_states"])})
            )

        def after(_: Any, __: Any, output: Any, put=put) -> Any:
            return (put(output[0]), *output[1:]) if isinstance(output, tuple) else put(output)

        handle = (
            module.register_forward_pre_hook(before, with_kwargs=True)
            if side == "in"
            else module.register_forward_hook(after)
        )
        try:
            with torch.no_grad():
                out = session.family.call(session.model, dict(layout.inputs), layout.positions, None, False)
        finally:
            handle.remove()
        found[i, j, k] = float(planned.metric(out.logits[:, -1]))
    return found


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_equals_one_hook_a_site(sessions: Any, shown: Any, point: str, direction: str) -> None:
    units = [0, 5] if point == "neuron" else None
    one = planned(sessions["llava"], shown, point, direction=direction, units=units)
    run = one.contrast.recipient
    expected = by_hand(one) - one.score(run)
    found = exact(one).effects.reshape(one.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found).max() > 0.01
    np.testing.assert_allclose(exact(one, fast=False).effects.reshape(one.shape), expected, atol=1e-5)


@pytest.mark.parametrize("family", WALKED)
def test_the_walk_equals_whole_forwards_in_every_family_that_can_be_walked(
    sessions: Any, shown: Any, family: str
) -> None:
    session = sessions[family]
    for point in ("block_out", "head"):
        one = planned(session, shown, point, positions=[1, (3, 4, -2), -1])
        assert walk(session, one.contrast.recipient) is not None
        expected = by_hand(one) - one.score(one.contrast.recipient)
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(exact(one).effects.reshape(one.shape), expected, atol=1e-5 * scale)


@pytest.mark.parametrize("family", NOT_WALKED)
def test_other_families_patch_through_the_hooks(sessions: Any, shown: Any, family: str) -> None:
    session = sessions[family]
    one = planned(session, shown, positions=[2, -2])
    assert walk(session, one.contrast.recipient) is None
    found = exact(one)
    assert found.tower == session.family.reads_prompt
    if family == "qwen3_vl":
        np.testing.assert_allclose(
            found.effects[..., None], by_hand(one) - one.score(one.contrast.recipient), atol=1e-4
        )
    assert np.abs(found.effects).max() > 0


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "instructblip_t5"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_everything_at_once_gives_the_other_run(sessions: Any, shown: Any, family: str, direction: str) -> None:
    session = sessions[family]
    count = len(planned(session, shown).contrast.recipient)
    found = patch(
        session, (shown[0], QUESTION), (shown[1], QUESTION), WORDS, positions=[range(count)], direction=direction
    )
    reached = 1.0 if direction == "denoise" else 0.0
    layers = slice(-1, None) if family == "qwen3_vl" else slice(None)  # its later blocks take in the image once more
    np.testing.assert_allclose(found.recovery[layers], reached, atol=1e-4)


def test_a_run_patched_with_itself_stays_as_it_is(llava: Any, shown: Any) -> None:
    same = (shown[0], QUESTION)
    for point in POINTS:
        found = patch(llava, same, same, WORDS, point)
        assert np.abs(found.effects).max() < 1e-5
        assert np.isnan(found.recovery).all()  # there is nothing to recover


def test_the_direction_says_whose_states_go_where(llava: Any, shown: Any) -> None:
    """At the last token of the last layer the patched run says what the donor says."""
    for direction, aim in (("denoise", "clean"), ("noise", "corrupted")):
        found = patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS, positions="last", direction=direction)
        start = found.corrupted if direction == "denoise" else found.clean
        assert start + found.effects[-1, 0] == pytest.approx(getattr(found, aim), abs=1e-5)
        assert found.recovery[-1, 0] == pytest.approx(1.0 if direction == "denoise" else 0.0, abs=1e-5)


def test_tokens_after_the_last_block_matter_no_more_but_the_last(llava: Any, shown: Any) -> None:
    found = patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS)
    assert (found.effects[-1, :-1] == 0).all() and found.effects[-1, -1] != 0


def test_questions_of_two_lengths_are_paired_from_the_right(llava: Any, shown: Any) -> None:
    one = plan(llava, (shown[0], QUESTION), (shown[0], OTHER), WORDS)
    short, long = sorted((len(one.contrast.clean), len(one.contrast.corrupted)))
    assert short < long
    patched = [group[0] for group in one.groups]
    tail = short - one.contrast.recipient.prefix
    prefix = one.contrast.recipient.prefix
    assert patched == [*range(prefix), *range(len(one.contrast.recipient) - tail, len(one.contrast.recipient))]
    np.testing.assert_allclose(
        exact(one).effects[..., None], by_hand(one) - one.score(one.contrast.recipient), atol=1e-5
    )
    if len(one.contrast.recipient) == long:
        with pytest.raises(InputError, match="no partner"):
            plan(llava, (shown[0], QUESTION), (shown[0], OTHER), WORDS, positions=[prefix])


def test_images_of_other_numbers_of_tokens_are_refused(llava_next: Any, pictures: Any) -> None:
    with pytest.raises(InputError, match="do not correspond"):
        plan(llava_next, (pictures[0], QUESTION), (pictures[1], QUESTION), WORDS)
    with pytest.raises(InputError, match="do not correspond"):
        plan(llava_next, (pictures[0], QUESTION), (None, QUESTION), WORDS)


@pytest.mark.parametrize("measure", METRICS)
def test_metrics_are_what_they_say(llava: Any, shown: Any, measure: str) -> None:
    found = patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS, positions="last", measure=measure)
    known = llava.logits(shown, [QUESTION] * 2).float().log_softmax(-1)
    if measure == "kl":
        assert found.clean == pytest.approx(0, abs=1e-6)
        expected = float((known[0].exp() * (known[0] - known[1])).sum())
        assert found.corrupted == pytest.approx(expected, rel=1e-4)
    assert found.recovery[-1, 0] == pytest.approx(1, abs=1e-4)
    low, high = {"probability": (0, 1), "log_probability": (-np.inf, 0), "kl": (0, np.inf)}.get(
        measure, (-np.inf, np.inf)
    )
    assert low <= found.corrupted <= high


def test_the_image_has_a_map_of_its_own(llava: Any, shown: Any) -> None:
    found = patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS, positions="image")
    cells = found.grid(0)
    assert sorted(cells) == list(range(len(llava.boxes(shown[0]))))
    assert list(cells.values()) == pytest.approx(found.recovery[0].tolist())
    assert set(found.tokens) == {"image"}
    with pytest.raises(SiteError, match="not patched"):
        found.grid(99)
    with pytest.raises(SiteError, match="no map over the image"):
        patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS, positions="last").grid(0)


def test_a_map_is_saved_and_read_again(llava: Any, shown: Any, tmp_path: Path) -> None:
    found = patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS, "head", positions="question")
    assert found.axes == ("layer", "position", "head") and found.effects.ndim == 3
    found.save(tmp_path / "map.json")
    again = PatchMap.load(tmp_path / "map.json")
    np.testing.assert_allclose(again.recovery, found.recovery)
    assert again.strongest(3) == found.strongest(3)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="no map"):
        PatchMap.load(tmp_path / "other.json")


def test_the_strongest_come_first(llava: Any, shown: Any) -> None:
    found = patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS)
    best = found.strongest(5)
    sizes = [abs(one["effect"]) for one in best]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == np.abs(found.effects).max()
    assert best[0]["site"].startswith("text.") and len(best[0]["positions"]) == 1


def test_the_mean_of_maps_matches_tokens_from_the_end(llava: Any, shown: Any) -> None:
    one = patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS)
    two = patch(llava, (shown[1], OTHER), (shown[0], OTHER), WORDS)
    both = mean([one, two])
    assert both.pairs == 2 and len(both.places) == min(len(one.places), len(two.places))
    assert both.effects[0, -1] == pytest.approx((one.effects[0, -1] + two.effects[0, -1]) / 2)
    with pytest.raises(InputError, match="no mean"):
        mean([one, patch(llava, (shown[0], QUESTION), (shown[1], QUESTION), WORDS, "mlp_out")])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"point": "block_oout"}, SiteError, "block_out"),
        ({"positions": "imge"}, SiteError, "image"),
        ({"positions": []}, SiteError, "list of token indices"),
        ({"positions": [[]]}, SiteError, "list of token indices"),
        ({"positions": [True]}, SiteError, "list of token indices"),
        ({"positions": [10**9]}, SiteError, "no token 1000000000"),
        ({"positions": 3}, SiteError, "list of token indices"),
        ({"layers": [99]}, SiteError, "Layers to patch"),
        ({"layers": []}, SiteError, "Layers to patch"),
        ({"units": [-1]}, SiteError, "Units of block_out"),
        ({"measure": "logits"}, InputError, "logit_difference"),
        ({"direction": "clean"}, InputError, "denoise"),
        ({"method": "exat"}, InputError, "exact"),
        ({"answers": ("red", "Red ")}, InputError, "two that differ"),
        ({"answers": ("", "red")}, InputError, "empty"),
        ({"clean": (None, "")}, InputError, "question is empty"),
    ],
)
def test_what_cannot_be_patched_is_said(llava: Any, shown: Any, change: dict, error: type, says: str) -> None:
    given: dict[str, Any] = {
        "clean": (shown[0], QUESTION),
        "corrupted": (shown[1], QUESTION),
        "answers": WORDS,
    } | change
    with pytest.raises(error, match=says):
        patch(llava, **given)


def test_a_policy_without_words_is_refused(sessions: Any, shown: Any) -> None:
    with pytest.raises(ModelError, match="without words"):
        patch(sessions["pi0"], (shown[0], QUESTION), (shown[1], QUESTION), WORDS)


def test_inside_an_apply_block_its_recipe_acts_on_every_patch(llava: Any, shown: Any) -> None:
    from vlmsteer.recipe import Recipe
    from vlmsteer.vectors import Vectors

    width = llava.taps[Site("text", 0, "block_out")].width
    push = Recipe.of(Vectors("text", "block_out", {0: torch.ones(width)}), positions="all")
    given: Any = dict(positions=[2, -1], clean=(shown[0], QUESTION), corrupted=(shown[1], QUESTION), answers=WORDS)
    plain = patch(llava, **given)
    with llava.apply(push):
        pushed = patch(llava, **given)
        clean = llava.logits([shown[0]], [QUESTION])
    assert pushed.clean != pytest.approx(plain.clean)
    one = planned(llava, shown)
    assert pushed.clean == pytest.approx(float(one.metric(clean)), abs=1e-5)
    assert pushed.recovery[-1, -1] == pytest.approx(1, abs=1e-4)


def test_nothing_is_left_behind(llava: Any, shown: Any) -> None:
    before = llava.logits([shown[0]], [QUESTION])
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llava.model.modules()]
    exact(planned(llava, shown))
    exact(planned(llava, shown), fast=False)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llava.model.modules()]
    assert torch.equal(llava.logits([shown[0]], [QUESTION]), before)
