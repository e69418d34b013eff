"""What is to be patched between which runs, and how the answer is measured: checked and read once, for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmsteer.errors import SiteError, did_you_mean
from vlmsteer.lens.contrast import Contrast, contrast
from vlmsteer.lens.patch_map import PatchMap
from vlmsteer.lens.patch_metrics import Metric, metric
from vlmsteer.lens.patch_values import POINTS, needed
from vlmsteer.lens.prompt_states import PromptStates, read_prompt
from vlmsteer.session import Session
from vlmsteer.sites import HEADS, Site

NAMED = 4  # larger groups are not spelled out
Shown = tuple[Image.Image | str | None, str]  # an image and a question


@dataclass(frozen=True, eq=False)
class Plan:
    """Sites, positions and units to be patched, the two runs, and the metric.

    Attributes:
        sites: one point at several layers, in order.
        groups: the recipient's tokens that are patched together.
        units: heads, or single dimensions of the point; None is the whole state, as one unit.
    """

    session: Session
    contrast: Contrast
    metric: Metric
    sites: list[Site]
    groups: list[tuple[int, ...]]
    units: list[int] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many sites, groups and units there are."""
        return len(self.sites), len(self.groups), 1 if self.units is None else len(self.units)

    def score(self, run: PromptStates) -> float:
        """The metric of a run as it is."""
        return float(self.metric(run.logits.detach()[None]))

    def mapped(self, effects: np.ndarray, method: str, signed: bool = True) -> PatchMap:
        """The map of effects (sites, groups, units) on the metric."""
        run = self.contrast.recipient
        shown = {position: number for number, position in enumerate(run.shown.tolist())}
        pieces = [self.session.tokenizer.decode([token]).strip() or "⏎" for token in run.ids]
        tokens, places = [], []
        for group in self.groups:
            alone = len(group) == 1 and group[0] in shown
            near = "image" if alone else "start" if group[-1] < run.prefix else "end"
            numbers = [index - len(run) if near == "end" else shown[index] if alone else index for index in group]
            places.append(f"{near} {','.join(map(str, numbers))}")
            text = " ".join("image" if i in shown else pieces[i] for i in group)
            tokens.append(text if len(group) <= NAMED else f"{len(group)} tokens")
        return PatchMap(
            effects=effects[..., 0] if self.units is None else effects,
            layers=[site.layer for site in self.sites],
            positions=list(self.groups),
            tokens=tokens,
            places=places,
            clean=self.score(self.contrast.clean),
            corrupted=self.score(self.contrast.corrupted),
            tower=self.sites[0].tower,
            point=self.sites[0].point,
            metric=self.metric.name,
            method=method,
            direction=self.contrast.direction,
            units=self.units,
            signed=signed,
        )


def plan(
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
) -> Plan:
    """Read the two runs; see `patch.patch` for the arguments.

    Raises:
        InputError: if an image, a question, an answer, the metric or the direction cannot be used, or the prompts do
            not correspond.
        SiteError: if the model has no such point, layer, position or unit.
        ModelError: if the model does not answer in words.
    """
    session.check_words()
    tower = session.family.reads_prompt
    sites, chosen = _sites(session, tower, point, layers), _units(session, tower, point, units)
    stream = [Site(tower, layer, "block_in") for layer in range(session.layers(tower))]
    read = list(dict.fromkeys([*stream, *(one for site in sites for one in needed(site))]))
    runs = [read_prompt(session, *run, read) for run in (clean, corrupted)]
    pair = contrast(runs[0], runs[1], direction)
    found = metric(session, measure, *answers, runs[0].logits)
    return Plan(session, pair, found, sites, pair.groups(positions), chosen)


def _sites(session: Session, tower: str, point: str, layers: Sequence[int] | None) -> list[Site]:
    if point not in POINTS:
        raise SiteError(f"There is no point {point!r} to patch{did_you_mean(point, POINTS)}")
    known = [site.layer for site in session.sites if (site.tower, site.point) == (tower, point)]
    asked = known if layers is None else sorted(set(layers))
    if not asked or not set(asked) <= set(known):
        raise SiteError(f"Layers to patch are {known[0]} to {known[-1]}, not {list(layers or ())}.")
    return [Site(tower, layer, point) for layer in asked]


def _units(session: Session, tower: str, point: str, units: Sequence[int] | None) -> list[int] | None:
    tap = session.taps[Site(tower, 0, point)]
    count = tap.heads if point in HEADS else tap.width
    if units is None:
        return list(range(count or 0)) if point in HEADS else None
    chosen = list(units)
    if not chosen or not all(type(unit) is int and 0 <= unit < (count or 0) for unit in chosen):
        raise SiteError(f"Units of {point} are 0 to {(count or 0) - 1} here, not {chosen}.")
    return chosen
