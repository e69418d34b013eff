"""How much each token of an answer attends to each token of the image, in every layer and head of the text tower.

The weights are read while attention is computed, in the calling thread alone: nothing of the model is changed, so
there is nothing to put back, other threads do not notice, and the answer is the one that the model gives anyway.
PyTorch's fused attention gives no weights; those of the few rows that are wanted are computed again from its queries
and keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vlmsteer.errors import ModelError, SiteError
from vlmsteer.lens.answered import Answered
from vlmsteer.recipe import Recipe

READABLE = ("eager", "sdpa")


class Attention(NamedTuple):
    """Attention over the image: `weights` (tokens, layers, heads, image tokens), `share` (tokens, layers).

    The share is the part of a token's attention that goes to the image, the mean of all heads; the rest goes to text.
    """

    weights: Tensor
    share: Tensor


def attention(answer: Answered, recipe: Recipe | None = None) -> Attention:
    """The attention to the image with which each token of an answer was predicted.

    Raises:
        ModelError: as `rows`.
    """
    weights = rows(answer, recipe, answer.shown)
    return Attention(weights, weights.sum(-1).mean(-1))


def mean(weights: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """(tokens, image tokens): the mean over all heads of all layers, or of some layers.

    Args:
        weights: (tokens, layers, heads, image tokens).

    Raises:
        SiteError: if there is no such layer, or no layer at all is chosen.
    """
    count = weights.shape[1]
    chosen = list(range(count)) if layers is None else list(layers)
    if not chosen or any(not 0 <= layer < count for layer in chosen):
        raise SiteError(f"The text tower has the layers 0 to {count - 1}; take some of them, not {chosen}.")
    return weights[:, chosen].mean((1, 2))


def rows(answer: Answered, recipe: Recipe | None = None, columns: Tensor | None = None) -> Tensor:
    """(tokens, layers, heads, columns): the attention of each answer token, at the position that predicts it.

    Args:
        columns: which tokens of prompt and answer are attended to; by default all.

    Raises:
        ModelError: if the model's attention shows no weights.
    """
    session = answer.session
    kind = getattr(session.model.config.get_text_config(), "_attn_implementation", None)
    if kind not in READABLE:
        raise ModelError(
            f"{session.name!r} computes attention with {kind!r}, which shows no weights; call "
            "session.model.set_attn_implementation('sdpa') after loading it."
        )
    wanted = torch.arange(answer.columns) if columns is None else columns
    with _Watch(len(answer.tokens) + 1, session.layers(), answer.columns, wanted) as watch:
        answer.run(recipe)
    if len(watch.found) != session.layers() or any(len(found) != 1 for found in watch.found):
        raise ModelError(f"The attention of {session.name!r} could not be read: it is computed in an unknown way.")
    return torch.stack([found[0, :, :-1].transpose(0, 1) for found in watch.found], 1)


class _Watch(TorchFunctionMode):
    """Keeps the weights (batch, heads, rows, wanted) of the last attentions that are computed inside.

    Args:
        rows: of how many last queries.
        last: how many attentions; those of the text tower come after those of the vision tower.
        keys: how many keys an attention of the text tower has; others are passed over.
        wanted: of which keys.
    """

    def __init__(self, rows: int, last: int, keys: int, wanted: Tensor) -> None:
        super().__init__()
        self.count, self.keys, self.wanted = rows, keys, wanted
        self.found: deque[Tensor] = deque(maxlen=last)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            self._keep(_weights(self.count, *args, **kwargs))
        elif func is functional.softmax and given.dim() == 4:
            self._keep(given[:, :, -self.count :])
        return given

    def _keep(self, weights: Tensor) -> None:
        if weights.shape[-1] == self.keys:
            self.found.append(weights[..., self.wanted.to(weights.device)].detach().float().cpu())


def _weights(
    rows: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(batch, heads, rows, keys): the weights of the last queries, by the definition of PyTorch's fused attention."""
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query[:, :, -rows:].float() @ key.float().transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        place = torch.arange(query.shape[2], device=key.device)[-rows:, None]
        scores = scores.masked_fill(torch.arange(key.shape[2], device=key.device) > place, -torch.inf)
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask[..., -rows:, :], -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask[..., -rows:, :]
    return scores.softmax(-1)
