"""Colors have the names that people give them; recoloring keeps the object and everything around it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import XKCD_COLORS
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer_counterfacts import palette
from vlmsteer_counterfacts.checks import lightness_structure
from vlmsteer_counterfacts.color import (
    NAMES,
    color_name,
    from_oklab,
    from_oklch,
    name_indices,
    parse_color,
    to_oklab,
    to_oklch,
)
from vlmsteer_counterfacts.draw import portrait
from vlmsteer_counterfacts.recolor import recolor

CHROMATIC = [name for name in NAMES if name not in ("black", "white", "gray")]
GRAY = (128, 128, 128)


def triple(code: str) -> list[int]:
    return [int(code[place : place + 2], 16) for place in (1, 3, 5)]


def ball(
    color: palette.RGB, side: int, seed: int, texture: float = 0.08, light: float = 0.0
) -> tuple[Image.Image, Image.Image]:
    """A lit and textured ball of the color on gray, and its soft-edged mask. `light` > 0 adds a white highlight."""
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side - 0.5
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi)
    shade = 0.85 + 0.5 * (x * np.cos(angle) + y * np.sin(angle)) + texture * rng.uniform(-1, 1, (side, side))
    linear = (np.array(color) / 255) ** 2.2 * shade[..., None] ** 2.2
    spot = light * np.exp(-(((x + 0.1) ** 2 + (y + 0.1) ** 2) / 0.004))
    linear = linear + (1 - linear) * spot[..., None]
    cover = ((0.42 - np.hypot(x, y)) * side + 0.5).clip(0, 1)
    picture = 255 * linear.clip(0, 1) ** (1 / 2.2)
    picture = np.array(GRAY) + (picture - GRAY) * cover[..., None]
    return Image.fromarray(picture.round().astype(np.uint8)), Image.fromarray((255 * cover).round().astype(np.uint8))


def lightness(image: Image.Image) -> np.ndarray:
    return to_oklab(image)[..., 0]


def test_oklch_and_back_is_exact() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    assert np.array_equal(from_oklab(to_oklab(rgb)), rgb)
    assert np.abs(from_oklch(to_oklch(rgb)).astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_arrays_agree_with_single_colors(name: str) -> None:
    center = palette.COLORS[name][:3]
    ours, single = from_oklch(center), palette.oklch_to_rgb(*center)
    (light, chroma, _), (single_light, single_chroma, _) = to_oklch(ours), to_oklch(single)
    assert light == pytest.approx(single_light, abs=0.005)
    assert single_chroma - 0.003 <= chroma <= single_chroma / 0.94, "palette.py lowers the chroma in steps of 5 %"


def test_out_of_gamut_colors_keep_lightness_and_hue() -> None:
    rng = np.random.default_rng(1)
    wanted = np.stack([rng.uniform(0.2, 0.95, 500), np.full(500, 0.45), rng.uniform(0, 360, 500)], axis=-1)
    got = to_oklch(from_oklch(wanted))
    assert np.abs(got[:, 0] - wanted[:, 0]).max() < 0.01
    turned = (got[:, 2] - wanted[:, 2] + 180) % 360 - 180
    assert np.abs(turned * got[:, 1]).max() < 0.5, "hue errors count by how visible they are"
    assert got[:, 1].max() < 0.34


@pytest.mark.parametrize("name", NAMES)
def test_every_drawn_shade_goes_by_its_name(name: str) -> None:
    rng = random.Random(3)
    assert {color_name(palette.shade(name, rng)) for _ in range(100)} == {name}


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("#8b4513", "brown"), ("#a0522d", "brown"), ("#b85c00", "brown"), ("#d2b48c", "brown"),
        ("#ffa500", "orange"), ("#ff8c00", "orange"), ("#ffd700", "yellow"), ("#ffff00", "yellow"),
        ("#808000", "green"), ("#006400", "green"), ("#00ff00", "green"), ("#008080", "blue"), ("#87ceeb", "blue"),
        ("#000080", "blue"), ("#4b0082", "purple"), ("#800080", "purple"), ("#e6a8d7", "pink"), ("#ffc0cb", "pink"),
        ("#ff1493", "pink"), ("#fa8072", "pink"), ("#800000", "red"), ("#dc143c", "red"), ("#ff0000", "red"),
        ("#111111", "black"), ("#f8f8f5", "white"), ("#c0c0c0", "gray"), ("#505050", "gray"),
    ],
)  # fmt: skip
def test_well_known_colors(code: str, name: str) -> None:
    assert color_name(triple(code)) == name


def test_names_agree_with_a_survey() -> None:
    """XKCD's survey of 2010, what people call a color: every basic term, alone or with how light or strong it is."""
    plain = {"light", "dark", "bright", "deep", "pale", "medium", "strong", "vivid", "pure", "very light", "very dark"}
    people = {}
    for name, code in XKCD_COLORS.items():
        *before, term = name.removeprefix("xkcd:").replace("grey", "gray").split()
        if term in NAMES and (not before or " ".join(before) in plain):
            people[name] = (term, color_name(triple(str(code))))
    wrong = {name: pair for name, pair in people.items() if pair[0] != pair[1]}
    assert len(people) > 70
    assert len(wrong) <= 0.06 * len(people), wrong


