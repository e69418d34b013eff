"""What a method learns from a stream of states, in memory that does not grow with the stream.

Every accumulator takes batches of rows by `update` and gives its result at any time. Two of the same kind merge by `+`,
so parts of a data set may be read by different processes. Sums are float64 and centered as they go (Chan, Golub and
LeVeque 1983), because states have a mean far larger than what they differ by.
"""

from __future__ import annotations

from copy import copy
from typing import Self

import torch
from torch import Tensor

from vlmsteer.errors import InputError


class Mean:
    """The mean, and on demand the variance, of rows of any shape.

    Args:
        spread: also keep what the variance needs, as much memory again.
    """

    def __init__(self, spread: bool = False) -> None:
        self.weight = 0.0
        self._spread = spread
        self._mean = self._squares = torch.zeros(())

    def update(self, rows: Tensor, weights: Tensor | None = None) -> Self:
        """Take in `rows`, (n, ...), each counting once or `weights` (n,) times.

        Raises:
            InputError: if the rows have another shape than those before, or a weight is negative.
        """
        rows = _rows(rows)
        if weights is None:
            weights = torch.ones(len(rows), dtype=torch.float64)
        weights = weights.detach().cpu().double()
        if weights.shape != rows.shape[:1] or (weights < 0).any():
            raise InputError(
                f"{len(rows)} rows need as many weights, none of them negative, not {tuple(weights.shape)}."
            )
        total = float(weights.sum())
        if total == 0:
            return self
        by_row = weights.view(-1, *[1] * (rows.dim() - 1))
        mean = (rows * by_row).sum(0) / total
        squares = ((rows - mean).square() * by_row).sum(0) if self._spread else torch.zeros(())
        return self._join(total, mean, squares)

    def _join(self, weight: float, mean: Tensor, squares: Tensor) -> Self:
        if self.weight == 0:
            self._mean = torch.zeros_like(mean)
        _same(self._mean.shape, mean.shape)
        total, difference = self.weight + weight, mean - self._mean
        if self._spread:
            self._squares = self._squares + squares + difference.square() * (self.weight * weight / total)
        self._mean = self._mean + difference * (weight / total)
        self.weight = total
        return self

    def __add__(self, other: Mean) -> Mean:
        if self._spread != other._spread:
            raise InputError("Only means that both keep the spread, or both do not, can be merged.")
        both = copy(self)
        return both._join(other.weight, other._mean, other._squares) if other.weight else both

    @property
    def mean(self) -> Tensor:
        """The mean row, float64."""
        _need(self.weight > 0)
        return self._mean

    @property
    def variance(self) -> Tensor:
        """The variance of each number, float64, divided by the number of rows and not by one less."""
        _need(self.weight > 0)
        if not self._spread:
            raise InputError("This mean keeps no spread; make it as Mean(spread=True).")
        return self._squares / self.weight


class Covariance:
    """Mean and covariance of rows of a width up to some thousand: (width, width) numbers are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._scatter = torch.zeros(())

    def update(self, rows: Tensor) -> Self:
        """Take in `rows`, (n, width)."""
        rows = _rows(rows)
        if rows.dim() != 2:
            raise InputError(f"A covariance is taken of (n, width) rows, not of {tuple(rows.shape)}.")
        if len(rows) == 0:
            return self
        mean = rows.mean(0)
        centered = rows - mean
        return self._join(len(rows), mean, centered.T @ centered)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> Self:
        if self.count == 0:
            self._mean = torch.zeros_like(mean)
        _same(self._mean.shape, mean.shape)
        total, difference = self.count + count, mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(difference, difference) * (self.count * count / total)
        self._mean = self._mean + difference * (count / total)
        self.count = total
        return self

    def __add__(self, other: Covariance) -> Covariance:
        both = copy(self)
        return both._join(other.count, other._mean, other._scatter) if other.count else both

    @property
    def mean(self) -> Tensor:
        """(width,), float64."""
        _need(self.count > 0)
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(width, width), float64, divided by one less than the number of rows."""
        _need(self.count > 1)
        return self._scatter / (self.count - 1)

    def components(self, k: int) -> tuple[Tensor, Tensor]:
        """The k principal directions, (k, width) with unit rows, and the variances along them, (k,), largest first."""
        variances, directions = torch.linalg.eigh(self.covariance)
        order = torch.arange(len(variances) - 1, -1, -1)[:k]
        return _signed(directions[:, order].T, self.mean), variances[order].clamp_min(0)


