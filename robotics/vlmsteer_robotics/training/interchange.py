"""Interchange interventions in training (Geiger et al., ICML 2022, "Inducing Causal Structure for Interpretable Neural
Networks"): how the robot moves is to hang on what its words say, and on nothing else.

Some lessons are answered in the manner of another one of the same picture: while the model runs, their tokens get, at
one layer, the other's share of the words' directions, and everything else stays. What the later layers then have to
say differs from what the lesson's own instruction says, so they learn to take the manner from these directions alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Passed(NamedTuple):
    """What a run gives: what enters each layer and, last, what the final norm gives; and each layer's attention."""

    states: list[Tensor]
    attention: list[Tensor]


def passed(llama: Any, embedded: Tensor, mask: Tensor, positions: Tensor, at: int,
           change: Callable[[Tensor], Tensor]) -> Passed:  # fmt: skip
    """Run a Llama without its unembedding, and change what enters one of its layers.

    Args:
        llama: its attention must be `eager`, which gives the weights.
        embedded: (sequences, tokens, width). mask: what is added to attention, (sequences, 1, tokens, tokens).
            positions: (sequences, tokens).
        at: the layer; `states` holds what entered it before the change.
    """
    rotary, states, attention = llama.rotary_emb(embedded, position_ids=positions), [embedded], []
    for number, layer in enumerate(llama.layers):
        entering = change(states[-1]) if number == at else states[-1]
        attended, weights = layer.self_attn(
            layer.input_layernorm(entering), attention_mask=mask, position_embeddings=rotary
        )
        between = entering + attended
        states.append(between + layer.mlp(layer.post_attention_layernorm(between)))
        attention.append(weights)
    return Passed([*states[:-1], llama.norm(states[-1])], attention)


def exchanged(states: Tensor, directions: Tensor, lent: Tensor) -> Tensor:
    """States (sequences, tokens, width), in which some tokens have others' share of the directions' span.

    Args:
        directions: (n, width), n not more than the width.
        lent: (m, 3): a sequence, the token that is changed, and the token of the same sequence that lends its share.
    """
    rows, to, lender = lent.unbind(1)
    basis = torch.linalg.qr(directions.detach().float().T)[0].to(states.dtype)
    own = states[rows, to]
    return states.index_put((rows, to), own + ((states[rows, lender] - own) @ basis @ basis.T).to(states.dtype))
