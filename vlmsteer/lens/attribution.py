"""Attribution patching: the effect of every patch at once, to first order (Nanda 2023; Syed et al., arXiv 2310.10348).

A patch moves a state from the recipient's to the donor's; its effect is estimated as that difference times the metric's
gradient in the recipient's run. Two forwards and one backward, whatever the number of sites, in any family.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vlmsteer.lens.patch_map import PatchMap
from vlmsteer.lens.patch_plan import Plan
from vlmsteer.lens.prompt_states import read_prompt
from vlmsteer.sites import HEADS, Site


def attribution(planned: Plan) -> PatchMap:
    """First-order estimates of what `patch.exact` measures."""
    run = planned.contrast.recipient
    with torch.enable_grad():
        again = read_prompt(planned.session, run.image, run.question, planned.sites, grad=True)
        value = planned.metric(again.logits[None])[0]
        gradients = torch.autograd.grad(value, [again.states[site] for site in planned.sites])
    found = estimates(planned, dict(zip(planned.sites, gradients, strict=True)))
    return planned.mapped(found, "attribution")


def estimates(planned: Plan, gradients: Mapping[Site, Tensor]) -> np.ndarray:
    """(sites, groups, units): gradient times difference, summed over what is patched together.

    Args:
        gradients: of the metric, (tokens, width) at each site, (tokens, heads, head_dim) at heads.
    """
    found = np.zeros(planned.shape)
    for number, site in enumerate(planned.sites):
        products = (gradients[site].double().cpu() * moved(planned, site)).detach()
        if site.point in HEADS:
            products = products.sum(-1)
        products = products.sum(-1, keepdim=True) if planned.units is None else products[:, planned.units]
        found[number] = grouped(planned, products)
    return found


def moved(planned: Plan, site: Site) -> Tensor:
    """How far the donor's states are from the recipient's, in float64; 0 at tokens without a partner."""
    pair = planned.contrast
    old, new = (run.states[site].double().cpu() for run in (pair.recipient, pair.donor))
    away = new[pair.partners.clamp(min=0)] - old
    away[pair.partners < 0] = 0
    return away


def grouped(planned: Plan, products: Tensor) -> np.ndarray:
    """(groups, units) sums of (tokens, units)."""
    return torch.stack([products[list(group)].sum(0) for group in planned.groups]).numpy()
