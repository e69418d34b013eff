"""Probes find a direction that is there, agree with scikit-learn, and are measured on groups they have not seen."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from vlmsteer.errors import InputError
from vlmsteer.perceptron import Perceptron, _Network, fit_perceptron
from vlmsteer.probes import (
    accuracies,
    aurocs,
    evaluate,
    fit_many,
    folds,
    held_out_scores,
    logistic,
    mass_mean,
    split,
)


def noisy(n: int, *shape: int, gap: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States with columns of very different lengths, and labels that move the first column of each head."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=generator) < 0.4
    x = torch.randn(n, *shape, generator=generator)
    x[..., 0] += gap * y.view(-1, *[1] * (len(shape) - 1))
    return x * torch.logspace(-1, 1, shape[-1]) + 5, y


def test_mass_mean():
    x, y = noisy(300, 6)
    probe = mass_mean(x, y)
    true, false = x[y].double().mean(0), x[~y].double().mean(0)
    torch.testing.assert_close(probe.weight, (true - false).float())
    torch.testing.assert_close(probe.score(torch.stack([true, false])).sum(), torch.tensor(0.0), atol=1e-4, rtol=0)
    many = mass_mean(torch.stack([x, -x], 1), y)
    torch.testing.assert_close(many.weight, torch.stack([probe.weight, -probe.weight]))
    torch.testing.assert_close(many.score(torch.stack([x, -x], 1))[:, 1], probe.score(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("standardize", [True, False])
def test_logistic_is_scikit_learns_in_the_units_of_the_states(standardize):
    x, y = noisy(300, 6)
    inputs = x.double().numpy()
    if standardize:
        inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    model = LogisticRegression(C=0.5, max_iter=1000).fit(inputs, y.numpy())
    scores = logistic(x, y, c=0.5, standardize=standardize).score(x)
    np.testing.assert_allclose(scores, model.decision_function(inputs), atol=2e-3)


def test_the_l1_penalty_leaves_the_columns_that_matter():
    x, y = noisy(400, 40, gap=3.0)
    probe = logistic(x, y, c=0.05, l1=True)
    assert probe.weight[0] > 0
    assert int((probe.weight != 0).sum()) < 5


@pytest.mark.parametrize("standardize", [True, False])
def test_all_heads_at_once_are_the_same_as_one_by_one(standardize):
    x, y = noisy(250, 4, 5)
    x[:, 3, 0] += 50 * y  # separable: only the penalty keeps the weights finite
    together = fit_many(x, y, standardize=standardize)
    for head in range(4):
        inputs = x[:, head].double().numpy()
        if standardize:
            inputs = (inputs - inputs.mean(0)) / inputs.std(0)
        model = LogisticRegression(C=1.0, max_iter=10_000, tol=1e-10).fit(inputs, y.numpy())
        expected = model.decision_function(inputs)
        np.testing.assert_allclose(together.score(x)[:, head], expected, atol=2e-3 * np.abs(expected).max())


def test_many_heads_are_fast_and_the_right_ones_are_found():
    x, y = noisy(2000, 64, 32, gap=0.0)
    x[:, 17, 3] += 20 * y
    x[:, 40, 5] += 4 * y
    start = time.process_time()
    probes = fit_many(x[:1500], y[:1500])
    assert time.process_time() - start < 20  # some 1 s on one core
    best = accuracies(probes, x[1500:], y[1500:]).argsort(descending=True)
    assert set(best[:2].tolist()) == {17, 40}


def test_evaluate():
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(5000, generator=generator) < 0.3
    scores = torch.randn(5000, generator=generator) + 2 * y
    result = evaluate(scores, y)
    assert result["n"] == 5000
    assert result["auroc"] == pytest.approx(roc_auc_score(y, scores))
    threshold = scores[~y].sort(descending=True).values[int(0.01 * int((~y).sum()))]
    assert result["tpr_at_1_fpr"] == pytest.approx(float((scores[y] > threshold).float().mean()))
    by_hand = evaluate(torch.tensor([4.0, 3.0, 2.0, 1.0]), [1, 0, 1, 0])
    assert by_hand == {"auroc": 0.75, "ap": pytest.approx((1 + 2 / 3) / 2), "tpr_at_1_fpr": 0.5, "n": 4}
    assert evaluate(torch.zeros(10), [0, 1] * 5)["tpr_at_1_fpr"] == 0


def test_aurocs_of_many_columns():
    x, y = noisy(300, 3, 4)
    expected = [[roc_auc_score(y, x[:, head, column]) for column in range(4)] for head in range(3)]
    np.testing.assert_allclose(aurocs(x, y), expected, rtol=1e-9)


def test_splits_keep_groups_together():
    groups = [f"image {number // 3}" for number in range(60)]
    names = np.array(groups)
    fit, held = split(groups, test=0.25, seed=3)
    assert not set(names[fit]) & set(names[held])
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(60)) and len(held) == 15
    again = split(groups, test=0.25, seed=3)
    assert torch.equal(held, again[1]) and not torch.equal(held, split(groups, test=0.25, seed=4)[1])
    tested = []
    for rest, part in folds(groups, 4):
        assert not set(names[rest]) & set(names[part])
        tested += part.tolist()
    assert sorted(tested) == list(range(60))


def test_held_out_scores_do_not_know_the_group():
    """Each group has its own direction and one label: a probe that saw the group would know everything."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(60, generator=generator) < 0.5).repeat_interleave(5)
    x = 5 * torch.randn(60, 100, generator=generator).repeat_interleave(5, 0) + torch.randn(
        300, 100, generator=generator
    )
    groups = torch.arange(60).repeat_interleave(5).tolist()
    assert evaluate(logistic(x, y).score(x), y)["auroc"] > 0.99
    assert 0.3 < evaluate(held_out_scores(logistic, x, y, groups), y)["auroc"] < 0.7
    assert evaluate(held_out_scores(logistic, x, y, range(300)), y)["auroc"] > 0.9
    heads = held_out_scores(mass_mean, torch.stack([x, x], 1), y, groups)
    assert heads.shape == (300, 2) and torch.equal(heads[:, 0], heads[:, 1])


