"""Drawings repeat exactly, colors stay inside the body, masks and boxes agree, and names fit what is seen."""

from __future__ import annotations

import hashlib
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmsteer.errors import InputError
from vlmsteer_counterfacts import palette, sheet
from vlmsteer_counterfacts.draw import BACKGROUNDS, Item, Picture, Scene, group_scene, portrait, size_scene
from vlmsteer_counterfacts.facts import fact, facts
from vlmsteer_counterfacts.paint import STYLES
from vlmsteer_counterfacts.shapes import SHAPES

NAMES, COLORS = sorted(facts()), list(palette.COLORS)
PLAIN = ((150, 160, 170), (150, 160, 170))
NAME, COLOR, STYLE, SEED = (
    st.sampled_from(NAMES),
    st.sampled_from(COLORS),
    st.sampled_from(STYLES),
    st.integers(0, 2**32),
)


def alone(name: str, color: str, style: str = "flat", side: float = 0.9, seed: int = 7) -> Scene:
    return Scene((Item(name, color, (0.5, 0.5), side, seed),), style, "plain", PLAIN, 1)


def array(image: object) -> np.ndarray:
    return np.asarray(image).astype(np.int16)


def digest(picture: Picture) -> str:
    parts = [picture.image, *picture.masks, *picture.bodies]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts) + repr(picture.boxes).encode()).hexdigest()


def six(seed: int = 3) -> Scene:
    rng = random.Random(seed)
    return group_scene([(name, rng.choice(COLORS)) for name in rng.sample(NAMES, 6)], rng, rng.choice(STYLES))


def test_every_fact_has_a_drawing_and_every_drawing_a_fact() -> None:
    assert set(SHAPES) == set(facts())
    for name, known in facts().items():
        assert known.color in palette.COLORS
        assert known.size_m > 0
        assert facts()[known.companion].companion == name, "pairs are mutual"
        assert known.color_source and known.size_source


def test_a_scene_renders_identically_twice_and_in_a_fresh_process() -> None:
    here = [digest(six(seed).render(128)) for seed in range(4)]
    assert here == [digest(six(seed).render(128)) for seed in range(4)]
    code = "import test_draw as t; print([t.digest(t.six(seed).render(128)) for seed in range(4)])"
    folders = [str(Path(__file__).parent), *sys.path]
    fresh = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {folders!r}; {code}"], capture_output=True, text=True
    )
    assert fresh.stdout.strip() == repr(here), fresh.stderr


@pytest.mark.parametrize("style", STYLES)
def test_every_object_draws_in_every_style_and_color(style: str) -> None:
    for number, name in enumerate(NAMES):
        # Four colors a style: all eleven over the five styles. At larger sizes one object in so many.
        first = number + 4 * STYLES.index(style)
        looks = [(64, COLORS[(first + step) % len(COLORS)]) for step in range(4)]
        looks += [
            (pixels, COLORS[first % len(COLORS)]) for pixels, one in ((84, 2), (256, 6), (512, 22)) if number % one == 0
        ]
        for pixels, color in looks:
            picture = alone(name, color, style).render(pixels)
            assert picture.image.size == (pixels, pixels)
            assert picture.image.mode == "RGB"
            left, top, right, bottom = picture.boxes[0]
            assert 0 <= left < right <= pixels and 0 <= top < bottom <= pixels
            assert max(right - left, bottom - top) > 0.6 * pixels, "an object fills its square"
            outside = array(picture.masks[0]) == 0
            assert (array(picture.image)[outside] == PLAIN[0]).all(), "nothing is painted outside the mask"


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_every_combination_draws(style: str) -> None:
    for number, name in enumerate(NAMES):
        for color in COLORS:
            large = (256, 512) if color == COLORS[number % len(COLORS)] else ()
            for pixels in (64, 84, *large):
                assert alone(name, color, style).render(pixels).boxes[0][2] > 0.5 * pixels


