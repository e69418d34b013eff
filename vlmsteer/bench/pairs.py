"""Counterfactual pairs to learn from, to choose on and to test with; no object is in both of the first and the last.

The drawn world makes its pairs on the spot from a seed: "learn" shows objects that training showed in other colors and
sizes, "validate" the same objects in colors that training kept back, "test" only objects whose counterfactuals training
never showed. A pair is drawn twice with the same pose, style and background; only the color of the object, or which of
two objects is the larger one, differs. Sets from a folder or the hub are split by object.
"""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import replace
from typing import Literal

from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.training.mix import size_pair
from vlmsteer.training.splits import (
    HELD_OUT_OBJECTS,
    TRAIN_OBJECTS,
    TRAIN_STYLES,
    held_out_colors,
    train_colors,
)
from vlmsteer_counterfacts.dataset import Pair, load_pairs
from vlmsteer_counterfacts.draw import Scene, backdrop, portrait, size_scene
from vlmsteer_counterfacts.facts import facts

Split = Literal["learn", "validate", "test"]
SPLITS: tuple[Split, ...] = ("learn", "validate", "test")
PIXELS = 84  # the bundled models' input size; larger pictures are shrunk to it anyway


def drawn_pairs(
    attribute: str, split: Split, count: int, seed: int = 0, pixels: int = PIXELS, style: str | None = None
) -> list[Pair]:
    """Pairs of the drawn world.

    Args:
        attribute: "color" or "size".
        split: which objects and colors ("learn", "validate" or "test").
        count: how many pairs.
        style: one drawing style for all instead of those seen in training.

    Raises:
        InputError: for an unknown attribute or split.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}{did_you_mean(split, SPLITS)}")
    if attribute not in ("color", "size"):
        raise InputError(f"There is no attribute {attribute!r}; possible: color, size.")
    make = _color if attribute == "color" else _size
    pairs = []
    for number in range(count):
        rng = random.Random(f"{attribute}/{split}/{seed}/{number}")
        pairs.append(
            make(f"{attribute}-{split}-{seed}-{number:04d}", split, rng, style or rng.choice(TRAIN_STYLES), pixels)
        )
    return pairs


def select(
    data: str, attribute: str, split: Split, count: int, seed: int = 0, revision: str | None = None
) -> list[Pair]:
    """Pairs of one split: of the drawn world, or of a set in the Visual CounterFact layout.

    Such a set is split by a hash of the names of its objects: half of them to learn, a fifth to validate, the rest to
    test. A size pair that has objects of two splits belongs to none.

    Args:
        data: "drawn", a folder, or a hub dataset.
        count: at most so many pairs, chosen by seed.

    Raises:
        InputError: if the set cannot be read, or the split is empty.
    """
    if data == "drawn":
        return drawn_pairs(attribute, split, count, seed)
    found = [pair for pair in load_pairs(data, attribute, revision) if _splits(pair) == {split}]
    if not found:
        raise InputError(f"{data!r} has no {attribute} pairs in the {split!r} split.")
    random.Random(seed).shuffle(found)
    return found[:count]


def _splits(pair: Pair) -> set[str]:
    names = {pair.object} if pair.attribute == "color" else {pair.prior, pair.pixel}
    shares = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names]
    return {"learn" if share < 0.5 else "validate" if share < 0.7 else "test" for share in shares}


def _objects(split: Split) -> tuple[str, ...]:
    return HELD_OUT_OBJECTS if split == "test" else TRAIN_OBJECTS


def _color(name: str, split: Split, rng: random.Random, style: str, pixels: int) -> Pair:
    shown = rng.choice(_objects(split))
    other = rng.choice(train_colors(shown) if split == "learn" else held_out_colors(shown))
    return color_pair(name, shown, other, rng, style, pixels)


def color_pair(name: str, shown: str, other: str, rng: random.Random, style: str, pixels: int) -> Pair:
    """One object in its usual and in another color."""
    usual = facts()[shown].color
    scene = portrait(shown, usual, rng, style, avoid=(other,))
    return Pair(name, shown, "color", usual, other, _png(scene, pixels), _png(scene.recolor(0, other), pixels))


def _size(name: str, split: Split, rng: random.Random, style: str, pixels: int) -> Pair:
    larger, smaller = size_pair(rng, _objects(split))
    first, second = (larger, facts()[larger].color), (smaller, facts()[smaller].color)
    scene = size_scene(first, second, rng, style)
    scene = replace(scene, backdrop=backdrop([first[1], second[1]], rng))
    return Pair(name, larger, "size", larger, smaller, _png(scene, pixels), _png(scene.exchange(0, 1), pixels))


def _png(scene: Scene, pixels: int) -> bytes:
    return png(scene.render(pixels).image)


def png(image: Image.Image) -> bytes:
    """The image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
