"""Avoiding tokens that lean on one earlier token only, after OPERA (Huang et al., CVPR 2024, arXiv 2311.17911).

Models that make things up attend to a few summary tokens of their own answer, step after step. Each of the likeliest
candidates is read, and pays for the column of attention over the answer that has been high ever since its token was
written; where one column stays the highest too often, the answer is taken back to it and another candidate is written.
Greedy here, where OPERA keeps beams, and the payment is the logarithm of the column's product, which cannot overflow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.decoding import contrast
from vlmsteer.errors import RecipeError
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.streams import Stream

if TYPE_CHECKING:
    from vlmsteer.session import Session


def column(weights: Sequence[Tensor], scale: float, window: int) -> tuple[float, int]:
    """The largest product of a column of attention, as a logarithm of at least 0, and which column it is.

    Args:
        weights: for each token of the answer its weights (tokens up to it,) over the answer, itself included.
        scale: what every weight is multiplied with.
        window: how many last tokens count, as rows and as columns.
    """
    first = max(0, len(weights) - window)
    sums = torch.zeros(len(weights) - first)
    for row in weights[first:]:
        sums[: len(row) - first] += (scale * row[first:].float().clamp(min=1e-9)).log()
    best = int(sums.argmax())
    return max(0.0, float(sums[best])), first + best


def write(
    session: Session,
    image: Any,
    question: str,
    recipe: Recipe | None,
    contrasts: Sequence[Rule],
    rule: Rule,
    limit: int,
) -> Iterator[list[int]]:
    """The tokens so far, after each that is written; some of them may be gone the next time.

    The rule's settings are `candidates`, `scale`, `weight` (of the payment, multiplied by the rule's strength),
    `window`, `repeats` (how often a column is the highest before the answer goes back to it) and `max_rollbacks`.

    Raises:
        RecipeError: if the model's attention gives no weights.
    """
    _check(session)
    settings, ends = rule.settings, set(session.ends.tolist())
    price, left = settings["weight"] * rule.strength, int(settings["max_rollbacks"])
    written: list[int] = []
    weights: list[Tensor] = []
    columns: list[int] = []
    before: list[Tensor] = []  # the logits that each token was chosen by
    tried: list[set[int]] = []
    with contrast.opened(session, [image], [question], recipe, contrasts) as stream:
        main = stream.main if isinstance(stream, contrast.Contrasted) else stream
        logits = stream.logits[0].float()
        while True:
            if len(before) == len(written):
                before.append(logits)
                tried.append(set())
            open_ = before[-1].clone()
            open_[list(tried[-1])] = -torch.inf
            values, tokens = open_.log_softmax(-1).topk(min(int(settings["candidates"]), len(open_)))
            stream.select(torch.zeros(len(tokens), dtype=torch.long, device=tokens.device))
            rows = _attend(main, tokens)[:, -len(written) - 1 :]
            if main is not stream:
                stream.follow(tokens)  # pyright: ignore[reportAttributeAccessIssue]
            found = [column([*weights, row], settings["scale"], settings["window"]) for row in rows]
            paid = values.cpu() - price * torch.tensor([product for product, _ in found])
            best = int(paid.argmax())
            stream.select(torch.tensor([best], device=tokens.device))
            written.append(int(tokens[best]))
            weights.append(rows[best])
            columns.append(found[best][1])
            yield list(written)
            if written[-1] in ends or len(written) == limit:
                return
            logits = stream.logits[0].float()
            (summary, repeats), place = Counter(columns[-settings["window"] :]).most_common(1)[0], 0
            place = summary + 1
            if left and repeats >= settings["repeats"] and place < len(written):
                left -= 1
                tried[place].add(written[place])
                stream.back(len(written) - place)
                for kept in (written, weights, columns):
                    del kept[place:]
                del before[place + 1 :], tried[place + 1 :]


def _check(session: Session) -> None:
    if getattr(session.model.config.text_config, "_attn_implementation", None) != "eager" or session.encoder.start:
        raise RecipeError(
            "The rule 'overtrust' needs attention weights of a decoder that reads the prompt itself; call "
            "session.model.set_attn_implementation('eager') after loading such a model, or leave the rule out."
        )


def _attend(stream: Stream, tokens: Tensor) -> Tensor:
    """Take in one token (rows,) a row; gives its attention (rows, columns) in the last layer, the most of all heads."""
    outputs = stream.take(tokens, output_attentions=True)
    return outputs.attentions[-1][:, :, -1].amax(1).float().cpu()
