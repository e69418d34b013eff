"""What a benchmark needs of a judge, and scorers that know what was said about an answer, whichever arm gave it.

A verdict belongs to a prompt, not to an item: arms that give one answer share it, and a control made of another arm's
answers has none. How many answers have no verdict is counted and said wherever a judged number stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Tally
from vlmsteer.bench.verdicts import Verdicts, load
from vlmsteer.errors import InputError

ByArm = Mapping[str, Mapping[str, Answer]]  # answers by arm and item
SLOT = "{}"
FILE = "verdicts.jsonl"  # in a run's folder


@dataclass(frozen=True)
class Judged:
    """What a benchmark needs of a judge.

    Attributes:
        prompts: what to ask about answers, by a key of the benchmark's own (an item's id, and where a second question
            is asked about it that id with a suffix).
        scorers: all scorers of the benchmark, those that need verdicts first; verdicts are texts by the same keys, and
            an item without one counts as `unjudged` or `unrated` and for nothing else.
        reads: the names of the scorers that need verdicts.
        imported: verdicts by the same keys that an answer file of the authors' holds, from its rows and its path.
        said: a judge's verdicts, once there are any.
    """

    prompts: Callable[[Sequence[Item], Sequence[Answer]], dict[str, str]]
    scorers: Callable[[Mapping[str, str]], tuple[Scorer, ...]]
    reads: frozenset[str]
    imported: Callable[[Sequence[Mapping[str, Any]], Path], dict[str, str]] = lambda rows, path: {}
    said: Verdicts | None = None

    def given(self, items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
        """The verdicts on answers, by the prompts' keys."""
        if self.said is None:
            return {}
        found = {key: self.said.on(prompt) for key, prompt in self.prompts(items, answers).items()}
        return {key: text for key, text in found.items() if text is not None}

    def known(self, items: Sequence[Item], answers: ByArm) -> ByArm:
        """The answers that have a verdict, so that arms are compared on what was judged in both; all if none has."""
        found: dict[str, dict[str, Answer]] = {}
        for arm, given in answers.items():
            asked = [item for item in items if item.id in given]
            said = self.given(asked, [given[item.id] for item in asked])
            found[arm] = {item.id: given[item.id] for item in asked if item.id in said}
        return found if any(found.values()) else answers

    def about(self, items: Sequence[Item], answers: ByArm) -> dict[str, Any]:
        """Who judged answers, which scorers read that, and how many of each arm's have no verdict, as JSON values."""
        known = self.known(items, answers)
        nobody = known is answers
        unjudged = {arm: len(given) - (0 if nobody else len(known[arm])) for arm, given in answers.items()}
        return {
            "name": self.said and self.said.name, "version": self.said and self.said.version,
            "scorers": sorted(self.reads), "answers": sum(map(len, answers.values())), "unjudged": unjudged,
        }  # fmt: skip


def with_verdicts(benchmark: Benchmark, run: Mapping[str, Any], folder: Path) -> Benchmark:
    """The benchmark with scorers that read the verdicts in a run's folder; as it was if nobody judged the run.

    Args:
        run: run.json.

    Raises:
        InputError: if the verdicts cannot be read.
    """
    judge, judged = run.get("judge"), benchmark.judged
    if judge is None or judged is None:
        return benchmark
    bound = replace(judged, said=load(folder / FILE, judge["name"], judge["version"]))
    return replace(benchmark, judged=bound, scorers=_bound(bound))


def sentence(found: Mapping[str, Any]) -> str:
    """What a reader is told of `Judged.about`: who judged, and what is missing."""
    count, scorers = sum(found["unjudged"].values()), ", ".join(found["scorers"])
    if found["name"] is None:
        return (
            f"None of the {found['answers']} answers was judged, which {scorers} would need. The same command with "
            "--judge NAME --judge-url URL asks a judge, with --judge NAME --verdicts FILE it takes what one has said."
        )
    version = f", version {found['version']}" if found["version"] else ""
    missing = f"{count} of {found['answers']} answers have no verdict" if count else f"all {found['answers']} answers"
    return f"Judged by {found['name']}{version}: {missing}."


def fill(template: str, *values: str) -> str:
    """The template with its slots, "{}", filled in order; other braces, and braces in the values, stay as they are."""
    parts = template.split(SLOT)
    return parts[0] + "".join(value + part for value, part in zip(values, parts[1:], strict=True))


def read_template(path: str | Path, slots: Sequence[str]) -> str:
    """A judge's template from a text file.

    Args:
        path: the file.
        slots: what goes into its slots, "{}", in order.

    Raises:
        InputError: if it cannot be read, or has another number of slots.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The judge's template {str(path)!r} cannot be read: {error}.") from error
    if text.count(SLOT) != len(slots):
        raise InputError(
            f"The judge's template {str(path)!r} has {text.count(SLOT)} slots {SLOT}; it needs {len(slots)}, in this "
            f"order: {', '.join(slots)}."
        )
    return text


def _bound(judged: Judged) -> tuple[Scorer, ...]:
    """The scorers, those that need verdicts looking each answer's up."""

    def bound(number: int) -> Callable[[Sequence[Item], Sequence[Answer]], Tally]:
        return lambda items, answers: judged.scorers(judged.given(items, answers))[number].tally(items, answers)

    return tuple(
        replace(one, tally=bound(number)) if one.name in judged.reads else one
        for number, one in enumerate(judged.scorers({}))
    )
