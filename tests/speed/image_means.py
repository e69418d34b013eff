"""Means of image tokens over 64 images with 4 questions each, beside one forward a question: 4 times is the aim."""

from __future__ import annotations

import torch
from results import fastest, record

import vlmsteer
from vlmsteer import reading
from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.running import Mean

IMAGES = 64
QUESTIONS = [
    "What color is this?",
    "Is there a cat?",
    "How many objects are there in the picture?",
    "Describe this image.",
]


def main() -> None:
    torch.set_num_threads(1)
    session = vlmsteer.load("tiny-llava")
    shown = [pair.image("counterfactual") for pair in drawn_pairs("color", "learn", IMAGES)]
    images, questions = [image for image in shown for _ in QUESTIONS], QUESTIONS * IMAGES
    site = f"text.{session.layers() // 2}.block_out"

    def ours() -> torch.Tensor:
        return next(iter(reading.reduce(session, site, images, questions, positions="image").values())).mean

    def one_by_one() -> torch.Tensor:
        mean = Mean()
        for image, question in zip(images, questions, strict=True):
            with session.read(site, "image") as states:
                session.logits([image], [question])
            mean.update(states[site].float().mean(1))
        return mean.mean

    torch.testing.assert_close(ours(), one_by_one(), atol=1e-4, rtol=1e-4)
    record(
        "image-token means", fastest({"vlmsteer": ours, "a forward a question": one_by_one}), "vlmsteer",
        f"tiny-llava, one middle layer, {IMAGES} images x {len(QUESTIONS)} questions; CPU time of one thread, min of 5 "
        "interleaved",
    )  # fmt: skip


if __name__ == "__main__":
    main()
