"""Several questions about one image in one training sequence.

The image's tokens come once; every question with its answer is a branch that sees the image and itself but no other
branch, with positions as if it stood there alone. This is exactly the sequence a single question has at inference, at a
third of the cost. A question asked without an image is a branch that sees only itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vlmsteer.training.mix import Sample

IGNORED = -100
PREFIX = -2  # the branch number of the shared tokens; branches are 0, 1, ... and padding is -1


class Packed(NamedTuple):
    """Token ids, positions, labels (the answer's tokens only), their weights and branch numbers, all (tokens,).

    An answer of n tokens weighs sqrt(n), so that captions do not drown the one-word answers.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    branches: np.ndarray
    sees_image: np.ndarray
    weights: np.ndarray


def pack(sample: Sample, processor, image_tokens: int) -> Packed:
    """Tokenize all exchanges of a sample around one image."""
    tokenizer = processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids(processor.image_token)
    ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    branches: list[int] = []
    sees: list[bool] = []
    weights: list[float] = []
    for number, exchange in enumerate(sample.exchanges):
        content = [{"type": "text", "text": exchange.question}]
        if exchange.image:
            content.insert(0, {"type": "image"})
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        prompt = prompt.replace(processor.image_token, processor.image_token * image_tokens)
        prompt_ids = tokenizer(prompt).input_ids
        full = tokenizer(f"{prompt} {exchange.answer}").input_ids + [tokenizer.eos_token_id]
        start = 0
        if exchange.image:
            start = len(prompt_ids) - prompt_ids[::-1].index(image_id)
            if not ids or PREFIX not in branches:
                ids += full[:start]
                positions += range(start)
                labels += [IGNORED] * start
                branches += [PREFIX] * start
                sees += [True] * start
                weights += [0.0] * start
        ids += full[start:]
        positions += range(start, len(full))
        labels += [IGNORED] * (len(prompt_ids) - start) + full[len(prompt_ids) :]
        branches += [number] * (len(full) - start)
        sees += [exchange.image] * (len(full) - start)
        weights += [(len(full) - len(prompt_ids)) ** -0.5] * (len(full) - start)
    return Packed(
        np.array(ids),
        np.array(positions),
        np.array(labels),
        np.array(branches),
        np.array(sees),
        np.array(weights, np.float32),
    )


def collate(packed: list[Packed], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded (batch, tokens) ids, positions and labels, and what each query sees, (batch, 1, tokens, tokens)."""
    length = -(-max(len(item.input_ids) for item in packed) // 8) * 8

    def stack(field: str, fill: int) -> torch.Tensor:
        rows = [
            np.pad(getattr(item, field), (0, length - len(item.input_ids)), constant_values=fill) for item in packed
        ]
        return torch.from_numpy(np.stack(rows))

    branches, sees = stack("branches", -1), stack("sees_image", 0).bool()
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = branches[:, :, None] == branches[:, None, :]
    on_prefix = (branches[:, None, :] == PREFIX) & sees[:, :, None]
    return {
        "input_ids": stack("input_ids", pad_id),
        "position_ids": stack("positions", 0),
        "labels": stack("labels", IGNORED),
        "weights": stack("weights", 0),
        "visible": ((same | on_prefix) & causal)[:, None],
    }
