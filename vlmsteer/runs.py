"""What is active on a model inside one `with` block: edits, rules, what is read, and what is known of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from vlmsteer.actions import Action, Rules
from vlmsteer.sites import Site
from vlmsteer.states import States


class Prompt(NamedTuple):
    """What the caller knows of the prompt: its columns with padding, its question and image tokens, (rows, columns).

    Where an encoder reads the prompt, `start` is how many tokens the decoder starts from. `begun` is how many columns a
    shared beginning has, which is read by itself.
    """

    columns: int
    question: Tensor | None = None
    image: Tensor | None = None
    start: int | None = None
    begun: int = 0

    def repeat(self, count: int) -> Prompt:
        """Every row `count` times in a row."""
        question, image = (f if f is None else f.repeat_interleave(count, 0) for f in (self.question, self.image))
        return Prompt(self.columns, question, image, self.start, self.begun)


class Enough(Exception):
    """No error: ends a forward after the last site that somebody reads. The session that ended it catches it."""


LOGITS = Site("text", 0, "logits")  # what the unembedding gives; no site that users edit or read


@dataclass
class Run:
    """What is active on one model inside one `with` block.

    `rows` is how many rows have recipes of their own, None if one recipe is for all. `owners` says which of them the
    rows of the text tower's batch are, where only some are left; (rows, branches) where a row has a token of each.
    `decided` is what gates have decided at the prompt, `passing` what rules need of the forward under way. A forward is
    ended after the site `end`, if there is one.
    """

    actions: Mapping[Site, list[Action]] = field(default_factory=dict)
    rows: int | None = None
    states: States | None = None
    prompt: Prompt | None = None
    owners: Tensor | None = None
    rules: list[Rules] = field(default_factory=list)
    decided: dict[Action, Tensor] = field(default_factory=dict)
    passing: dict[Site, Tensor] = field(default_factory=dict)
    end: Site | None = None

    def __post_init__(self) -> None:
        self.gated: dict[Site, list[Action]] = {}
        for action in (action for actions in self.actions.values() for action in actions):
            for site in dict.fromkeys(gate.site for gate in action.gates if gate is not None):
                self.gated.setdefault(site, []).append(action)
        read = {site for rule in self.rules for site in rule.sites}
        self.sites = {*self.actions, *self.gated, *read, *(self.states.sites if self.states else ())}
        if self.rules:
            self.sites.add(LOGITS)
        if self.end is not None:
            self.sites.add(self.end)
        self.branched = self.owners is not None and self.owners.dim() == 2
