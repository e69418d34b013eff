"""One question with one steered site, against plain `generate` on the same model: at most 1.05 times is the aim."""

from __future__ import annotations

import torch
from results import fastest, record

import vlmsteer
from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

TOKENS = 24


def main() -> None:
    torch.set_num_threads(1)
    session = vlmsteer.load("tiny-llava")
    image = drawn_pairs("color", "test", 1)[0].image("counterfactual")
    layout = session.encoder.encode([image], ["Describe this image."]).whole(session.device)
    width = session.taps[session.sites[-1]].width
    none = Recipe.of(Vectors("text", "block_out", {3: torch.zeros(width)}))
    arguments = dict(max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)

    def plain() -> torch.Tensor:
        return session.model.generate(**layout.inputs, **arguments)

    def steered() -> torch.Tensor:
        with session.apply(none):
            return session.model.generate(**layout.inputs, **arguments)

    assert torch.equal(plain(), steered()), "a vector of zeros must not change the answer"
    seconds = fastest({"plain": plain, "steered": steered})
    record("one steered site", seconds, "plain", f"tiny-llava, {TOKENS} new tokens, batch 1, one thread, min of 7 x 5")


if __name__ == "__main__":
    main()
