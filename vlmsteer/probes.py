"""Probes: what can be read off a state, measured on groups that the probe has not seen.

A linear probe is a direction and a bias. scikit-learn fits it; for all heads of a model at once, Newton's method in
torch finds the same optimum (ITI, Li et al., NeurIPS 2023, arXiv 2306.03341, ranks layers x heads probes). Larger
scores mean "true". Perceptrons are in perceptron.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.samples import area


@dataclass(frozen=True)
class Linear:
    """A linear probe, or one for each head: `weight` (..., width) and `bias` (...), float32."""

    weight: Tensor
    bias: Tensor

    def score(self, x: Tensor) -> Tensor:
        """(n, ..., width) -> (n, ...): above 0 where the probe says "true"; a log-odds if the probe is logistic."""
        return (x.detach().cpu().float() * self.weight).sum(-1) + self.bias


def mass_mean(x: Tensor, y: Tensor | Sequence[int]) -> Linear:
    """The mean of the true minus the mean of the false states, with the threshold halfway (Marks and Tegmark, 2023).

    Args:
        x: (n, width), or (n, heads, width) for a probe of each head.
        y: (n,), true or false.
    """
    x, y = checked(x, y)
    true, false = x[y].mean(0), x[~y].mean(0)
    weight = true - false
    return Linear(weight.float(), -((true + false) / 2 * weight).sum(-1).float())


def logistic(
    x: Tensor, y: Tensor | Sequence[int], c: float = 1.0, l1: bool = False, standardize: bool = True, seed: int = 0
) -> Linear:
    """Logistic regression by scikit-learn, in the units of `x` whether or not it was standardized for the fit.

    Args:
        x: (n, width).
        y: (n,), true or false.
        c: inverse strength of the penalty; ITI and H-Neurons use 1.
        l1: the penalty that sets most weights to 0 (liblinear; H-Neurons), in place of the squared one (lbfgs).
        standardize: fit on columns of mean 0 and variance 1; ITI does not.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = checked(x, y)
    if x.dim() != 2:
        raise InputError(f"A logistic probe reads (n, width) states, not {tuple(x.shape)}; fit_many fits many at once.")
    mean, spread = standardization(x) if standardize else (torch.zeros(x.shape[1]), torch.ones(x.shape[1]))
    model = LogisticRegression(
        C=c, l1_ratio=float(l1), solver="liblinear" if l1 else "lbfgs", max_iter=1000, random_state=seed
    )
    model.fit(((x - mean) / spread).numpy(), y.numpy())
    weight = torch.from_numpy(model.coef_[0]).double() / spread
    bias = torch.from_numpy(model.intercept_)[0] - (weight * mean).sum()
    return Linear(weight.float(), bias.float())


def fit_many(
    x: Tensor, y: Tensor | Sequence[int], c: float = 1.0, standardize: bool = False, steps: int = 50
) -> Linear:
    """A logistic probe for each head, the same optimum as `logistic` (squared penalty, free bias), all at once.

    Args:
        x: (n, heads, width).
        y: (n,), true or false.
        c, standardize: as in `logistic`.
        steps: Newton steps at most; some ten suffice.
    """
    x, y = checked(x, y)
    if x.dim() != 3:
        raise InputError(f"fit_many reads (n, heads, width) states, not {tuple(x.shape)}.")
    mean, spread = standardization(x) if standardize else (x.mean(0), torch.ones(x.shape[1:]))
    weights = [_newton(((x[:, head] - mean[head]) / spread[head]), y.double(), c, steps) for head in range(x.shape[1])]
    stacked = torch.stack(weights)
    weight = stacked[:, :-1] / spread
    return Linear(weight.float(), (stacked[:, -1] - (weight * mean).sum(-1)).float())