def ring(n: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """True outside of a circle, false inside: no direction tells them apart. The last head sees noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, heads, 8, generator=generator)
    y = x[:, 0, :2].norm(dim=-1) > 1.2
    x[:, 1:-1] = x[:, :1]
    return x, y


def test_a_perceptron_bends_where_a_direction_cannot():
    x, y = ring(2000, 3)
    probe = fit_perceptron(x[:1500], y[:1500], range(1500), epochs=40, rate=5e-3)
    scores = probe.score(x[1500:])
    result = aurocs(scores, y[1500:])
    assert result[0] > 0.95 and result[1] > 0.95 and 0.4 < result[2] < 0.6
    assert aurocs(fit_many(x[:1500], y[:1500]).score(x[1500:]), y[1500:])[0] < 0.6
    assert torch.equal(scores, fit_perceptron(x[:1500], y[:1500], range(1500), epochs=40, rate=5e-3).score(x[1500:]))
    torch.testing.assert_close(probe.head(1).score(x[1500:, 1]), scores[:, 1])
    torch.testing.assert_close(Perceptron.of(probe.tensors()).score(x), probe.score(x))


def test_truthprints_detector_on_states_with_huge_columns():
    x, y = ring(1500, 1)
    x = x[:, 0] * torch.logspace(-1, 3, 8) + 100
    probe = fit_perceptron(x[:1000], y[:1000], range(1000), (256, 256), normalize=False, standardize=True, seed=1)
    assert [tuple(weight.shape) for weight in probe.weights] == [(8, 256), (256, 256), (256, 1)]
    assert evaluate(probe.score(x[1000:]), y[1000:])["auroc"] > 0.9


def test_folding_keeps_the_function():
    """Against torch's own modules: standardize, linear, batch norm, ReLU, linear."""
    generator = torch.Generator().manual_seed(0)
    network = _Network(1, [6, 4, 1], True, 0)
    with torch.no_grad():
        for value in network.state:
            value += torch.rand(value.shape, generator=generator)
    modules = torch.nn.Sequential(
        torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
    ).eval()
    state = {
        "0.weight": network.weights[0][0].T, "0.bias": network.biases[0][0, 0],
        "1.weight": network.scales[0][0, 0], "1.bias": network.shifts[0][0, 0],
        "1.running_mean": network.means[0][0, 0], "1.running_var": network.variances[0][0, 0],
        "3.weight": network.weights[1][0].T, "3.bias": network.biases[1][0, 0],
    }  # fmt: skip
    modules.load_state_dict(state, strict=False)
    x, mean, spread = torch.randn(20, 6, generator=generator), torch.randn(6, generator=generator), torch.rand(6) + 0.5
    expected = modules((x - mean) / spread)[:, 0]
    torch.testing.assert_close(network.folded(mean[None], spread[None]).head(0).score(x), expected)


def test_heads_are_trained_as_if_alone():
    x, y = ring(300, 3)
    together = fit_perceptron(x, y, range(300), epochs=2)
    changed = x.clone()
    changed[:, 2] *= 3
    other = fit_perceptron(changed, y, range(300), epochs=2)
    torch.testing.assert_close(together.score(x)[:, :2], other.score(changed)[:, :2])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda x: evaluate(x[:, 0], torch.ones(20)), "all 20 labels given are the same"),
        (lambda x: mass_mean(x, torch.zeros(20)), "all 20 labels given are the same"),
        (lambda x: mass_mean(x, [1, 0]), "as many labels"),
        (lambda x: mass_mean(x * torch.inf, [0, 1] * 10), "NaN or infinite"),
        (lambda x: logistic(x[:, None], [0, 1] * 10), "fit_many"),
        (lambda x: fit_many(x, [0, 1] * 10), "(n, heads, width)"),
        (lambda x: evaluate(x, [0, 1] * 10), "One score a state"),
        (lambda x: split(["a"] * 20), "2 groups or more"),
        (lambda x: list(folds(["a", "b"] * 10, 3)), "3 groups or more"),
        (lambda x: fit_perceptron(x, [0, 1] * 10, ["a"] * 20), "2 groups or more"),
    ],
)
def test_what_cannot_be(wrong, sentence):
    with pytest.raises(InputError) as raised:
        wrong(noisy(20, 3)[0])
    assert sentence in str(raised.value)
