"""HallusionBench: yes/no questions in sets of edited figures (Guan et al., CVPR 2024, arXiv 2310.14566).

Right counts little alone: a question must be right on all figures of its set (qAcc), a figure on all its questions
(fAcc). The authors let GPT-4 compare each answer with a reference; a verdict that is neither "correct" nor "incorrect"
is wrong, except where the question needs a figure and none was shown. Without a judge the answers are matched as text.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, field, read_rows
from vlmsteer.bench.judge import Judged, fill, read_template
from vlmsteer.errors import InputError, did_you_mean

PROMPTS = {"official": "{question}", "yes_no": "{question}\nPlease answer yes or no."}
SUBSETS = ("all", "image")
WRONG, RIGHT, UNCLEAR = 0, 1, 2  # a verdict
SAME = "/same"  # added to an item's id: the key of the second verdict about it
SLOTS = ("question", "reference answer", "prediction answer")
TEMPLATE = """Compare a predicted answer to a question with the reference answer, as a careful teacher would.
Reply with one word: "correct" if the prediction agrees with the reference answer, "incorrect" if it contradicts the \
reference answer, "unclear" if it does not commit itself to an answer.

Question: {}
Reference answer: {}
Prediction answer: {}
Verdict:"""
SAME_TEMPLATE = """Here are two answers. The questions they belong to are not shown. Supposing that both are true, say \
whether they can stand together. Reply with one word: "same" if they do not contradict each other, "different" if \
they do.

Answer 1: {}
Answer 2: {}
Verdict:"""


class Scored(NamedTuple):
    """An answer with its verdict, whether it says yes, and the second verdict (None: not given)."""

    item: Item
    verdict: int
    yes: bool
    same: bool | None

    @property
    def right(self) -> bool:
        """Whether it counts as right: without the figure that it needs a question may stay open."""
        return self.verdict == RIGHT or (self.verdict == UNCLEAR and no_figure(self.item))


def load(files: Files, *, subset: str = "all", prompt: str = "official", template: str = "") -> list[Item]:
    """The questions of `HallusionBench.json`; images lie in `hallusion_bench` or beside the file.

    Args:
        files: the folder and further image folders.
        subset: "all", or "image" for those that have one (as in lmms-eval and VLMEvalKit).
        prompt: a name in `PROMPTS`.
        template: a text file with the published judge's template, whose three slots "{}" are, in order, `SLOTS`; by
            default a text of ours.

    Raises:
        InputError: if the file or a row is malformed, or a name is unknown.
    """
    if subset not in SUBSETS:
        raise InputError(f"HallusionBench has no subset {subset!r}{did_you_mean(subset, SUBSETS)}.")
    if prompt not in PROMPTS:
        raise InputError(f"HallusionBench has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    if template:
        template = str((Path(template) if Path(template).is_file() else files.find(template)).resolve())
        read_template(template, SLOTS)
    path = files.find("HallusionBench.json")
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        gold, image = _gold(row, f"Row {number} of {str(path)!r}")
        if image is not None or subset == "all":
            rows.append((gold | {"template": template}, image))
    sizes = Counter((unit, label) for gold, _ in rows for unit, label in _units(gold))
    items = []
    for gold, image in rows:
        of = {unit: sizes[unit, label] for unit, label in _units(gold)}
        file = None if image is None else files.image(image, "hallusion_bench")
        name = f"{gold['figure']}/{gold['question_id']}"
        text = PROMPTS[prompt].format(question=gold["question"])
        items.append(Item(name, file, text, gold["set"], gold | {"of": of}))
    return items


def no_figure(item: Item) -> bool:
    """Whether the question needs a figure (category VS) and is asked without one (figure 0)."""
    return item.gold["category"] == "VS" and item.gold["figure_id"] == "0"


def verdict(text: str) -> int:
    """0 if "incorrect" is in a judge's text, else 1 if "correct" is, else 2, in any case of letters.

    tianyi-lab/HallusionBench@744007c utils.py evaluate_by_chatgpt.
    """
    said = text.lower()
    return WRONG if "incorrect" in said else RIGHT if "correct" in said else UNCLEAR


def prompts(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
    """What a judge is asked: by item id whether the answer is correct, and by id and `SAME` whether it agrees with the
    answer to the same question on figure 0, which only the diagnosis of errors needs."""
    texts = {"": TEMPLATE}
    first = {item.gold["pair"]: answer.text for item, answer in zip(items, answers, strict=True) if _original(item)}
    found = {}
    for item, answer in zip(items, answers, strict=True):
        path = item.gold["template"]
        if path not in texts:
            texts[path] = read_template(path, SLOTS)
        found[item.id] = fill(texts[path], item.gold["question"], item.gold["details"], answer.text)
        if not _original(item) and item.gold["pair"] in first:
            found[item.id + SAME] = fill(SAME_TEMPLATE, answer.text, first[item.gold["pair"]])
    return found


def judged(verdicts: Mapping[str, str]) -> tuple[Scorer, ...]:
    """Every scorer of HallusionBench.

    `official` needs verdicts. In percent with four decimals, as the authors' script prints them, it gives `qAcc`,
    `fAcc`, `easy` and `hard` (questions on original and on edited figures), `aAcc`, `figures inconsistent`, `figures
    wrong`, and of the errors those that it puts down to `language`, `vision` or `both`, for which it needs the second
    verdicts too. The others are shares: `figures score`, the mean share of right answers on a figure; `yes bias`, the
    share of yes less that of labels yes; `no among errors`, the script's FP ratio (nan where nothing is wrong, where
    the script fails); `unclear` verdicts; `unjudged`, answers without a verdict.

    `lmms` takes an answer with "yes" in it for yes and any other for no, and lets VS questions without a figure count
    for fAcc. `strict` needs a whole word yes or no, and treats questions without a figure like `official`.

    Args:
        verdicts: what a judge wrote, by item id, and by item id and `SAME`; none where nobody judged.
    """

    def by_judge(item: Item, answer: Answer) -> Scored | None:
        if item.id not in verdicts:
            return None
        found = verdict(verdicts[item.id])
        scored = Scored(item, found, False, _same(verdicts.get(item.id + SAME)))
        return scored._replace(yes=scored.right == (item.gold["label"] == "yes"))

    return (
        _scorer("official", "tianyi-lab/HallusionBench@744007c utils.py, evaluation.py", by_judge, percent=True),
        *MATCHED,
    )


def _gold(row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], str | None]:
    """What scorers need of a row, and its image's name."""
    names = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "gt_answer")
    given = {name: str(field(row, name, where, (str, int))) for name in names}
    for name, allowed in (("category", ("VD", "VS")), ("visual_input", ("0", "1", "2")), ("gt_answer", ("0", "1"))):
        if given[name] not in allowed:
            raise InputError(f"{where} has {given[name]!r} in {name!r}; it is {', '.join(allowed)}.")
    image = field(row, "filename", where, (str, type(None)))
    if (image is None) != (given["visual_input"] == "0"):
        raise InputError(f"{where} has the visual input {given['visual_input']!r} and the file name {image!r}.")
    of_set = f"{given['category']}/{given['subcategory']}/{given['set_id']}"
    gold = {
        **{name: given[name] for name in ("category", "visual_input", "figure_id", "question_id")},
        "set": of_set,
        "figure": f"{of_set}/{given['figure_id']}",
        "pair": f"{of_set}/q{given['question_id']}",
        "label": "yes" if given["gt_answer"] == "1" else "no",
        "question": field(row, "question", where),
        "details": field(row, "gt_answer_details", where),
    }
    return gold, None if image is None else image.removeprefix("./").removeprefix("hallusion_bench/")


