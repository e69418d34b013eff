"""What an edited picture must prove before the pair is accepted.

Each check measures one thing and says in a sentence what it found; none of them repairs anything. Which ones apply
depends on what was edited: only a color edit promises to keep the object's edges and to have a color's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.images import open_image
from vlmsteer_counterfacts.color import NAMES, Floats, name_indices, parse_color, to_oklab
from vlmsteer_counterfacts.masks import mask_weights

# For every attribute but color the mask holds everything that may change (an object's old and new place, for a size).
# No agreement where contrastive models see words, not who does what (Yuksekgonul et al., ICLR 2023; tiny-clip too).
APPLIES: dict[str, tuple[str, ...]] = {
    "color": ("outside", "area", "shift", "named", "edges", "agreement"),
    "size": ("outside", "area", "changed"),
    "presence": ("outside", "area", "changed", "agreement"),
    "relation": ("outside", "area", "changed"),
    "texture": ("outside", "area", "changed"),
}

# Similarities (images, texts) of some images and texts, higher is nearer; CLIP's, usually.
Score = Callable[[Sequence[Image.Image], Sequence[str]], Any]


@dataclass(frozen=True)
class Limits:
    """What is required. Each field belongs to the check that its comment names."""

    outside: int = 0  # outside: the largest difference of a byte
    area: tuple[float, float] = (0.004, 0.9)  # area: share of the picture that the mask covers
    shift: float = 10.0  # shift: CIEDE2000 between the mean colors, where 1 can just be told apart
    named: float = 0.5  # named: share of the mask that goes by the target's name
    left: float = 0.35  # named: share of the mask that may still go by the usual color's name
    edges: float = 0.6  # edges: correlation of the lightness gradients
    changed: float = 2.0  # changed: mean difference of a byte inside the mask
    margin: float = 0.0  # agreement: by how much the right text must be nearer than the wrong one


@dataclass(frozen=True)
class Check:
    """One measurement. `dataclasses.asdict` of it is JSON; a limit of two numbers is a range."""

    name: str
    value: float
    limit: float | tuple[float, float]
    ok: bool
    says: str


def accepted(checks: Sequence[Check]) -> bool:
    """Whether there are checks and all of them hold."""
    return bool(checks) and all(check.ok for check in checks)


def check_edit(
    original: Image.Image,
    edited: Image.Image,
    mask: Image.Image,
    *,
    attribute: str,
    target: str | Sequence[int] | None = None,
    previous: str | None = None,
    score: Score | None = None,
    texts: tuple[str, str] | None = None,
    limits: Limits | None = None,
) -> list[Check]:
    """Measure what `APPLIES` lists for the attribute.

    Args:
        original: the picture before.
        edited: the picture after, of the same size.
        mask: "L", 255 on the object; what is 0 must not have changed.
        attribute: "color", "size", "presence", "relation" or "texture".
        target: the color that was painted (a name, '#rrggbb' or RGB); needed for "color".
        previous: the name of the usual color; if given, the check of the name also asks how much still goes by it.
        score: similarities of images and texts, (images, texts); without it there is no agreement check.
        texts: what the original shows and what the edited picture shows ("a red strawberry", "a blue strawberry").
        limits: what is required, if not the defaults.

    Returns:
        The checks in the order of the table.

    Raises:
        InputError: pictures of different sizes, a bad mask, an unknown attribute or color, a missing target or texts.
    """
    if attribute not in APPLIES:
        raise InputError(f"Unknown attribute {attribute!r}{did_you_mean(attribute, APPLIES)}.")
    if attribute == "color" and target is None:
        raise InputError("A color check needs the target: the color that the object was painted in.")
    if previous is not None and previous not in NAMES:
        raise InputError(f"No named color {previous!r}{did_you_mean(previous, NAMES)}.")
    if score is not None and texts is None:
        raise InputError("A score needs texts: what the original shows and what the edited picture shows.")
    before, after = open_image(original), open_image(edited)
    if before.size != after.size:
        raise InputError(_sizes(before, after))
    weights = mask_weights(mask, before.size)
    old, new = np.asarray(before), np.asarray(after)
    limits = limits or Limits()
    checks: list[Check] = []
    for name in APPLIES[attribute]:
        if name == "outside":
            checks.append(_outside(old, new, weights, limits))
        elif name == "area":
            checks.append(_area(weights, limits))
        elif name == "changed":
            checks.append(_changed(old, new, weights, limits))
        elif name == "shift":
            checks.append(_shift(old, new, weights, limits))
        elif name == "named" and target is not None:
            checks.append(_named(new, weights, parse_color(target).name, previous, limits))
        elif name == "edges":
            checks.append(_edges(old, new, weights, limits))
        elif name == "agreement" and score is not None and texts is not None:
            checks.append(_agreement([before, after], score, texts, limits))
    return checks


def lightness_structure(original: Image.Image, edited: Image.Image, mask: Image.Image) -> float:
    """SSIM of OKLab lightness inside the mask: 1 if shading and texture are the same.

    A color brings its own lightness, so the edited object is first moved back by one number, the difference of the two
    mean lightnesses in the mask; contrast is not adjusted. Then SSIM as in Wang et al. (2004): Gaussian windows of
    sigma 1.5, lightness from 0 to 1, averaged over the pixels where the mask is 255. In both pictures everything else
    has the object's mean lightness, so that an unchanged background cannot raise the value.

    Raises:
        InputError: pictures of different sizes, a bad mask, or one that is nowhere 255.
    """
    from skimage.metrics import structural_similarity

    before, after = open_image(original), open_image(edited)
    if before.size != after.size:
        raise InputError(_sizes(before, after))
    solid = mask_weights(mask, before.size) == 1
    if not solid.any():
        raise InputError("The mask is nowhere 255; structure is measured on whole pixels only.")
    levels = [to_oklab(picture)[..., 0].astype(np.float64) for picture in (before, after)]
    mean = levels[0][solid].mean()
    planes = [np.where(solid, level - level[solid].mean() + mean, mean) for level in levels]
    field = structural_similarity(
        *(np.pad(plane, 6, constant_values=mean) for plane in planes),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]
    return float(field[6:-6, 6:-6][solid].mean())


def _outside(old: NDArray[np.uint8], new: NDArray[np.uint8], weights: Floats, limits: Limits) -> Check:
    free = weights == 0
    error = int(np.abs(old[free].astype(np.int16) - new[free]).max(initial=0))
    return Check(
        "outside",
        error,
        limits.outside,
        error <= limits.outside,
        f"outside the mask the largest difference is {error} of 255",
    )


def _area(weights: Floats, limits: Limits) -> Check:
    share = float(weights.mean())
    low, high = limits.area
    return Check("area", share, limits.area, low <= share <= high, f"the mask covers {share:.1%} of the picture")


def _changed(old: NDArray[np.uint8], new: NDArray[np.uint8], weights: Floats, limits: Limits) -> Check:
    difference = np.abs(old.astype(np.float32) - new).mean(axis=-1)
    value = float(np.average(difference, weights=weights))
    return Check(
        "changed",
        value,
        limits.changed,
        value >= limits.changed,
        f"inside the mask a byte differs by {value:.1f} of 255 on average",
    )


def _shift(old: NDArray[np.uint8], new: NDArray[np.uint8], weights: Floats, limits: Limits) -> Check:
    from skimage.color import deltaE_ciede2000, rgb2lab

    inside = weights >= min(0.5, float(weights.max()))
    colors = [np.median(picture[inside], axis=0) / 255 for picture in (old, new)]
    value = float(deltaE_ciede2000(rgb2lab(colors[0]), rgb2lab(colors[1])))
    return Check(
        "shift",
        value,
        limits.shift,
        value >= limits.shift,
        f"the median color moved by {value:.1f} (CIEDE2000)",
    )


def _named(new: NDArray[np.uint8], weights: Floats, wanted: str, previous: str | None, limits: Limits) -> Check:
    inside = weights > 0
    shares = np.bincount(name_indices(new[inside]), weights[inside], len(NAMES)) / weights.sum()
    main, value = NAMES[int(shares.argmax())], float(shares[NAMES.index(wanted)])
    says = f"{value:.0%} of the mask is {wanted}"
    if main != wanted:
        says += f", {shares.max():.0%} is {main}"
    ok = main == wanted and value >= limits.named
    if previous is not None and previous != wanted:
        left = float(shares[NAMES.index(previous)])
        says += f", {left:.0%} still {previous}"
        ok = ok and left <= limits.left
    return Check("named", value, limits.named, ok, says)


def _edges(old: NDArray[np.uint8], new: NDArray[np.uint8], weights: Floats, limits: Limits) -> Check:
    solid = weights == 1
    # Differences along x and y, each only between two pixels of the object.
    steps = []
    for picture in (old, new):
        lightness = to_oklab(picture)[..., 0]
        across, down = np.diff(lightness, axis=1), np.diff(lightness, axis=0)
        steps.append(np.concatenate([across[solid[:, 1:] & solid[:, :-1]], down[solid[1:] & solid[:-1]]]))
    first, second = (step.astype(np.float64) for step in steps)
    # As if both had one step of a byte in common everywhere: rounding in a flat object is no lost edge.
    common = len(first) * 0.004**2 + 1e-12
    value = float((first @ second + common) / np.sqrt((first @ first + common) * (second @ second + common)))
    return Check(
        "edges",
        value,
        limits.edges,
        value >= limits.edges,
        f"the lightness gradients inside the mask correlate by {value:.2f}",
    )


def _agreement(pictures: list[Image.Image], score: Score, texts: tuple[str, str], limits: Limits) -> Check:
    scores = score(pictures, list(texts))
    near = np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores, np.float64)
    if near.shape != (2, 2):
        raise InputError(f"A score of two pictures and two texts has the shape (2, 2), not {near.shape}.")
    usual, painted = float(near[0, 0] - near[0, 1]), float(near[1, 1] - near[1, 0])
    value = float(np.minimum(usual, painted))
    return Check(
        "agreement",
        value,
        limits.margin,
        value > limits.margin,
        f"the original is nearer to {texts[0]!r} by {usual:.3f}, the edited picture to {texts[1]!r} by {painted:.3f}",
    )


def _sizes(before: Image.Image, after: Image.Image) -> str:
    sizes = "{} x {} and {} x {}".format(*before.size, *after.size)
    return f"The two pictures are {sizes} pixels; an edit keeps the size."
