"""MATS for contrastive encoders, which cannot be asked: the picture is nearer to one of two statements.

As in the authors' audit (Thube, 2025, arXiv 2509.22674; thubZ09/mats-spatial-reasoning@d977dd9, src/mats/auditor.py) a
statement is held against its inversion, so that both answers of a pair follow from one comparison and SCS is 1 by
construction; what says something is the accuracy of the strict scorer, which is the SCS they print for CLIP. Held
against its own denial ("is not left of") each statement is judged by itself, and SCS can fall.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmsteer.bench import mats
from vlmsteer.bench.benchmark import Answer, Arm, Item
from vlmsteer.bench.files import Files, sha256
from vlmsteer.bench.inversion import deny
from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts.clip import TINY, Scorer, load_scorer

if TYPE_CHECKING:
    from vlmsteer.bench.plan import Task
    from vlmsteer.bench.runner import Done

AGAINST = ("inversion", "denial")
CHOICES = ("TRUE", "FALSE")
PREFIXES = ("open_clip:", "hf-hub:", "local-dir:")
TOGETHER = 64  # statements whose answers are written at once


def load(
    files: Files, *, splits: str = "vsr,absurd", against: str = "inversion", inversion: str = "published"
) -> list[Item]:
    """The statements of MATS (`mats.load`), each with the one that it is held against.

    Args:
        files, splits, inversion: as in `mats.load`.
        against: what statements of a pair are held against: their "inversion" or their "denial". Absurd ones, which
            have no counterpart of their own, are always held against their denial.

    Raises:
        InputError: as `mats.load` does, or if `against` is unknown.
    """
    if against not in AGAINST:
        raise InputError(f"Statements are not held against {against!r}{did_you_mean(against, AGAINST)}.")
    found = []
    for item in mats.load(files, splits=splits, inversion=inversion):
        statement, inverse = item.gold["statement"], item.gold["inverse"]
        other = inverse if against == "inversion" and item.gold["part"] != "absurd" else deny(statement)
        gold = {**item.gold, "other": other}
        found.append(replace(item, prompt=f"{statement} / {other}", gold=gold, choices=CHOICES))
    return found


BENCHMARK = replace(
    mats.BENCHMARK,
    load=load,
    notes="A contrastive encoder is not asked: TRUE is the statement that is nearer to the picture than the other one. "
    "Held against its inversion a pair always flips, so that SCS is 1 by construction; the published SCS of encoders "
    "is how often the true statement is nearer (`strict`: pair_accuracy).",
)


def encoder(model: str) -> str | None:
    """The name for `load_scorer` if a model is a contrastive encoder, else None.

    Encoders are "tiny-clip", what begins with "open_clip:" or "hf-hub:", and folders in open_clip's own layout.
    """
    if model == TINY or model.startswith(PREFIXES):
        return model.removeprefix("open_clip:")
    return model if (Path(model).expanduser() / "open_clip_config.json").is_file() else None


def check(model: str, benchmarks: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse what an encoder cannot do.

    Args:
        model: its name.
        benchmarks: what it is to answer.
        given: by option what only a model that writes can use; what is None, 0 or empty was not given.

    Raises:
        InputError: if there is anything of that kind.
    """
    others = [name for name in benchmarks if name != mats.BENCHMARK.name]
    if others:
        raise InputError(
            f"{model!r} is a contrastive encoder: it holds pictures against statements and writes no answer, so it "
            f"takes mats alone; leave out {', '.join(others)}."
        )
    useless = [option for option, value in given.items() if value]
    if useless:
        raise InputError(
            f"{model!r} is a contrastive encoder: it has no layers that recipes know and writes no answer; leave out "
            f"{', '.join(useless)}."
        )


