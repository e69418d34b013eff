"""Gates: probes that read a prompt once and decide for each row whether an edit acts on it."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmsteer.actions import Action
from vlmsteer.errors import SiteError
from vlmsteer.forwards import Forwards
from vlmsteer.runs import Run
from vlmsteer.sites import Site


def decide(forwards: Forwards, site: Site, states: Tensor, run: Run, action: Action) -> None:
    """Let the gates of an action that read here decide, if this forward brings the end of the prompt."""
    whole = next(gate for gate in action.gates if gate is not None and gate.site == site).positions == "all"
    ended = forwards.select(site, states, None, "last", "prefill")
    if ended is None:
        return
    frame = forwards.frame(site.tower)
    if whole and frame is not None and frame.start:
        raise SiteError("A gate that reads the mean of the prompt needs it in one forward; this prompt was split.")
    group, owners = forwards.ownership(site, states, run)
    numbers = _numbers(run, len(states))
    decided = torch.zeros(int(numbers.max()) + 1, dtype=torch.bool, device=states.device)
    selection = forwards.select(site, states, None, "all", "prefill") if whole else ended
    assert selection is not None
    rows, columns = selection
    if rows is None or columns is None:
        read = states.float().mean(1)
    else:
        read = torch.zeros(len(states), states.shape[-1], device=states.device)
        read.index_add_(0, rows, states[rows, columns].float())
        read /= torch.bincount(rows, minlength=len(states)).clamp(min=1)[:, None]
    if action.active is None:
        (gate,) = action.gates
        decided[numbers] = gate.decide(read) if gate is not None else True
    else:
        callers = torch.arange(len(states), device=states.device) // group if owners is None else owners
        for row, caller in enumerate(callers.tolist()):
            gate = action.gates[caller]
            decided[numbers[row]] = bool(gate.decide(read[row : row + 1])) if gate is not None else True
    run.decided[action] = decided


def let(run: Run, action: Action, batch: int) -> Tensor:
    """(rows of the batch,) where the gates of an action have decided that it acts."""
    if action not in run.decided:
        raise SiteError("A gate has not decided: its site comes later in this forward, or the prompt was split.")
    decided = run.decided[action]
    if run.owners is None:  # an encoder reads a prompt once, its decoder once a beam
        return decided.repeat_interleave(batch // len(decided))
    return decided[_numbers(run, batch)]


def _numbers(run: Run, batch: int) -> Tensor:
    """Which row of the prompt's batch each row of the text tower's batch is."""
    return torch.arange(batch) if run.owners is None else run.owners.flatten().cpu()
