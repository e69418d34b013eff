"""Good edits pass every check; each way to spoil one is caught by the check that is meant for it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from vlmsteer.errors import InputError
from vlmsteer_counterfacts.checks import APPLIES, Check, Limits, accepted, check_edit, lightness_structure
from vlmsteer_counterfacts.color import NAMES, to_oklab
from vlmsteer_counterfacts.draw import Picture, portrait
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.paint import STYLES
from vlmsteer_counterfacts.recolor import recolor

TEXTS = ("a red strawberry", "a blue strawberry")


@pytest.fixture(scope="module")
def strawberry() -> tuple[Picture, Image.Image]:
    picture = portrait("strawberry", "red", random.Random(4), "shaded").render(128)
    return picture, recolor(picture.image, picture.bodies[0], "blue")


def run(picture: Picture, edited: Image.Image, target: str = "blue", **options: object) -> dict[str, Check]:
    checks = check_edit(
        picture.image,
        edited,
        picture.bodies[0],
        attribute="color",
        target=target,
        **options,  # pyright: ignore[reportArgumentType]
    )
    return {check.name: check for check in checks}


def blueness(pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
    """A score as CLIP gives it: here, how much more blue than red there is, for texts that say which."""
    seen = torch.tensor(
        [float(np.asarray(picture)[..., 2].mean() - np.asarray(picture)[..., 0].mean()) for picture in pictures]
    )
    said = torch.tensor([1.0 if "blue" in text else -1.0 for text in texts])
    return seen[:, None] * said[None, :] / 255


def test_drawn_objects_in_every_style_and_color_pass() -> None:
    rng, failed, structure = random.Random(11), [], []
    cases = [(style, target) for style in STYLES for target in NAMES]
    for style, target in cases:
        name = rng.choice([name for name in sorted(facts()) if facts()[name].color != target])
        picture = portrait(name, facts()[name].color, random.Random(rng.getrandbits(30)), style).render(112)
        edited = recolor(picture.image, picture.bodies[0], target)
        checks = check_edit(
            picture.image,
            edited,
            picture.bodies[0],
            attribute="color",
            target=target,
            previous=facts()[name].color,
        )
        assert [check.name for check in checks] == ["outside", "area", "shift", "named", "edges"]
        failed += [(name, target, style, check.says) for check in checks if not check.ok]
        if target not in ("black", "white", "gray"):
            structure.append(lightness_structure(picture.image, edited, picture.bodies[0]))
    assert len(failed) <= 0.03 * len(cases), failed
    assert np.mean(np.array(structure) >= 0.95) >= 0.95 and min(structure) > 0.9


def test_a_good_edit_passes_with_a_score(strawberry: tuple[Picture, Image.Image]) -> None:
    picture, edited = strawberry
    checks = run(picture, edited, previous="red", score=blueness, texts=TEXTS)
    assert tuple(checks) == APPLIES["color"]
    assert accepted(list(checks.values())), checks
    assert checks["outside"].value == 0


def test_one_changed_pixel_outside_is_seen(strawberry: tuple[Picture, Image.Image]) -> None:
    picture, edited = strawberry
    free = np.argwhere(np.asarray(picture.bodies[0]) == 0)[0]
    spoiled = np.array(edited)
    spoiled[free[0], free[1], 1] ^= 1
    check = run(picture, Image.fromarray(spoiled))["outside"]
    assert not check.ok and check.value == 1


def test_no_edit_and_a_weak_edit_are_seen(strawberry: tuple[Picture, Image.Image]) -> None:
    picture, edited = strawberry
    checks = run(picture, picture.image)
    assert not checks["shift"].ok and not checks["named"].ok and checks["shift"].value == 0
    assert checks["edges"].value == pytest.approx(1)
    weak = run(picture, Image.blend(picture.image, edited, 0.15))
    assert not weak["named"].ok and "is red" in weak["named"].says


def test_the_wrong_color_is_seen(strawberry: tuple[Picture, Image.Image]) -> None:
    picture, edited = strawberry
    checks = run(picture, edited, target="green")
    assert not checks["named"].ok and "is blue" in checks["named"].says
    assert [name for name, check in checks.items() if not check.ok] == ["named"]


def test_half_a_repainted_object_is_seen(strawberry: tuple[Picture, Image.Image]) -> None:
    picture, edited = strawberry
    half = np.array(edited)
    cut = int(np.median(np.nonzero(np.asarray(picture.bodies[0]))[1]))
    half[:, :cut] = np.asarray(picture.image)[:, :cut]
    assert not run(picture, Image.fromarray(half), previous="red")["named"].ok


@pytest.mark.parametrize("spoil", ["flat", "noise", "negative", "turned"])
def test_lost_edges_are_seen(spoil: str) -> None:
    picture = portrait("rose", "red", random.Random(2), "textured").render(128)
    edited = np.array(recolor(picture.image, picture.bodies[0], "blue"))
    inside = np.asarray(picture.bodies[0]) > 0
    if spoil == "flat":
        edited[inside] = np.median(edited[inside], axis=0)
    elif spoil == "noise":
        noise = np.random.default_rng(0).normal(0, 60, edited.shape[:2])[..., None]
        edited[inside] = (edited + noise).clip(0, 255)[inside].astype(np.uint8)
    elif spoil == "negative":
        edited[inside] = (2 * np.median(edited[inside], axis=0) - edited[inside]).clip(0, 255)
    else:
        edited[inside] = edited[::-1, ::-1][inside]
    checks = run(picture, Image.fromarray(edited))
    assert not checks["edges"].ok and checks["outside"].ok


def test_structure_is_one_for_a_shift_and_falls_with_blur_and_contrast() -> None:
    picture = portrait("rose", "gray", random.Random(2), "textured").render(128)
    image, mask = picture.image, picture.bodies[0]
    assert lightness_structure(image, image, mask) == pytest.approx(1)
    lighter = np.asarray(image).astype(int) + 20
    assert lightness_structure(image, Image.fromarray(lighter.clip(0, 255).astype(np.uint8)), mask) > 0.99
    assert lightness_structure(image, image.filter(ImageFilter.GaussianBlur(4)), mask) < 0.8
    faint = Image.blend(Image.new("RGB", image.size, (128, 128, 128)), image, 0.3)
    assert lightness_structure(image, faint, mask) < 0.9


@pytest.mark.parametrize(("side", "ok"), [(2, False), (40, True), (128, False)])
def test_masks_that_are_too_small_or_too_large(strawberry: tuple[Picture, Image.Image], side: int, ok: bool) -> None:
    picture, edited = strawberry
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, side, side))
    checks = check_edit(picture.image, edited, mask, attribute="color", target="blue")
    assert next(check for check in checks if check.name == "area").ok == ok


def test_a_score_that_disagrees_is_seen(strawberry: tuple[Picture, Image.Image]) -> None:
    picture, edited = strawberry
    assert not run(picture, edited, score=lambda i, t: -blueness(i, t), texts=TEXTS)["agreement"].ok
    assert not run(picture, edited, score=lambda i, t: np.zeros((2, 2)), texts=TEXTS)["agreement"].ok
    assert not run(picture, edited, score=lambda i, t: np.full((2, 2), np.nan), texts=TEXTS)["agreement"].ok
    half = np.array([[1, 0], [np.nan, 1]])
    assert not run(picture, edited, score=lambda i, t: half, texts=TEXTS)["agreement"].ok
    both_blue = check_edit(
        edited, edited, picture.bodies[0], attribute="color", target="blue", score=blueness, texts=TEXTS
    )
    assert not both_blue[-1].ok, "the original must be nearer to its own text"


@pytest.mark.parametrize("attribute", ["size", "presence", "relation", "texture"])
def test_other_attributes_have_their_own_checks(strawberry: tuple[Picture, Image.Image], attribute: str) -> None:
    picture, edited = strawberry
    checks = check_edit(picture.image, edited, picture.bodies[0], attribute=attribute)
    assert [check.name for check in checks] == ["outside", "area", "changed"] and accepted(checks)
    same = check_edit(picture.image, picture.image, picture.bodies[0], attribute=attribute)
    assert [check.name for check in same if not check.ok] == ["changed"]


def test_checks_are_json_and_limits_count(strawberry: tuple[Picture, Image.Image]) -> None:
    picture, edited = strawberry
    checks = run(picture, edited, score=blueness, texts=TEXTS)
    read = json.loads(json.dumps([asdict(check) for check in checks.values()]))
    assert [row["name"] for row in read] == list(checks)
    assert all(isinstance(row["ok"], bool) and row["says"] for row in read)
    strict = run(picture, edited, limits=Limits(shift=200.0))
    assert not strict["shift"].ok and strict["shift"].limit == 200.0
    assert not accepted([])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attribute": "colour", "target": "blue"}, "did you mean 'color'"),
        ({"attribute": "color"}, "needs the target"),
        ({"attribute": "color", "target": "bleu"}, "No named color"),
        ({"attribute": "color", "target": "blue", "previous": "crimson"}, "No named color"),
        ({"attribute": "size", "score": blueness}, "needs texts"),
        ({"attribute": "presence", "score": lambda i, t: [[1, 2]], "texts": TEXTS}, r"\(2, 2\)"),
    ],
)
def test_what_cannot_be_checked(options: dict[str, object], says: str) -> None:
    image = Image.new("RGB", (32, 32))
    with pytest.raises(InputError, match=says):
        check_edit(image, image, Image.new("L", (32, 32), 255), **options)  # pyright: ignore[reportArgumentType]


def test_pictures_and_masks_must_fit() -> None:
    image, mask = Image.new("RGB", (32, 32)), Image.new("L", (32, 32), 255)
    with pytest.raises(InputError, match="keeps the size"):
        check_edit(image, Image.new("RGB", (32, 31)), mask, attribute="size")
    with pytest.raises(InputError, match="empty"):
        check_edit(image, image, Image.new("L", (32, 32)), attribute="size")
    with pytest.raises(InputError, match="nowhere 255"):
        lightness_structure(image, image, Image.new("L", (32, 32), 200))
    assert to_oklab((255, 255, 255))[0] == pytest.approx(1, abs=1e-3)
