"""MME: two yes/no questions about each image, one of each answer (Fu et al., arXiv 2306.13394).

A task's score is 100 times the share of right answers plus 100 times the share of images with both right, so that
saying always yes gives 50 of 200. Papers on hallucination add up existence, count, position and color. The questions
come from the evaluation tool (one file a task) or from the released folders of images with a text file for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files
from vlmsteer.errors import InputError, did_you_mean

HALLUCINATION = ("existence", "count", "position", "color")
PERCEPTION = (*HALLUCINATION, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = PERCEPTION + COGNITION
SUBSETS = {"hallucination": HALLUCINATION, "perception": PERCEPTION, "cognition": COGNITION, "all": TASKS}
TOTALS = {"hallucination": HALLUCINATION, "perception": PERCEPTION, "cognition": COGNITION}
INSTRUCTION = " Please answer yes or no."
PROMPTS = {  # a question of the files ends in INSTRUCTION; {bare} is without it
    "official": "{question}",
    "lmms": "{bare}\nAnswer the question using a single word or phrase.",
}
ANSWERS = "questions_answers_YN"
SUFFIXES = (".jpg", ".png", ".jpeg")


class Row(NamedTuple):
    """One question: its image's name, its text, its answer ("yes" or "no"), and where it stands."""

    image: str
    question: str
    label: str
    where: str


