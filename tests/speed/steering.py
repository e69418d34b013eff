"""Generation with a vector added at one layer and at every layer, beside plain generation by the same model.

At every layer at most 1.06 times (tiny) and 1.02 times (small) is the aim, and 25 microseconds a layer and token.
Hand-written hooks and installed libraries add the same vectors; all must give the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from models import batch, each, llava, prompts, twin
from results import RIVALS, fastest, record, rival

from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

TOKENS = 24


def measure(size: str) -> None:
    session = llava(size)
    layers, width = session.layers(), session.model.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    vectors = {layer: 0.05 * torch.randn(width, generator=generator) for layer in range(layers)}
    every = Recipe.of(Vectors("text", "block_out", vectors), positions="all")
    one = every.narrowed([layers // 2])
    model, inputs = twin(session), batch(session, prompts(session, 1, 24, 24))
    arguments: dict[str, Any] = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}

    def plain() -> torch.Tensor:
        return session.model.generate(**inputs, **arguments)

    def steered(recipe: Recipe) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with session.apply(recipe):
                return session.model.generate(**inputs, **arguments)

        return run

    def hooked() -> torch.Tensor:
        with ExitStack() as stack:
            for number, layer in enumerate(session.model.model.language_model.layers):
                push = lambda module, given, output, vector=vectors[number]: output + vector  # noqa: E731
                stack.callback(layer.register_forward_hook(push).remove)
            return session.model.generate(**inputs, **arguments)

    arms: dict[str, Callable[[], Any]] = {
        "plain": plain, "one site": steered(one), "every layer": steered(every), "hand-written hooks": hooked,
        "plain, language model": lambda: model.generate(**inputs, **arguments),
    }  # fmt: skip
    tokenizer, ids = session.tokenizer, inputs["input_ids"]
    if pyvene := rival("pyvene"):
        arms["pyvene"] = with_pyvene(pyvene, twin(session), inputs, vectors, arguments)
    if lens := rival("transformer_lens"):
        arms["transformer-lens"] = with_lens(lens, tokenizer, twin(session), ids, vectors)
    if nnsight := rival("nnsight"):
        arms["nnsight"] = with_nnsight(nnsight, tokenizer, twin(session), ids, vectors, arguments)
    wanted = hooked()
    assert torch.equal(arms["every layer"](), wanted), "both must give the same tokens"
    assert not torch.equal(plain(), wanted), "the vectors must change something"
    for name in RIVALS:
        if name in arms:
            try:
                assert torch.equal(arms[name](), wanted), "other tokens"
            except Exception as error:
                print(f"{name} is left out: {type(error).__name__}: {str(error)[:200]}")
                del arms[name]
    seconds = fastest(arms, 7)
    each = 1e6 * (seconds["every layer"] - seconds["plain"]) / (layers * TOKENS)
    record(
        f"steered generation ({size})", seconds, "plain",
        f"LLaVA of width {width}, {layers} layers, {TOKENS} new tokens, batch 1; {each:.0f} us a layer and token; the "
        "libraries run the language model alone; CPU time of one thread, min of 7 interleaved",
    )  # fmt: skip
    print(f"{size}: {each:.1f} us a layer and token")


def with_pyvene(
    pyvene: Any, model: Any, inputs: dict[str, torch.Tensor], vectors: dict[int, torch.Tensor], arguments: Any
) -> Callable[[], torch.Tensor]:
    """Interventions at every layer, in the prompt and in every step."""
    edits = [
        {
            "component": f"model.layers[{number}].output",
            "intervention": lambda base, source, vector=vector: base + vector,
        }
        for number, vector in vectors.items()
    ]
    steered = pyvene.IntervenableModel(edits, model=model)
    return lambda: steered.generate(inputs, intervene_on_prompt=True, **arguments)[1]


def with_lens(
    lens: Any, tokenizer: Any, model: Any, ids: torch.Tensor, vectors: dict[int, torch.Tensor]
) -> Callable[[], torch.Tensor]:
    """Its hooks, and its own loop with a cache."""
    bridge = lens.TransformerBridge.boot_transformers(
        "LlamaForCausalLM", hf_model=model, tokenizer=tokenizer, device="cpu"
    )
    hooks = [(f"blocks.{n}.hook_out", lambda x, hook, vector=vector: x + vector) for n, vector in vectors.items()]

    def run() -> torch.Tensor:
        with bridge.hooks(fwd_hooks=hooks):
            return bridge.generate(
                ids, max_new_tokens=TOKENS, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False,
                use_past_kv_cache=True,
            )  # fmt: skip

    return run


def with_nnsight(
    nnsight: Any, tokenizer: Any, model: Any, ids: torch.Tensor, vectors: dict[int, torch.Tensor], arguments: Any
) -> Callable[[], torch.Tensor]:
    """Its generation, with an edit of every layer in every step."""
    traced = nnsight.LanguageModel(model, tokenizer=tokenizer)

    def run() -> torch.Tensor:
        with traced.generate(ids, **arguments) as tracer:
            out = nnsight.save([])
            with tracer.iter[0:TOKENS]:
                for number, vector in vectors.items():
                    traced.model.layers[number].output = traced.model.layers[number].output + vector
            out.append(tracer.result)
        return out[0]

    return run


if __name__ == "__main__":
    each(measure)
