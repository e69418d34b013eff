"""Aligning the states of two models, so that a direction learned on one can be read on the other.

ComnHallu (Duan, Kong et al., ICCV 2025, arXiv 2503.10602; a reconstruction, the authors' code is not available) is the
subspace alignment of Fernando et al. (ICCV 2013): both sides are projected on their own principal directions, and the
source is turned onto the target's. That compares coordinate by coordinate, so both models must be equally wide and
their coordinates must mean the same; it needs no paired inputs. Where they do not, `fit_paired` learns the turn from
the two models' states on the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.probes import Linear

WAYS = ("procrustes", "cca")


@dataclass(frozen=True)
class SubspaceAlignment:
    """A common space of k dimensions and the way into it from two models, float64.

    Attributes:
        source_mean, target_mean: (width of the source), (width of the target).
        source_map, target_map: (width, k).
        cosines: (k,), of the principal angles between the two subspaces, largest first; for paired inputs, the
            correlation of each pair of coordinates.
    """

    source_mean: Tensor
    source_map: Tensor
    target_mean: Tensor
    target_map: Tensor
    cosines: Tensor

    @staticmethod
    def fit(source: Tensor, target: Tensor, k: int) -> SubspaceAlignment:
        """Subspace alignment: source X_S P_S (P_S^T P_T), target X_T P_T, both of zero mean.

        Args:
            source: (n, width) states of the model that probes are learned on.
            target: (m, width) states of the other; other inputs, or as many, are not needed.
            k: how many principal directions.

        Raises:
            InputError: if the widths differ, or k is more than the states have directions.
        """
        if source.shape[-1] != target.shape[-1]:
            raise InputError(
                f"Subspace alignment needs two models of one width, not {source.shape[-1]} and {target.shape[-1]}; "
                f"with states of both on the same inputs, use fit_paired."
            )
        (source_mean, p_source, _), (target_mean, p_target, _) = _principal(source, k), _principal(target, k)
        turn = p_source.T @ p_target
        return SubspaceAlignment(
            source_mean, p_source @ turn, target_mean, p_target, torch.linalg.svdvals(turn).clamp(max=1.0)
        )

    @staticmethod
    def fit_paired(source: Tensor, target: Tensor, k: int, how: str = "procrustes") -> SubspaceAlignment:
        """Alignment of any two widths by what the two models make of the same inputs.

        Args:
            source: (n, width) states, row i on input i.
            target: (n, other width) states on the same inputs.
            k: how many principal directions of each.
            how: "procrustes" turns the source's principal coordinates onto the target's and scales all of them by one
                number (Schoenemann 1966); "cca" whitens both and keeps the pairs of coordinates in the order of their
                correlation, which needs many more rows than k.

        Raises:
            InputError: if the rows do not pair, `how` is neither, or k is more than the states have directions.
        """
        if how not in WAYS:
            raise InputError(f"Paired alignment is one of {', '.join(WAYS)}, not {how!r}.")
        if len(source) != len(target):
            raise InputError(
                f"Paired alignment needs a target row for each source row, not {len(target)} for {len(source)}."
            )
        source_mean, p_source, a = _principal(source, k)
        target_mean, p_target, b = _principal(target, k)
        if how == "procrustes":
            left, strengths, right = torch.linalg.svd(a.T @ b)
            source_map = p_source @ left @ right * (strengths.sum() / a.square().sum())
            target_map = p_target
        else:
            a_length, b_length = a.norm(dim=0), b.norm(dim=0)
            left, _, right = torch.linalg.svd((a / a_length).T @ (b / b_length))
            scale = (len(source) - 1) ** 0.5
            source_map = (p_source / a_length) @ left * scale
            target_map = (p_target / b_length) @ right.T * scale
        into = (source.detach().cpu().double() - source_mean) @ source_map
        other = (target.detach().cpu().double() - target_mean) @ target_map
        cosines = torch.cosine_similarity(into, other, dim=0).sort(descending=True).values
        return SubspaceAlignment(source_mean, source_map, target_mean, target_map, cosines)

    def source(self, x: Tensor) -> Tensor:
        """(n, width) states of the source in the common space, (n, k)."""
        return (x.detach().cpu().double() - self.source_mean) @ self.source_map

    def target(self, x: Tensor) -> Tensor:
        """(n, width) states of the target in the common space, (n, k)."""
        return (x.detach().cpu().double() - self.target_mean) @ self.target_map

    @property
    def angles(self) -> Tensor:
        """The principal angles, (k,) in degrees, smallest first; near 90, the models have nothing in common there."""
        return torch.rad2deg(torch.arccos(self.cosines.clamp(-1.0, 1.0)))

    def to_target(self, probe: Linear) -> Linear:
        """A probe of the common space as one of the target's own states: the same scores, without the alignment."""
        weight = self.target_map @ probe.weight.double()
        return Linear(weight.float(), (probe.bias.double() - self.target_mean @ weight).float())


def _principal(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (width,), the first k principal directions (width, k), and the rows' coordinates along them (n, k)."""
    x = x.detach().cpu().double()
    if x.dim() != 2:
        raise InputError(f"Alignment takes (n, width) states, not {tuple(x.shape)}.")
    if not 0 < k <= min(len(x) - 1, x.shape[1]):
        raise InputError(f"{len(x)} states of width {x.shape[1]} have no {k} principal directions; k must be smaller.")
    mean = x.mean(0)
    left, lengths, right = torch.linalg.svd(x - mean, full_matrices=False)
    if lengths[k - 1] <= 1e-9 * lengths[0]:
        raise InputError(f"The states vary along fewer than {k} directions; k must be smaller.")
    return mean, right[:k].T, left[:, :k] * lengths[:k]
