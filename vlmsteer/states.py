"""What reading a model collects: the chosen tokens' states at each site, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vlmsteer.actions import Tap
from vlmsteer.errors import SiteError
from vlmsteer.sites import HEADS, Site
from vlmsteer.tokens import Positions, Selection

Sink = Callable[[Site, Tensor, Tensor], None]


class States:
    """What a reader collected: `states[site]` is (rows, width), or (rows, tokens, width) if a row has several.

    With `into` nothing is collected: it is called inside the hooks with a site, the number of each chosen token's row
    (tokens,), and the tokens (tokens, width).
    """

    def __init__(
        self,
        sites: Sequence[Site],
        positions: Positions,
        phase: str,
        taps: Mapping[Site, Tap],
        grad: bool,
        into: Sink | None = None,
    ) -> None:
        self.sites, self.positions, self.phase, self.grad = list(sites), positions, phase, grad
        self._taps, self._into = taps, into
        self._parts: dict[Site, list[tuple[Tensor, Tensor]]] = {site: [] for site in sites}
        self._base: Counter[Site] = Counter()
        self._batch: Counter[Site] = Counter()

    def record(self, site: Site, states: Tensor, selection: Selection | None, new_prompt: bool) -> Tensor:
        """Keep the selected tokens of one forward.

        Returns:
            The states to go on with, equal to those given. With `grad` they are made from the tensors that `rows`
            gives, so that the output has gradients with respect to these.
        """
        if new_prompt:
            self._base[site] += self._batch[site]
            self._batch[site] = states.shape[0]
        if selection is None:
            return states
        rows, columns = selection
        if rows is None or columns is None:
            rows = torch.arange(states.shape[0], device=states.device).repeat_interleave(states.shape[1])
            columns = torch.arange(states.shape[1], device=states.device).repeat(states.shape[0])
        chosen, numbers = states[rows, columns], rows + self._base[site]
        if site.point in HEADS:
            chosen = chosen.unflatten(-1, (self._taps[site].heads or 1, -1))
        if self._into is not None:
            self._into(site, numbers, chosen.detach())
            return states
        if not self.grad:
            self._parts[site].append((numbers, chosen.detach()))
            return states
        pieces = chosen.split(rows.unique_consecutive(return_counts=True)[1].tolist())
        self._parts[site] += zip(numbers.unique_consecutive()[:, None], pieces, strict=True)
        return states.index_put((rows, columns), torch.cat(pieces).flatten(1))

    def rows(self, site: Site | str) -> list[Tensor]:
        """For each row read, its tokens in order: (tokens, width), at `head` sites (tokens, heads, head_dim).

        Raises:
            SiteError: if the site was not read.
        """
        site = Site.parse(site) if isinstance(site, str) else site
        if site not in self._parts:
            raise SiteError(f"{site} was not read; read were {', '.join(map(str, self.sites[:6]))}...")
        if not self._parts[site]:
            raise SiteError(f"Nothing has been read at {site} yet: ask something inside the with block.")
        parts, count = self._parts[site], self._base[site] + self._batch[site]
        if self.grad and [int(rows[0]) for rows, _ in parts] == list(range(count)):
            return [values for _, values in parts]
        numbers = torch.cat([rows.expand(len(values)) for rows, values in parts])
        values = torch.cat([values for _, values in parts])
        return [values[numbers == row] for row in range(count)]

    def __getitem__(self, site: Site | str) -> Tensor:
        rows = self.rows(site)
        if len({len(row) for row in rows}) > 1:
            raise SiteError(
                f"Rows hold different numbers of {self.positions!r} tokens; use .rows({str(site)!r}) for a list."
            )
        stacked = torch.stack(rows)
        return stacked.squeeze(1) if stacked.shape[1] == 1 else stacked
