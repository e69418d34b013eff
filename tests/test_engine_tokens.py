"""Token selection over random paddings, splits and positions, against lists of tokens counted one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from vlmsteer.errors import SiteError
from vlmsteer.operations import OPERATIONS, WIDTHS
from vlmsteer.sites import TOWERS, Site, expand
from vlmsteer.tokens import POSITIONS, Frame, check_positions

CPU = torch.device("cpu")
ROLES = st.sampled_from(["image", "question", "other"])
PROMPTS = st.lists(st.lists(ROLES, min_size=1, max_size=7), min_size=1, max_size=4)
NAMED = st.sampled_from(sorted(POSITIONS))
INDICES = st.lists(st.integers(-7, 6), min_size=1, max_size=3).map(tuple)
PHASES = st.sampled_from(["prefill", "decode", "both"])


def expected(roles: list[str], generated: int, positions: Any, phase: str) -> set[int]:
    """Token numbers of one row, padding not counted, generated tokens after the prompt's."""
    count = len(roles)
    new = set(range(count, count + generated))
    prompt = {
        "last": {count - 1},
        "all": set(range(count)),
        "generated": set(),
        "image": {i for i, role in enumerate(roles) if role == "image"},
        "question": {i for i, role in enumerate(roles) if role == "question"},
    }.get(positions, set())
    if not isinstance(positions, str):
        prompt = {index % count for index in positions}
    later = new if positions in ("last", "generated", "all") else set()
    return (prompt if phase != "decode" else set()) | (later if phase != "prefill" else set())


def possible(roles: list[str], positions: Any) -> bool:
    if isinstance(positions, str):
        return positions not in ("image", "question") or positions in roles
    return all(-len(roles) <= index < len(roles) for index in positions)


