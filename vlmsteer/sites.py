"""Where in a model: tower, layer, point; written "text.14.block_out".

A layer is a 0-based block. A point is a place in that block. Patterns may leave the layer open ("text.*.block_out") or
give a range ("text.3-5.block_out", both ends included).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlmsteer.errors import SiteError, did_you_mean

TOWERS = ("vision", "vision2", "qformer", "projector", "encoder", "text", "expert")
POINTS = {
    "block_in": "the residual stream that enters the block",
    "block_out": "the residual stream that leaves the block, before any final norm",
    "attn_out": "what attention adds to the stream, after the output projection",
    "head": "each head's output before the output projection, (..., heads, head_dim)",
    "cross_out": "what cross-attention adds to the stream, after its output projection",
    "cross_head": "each cross-attention head's output before the output projection, (..., heads, head_dim)",
    "mlp_out": "what the MLP adds to the stream",
    "neuron": "the MLP's hidden activations, the input of the down projection",
    "norm_out": "the normalized stream that the MLP reads",
}
HEADS = ("head", "cross_head")  # the points that are split by head


@dataclass(frozen=True, order=True)
class Site:
    """One place in a model."""

    tower: str
    layer: int
    point: str

    def __str__(self) -> str:
        return f"{self.tower}.{self.layer}.{self.point}"

    @staticmethod
    def parse(text: str) -> Site:
        """Read "text.14.block_out".

        Raises:
            SiteError: if a part is missing or unknown.
        """
        tower, layer, point = _parts(text)
        if not _number(layer):
            raise SiteError(f"The site {text!r} needs one layer number, not {layer!r}.")
        return Site(tower, int(layer), point)


def expand(patterns: str | Site | Iterable[str | Site], available: Iterable[Site]) -> list[Site]:
    """The available sites that the patterns name, in network order and without repeats.

    Raises:
        SiteError: if a pattern is malformed or names a site that is not available.
    """
    known = list(available)
    wanted: set[Site] = set()
    for pattern in [patterns] if isinstance(patterns, str | Site) else patterns:
        tower, layer, point = _parts(str(pattern))
        layers = sorted(site.layer for site in known if (site.tower, site.point) == (tower, point))
        if not layers:
            offered = sorted({f"{site.tower}.*.{site.point}" for site in known})
            raise SiteError(f"This model has no site {str(pattern)!r}{did_you_mean(f'{tower}.*.{point}', offered)}")
        for number in _layers(layer, layers, str(pattern)):
            wanted.add(Site(tower, number, point))
    order = {site: index for index, site in enumerate(known)}
    return sorted(wanted, key=order.__getitem__)


def _parts(text: str) -> tuple[str, str, str]:
    parts = text.split(".")
    if len(parts) != 3:
        raise SiteError(f"A site is written tower.layer.point, for example text.14.block_out, not {text!r}.")
    tower, layer, point = parts
    if tower not in TOWERS:
        raise SiteError(f"There is no tower {tower!r}{did_you_mean(tower, TOWERS)}")
    if point not in POINTS:
        raise SiteError(f"There is no point {point!r}{did_you_mean(point, POINTS)}")
    return tower, layer, point


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _layers(text: str, present: list[int], pattern: str) -> list[int]:
    if text == "*":
        return present
    first, dash, last = text.partition("-")
    if not _number(first) or (dash and not _number(last)):
        raise SiteError(f"The layer in {pattern!r} must be a number, a range such as 3-5, or *.")
    low, high = int(first), int(last if dash else first)
    asked = [layer for layer in present if low <= layer <= high]
    if not asked or len(asked) != high - low + 1:
        raise SiteError(
            f"{pattern!r} asks for a layer that is not there: this model has layers {present[0]} to {present[-1]}."
        )
    return asked
