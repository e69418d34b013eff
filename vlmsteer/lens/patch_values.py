"""What the residual stream is once a point of a block was replaced at some tokens.

Within a block only attention looks at other tokens. So whatever is replaced after it (its output, a head, the MLP, a
neuron) changes what leaves the block at that token alone, and patching any point is patching the stream itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmsteer.lens.contrast import Contrast
from vlmsteer.session import Session
from vlmsteer.sites import HEADS, Site

POINTS = ("block_in", "block_out", "attn_out", "head", "mlp_out", "neuron", "norm_out")
_NEEDS = {"block_in": (), "block_out": (), "attn_out": (), "head": ()}


def needed(site: Site) -> list[Site]:
    """The sites that must have been read of the recipient to patch this one; its block's input is another."""
    points = (site.point, *_NEEDS.get(site.point, ("mlp_out", "block_out")))
    return [Site(site.tower, site.layer, point) for point in dict.fromkeys(points)]


def mixed(contrast: Contrast, site: Site, here: Tensor, units: Sequence[int] | None) -> Tensor:
    """(tokens, units, width): the recipient's states at a site with the donor's in place of one unit each.

    Args:
        here: (tokens,) of the recipient.
        units: heads at `head`, single dimensions elsewhere; None replaces the whole state, as one unit.
    """
    new = contrast.donor.states[site][contrast.partners[here].to(contrast.donor.states[site].device)]
    if units is None:
        return (new.flatten(1) if site.point in HEADS else new)[:, None]
    old = contrast.recipient.states[site][here.to(new.device)]
    new = new.to(old.device)
    number, chosen = torch.arange(len(units), device=old.device), torch.tensor(units, device=old.device)
    swapped = old[:, None].repeat(1, len(units), *[1] * (old.dim() - 1))
    swapped[:, number, chosen] = new[:, chosen]
    return swapped.flatten(2)


def leaving(session: Session, contrast: Contrast, site: Site, here: Tensor, units: Sequence[int] | None) -> Tensor:
    """(tokens, units, width): what leaves the block, at `block_in` what enters it, once the site was replaced."""
    new = mixed(contrast, site, here, units)
    if site.point in ("block_in", "block_out"):
        return new
    read, modules = contrast.recipient.states, session.taps

    def at(point: str) -> Site:
        return Site(site.tower, site.layer, point)

    if site.point in ("attn_out", "head"):
        added = modules[at("head")].module(new) if site.point == "head" else new
        stream = read[at("block_in")][here.to(added.device)][:, None] + added
        return stream + modules[at("mlp_out")].module(modules[at("norm_out")].module(stream))
    if site.point != "mlp_out":  # the MLP's input, or its neurons
        new = modules[at("mlp_out" if site.point == "norm_out" else "neuron")].module(new)
    here = here.to(new.device)
    return (read[at("block_out")][here] - read[at("mlp_out")][here])[:, None] + new
