"""Estimates from gradients: what they are equal to where a model is linear, what they conserve, how near they come."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlmsteer.errors import InputError, ModelError
from vlmsteer.lens.agreement import agreement, bound_on_misses
from vlmsteer.lens.atp import Pattern, Recorded, _of_keys, _of_queries, atp
from vlmsteer.lens.attribution import attribution, estimates
from vlmsteer.lens.backward import Rules, at_sites, gradients, walk_parts
from vlmsteer.lens.patch import exact, patch
from vlmsteer.lens.patch_plan import Plan, plan
from vlmsteer.lens.patch_recipes import patched_together
from vlmsteer.lens.relevance import Relevance, relp
from vlmsteer.sites import Site

QUESTION, WORDS = "What color is the strawberry here?", ("red", "green")


@pytest.fixture(scope="module")
def near() -> tuple[Image.Image, Image.Image]:
    """Two images that differ by a few shades, so that what they do differs to first order."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 250, (28, 28, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()), Image.fromarray((pixels + 1).numpy())


def planned(session: Any, images: tuple[Image.Image, Image.Image], point: str = "block_out", **more: Any) -> Plan:
    return plan(session, (images[0], QUESTION), (images[1], QUESTION), WORDS, point, **more)


@pytest.mark.parametrize("point", ["block_in", "block_out", "attn_out", "head", "mlp_out", "neuron", "norm_out"])
def test_attribution_is_right_to_first_order(llava: Any, near: Any, point: str) -> None:
    one = planned(llava, near, point, units=[3, 4] if point == "neuron" else None)
    true, found = exact(one).effects, attribution(one).effects
    assert true.shape == found.shape
    assert np.abs(found - true).max() < 0.1 * np.abs(true).max()
    np.testing.assert_allclose(estimates(one, gradients(one, Rules())).reshape(found.shape), found, atol=1e-4)


@pytest.mark.parametrize("family", ["instructblip_t5", "qwen3_vl", "qwen2_5_vl"])
def test_attribution_works_in_every_family(sessions: Any, near: Any, family: str) -> None:
    one = planned(sessions[family], near, "mlp_out", positions=[1, (2, 3), -1])
    score = agreement(exact(one), attribution(one))
    assert score["pearson"] > 0.95 and score["sites"] == 9


def test_what_needs_llama_blocks_says_so(sessions: Any, near: Any) -> None:
    for method in ("relp", "atp"):
        with pytest.raises(ModelError, match="attribution or exact"):
            patch(sessions["qwen3_vl"], (near[0], QUESTION), (near[1], QUESTION), WORDS, method=method)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_relevance_is_conserved_from_layer_to_layer(sessions: Any, near: Any, family: str) -> None:
    """Without biases, each layer's states times their coefficients add up to the logit they explain."""
    one = planned(sessions[family], near)
    one = replace(one, metric=replace(one.metric, clean=[300], corrupted=[310]))
    walked = walk_parts(one, Relevance())
    coefficients = at_sites(one, walked)
    for site in one.sites:
        total = float((coefficients[site] * walked.points[site][0]).detach().sum())
        assert total == pytest.approx(walked.value.item(), rel=1e-3) and total
    assert not torch.allclose(coefficients[one.sites[0]], gradients(one, Rules())[one.sites[0]], rtol=0.1)


def test_the_last_layer_s_relevance_is_its_norm_s(llava: Any, near: Any) -> None:
    """After the last block only the norm is left, and its scale is constant: the estimate is linear in the states."""
    one = planned(llava, near, positions="last")
    norm, head = llava.family.ending(llava.model)
    old = one.contrast.recipient.states[one.sites[-1]][-1]
    new = one.contrast.donor.states[one.sites[-1]][-1]
    scale = (norm(old) / old).detach()
    one = replace(one, metric=replace(one.metric, clean=[300], corrupted=[310]))
    moved = head((new - old) * scale)
    assert relp(one).effects[-1, 0] == pytest.approx(float(moved[300] - moved[310]), rel=1e-3)


