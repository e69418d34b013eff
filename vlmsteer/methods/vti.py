"""VTI, visual and textual intervention (Liu, Ye, Xing and Zou, ICLR 2025, arXiv 2410.15778).

Text: what a clean caption has that a hallucinated one lacks, at the caption's last token, in every layer. Vision: what
the mean over images with nearly all patches hidden has that the image itself lacks, for every patch in every layer;
features that depend on no single patch are the stable ones. Both are turned towards, without a change of length, at
the MLP's output of every layer and every token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError, RecipeError, did_you_mean
from vlmsteer.examples import Example, digest
from vlmsteer.methods.caa import TOKENS, answer_states
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.running import Components, Mean
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

NAME, VERSION = "vti", 1
MODES = ("mean", "pc1", "mean+pc1")
UNIT = 0.1  # the paper's alpha of 1 is a tenth of a unit vector
ONE_WORD = "?"  # a Q-Former is asked something whenever it looks; the vision tower before it does not depend on it


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    text: float = 0.8,
    image: float = 0.9,
    mode: str = "mean",
    layers: Sequence[int] | None = None,
    trials: int = 50,
    mask_ratio: float = 0.99,
    per_token: bool = True,
    text_after_visual: bool = True,
    visual_images: int = 50,
    authors_sign: bool = False,
    seed: int = 0,
    batch_size: int = 16,
) -> Recipe:
    """Textual directions from right and wrong captions, visual ones from the same images.

    Args:
        text, image: the paper's alpha for each tower; 0 leaves the tower out.
        mode: "mean" of the differences, their first principal direction "pc1" (what the paper says; of length 1 over
            all layers together), or the sum "mean+pc1" (what its code does).
        layers: text layers, by default all.
        trials: how many maskings of each image are averaged.
        mask_ratio: the share of patches hidden in each.
        per_token: a visual direction for every patch; else, and in families whose images have any number of patches,
            one for all of them.
        text_after_visual: read the captions while the visual edit acts, as the paper's code does.
        visual_images: how many of the images visual directions are learned from; the paper takes 50 to 70.
        authors_sign: turn principal directions as the authors do, by the example that lies farthest from the others,
            which may point either way; otherwise they point where the mean does.

    Raises:
        InputError: for fewer than two examples, unknown modes, or no tower.
    """
    enough(examples, "VTI")
    if mode not in MODES:
        raise RecipeError(f"There is no mode {mode!r}{did_you_mean(mode, MODES)}")
    if not (text or image) or trials < 1 or not 0 <= mask_ratio <= 1:
        raise InputError("VTI needs text or image other than 0, one trial or more, and a mask_ratio from 0 to 1.")
    edits: list[Edit] = []
    measured: dict[str, object] = {}
    if image:
        vectors, measured["visual"] = visual_directions(
            session, _distinct(examples, visual_images), mode, trials, mask_ratio, per_token, authors_sign, seed,
            batch_size,
        )  # fmt: skip
        edits.append(Edit(vectors, "add_keep_norm", UNIT * image, "all"))
    if text:
        chosen = checked_layers(session, layers)
        active = Recipe(tuple(edits)) if edits and text_after_visual else None

        def differences() -> Iterator[Tensor]:
            for _, states in answer_states(session, examples, chosen, TOKENS["last"], active, batch_size):
                yield (states[:, 0] - states[:, 1])[:, None]

        direction, measured["textual"] = principal(differences, mode, authors_sign)
        edits.append(
            Edit(
                Vectors("text", "mlp_out", dict(zip(chosen, direction[0], strict=True))),
                "add_keep_norm", UNIT * text, "all",
            )
        )  # fmt: skip
    about = {
        "method": NAME, "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {
            "text": text, "image": image, "mode": mode, "trials": trials, "mask_ratio": mask_ratio,
            "per_token": per_token, "text_after_visual": text_after_visual, "seed": seed,
        },
        **measured,
    }  # fmt: skip
    return Recipe(tuple(edits), session.fingerprint, about)


def visual_directions(
    session: Session,
    images: Sequence[Image.Image | str],
    mode: str = "mean",
    trials: int = 50,
    mask_ratio: float = 0.99,
    per_token: bool = True,
    authors_sign: bool = False,
    seed: int = 0,
    batch_size: int = 16,
) -> tuple[Vectors, dict[str, object]]:
    """Masked minus clean states of the vision tower, of the layers that the answer depends on.

    Returns:
        Vectors for `mlp_out`, (tokens, width) a layer or (width,), and what was measured.
    """
    count = session.family.live_layers(session.model.config, "vision")
    sites = [Site("vision", layer, "block_out") for layer in range(count)]
    by_token = per_token and session.family.patches is None

    def differences() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for image in images:
            inputs = session.encoder.encode([image], [ONE_WORD]).whole(session.device).inputs
            clean = _seen(session, sites, inputs, [inputs["pixel_values"]])
            masked = Mean()
            for first in range(0, trials, batch_size):
                number = min(batch_size, trials - first)
                copies = [hide(session, inputs["pixel_values"], mask_ratio, generator) for _ in range(number)]
                masked.update(_seen(session, sites, inputs, copies)[None], torch.tensor([float(number)]))
            difference = masked.mean.float() - clean  # (tokens, layers, width)
            yield difference[None] if by_token else difference.mean(0)[None, None]

    direction, measured = principal(differences, mode, authors_sign)
    layers = {layer: direction[:, layer] if by_token else direction[0, layer] for layer in range(count)}
    return Vectors("vision", "mlp_out", layers), {**measured, "images": len(images), "by_token": by_token}


def hide(session: Session, pixels: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """One image's `pixel_values` with a share of the patches, rounded down, at the mean of each channel.

    Patches and means are those of each image that the vision tower gets, so of each tile where there are several.
    """
    vision, hidden = session.model.config.vision_config, pixels.clone()
    if session.family.patches is not None:  # (patches, numbers), the channels of a patch one after the other
        rows = hidden.unflatten(-1, (vision.in_channels, -1))
        chosen = _chosen(len(rows), ratio, generator)
        rows[chosen] = rows.mean((0, 2))[:, None]
        return hidden
    side = vision.patch_size
    for picture in hidden.flatten(0, -4):  # (channels, height, width)
        high, wide = picture.shape[1] // side, picture.shape[2] // side
        cells = picture[:, : high * side, : wide * side].unflatten(2, (wide, side)).unflatten(1, (high, side))
        chosen = _chosen(high * wide, ratio, generator).to(pixels.device)
        cells[:, chosen // wide, :, chosen % wide] = picture.mean((1, 2))[:, None, None]
    return hidden


def principal(
    rows: Callable[[], Iterator[Tensor]], mode: str, authors_sign: bool = False
) -> tuple[Tensor, dict[str, object]]:
    """The mean of (n, groups, layers, width) rows, their first principal direction, or both added.

    The direction is centered and taken of all layers of a group together, so it has length 1 over them.

    Returns:
        (groups, layers, width), and the cosine between the means of two halves of the rows.
    """
    halves, parts = (Mean(), Mean()), Components(1)
    for batch in rows():
        odd = (torch.arange(len(batch)) + int(halves[0].weight + halves[1].weight)) % 2 == 1
        halves[0].update(batch[~odd])
        halves[1].update(batch[odd])
        if mode != "mean":
            parts.update(batch.flatten(2))
    if not (halves[0].weight and halves[1].weight):
        raise InputError("VTI needs two or more different images to learn visual directions from; or set image=0.")
    mean = (halves[0] + halves[1]).mean
    cosine = torch.cosine_similarity(halves[0].mean.flatten(), halves[1].mean.flatten(), dim=0)
    measured: dict[str, object] = {"stability": round(float(cosine), 4)}
    if mode == "mean":
        return mean.float(), measured
    first = parts.components()[0][:, 0].view_as(mean)  # (groups, 1, layers * width)
    if authors_sign:
        first = _by_farthest(first, mean, rows())
    return (first if mode == "pc1" else first + mean).float(), measured


def _by_farthest(directions: Tensor, mean: Tensor, rows: Iterator[Tensor]) -> Tensor:
    """Each group's direction turned so that the row with the largest loading on it has a positive one."""
    largest = torch.zeros(len(directions), dtype=torch.float64)
    for batch in rows:
        for loading in ((batch.double() - mean) * directions).sum((2, 3)):  # (groups,)
            largest = torch.where(loading.abs() > largest.abs(), loading, largest)
    return torch.where(largest < 0, -1.0, 1.0)[:, None, None] * directions


