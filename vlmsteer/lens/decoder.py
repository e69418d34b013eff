"""A Llama-like decoder walked block by block, from any layer and any position of a prompt on.

What lies before the first position walked is seen through keys and values of a prompt that was read once, the same for
every row. That a model is such a loop is not guessed from its name: its first walk goes over a whole prompt and must
give the model's own logits, else there is none (Qwen3-VL adds vision states between blocks, T5 has an encoder).
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmsteer import branches
from vlmsteer.adapters.family import find
from vlmsteer.errors import ModelError
from vlmsteer.lens.prompt_states import PromptStates
from vlmsteer.session import Session
from vlmsteer.sites import Site

SAME, SAME_IN_HALF = 1e-4, 0.03  # of the largest logit: how far a walk may be from the model's own forward
_walks: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class Earlier:
    """In place of a cache: keys and values of one row's first positions, which every row sees before its own."""

    def __init__(self, cache: Any, count: int) -> None:
        self.layers, self.count = cache.layers, count

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values (rows, heads, positions, head_dim) of a layer, the new ones last."""
        if not self.count:
            return keys, values
        known = (self.layers[layer].keys, self.layers[layer].values)
        before = [part[:, :, : self.count].expand(len(keys), -1, -1, -1) for part in known]
        return torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)


class Given(NamedTuple):
    """In place of a cache: the keys and values that attention sees, whatever its own are."""

    keys: Tensor
    values: Tensor

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """These keys and values (rows, heads, positions, head_dim)."""
        return self.keys, self.values


class Decoder:
    """The blocks of the text tower, over the positions of one prompt; made by `walk`.

    Attributes:
        blocks: the modules, one a layer.
    """

    def __init__(self, session: Session, prompt: PromptStates) -> None:
        self.prompt = prompt
        paths = session.family.towers["text"].blocks
        self.blocks: Any = find(session.model, paths)
        self._rotary = find(session.model, tuple(f"{path.rpartition('.')[0]}.rotary_emb" for path in paths))

    def states(self, layer: int) -> Tensor:
        """(positions, width): the residual stream that enters a block."""
        return self.prompt.states[Site("text", layer, "block_in")]

    def frame(self, first: int, cache: Any = None) -> dict[str, Any]:
        """What every block is given for the positions from `first` on: where they are, and what they see."""
        positions, like = self.prompt.positions[:, first:], self.states(0)
        if positions.dim() == 3:
            positions = positions.permute(2, 0, 1)
        place = torch.arange(len(like), device=like.device)
        mask = torch.zeros(len(like) - first, len(like), dtype=like.dtype, device=like.device)
        mask.masked_fill_(place > place[first:, None], torch.finfo(like.dtype).min)
        return {
            "attention_mask": mask[None, None],
            "position_embeddings": self._rotary(like[None], position_ids=positions),
            "past_key_values": cache or Earlier(self.prompt.cache, first),
            "use_cache": True,
        }

    def block(self, layer: int, states: Tensor, frame: dict[str, Any]) -> Tensor:
        """One block's output (rows, positions, width); the last block's for the last position only."""
        block = self.blocks[layer]
        if layer + 1 < len(self.blocks):
            output = block(states, **frame)
            return output[0] if isinstance(output, tuple) else output
        normed, attention = block.input_layernorm(states), block.self_attn
        keys = rotated(attention, attention.k_proj, normed, frame["position_embeddings"])
        values = by_head(attention, attention.v_proj(normed))
        every = frame["past_key_values"].update(keys, values, layer)
        one = {
            "attention_mask": frame["attention_mask"][:, :, -1:],
            "position_embeddings": tuple(part[:, -1:] for part in frame["position_embeddings"]),
            "past_key_values": Given(*every),
            "use_cache": True,
        }
        states = states[:, -1:] + attention(hidden_states=normed[:, -1:], **one)[0]
        return states + block.mlp(block.post_attention_layernorm(states))


def by_head(attention: Any, states: Tensor) -> Tensor:
    """(rows, heads, positions, head_dim) of (rows, positions, width)."""
    return states.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def rotated(attention: Any, projection: Any, normed: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (rows, heads, positions, head_dim) with their positions in them.

    Args:
        projection: which of the two, as a module of the attention.

    Raises:
        AttributeError: if this attention makes them otherwise than Llama's.
    """
    if hasattr(attention, "k_norm"):
        raise AttributeError("Queries and keys are normalized before they are rotated.")
    made = by_head(attention, projection(normed))
    return sys.modules[type(attention).__module__].apply_rotary_pos_emb(made, made, *rotary)[0]


def walk(session: Session, prompt: PromptStates) -> Decoder | None:
    """The decoder over a prompt whose block inputs were read; None if the model cannot be walked.

    Nor can it be inside a read or apply block, whose hooks a walk would pass by.
    """
    if session.instrument.busy or not branches.possible(session.model, prompt.cache):
        return None
    try:
        decoder = Decoder(session, prompt)
    except ModelError:
        return None
    if session.model not in _walks:
        _walks[session.model] = _walks_alike(session, decoder)
    return decoder if _walks[session.model] else None


def _walks_alike(session: Session, decoder: Decoder) -> bool:
    if any(weight.is_meta for weight in session.model.parameters()):
        return False
    logits, states = decoder.prompt.logits.float(), decoder.states(0)[None]
    try:
        with session.instrument.alone(), torch.no_grad():
            frame = decoder.frame(0)
            for layer in range(len(decoder.blocks)):
                states = decoder.block(layer, states, frame)
            walked = session.unembed(states[0, -1]).float()
    except (AttributeError, TypeError):  # another kind of block
        return False
    near = SAME if session.model.dtype == torch.float32 else SAME_IN_HALF
    return bool((walked - logits).abs().max() <= near * logits.abs().max())
