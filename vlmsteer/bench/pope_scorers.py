"""Eight scorers of POPE's answers: the parsers of `yesno`, each with the arithmetic of the script that it comes from.

An answer falls into one of six cells by its label and what was read of it. The scripts differ in what becomes of an
answer that is neither yes nor no: most know none, RePOPE drops it, lmms-eval forgets it in the recall, VLMEvalKit takes
it for a no. Where no answer is a yes, or no label, the originals divide by zero; precision, recall and F1 are 0 here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlmsteer.bench import yesno
from vlmsteer.bench.benchmark import Answer, Item, Scorer, Sums, Tally, share

CELLS = ("tp", "fp", "tn", "fn", "lost_yes", "lost_no")  # lost: neither yes nor no was read, by label

Cells = Mapping[str, np.ndarray]


def _tally(
    read: Callable[[str, str], str | None], exact: bool = False
) -> Callable[[Sequence[Item], Sequence[Answer]], Tally]:
    """Counts by split and cell.

    Args:
        read: "yes", "no" or None of an answer and its label.
        exact: whether only a label that is exactly "no" is negative and "No" positive, as in POPE's own script.
    """

    def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
        groups, places = [], []
        for item, answer in zip(items, answers, strict=True):
            label = item.gold["label"]
            if label is None:
                continue
            positive = (label if exact else label.strip().lower()) != "no"
            said = read(answer.text, label)
            cell = {"yes": "tp" if positive else "fp", "no": "fn" if positive else "tn"}.get(said or "")
            places.append(f"{item.gold.get('split', '')}.{cell or ('lost_yes' if positive else 'lost_no')}")
            groups.append(item.group)
        splits = dict.fromkeys(item.gold.get("split", "") for item in items)
        names = [f"{split}.{cell}" for split in splits for cell in CELLS]
        return Tally(groups, {name: [float(place == name) for place in places] for name in names})

    return tally


def _metrics(measure: Callable[[Cells], dict[str, np.ndarray]]) -> Callable[[Sums], dict[str, np.ndarray]]:
    def metrics(sums: Sums) -> dict[str, np.ndarray]:
        pooled = {cell: sum((sums[one] for one in sums if one.endswith(f".{cell}")), np.zeros(())) for cell in CELLS}
        return measure(pooled)

    return metrics


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below == 0, 0.0, share(above, below))


def _all(cells: Cells) -> np.ndarray:
    return sum((cells[cell] for cell in CELLS), np.zeros(()))


def _measure(cells: Cells, n: np.ndarray, lost_is_no: bool) -> dict[str, np.ndarray]:
    tp, fp = cells["tp"], cells["fp"]
    precision = _ratio(tp, tp + fp)
    recall = _ratio(tp, tp + cells["fn"] + (cells["lost_yes"] if lost_is_no else 0))
    return {
        "accuracy": share(tp + cells["tn"], n),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": share(tp + fp, n),
    }


def _unparsed(cells: Cells) -> dict[str, np.ndarray]:
    return {"unparsed": share(cells["lost_yes"] + cells["lost_no"], _all(cells))}


def _parsed_only(cells: Cells) -> dict[str, np.ndarray]:
    return _measure(cells, cells["tp"] + cells["fp"] + cells["tn"] + cells["fn"], lost_is_no=False)


def _lmms(cells: Cells) -> dict[str, np.ndarray]:
    found = _measure(cells, _all(cells), lost_is_no=False)
    found["yes_ratio"] = share(cells["tp"] + cells["fn"] + cells["lost_yes"], _all(cells))  # of the labels, as there
    return found | _unparsed(cells)


def _vlmevalkit(cells: Cells) -> dict[str, np.ndarray]:
    found = _measure(cells, _all(cells), lost_is_no=True)
    percent = {name: found[name] * 100 for name in ("f1", "accuracy", "precision", "recall")}
    return percent | {"yes_ratio": found["yes_ratio"]} | _unparsed(cells)


def _strict(cells: Cells) -> dict[str, np.ndarray]:
    found = _measure(cells, _all(cells), lost_is_no=True)
    yes = share(cells["tp"], cells["tp"] + cells["fn"] + cells["lost_yes"])
    no = share(cells["tn"], cells["tn"] + cells["fp"] + cells["lost_no"])
    both = {"balanced_accuracy": (yes + no) / 2, "phd_index": _ratio(2 * yes * no, yes + no)}
    return found | both | _unparsed(cells)


def _llava(sums: Sums) -> dict[str, np.ndarray]:
    splits = dict.fromkeys(name.rpartition(".")[0] for name in sums)
    each = [{cell: sums[f"{split}.{cell}"] for cell in CELLS} for split in splits]
    asked = [_all(cells) > 0 for cells in each]
    f1 = sum((_parsed_only(cells)["f1"] * there for cells, there in zip(each, asked, strict=True)), np.zeros(()))
    return {"mean_f1": share(f1, sum(asked, np.zeros(())))} | _metrics(_parsed_only)(sums)


def _vlmevalkit_word(text: str, label: str) -> str | None:
    return {"Yes": "yes", "No": "no"}.get(yesno.vlmevalkit(text))


WANTED = {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0}
AOIDRAGON = _tally(lambda text, label: yesno.aoidragon(text), exact=True)

SCORERS = (
    Scorer("aoidragon", "AoiDragon/POPE@08d957b evaluate.py", AOIDRAGON, _metrics(_parsed_only), WANTED),
    Scorer(
        "llava", "haotian-liu/LLaVA@c121f04 eval_pope.py; mean_f1 over splits is its paper's POPE",
        AOIDRAGON, _llava, {"mean_f1": 1} | WANTED,
    ),
    Scorer(
        "opera", "shikiw/OPERA@61426ef recorder, LzVv123456/VISTA@dc62252 pope_ans.py",
        _tally(lambda text, label: yesno.opera(text), exact=True), _metrics(_parsed_only), WANTED,
    ),
    Scorer("vcd", "DAMO-NLP-SG/VCD@d6568ff eval_pope.py", _tally(yesno.vcd), _metrics(_parsed_only), WANTED),
    Scorer(
        "repope", "YanNeu/RePOPE@bcf22e5", _tally(lambda text, label: yesno.repope(text)),
        _metrics(lambda cells: _parsed_only(cells) | _unparsed(cells)), WANTED | {"unparsed": -1},
    ),
    Scorer(
        "lmms", "EvolvingLMMs-Lab/lmms-eval@75571cf pope/utils.py; its yes_ratio is that of the labels",
        _tally(lambda text, label: yesno.lmms(text)), _metrics(_lmms), WANTED | {"unparsed": -1},
    ),
    Scorer(
        "vlmevalkit", "open-compass/VLMEvalKit@e8e78f0 POPE_rating without a judge; f1 is its Overall",
        _tally(_vlmevalkit_word), _metrics(_vlmevalkit), {"f1": 1} | WANTED | {"unparsed": -1},
        percent=frozenset({"accuracy", "precision", "recall", "f1"}),
    ),
    Scorer(
        "strict", "ours: the first whole word yes or no; neither is wrong",
        _tally(lambda text, label: yesno.strict(text)), _metrics(_strict),
        WANTED | {"balanced_accuracy": 1, "phd_index": 1, "unparsed": -1},
    ),
)  # fmt: skip