@settings(max_examples=60, deadline=None)
@given(NAME, COLOR, COLOR, STYLE, st.sampled_from((64, 84, 131, 200)), SEED)
def test_a_new_color_changes_pixels_of_the_body_and_nothing_else(
    name: str, color: str, other: str, style: str, pixels: int, seed: int
) -> None:
    scene = portrait(name, color, random.Random(seed), style)
    before, after = scene.render(pixels), scene.recolor(0, other).render(pixels)
    outside = array(before.bodies[0]) == 0
    assert (array(before.image)[outside] == array(after.image)[outside]).all()
    assert [mask.tobytes() for mask in before.masks + before.bodies] == [
        mask.tobytes() for mask in after.masks + after.bodies
    ]
    assert before.boxes == after.boxes
    if color != other:
        assert (array(before.image) != array(after.image)).any(), "two colors look different"


def test_a_new_color_of_one_item_leaves_the_other_items_alone() -> None:
    scene = six()
    before = scene.render(200)
    for index, item in enumerate(scene.items):
        other = next(color for color in COLORS if color != item.color)
        changed = array(before.image) != array(scene.recolor(index, other).render(200).image)
        assert changed.any()
        assert not changed[array(before.bodies[index]) == 0].any()


@settings(max_examples=60, deadline=None)
@given(NAME, COLOR, STYLE, st.integers(64, 220), SEED)
def test_the_body_is_inside_the_object_and_the_box_around_it(
    name: str, color: str, style: str, pixels: int, seed: int
) -> None:
    picture = portrait(name, color, random.Random(seed), style, min_side=0.3).render(pixels)
    mask, body = array(picture.masks[0]), array(picture.bodies[0])
    assert set(np.unique(mask)) <= {0, 255}
    assert (mask[body > 0] == 255).all()
    rows, columns = np.nonzero(mask)
    assert picture.boxes[0] == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("name", NAMES)
def test_at_least_half_of_every_object_carries_its_color(name: str) -> None:
    for seed, style in enumerate(STYLES):
        picture = alone(name, "red", style, seed=seed).render(128)
        assert array(picture.bodies[0]).sum() >= 0.5 * array(picture.masks[0]).sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), STYLE, SEED)
def test_objects_of_a_group_stand_apart_inside_the_canvas(count: int, style: str, seed: int) -> None:
    rng = random.Random(seed)
    contents = [(name, rng.choice(COLORS)) for name in rng.sample(NAMES, count)]
    scene = group_scene(contents, rng, style)
    assert [(item.object, item.color) for item in scene.items] == contents
    inside_the_canvas(scene)
    apart(scene.render(84), touching=4)


def inside_the_canvas(scene: Scene) -> None:
    for item in scene.items:
        assert all(0.5 * item.side - 1e-9 <= at <= 1 - 0.5 * item.side + 1e-9 for at in item.center)


def apart(picture: Picture, touching: int = 0) -> None:
    """Masks share no pixel, or at most `touching`: turned objects in tight scenes may meet at a corner."""
    assert (covered(picture) > 1).sum() <= touching


def covered(picture: Picture) -> np.ndarray:
    """How many objects' masks hold each pixel."""
    return np.sum([array(mask) > 0 for mask in picture.masks], axis=0)


def test_objects_of_a_crowded_scene_hardly_ever_touch() -> None:
    met = 0
    for seed in range(80):
        picture = six(seed).render(84)
        apart(picture, touching=8)
        met += int(covered(picture).max() > 1)
    assert met <= 3


@settings(max_examples=80, deadline=None)
@given(st.lists(NAME, min_size=2, max_size=2, unique=True), STYLE, SEED)
def test_the_larger_object_of_a_size_scene_is_drawn_larger(names: list[str], style: str, seed: int) -> None:
    scene = size_scene((names[0], "red"), (names[1], "blue"), random.Random(seed), style)
    inside_the_canvas(scene)
    picture = scene.render(128)
    apart(picture)
    drawn = dict(zip((item.object for item in scene.items), zip(scene.items, picture.boxes, strict=True), strict=True))
    (large, large_box), (small, small_box) = drawn[names[0]], drawn[names[1]]
    assert large_box[3] - large_box[1] > small_box[3] - small_box[1]
    assert 1.8 < large.side / small.side < 3.01
    # Their squares stand on one line; a drawing need not reach the bottom of its square (a potato does not).
    assert large.center[1] + large.side / 2 == pytest.approx(small.center[1] + small.side / 2)
    assert abs(large_box[3] - small_box[3]) <= 0.15 * 128


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB bytes (..., 3) in OKLab (Ottosson 2020), the inverse of what `palette` computes."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.transpose(to_lms)) @ np.transpose(to_lab)


