"""LLaVA-1.5-7B and Qwen2.5-VL-7B at full size with random weights, made on a device: steering, questions, sweeps.

    python tests/speed/device.py --device cuda

Without `--device`, on a machine with CUDA, that is what it measures on; without CUDA it says so and measures nothing.
Tokenizers are those of the bundled models. Time is the clock's, the device waited for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from results import record
from transformers import LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

from vlmsteer.recipe import Recipe
from vlmsteer.registry import FAMILIES
from vlmsteer.session import Session
from vlmsteer.training import tiny_llava, tiny_qwen_vl
from vlmsteer.vectors import Vectors

TOKENS, REPEATS = 64, 5
TEXT: dict[str, dict[str, int]] = {
    "llava": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096, "head_dim": 128,
    },
    "qwen2_5_vl": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    },
}  # fmt: skip
VISION: dict[str, dict[str, int]] = {
    "llava": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14,
    },
    "qwen2_5_vl": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None)
    parser.add_argument("--small", action="store_true", help="the bundled models' sizes, to try the file itself")
    given = parser.parse_args()
    if given.device is None:
        print("There is no CUDA device here, so the 7B models are not measured; give --device to insist.")
        return
    for family in TEXT:
        measure(made(family, given.device, given.small), given.device)
        if given.device.startswith("cuda"):
            torch.cuda.empty_cache()


def made(family: str, device: str, small: bool) -> Session:
    """A session of a family with random weights."""
    kind: Any = LlavaForConditionalGeneration if family == "llava" else Qwen2_5_VLForConditionalGeneration
    seed, processor = (tiny_llava if family == "llava" else tiny_qwen_vl).build()
    config: Any = seed.config
    if not small:
        for part, numbers in ((config.text_config, TEXT[family]), (config.vision_config, VISION[family])):
            for name, number in numbers.items():
                setattr(part, name, number)
    if family == "llava" and not small:
        config.image_seq_length = 576
        setattr(processor, "patch_size", 14)  # noqa: B010  of a processor of two families, as a type checker sees it
        processor.image_processor.size = {"shortest_edge": 336}
        processor.image_processor.crop_size = {"height": 336, "width": 336}
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = kind(config).eval()
    torch.set_default_dtype(torch.float32)
    session = Session(model, processor, f"{family}{'' if small else '-7b'} with random weights", FAMILIES.load(family))
    session.ends = session.ends[:0]
    return session


def measure(session: Session, device: str) -> None:
    layers = session.layers()
    width = session.model.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (336, 336, 3), generator=generator, dtype=torch.uint8)
    image, question = Image.fromarray(pixels.numpy()), "What color is this?"
    vectors = {layer: 0.1 * torch.randn(width, generator=generator) for layer in range(layers)}
    every = Recipe.of(Vectors("text", "block_out", vectors), positions="all")
    last = Recipe.of(Vectors("text", "block_out", vectors))
    asked, strengths = [question] * 6, [-2.0, -1.0, 1.0, 2.0]

    def apart() -> None:
        for text in asked:
            session.prefixes.clear()
            session.ask(image, text, None, 8)

    def fresh(run: Callable[[], Any]) -> Callable[[], Any]:
        def measured() -> Any:
            session.prefixes.clear()
            return run()

        return measured

    arms: dict[str, Callable[[], Any]] = {
        "one answer": fresh(lambda: session.ask(image, question, None, TOKENS)),
        "one answer, every layer steered": fresh(lambda: session.ask(image, question, every, TOKENS)),
        "one answer, image known": lambda: session.ask(image, question, None, TOKENS),
        "six questions, together": fresh(lambda: session.ask_many([image] * 6, asked, None, 8)),
        "six questions, apart": apart,
        "sweep": fresh(lambda: session.sweep([image], [question], last, strengths)),
        "a forward": lambda: session.logits([image], [question]),
    }
    best = dict.fromkeys(arms, float("inf"))
    for repeat in range(REPEATS + 1):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            if repeat:
                best[name] = min(best[name], time.perf_counter() - start)
    record(
        f"{session.name} on {device}", best, "one answer",
        f"{layers} layers, {TOKENS} tokens, sweep of {layers} x {len(strengths)} cells; min of {REPEATS} interleaved",
    )  # fmt: skip


if __name__ == "__main__":
    main()
