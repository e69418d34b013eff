"""Eight questions with a recipe of their own each: as one batch, and one at a time. Six times as fast is the aim."""

from __future__ import annotations

import torch
from models import each, llava, prompts
from results import fastest, record

from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

ROWS, TOKENS = 8, 16


def measure(size: str) -> None:
    session = llava(size)
    layers = session.layers()
    width, generator = session.model.config.text_config.hidden_size, torch.Generator().manual_seed(0)
    recipes = [
        Recipe.of(
            Vectors("text", "block_out", {row % session.layers(): torch.randn(width, generator=generator)}),
            positions="all",
        )
        for row in range(ROWS)
    ]
    questions, none = prompts(session, ROWS, 12, 24), [None] * ROWS

    def together() -> list[str]:
        return session.ask_many(none, questions, recipes, TOKENS)

    def one_by_one() -> list[str]:
        return [session.ask(None, text, recipe, TOKENS) for text, recipe in zip(questions, recipes, strict=True)]

    apart = [session.logits([None], [text], recipe) for text, recipe in zip(questions, recipes, strict=True)]
    torch.testing.assert_close(session.logits(none, questions, recipes), torch.cat(apart), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(session.logits(none, questions), torch.cat(apart), atol=1e-2), "recipes must change it"
    assert together() == one_by_one(), "both must say the same"
    record(
        f"rows with their own recipes ({size})", fastest({"together": together, "one by one": one_by_one}), "together",
        f"LLaVA of width {width}, {layers} layers, {ROWS} rows, {TOKENS} tokens; CPU time of one thread, min of 5 "
        "interleaved",
    )  # fmt: skip


if __name__ == "__main__":
    each(measure)
