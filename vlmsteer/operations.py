"""What an edit does to activations, as plain functions of (x, vector, strength).

`x` is (..., width); `vector` and `strength` broadcast against it, (..., width) and (..., 1), so every token may have
its own. Each is the identity at strength 0. METHODS.md says which paper uses which.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize


def add(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """x + s v (PvP, CAA, ITI)."""
    return x + strength * vector


def add_keep_norm(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """Turn x towards v without changing its length: |x| normalize(x/|x| + s v/|v|) (VTI, VISTA)."""
    turned = normalize(normalize(x, dim=-1) + strength * normalize(vector, dim=-1), dim=-1)
    return turned * x.norm(dim=-1, keepdim=True)


def add_opposed_keep_norm(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """As `add_keep_norm`, stronger where x points against the push: s (1 + max(0, cos(x, -s v))) (VISTA)."""
    against = -(normalize(x, dim=-1) * normalize(vector, dim=-1) * strength.sign()).sum(-1, keepdim=True)
    return add_keep_norm(x, vector, strength * (1 + against.clamp(min=0)))


def scale(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """x (1 + s v): v is the relative change of each dimension (head rescaling, AurA)."""
    return x * (1 + strength * vector)


def rescale(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """x times 1 + s v, the factor kept within 0 and 2 (V-SEAM)."""
    return x * (1 + strength * vector).clamp(0, 2)


def mean_of_others(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """Heads become the mean of the other heads: the vector is the number of heads where one is replaced, else 0."""
    heads = int(vector.max())
    if heads < 2:
        return x
    blocks = x.unflatten(-1, (heads, -1))
    others = (blocks.sum(-2, keepdim=True) - blocks) / (heads - 1)
    return torch.where(vector > 0, torch.lerp(x, others.flatten(-2), strength), x)


def clamp(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """x + s (v - x) where v is a number, x where it is NaN: at strength 1 those dimensions become v (neuron clamps)."""
    return torch.where(vector.isnan(), x, torch.lerp(x, vector, strength))


def affine(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """s (w x + b) + (1 - s) x with w and b the two halves of the vector's last axis (linear optimal transport, AcT)."""
    weight, bias = vector.chunk(2, dim=-1)
    return torch.lerp(x, weight * x + bias, strength)


def transport(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """As `affine`, but only between the bounds that are the last two of the vector's four quarters (AcT's support)."""
    weight, bias, low, high = vector.chunk(4, dim=-1)
    return torch.where((x >= low) & (x <= high), torch.lerp(x, weight * x + bias, strength), x)


def project_out(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """x without s times its component along v."""
    direction = normalize(vector, dim=-1)
    return x - strength * (x * direction).sum(-1, keepdim=True) * direction


def replace(x: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
    """x + s (v - x): v itself, to the last bit, at strength 1 (patching)."""
    return torch.lerp(x, vector, strength)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "add": add,
    "add_keep_norm": add_keep_norm,
    "add_opposed_keep_norm": add_opposed_keep_norm,
    "scale": scale,
    "rescale": rescale,
    "mean_of_others": mean_of_others,
    "clamp": clamp,
    "affine": affine,
    "transport": transport,
    "project_out": project_out,
    "replace": replace,
}
DIRECTED = frozenset(
    {"add", "add_keep_norm", "add_opposed_keep_norm", "project_out", "replace"}
)  # vectors have a length
NAN_ALLOWED = frozenset({"clamp"})
NEUTRAL = {"clamp": torch.nan, "scale": 0.0, "add": 0.0}  # what leaves its dimension alone
BY_HEAD = frozenset({"scale", "rescale", "mean_of_others"})  # at heads, one number a head is enough
WIDTHS = {"affine": 2, "transport": 4}  # vectors of these operations are that many times as wide as the site
