"""Small perceptrons as probes, one or one for each head, trained together.

NL-ITI (Hoscilowicz et al., arXiv 2403.18680) ranks heads by one hidden layer of 16 with batch normalization, the
defaults here; the detector reconstructed for TruthPrInt (ICCV 2025, arXiv 2503.10602) has `hidden=(256, 256)` and none.
After training, normalization is folded into the weights: what is left is matrices with a ReLU between them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, binary_cross_entropy_with_logits, relu

from vlmsteer.errors import InputError
from vlmsteer.probes import checked, split, standardization

EPSILON = 1e-5  # of batch normalization


@dataclass(frozen=True)
class Perceptron:
    """Matrices (in, out), or (heads, in, out), and biases (out,), or (heads, out), float32; ReLU between them."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def score(self, x: Tensor) -> Tensor:
        """(n, width) -> (n,), or (n, heads, width) -> (n, heads): the log-odds of "true"."""
        x = x.detach().to(self.weights[0].device).float().unsqueeze(-2)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (relu(x) if number else x) @ weight + bias.unsqueeze(-2)
        return x[..., 0, 0]

    def head(self, number: int) -> Perceptron:
        """The perceptron of one head."""
        return Perceptron(tuple(w[number] for w in self.weights), tuple(b[number] for b in self.biases))

    def tensors(self) -> dict[str, Tensor]:
        """By name, to be kept in a recipe's rule."""
        named = {f"weight.{number}": weight for number, weight in enumerate(self.weights)}
        return named | {f"bias.{number}": bias for number, bias in enumerate(self.biases)}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Perceptron:
        """What `tensors` named."""
        depth = sum(name.startswith("weight.") for name in tensors)
        return Perceptron(
            tuple(tensors[f"weight.{number}"] for number in range(depth)),
            tuple(tensors[f"bias.{number}"] for number in range(depth)),
        )


def fit_perceptron(
    x: Tensor,
    y: Tensor | Sequence[int],
    groups: Sequence[Hashable],
    hidden: Sequence[int] = (16,),
    normalize: bool = True,
    rate: float = 5e-4,
    decay: float = 1e-4,
    epochs: int = 10,
    batch_size: int = 32,
    standardize: bool = False,
    seed: int = 0,
) -> Perceptron:
    """Train by Adam on the cross-entropy; each head keeps the epoch with the least loss on a fifth of the groups.

    Args:
        x: (n, width), or (n, heads, width).
        y: (n,), true or false.
        groups: (n,), what belongs together and is not parted between training and validation.
        hidden: widths of the hidden layers.
        normalize: batch normalization before each ReLU.
        standardize: bring every input to mean 0 and variance 1 first; states with a few huge numbers need it.

    Raises:
        InputError: if all labels are equal, or there is one group only.
    """
    x, y = checked(x, y)
    single = x.dim() == 2
    x = x[:, None] if single else x
    fit, held = split(groups, 0.2, seed)
    if len(fit) < 2:
        raise InputError("A perceptron needs two or more states to train on.")
    mean, spread = standardization(x[fit]) if standardize else (torch.zeros(x.shape[1:]), torch.ones(x.shape[1:]))
    x = ((x - mean) / spread).float().transpose(0, 1).contiguous()  # (heads, n, width)
    targets = y.float().expand(len(x), -1)
    network = _Network(len(x), [x.shape[-1], *hidden, 1], normalize, seed)
    optimizer = torch.optim.Adam(network.learned, lr=rate, weight_decay=decay)
    generator = torch.Generator().manual_seed(seed)
    least = torch.full((len(x),), torch.inf)
    best = [value.detach().clone() for value in network.state]
    for _ in range(epochs):
        for rows in fit[torch.randperm(len(fit), generator=generator)].split(batch_size):
            if len(rows) > 1:  # the variance of a batch of one is no variance
                optimizer.zero_grad()
                # A sum over heads: each is trained as if it were alone.
                scores = network(x[:, rows], training=True)
                losses = binary_cross_entropy_with_logits(scores, targets[:, rows], reduction="none").mean(1)
                losses.sum().backward()
                optimizer.step()
        with torch.no_grad():
            scores = network(x[:, held], training=False)
            loss = binary_cross_entropy_with_logits(scores, targets[:, held], reduction="none").mean(1)
            better = (loss < least)[:, None, None]
            best = [torch.where(better, now, old) for now, old in zip(network.state, best, strict=True)]
            least = torch.minimum(loss, least)
    for value, kept in zip(network.state, best, strict=True):
        value.data = kept
    probe = network.folded(mean.float(), spread.float())
    return probe.head(0) if single else probe


class _Network:
    """A perceptron for each head while it is trained; everything is (heads, 1 or in, out)."""

    def __init__(self, heads: int, widths: Sequence[int], normalize: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights, self.biases, self.scales, self.shifts, self.means, self.variances = [], [], [], [], [], []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            for kept, rows in ((self.weights, before), (self.biases, 1)):  # as torch.nn.Linear starts
                drawn = torch.rand(heads, rows, after, generator=generator) * 2 - 1
                kept.append((drawn / before**0.5).requires_grad_())
        for width in widths[1:-1] if normalize else ():
            self.scales.append(torch.ones(heads, 1, width, requires_grad=True))
            self.shifts.append(torch.zeros(heads, 1, width, requires_grad=True))
            self.means.append(torch.zeros(heads, 1, width))
            self.variances.append(torch.ones(heads, 1, width))
        self.learned: list[Tensor] = [*self.weights, *self.biases, *self.scales, *self.shifts]
        self.state = [*self.learned, *self.means, *self.variances]

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """(heads, n, width) -> (heads, n)."""
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (relu(x) if number else x) @ weight + bias
            if number < len(self.scales):
                heads, rows, width = x.shape
                parts = (self.means, self.variances, self.scales, self.shifts)
                mean, variance, scale, shift = (part[number].view(-1) for part in parts)
                flat = x.transpose(0, 1).reshape(rows, heads * width)
                flat = batch_norm(flat, mean, variance, scale, shift, training, eps=EPSILON)
                x = flat.view(rows, heads, width).transpose(0, 1)
        return x[..., 0]

    def folded(self, mean: Tensor, spread: Tensor) -> Perceptron:
        """The same function of inputs that were not standardized, by matrices and biases alone."""
        weights, biases = [], []
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            weight, bias = weight.detach(), bias.detach()
            if number == 0:
                weight = weight / spread[..., None]
                bias = bias - mean[:, None] @ weight
            if number < len(self.scales):
                factor = self.scales[number].detach() / (self.variances[number] + EPSILON).sqrt()
                weight, bias = weight * factor, (bias - self.means[number]) * factor + self.shifts[number].detach()
            weights.append(weight)
            biases.append(bias[:, 0])
        return Perceptron(tuple(weights), tuple(biases))
