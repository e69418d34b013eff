"""AtP*: attribution patching that misses less (Kramar et al. 2024, arXiv 2403.00745).

A gradient sees nothing where attention is saturated: so what a patch does to queries and keys of the attention that
reads it is computed through the softmax, and only the pattern's effect on the metric is a gradient's (QK fix). And what
flows along several paths may cancel: so gradients are taken with each layer dropped in turn, and the magnitudes
averaged (GradDrop). What comes out are magnitudes, without a sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmsteer.lens.attribution import estimates, grouped
from vlmsteer.lens.backward import Rules, Walked, at_sites, walk_parts
from vlmsteer.lens.decoder import by_head, rotated, walk
from vlmsteer.lens.patch_map import PatchMap
from vlmsteer.lens.patch_plan import Plan
from vlmsteer.sites import Site

STREAM = ("block_in", "block_out")  # what attention makes its queries and keys of


@dataclass
class Pattern:
    """One layer's attention: queries and keys (heads, tokens, head_dim), logits and weights (heads, tokens, tokens)."""

    module: Any
    queries: Tensor
    keys: Tensor
    logits: Tensor
    weights: Tensor


class Recorded(Rules):
    """Attention step by step, so that its queries, keys and pattern have gradients."""

    def __init__(self) -> None:
        self.patterns: list[Pattern] = []

    def attention(self, module: Any, normed: Tensor, frame: dict[str, Any]) -> Tensor:
        """What attention adds."""
        queries, keys = _asked_and_given(module, normed, frame["position_embeddings"])
        values = by_head(module, module.v_proj(normed))[0]
        times = module.num_key_value_groups
        logits = queries @ keys.repeat_interleave(times, 0).transpose(1, 2) * module.scaling
        logits = logits + frame["attention_mask"][0]
        weights = logits.softmax(-1)
        self.patterns.append(Pattern(module, queries, keys, logits, weights))
        mixed = weights @ values.repeat_interleave(times, 0)
        return module.o_proj(mixed.transpose(0, 1).flatten(1)[None])


def _asked_and_given(module: Any, normed: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Queries and keys (heads, tokens, head_dim)."""
    queries, keys = (rotated(module, made, normed, rotary)[0] for made in (module.q_proj, module.k_proj))
    return queries, keys


def atp(planned: Plan) -> PatchMap:
    """Magnitudes of what `patch.exact` measures, by AtP*; the QK fix is for the stream, `block_in` and `block_out`.

    Raises:
        ModelError: if the model's blocks are no Llama-like ones.
    """
    layers = planned.session.layers(planned.sites[0].tower)
    total = np.zeros(planned.shape)
    for dropped in range(layers):
        rules = Recorded()
        walked = walk_parts(planned, rules, dropped)
        total += np.abs(estimates(planned, at_sites(planned, walked)) + _corrections(planned, rules, walked))
    # A point within a block has no gradient when that block is dropped; the stream beside it always has one.
    count = layers if planned.sites[0].point in STREAM else max(1, layers - 1)
    return planned.mapped(total / count, "atp", signed=False)


def _corrections(planned: Plan, rules: Recorded, walked: Walked) -> np.ndarray:
    """(sites, groups, units): the QK-fixed part of each estimate less the first-order part in its place."""
    found = np.zeros(planned.shape)
    if planned.units is not None:
        return found
    for number, site in enumerate(planned.sites):
        layer = site.layer + (site.point == "block_out")
        if site.point in STREAM and layer < len(rules.patterns):
            fixed = _fixed(planned, site, layer, rules.patterns[layer], walked)
            found[number] = grouped(planned, fixed[:, None])
    return found


def _fixed(planned: Plan, site: Site, layer: int, pattern: Pattern, walked: Walked) -> Tensor:
    """(tokens,) the correction of a patch of each token of the stream that enters a layer."""
    run, pair = planned.contrast.recipient, planned.contrast
    entering = walked.points[Site(site.tower, layer, "block_in")]
    grads = torch.autograd.grad(
        walked.value, [pattern.queries, pattern.keys, pattern.weights], retain_graph=True, allow_unused=True
    )
    if grads[2] is None:  # the layer is dropped
        return torch.zeros(len(run))
    onward = torch.autograd.grad([pattern.queries, pattern.keys], entering, grads[:2], retain_graph=True)[0][0]
    with planned.session.instrument.alone(), torch.no_grad():
        decoder = walk(planned.session, run)
        assert decoder is not None
        old = entering[0].detach()
        new = pair.donor.states[site][pair.partners.clamp(min=0)].to(old.device)
        new = torch.where((pair.partners < 0).to(old.device)[:, None], old, new)
        normed = decoder.blocks[layer].input_layernorm(new[None])
        queries, keys = _asked_and_given(pattern.module, normed, decoder.frame(0)["position_embeddings"])
        linear = (onward * (new - old)).sum(-1)
        return (_of_queries(pattern, queries, grads[2]) + _of_keys(pattern, keys, grads[2]) - linear).double().cpu()


def _of_queries(pattern: Pattern, queries: Tensor, flowing: Tensor) -> Tensor:
    """(tokens,): each token's row of the pattern with the donor's query, times the pattern's gradient."""
    keys = pattern.keys.repeat_interleave(pattern.module.num_key_value_groups, 0)
    seen = pattern.logits.detach() <= torch.finfo(flowing.dtype).min / 2
    logits = (queries @ keys.transpose(1, 2) * pattern.module.scaling).masked_fill(seen, -torch.inf)
    return ((logits.softmax(-1) - pattern.weights) * flowing).sum((0, 2))


def _of_keys(pattern: Pattern, keys: Tensor, flowing: Tensor) -> Tensor:
    """(tokens,): every later token's row with the donor's key of this token alone, times the pattern's gradient.

    If one logit of a row grows by d, its weight w becomes w e^d / r and the others w' / r, with r = 1 - w + w e^d.
    """
    keys = keys.repeat_interleave(pattern.module.num_key_value_groups, 0)
    logits = pattern.queries @ keys.transpose(1, 2) * pattern.module.scaling
    weights, hidden = pattern.weights, pattern.logits <= torch.finfo(flowing.dtype).min / 2
    grown = (logits - pattern.logits).masked_fill(hidden, 0).clamp(max=60).exp()
    total = 1 - weights + weights * grown
    spread = (1 / total - 1) * (weights * flowing).sum(-1, keepdim=True)
    return (spread + weights * (grown - 1) / total * flowing).masked_fill(hidden, 0).sum((0, 1))
