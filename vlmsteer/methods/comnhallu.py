"""ComnHallu (Duan, Kong et al., ICCV 2025, arXiv 2503.10602), a reconstruction: the authors' code is not available.

Models share what tells a made-up object from a present one, in a common subspace of their states. A detector learned on
one model in its principal directions is turned onto those of another (`vlmsteer/subspaces.py`); `transfer` measures
whether that helps. As a method it is TruthPrInt with a detector that sees the principal directions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.examples import Example
from vlmsteer.methods import truthprint
from vlmsteer.methods.method import Method
from vlmsteer.methods.truthprint import Words, choose_layer, read_words
from vlmsteer.probes import Linear, aurocs, evaluate, logistic, split
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session
from vlmsteer.subspaces import SubspaceAlignment

NAME = "comnhallu"
COMPONENTS = 64
DRAWS = 500  # of the bootstrap


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    components: int = COMPONENTS,
    probe: str = "mlp",
    source: str = "own",
    layers: Sequence[int] | None = None,
    false_alarms: float = truthprint.FALSE_ALARMS,
    pick: str = truthprint.PICK,
    scope: str = truthprint.SCOPE,
    max_rollbacks: int = 8,
    seed: int = 0,
) -> Recipe:
    """As `truthprint.learn`, the detector seeing `components` principal directions of the states."""
    if components < 1:
        raise InputError(f"A subspace has one direction or more, not {components}.")
    return truthprint.learn(
        session, examples, components=components, probe=probe, source=source, layers=layers,
        false_alarms=false_alarms, pick=pick, scope=scope, max_rollbacks=max_rollbacks, seed=seed, name=NAME,
    )  # fmt: skip


def transfer(
    source: Session,
    target: Session,
    examples: Sequence[Example],
    components: int = 32,
    captions: str = "given",
    limit: int = 8000,
    seed: int = 0,
) -> dict[str, Any]:
    """How well a detector learned on one model finds what another makes up, with and without alignment.

    Each model's layer is chosen on its own training groups. Without alignment the detector reads the target's states
    with their mean set to the source's; two models of different width cannot be compared so, nor by subspace alignment,
    which needs one width; then only paired alignment is reported, by states on the same given captions.

    Args:
        components: how many principal directions.
        captions: "given" right and wrong captions, the same for both models, or each model's "own".

    Returns:
        AUROC on the target's held-out groups: `in_domain` (a detector of the target's own), `unaligned`, `aligned`
        (Fernando et al.), `paired` (Procrustes on the same captions); None where it cannot be had. With `source`, the
        detector's AUROC at home, both layers, n, and the cosines of the principal angles. `intervals` holds the 95 %
        intervals of those on the target, and of what an alignment adds to `unaligned` ("aligned gain", "paired gain");
        groups are resampled.
    """
    of, to = (read_words(one, examples, None, captions, limit, seed=seed) for one in (source, target))
    every = sorted(set(of.groups) | set(to.groups))
    learned, held = split(every, 0.3, seed)
    fit_groups, test_groups = ({every[i] for i in part.tolist()} for part in (learned, held))
    (a, ya, layer_a), (b, yb, layer_b) = (_chosen(words, fit_groups, seed) for words in (of, to))
    fa, ta, fb, tb = (
        torch.tensor([group in chosen for group in words.groups])
        for words in (of, to)
        for chosen in (fit_groups, test_groups)
    )
    k = min(components, int(fa.sum()) - 1, int(fb.sum()) - 1, a.shape[1], b.shape[1])

    home, true = logistic(a[fa], ya[fa], c=0.1), yb[tb]
    scores = {"in_domain": logistic(b[fb], yb[fb], c=0.1).score(b[tb])}
    cosines = None
    if a.shape[1] == b.shape[1]:
        scores["unaligned"] = home.score(b[tb] - b[fb].mean(0) + a[fa].mean(0))
        alignment = SubspaceAlignment.fit(a[fa], b[fb], k)
        scores["aligned"] = _aligned(alignment, a[fa], ya[fa]).score(b[tb])
        cosines = [round(float(cosine), 4) for cosine in alignment.cosines]
    if captions == "given" and of.groups == to.groups and torch.equal(ya, yb):
        paired = SubspaceAlignment.fit_paired(a[fa], b[fb], k)
        scores["paired"] = _aligned(paired, a[fa], ya[fa]).score(b[tb])
    found = {name: _area(score, true) for name, score in scores.items()}
    return {
        "source": _area(home.score(a[ta]), ya[ta]), "unaligned": None, "aligned": None, "paired": None, **found,
        "cosines": cosines, "layers": [layer_a, layer_b], "components": k,
        "intervals": _intervals(scores, true, [group for group in to.groups if group in test_groups], seed),
        "n": {"learned": int(fa.sum()), "tested": int(tb.sum()), "untrue": int((~true).sum())},
    }  # fmt: skip


def _chosen(words: Words, groups: set[str], seed: int) -> tuple[Tensor, Tensor, int]:
    """States of the layer that tells best among some groups, labels, and the layer."""
    rows = [i for i, group in enumerate(words.groups) if group in groups]
    index, _ = choose_layer(words.states[rows], words.true[rows], [words.groups[i] for i in rows], 0, seed)
    return words.states[:, index], words.true, words.layers[index]


def _area(scores: Tensor, true: Tensor) -> float:
    """AUROC of untrue words among true ones."""
    return round(float(evaluate(-scores, ~true)["auroc"]), 4)


def _intervals(scores: Mapping[str, Tensor], true: Tensor, groups: Sequence[str], seed: int) -> dict[str, list[float]]:
    """95 % percentile intervals of AUROCs and of the gains over "unaligned", from a bootstrap of groups."""
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    members, rng = [torch.tensor(of) for of in rows.values()], torch.Generator().manual_seed(seed)
    columns = -torch.stack(list(scores.values()), 1)
    drawn = []
    for _ in range(DRAWS):
        chosen = torch.cat([members[i] for i in torch.randint(len(members), (len(members),), generator=rng).tolist()])
        if true[chosen].any() and not true[chosen].all():
            drawn.append(aurocs(columns[chosen], ~true[chosen]))
    found = dict(zip(scores, torch.stack(drawn).T, strict=True))
    if "unaligned" in found:
        found |= {f"{name} gain": found[name] - found["unaligned"] for name in ("aligned", "paired") if name in found}
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {name: [round(float(bound), 4) for bound in areas.quantile(bounds)] for name, areas in found.items()}


def _aligned(alignment: SubspaceAlignment, states: Tensor, true: Tensor) -> Linear:
    """A detector learned on the source in the common space, as one of the target's own states."""
    return alignment.to_target(logistic(alignment.source(states), true, c=0.1))


METHOD = Method(
    name=NAME,
    title="ComnHallu, TruthPrInt in a subspace that models share",
    paper="Duan, Kong et al., ICCV 2025, arXiv 2503.10602",
    needs="captions",
    learn=learn,
    strengths=(0.25, 0.5, 1.0, 2.0),
    notes="A reconstruction. The detector sees principal directions only, so it can be aligned with another's.",
    reconstruction=True,
)