def answers(items: Sequence[Item], model: Scorer | str = TINY) -> list[Answer]:
    """TRUE where the picture is nearer to the statement, or as near, FALSE where it is nearer to the other one.

    Args:
        items: of `load`.
        model: a contrastive model, or its name for `vlmsteer_counterfacts.clip.load_scorer`.

    Returns:
        One answer an item, which every scorer of MATS reads, with the model's log-probabilities of the two.

    Raises:
        InputError: if the items are not those of `load`, an image cannot be read, or a statement is too long for the
            model.
    """
    wrong = next((item for item in items if item.image is None or "other" not in item.gold), None)
    if wrong is not None:
        raise InputError(f"The item {wrong.id!r} has no two statements about an image; use mats_clip.load.")
    scorer = load_scorer(model) if isinstance(model, str) else model
    pairs = [(item.gold["statement"], item.gold["other"]) for item in items]
    images = {image: n for n, image in enumerate(dict.fromkeys(str(item.image) for item in items))}
    texts = {text: n for n, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    nearness = scorer(list(images), list(texts))
    scale = float(scorer.model.logit_scale.detach().exp())
    found = []
    for item, (statement, other) in zip(items, pairs, strict=True):
        row = nearness[images[str(item.image)]]
        margin = scale * float(row[texts[statement]] - row[texts[other]])
        logprobs = {name: -_softplus(-sign * margin) for name, sign in zip(CHOICES, (1, -1), strict=True)}
        found.append(Answer(CHOICES[margin < 0], logprobs))
    return found


def run(name: str, task: Task, arm: Arm, folder: Path, about: Mapping[str, Any], retry_errors: bool = False) -> Done:
    """Answer a task, as `runner.run` does with a model that writes: same folder, same files, and it goes on.

    Args:
        name: of the encoder, for `load_scorer`.
        task: of `BENCHMARK`.
        arm: the baseline.
        folder, about, retry_errors: as in `runner.run`.

    Raises:
        InputError: if the folder holds another run or cannot be written.
        ModelError: if there is no such encoder.
    """
    from vlmsteer.bench import record
    from vlmsteer.bench.ledger import Ledger, key, latest, rows_in
    from vlmsteer.bench.runner import SAMPLES, Done

    scorer = load_scorer(name)
    model = {"id": name, "architecture": type(scorer.model).__name__, "weights": _weights(scorer)}
    asked = {
        "model": model, "decoding": {"kind": "nearest statement"},
        "tasks": [{
            "name": task.name, "title": task.benchmark.title, "source": task.benchmark.source,
            "version": task.benchmark.version, "options": dict(task.options), "items": len(task.items),
            "data": task.digest(),
        }],
        "arms": [{"name": arm.name, "kind": arm.kind, "of": None, "strength": arm.strength, "recipe": None,
                  "file": None}],
    }  # fmt: skip
    record.open_folder(folder, asked, [task], [arm], about)
    seen = {path: sha256(Path(path)) for path in {str(item.image) for item in task.items}}
    version = task.benchmark.version
    keys = [key(task.name, version, item.id, item.prompt, seen[str(item.image)], model) for item in task.items]
    had = latest(rows_in(folder / SAMPLES))
    left = [n for n, one in enumerate(keys) if one not in had or (retry_errors and had[one]["error"])]
    with Ledger(folder / SAMPLES) as ledger:
        for first in range(0, len(left), TOGETHER):
            part = left[first : first + TOGETHER]
            started = time.perf_counter()
            found = _outcomes([task.items[n] for n in part], scorer)
            seconds = round((time.perf_counter() - started) / len(part), 4)
            ledger.append(
                {
                    "key": keys[n], "task": task.name, "item": task.items[n].id, "arm": arm.name,
                    "answer": one.text if isinstance(one, Answer) else None,
                    "logprobs": dict(one.logprobs) if isinstance(one, Answer) else {},
                    "error": None if isinstance(one, Answer) else one, "seconds": seconds,
                }
                for n, one in zip(part, found, strict=True)
            )  # fmt: skip
        ledger.sync()
    rows = latest(rows_in(folder / SAMPLES))
    errors = {rows[one]["item"]: rows[one]["error"] for one in keys if rows[one]["error"] is not None}
    return Done(len(keys) - len(errors), len(left), {(task.name, arm.name): errors} if errors else {})


def _outcomes(items: Sequence[Item], scorer: Scorer) -> list[Answer | str]:
    """Answers, or the sentence of an error for the items that cannot be answered."""
    try:
        return list(answers(items, scorer))
    except InputError as error:
        if len(items) == 1:
            return [str(error)]
        return [one for item in items for one in _outcomes([item], scorer)]


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _weights(scorer: Scorer) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(scorer.model.state_dict().items()):
        digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
