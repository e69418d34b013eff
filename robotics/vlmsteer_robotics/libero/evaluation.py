"""What a policy achieves in a suite: every task, from each of its stored initial states, as OpenVLA's authors do it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlmsteer.bench.ledger import Ledger, key, latest, rows_in
from vlmsteer.bench.statistics import Rate, rate
from vlmsteer.errors import InputError
from vlmsteer_robotics.libero import suites
from vlmsteer_robotics.libero.trials import STEPS, Player, Trial
from vlmsteer_robotics.policy import Vla
from vlmsteer_robotics.tasks import check

if TYPE_CHECKING:
    from vlmsteer.recipe import Recipe
    from vlmsteer.session import Session

VERSION = 1  # counted up whenever the same trial would go another way
TRIALS = 50
SEED = 7
FIELDS = tuple(Trial.__dataclass_fields__)


@dataclass(frozen=True)
class Evaluation:
    """Trials in the order of tasks, and what they depend on."""

    settings: Mapping[str, Any]
    trials: Sequence[Trial]

    @property
    def success(self) -> Rate:
        """Of the trials without an error; where there are several tasks, they are resampled whole for the interval."""
        return self.of({trial.task for trial in self.trials})

    @property
    def errors(self) -> list[Trial]:
        """Trials that broke off."""
        return [trial for trial in self.trials if trial.error is not None]

    def of(self, tasks: set[int]) -> Rate:
        """Success in these tasks alone."""
        kept = [trial for trial in self.trials if trial.success is not None and trial.task in tasks]
        return rate([bool(trial.success) for trial in kept], [trial.task for trial in kept] if len(tasks) > 1 else None)

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        tasks = {trial.task: trial.instruction for trial in self.trials}
        return {
            "settings": dict(self.settings),
            "success": self.success.as_dict(),
            "errors": len(self.errors),
            "tasks": [
                {"task": task, "instruction": text, "success": self.of({task}).as_dict()}
                for task, text in tasks.items()
            ],
            "trials": [asdict(trial) for trial in self.trials],
        }


def evaluate(
    session: Session,
    suite: str,
    recipe: Recipe | None = None,
    trials: int = TRIALS,
    *,
    tasks: Sequence[int] | None = None,
    together: int = 1,
    restrict: bool = False,
    crop: bool = True,
    unnorm_key: str | None = None,
    seed: int = SEED,
    out: str | Path | None = None,
    progress: Callable[[int, int, Trial], None] = lambda done, of, trial: None,
) -> Evaluation:
    """Let a policy do the tasks of a suite.

    Args:
        session: a loaded OpenVLA.
        suite: one of `STEPS`.
        recipe: acts at every step.
        trials: of each task.
        tasks: their numbers; all by default.
        together: robots that act by one forward of the policy. The authors run one; with more, LIBERO draws in another
            order what it draws at each reset (where fixtures stand).
        restrict: choose among action tokens only.
        crop: see `libero.images.prepared`.
        unnorm_key: the data set whose units the actions are in; the suite's by default, with or without `_no_noops`.
        seed: of Python, NumPy and torch, for the whole process, as in the authors' script.
        out: a file that gets a row a trial. What is there already and has no error is not run again, so a run that was
            stopped goes on; without a file it begins anew.
        progress: told after each trial how many of how many are done, and how it ended.

    Raises:
        InputError: LIBERO or its files are not there, an argument is not possible, or `out` cannot be written.
        ModelError: the model is no policy with seven numbers.
    """
    check("suite", suite, STEPS)
    if trials < 1 or together < 1:
        raise InputError(f"{trials} trials and {together} robots together were given; at least 1 of each is needed.")
    policy = Vla(session, unnorm_key or suite, restrict)
    session.check(recipe)
    source = suites.suite(suite)
    numbers = list(range(source.n_tasks) if tasks is None else dict.fromkeys(tasks))
    for number in numbers:
        check("task", number, range(source.n_tasks))
    settings = {"suite": suite, "policy": policy.spec, "recipe": recipe and recipe.hash, "crop": crop}
    settings |= {"together": together, "seed": seed}
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    player, results = Player(policy, recipe, STEPS[suite], together, crop), []
    with nullcontext() if out is None else Ledger(out) as ledger:
        rows = {} if out is None else latest(rows_in(Path(out)))
        for task in numbers:
            keys = [key(VERSION, settings, task, trial) for trial in range(trials)]
            done = [rows[one] for one in keys if one in rows and rows[one]["error"] is None]
            results += [Trial(**{name: row[name] for name in FIELDS}) for row in done]
            for trial in player.play(source, task, trials, [row["trial"] for row in done]):
                if ledger is not None:
                    ledger.append([{"key": keys[trial.trial], "suite": suite, **asdict(trial)}])
                results.append(trial)
                progress(len(results), len(numbers) * trials, trial)
    return Evaluation(settings, sorted(results, key=lambda trial: (numbers.index(trial.task), trial.trial)))