def nearest(rgb: np.ndarray) -> str:
    centers = {
        name: (lightness, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue)))
        for name, (lightness, chroma, hue, *_) in palette.COLORS.items()
    }
    return min(centers, key=lambda name: float(np.linalg.norm(lab(rgb) - centers[name])))


@pytest.mark.parametrize("color", COLORS)
def test_every_shade_is_nearest_to_its_own_name(color: str) -> None:
    shades = [palette.shade(color, random.Random(seed)) for seed in range(300)]
    assert {nearest(np.array(shade, float)) for shade in shades} == {color}
    assert all(0 <= channel <= 255 for shade in shades for channel in shade)
    assert len(set(shades)) > 20


@pytest.mark.parametrize("color", COLORS)
def test_the_mean_color_of_a_drawn_body_goes_by_its_own_name(color: str) -> None:
    _, chroma, hue, *_ = palette.COLORS[color]
    for seed, name in enumerate(NAMES[COLORS.index(color) % 2 :: 2]):
        style = ("flat", "shaded", "textured")[seed % 3]
        picture = alone(name, color, style, seed=seed).render(64)
        mean = array(picture.image)[array(picture.bodies[0]) == 255].mean(0)
        if style == "flat":
            assert nearest(mean) == color, name
        _, a, b = lab(mean)
        if chroma < 0.01:
            assert math.hypot(a, b) < 0.02, name
        else:  # light and grain change the lightness, which tells orange from brown, but not the hue
            assert abs((math.degrees(math.atan2(b, a)) - hue + 180) % 360 - 180) < 12, name


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_is_deterministic_and_smooth_in_size(background: str) -> None:
    scene = Scene((), "flat", background, ((30, 60, 90), (200, 180, 160)), 5)
    small, large = (array(scene.render(side).image) for side in (100, 400))
    shrunk = large.reshape(100, 4, 100, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 6, "the same picture at every size"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Item("bananna", "red", (0.5, 0.5), 0.5, 0), "'bananna'; did you mean 'banana'?"),
        (lambda: Item("banana", "rad", (0.5, 0.5), 0.5, 0), "'rad'; did you mean 'red'?"),
        (lambda: Scene((), "shadey", "plain", PLAIN, 0), "'shadey'; did you mean 'shaded'?"),
        (lambda: Scene((), "flat", "floors", PLAIN, 0), "'floors'; did you mean 'floor'?"),
        (lambda: alone("banana", "red").recolor(0, "yelow"), "'yelow'; did you mean 'yellow'?"),
        (lambda: alone("banana", "red").render(63), "64 to 512 pixels, not 63"),
        (lambda: alone("banana", "red").render(513), "64 to 512 pixels, not 513"),
        (lambda: group_scene([], random.Random(0), "flat"), "one to six objects, not 0"),
        (lambda: group_scene([("plum", "red")] * 7, random.Random(0), "flat"), "one to six objects, not 7"),
        (lambda: fact("strawbery"), "'strawbery'; did you mean 'strawberry'?"),
        (lambda: sheet.contact_sheet(columns=1), "2 to 8 columns, not 1"),
        (lambda: sheet.contact_sheet(pixels=20), "96 to 512 pixels wide, not 20"),
        (lambda: sheet.scenes_sheet(pixels=600), "200 to 512 pixels wide, not 600"),
    ],
)
def test_what_cannot_be_drawn_is_named_in_a_sentence(make, said: str) -> None:
    with pytest.raises(InputError) as raised:
        make()
    assert said in str(raised.value)
    assert str(raised.value).endswith(".")


def test_the_sheets_have_the_asked_size_and_repeat() -> None:
    page = sheet.contact_sheet(columns=8, pixels=96)
    assert page.width > 8 * 96
    assert len(page.getcolors(maxcolors=2**24) or ()) > 500
    scenes = sheet.scenes_sheet(1, pixels=200)
    assert (
        scenes.tobytes() == sheet.scenes_sheet(1, pixels=200).tobytes() != sheet.scenes_sheet(2, pixels=200).tobytes()
    )


def test_lengths_are_said_in_the_unit_that_fits() -> None:
    assert [sheet.length(meters) for meters in (0.007, 0.19, 1.3, 25.0)] == ["7 mm", "19 cm", "1.3 m", "25 m"]
