"""Reading the last token's residual stream at every layer, and at one layer, of prompts of very different lengths.

Against hand-written hooks over the same batches in the order given, without the vocabulary projection, and against
libraries that are installed beside us, on one language model. All start from the same words, tokens included.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from models import batch, each, llava, prompts, twin
from results import fastest, record, rival

from vlmsteer import reading
from vlmsteer.sites import Site

COUNT, BATCH = 64, 16


def measure(size: str) -> None:
    session = llava(size)
    model, layers, questions = twin(session), session.layers(), prompts(session, COUNT)
    parts = [questions[first : first + BATCH] for first in range(0, COUNT, BATCH)]

    def ours(chosen: str) -> torch.Tensor:
        order = reading.by_length(session, [None] * COUNT, questions)
        found = []
        for _, states in reading.batches(session, chosen, [None] * COUNT, [questions[i] for i in order]):
            found.append(torch.stack([states[site] for site in states.sites], 1))
        return torch.cat(found)[torch.tensor(order).argsort()]

    def hooked() -> torch.Tensor:
        found = []
        for part in parts:
            kept: list[torch.Tensor] = []
            with ExitStack() as stack:
                for layer in model.model.layers:
                    stack.callback(layer.register_forward_hook(partial(keep_last, kept)).remove)
                model.model(**batch(session, part), use_cache=False)
            found.append(torch.stack(kept, 1))
        return torch.cat(found)

    arms: dict[str, Callable[[], torch.Tensor]] = {
        "hand-written hooks": hooked,
        "vlmsteer": lambda: ours("text.*.block_out"),
    }
    if pyvene := rival("pyvene"):
        arms["pyvene"] = with_pyvene(pyvene, session, twin(session), parts)
    if lens := rival("transformer_lens"):
        arms["transformer-lens"] = with_lens(lens, session, twin(session), parts)
    if nnsight := rival("nnsight"):
        arms["nnsight"] = with_nnsight(nnsight, session, twin(session), parts)
    wanted = hooked()
    for name, run in list(arms.items()):
        try:
            torch.testing.assert_close(run(), wanted, atol=1e-4, rtol=1e-4)
        except Exception as error:
            if name in ("hand-written hooks", "vlmsteer"):
                raise
            print(f"{name} is left out: {type(error).__name__}: {str(error)[:200]}")
            del arms[name]
    middle = Site("text", layers // 2, "block_out")
    torch.testing.assert_close(ours(str(middle))[:, 0], wanted[:, layers // 2], atol=1e-4, rtol=1e-4)
    arms["vlmsteer, one middle layer"] = lambda: ours(str(middle))
    record(
        f"last-token states, all layers ({size})", fastest(arms), "hand-written hooks",
        f"Llama of width {session.model.config.text_config.hidden_size}, {layers} layers, {COUNT} prompts of 4 to 64 "
        f"words in batches of {BATCH}; CPU time of one thread, min of 5 interleaved",
    )  # fmt: skip


def keep_last(kept: list[torch.Tensor], module: Any, given: Any, output: torch.Tensor) -> None:
    kept.append(output[:, -1].clone())


def with_pyvene(pyvene: Any, session: Any, model: Any, parts: list[list[str]]) -> Callable[[], torch.Tensor]:
    """Interventions at every layer that keep what passes."""
    kept: list[torch.Tensor] = []

    def keep(base: torch.Tensor, source: Any) -> torch.Tensor:
        kept.append(base[:, -1].clone())
        return base

    places = [f"model.layers[{number}].output" for number in range(len(model.model.layers))]
    watched = pyvene.IntervenableModel([{"component": place, "intervention": keep} for place in places], model=model)

    def run() -> torch.Tensor:
        found = []
        for part in parts:
            kept.clear()
            watched(batch(session, part))
            found.append(torch.stack(kept, 1))
        return torch.cat(found)

    return run


def with_lens(lens: Any, session: Any, model: Any, parts: list[list[str]]) -> Callable[[], torch.Tensor]:
    """Its cache, filtered to the residual streams."""
    bridge = lens.TransformerBridge.boot_transformers(
        "LlamaForCausalLM", hf_model=model, tokenizer=session.tokenizer, device="cpu"
    )
    names = [f"blocks.{number}.hook_out" for number in range(session.layers())]

    def run() -> torch.Tensor:
        found = []
        for part in parts:
            inputs = batch(session, part)
            _, cache = bridge.run_with_cache(
                inputs["input_ids"], attention_mask=inputs["attention_mask"], names_filter=lambda name: name in names
            )
            found.append(torch.stack([cache[name][:, -1] for name in names], 1))
        return torch.cat(found)

    return run


def with_nnsight(nnsight: Any, session: Any, model: Any, parts: list[list[str]]) -> Callable[[], torch.Tensor]:
    """Its trace, stopped behind the last layer."""
    traced = nnsight.NNsight(model)

    def run() -> torch.Tensor:
        found = []
        for part in parts:
            inputs = batch(session, part)
            with traced.trace(**inputs, use_cache=False) as tracer:
                kept = nnsight.save([layer.output[:, -1] for layer in traced.model.layers])
                tracer.stop()
            found.append(torch.stack(list(kept), 1))
        return torch.cat(found)

    return run


if __name__ == "__main__":
    each(measure)
