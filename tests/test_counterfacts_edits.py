"""Edits of any picture: only what their mask covers changes, and it changes as asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data
from typer.testing import CliRunner

from vlmsteer.bench.priors import color_prior
from vlmsteer.cli import app
from vlmsteer.errors import InputError
from vlmsteer.loading import load
from vlmsteer_counterfacts import edits
from vlmsteer_counterfacts.photos import edit
from vlmsteer_counterfacts.record import load_records

SKY, RED, GREEN = (120, 160, 210), (200, 40, 40), (40, 150, 60)
FIRST, SECOND = (30, 60, 70, 110), (120, 40, 160, 100)


@pytest.fixture
def picture() -> Image.Image:
    """A red and a green block before a plain sky."""
    image = Image.new("RGB", (200, 150), SKY)
    draw = ImageDraw.Draw(image)
    draw.rectangle((FIRST[0], FIRST[1], FIRST[2] - 1, FIRST[3] - 1), RED)
    draw.rectangle((SECOND[0], SECOND[1], SECOND[2] - 1, SECOND[3] - 1), GREEN)
    return image


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (200, 150)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def share(image: Image.Image, color: tuple[int, int, int], box: tuple[int, int, int, int] | None = None) -> float:
    """The share of pixels of about this color."""
    pixels = np.asarray(image.crop(box) if box else image).astype(int)
    return float((np.abs(pixels - color).max(-1) < 30).mean())


def unchanged(before: Image.Image, edited: edits.Edited) -> None:
    differs = (np.asarray(before) != np.asarray(edited.image)).any(-1)
    assert differs.any() and not differs[np.asarray(edited.mask) == 0].any()


def test_removed_and_its_place_looks_like_what_was_around_it(picture: Image.Image) -> None:
    edited = edits.remove(picture, mask_of(FIRST))
    unchanged(picture, edited)
    assert share(edited.image, RED) == 0 and share(edited.image, SKY, FIRST) == 1


@pytest.mark.parametrize("factor", [0.5, 1.3])
def test_resized_it_stands_on_the_same_ground(factor: float, picture: Image.Image) -> None:
    edited = edits.resize(picture, mask_of(FIRST), factor)
    unchanged(picture, edited)
    red = np.abs(np.asarray(edited.image).astype(int) - RED).max(-1) < 40
    rows, columns = np.nonzero(red)
    assert rows.max() + 1 == pytest.approx(FIRST[3], abs=2)
    assert rows.max() - rows.min() + 1 == pytest.approx(50 * factor, abs=3)
    assert (columns.max() + columns.min() + 1) / 2 == pytest.approx(50, abs=2)


def test_swapped_each_is_where_the_other_was(picture: Image.Image) -> None:
    edited = edits.swap(picture, mask_of(FIRST), mask_of(SECOND))
    unchanged(picture, edited)
    inner = (125, 50, 155, 90)
    assert share(edited.image, RED, inner) > 0.95 and share(edited.image, GREEN, (35, 65, 65, 105)) > 0.95
    assert share(edited.image, RED) == pytest.approx(share(picture, RED), abs=0.01)


def test_inserted_and_composed(picture: Image.Image) -> None:
    red, green = edits.cut(picture, mask_of(FIRST)), edits.cut(picture, mask_of(SECOND))
    assert red.size == (40, 50) and red.mode == "RGBA"
    edited = edits.insert(Image.new("RGB", (300, 300), SKY), red, (0.5, 0.5), 0.4)
    assert share(edited.image, RED, (105, 95, 195, 205)) > 0.95 and share(edited.image, RED) < 0.13
    both = edits.compose(red, green, 3.0)
    assert share(both, RED) / share(both, GREEN) == pytest.approx(9 * (0.8 / (2 / 3)), rel=0.2)


@pytest.mark.parametrize("pattern", edits.PATTERNS)
@pytest.mark.parametrize("color", [(250, 250, 250), (15, 15, 18), RED])
def test_a_pattern_marks_light_and_dark_things(pattern: str, color: tuple[int, int, int]) -> None:
    image, mask = Image.new("RGB", (120, 120), color), mask_of((20, 20, 100, 100), (120, 120))
    marked = np.asarray(edits.texture(image, mask, pattern)).astype(int)
    change = np.abs(marked - color).max(-1)
    assert not change[np.asarray(mask) == 0].any()
    inside = change[20:100, 20:100]
    assert 0.2 < (inside > 20).mean() < 0.8 and (inside == 0).any()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda image: edits.remove(image, Image.new("L", image.size)), "empty"),
        (lambda image: edits.remove(image, Image.new("L", (5, 5), 255)), "5 x 5"),
        (lambda image: edits.resize(image, mask_of(FIRST), 9), "does not fit"),
        (lambda image: edits.resize(image, mask_of(FIRST), -1), "factor"),
        (lambda image: edits.swap(image, mask_of(FIRST), mask_of(FIRST)), "overlap"),
        (lambda image: edits.texture(image, mask_of(FIRST), "stripy"), "striped"),
        (lambda image: edits.insert(image, Image.new("RGBA", (5, 5)), (2, 0), 0.2), "fractions"),
        (lambda image: edits.insert(image, Image.new("RGBA", (5, 5)), (0.5, 0.5), 0.2), "outside"),
        (lambda image: edit(image, "cup", to="blue", prior="white"), "Say where"),
        (lambda image: edit(image, "cupp", to="blue", box=FIRST), "Say with prior"),
        (lambda image: edit(image, "frog", box=FIRST), "which color"),
        (lambda image: edit(image, "frog", to="bluish", box=FIRST), "blue"),
        (lambda image: edit(image, "frog", "colour", to="blue", box=FIRST), "color"),
        (lambda image: edit(image, "frog", "size", box=FIRST), "factor"),
        (lambda image: edit(image, "frog", "relation", box=FIRST), "other"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(call: Any, says: str, picture: Image.Image) -> None:
    with pytest.raises(InputError, match=says):
        call(picture)


def test_every_attribute_from_one_picture(picture: Image.Image) -> None:
    where: dict[str, Any] = {"box": (24, 54, 76, 116)}
    color = edit(picture, "frog", to="blue", **where)
    assert (color.prior, color.pixel, color.texts) == ("green", "blue", ("a green frog", "a blue frog"))
    size = edit(picture, "elephant", "size", factor=0.4, other="frog", **where)
    assert (size.prior, size.pixel) == ("elephant", "frog")
    gone = edit(picture, "frog", "presence", **where)
    assert (gone.prior, gone.pixel) == ("yes", "no") and share(gone.counterfactual, RED) == 0
    swapped = edit(picture, "frog", "relation", other="pig", other_box=(114, 34, 166, 106), **where)
    assert (swapped.prior, swapped.pixel) == ("left", "right")
    striped = edit(picture, "frog", "texture", to="striped", **where)
    for draft in (color, size, gone, swapped, striped):
        unchanged(draft.original, edits.Edited(draft.counterfactual, draft.mask))


def test_the_command_makes_a_checked_pair_of_a_photo(tmp_path: Path) -> None:
    photo = tmp_path / "coffee.png"
    Image.fromarray(data.coffee()).save(photo)
    place = ["--object", "cup", "--prior", "red", "--box", "150,10,430,250", "--score", ""]
    place += ["--out", str(tmp_path / "pair")]
    result = CliRunner().invoke(app, ["counterfacts", "make", str(photo), "--color", "green", *place])
    assert result.exit_code == 0 and "Accepted" in result.output, result.output
    record = load_records(tmp_path / "pair")[0]
    assert record.accepted and record.id == "color-cup-green"
    checks = json.loads(
        CliRunner().invoke(app, ["counterfacts", "make", str(photo), "--color", "#1040c0", "--json", *place]).stdout
    )
    assert {check["name"] for check in checks} >= {"outside", "area", "shift"}


def test_a_models_memory_of_a_color() -> None:
    tiny = load("tiny-llava")
    found = color_prior(tiny, "strawberry")
    assert next(iter(found.probabilities)) == "red" == found.table and found.probabilities["red"] > 0.5
    assert len(found.targets) == 5 and "red" not in found.targets and "too" in found.says
    strange = color_prior(tiny, "unicorn")
    assert strange.table is None and "does not know" in strange.says
