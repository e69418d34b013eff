"""Activation patching: which states, put from one run into another, carry the answer over.

The two runs differ in one thing: two images under one question, as a counterfactual pair is, or two questions about one
image. Every layer, position and unit of a point is patched by itself, exactly; the other methods estimate the same
numbers from gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.lens import patch_recipes, patch_suffix
from vlmsteer.lens.atp import atp
from vlmsteer.lens.attribution import attribution
from vlmsteer.lens.decoder import walk
from vlmsteer.lens.patch_map import PatchMap
from vlmsteer.lens.patch_plan import Plan, Shown, plan
from vlmsteer.lens.relevance import relp
from vlmsteer.session import Session


def exact(planned: Plan, fast: bool = True) -> PatchMap:
    """Patch every site, position and unit by itself.

    Args:
        fast: start from the patched layer and position where the model allows it (`patch_suffix`); if not, or where it
            does not, every patch is a whole forward (`patch_recipes`), with the same numbers.
    """
    decoder = walk(planned.session, planned.contrast.recipient) if fast else None
    scores = patch_recipes.sweep(planned) if decoder is None else patch_suffix.sweep(planned, decoder)
    return planned.mapped(scores.double().numpy() - planned.score(planned.contrast.recipient), "exact")


METHODS: dict[str, Callable[[Plan], PatchMap]] = {
    "exact": exact, "attribution": attribution, "atp": atp, "relp": relp
}  # fmt: skip


def patch(
    session: Session,
    clean: Shown,
    corrupted: Shown,
    answers: tuple[str, str],
    point: str = "block_out",
    positions: str | Sequence[int | Sequence[int]] = "all",
    layers: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    measure: str = "logit_difference",
    direction: str = "denoise",
    method: str = "exact",
) -> PatchMap:
    """The effect of patching every layer and position of a point by itself.

    Args:
        clean, corrupted: image and question of each run.
        answers: what is right in the clean run, and in the corrupted one.
        point: from `patch_values.POINTS`, of the tower that takes in the prompt.
        positions: see `Contrast.groups`.
        layers: by default all.
        units: heads or single dimensions that are patched by themselves; by default every head at `head`, elsewhere the
            whole state.
        measure: from `patch_metrics.METRICS`.
        direction: "denoise" puts clean states into the corrupted run, "noise" corrupted states into the clean run.
        method: from `METHODS`.

    Raises:
        InputError: if an image, a question, an answer, a name or the direction cannot be used, or the prompts do not
            correspond.
        SiteError: if the model has no such point, layer, position or unit.
        ModelError: if the model does not answer in words, or the method does not know its blocks.
    """
    if method not in METHODS:
        raise InputError(f"There is no method {method!r}{did_you_mean(method, METHODS)}")
    return METHODS[method](
        plan(session, clean, corrupted, answers, point, positions, layers, units, measure, direction)
    )