def _units(gold: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a question is scored together with: the same question on other figures, and others on the same figure."""
    yield "pair", gold["pair"]
    yield "figure", gold["figure"]
    yield ("hard" if gold["visual_input"] == "2" else "easy"), gold["pair"]


def _original(item: Item) -> bool:
    return item.gold["figure_id"] == "0"


def _same(text: str | None) -> bool | None:
    return None if text is None else "same" in text.lower()


def _blame(one: Scored, first: Scored | None) -> tuple[bool, bool] | None:
    """Whether an error shows that language overrode the figure, and that the figure was misread; None: not known.

    The authors' decision tree (get_eval_pair_all), from the verdict on the same question with figure 0.
    """
    if one.right:
        return False, False
    if no_figure(one.item):
        return True, False
    needs_figure = one.item.gold["category"] == "VS"
    if _original(one.item):
        return False, True
    if first is None:
        return None
    if one.verdict == UNCLEAR:
        return needs_figure and first.verdict == WRONG, True
    if first.verdict == UNCLEAR or (first.verdict == WRONG and not needs_figure):
        return False, True
    if needs_figure and first.verdict == RIGHT and one.item.gold["visual_input"] == "1":
        return False, True
    if one.same is None:
        return None
    if not needs_figure:
        return one.same, True
    return (True, not one.same) if first.verdict == WRONG else (one.same, not one.same)


def _scorer(
    name: str,
    source: str,
    score: Callable[[Item, Answer], Scored | None],
    percent: bool = False,
    without_figure: bool = False,
) -> Scorer:
    """A scorer of sets; `without_figure`: questions without a figure make up a figure too."""

    def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
        sets: dict[str, list[Scored]] = defaultdict(list)
        unjudged: Counter[str] = Counter()
        for item, answer in zip(items, answers, strict=True):
            scored = score(item, answer)
            unjudged[item.group] += scored is None
            sets[item.group].extend([] if scored is None else [scored])
        counts: dict[str, list[float]] = {count: [] for count in COUNTS}
        for group, rows in sets.items():
            found = _counts(rows, without_figure) | {"unjudged": unjudged[group]}
            for count in COUNTS:
                counts[count].append(float(found[count]))
        return Tally(list(sets), counts)

    points = frozenset(POINTS) if percent else frozenset()
    return Scorer(name, source, tally, lambda sums: _metrics(sums, percent), WANTED, points)


def _counts(rows: Sequence[Scored], without_figure: bool) -> dict[str, float]:
    """The counts of one set."""
    units: dict[tuple[str, str], list[bool]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = {}
    for row in rows:
        for unit in _units(row.item.gold):
            if unit[0] != "figure" or without_figure or not no_figure(row.item):
                units[unit].append(row.right)
                sizes[unit] = row.item.gold["of"][unit[0]]
    whole = [(kind, right) for (kind, label), right in units.items() if len(right) == sizes[kind, label]]
    found: dict[str, float] = {kind: sum(one == kind for one, _ in whole) for kind in UNITS}
    found |= {f"{kind} right": sum(one == kind and all(right) for one, right in whole) for kind in UNITS}
    first = {row.item.gold["pair"]: row for row in rows if _original(row.item)}
    blamed = [_blame(row, first.get(row.item.gold["pair"])) for row in rows]
    return found | {
        "figure shares": sum(sum(right) / len(right) for kind, right in whole if kind == "figure"),
        "figure wrong": sum(kind == "figure" and not any(right) for kind, right in whole),
        "questions": len(rows),
        "right": sum(row.right for row in rows),
        "yes": sum(row.yes for row in rows),
        "label yes": sum(row.item.gold["label"] == "yes" for row in rows),
        "wrong no": sum(not row.right and row.item.gold["label"] == "no" for row in rows),
        "unclear": sum(row.verdict == UNCLEAR for row in rows),
        "language": blamed.count((True, False)),
        "vision": blamed.count((False, True)),
        "both": blamed.count((True, True)),
        "undiagnosed": blamed.count(None),
    }


def _metrics(sums: Sums, percent: bool) -> dict[str, np.ndarray]:
    def of(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.round(100 * share(above, below), 4) if percent else share(above, below)

    asked, figures = sums["questions"], sums["figure"]
    blamed = sums["language"] + sums["vision"] + sums["both"]
    known = np.where(sums["undiagnosed"] > 0, 0, blamed)
    return {
        "qAcc": of(sums["pair right"], sums["pair"]),
        "fAcc": of(sums["figure right"], figures),
        "easy": of(sums["easy right"], sums["easy"]),
        "hard": of(sums["hard right"], sums["hard"]),
        "aAcc": of(sums["right"], asked),
        "figures inconsistent": of(figures - sums["figure right"] - sums["figure wrong"], figures),
        "figures wrong": of(sums["figure wrong"], figures),
        "figures score": share(sums["figure shares"], figures),
        "yes bias": share(sums["yes"], asked) - share(sums["label yes"], asked),
        "no among errors": share(sums["wrong no"], asked - sums["right"]),
        **{cause: of(sums[cause], known) for cause in CAUSES},
        "unclear": share(sums["unclear"], asked),
        "unjudged": share(sums["unjudged"], asked + sums["unjudged"]),
    }


def _lmms(item: Item, answer: Answer) -> Scored:
    yes = "yes" in answer.text.lower()
    return Scored(item, RIGHT if yes == (item.gold["label"] == "yes") else WRONG, yes, None)


def _strict(item: Item, answer: Answer) -> Scored:
    said = yesno.strict(answer.text)
    found = UNCLEAR if said is None else RIGHT if said == item.gold["label"] else WRONG
    return Scored(item, found, said == "yes", None)


UNITS = ("pair", "figure", "easy", "hard")
CAUSES = ("language", "vision", "both")
COUNTS = (
    *UNITS, *(f"{kind} right" for kind in UNITS), "figure shares", "figure wrong", "questions", "right", "yes",
    "label yes", "wrong no", "unclear", *CAUSES, "undiagnosed", "unjudged",
)  # fmt: skip
POINTS = ("qAcc", "fAcc", "easy", "hard", "aAcc", "figures inconsistent", "figures wrong", *CAUSES)
WANTED = {
    **dict.fromkeys(("qAcc", "fAcc", "easy", "hard", "aAcc"), 1), "figures inconsistent": -1, "figures wrong": -1,
    "figures score": 1, "yes bias": 0, "no among errors": 0, **dict.fromkeys(CAUSES, 0), "unclear": -1, "unjudged": 0,
}  # fmt: skip
MATCHED = (
    _scorer("lmms", "EvolvingLMMs-Lab/lmms-eval@75571cf hb_aggregation_result_intern", _lmms, without_figure=True),
    _scorer("strict", "ours", _strict),
)
JUDGED = Judged(prompts, judged)
BENCHMARK = Benchmark(
    "hallusionbench",
    "HallusionBench",
    "Guan et al., arXiv 2310.14566; tianyi-lab/HallusionBench@744007c HallusionBench.json",
    load,
    (*MATCHED, judged({})[0]),
    128,
    yes_no=True,
    notes="`official` needs a judge and is nan without one; `lmms` and `strict` match the answers as text and are not "
    "comparable with the leaderboard, which GPT-4 judged. By default the judge reads a text of ours; give the "
    "published one with --set template=FILE. lmms-eval and VLMEvalKit ask only the 951 questions with an image "
    "(--set subset=image).",
)
