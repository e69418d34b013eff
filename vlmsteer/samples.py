"""Samples of a stream, where its sums do not say enough: sorted values for optimal transport, ranks for AUROC.

A reservoir keeps at most as many rows as it is told to (Vitter, ACM TOMS 1985, in the form that merges: every row draws
a number, the smallest stay). Up to that many rows everything is exact.
"""

from __future__ import annotations

from copy import copy
from typing import Self

import torch
from torch import Tensor

from vlmsteer.errors import InputError


class Sample:
    """A uniform sample of at most `limit` rows; all of them while there are no more.

    Every row draws a number, and the rows with the smallest are kept. Give accumulators that will be merged different
    seeds, so that their draws are independent.
    """

    def __init__(self, limit: int = 1024, seed: int = 0) -> None:
        if limit < 1:
            raise InputError(f"A sample keeps one row or more, not {limit}.")
        self.limit, self.count = limit, 0
        self._generator = torch.Generator().manual_seed(seed)
        self._rows, self._draws = torch.zeros(0), torch.zeros(0, dtype=torch.float64)

    def update(self, rows: Tensor) -> Self:
        """Take in `rows`, (n, ...); they are kept as float32."""
        draws = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
        return self._join(len(rows), rows.detach().cpu().float(), draws)

    def _join(self, count: int, rows: Tensor, draws: Tensor) -> Self:
        if count and self.count:
            same = self._rows.shape[1:] == rows.shape[1:]
            if not same:
                raise InputError(f"Rows of shape {tuple(rows.shape[1:])} cannot follow {tuple(self._rows.shape[1:])}.")
        self.count += count
        if len(self._draws) == self.limit:
            likely = draws < self._draws.max()
            rows, draws = rows[likely], draws[likely]
        if len(draws):
            rows = torch.cat([self._rows, rows]) if len(self._draws) else rows
            draws = torch.cat([self._draws, draws])
            kept = draws.argsort()[: self.limit]
            self._rows, self._draws = rows[kept], draws[kept]
        return self

    def __add__(self, other: Sample) -> Sample:
        if self.limit != other.limit:
            raise InputError(f"Only samples of one limit can be merged, not of {self.limit} and {other.limit}.")
        both = copy(self)
        both._generator = torch.Generator().set_state(self._generator.get_state())
        return both._join(other.count, other._rows, other._draws)

    @property
    def rows(self) -> Tensor:
        """The kept rows, (m, ...) float32, in no order."""
        if not self.count:
            raise InputError("No rows have been read yet.")
        return self._rows

    def sorted(self) -> Tensor:
        """The kept rows with every number sorted on its own, (m, ...)."""
        return self.rows.sort(0).values

    def quantiles(self, points: int) -> Tensor:
        """The quantiles at (i + 1/2) / points of every number, (points, ...), for samples of different sizes."""
        ordered = self.sorted()
        place = (torch.arange(points) + 0.5) / points * len(ordered) - 0.5
        place = place.clamp(0, len(ordered) - 1)
        low = place.floor().long()
        high = (low + 1).clamp_max(len(ordered) - 1)
        part = (place - low).view(-1, *[1] * (ordered.dim() - 1))
        return torch.lerp(ordered[low], ordered[high], part)


class Area:
    """How well every number of a row tells positive rows from negative ones: AUROC, on samples of both."""

    def __init__(self, limit: int = 1024, seed: int = 0) -> None:
        self.positives, self.negatives = Sample(limit, seed), Sample(limit, seed + 1)

    def update(self, rows: Tensor, labels: Tensor) -> Self:
        """Take in `rows`, (n, ...), whose `labels`, (n,), are true or 1 for positives."""
        labels = labels.detach().cpu().bool()
        if labels.shape != rows.shape[:1]:
            raise InputError(f"{len(rows)} rows need as many labels, not {tuple(labels.shape)}.")
        rows = rows.detach().cpu()
        self.positives.update(rows[labels])
        self.negatives.update(rows[~labels])
        return self

    def __add__(self, other: Area) -> Area:
        both = copy(self)
        both.positives, both.negatives = self.positives + other.positives, self.negatives + other.negatives
        return both

    @property
    def auroc(self) -> Tensor:
        """The probability that a positive row has the larger number, ties counting half, for every number."""
        return area(self.positives.rows, self.negatives.rows)


def area(positives: Tensor, negatives: Tensor) -> Tensor:
    """The AUROC of every number of (n, ...) positive against (m, ...) negative rows, (...) float64."""
    above = positives.movedim(0, -1).contiguous()
    below = negatives.movedim(0, -1).sort(-1).values.contiguous()
    less, most = (torch.searchsorted(below, above, right=right).double() for right in (False, True))
    return (less + most).mean(-1) / (2 * below.shape[-1])
