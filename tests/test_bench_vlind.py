"""VLind-Bench: four stages, of which a later one counts only for instances that passed the earlier."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.vlind import BENCHMARK
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"
NAMES = {
    "S_CK": "S_CK(a)", "S_VP": "S_VP(b)", "S_CB": "S_CB(c|a)", "S_LP": "S_LP(d|bc)", "CB_acc": "CB_acc(c)",
    "LP_acc": "LP_acc(d)",
}  # fmt: skip


def answered(instances: list[dict[str, Any]]) -> tuple[list[Item], list[Answer]]:
    """Items and answers of instances in the layout of the repository's predictions."""
    items, answers = [], []
    for number, one in enumerate(instances):
        good = [image for image, votes in one["aggregated_human_label_good_images"].items() if votes >= 2]
        told = [
            ("CK", None, one["m_pred_a1_image"], one["m_pred_a2_image"]),
            ("VP", None, one["m_pred_b1"], one["m_pred_b2"]),
        ]
        told += [("CB", None, one["m_pred_c1_image"], one["m_pred_c2_image"])]
        told += [("LP", image, one["m_pred_d1"][image], one["m_pred_d2"][image]) for image in good]
        for stage, image, *pair in told if good else []:
            for truth, said in zip(("True", "False"), pair, strict=True):
                gold = {"stage": stage, "truth": truth, "image": image, "images": len(good)}
                items.append(Item(f"{number}/{stage}/{image}/{truth}", "x.png", "?", str(number), gold))
                answers.append(Answer(said["response"]))
    return items, answers


@pytest.mark.skipif(not (SHARED / "vlind.json").is_file(), reason="the golden cases are not beside the repository")
def test_golden() -> None:
    for case in json.loads((SHARED / "vlind.json").read_text()):
        found = BENCHMARK.scorer().score(*answered(case["instances"]))
        assert {theirs: found[ours] for ours, theirs in NAMES.items()} == case["reference"], case["name"]


def said(right: bool, truth: str) -> dict[str, str]:
    return {"response": truth if right else ("Well, hard to say" if truth == "True" else "The statement is true.")}


def instance(rng: random.Random, ease: float) -> dict[str, Any]:
    one: dict[str, Any] = {"concept": "color"}
    votes = {str(image): rng.randint(0, 3) for image in rng.sample(range(12), rng.randint(1, 5))}
    one["aggregated_human_label_good_images"] = votes
    for key in ("a1_image", "a2_image", "b1", "b2", "c1_image", "c2_image"):
        one[f"m_pred_{key}"] = said(rng.random() < ease, "True" if "1" in key else "False")
    for key in ("d1", "d2"):
        one[f"m_pred_{key}"] = {image: said(rng.random() < ease, "True" if key == "d1" else "False") for image in votes}
    return one


def by_hand(instances: list[dict[str, Any]]) -> dict[str, float]:
    """The definition, instance by instance, without sums of counts."""
    kept = []
    for one in instances:
        good = [image for image, votes in one["aggregated_human_label_good_images"].items() if votes >= 2]
        if not good:
            continue

        def passed(first: dict[str, str], second: dict[str, str]) -> bool:
            return first["response"] == "True" and second["response"] == "False"

        a, b, c = (
            passed(one[f"m_pred_{x}1{end}"], one[f"m_pred_{x}2{end}"])
            for x, end in (("a", "_image"), ("b", ""), ("c", "_image"))
        )
        kept.append((a, b, c, [passed(one["m_pred_d1"][image], one["m_pred_d2"][image]) for image in good]))

    def mean(values: list[float]) -> float:
        return 100 * sum(values) / len(values) if values else 0.0

    exact = {
        "S_CK": mean([a for a, _, _, _ in kept]),
        "S_VP": mean([b for _, b, _, _ in kept]),
        "S_CB": mean([c for a, _, c, _ in kept if a]),
        "S_LP": mean([sum(d) / len(d) for a, b, c, d in kept if a and b and c]),
        "CB_acc": mean([c for _, _, c, _ in kept]),
        "LP_acc": mean([sum(d) / len(d) for _, _, _, d in kept]),
    }
    return exact


@pytest.mark.parametrize("ease", [0.3, 0.8, 0.95])
def test_random_answers_against_the_definition(ease: float) -> None:
    rng = random.Random(int(100 * ease))
    for _ in range(15):
        instances = [instance(rng, ease) for _ in range(rng.randint(2, 12))]
        instances[0]["aggregated_human_label_good_images"] |= {next(iter(instances[0]["m_pred_d1"])): 3}
        found = BENCHMARK.scorer().score(*answered(instances))
        for name, value in by_hand(instances).items():
            assert found[name] == pytest.approx(value, abs=0.0501), name
            assert found[name] == round(found[name], 1)