def test_a_dropped_layer_passes_the_stream_alone(llava: Any, near: Any) -> None:
    one = planned(llava, near, "block_in")
    for dropped in range(3):
        found = at_sites(one, walk_parts(one, Recorded(), dropped))
        torch.testing.assert_close(found[Site("text", dropped, "block_in")], _after(one, dropped), rtol=1e-3, atol=1e-5)
    inside = planned(llava, near, "mlp_out")
    assert not at_sites(inside, walk_parts(inside, Recorded(), 1))[Site("text", 1, "mlp_out")].any()


def _after(one: Plan, layer: int) -> torch.Tensor:
    """The gradient at what leaves a layer."""
    out = replace(one, sites=[Site("text", layer, "block_out")])
    return at_sites(out, walk_parts(out, Recorded()))[out.sites[0]]


def test_queries_and_keys_go_through_the_softmax() -> None:
    """The closed forms equal attention computed anew with one query, or one key, in place of its own."""
    generator = torch.Generator().manual_seed(0)
    heads, tokens, width = 2, 5, 4
    queries, keys, new = (torch.randn(heads, tokens, width, generator=generator) for _ in range(3))
    flowing = torch.randn(heads, tokens, tokens, generator=generator)
    hidden = torch.ones(tokens, tokens).triu(1).bool()
    mask = torch.zeros(tokens, tokens).masked_fill(hidden, torch.finfo(torch.float32).min)
    module = type("Attention", (), {"num_key_value_groups": 1, "scaling": 3.0})()

    def weights(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return (queries @ keys.transpose(1, 2) * 3.0 + mask).softmax(-1)

    pattern = Pattern(module, queries, keys, queries @ keys.transpose(1, 2) * 3.0 + mask, weights(queries, keys))
    for token in range(tokens):
        changed = queries.clone()
        changed[:, token] = new[:, token]
        expected = ((weights(changed, keys) - pattern.weights) * flowing).sum()
        assert float(_of_queries(pattern, new, flowing)[token]) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)
        changed = keys.clone()
        changed[:, token] = new[:, token]
        expected = ((weights(queries, changed) - pattern.weights) * flowing).sum()
        assert float(_of_keys(pattern, new, flowing)[token]) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("point", ["block_out", "head"])
def test_atp_gives_magnitudes_near_the_exact_ones(llava: Any, near: Any, point: str) -> None:
    one = planned(llava, near, point)
    found = atp(one)
    assert not found.signed and (found.effects >= 0).all()
    score = agreement(exact(one), found)
    assert score["spearman"] > 0.7 and score["recall"] >= 0.5
    assert np.nanmin(found.share) >= 0


def test_agreement_is_of_the_same_sites(llava: Any, near: Any) -> None:
    one = planned(llava, near)
    same = agreement(exact(one), exact(one), top=10**6)
    assert same["pearson"] == pytest.approx(1) and same["recall"] == 1 and same["top"] == same["sites"]
    with pytest.raises(InputError, match="same sites"):
        agreement(exact(one), exact(planned(llava, near, positions="last")))
    flat = replace(exact(one), effects=np.zeros(one.shape[:2]))
    assert agreement(exact(one), flat)["pearson"] is None


def test_misses_are_bounded(llava: Any, near: Any) -> None:
    one = planned(llava, near, "mlp_out", positions="last")
    effects = {}
    for chosen in product((False, True), repeat=3):
        cells = [(site, 0) for site, taken in enumerate(chosen) if taken]
        recipes = patched_together(one, cells) if cells else None
        effects[chosen] = float(one.metric(llava.run([near[1]], [QUESTION], recipes=recipes)[:, -1]))
    spread = float(np.std(list(effects.values())))
    found = bound_on_misses(one, [], samples=200)
    assert found["deviation"] == pytest.approx(spread, rel=0.2) and found["unverified"] == 3
    for site in range(3):
        sides = [[value for chosen, value in effects.items() if chosen[site] == taken] for taken in (True, False)]
        assert abs(np.mean(sides[0]) - np.mean(sides[1])) <= 2 * spread + 1e-6 < found["bound"] * 1.1
    assert bound_on_misses(one, [(0, 0)])["unverified"] == 2
    with pytest.raises(InputError, match="Every site"):
        bound_on_misses(one, [(site, 0) for site in range(3)])
    with pytest.raises(InputError, match="whole states"):
        bound_on_misses(planned(llava, near, "head"), [])