def test_colors_as_users_write_them() -> None:
    assert parse_color(" Blue ").name == "blue" and not parse_color("blue").exact
    assert parse_color("#FF8C00") == ("orange", (255, 140, 0), True)
    assert parse_color((10, 12, 11)) == ("black", (10, 12, 11), True)
    assert parse_color(np.array([200, 0, 0])).rgb == (200, 0, 0)


@pytest.mark.parametrize("bad", ["blu", "#12345", "#gggggg", "#1 2 3 4", (1, 2), (1, 2, 300), (0.5, 0.5, 0.5), ""])
def test_what_is_no_color_is_refused(bad: object) -> None:
    with pytest.raises(InputError, match="color"):
        parse_color(bad)  # pyright: ignore[reportArgumentType]


def test_a_near_name_is_offered() -> None:
    with pytest.raises(InputError, match="did you mean 'purple'"):
        parse_color("purpel")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    usual=st.sampled_from(NAMES),
    target=st.sampled_from(NAMES),
    side=st.integers(24, 160),
    seed=st.integers(0, 2**32 - 1),
    texture=st.floats(0, 0.12),
)
def test_recolor_keeps_everything_but_the_color(usual: str, target: str, side: int, seed: int, texture: float) -> None:
    image, mask = ball(palette.shade(usual, random.Random(seed)), side, seed, texture)
    before = image.tobytes()
    result = recolor(image, mask, target)
    assert (result.mode, result.size, image.tobytes()) == ("RGB", image.size, before)
    cover = np.asarray(mask)
    old, new = np.asarray(image), np.asarray(result)
    assert np.array_equal(old[cover == 0], new[cover == 0]), "outside the mask nothing changes"
    names = np.bincount(name_indices(new[cover == 255]), minlength=len(NAMES)) / (cover == 255).sum()
    assert names[NAMES.index(target)] > 0.6, dict(zip(NAMES, names, strict=True))
    assert color_name(np.median(new[cover == 255], axis=0)) == target
    if target in CHROMATIC:
        assert lightness_structure(image, result, mask) >= 0.95


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1), target=st.sampled_from(NAMES), width=st.integers(1, 40), height=st.integers(1, 40)
)
def test_any_mask_on_any_picture(seed: int, target: str, width: int, height: int) -> None:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    cover = rng.integers(0, 256, (height, width)) * (rng.random((height, width)) < rng.uniform(0.05, 1))
    cover.flat[0] = max(cover.flat[0], 1)
    mask = Image.fromarray(cover.astype(np.uint8))
    result = recolor(image, mask, target)
    assert np.array_equal(np.asarray(image)[cover == 0], np.asarray(result)[cover == 0])
    assert recolor(image, mask, target).tobytes() == result.tobytes()


