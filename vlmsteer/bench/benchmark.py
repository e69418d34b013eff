"""What every benchmark is to the runner: items to ask, scorers that count, metrics that are functions of sums.

A published benchmark has several scorers in use that disagree on the same answers, so a scorer has a name and a source
and is never implied. Whatever it computes is a function of counts that add up over groups of items; resampling the
groups then gives an interval for any of it, F1 and harmonic means as well as shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmsteer.bench.files import Files, Published
from vlmsteer.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from vlmsteer.bench.judged import Judged
    from vlmsteer.recipe import Recipe

Sums = Mapping[str, np.ndarray]  # each of one shape, () or (draws,)


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique within the benchmark.
        image: the image's file, None if the question is asked without one.
        prompt: the question as it is asked, with whatever the benchmark's protocol adds to it.
        group: what belongs together (the questions about an image, a pair, a quadruple): a limit keeps it whole.
        gold: what scorers read besides the answer: JSON values.
        choices: answers whose log-probabilities are asked for instead of a written answer.
        max_new_tokens: the longest answer, None for the benchmark's.
        kind: what groups share in turn, such as the object that several pairs show; None if nothing.
    """

    id: str
    image: str | None
    prompt: str
    group: str
    gold: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    kind: str | None = None

    @property
    def cluster(self) -> str:
        """What intervals resample whole."""
        return self.group if self.kind is None else self.kind


@dataclass(frozen=True)
class Answer:
    """What a model gave for an item.

    Attributes:
        text: what it wrote; empty if it was asked for choices.
        logprobs: log-probabilities in nats: of each of the item's choices, the sum over its tokens; or, where a
            question wants yes or no, of "yes" and "no" as the first token.
    """

    text: str
    logprobs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One way to ask: the model alone, with a recipe at some strength, or a control.

    Attributes:
        name: unique in a run: "none", "vista", "vista x0.5", "vista x0.5, random 1".
        recipe: already scaled; None is the baseline, the model alone.
        kind: "baseline", "recipe" or "random" (random directions of the recipe's own lengths).
        of: the arm that a random one controls.
        strength: the multiple of the recipe's own strength.
    """

    name: str
    recipe: Recipe | None
    kind: str
    of: str | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Tally:
    """Counts by row, each as long as `groups`; a row is an item, or whatever is scored together (a pair, an image).

    `groups` are the items' clusters, which intervals resample whole.
    """

    groups: list[str]
    counts: dict[str, list[float]]

    def sums(self) -> dict[str, np.ndarray]:
        """Each count's sum over all rows, of shape ()."""
        return {name: np.asarray(np.sum(values, dtype=np.float64)) for name, values in self.counts.items()}


@dataclass(frozen=True)
class Scorer:
    """One way to score a benchmark's answers.

    Attributes:
        name: as in `pope@aoidragon`.
        source: whose rules these are: repository@commit and file, or "ours".
        tally: counts of items with their answers, both of the same length and order. Items without an answer (an
            error) are not among them; what can only be scored as a whole (a pair) is left out if a part is missing.
        metrics: of sums of the counts, arrays of any one shape; nan where a metric is undefined.
        wanted: of each metric, 1 if more is better, -1 if less is, 0 if neither. The first is the main one.
        percent: metrics that are in percent already, 0 to 100.
        numbers: metrics that are plain numbers, such as a length or points of a test; all others are shares, 0 to 1.
        version: counted up whenever the same answers would score differently.
        notes: what its metrics are, where their names do not say it.
    """

    name: str
    source: str
    tally: Callable[[Sequence[Item], Sequence[Answer]], Tally]
    metrics: Callable[[Sums], dict[str, np.ndarray]]
    wanted: Mapping[str, int]
    percent: frozenset[str] = frozenset()
    version: int = 1
    numbers: frozenset[str] = frozenset()
    notes: str = ""

    def unit(self, metric: str) -> str:
        """ "share" (0 to 1), "percent" (0 to 100) or "number"."""
        return "percent" if metric in self.percent else "number" if metric in self.numbers else "share"

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, float]:
        """The metrics of all answers."""
        return {name: float(value) for name, value in self.metrics(self.tally(items, answers).sums()).items()}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: on the command line.
        title, source: what users read: its name, and paper and repository@commit of its files.
        load: items, from local files first and the hub second; options differ by benchmark and all have defaults.
            Loading opens no image, but asks `files` for each, so that all that are missing are known at once.
        scorers: the first is the default, the original authors' rules where they can be run.
        max_new_tokens: the longest answer in the original protocol.
        yes_no: whether answers are yes or no, so that the first token's log-probabilities are recorded too.
        version: counted up whenever the same files would give other items.
        notes: what a user should know before comparing with published numbers.
        hub: where its files are fetched from if they are not here, None if their authors do not keep them there.
        against: scorers of an arm's answers held against the baseline's, which are given by item, such as of how many
            a recipe flipped to a target. The first goes with the first of `scorers`, and so on.
        judged: what a judge is asked, None if no scorer needs one. Scorers that do find nothing judged here.
    """

    name: str
    title: str
    source: str
    load: Callable[..., list[Item]]  # load(files: Files, **options)
    scorers: tuple[Scorer, ...]
    max_new_tokens: int
    yes_no: bool = False
    version: int = 1
    notes: str = ""
    hub: Published | None = None
    against: tuple[Callable[[Mapping[str, Answer]], Scorer], ...] = ()
    judged: Judged | None = None

    def scorer(self, name: str | None = None) -> Scorer:
        """A scorer by its name, by default the first.

        Raises:
            InputError: if there is none of this name.
        """
        known = {scorer.name: scorer for scorer in self.scorers}
        if name is None:
            return self.scorers[0]
        if name not in known:
            raise InputError(f"{self.name} has no scorer {name!r}{did_you_mean(name, known)}.")
        return known[name]

    def items(self, files: Files, **options: Any) -> list[Item]:
        """The loaded items, checked.

        Raises:
            InputError: if files cannot be read, ids are not unique, there are no items, or images are missing (all of
                them are named, the first few in full).
        """
        files.published = files.published or self.hub
        found = self.load(files, **options)
        if not found:
            raise InputError(f"{self.title}: the files hold no items.")
        seen: set[str] = set()
        twice = [item.id for item in found if item.id in seen or seen.add(item.id)]
        if twice:
            raise InputError(f"{self.title}: the id {twice[0]!r} stands for more than one item ({len(twice)} such).")
        files.check_images()
        return found


def share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, nan where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, np.divide(above, below))