class Difference:
    """The mean of the rows that are marked minus the mean of the others (a difference of means)."""

    def __init__(self) -> None:
        self.marked, self.others = Mean(), Mean()

    def update(self, rows: Tensor, marks: Tensor) -> Self:
        """Take in `rows`, (n, ...), and which of them are marked, (n,) bool."""
        if marks.dtype != torch.bool or marks.shape != rows.shape[:1]:
            raise InputError(f"{len(rows)} rows need as many marks, each true or false, not {tuple(marks.shape)}.")
        marks = marks.to(rows.device)
        self.marked.update(rows[marks])
        self.others.update(rows[~marks])
        return self

    def __add__(self, other: Difference) -> Difference:
        both = copy(self)
        both.marked, both.others = self.marked + other.marked, self.others + other.others
        return both

    @property
    def difference(self) -> Tensor:
        """Marked minus others, float64."""
        return self.marked.mean - self.others.mean


class Largest:
    """The k largest values of every number, and which rows have them (what a neuron fires at).

    Args:
        k: how many.
    """

    def __init__(self, k: int) -> None:
        if type(k) is not int or k < 1:
            raise InputError(f"The largest values are 1 or more of each number, not {k!r}.")
        self.k = k
        self._values, self._rows = torch.zeros(0), torch.zeros(0, dtype=torch.long)

    def update(self, rows: Tensor, numbers: Tensor) -> Self:
        """Take in `rows`, (n, ...), and their numbers, (n,) integers."""
        rows, numbers = rows.detach().cpu().float(), numbers.detach().cpu().long()
        if numbers.shape != rows.shape[:1]:
            raise InputError(f"{len(rows)} rows need as many numbers, not {tuple(numbers.shape)}.")
        return self._join(rows, numbers.view(-1, *[1] * (rows.dim() - 1)).expand(rows.shape))

    def _join(self, values: Tensor, rows: Tensor) -> Self:
        if self._values.numel():
            _same(self._values.shape[1:], values.shape[1:])
            values, rows = torch.cat([self._values, values]), torch.cat([self._rows, rows])
        # Of equal values the row with the smaller number comes first, whatever the order they came in.
        order = rows.argsort(dim=0, stable=True)
        values, rows = values.gather(0, order), rows.gather(0, order)
        order = values.argsort(dim=0, descending=True, stable=True)[: self.k]
        self._values, self._rows = values.gather(0, order), rows.gather(0, order)
        return self

    def __add__(self, other: Largest) -> Largest:
        if self.k != other.k:
            raise InputError(f"The {self.k} largest and the {other.k} largest cannot be merged.")
        both = copy(self)
        return both._join(other._values, other._rows) if other._values.numel() else both

    @property
    def values(self) -> Tensor:
        """(k, ...) float32, largest first; fewer where fewer rows were read."""
        return self._values

    @property
    def rows(self) -> Tensor:
        """(k, ...) the numbers of the rows that have them."""
        return self._rows


