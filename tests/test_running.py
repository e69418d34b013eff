"""Streamed sums, components and samples agree with numpy on the whole data, merge in any order and stay small."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vlmsteer.errors import InputError
from vlmsteer.running import Components, Covariance, Mean
from vlmsteer.samples import Area, Sample

BATCHES = (1, 7, 64, 128)  # 200 rows in all


def states(n: int = 200, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Rows that differ by far less than their mean, as hidden states do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator) + 300 * torch.randn(width, generator=generator)


def decaying(n: int, width: int, power: float, seed: int = 0) -> torch.Tensor:
    """Rows with a mean, and standard deviations i ** -power along random directions."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(100, width)
    basis = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))[0]
    lengths = torch.arange(1, rank + 1, dtype=torch.float64) ** -power
    rows = torch.randn(n, rank, generator=generator, dtype=torch.float64) * lengths @ basis.T
    return rows + torch.randn(width, generator=generator) / width**0.5


def in_batches(accumulator, rows, *more):
    for parts in zip(*(values.split(BATCHES) for values in (rows, *more)), strict=True):
        accumulator.update(*parts)
    return accumulator


def test_mean_and_variance():
    rows = states()
    running = in_batches(Mean(spread=True), rows.view(200, 3, 4))
    whole = rows.double().numpy().reshape(200, 3, 4)
    np.testing.assert_allclose(running.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(running.variance, whole.var(0), rtol=1e-9)


def test_weighted_mean():
    rows, weights = states(), torch.rand(200, generator=torch.Generator().manual_seed(1))
    weights[:8] = 0
    running = in_batches(Mean(spread=True), rows, weights)
    expected = np.average(rows.double(), axis=0, weights=weights.double())
    spread = np.average((rows.double().numpy() - expected) ** 2, axis=0, weights=weights.double())
    np.testing.assert_allclose(running.mean, expected, rtol=1e-9)
    np.testing.assert_allclose(running.variance, spread, rtol=1e-6)
    assert running.weight == pytest.approx(float(weights.sum()))


def test_covariance_and_its_components():
    rows = states()
    running = in_batches(Covariance(), rows)
    np.testing.assert_allclose(running.mean, rows.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(running.covariance, np.cov(rows.double().T), atol=1e-9)
    directions, variances = running.components(3)
    centered = rows.double() - rows.double().mean(0)
    _, lengths, right = np.linalg.svd(centered.numpy(), full_matrices=False)
    np.testing.assert_allclose(variances, lengths[:3] ** 2 / 199, rtol=1e-9)
    np.testing.assert_allclose(np.abs((directions.numpy() * right[:3]).sum(1)), 1, atol=1e-9)
    assert (directions @ running.mean > 0).all()


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("power", "n", "width"), [(0.5, 1000, 800), (1.0, 1000, 800), (1.0, 300, 20_000)])
def test_components_of_a_stream(centered, power, n, width):
    rows = decaying(n, width, power)
    running = Components(2, centered=centered)
    for batch in rows.split(23):
        running.update(batch)
    whole = (rows - rows.mean(0) if centered else rows).numpy()
    _, lengths, right = np.linalg.svd(whole, full_matrices=False)
    directions, variances = running.components()
    assert running.count == n and directions.shape == (2, width)
    assert (np.abs((directions.numpy() * right[:2]).sum(1)) > 0.999).all()
    np.testing.assert_allclose(variances, lengths[:2] ** 2 / (n - centered), rtol=0.01)
    np.testing.assert_allclose(running.mean, rows.mean(0), atol=1e-12)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("batch", [1, 5, 30])
def test_components_are_exact_up_to_their_size(centered, batch):
    rows = states(30, 500).double()
    running = Components(3, centered=centered, size=30)
    for part in rows.split(batch):
        running.update(part)
        if running.count == 10:
            running.components(2)  # asking in between changes nothing
    whole = (rows - rows.mean(0) if centered else rows).numpy()
    _, lengths, right = np.linalg.svd(whole, full_matrices=False)
    directions, variances = running.components()
    np.testing.assert_allclose(variances, lengths[:3] ** 2 / (30 - centered), rtol=1e-9)
    np.testing.assert_allclose(np.abs((directions.numpy() * right[:3]).sum(1)), 1, atol=1e-9)


def test_components_of_each_group_are_those_of_the_group_alone():
    rows = torch.stack([decaying(150, 60, 1.0, seed) for seed in range(3)], 1)
    together = Components(2)
    for part in rows.split(11):
        together.update(part)
    directions, variances = together.components()
    for group in range(3):
        alone = Components(2).update(rows[:, group])
        np.testing.assert_allclose(directions[group], alone.components()[0], atol=1e-9)
        np.testing.assert_allclose(variances[group], alone.components()[1], rtol=1e-9)


def test_a_component_points_where_the_rows_do():
    rows = decaying(100, 50, 1.0)
    for sign in (1, -1):
        running = Components(1).update(sign * rows)
        assert float(running.components()[0][0] @ running.mean) > 0


def test_merging_in_any_order_is_reading_everything():
    parts = [states(n, seed=9)[: n // 2] for n in (60, 20, 120)]
    whole = torch.cat(parts)
    makers = {
        "mean": lambda: Mean(spread=True),
        "covariance": Covariance,
        "components": lambda: Components(2, size=12),  # as many as the rows have directions: nothing is cut
        "sample": lambda: Sample(1000),
    }
    results = {
        "mean": lambda a: torch.stack([a.mean, a.variance]),
        "covariance": lambda a: a.covariance,
        "components": lambda a: a.components()[0],
        "sample": lambda a: a.sorted(),
    }
    for name, make in makers.items():
        expected = results[name](make().update(whole))
        for order in itertools.permutations(parts):
            first, second, third = (make().update(part) for part in order)
            np.testing.assert_allclose(results[name]((first + second) + third), expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(results[name](first + (second + third)), expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(results[name](first), results[name](make().update(order[0])))  # left as it was
        empty = results[name](make() + make().update(whole) + make())
        np.testing.assert_allclose(empty, expected, rtol=1e-9)


def test_components_of_merged_streams_that_were_cut():
    parts = decaying(1200, 400, 0.7).split(400)
    whole = torch.cat(parts)
    right = np.linalg.svd((whole - whole.mean(0)).numpy(), full_matrices=False)[2]
    for order in itertools.permutations(parts):
        first, second, third = (Components(1).update(part) for part in order)
        assert abs(float((first + second + third).components()[0][0].numpy() @ right[0])) > 0.999


def test_half_precision_states_are_summed_in_full():
    rows = torch.full((5000, 4), 0.1, dtype=torch.bfloat16)
    running = Mean()
    for part in rows.split(16):
        running.update(part)
    np.testing.assert_allclose(running.mean, float(rows[0, 0]), rtol=1e-12)


def test_a_sample_is_everything_up_to_its_limit_and_a_fair_part_beyond():
    rows = torch.arange(1000.0)[:, None]
    np.testing.assert_array_equal(Sample(1000).update(rows).sorted(), rows)
    counts = np.zeros(1000)
    for seed in range(300):
        sample = Sample(100, seed)
        for part in rows.split(33):
            sample.update(part)
        assert len(sample.rows.unique()) == 100
        counts[sample.rows[:, 0].long()] += 1
    # Binomial(300, 0.1): mean 30, deviation 5.2. Early, middle and late rows are as likely.
    for third in np.array_split(counts, 3):
        assert abs(third.mean() - 30) < 1
    assert counts.max() < 60


def test_merged_samples_are_fair_and_do_not_depend_on_the_order():
    from_first = []
    for seed in range(200):
        first = Sample(50, seed).update(torch.arange(900.0)[:, None])
        second = Sample(50, 1000 + seed).update(torch.arange(900.0, 1200.0)[:, None])
        merged = first + second
        assert merged.count == 1200 and len(merged.rows) == 50
        assert torch.equal(merged.sorted(), (second + first).sorted())
        from_first.append(float((merged.rows < 900).float().mean()))
    assert abs(np.mean(from_first) - 0.75) < 0.02


def test_quantiles():
    rows = states(101, 3)
    sample = Sample(200).update(rows)
    np.testing.assert_allclose(sample.quantiles(101), sample.sorted(), rtol=1e-6)
    expected = np.quantile(rows.numpy(), (np.arange(7) + 0.5) / 7, axis=0, method="hazen")
    np.testing.assert_allclose(sample.quantiles(7), expected, rtol=1e-6)


def test_area_is_sklearns_auroc_of_every_number():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 5, generator=generator)
    rows[:, 1] = rows[:, 1].round()  # ties
    labels = torch.rand(200, generator=generator) < torch.sigmoid(rows[:, 0] + rows[:, 1])
    running = in_batches(Area(), rows, labels)
    expected = [roc_auc_score(labels, rows[:, column]) for column in range(5)]
    np.testing.assert_allclose(running.auroc, expected, rtol=1e-12)
    halves = Area().update(rows[:90], labels[:90]) + Area(seed=5).update(rows[90:], labels[90:])
    np.testing.assert_allclose(halves.auroc, expected, rtol=1e-12)


def kept(value) -> int:
    """The bytes of all tensors that an accumulator holds."""
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, list):
        return sum(kept(one) for one in value)
    return sum(kept(one) for one in vars(value).values()) if hasattr(value, "__dict__") else 0


@pytest.mark.parametrize("make", [Mean, Covariance, lambda: Components(2), lambda: Sample(64), lambda: Area(64)])
def test_memory_does_not_grow_with_the_stream(make):
    generator = torch.Generator().manual_seed(0)
    running = make()
    sizes = []
    tracemalloc.start()
    for step in range(400):
        rows = torch.randn(32, 50, generator=generator)
        running.update(rows, rows[:, 0] > 0) if isinstance(running, Area) else running.update(rows)
        if step in (20, 399):
            sizes.append((kept(running), tracemalloc.get_traced_memory()[0]))
    tracemalloc.stop()
    (early, early_python), (late, late_python) = sizes
    assert 0 < late <= 2 * early
    assert late < 32 * 50 * 4 * 400 / 20  # nothing like the 2.6 MB that went by
    assert late_python - early_python < 50_000


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: Mean().mean, "Too few rows"),
        (lambda: Mean().update(torch.ones(2, 3)).variance, "spread=True"),
        (lambda: Mean().update(torch.ones(2, 3)).update(torch.ones(2, 4)), "cannot follow"),
        (lambda: Mean().update(torch.ones(2, 3), torch.tensor([1.0, -1.0])), "negative"),
        (lambda: Covariance().update(torch.ones(1, 3)).covariance, "Too few rows"),
        (lambda: Covariance().update(torch.ones(2, 3, 4)), "(n, width)"),
        (lambda: Components(3).update(states(2)).components(), "3 components"),
        (lambda: Components(3, size=2), "cannot be fewer"),
        (lambda: Components(3).update(states()) + Components(3, size=20).update(states()), "one size"),
        (lambda: Sample().rows, "No rows"),
        (lambda: Sample(0), "one row or more"),
        (lambda: Area().update(states(), torch.ones(3)), "as many labels"),
    ],
)
def test_what_cannot_be(wrong, sentence):
    with pytest.raises(InputError) as raised:
        wrong()
    assert sentence in str(raised.value)
