"""One question under many recipes, as branches of one row.

All branches see the same keys and values of the prompt, so these are kept once, whatever the number of recipes: each
branch is one token a step, at the same position, that sees the prompt and its own earlier tokens. Copying the prompt
for each recipe would take most of a sweep's time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.prompts import Layout
from vlmsteer.runs import Run

if TYPE_CHECKING:
    from vlmsteer.session import Session

MASKED = ("eager", "sdpa")  # attention implementations that take a mask over queries and keys


def possible(model: Any, cache: Any) -> bool:
    """True if `cache` holds a prompt for a model whose attention can be told what each new token sees."""
    layers = getattr(cache, "layers", None)
    if not layers or any(getattr(layer, "is_sliding", False) for layer in layers):
        return False
    return model.config.get_text_config()._attn_implementation in MASKED


def answer(session: Session, last: Layout, cache: Any, run: Run, count: int, limit: int) -> Tensor:
    """Greedy tokens (rows * count, steps), with padding after an answer's end.

    Args:
        last: the last token of each prompt; `cache` holds what comes before it.
        run: actions for rows * count rows, those of each prompt one after the other.
        limit: how many steps at most.
    """
    prompt, device, padding = last.inputs["attention_mask"], last.positions.device, session.tokenizer.pad_token_id
    owners = torch.arange(len(prompt) * count, device=device).view(-1, count)
    tokens, positions = last.inputs["input_ids"].repeat(1, count), last.positions.repeat_interleave(count, 1)
    sees = prompt[:, None, :-1].bool().expand(-1, count, -1)
    written = torch.full((owners.numel(), limit), padding, device=device)
    finished = torch.zeros(owners.numel(), dtype=torch.bool, device=device)
    for step in range(limit):
        sees = _with_itself(sees)
        outputs = _step(session, Layout({"input_ids": tokens}, positions, last.prompt), sees, run, owners, cache)
        cache, tokens = outputs.past_key_values, outputs.logits.argmax(-1).to(device)
        tokens = tokens.masked_fill(finished[owners], padding)
        written[owners, step] = tokens
        finished[owners] |= torch.isin(tokens, session.ends.to(device))
        if bool(finished.all()):
            return written[:, : step + 1]
        positions = positions + 1
        going = (~finished[owners]).any(1).nonzero().flatten()
        if 2 * len(going) > len(owners):
            going = torch.arange(len(owners), device=device)
        else:
            cache.batch_select_indices(going)
        # Of each row the branches that go on come first; where it has fewer than others, finished ones fill up.
        width = int((~finished[owners[going]]).sum(1).max())
        order = finished[owners[going]].int().argsort(dim=1, stable=True)[:, :width]
        owners, tokens, positions, sees = (kept[going[:, None], order] for kept in (owners, tokens, positions, sees))
    return written


def first(session: Session, last: Layout, cache: Any, run: Run, count: int) -> Tensor:
    """(rows, count, vocabulary) logits of the next token; the arguments are those of `answer`."""
    prompt = last.inputs["attention_mask"]
    owners = torch.arange(len(prompt) * count, device=last.positions.device).view(-1, count)
    tokens, positions = last.inputs["input_ids"].repeat(1, count), last.positions.repeat_interleave(count, 1)
    sees = _with_itself(prompt[:, None, :-1].bool().expand(-1, count, -1))
    outputs = _step(session, Layout({"input_ids": tokens}, positions, last.prompt), sees, run, owners, cache)
    return outputs.logits.to(session.device)


def _with_itself(sees: Tensor) -> Tensor:
    """What each branch sees, and its own new token."""
    itself = torch.eye(sees.shape[1], dtype=torch.bool, device=sees.device)
    return torch.cat([sees, itself.expand(len(sees), -1, -1)], 2)


def _step(session: Session, layout: Layout, sees: Tensor, run: Run, owners: Tensor, cache: Any) -> Any:
    """One token of every branch: `sees` (rows, branches, columns) is what it sees, `owners` whose it is."""
    hidden = torch.zeros(sees.shape, dtype=session.model.dtype, device=sees.device)
    hidden.masked_fill_(~sees, torch.finfo(hidden.dtype).min)
    inputs = {**layout.inputs, "attention_mask": hidden[:, None], "logits_to_keep": sees.shape[1]}
    return session.forward(layout._replace(inputs=inputs), replace(run, owners=owners), cache)