class Components:
    """The top principal components of rows too wide for a covariance, by incremental singular value decomposition.

    Batches are stacked below the `size` strongest weighted directions so far and cut back to `size` (Ross, Lim, Lin and
    Yang, IJCV 2008). Exact while the rows read, or their rank, are at most `size`; otherwise what is cut each time is
    lost, little if the spectrum decays. 2 `size` rows are held, 35 MB for size 16 and width 135,168, and for a moment
    five times `size` when they are joined.

    Rows are (n, width), or (n, groups, width) for components of each group on its own; flatten them first for
    components over all groups together (VTI's over all layers).

    Args:
        k: how many components will be asked for.
        centered: of the rows minus their mean, or of the rows as they are.
        size: directions kept, by default 4 k, and 16 or more.
        dtype: of what is kept; float32 halves the memory.
    """

    def __init__(
        self, k: int = 1, centered: bool = True, size: int | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        self.k, self.centered, self.size, self.dtype = k, centered, size or max(4 * k, 16), dtype
        if k < 1 or self.size < k:
            raise InputError(f"The components kept, {self.size}, cannot be fewer than the {k} asked for, or than one.")
        self._mean, self._sketch, self._waiting = Mean(), torch.zeros(()), []
        self._single = True

    @property
    def count(self) -> int:
        """The number of rows read."""
        return int(self._mean.weight) + sum(len(rows) for rows in self._waiting)

    def update(self, rows: Tensor) -> Self:
        """Take in `rows`, (n, width) or (n, groups, width)."""
        rows = rows.detach().cpu().to(self.dtype)
        if rows.dim() not in (2, 3):
            raise InputError(
                f"Components are taken of (n, width) or (n, groups, width) rows, not of {tuple(rows.shape)}."
            )
        self._single = rows.dim() == 2
        rows = rows[:, None] if self._single else rows
        while len(rows):
            if self._waiting:
                _same(self._waiting[0].shape[1:], rows.shape[1:])
            room = self.size - sum(len(part) for part in self._waiting)
            self._waiting.append(rows[:room].clone())  # not a view, which would keep the caller's whole batch alive
            if len(rows) >= room:
                self._settle()
            rows = rows[room:]
        return self

    def _settle(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat(self._waiting)
        self._waiting = []
        mean = Mean().update(rows)
        centered = rows - mean.mean.to(self.dtype) if self.centered else rows
        self._join(mean, centered.movedim(0, 1))

    def _join(self, mean: Mean, sketch: Tensor) -> None:
        """Add rows about their own mean, (groups, rows, width), to the sketch."""
        parts = [sketch]
        if self._mean.weight:
            _same(self._sketch.shape[::2], sketch.shape[::2])
            parts.append(self._sketch)
            if self.centered:
                between = (self._mean.weight * mean.weight / (self._mean.weight + mean.weight)) ** 0.5
                parts.append(((mean.mean - self._mean.mean) * between).to(self.dtype)[:, None])
        stack = torch.cat(parts, 1)
        if stack.shape[1] > self.size:
            # The left singular vectors of a few wide rows come from their small Gram matrix.
            left = torch.linalg.eigh((stack @ stack.mT).double())[1]
            stack = left[..., -self.size :].mT.to(self.dtype) @ stack
        self._mean, self._sketch = self._mean + mean, stack

    def __add__(self, other: Components) -> Components:
        if (self.size, self.centered) != (other.size, other.centered):
            raise InputError("Only components of one size, both centered or both not, can be merged.")
        both, also = copy(self), copy(other)
        both._waiting, also._waiting = list(self._waiting), list(other._waiting)
        both._settle()
        also._settle()
        if also._mean.weight:
            both._join(also._mean, also._sketch)
            both._single = also._single
        return both

    @property
    def mean(self) -> Tensor:
        """The mean row, (width,) or (groups, width), float64."""
        self._settle()
        return self._mean.mean[0] if self._single else self._mean.mean

    def components(self, k: int | None = None) -> tuple[Tensor, Tensor]:
        """The top directions, (k, width) with unit rows, and the variances along them, (k,); with groups in front.

        A direction's sign is that of its product with the mean row, so that it points where the rows do.

        Raises:
            InputError: if fewer rows than components, or than two, were read.
        """
        self._settle()
        k = k or self.k
        _need(self.count > 1)
        if k > self._sketch.shape[1]:
            raise InputError(
                f"{k} components were asked for; {self.count} rows and size {self.size} give {self._sketch.shape[1]}."
            )
        sketch = self._sketch.double()
        squares, left = torch.linalg.eigh(sketch @ sketch.mT)
        squares, left = squares[..., -k:].flip(-1).clamp_min(0), left[..., -k:].flip(-1)
        directions = torch.nn.functional.normalize(left.mT @ sketch, dim=-1)
        directions = _signed(directions, self._mean.mean)
        variances = squares / (self.count - 1 if self.centered else self.count)
        return (directions[0], variances[0]) if self._single else (directions, variances)


def _rows(rows: Tensor) -> Tensor:
    return rows.detach().cpu().double()  # on the CPU first: not every device has float64


def _same(before: torch.Size, now: torch.Size) -> None:
    if before != now:
        raise InputError(f"Rows of shape {tuple(now)} cannot follow rows of shape {tuple(before)}.")


def _need(enough: bool) -> None:
    if not enough:
        raise InputError("Too few rows have been read for this: a mean needs one, a covariance or component two.")


def _signed(directions: Tensor, mean: Tensor) -> Tensor:
    """Directions turned to agree with the mean; where they are at right angles, with a positive largest number."""
    agree = (directions * mean.unsqueeze(-2)).sum(-1, keepdim=True)
    agree = torch.where(agree.abs() > 1e-9 * mean.norm(dim=-1)[..., None, None], agree, 0)
    largest = directions.gather(-1, directions.abs().argmax(-1, keepdim=True))
    return torch.where(torch.where(agree == 0, largest, agree) < 0, -directions, directions)
