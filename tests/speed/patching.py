"""Exact patching beside one hook and one forward a site: at least 6.7 times as fast is the aim, over an image 10 times.

`small` is a random Llama of width 512 with 8 layers and 32,000 words in a LLaVA with 49 image tokens, patched at 128
sites: all layers at the last 16 tokens, and at 16 tokens spread over image and question. The image's grid is patched in
LLaVAs at tiny-llava's width with 16, 49 and 256 image tokens (of these, every fifth row), at all layers. A sequential
forward takes the same time at every site, so that time is taken at some sites only, where the results are compared.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from models import random_llava
from PIL import Image
from results import record

from vlmsteer.lens.patch import exact
from vlmsteer.lens.patch_plan import Plan, plan

SMALL = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32000,
}  # fmt: skip
QUESTION, REPEATS, TIMED = "Answer with one word. What color is this strawberry?", 5, 16


def main() -> None:
    torch.set_num_threads(1)
    session = random_llava(SMALL, 7, tied=False)
    one = planned(session, "all")
    count = len(one.contrast.recipient)
    spread = np.linspace(int(one.contrast.recipient.shown[0]), count - 1, 16).astype(int).tolist()
    measure("patching, small, the last 16 tokens", session, list(range(count - 16, count)))
    measure("patching, small, 16 tokens over image and question", session, spread)
    for side, step in ((4, 1), (7, 1), (16, 5)):
        grid = random_llava({}, side, tied=False)
        shown = planned(grid, "last").contrast.recipient.shown.view(side, side)[::step].flatten().tolist()
        rows = "" if step == 1 else f", every {step}th row of it"
        measure(f"patching a {side} x {side} image{rows}", grid, shown)


def planned(session: Any, positions: Any) -> Plan:
    """Two images of noise under one question."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 84, 84, 3), dtype=np.uint8)
    clean, corrupted = ((Image.fromarray(image), QUESTION) for image in pixels)
    return plan(session, clean, corrupted, ("red", "green"), positions=positions)


def sequential(one: Plan, sites: list[tuple[int, int]]) -> np.ndarray:
    """One forward hook and one forward of the whole model a site, for the last token's logits."""
    session, pair = one.session, one.contrast
    blocks = session.model.model.language_model.layers
    layout = session.encoder.encode([pair.recipient.image], [pair.recipient.question]).whole(session.device)
    found = []
    for number, group in sites:
        site, (position,) = one.sites[number], one.groups[group]
        new = pair.donor.states[site][position]

        def put(_: Any, __: Any, states: torch.Tensor, position: int = position, new: torch.Tensor = new) -> Any:
            changed = states.clone()
            changed[0, position] = new
            return changed

        handle = blocks[site.layer].register_forward_hook(put)
        with torch.no_grad():
            logits = session.model(**layout.inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
        handle.remove()
        found.append(float(one.metric(logits)))
    return np.array(found)


def measure(row: str, session: Any, positions: Any) -> None:
    """Compare the results, then time both, interleaved."""
    one = planned(session, positions)
    total = one.shape[0] * one.shape[1]
    sites = [divmod(int(cell), one.shape[1]) for cell in np.linspace(0, total - 1, TIMED)]
    base = one.score(one.contrast.recipient)
    ours = exact(one).effects
    theirs = sequential(one, sites) - base
    worst = np.abs(theirs - [ours[site] for site in sites]).max()
    assert worst < 1e-5, f"{row}: results differ by {worst}"
    seconds = {"sequential hooks": float("inf"), "exact": float("inf")}
    for _ in range(REPEATS):
        start = time.process_time()
        sequential(one, sites)
        seconds["sequential hooks"] = min(seconds["sequential hooks"], (time.process_time() - start) * total / TIMED)
        start = time.process_time()
        exact(planned(session, positions))  # with both runs read anew
        seconds["exact"] = min(seconds["exact"], time.process_time() - start)
    rates = ", ".join(f"{name} {total / value:.0f} sites/s" for name, value in seconds.items())
    record(
        row, seconds, "exact",
        f"{total} sites, {len(one.contrast.recipient)} prompt tokens, {rates}; results within {worst:.0e} at {TIMED} "
        f"sites, where the sequential forwards were timed; CPU time of one thread, min of {REPEATS} interleaved",
    )  # fmt: skip


if __name__ == "__main__":
    main()