def _seen(session: Session, sites: Sequence[Site], inputs: dict[str, Tensor], copies: list[Tensor]) -> Tensor:
    """The vision tower's states of one image, (tokens, layers, width), the mean over copies of it and over tiles."""
    several = {name: torch.cat([value] * len(copies)) for name, value in inputs.items() if name != "pixel_values"}
    several["pixel_values"] = torch.cat(copies)
    look = session.model.get_image_features
    taken = inspect.signature(look).parameters
    with session.read(list(sites), positions="all") as states, torch.no_grad():
        look(**{name: value for name, value in several.items() if name in taken})
    return torch.stack([torch.stack(states.rows(site)).float().mean(0).cpu() for site in sites], 1)


def _chosen(count: int, ratio: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[: int(ratio * count)]


def _distinct(examples: Sequence[Example], limit: int) -> list[Image.Image | str]:
    found: dict[object, Image.Image | str] = {}
    for one in examples:
        if one.image is not None:
            found.setdefault(one.image if isinstance(one.image, str) else id(one.image), one.image)
    return list(found.values())[:limit]


METHOD = Method(
    name=NAME,
    title="VTI, visual and textual intervention",
    paper="Liu et al., ICLR 2025, arXiv 2410.15778",
    needs="captions",
    learn=learn,
    strengths=(1.0, 2.0, 4.0),
    variants=({"image": 0.0},),
    notes="Directions are the mean differences (mode=mean+pc1 adds the unit principal direction, as the paper's code "
    "does). Visual directions are one for every patch, except in families that take any image size. Vision layers "
    "that the language model never sees are left alone.",
)
