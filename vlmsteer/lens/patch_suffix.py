"""Patching without computing twice: a patched run is the run it changes, up to the patched layer and position.

So each patch starts from the residual stream of that layer and position, and only later positions pass the blocks
above; keys and values of earlier positions are those of the run that was read. Patches of neighboring positions climb
together, those of deeper layers join on the way, and the last block is asked for the last position only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vlmsteer.lens.decoder import Decoder
from vlmsteer.lens.patch_plan import Plan
from vlmsteer.lens.patch_values import leaving
from vlmsteer.session import Session
from vlmsteer.sites import Site

TOKENS = 1024  # about so many tokens climb together
FEW = 128  # so many tokens cost hardly more than one
SPREAD = 8  # patches of more tokens climb together only over so small a part of their way: one part in SPREAD
UNEMBEDDED = 256  # rows whose whole vocabulary is held at once
Item = tuple[int, int]  # a group of positions, a unit


def sweep(planned: Plan, decoder: Decoder) -> Tensor:
    """(sites, groups, units) of the metric, each of the run in which one unit of one site was patched at one group."""
    session, contrast, sites = planned.session, planned.contrast, planned.sites
    groups, units, score = planned.groups, planned.units, planned.metric
    last, top = len(contrast.recipient) - 1, len(decoder.blocks)
    found = torch.full(planned.shape, planned.score(contrast.recipient))
    starts = [site.layer + (site.point != "block_in") for site in sites]
    ends = [number for number, start in enumerate(starts) if start == top]
    climbing = [number for number, start in enumerate(starts) if start < top]
    moved = _moved(planned)
    with session.instrument.alone(), torch.no_grad():
        for first, items in _chunks(groups, moved, found.shape[2], len(climbing), last + 1):
            held = max(1, TOKENS // (len(items) * (last + 1 - first)))
            for low in range(0, len(climbing), held):
                part = climbing[low : low + held]
                entering = {starts[number]: sites[number] for number in part}
                states = _climb(planned, decoder, entering, items, first)
                scores = _scores(session, states, score).view(len(part), len(items))
                for number, row in zip(part, scores, strict=True):
                    _keep(found, number, items, row)
        # After the last block, no token but the last is read.
        items = [(group, unit) for group in moved if last in groups[group] for unit in range(found.shape[2])]
        for number in ends if items else ():
            states = leaving(session, contrast, sites[number], torch.tensor([last]), units)[0]
            _keep(found, number, items, _scores(session, states[[unit for _, unit in items]], score))
    return found


def _keep(found: Tensor, number: int, items: Sequence[Item], scores: Tensor) -> None:
    groups, units = zip(*items, strict=True)
    found[number, list(groups), list(units)] = scores


def _climb(planned: Plan, decoder: Decoder, entering: dict[int, Site], items: Sequence[Item], first: int) -> Tensor:
    """(entering * items, width): the last position's states after the last block; sites enter before their blocks."""
    frame, states = decoder.frame(first), None
    patched = [(row, unit, position) for row, (group, unit) in enumerate(items) for position in planned.groups[group]]
    rows, numbers, positions = (torch.tensor(column) for column in zip(*patched, strict=True))
    tokens, place = positions.unique(return_inverse=True)
    own, chosen = numbers.unique(return_inverse=True)
    units = None if planned.units is None else [planned.units[number] for number in own]
    for layer in range(min(entering), len(decoder.blocks)):
        if layer in entering:
            values = leaving(planned.session, planned.contrast, entering[layer], tokens, units)
            new = decoder.states(layer)[first:].repeat(len(items), 1, 1)
            values = values[place.to(values.device), chosen.to(values.device)]
            new[rows.to(new.device), (positions - first).to(new.device)] = values.to(new.device)
            states = new if states is None else torch.cat([states.to(new.device), new])
        assert states is not None
        states = decoder.block(layer, states, frame)
    assert states is not None
    return states[:, -1]


def _scores(session: Session, states: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([score(session.unembed(part)).float().cpu() for part in states.split(UNEMBEDDED)])


def _moved(planned: Plan) -> list[int]:
    """The groups that a patch changes at some site; tokens before the first difference of the runs are the same."""
    pair, differs = planned.contrast, torch.zeros(len(planned.contrast.recipient), dtype=torch.bool)
    for site in planned.sites:
        old, new = pair.recipient.states[site], pair.donor.states[site]
        differs |= (old != new[pair.partners.clamp(min=0).to(new.device)]).flatten(1).any(1).cpu()
    return [number for number, group in enumerate(planned.groups) if bool(differs[list(group)].any())]


def _chunks(
    groups: Sequence[tuple[int, ...]], moved: Sequence[int], units: int, layers: int, length: int
) -> Iterator[tuple[int, list[Item]]]:
    """Items that climb together, each with the first position that they bring."""
    order = sorted(moved, key=lambda group: groups[group][0])
    items = [(group, unit) for group in order for unit in range(units)]
    taken: list[Item] = []
    for item in items:
        first, start = groups[item[0]][0], groups[taken[0][0]][0] if taken else 0
        tokens = (len(taken) + 1) * max(1, layers) * (length - start)
        repeated = (first - start) * SPREAD > length - start and tokens > FEW  # tokens before a patch climb in vain
        if taken and (tokens > TOKENS or repeated):
            yield start, taken
            taken = []
        taken.append(item)
    if taken:
        yield groups[taken[0][0]][0], taken
