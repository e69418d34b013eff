"""All layers x ten strengths after an image of 576 tokens, beside one forward a cell: 20 times as fast is the aim."""

from __future__ import annotations

import torch
from models import llava
from PIL import Image
from results import fastest, record

from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

STRENGTHS = [float(number) for number in range(-5, 6) if number]


def main() -> None:
    torch.set_num_threads(1)
    session = llava("tiny", side=336, patch=14)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (336, 336, 3), generator=generator, dtype=torch.uint8)
    image, question = Image.fromarray(pixels.numpy()), "What color is this?"
    width, layers = session.model.config.text_config.hidden_size, session.layers()
    vectors = {layer: 0.1 * torch.randn(width, generator=generator) for layer in range(layers)}
    recipe = Recipe.of(Vectors("text", "block_out", vectors))

    def together() -> torch.Tensor:
        session.prefixes.clear()  # the image is read, too
        return session.sweep([image], [question], recipe, STRENGTHS).logits[0]

    def one_by_one() -> torch.Tensor:
        cells = [recipe.narrowed([layer]).scaled(by) for layer in range(layers) for by in STRENGTHS]
        found = torch.cat([session.logits([image], [question], cell) for cell in cells])
        return found.unflatten(0, (layers, -1))

    torch.testing.assert_close(together(), one_by_one(), atol=1e-4, rtol=1e-4)
    record(
        "sweep over layers and strengths", fastest({"sweep": together, "a forward a cell": one_by_one}), "sweep",
        f"LLaVA of width {width}, 576 image tokens, {layers} layers x {len(STRENGTHS)} strengths, with the prefill; "
        "CPU time of one thread, min of 5 interleaved",
    )  # fmt: skip


if __name__ == "__main__":
    main()
