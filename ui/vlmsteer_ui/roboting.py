"""Episodes of a robot policy with and without a recipe over the same seeds, for the Robot tab."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_ui.background import Told, steps
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.panel import Panel
from vlmsteer_ui.workbench import Workbench

MOST, SETS = 20, 5
TOGETHER = 8  # robots that act by one forward
SAID = {"nothing": "", "slowly": "slow", "quickly": "fast", "staying high": "high", "staying low": "low"}
FOLDER = re.compile(r"[a-z0-9-]{3,60}")


def robotics(name: str) -> Any:
    """A module of the package that comes with the extra `robotics`.

    Raises:
        InputError: if that is not installed.
    """
    try:
        return import_module(f"vlmsteer_robotics.{name}")
    except ModuleNotFoundError as error:
        raise InputError("Robots need MuJoCo: pip install 'vlmsteer[robotics]'.") from error


@dataclass(frozen=True)
class Wanted:
    """A task, how many seeds of it, what is said in one more arm, and how many random sets there are for comparison."""

    task: str
    seeds: int = 4
    said: str = ""
    random: int = 0

    @classmethod
    def of(cls, task: Any, seeds: Any, said: Any, random: Any) -> Wanted:
        """From values of controls.

        Raises:
            InputError: if one is not possible.
        """
        name = robotics("tasks").task(str(task)).name
        for number, most, least in ((seeds, MOST, 1), (random, SETS, 0)):
            if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= most:
                raise InputError(f"Run 1 to {MOST} seeds, beside 0 to {SETS} random sets.")
        if said not in SAID:
            raise InputError(f"A robot is told {', '.join(SAID)}{did_you_mean(str(said), SAID)}")
        return cls(name, int(seeds), SAID[said], int(random))


def rolled(bench: Workbench, desk: Desk, model: str, panel: Panel, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """What is known so far, as JSON values: progress, then a table, a row for each seed, and which one is filmed.

    Raises:
        VlmsteerError: if the model is no policy, or the recipe does not fit; `Stopped` if the visitor stopped it.
            Finished episodes are kept, and the same request goes on from there.
    """
    arms, rollouts = robotics("arms"), robotics("rollouts")
    setting, place = rollouts.Setting(wanted.task), bench.folder / "robot" / _folder(model, panel, wanted)

    def work(session: Any, told: Told) -> dict[str, Any]:
        policy = robotics("policy").Vla(session)
        recipe = panel.recipe(bench.vectors, session)
        said = [wanted.said] if wanted.said else []
        made = arms.make({} if recipe is None else {panel.title: recipe}, [1.0], wanted.random, said, session)
        place.mkdir(parents=True, exist_ok=True)

        def progress(done: int, of: int, arm: str) -> None:
            told(f"{done} of {of} episodes, {arm}")

        ledger = place / "episodes.jsonl"
        rows = rollouts.run(policy, setting, range(wanted.seeds), made, ledger, TOGETHER, progress)
        shown = [arm.name for arm in made if arm.kind != "random"]
        (place / "shown.json").write_text(json.dumps({"setting": asdict(setting), "arms": shown}), encoding="utf-8")
        found = robotics("effects").summarize(rows, made)
        seeds = _seeds(rows, shown)
        first = max(seeds, key=lambda one: one["steps"], default=None)
        return {
            "folder": place.name, "progress": "", "arms": shown, "table": robotics("report").table(found),
            "seeds": seeds, "seed": None if first is None else first["seed"],
        }  # fmt: skip

    for over, report in steps(bench.residents(model), desk, work):
        yield report if over else {"progress": report}


def film(bench: Workbench, folder: Any, seed: Any) -> Path | None:
    """The video of a seed, the baseline left and the last arm right, made now if it is not there; None without PyAV.

    Raises:
        InputError: if there is no such run or seed.
    """
    setting, names, rows = _read(bench, folder)
    before, after = (rows.get((name, seed)) for name in (names[0], names[-1]))
    if before is None or after is None or before["error"] or after["error"]:
        raise InputError("There is no finished episode of that seed.")
    place = bench.folder / "robot" / folder / f"seed-{seed}"
    if not (place / "pair.mp4").is_file():
        place.mkdir(exist_ok=True)
        arm = robotics("arms").Arm(names[-1], "recipe", strength=after["strength"])
        robotics("report").pair_video(place, setting, before, after, arm)
    return place / "pair.mp4" if (place / "pair.mp4").is_file() else None


def motion(bench: Workbench, folder: Any, seed: Any) -> dict[str, Any]:
    """How far each step of a seed went (mm) and how high the hand was (cm), by arm."""
    import numpy as np

    _, names, rows = _read(bench, folder)
    found: dict[str, Any] = {"seed": seed, "arms": []}
    for name in names:
        row = rows.get((name, seed))
        if row is not None and not row["error"]:
            hand = np.array(row["hand"])
            lengths = np.linalg.norm(np.diff(hand, axis=0), axis=1)
            found["arms"].append(
                {"name": name, "length": (1000 * lengths).round(1).tolist(),
                 "height": (100 * hand[1:, 2]).round(1).tolist()}
            )  # fmt: skip
    return found


def _read(bench: Workbench, folder: Any) -> tuple[Any, list[str], dict[tuple[str, int], dict[str, Any]]]:
    if not isinstance(folder, str) or not FOLDER.fullmatch(folder):
        raise InputError("There is no such run of a robot.")
    place = bench.folder / "robot" / folder
    try:
        about = json.loads((place / "shown.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("There is no such run of a robot.") from error
    rows = robotics("rollouts").rows_in(place / "episodes.jsonl")
    return robotics("rollouts").Setting(**about["setting"]), about["arms"], {(r["arm"], r["seed"]): r for r in rows}


def _seeds(rows: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """A row for each seed, with what came of it under each arm."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["arm"] in names:
            one = found.setdefault(
                row["seed"], {"seed": row["seed"], "instruction": row["instruction"], "steps": 0, "arms": []}
            )
            metrics = row["metrics"]
            one["steps"] = max(one["steps"], len(row["actions"]))
            came = row["error"] or (
                f"{'done' if metrics['success'] else 'not done'}, {1000 * metrics['displacement']:.0f} mm a step, "
                f"{100 * metrics['mean_height']:.1f} cm high"
            )
            one["arms"].append({"text": came, "changed": not row["error"] and not metrics["success"]})
    return list(found.values())


@lru_cache(maxsize=1)
def tasks() -> tuple[str, ...]:
    """The tasks that the page offers: each verb alone, and with the colors."""
    known = robotics("tasks")
    return tuple(name for name, task in known.TASKS.items() if task.side is None and task.verb != "pick")


def _folder(model: str, panel: Panel, wanted: Wanted) -> str:
    parts = [model, panel.as_dict(), asdict(wanted)]
    return f"{wanted.task}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]}"
