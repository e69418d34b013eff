"""Going back and steering where probes find the answer untrue: FASB (Cheng et al., NeurIPS 2025, arXiv 2508.17621).

Every so many tokens the mean of K probes of attention heads says how likely what is being written is true. Below a
threshold these tokens are dropped and written again with the heads pushed towards the truth, the more so the less
likely it was; this happens once in an answer, and the push stays on to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmsteer.actions import compile_actions
from vlmsteer.decoding.watch import Watched, opened
from vlmsteer.errors import RecipeError
from vlmsteer.hooks import Run
from vlmsteer.recipe import Edit, Recipe, Rule
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

if TYPE_CHECKING:
    from vlmsteer.session import Session


class Probes:
    """A rule's probes: `weight` and `push` (heads, head_dim), `bias` (heads,), `places` (heads, 2): layer and head."""

    def __init__(self, rule: Rule) -> None:
        self.weight, self.bias, self.push = (rule.tensors[name].float() for name in ("weight", "bias", "push"))
        self.places: list[tuple[int, int]] = [tuple(place) for place in rule.tensors["places"].tolist()]
        self.sites = [Site("text", layer, "head") for layer in sorted({layer for layer, _ in self.places})]

    def true(self, watched: Watched) -> float:
        """The mean probability of "true" at the last token."""
        states = {site.layer: watched.state(site).cpu() for site in self.sites}
        read = torch.stack([states[layer][head] for layer, head in self.places])
        return float(((read * self.weight).sum(-1) + self.bias).sigmoid().mean())

    def edit(self, heads: int, strength: float) -> Edit:
        """The push at the last token, all heads but the probed ones left alone."""
        layers: dict[int, Tensor] = {}
        for (layer, head), push in zip(self.places, self.push, strict=True):
            layers.setdefault(layer, torch.zeros(heads, len(push)))[head] = push
        flat = {layer: vectors.flatten() for layer, vectors in layers.items()}
        return Edit(Vectors("text", "head", flat), "add", strength, "last")


def write(
    session: Session,
    image: Any,
    question: str,
    recipe: Recipe | None,
    contrasts: Sequence[Rule],
    rule: Rule,
    limit: int,
) -> Iterator[list[int]]:
    """The tokens so far, after each that is written; some of them may be gone the next time.

    The rule's settings are `back` (tokens), `threshold`, and `strength`, which the rule's own strength multiplies.
    The first token of an answer comes from the prompt, which is not read again, and stays the same.
    """
    probes, back, ends = Probes(rule), int(rule.settings["back"]), set(session.ends.tolist())
    if any(site not in session.taps for site in probes.sites) or back < 1:
        raise RecipeError(f"The probes read {', '.join(map(str, probes.sites))}, every {back} tokens; this cannot be.")
    written: list[int] = []
    run: Run | None = None
    with opened(session, image, question, recipe, contrasts, probes.sites) as watched:
        while True:
            token = int(watched.logits.argmax())
            written.append(token)
            yield list(written)
            if token in ends or len(written) == limit:
                return
            watched.push(token, run)
            if run is not None or len(written) % back:
                continue
            true = probes.true(watched)
            if true < rule.settings["threshold"]:
                run = _pushed(session, watched, probes, rule.strength * rule.settings["strength"] * (1 - true))
                kept = max(1, len(written) - back)  # the last of them is read again, with the push
                watched.back(len(written) - kept + 1)
                del written[kept:]
                watched.push(written[-1], run)


def _pushed(session: Session, watched: Watched, probes: Probes, strength: float) -> Run:
    """What acts already, and the push."""
    run, heads = watched.stream.run, session.taps[probes.sites[0]].heads or 1
    extra = Recipe((probes.edit(heads, strength),))
    found, _ = compile_actions(session.taps, extra if run.rows is None else [extra])
    actions = {site: [*run.actions.get(site, ()), *found.get(site, ())] for site in {*run.actions, *found}}
    return replace(run, actions=actions)