def laid_out(prompts: list[list[str]], left: bool, generated: int) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Masks over prompt and generated columns, and for each row the column of each of its tokens."""
    width = max(map(len, prompts))
    masks = {
        name: torch.zeros(len(prompts), width + generated, dtype=torch.bool) for name in ("valid", "image", "question")
    }
    columns = []
    for i, roles in enumerate(prompts):
        start = width - len(roles) if left else 0
        places = [*range(start, start + len(roles)), *range(width, width + generated)]
        masks["valid"][i, places] = True
        for place, role in zip(places, roles, strict=False):
            if role in masks:
                masks[role][i, place] = True
        columns.append(places)
    return masks, columns


def frame(masks: dict[str, Tensor], width: int, start: int, stop: int) -> Frame:
    valid, image, question = (masks[name][:, start:stop] for name in ("valid", "image", "question"))
    return Frame(len(valid), stop - start, start, width, CPU, valid, image, question)


def chosen(described: Frame, positions: Any, phase: str, active: Tensor | None = None) -> set[tuple[int, int]]:
    """(row, column) of every selected token."""
    selection = described.select(positions, phase, active)
    if selection is None:
        return set()
    if selection.rows is None or selection.columns is None:
        return {(i, described.start + j) for i in range(described.batch) for j in range(described.length)}
    return set(zip(selection.rows.tolist(), (selection.columns + described.start).tolist(), strict=True))


@settings(max_examples=300, deadline=None)
@given(PROMPTS, st.booleans(), NAMED | INDICES, PHASES, st.integers(0, 3))
def test_one_forward(prompts: Any, left: bool, positions: Any, phase: str, generated: int) -> None:
    """A prompt with what was generated so far behind it, as without a cache or with assisted decoding."""
    masks, columns = laid_out(prompts, left, generated)
    width = max(map(len, prompts))
    described = frame(masks, width, 0, width + generated)
    lacking = [i for i, roles in enumerate(prompts) if not possible(roles, positions)]
    if lacking and phase != "decode":
        with pytest.raises(SiteError, match=f"Row {lacking[0]} of the batch"):
            described.select(positions, phase)
        active = torch.tensor([i not in lacking for i in range(len(prompts))])
        found = {(i, j) for i, j in chosen(described, positions, phase, active) if active[i]}
    else:
        found = chosen(described, positions, phase)
    wanted = {
        (i, columns[i][number])
        for i, roles in enumerate(prompts)
        if i not in lacking or phase == "decode"
        for number in expected(roles, generated, positions, phase)
    }
    assert found == wanted


@settings(max_examples=300, deadline=None)
@given(PROMPTS, NAMED, PHASES, st.integers(0, 4), st.data())
def test_any_split_selects_the_same_tokens(prompts: Any, positions: str, phase: str, generated: int, data: Any) -> None:
    """Chunks of a prompt, single tokens and several at once bring, together, what one forward brings."""
    masks, columns = laid_out(prompts, True, generated)
    width = max(map(len, prompts))
    total = width + generated
    cuts = data.draw(st.sets(st.integers(1, total)))
    edges = sorted({0, total} | cuts)
    found: set[tuple[int, int]] = set()
    try:
        for start, stop in zip(edges, edges[1:], strict=False):
            found |= chosen(frame(masks, width, start, stop), positions, phase)
    except SiteError:
        assert edges[1] >= width and not all(possible(roles, positions) for roles in prompts)
        return
    assert found == {
        (i, columns[i][number])
        for i, roles in enumerate(prompts)
        for number in expected(roles, generated, positions, phase)
    }


def test_indices_of_a_split_prompt_are_refused() -> None:
    masks, _ = laid_out([["other"] * 4], True, 0)
    with pytest.raises(SiteError, match="prompt was split"):
        frame(masks, 4, 0, 2).select((0,), "both")
    with pytest.raises(SiteError, match=r"session\.encode"):
        Frame(1, 4, 0, 4, CPU).select("question", "both")


@pytest.mark.parametrize("positions", ["lst", "", 5, None, (), [1.0], [True], ["last"], {"last": 1}, 1.5])
def test_positions_that_cannot_be_meant(positions: Any) -> None:
    with pytest.raises(SiteError):
        check_positions(positions)


def random(width: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 8, generator=generator) * 5, torch.randn(width, generator=generator)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0, -2.0])
def test_closed_forms(operation: str, strength: float) -> None:
    x, v = random(8 * WIDTHS.get(operation, 1), 0)
    if operation == "clamp":
        v[2:5] = float("nan")
    if operation == "transport":
        v[16:24], v[24:] = -2.0, 3.0
    if operation == "mean_of_others":  # four heads of two numbers; the second is replaced
        v = torch.tensor([0.0, 0, 4, 4, 0, 0, 0, 0])
    unit = v / v.norm()
    w, b, *bounds = v.chunk(WIDTHS.get(operation, 2))
    others = (x[..., 0:2] + x[..., 4:6] + x[..., 6:8]) / 3
    wanted = {
        "add": lambda: x + strength * v,
        "add_keep_norm": lambda: (
            normalize(normalize(x, dim=-1) + strength * unit, dim=-1) * x.norm(dim=-1, keepdim=True)
        ),
        "add_opposed_keep_norm": lambda: (
            normalize(
                normalize(x, dim=-1)
                + strength
                * (1 + torch.relu(-math.copysign(1, strength) * normalize(x, dim=-1) @ unit))[..., None]
                * unit,
                dim=-1,
            )
            * x.norm(dim=-1, keepdim=True)
        ),
        "scale": lambda: x * (1 + strength * v),
        "rescale": lambda: x * (1 + strength * v).clip(0, 2),
        "mean_of_others": lambda: torch.cat(
            [x[..., :2], (1 - strength) * x[..., 2:4] + strength * others, x[..., 4:]], -1
        ),
        "clamp": lambda: torch.where(v.isnan(), x, (1 - strength) * x + strength * v),
        "affine": lambda: strength * (w * x + b) + (1 - strength) * x,
        "transport": lambda: torch.where(
            (x >= bounds[0]) & (x <= bounds[1]), strength * (w * x + b) + (1 - strength) * x, x
        ),
        "project_out": lambda: x - strength * (x @ unit)[..., None] * unit,
        "replace": lambda: (1 - strength) * x + strength * v,
    }[operation]()
    result = OPERATIONS[operation](x, v, torch.tensor([strength]))
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)
    if strength == 0 and "keep_norm" not in operation:
        assert torch.equal(result, x)
    if "keep_norm" in operation:
        torch.testing.assert_close(result.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=1e-5)
    if operation == "project_out" and strength == 1:
        assert (result @ unit).abs().max() < 1e-5


@pytest.mark.parametrize(
    "text", ["text.0", "text.0.block_out.x", "txt.0.block_out", "text.0.blok_out", "text.x.block_out"]
)
def test_malformed_sites(text: str) -> None:
    with pytest.raises(SiteError):
        Site.parse(text)
    with pytest.raises(SiteError):
        expand(text, [Site("text", i, "block_out") for i in range(3)])


@pytest.mark.parametrize(
    "layer", ["3", "2-5", "2-1", "1-0", "²", "-1", "0-", "٣", "0-99999999999", "9" * 5000, "1-2-3"]
)
def test_layers_that_are_not_there(layer: str) -> None:
    with pytest.raises(SiteError):
        expand(f"text.{layer}.block_out", [Site("text", i, "block_out") for i in range(3)])


@given(st.sets(st.integers(0, 8), min_size=1), st.integers(0, 8), st.integers(0, 8))
def test_ranges(layers: set[int], low: int, high: int) -> None:
    sites = [Site(tower, layer, "mlp_out") for tower in TOWERS[::-1] for layer in sorted(layers)]
    asked = set(range(low, high + 1))
    if asked and asked <= layers:
        assert [site.layer for site in expand(f"vision.{low}-{high}.mlp_out", sites)] == sorted(asked)
    else:
        with pytest.raises(SiteError):
            expand(f"vision.{low}-{high}.mlp_out", sites)
    assert expand([f"text.{min(layers)}.mlp_out", "text.*.mlp_out"], sites) == [s for s in sites if s.tower == "text"]
