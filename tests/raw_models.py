"""Three families as transformers gives them, with plain hooks: what the methods' parity tests compare with.

Nothing here reads or steers through vlmsteer; a session only lends its model and its processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

FAMILIES = ["llava", "instructblip", "qwen2_5_vl"]
Change = Callable[[Tensor], Tensor]


def decoder(model: Any) -> nn.ModuleList:
    """The decoder's blocks."""
    kind = type(model).__name__
    return model.language_model.model.layers if "InstructBlip" in kind else model.model.language_model.layers


def eyes(model: Any) -> list[nn.Module]:
    """The vision tower's blocks that the answer depends on: LLaVA's last one is not read."""
    if "Qwen" in type(model).__name__:
        return list(model.model.visual.blocks)
    if "InstructBlip" in type(model).__name__:
        return list(model.vision_model.encoder.layers)
    return list(model.model.vision_tower.encoder.layers)[:-1]


def look(model: Any, inputs: Mapping[str, Tensor], pixels: Tensor) -> None:
    """Run the vision tower alone."""
    if "Qwen" in type(model).__name__:
        model.model.visual(pixels, grid_thw=inputs["image_grid_thw"])
    elif "InstructBlip" in type(model).__name__:
        model.vision_model(pixels)
    else:
        model.model.vision_tower(pixels)


def inputs(session: Any, image: Any, question: str, answer: str = "") -> tuple[dict[str, Any], int]:
    """What the model is called with for one question, with an answer behind it, and how many tokens the prompt has."""
    processor = session.processor
    if "InstructBlip" in type(session.model).__name__:
        prompt = question
    else:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    asked = processor(images=image, text=prompt, return_tensors="pt")
    if not answer:
        return dict(asked), asked["input_ids"].shape[1]
    space = "" if prompt[-1].isspace() else " "
    whole = dict(processor(images=image, text=prompt + space + answer, return_tensors="pt"))
    # The Q-Former reads the question, not what was answered.
    whole |= {name: value for name, value in asked.items() if name.startswith("qformer")}
    return whole, asked["input_ids"].shape[1]


@contextmanager
def outputs(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """The last output of each module, as it leaves it."""
    kept: list[Any] = [None] * len(modules)

    def keep(index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(index)) for index, module in enumerate(modules)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def changed(changes: Mapping[nn.Module, Change]) -> Iterator[None]:
    """Every output of these modules changed."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (changes[module](output[0]), *output[1:])
        return changes[module](output)

    handles = [module.register_forward_hook(hook) for module in changes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Every number equal to 1e-5 of the largest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def block_outputs(session: Any, image: Any, question: str, answer: str) -> tuple[Tensor, int]:
    """(layers, tokens, width) of prompt and answer, and how many tokens the prompt has."""
    given, prompt = inputs(session, image, question, answer)
    with torch.no_grad(), outputs(list(decoder(session.model))) as kept:
        session.model(**given)
    return torch.stack([states[0] for states in kept]), prompt
