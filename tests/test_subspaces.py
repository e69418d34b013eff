"""Alignments recover rotations that are known, and carry a probe from one model's states to another's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, subspace_angles
from sklearn.cross_decomposition import CCA

from vlmsteer.errors import InputError
from vlmsteer.probes import aurocs, mass_mean
from vlmsteer.subspaces import SubspaceAlignment


def rotation(width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]


def states(n: int, width: int, seed: int, strong: int = 4) -> torch.Tensor:
    """Rows that vary along `strong` of the axes, by different amounts, and little along the others."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((width,), 0.05, dtype=torch.float64)
    lengths[:strong] = torch.arange(strong, 0, -1)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) * lengths + 7


def test_principal_angles_are_scipys():
    source, target = states(400, 10, 0) @ rotation(10, 1), states(300, 10, 2) @ rotation(10, 3)
    bases = [np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)[2][:3].T for x in (source, target)]
    expected = np.sort(np.rad2deg(subspace_angles(*bases)))
    np.testing.assert_allclose(SubspaceAlignment.fit(source, target, 3).angles, expected, atol=1e-6)


def test_the_published_formula():
    source, target = states(400, 8, 0) @ rotation(8, 1), states(300, 8, 2)
    aligned = SubspaceAlignment.fit(source, target, 3)
    bases = [np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)[2][:3].T for x in (source, target)]
    into = (source - source.mean(0)).numpy() @ bases[0] @ (bases[0].T @ bases[1])
    other = (target - target.mean(0)).numpy() @ bases[1]
    signs = np.sign((aligned.target(target).numpy() * other).sum(0))  # a principal direction has no sign
    np.testing.assert_allclose(aligned.source(source), into * signs, atol=1e-9)
    np.testing.assert_allclose(aligned.target(target), other * signs, atol=1e-9)


def test_a_small_turn_in_the_common_subspace_is_undone():
    """The target turns two strong axes into each other by 30 degrees; both span the same four dimensions."""
    turn = torch.eye(10, dtype=torch.float64)
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn[:2, :2] = torch.tensor([[cos, sin], [-sin, cos]])
    source, target = states(4000, 10, 0), states(4000, 10, 1) @ turn
    aligned = SubspaceAlignment.fit(source, target, 4)
    assert float(aligned.angles.max()) < 1
    # In a subspace that is the same, P_S P_S^T P_T is P_T: the same state has the same coordinates from both sides.
    offset = source.mean(0) - target.mean(0)
    inside = source[:50]
    np.testing.assert_allclose(aligned.source(inside), aligned.target(inside - offset), atol=0.2)


def test_opposite_subspaces_have_nothing_in_common():
    source, target = states(300, 8, 0), states(300, 8, 1).flip(1)
    assert float(SubspaceAlignment.fit(source, target, 4).angles.min()) > 80


@pytest.mark.parametrize("how", ["procrustes", "cca"])
def test_a_rotation_between_widths_is_found_from_pairs(how):
    """The target sees what the source sees through another basis, larger and in a wider space."""
    source = states(600, 8, 0)
    into_wider = torch.cat([rotation(8, 5), torch.zeros(8, 4, dtype=torch.float64)], 1) @ rotation(12, 6)
    target = 3 * source @ into_wider - 2
    aligned = SubspaceAlignment.fit_paired(source[:300], target[:300], 4, how)
    assert float(aligned.cosines.min()) > 0.999
    into, other = aligned.source(source[300:]), aligned.target(target[300:])
    np.testing.assert_allclose(into, other, atol=0.02 * float(other.abs().max()))


def test_procrustes_is_scipys():
    source, target = states(200, 6, 0), states(200, 9, 1)
    aligned = SubspaceAlignment.fit_paired(source, target, 3)
    coordinates = []
    for x in (source, target):
        left, lengths, _ = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
        coordinates.append(left[:, :3] * lengths[:3])
    turn, total = orthogonal_procrustes(*coordinates)
    best = np.abs(coordinates[0] @ turn * total / (coordinates[0] ** 2).sum() - coordinates[1])
    ours = (aligned.source(source) - aligned.target(target)).abs()
    np.testing.assert_allclose(ours.square().sum(), (best**2).sum(), rtol=1e-9)


def test_cca_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    source = states(500, 5, 0, 5)
    target = source @ torch.randn(5, 6, generator=generator, dtype=torch.float64)
    target = target + 3 * torch.randn(500, 6, generator=generator, dtype=torch.float64)
    aligned = SubspaceAlignment.fit_paired(source, target, 5, "cca")
    a = source.numpy()
    b = (target - target.mean(0)).numpy()
    b = b @ np.linalg.svd(b, full_matrices=False)[2][:5].T
    into, other = CCA(5, max_iter=5000, tol=1e-12).fit_transform(a, b)
    expected = [np.corrcoef(into[:, i], other[:, i])[0, 1] for i in range(5)]
    np.testing.assert_allclose(aligned.cosines, sorted(expected, reverse=True), atol=1e-4)
    np.testing.assert_allclose(aligned.target(target).var(0), 1, atol=1e-9)


def labeled(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = states(n, 16, seed), torch.arange(n) % 2 == 1
    x[:, 1] += 12 * y
    return x, y


def test_a_probe_of_one_model_works_on_the_other_only_after_alignment():
    turn = rotation(16, 9)
    (source, y), (target, y_target) = labeled(800, 0), labeled(800, 1)
    target = target @ turn
    raw = float(aurocs(mass_mean(source, y).score(target), y_target))
    common, _ = labeled(400, 2)
    aligned = SubspaceAlignment.fit_paired(common, common @ turn, 4)
    probe = mass_mean(aligned.source(source), y)
    scores = probe.score(aligned.target(target))
    assert float(aurocs(scores, y_target)) > 0.97 > raw + 0.1
    np.testing.assert_allclose(aligned.to_target(probe).score(target), scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda a, b: SubspaceAlignment.fit(a, b, 2), "fit_paired"),
        (lambda a, b: SubspaceAlignment.fit(a, a, 9), "k must be smaller"),
        (lambda a, b: SubspaceAlignment.fit(a[:3], a, 3), "k must be smaller"),
        (lambda a, b: SubspaceAlignment.fit(a * torch.eye(8)[0], a, 2), "fewer than 2 directions"),
        (lambda a, b: SubspaceAlignment.fit_paired(a, b[:5], 2), "a target row for each source row"),
        (lambda a, b: SubspaceAlignment.fit_paired(a, b, 2, "cka"), "procrustes, cca"),
        (lambda a, b: SubspaceAlignment.fit(a[:, None], a, 2), "(n, width)"),
    ],
)
def test_what_cannot_be(wrong, sentence):
    with pytest.raises(InputError) as raised:
        wrong(states(20, 8, 0), states(20, 9, 1))
    assert sentence in str(raised.value)
