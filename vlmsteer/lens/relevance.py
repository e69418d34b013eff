"""RelP: attribution patching with the coefficients of layer-wise relevance propagation in place of gradients.

Jafari, Eberle, Khakzar and Nanda (2025, arXiv 2508.21258). Forward values stay as they are; backwards, norms keep their
scale (LN-rule), attention its pattern, so that only values pass (AH-rule), an activation is the multiplication it
amounts to (identity-rule), and of a product each factor gets half (half-rule).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlmsteer.lens.attribution import estimates
from vlmsteer.lens.backward import Rules, gradients
from vlmsteer.lens.patch_map import PatchMap
from vlmsteer.lens.patch_plan import Plan


class LiveValues:
    """In place of a cache: hands attention values that gradients pass, beside its own keys, which they do not."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The keys as they are, and the live values in their form."""
        rows, heads, length, width = values.shape
        return keys.detach(), self.values.view(rows, length, heads, width).transpose(1, 2)


class Relevance(Rules):
    """How relevance passes the parts of a block."""

    def norm(self, module: Any, states: Tensor) -> Tensor:
        """The norm as a multiplication by a constant."""
        return scaled(states, module(states))

    def attention(self, module: Any, normed: Tensor, frame: dict[str, Any]) -> Tensor:
        """The pattern is a constant; values pass."""
        live = LiveValues(module.v_proj(normed))
        return module(hidden_states=normed.detach(), **{**frame, "past_key_values": live})[0]

    def neurons(self, module: Any, normed: Tensor) -> Tensor:
        """The activation is a multiplication by a constant, and the gate's two factors share what passes."""
        gate, up = module.gate_proj(normed), module.up_proj(normed)
        gate = scaled(gate, module.act_fn(gate))
        return (gate * up.detach() + gate.detach() * up) / 2


def scaled(before: Tensor, after: Tensor) -> Tensor:
    """`after` as `before` times constants; where `before` is 0, nothing passes."""
    zero = before == 0
    return before * (after / before.masked_fill(zero, 1)).masked_fill(zero, 0).detach()


def relp(planned: Plan) -> PatchMap:
    """Estimates of what `patch.exact` measures, by RelP.

    Raises:
        ModelError: if the model's blocks are no Llama-like ones with gated MLPs.
    """
    return planned.mapped(estimates(planned, gradients(planned, Relevance())), "relp")