@pytest.mark.parametrize("usual", ["black", "white", "gray"])
@pytest.mark.parametrize("target", NAMES)
def test_to_and_from_objects_without_a_hue(usual: str, target: str) -> None:
    scene = portrait("swan", usual, random.Random(5), "shaded")
    picture = scene.render(96)
    result = recolor(picture.image, picture.bodies[0], target)
    back = recolor(result, picture.bodies[0], usual)
    for painted, name in ((result, target), (back, usual)):
        inside = np.asarray(painted)[np.asarray(picture.bodies[0]) == 255]
        assert color_name(np.median(inside, axis=0)) == name


@pytest.mark.parametrize("target", NAMES)
def test_highlights_stay_light(target: str) -> None:
    image, mask = ball(palette.oklch_to_rgb(0.58, 0.22, 27), 96, 1, texture=0.0, light=0.95)
    spot = np.asarray(image).min(axis=-1) > 225
    assert 15 < spot.sum() < 400
    result = recolor(image, mask, target)
    assert lightness(result)[spot].min() > 0.85
    assert to_oklch(result)[spot][:, 1].mean() < 0.08


def test_lettering_and_black_parts_of_a_colored_object_keep_their_look() -> None:
    pixels = np.full((60, 60, 3), palette.oklch_to_rgb(0.58, 0.22, 27), np.uint8)
    pixels[10:16, 10:50], pixels[40:46, 10:50] = 250, 20
    result = np.asarray(recolor(Image.fromarray(pixels), Image.new("L", (60, 60), 255), "blue"))
    assert color_name(result[30, 30]) == "blue"
    assert color_name(result[13, 30]) == "white" and color_name(result[43, 30]) == "black"


def test_edge_pixels_lose_the_old_color() -> None:
    """A pixel that half shows a red ball on gray half shows a blue one afterwards: no red rim."""
    image, mask = ball((220, 30, 30), 80, 4, texture=0.0)
    want, _ = ball((30, 60, 220), 80, 4, texture=0.0)
    edge = (np.asarray(mask) > 40) & (np.asarray(mask) < 215)
    result = np.asarray(recolor(image, mask, (30, 60, 220))).astype(int)
    assert edge.sum() > 50
    assert (result[edge][:, 2] > result[edge][:, 0]).all()
    assert np.abs(result[edge] - np.asarray(want)[edge]).mean() < 12


def test_a_soft_mask_acts_in_proportion() -> None:
    image = Image.new("RGB", (40, 40), palette.oklch_to_rgb(0.6, 0.18, 143))
    whole = np.asarray(recolor(image, Image.new("L", (40, 40), 255), "purple")).astype(float)
    for value in (32, 128, 224):
        part = np.asarray(recolor(image, Image.new("L", (40, 40), value), "purple")).astype(float)
        share = value / 255
        assert np.abs(part - (np.asarray(image) * (1 - share) + whole * share)).max() <= 1.5


def test_an_rgb_is_met_in_the_median() -> None:
    image, mask = ball(palette.oklch_to_rgb(0.6, 0.18, 143), 96, 2)
    for wanted in ((31, 119, 180), (200, 60, 140), (120, 90, 60)):
        inside = np.asarray(recolor(image, mask, wanted))[np.asarray(mask) == 255]
        assert np.abs(np.median(inside, axis=0) - wanted).max() <= 8


def test_a_name_and_other_modes() -> None:
    image, mask = ball((220, 30, 30), 48, 4)
    assert recolor(image.convert("RGBA"), mask, "blue").tobytes() == recolor(image, mask, "blue").tobytes()
    assert recolor(image, mask.convert("1"), "blue").size == image.size


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Image.new("L", (48, 48), 0), "empty"),
        (Image.new("L", (48, 47), 255), "48 x 47"),
        (Image.new("RGB", (48, 48)), "'RGB'"),
        (np.ones((48, 48)), "ndarray"),
    ],
)
def test_masks_that_cannot_be_used(mask: Image.Image, says: str) -> None:
    with pytest.raises(InputError, match=says):
        recolor(Image.new("RGB", (48, 48)), mask, "blue")
