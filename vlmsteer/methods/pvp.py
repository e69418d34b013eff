"""PvP, Pixels versus Priors (Golovanevsky et al., EMNLP 2025, arXiv 2505.17127): steer between memory and picture.

The vector of a layer is the mean, over counterfactual images, of the residual stream leaving that block at the last
prompt token under "this" minus under "most". Added after the same blocks at the last position it pushes answers to the
pixels; subtracted, to the prior. The authors' code adds each vector one block later than it was read; `index_shift=-1`
does so too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer.methods.method import Method
from vlmsteer.reading import batches
from vlmsteer.recipe import Recipe
from vlmsteer.running import Mean
from vlmsteer.session import Session
from vlmsteer.sites import Site, expand
from vlmsteer.vectors import Vectors

VERSION = 1


@dataclass(frozen=True)
class Learned:
    """What `learn` found.

    Attributes:
        vectors: this minus most, a vector for each text layer.
        shuffled: the same with "this" and "most" exchanged in a random half of the pairs, equally long: a control.
        stability: the cosine between the vectors of two halves of the data, by layer.
    """

    vectors: Vectors
    shuffled: Vectors
    stability: dict[int, float]

    def recipe(self, strength: float = 1.0, layers: Sequence[int] | None = None, phase: str = "both") -> Recipe:
        """Positive strength pushes to the pixels, negative to the prior; 1, -1 and every forward are the paper's."""
        return Recipe.of(self.vectors, strength, layers, phase=phase)


def learn(
    session: Session,
    images: Sequence[Image.Image | str],
    this: Sequence[str],
    most: Sequence[str],
    point: str = "block_out",
    index_shift: int = 0,
    batch_size: int = 32,
    seed: int = 0,
) -> Learned:
    """Learn one vector for each text layer.

    Args:
        images: counterfactual images.
        this: for each, a question about this image.
        most: for each, the same question about most such objects.
        point: where vectors are read and written. "block_out" is the paper's. At "attn_out" of the layer where the
            last token takes in the question, the difference is the same for every object, before the MLP mixes it with
            the object: where "block_out" falls short, try that.
        index_shift: 0 writes a vector where it was read; -1 reads it one block earlier, as the authors' code does.
        batch_size: prompts in one forward, two a pair.
        seed: of the shuffled control.

    Raises:
        InputError: if there are fewer than two pairs or the lists differ in length.
    """
    if len(images) < 2 or not len(images) == len(this) == len(most):
        raise InputError(
            f"PvP needs two or more images with two questions each, not {len(images)}, {len(this)} and {len(most)}."
        )
    if index_shift not in (0, -1):
        raise InputError(f"index_shift is 0 or -1, not {index_shift}.")
    if index_shift and point != "block_out":
        raise InputError("index_shift=-1 is the authors' pairing of block outputs; it has no meaning at another point.")
    layers = range(session.layers())
    sites = {layer: _source(layer + index_shift, point) for layer in layers}
    expand(list(map(str, sites.values())), session.sites)
    generator = torch.Generator().manual_seed(seed)
    # As many exchanged as not, else what is left of the mean would be blown up to its full length again.
    signs = torch.ones(len(images))
    signs[torch.randperm(len(images), generator=generator)[: len(images) // 2]] = -1.0
    halves, exchanged, read = (Mean(), Mean()), Mean(), 0
    for states in asked_states(session, list(sites.values()), images, this, most, batch_size):
        difference = states[:, 0] - states[:, 1]
        numbers = torch.arange(read, read + len(difference))
        for half in (0, 1):
            halves[half].update(difference[numbers % 2 == half])
        exchanged.update(difference * signs[numbers, None, None])
        read += len(difference)
    mean, shuffled = (halves[0] + halves[1]).mean.float(), exchanged.mean.float()
    stability = torch.cosine_similarity(halves[0].mean, halves[1].mean, dim=-1)
    shuffled = shuffled / shuffled.norm(dim=-1, keepdim=True) * mean.norm(dim=-1, keepdim=True)
    data = hashlib.sha256("\n".join([*this, *most]).encode())
    for image in images:
        data.update(open_image(image).tobytes())
    about = {
        "method": "pvp", "version": VERSION, "pairs": len(images), "index_shift": index_shift,
        "prompts": {"this": this[0], "most": most[0]}, "data": data.hexdigest()[:16],
        "stability": [round(float(value), 4) for value in stability],
    }  # fmt: skip
    vectors = Vectors("text", point, {layer: mean[layer] for layer in layers}, session.fingerprint, about)
    control = replace(
        vectors,
        layers={layer: shuffled[layer] for layer in layers},
        about={**about, "control": f"pairs exchanged at random, seed {seed}"},
    )
    return Learned(vectors, control, {layer: float(stability[layer]) for layer in layers})


def windows(layers: int, widths: Sequence[int]) -> list[range]:
    """All runs of consecutive layers of the given widths."""
    return [range(first, first + width) for width in widths for first in range(layers - width + 1)]


def _source(layer: int, point: str) -> Site:
    return Site("text", layer, point) if layer >= 0 else Site("text", 0, "block_in")


def asked_states(
    session: Session,
    sites: Sequence[Site],
    images: Sequence[Image.Image | str],
    this: Sequence[str],
    most: Sequence[str],
    batch_size: int = 32,
) -> Iterator[Tensor]:
    """States under this and most, (pairs, 2, sites, ...) float32 on the CPU; both questions share a forward."""
    both = [image for image in images for _ in range(2)]
    questions = [question for pair in zip(this, most, strict=True) for question in pair]
    for _, states in batches(session, sites, both, questions, batch_size=max(2, batch_size // 2 * 2)):
        yield torch.stack([states[site].float().cpu() for site in sites], 1).unflatten(0, (-1, 2))


def learn_pairs(
    session: Session,
    examples: Sequence[tuple[Image.Image | str, str, str]],
    *,
    point: str = "block_out",
    index_shift: int = 0,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> Recipe:
    """PvP from (counterfactual image, question about this one, question about most); see `learn` for the options."""
    images, this, most = ([example[i] for example in examples] for i in range(3))
    return learn(session, images, this, most, point, index_shift, seed=seed).recipe(1.0, layers)  # pyright: ignore[reportArgumentType]


METHOD = Method(
    name="pvp",
    title="PvP, pixels versus priors",
    paper="Golovanevsky et al., EMNLP 2025, arXiv 2505.17127",
    needs="pairs",
    learn=learn_pairs,
    notes="`vlmsteer pvp` also chooses layers and strength, and tests what flips; here the color task is learned",
)
