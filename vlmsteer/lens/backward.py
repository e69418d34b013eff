"""Gradients of the metric at every point of a Llama-like decoder, with rules for how they pass the parts of a block.

The recipient's run is walked once more, part by part: norm, attention, norm, MLP. Its logits must be the model's own,
whatever the rules, since these change only what flows back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmsteer.errors import ModelError
from vlmsteer.lens.decoder import Decoder, walk
from vlmsteer.lens.patch_plan import Plan
from vlmsteer.sites import HEADS, Site

SAME = 1e-3  # of the largest logit


class Rules:
    """The parts of a block as they are."""

    def norm(self, module: Any, states: Tensor) -> Tensor:
        """A norm."""
        return module(states)

    def attention(self, module: Any, normed: Tensor, frame: dict[str, Any]) -> Tensor:
        """What attention adds."""
        return module(hidden_states=normed, **frame)[0]

    def neurons(self, module: Any, normed: Tensor) -> Tensor:
        """The MLP's hidden activations."""
        return module.act_fn(module.gate_proj(normed)) * module.up_proj(normed)


@dataclass
class Walked:
    """What a walk leaves: the metric, and at every site the tensor that lies on the way to it."""

    value: Tensor
    points: dict[Site, Tensor] = field(default_factory=dict)


def gradients(planned: Plan, rules: Rules) -> dict[Site, Tensor]:
    """The metric's gradients at the plan's sites: (tokens, width), at heads (tokens, heads, head_dim).

    Raises:
        ModelError: if the model cannot be walked part by part.
    """
    return at_sites(planned, walk_parts(planned, rules))


def at_sites(planned: Plan, walked: Walked) -> dict[Site, Tensor]:
    """The gradients at the plan's sites; zeros where nothing flows back."""
    read = {site: Site(site.tower, site.layer, "attn_out") if site.point in HEADS else site for site in planned.sites}
    points = [walked.points[read[site]] for site in planned.sites]
    found = torch.autograd.grad(walked.value, points, retain_graph=True, allow_unused=True)
    known: dict[Site, Tensor] = {}
    for site, point, gradient in zip(planned.sites, points, found, strict=True):
        flowing = torch.zeros_like(point) if gradient is None else gradient
        if site.point in HEADS:
            states = planned.contrast.recipient.states[site].detach().flatten(1)[None].requires_grad_()
            added = planned.session.taps[site].module(states)
            (flowing,) = torch.autograd.grad(added, states, flowing)
            known[site] = flowing[0].view_as(planned.contrast.recipient.states[site])
        else:
            known[site] = flowing[0]
    return known


def walk_parts(planned: Plan, rules: Rules, dropped: int | None = None) -> Walked:
    """The recipient's run once more, part by part, with the graph kept.

    Args:
        dropped: a layer that nothing flows back through, but along the stream beside it.

    Raises:
        ModelError: if the model cannot be walked part by part.
    """
    session, run = planned.session, planned.contrast.recipient
    decoder = walk(session, run)
    if decoder is None:
        raise ModelError(
            f"This method passes the parts of Llama-like blocks one by one, which {session.family.name} does not "
            "allow, and cannot act inside a read or apply block: use the method attribution or exact."
        )
    tower, points = planned.sites[0].tower, {}
    with session.instrument.alone(), torch.enable_grad():
        states = decoder.states(0)[None].detach().requires_grad_()
        frame = decoder.frame(0)
        try:
            for layer in range(len(decoder.blocks)):
                through = _block(decoder, layer, states, frame, rules, points, tower)
                states = states + (through - states).detach() if layer == dropped else through
                points[Site(tower, layer, "block_out")] = states
            norm, head = session.family.ending(session.model)
            scale = session.family.logit_scale(session.model.config)
            logits = head(rules.norm(norm, states[:, -1]) * scale)[0]
        except AttributeError as error:
            raise ModelError(
                f"{session.family.name}'s blocks are not made as Llama's are: use the method attribution or exact."
            ) from error
        if (logits - run.logits).abs().max() > SAME * run.logits.abs().max():
            raise ModelError(f"{session.family.name}'s blocks have parts that this method does not know.")
        return Walked(planned.metric(logits[None])[0], points)


def _block(
    decoder: Decoder, layer: int, states: Tensor, frame: dict[str, Any], rules: Rules, points: dict[Site, Tensor],
    tower: str,
) -> Tensor:  # fmt: skip
    block = decoder.blocks[layer]
    added = rules.attention(block.self_attn, rules.norm(block.input_layernorm, states), frame)
    middle = states + added
    normed = rules.norm(block.post_attention_layernorm, middle)
    neurons = rules.neurons(block.mlp, normed)
    written = block.mlp.down_proj(neurons)
    names = {"block_in": states, "attn_out": added, "norm_out": normed, "neuron": neurons, "mlp_out": written}
    points.update({Site(tower, layer, point): tensor for point, tensor in names.items()})
    return middle + written
