"""Several questions about one image in one training sequence.

The image's tokens come once; every question with its answer is a branch that sees the image and itself but no other
branch, with positions as if it stood there alone. This is exactly the sequence a single question has at inference, at a
third of the cost. A question asked without an image is a branch that sees only itself, and so is one whose image tokens
depend on it, because a Q-Former reads it: it carries its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from vlmsteer.training.mix import Sample
from vlmsteer.training.questions import Exchange

IGNORED = -100
PREFIX = -2  # the branch number of the shared tokens; branches are 0, 1, ... and padding is -1


class Tokens(NamedTuple):
    """One exchange as its model gets it.

    `ids` and `positions` of the prompt and the answer, (tokens,) or (tokens, axes) positions; how many `prompt` tokens
    come first; and what a Q-Former `reads` with the image, if there is one.
    """

    ids: list[int]
    positions: np.ndarray
    prompt: int
    reads: list[int] | None = None


class Packed(NamedTuple):
    """Token ids, positions, labels (the answer's tokens only), their weights and branch numbers, all (tokens,).

    An answer of n tokens weighs sqrt(n), so that captions do not drown the one-word answers. `reads` are the Q-Former's
    tokens, one array a branch with an image; positions may be (tokens, axes).
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    branches: np.ndarray
    sees_image: np.ndarray
    weights: np.ndarray
    reads: tuple[np.ndarray, ...] = ()


def chat(exchange: Exchange, processor, image_tokens: int) -> Tokens:
    """An exchange in the processor's chat format; the answer follows the prompt's last word after a space."""
    content = [{"type": "text", "text": exchange.question}]
    if exchange.image:
        content.insert(0, {"type": "image"})
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    prompt = prompt.replace(processor.image_token, processor.image_token * image_tokens)
    space = "" if prompt[-1].isspace() else " "
    ids = processor.tokenizer(f"{prompt}{space}{exchange.answer}").input_ids + [processor.tokenizer.eos_token_id]
    return Tokens(ids, np.arange(len(ids)), len(processor.tokenizer(prompt).input_ids))


def pack(
    sample: Sample, processor, image_tokens: int, tokenize: Callable[[Exchange, object, int], Tokens] = chat
) -> Packed:
    """Tokenize all exchanges of a sample around one image."""
    image_id = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    parts: list[tuple[Tokens, int, int, int, bool]] = []  # tokens, from, to, branch, whether it sees the image
    for number, exchange in enumerate(sample.exchanges):
        tokens = tokenize(exchange, processor, image_tokens)
        start = 0
        if exchange.image and tokens.reads is None:
            start = len(tokens.ids) - tokens.ids[::-1].index(image_id)
            if not any(branch == PREFIX for _, _, _, branch, _ in parts):
                parts.append((tokens, 0, start, PREFIX, True))
        parts.append((tokens, start, len(tokens.ids), number, exchange.image))
    labels, branches, sees, weights = [], [], [], []
    for tokens, start, end, branch, image in parts:
        asked = min(end, tokens.prompt) - start
        answered = end - start - asked
        labels += [IGNORED] * asked + tokens.ids[end - answered : end]
        branches += [branch] * (end - start)
        sees += [image] * (end - start)
        weights += [0.0] * asked + [answered**-0.5] * answered if answered else [0.0] * asked
    return Packed(
        np.concatenate([tokens.ids[start:end] for tokens, start, end, _, _ in parts]),
        np.concatenate([tokens.positions[start:end] for tokens, start, end, _, _ in parts]),
        np.array(labels),
        np.array(branches),
        np.array(sees),
        np.array(weights, np.float32),
        tuple(np.array(tokens.reads) for tokens, *_ in parts if tokens.reads is not None),
    )


def collate(packed: list[Packed], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded (batch, tokens) ids, positions and labels, and what each query sees, (batch, 1, tokens, tokens).

    Where branches carry their own image tokens, also what a Q-Former reads, (branches, tokens) with its mask, and the
    image that each of these branches is about, (branches,).
    """
    length = -(-max(len(item.input_ids) for item in packed) // 8) * 8

    def stack(field: str, fill: int) -> torch.Tensor:
        return _padded([getattr(item, field) for item in packed], length, fill)

    branches, sees = stack("branches", -1), stack("sees_image", 0).bool()
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = branches[:, :, None] == branches[:, None, :]
    on_prefix = (branches[:, None, :] == PREFIX) & sees[:, :, None]
    tensors = {
        "input_ids": stack("input_ids", pad_id),
        "position_ids": stack("positions", 0),
        "labels": stack("labels", IGNORED),
        "weights": stack("weights", 0),
        "visible": ((same | on_prefix) & causal)[:, None],
    }
    reads = [ids for item in packed for ids in item.reads]
    if reads:
        longest = max(map(len, reads))
        tensors["qformer_input_ids"] = _padded(reads, longest, 0)
        tensors["qformer_attention_mask"] = _padded([np.ones_like(ids) for ids in reads], longest, 0)
        tensors["image_of"] = torch.tensor([row for row, item in enumerate(packed) for _ in item.reads])
    return tensors


def _padded(rows: list[np.ndarray], length: int, fill: int) -> torch.Tensor:
    padded = [np.pad(row, [(0, length - len(row)), *[(0, 0)] * (row.ndim - 1)], constant_values=fill) for row in rows]
    return torch.from_numpy(np.stack(padded))