def test_language_prior_right_on_one_of_two_images() -> None:
    rng = random.Random(0)
    one = instance(rng, 1.0)
    one["aggregated_human_label_good_images"] = {"3": 3, "5": 2, "6": 1}
    one["m_pred_d1"] = {image: said(True, "True") for image in "356"}
    one["m_pred_d2"] = {"3": said(True, "False"), "5": said(False, "False"), "6": said(False, "False")}
    assert BENCHMARK.scorer().score(*answered([one]))["S_LP"] == 50


def test_an_instance_with_a_missing_answer_is_left_out() -> None:
    rng = random.Random(1)
    items, answers = answered([instance(rng, 0.9) for _ in range(6)])
    first = items[0].group
    rest = [n for n, item in enumerate(items) if item.group != first]
    scorer = BENCHMARK.scorer()
    whole = scorer.tally([items[n] for n in rest], [answers[n] for n in rest])
    for gone in (n for n, item in enumerate(items) if item.group == first):
        kept = [n for n in range(len(items)) if n != gone]
        assert scorer.tally([items[n] for n in kept], [answers[n] for n in kept]) == whole


ROW: dict[str, Any] = {
    "concept": "climate", "context_id": 3, "context": "A polar bear in a desert.",
    "factual_context": "A polar bear on ice.", "true_statement": "It is hot there.",
    "false_statement": "It is cold there.", "existent_noun": "a polar bear", "non-existent_noun": "a penguin",
    "best_img_id": "4", "aggregated_human_label_good_images": {"4": 3, "9": 2, "1": 1},
}  # fmt: skip


def folder(path: Path, rows: list[dict[str, Any]]) -> Files:
    (path / "data.json").write_text(json.dumps(rows))
    shown = [f"counterfactual/climate/3_A polar bear in a desert./{image}.jpg" for image in (4, 9)]
    for name in [*shown, "factual/climate/3_A polar bear on ice./0.jpg"]:
        file = path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    return Files(path)


def test_load(tmp_path: Path) -> None:
    items = {one.id: one for one in BENCHMARK.items(folder(tmp_path, [ROW]))}
    assert list(items) == [
        f"0001/{part}/{truth}" for part in ("CK", "VP", "CB", "LP/4", "LP/9") for truth in ("True", "False")
    ]
    assert {one.group for one in items.values()} == {"0001"}
    assert items["0001/CK/True"].prompt == (
        "Statement: It is cold there.\nBased on the common sense, is the given statement true or false? "
        "Only respond in True or False."
    )
    assert items["0001/VP/False"].prompt == (
        "Statement: There is a penguin in the given image.\nBased on the image, is the given statement true or false? "
        "Only respond in True or False."
    )
    assert items["0001/CB/True"].prompt == (
        "Context: A polar bear in a desert.\nStatement: It is hot there.\nBased on the context, is the given statement "
        "true or false? Forget real-world common sense and just follow the information provided in the context. "
        "Only respond in True or False."
    )
    assert items["0001/LP/9/False"].prompt == (
        "Statement: It is cold there.\nBased on the image, is the given statement true or false? Forget real-world "
        "common sense and just follow the information provided in the image. Only respond in True or False."
    )
    pictures = {name: Path(one.image or "").parts[-4:] for name, one in items.items()}
    assert pictures["0001/CK/True"] == ("factual", "climate", "3_A polar bear on ice.", "0.jpg")
    assert pictures["0001/VP/True"] == ("counterfactual", "climate", "3_A polar bear in a desert.", "4.jpg")
    assert pictures["0001/LP/9/True"][-1] == "9.jpg"


def test_load_options(tmp_path: Path) -> None:
    files = folder(tmp_path, [ROW])
    cartoon = BENCHMARK.items(files, style="cartoon", prompt="reversed")
    assert [one.gold["image"] for one in cartoon] == [None] * 6 + ["9"] * 2
    assert cartoon[0].prompt == (
        "Only respond in True or False.\nStatement: It is cold there.\n"
        "Based on common sense, is the given statement true or false?"
    )
    assert len(BENCHMARK.items(files, votes=3)) == 8
    right = [Answer(one.gold["truth"].lower() + ".") for one in cartoon]
    assert BENCHMARK.scorer().score(cartoon, right)["S_LP"] == 100


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([ROW, ROW], {}, "Instance 2 .* is instance 1 again"),
        ([{k: v for k, v in ROW.items() if k != "context"}], {}, "Instance 1 .* has no 'context'"),
        ([{**ROW, "aggregated_human_label_good_images": {"4": "3"}}], {}, "votes are whole numbers"),
        ([ROW], {"votes": 4}, "hold no items"),
        ([ROW], {"style": "cartoons"}, "did you mean 'cartoon'"),
        ([ROW], {"prompt": "x"}, "no prompt 'x'"),
        ([{**ROW, "best_img_id": "7"}], {}, r"7\.jpg"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, rows: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        BENCHMARK.items(folder(tmp_path, rows), **options)