def _newton(x: Tensor, y: Tensor, c: float, steps: int) -> Tensor:
    """The (width + 1,) minimum of |w|^2 / 2 + c sum(logistic loss), the bias last and free; long steps are halved."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    penalty = torch.ones(x.shape[1], dtype=x.dtype)
    penalty[-1] = 0

    def loss(w: Tensor) -> Tensor:
        return (penalty * w * w).sum() / 2 + c * torch.nn.functional.binary_cross_entropy_with_logits(
            x @ w, y, reduction="sum"
        )

    w = torch.zeros(x.shape[1], dtype=x.dtype)
    now = loss(w)
    for _ in range(steps):
        p = torch.sigmoid(x @ w)
        gradient = penalty * w + c * (x.T @ (p - y))
        curvature = (x * (c * p * (1 - p))[:, None]).T @ x + torch.diag(penalty + 1e-9)
        step = torch.linalg.solve(curvature, gradient)
        size = 1.0
        while (after := loss(w - size * step)) > now and size > 1e-6:
            size /= 2
        done = now - after < 1e-10 * (1 + now.abs())
        if after <= now:
            w, now = w - size * step, after
        if done:
            break
    return w


def accuracies(probe: Linear, x: Tensor, y: Tensor | Sequence[int]) -> Tensor:
    """The share of states that each head's probe calls right, (heads,): what ITI ranks heads by."""
    x, y = checked(x, y)
    return ((probe.score(x) > 0) == y.view(-1, *[1] * (x.dim() - 2))).double().mean(0)


def aurocs(scores: Tensor, y: Tensor | Sequence[int]) -> Tensor:
    """The AUROC of each column of scores, (n, ...) -> (...)."""
    scores, y = checked(scores, y)
    return area(scores[y], scores[~y])


def evaluate(scores: Tensor, y: Tensor | Sequence[int]) -> dict[str, float | int]:
    """AUROC, average precision, true-positive rate at 1 % false positives, and n, of (n,) scores.

    With fewer than 100 false states no rate between 0 and 1 % exists: then it is the rate at no false positive.

    Raises:
        InputError: if all labels are equal, or a score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    scores, y = checked(scores, y)
    if scores.dim() != 1:
        raise InputError(f"One score a state is needed, not {tuple(scores.shape)}.")
    false_rate, true_rate, _ = roc_curve(y.numpy(), scores.numpy(), drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(y.numpy(), scores.numpy())),
        "ap": float(average_precision_score(y.numpy(), scores.numpy())),
        "tpr_at_1_fpr": float(true_rate[false_rate <= 0.01].max()),
        "n": len(y),
    }


def split(groups: Sequence[Hashable], test: float = 0.25, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Row numbers to fit on and to test on; no group is in both.

    Raises:
        InputError: if there is only one group.
    """
    from sklearn.model_selection import GroupShuffleSplit

    numbers = _numbered(groups, 2)
    fit, held = next(GroupShuffleSplit(1, test_size=test, random_state=seed).split(numbers, groups=numbers))
    return torch.from_numpy(fit), torch.from_numpy(held)


def folds(groups: Sequence[Hashable], k: int = 2, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """k splits as in `split`; every row is in one test part.

    Raises:
        InputError: if there are fewer than k groups.
    """
    from sklearn.model_selection import GroupKFold

    numbers = _numbered(groups, k)
    for fit, held in GroupKFold(k, shuffle=True, random_state=seed).split(numbers, groups=numbers):
        yield torch.from_numpy(fit), torch.from_numpy(held)


def held_out_scores(
    fit: Callable[[Tensor, Tensor], Linear], x: Tensor, y: Tensor, groups: Sequence[Hashable], k: int = 5, seed: int = 0
) -> Tensor:
    """A score for every row, (n, ...), by a probe that was fitted on other groups: `evaluate` them.

    Args:
        fit: makes a probe from states and labels, such as `mass_mean`.
    """
    x, y = checked(x, y)
    scores = torch.zeros(x.shape[:-1])
    for rest, held in folds(groups, k, seed):
        scores[held] = fit(x[rest], y[rest]).score(x[held])
    return scores


def _numbered(groups: Sequence[Hashable], least: int) -> np.ndarray:
    known = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(known) < least:
        raise InputError(f"{least} groups or more are needed to keep fitting and testing apart, not {len(known)}.")
    return np.array([known[group] for group in groups])


def standardization(x: Tensor) -> tuple[Tensor, Tensor]:
    spread = x.std(0, unbiased=False)
    return x.mean(0), torch.where(spread > 0, spread, 1.0)


def checked(x: Tensor, y: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """The states or scores as float64 and the labels as bool."""
    x, y = x.detach().cpu().double(), torch.as_tensor(y).detach().cpu().bool()
    if y.dim() != 1 or len(x) != len(y):
        raise InputError(f"{len(x)} states need as many labels, not {tuple(y.shape)}.")
    if not 0 < int(y.sum()) < len(y):
        raise InputError(f"A probe needs true and false states; all {len(y)} labels given are the same.")
    if not x.isfinite().all():
        raise InputError("The states hold NaN or infinite values.")
    return x, y
