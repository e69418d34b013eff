"""HallusionBench: yes/no questions in sets of edited figures (Guan et al., CVPR 2024, arXiv 2310.14566).

Right counts little alone: a question must be right on all figures of its set (qAcc), a figure on all its questions
(fAcc). The authors let GPT-4 compare each answer with a reference; a verdict that is neither "correct" nor "incorrect"
is wrong, except where the question needs a figure and none was shown. Without a judge the answers are matched as text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer
from vlmsteer.bench.files import Files, field, read_rows
from vlmsteer.bench.hallusion_scores import MATCHED, RIGHT, UNCLEAR, WRONG, Scored, original, scorer, together
from vlmsteer.bench.judged import Judged, fill, read_template
from vlmsteer.errors import InputError, did_you_mean

PROMPTS = {"official": "{question}", "yes_no": "{question}\nPlease answer yes or no."}
SUBSETS = ("all", "image")
PARTS_OF_ID = ("category", "subcategory", "set_id", "figure_id", "question_id")
CHECKS = {"0": "incorrect", "1": "correct", "2": "unclear"}  # what the authors' script saves of a verdict
AGREES = {"0": "different", "1": "same"}
_CHECK = re.compile(r"\w+?(?<!_human)(?:_gpt)?_check")
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
    sizes = Counter((unit, label) for gold, _ in rows for unit, label in together(gold))
    items = []
    for gold, image in rows:
        of = {unit: sizes[unit, label] for unit, label in together(gold)}
        file = None if image is None else files.image(image, "hallusion_bench")
        name = f"{gold['figure']}/{gold['question_id']}"
        text = PROMPTS[prompt].format(question=gold["question"])
        items.append(Item(name, file, text, gold["set"], gold | {"of": of}))
    return items


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
    first = {item.gold["pair"]: answer.text for item, answer in zip(items, answers, strict=True) if original(item)}
    found = {}
    for item, answer in zip(items, answers, strict=True):
        path = item.gold["template"]
        if path not in texts:
            texts[path] = read_template(path, SLOTS)
        found[item.id] = fill(texts[path], item.gold["question"], item.gold["details"], answer.text)
        if not original(item) and item.gold["pair"] in first:
            found[item.id + SAME] = fill(SAME_TEMPLATE, answer.text, first[item.gold["pair"]])
    return found


def judged(verdicts: Mapping[str, str]) -> tuple[Scorer, ...]:
    """Every scorer of HallusionBench.

    `official` needs verdicts. In percent with four decimals, as the authors' script prints them, it gives `qAcc`,
    `fAcc`, `easy` and `hard` (questions on original and on edited figures), `aAcc`, `figures inconsistent`, `figures
    wrong`, and of the errors those that it puts down to `language`, `vision` or `both` (the authors' LH, VI and Mixed),
    for which it needs the second verdicts too. The others are shares: `figures score`, the mean share of right answers
    on a figure; `yes bias`, the share of yes less that of labels yes; `no among errors`, the script's FP ratio (nan
    where nothing is wrong, where the script fails); `unclear` verdicts; `unjudged`, answers without a verdict.

    `lmms` takes an answer with "yes" in it for yes and any other for no, and lets VS questions without a figure count
    for fAcc. `strict` needs a whole word yes or no, and treats questions without a figure like `official`. To both two
    answers agree if they say the same of yes and no, so that they put errors down to causes without a judge.

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
        scorer("official", "tianyi-lab/HallusionBench@744007c utils.py, evaluation.py", by_judge, judged=True),
        *MATCHED,
    )


def imported(rows: Sequence[Mapping[str, Any]], path: Path) -> dict[str, str]:
    """The verdicts that the authors' script saved beside answers (`gpt4v_output_gpt_check`, `same`), as `judged` reads.

    Raises:
        InputError: if rows hold verdicts of more than one kind, or one that is none.
    """
    kinds = sorted({name for row in rows for name in row if _CHECK.fullmatch(name)})
    if len(kinds) > 1:
        raise InputError(f"{str(path)!r} holds verdicts of several kinds: {', '.join(kinds)}; leave one.")
    found = {}
    for number, row in enumerate(rows, 1):
        where = f"Row {number} of {str(path)!r}"
        for name, meaning, suffix in ((kinds[0], CHECKS, ""), ("same", AGREES, SAME)) if kinds else ():
            if name not in row:
                continue
            if str(row[name]) not in meaning:
                raise InputError(f"{where} has {row[name]!r} in {name!r}; it is {', '.join(meaning)}.")
            id = "/".join(str(field(row, part, where, (str, int))) for part in PARTS_OF_ID)
            found[id + suffix] = meaning[str(row[name])]
    return found


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


def _same(text: str | None) -> bool | None:
    return None if text is None else "same" in text.lower()


JUDGED = Judged(prompts, judged, frozenset({"official"}), imported)
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
    judged=JUDGED,
)
