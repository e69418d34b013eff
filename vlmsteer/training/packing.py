"""Several questions about one image in one training sequence.

The image's tokens come once; every question with its answer is a branch that sees the image and itself but no other
branch, with positions as if it stood there alone. This is exactly the sequence a single question has at inference, at a
third of the cost. A question asked without an image is a branch that sees only itself. Where image tokens depend on the
question, because a Q-Former reads it, there is nothing to share, and every question is a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    An answer of n tokens weighs sqrt(n), so that captions do not drown the one-word answers. Positions may be
    (tokens, axes); `reads` are the Q-Former's tokens, if one reads the question with the image.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    branches: np.ndarray
    sees_image: np.ndarray
    weights: np.ndarray
    reads: np.ndarray | None = None


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
) -> list[Packed]:
    """All exchanges of a sample around one image; one sequence each where a Q-Former reads the question."""
    image_id = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    asked = [(tokenize(exchange, processor, image_tokens), exchange.image) for exchange in sample.exchanges]
    if any(tokens.reads is not None for tokens, _ in asked):
        return [_sequence([(tokens, 0, len(tokens.ids), 0, image)]) for tokens, image in asked]
    parts: list[tuple[Tokens, int, int, int, bool]] = []
    for number, (tokens, image) in enumerate(asked):
        start = len(tokens.ids) - tokens.ids[::-1].index(image_id) if image else 0
        if image and not any(branch == PREFIX for _, _, _, branch, _ in parts):
            parts.append((tokens, 0, start, PREFIX, True))
        parts.append((tokens, start, len(tokens.ids), number, image))
    return [_sequence(parts)]


def _sequence(parts: list[tuple[Tokens, int, int, int, bool]]) -> Packed:
    """Parts of exchanges in a row: tokens, from, to, branch, whether it sees the image."""
    labels, branches, sees, weights = [], [], [], []
    for tokens, start, end, branch, image in parts:
        asked = min(end, tokens.prompt) - start
        answered = end - start - asked
        labels += [IGNORED] * asked + tokens.ids[end - answered : end]
        branches += [branch] * (end - start)
        sees += [image] * (end - start)
        weights += [0.0] * asked + [answered**-0.5] * answered if answered else [0.0] * asked
    reads = parts[0][0].reads
    return Packed(
        np.concatenate([tokens.ids[start:end] for tokens, start, end, _, _ in parts]),
        np.concatenate([tokens.positions[start:end] for tokens, start, end, _, _ in parts]),
        np.array(labels),
        np.array(branches),
        np.array(sees),
        np.array(weights, np.float32),
        None if reads is None else np.array(reads),
    )


def collate(packed: list[Packed], pad_id: int, images: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """Right-padded (batch, tokens) ids, positions and labels, and what each query sees, (batch, 1, tokens, tokens).

    `images` numbers the image of each sequence, one each if not given. Where a Q-Former reads the questions, also what
    it reads, (sequences with an image, tokens), with its mask, and the number of the image of each of these.
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
    read = [
        (item.reads, image)
        for item, image in zip(packed, images or range(len(packed)), strict=True)
        if item.reads is not None
    ]
    if read:
        longest = max(len(ids) for ids, _ in read)
        tensors["qformer_input_ids"] = _padded([ids for ids, _ in read], longest, 0)
        tensors["qformer_attention_mask"] = _padded([np.ones_like(ids) for ids, _ in read], longest, 0)
        tensors["image_of"] = torch.tensor([image for _, image in read])
    return tensors


def _padded(rows: list[np.ndarray], length: int, fill: int) -> torch.Tensor:
    padded = [np.pad(row, [(0, length - len(row)), *[(0, 0)] * (row.ndim - 1)], constant_values=fill) for row in rows]
    return torch.from_numpy(np.stack(padded))