def load(files: Files, *, subset: str = "hallucination", prompt: str = "official") -> list[Item]:
    """The questions of some tasks, two for each image.

    For each task the first of these that is there: `TASK.txt` (in the folder itself, `Your_Results` or `LaVIN`, as in
    the evaluation tool; lines of image, question, answer and perhaps a response, separated by tabs), or a folder `TASK`
    of the released images with one text file for each image (question and answer), beside it or in
    `questions_answers_YN`. Images are looked for in `TASK/images`, `TASK` and the folder itself.

    Args:
        files: the folder and further folders with the same folders `TASK`.
        subset: "hallucination" (existence, count, position, color), "perception", "cognition" or "all".
        prompt: a name in `PROMPTS`.

    Raises:
        InputError: if a task is not there, a row is malformed, or an image has not exactly two questions.
    """
    if subset not in SUBSETS:
        raise InputError(f"MME has no subset {subset!r}{did_you_mean(subset, SUBSETS)}.")
    if prompt not in PROMPTS:
        raise InputError(f"MME has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    items = []
    for task in SUBSETS[subset]:
        rows = list(_rows(files, task))
        if len(rows) % 2:
            raise InputError(f"{rows[-1].where}: the task {task!r} has {len(rows)} questions; MME has two an image.")
        counts = Counter(row.image for row in rows)
        for number, row in enumerate(rows):
            partner = rows[number ^ 1]
            if row.image != partner.image or counts[row.image] != 2:
                raise InputError(
                    f"{row.where} is about {row.image!r}, which has {counts[row.image]} questions in {task!r}; "
                    "MME asks two about each image, one after the other."
                )
            pair = f"{task}/{row.image}"
            bare = row.question.strip().replace(INSTRUCTION, "")
            text = PROMPTS[prompt].format(question=row.question, bare=bare)
            gold = {"task": task, "label": row.label}
            items.append(Item(f"{pair}/{number % 2}", _image(files, task, row.image), text, pair, gold))
    return items


def _rows(files: Files, task: str) -> Iterator[Row]:
    for name in (f"{task}.txt", f"Your_Results/{task}.txt", f"LaVIN/{task}.txt"):
        if files.has(name):
            path = files.folder / name
            for where, parts in _lines(path, (3, 4)):
                yield Row(parts[0], parts[1], _label(parts[2], where), where)
            return
    folder = files.folder / task
    if not folder.is_dir():
        raise InputError(
            f"{str(files.folder)!r} has neither {task}.txt (as in MME's evaluation tool) nor a folder {task} (as in "
            "the released images). Give the folder that holds them; --set subset=... asks for fewer tasks."
        )
    found = sorted((folder / ANSWERS).glob("*.txt")) or sorted(folder.glob("*.txt"))
    if not found:
        raise InputError(f"{str(folder)!r} has no text files with questions, neither there nor in {ANSWERS}.")
    for path in found:
        names = [path.stem + suffix for suffix in SUFFIXES]
        places = [f"{task}/images/{name}" for name in names] + [f"{task}/{name}" for name in names]
        image = next((Path(place).name for place in places if files.has(place)), names[0])
        for where, parts in _lines(path, (2,)):
            yield Row(image, parts[0], _label(parts[1], where), where)


def _lines(path: Path, columns: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            parts, where = line.rstrip("\r").split("\t"), f"Line {number} of {str(path)!r}"
            if len(parts) not in columns:
                raise InputError(
                    f"{where} has {len(parts)} columns; it needs {' or '.join(map(str, columns))}, separated by tabs."
                )
            yield where, parts


def _label(text: str, where: str) -> str:
    label = text.strip().lower()
    if label not in ("yes", "no"):
        raise InputError(f"{where} has the answer {text!r}; it is Yes or No.")
    return label


def _image(files: Files, task: str, name: str) -> str:
    return files.image(name, f"{task}/images", task)


def _scorer(name: str, source: str, read: Callable[[str], str | None], present_only: bool) -> Scorer:
    """A scorer of one parser; with `present_only` totals add up the tasks that are there, else they need them all."""

    def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
        pairs: dict[str, list[tuple[Item, str | None]]] = {}
        for item, answer in zip(items, answers, strict=True):
            pairs.setdefault(item.group, []).append((item, read(answer.text)))
        whole = {group: pair for group, pair in pairs.items() if len(pair) == 2}
        counts: dict[str, list[float]] = {"questions": [], "yes": [], "other": []}
        counts |= {f"{task} {what}": [] for task in TASKS for what in ("right", "both", "images")}
        for pair in whole.values():
            said = [one for _, one in pair]
            right = sum(item.gold["label"] == one for item, one in pair)
            found = {"questions": 2, "yes": said.count("yes"), "other": 2 - said.count("yes") - said.count("no")}
            task = pair[0][0].gold["task"]
            found |= {f"{task} right": right, f"{task} both": right == 2, f"{task} images": 1}
            for count, values in counts.items():
                values.append(float(found.get(count, 0)))
        return Tally(list(whole), counts)

    return Scorer(name, source, tally, lambda sums: _metrics(sums, present_only), WANTED, numbers=POINTS)


def _metrics(sums: Sums, present_only: bool) -> dict[str, np.ndarray]:
    scores = {
        task: 100 * share(sums[f"{task} right"], 2 * sums[f"{task} images"])
        + 100 * share(sums[f"{task} both"], sums[f"{task} images"])
        for task in TASKS
    }
    totals = {name: _total([scores[task] for task in tasks], present_only) for name, tasks in TOTALS.items()}
    right = sum((sums[f"{task} right"] for task in TASKS), np.zeros(()))
    asked = sums["questions"]
    rates = {"accuracy": share(right, asked), "yes": share(sums["yes"], asked), "other": share(sums["other"], asked)}
    return totals | scores | rates


def _total(scores: Sequence[np.ndarray], present_only: bool) -> np.ndarray:
    found = np.stack(scores)
    if not present_only:
        return found.sum(axis=0)
    return np.where(np.isnan(found).all(axis=0), np.nan, np.nansum(found, axis=0))


POINTS = frozenset((*TOTALS, *TASKS))
WANTED = {**dict.fromkeys((*TOTALS, *TASKS, "accuracy"), 1), "yes": 0, "other": -1}
BENCHMARK = Benchmark(
    "mme",
    "MME",
    "Fu et al., arXiv 2306.13394; BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation",
    load,
    (
        _scorer("official", "BradyFU branch Evaluation, tools/eval_tool.zip calculation.py", yesno.mme_tool, False),
        _scorer("lmms", "EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/mme/utils.py", yesno.mme_lmms, True),
        _scorer("strict", "ours", yesno.strict, False),
    ),
    16,
    yes_no=True,
    notes="The hallucination total is existence + count + position + color, at most 800; perception at most 2000, "
    "cognition 800. Both public parsers look at the first four characters, so that 'Not at all' and 'Know' are no and "
    "'Sure, yes' is neither; `strict` takes the first whole word yes or no. `lmms` adds up the tasks that were asked, "
    "`official` and `strict` give nan where one is missing.",
)
