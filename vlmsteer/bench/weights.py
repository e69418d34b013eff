"""Which weights a model has, as one number: a run must not go on with others under the same name.

Every bit counts, and the same weights give the same number wherever they lie: sums of integers do not depend on the
order or the device they are added up on. A sum would not see weights change places, so some are hashed as they stand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STANDING = 256  # of a tensor's values, eight bytes each, so many are hashed as they stand


def digest(model: torch.nn.Module) -> str:
    """16 hexadecimal digits of SHA-256 over each weight's name, shape, type, sum of bits and 2 KB of its bits.

    Weights are parameters and what else a checkpoint saves. What accelerate keeps in main memory or on the disk is
    fetched one by one. Of a weight whose values cannot be read (a quantized form that is no plain tensor) only name,
    shape and type count.
    """
    found = hashlib.sha256()
    modules = dict(model.named_modules())
    parameters = model.named_parameters(remove_duplicate=False)  # what is tied here may be twice elsewhere
    saved = {
        f"{place}.{name}": buffer
        for place, module in modules.items()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    for name, weight in sorted([*parameters, *saved.items()], key=lambda pair: pair[0]):
        value: Any = _fetched(modules, name) if weight.is_meta else weight.data
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        found.update(b"unread" if value is None else _content(value))
    return found.hexdigest()[:16]


def _content(value: torch.Tensor) -> bytes:
    import torch

    try:
        plain = value.int_repr() if value.is_quantized else value.detach()
        raw = plain.reshape(-1).contiguous().view(torch.uint8)
        eights = raw[: len(raw) // 8 * 8].view(torch.int64)
        standing = eights[:: max(1, len(eights) // STANDING)][:STANDING]
        rest = raw[8 * len(eights) :]
        return str(int(eights.sum())).encode() + standing.cpu().numpy().tobytes() + rest.cpu().numpy().tobytes()
    except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
        return b"unread"


def _fetched(modules: Mapping[str, torch.nn.Module], name: str) -> Any:
    """A parameter from where accelerate keeps it, as the nearest module above it knows; None if nowhere."""
    owner, _, own = name.rpartition(".")
    while True:
        hook = getattr(modules.get(owner), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            kept = getattr(one, "weights_map", None)
            if kept is not None and own in kept:
                return kept[own]
        if not owner:
            return None
        owner, _, last = owner.rpartition(".")
        own = f"{last}.{own}"
