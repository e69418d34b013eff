"""MATS: statements and their inversions, the published counts and our own, contrastive encoders on the same items."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.inversion import deny, invert
from vlmsteer.bench.mats import BENCHMARK, PROMPTS, verdict
from vlmsteer.bench.mats_clip import answers as clip_answers
from vlmsteer.errors import InputError
from vlmsteer_counterfacts.clip import load_scorer

SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"


def row(name: str, image: str, statement: str, relation: str, **more: Any) -> dict[str, Any]:
    base = {"example_id": name, "image": image, "statement": statement, "relation": relation, "is_true": True}
    return {**base, "objects": [], "split": "vsr", "metadata": "{}", **more}


ROWS = [
    row("vsr_1", "a.png", "The cat is left of the dog.", "left"),
    row("vsr_2", "b.png", "The cup is on top of the table.", "above"),
    row("vsr_3", "b.png", "The bed is behind the dog.", "behind", is_true=False),
]
ABSURD = [
    row("absurd_0", "a.png", "The cat is right of the dog.", "right", is_true=False, split="absurd"),
    row("absurd_1", "c.png", "The cup is below the table.", "below", is_true=False, split="absurd"),
]


def folder(path: Path, vsr: Sequence[dict[str, Any]] = ROWS, absurd: Sequence[dict[str, Any]] = ABSURD) -> Files:
    (path / "vsr.json").write_text(json.dumps(list(vsr)))
    (path / "absurd.json").write_text(json.dumps(list(absurd)))
    (path / "images").mkdir(exist_ok=True)
    for name in "abc":
        Image.new("RGB", (8, 8)).save(path / "images" / f"{name}.png")
    return Files(path)


def items_of(pairs: int, absurd: int) -> list[Item]:
    def item(name: str, part: str, true: bool) -> Item:
        return Item(f"{name}/{part}", "x.png", "?", name, {"pair": name, "part": part, "is_true": true})

    found = [item(f"p{n}", part, part == "original") for n in range(pairs) for part in ("original", "inverted")]
    return found + [item(f"a{n}", "absurd", False) for n in range(absurd)]


def answered(
    original: Sequence[str], inverted: Sequence[str], absurd: Sequence[str]
) -> tuple[list[Item], list[Answer]]:
    said = [text for pair in zip(original, inverted, strict=True) for text in pair] + list(absurd)
    return items_of(len(original), len(absurd)), [Answer(text) for text in said]


@pytest.mark.skipif(not (SHARED / "mats.json").is_file(), reason="the golden cases are not beside the repository")
def test_golden() -> None:
    for case in json.loads((SHARED / "mats.json").read_text())["cases"]:
        items, given = answered(case["original"], case["inverted"], case["absurd"])
        scorer = BENCHMARK.scorer("reference")
        sums = scorer.tally(items, given).sums()
        found = scorer.score(items, given)
        assert {name: found[name] for name in ("SCS", "IAR", "coverage")} == {
            name: case[name] for name in ("SCS", "IAR", "coverage")
        }, case["name"]
        assert (sums["flips"], sums["known_pairs"]) == (case["flips"], case["scs_valid"])
        assert (sums["agreed"], sums["known_absurd"]) == (case["agreements"], case["iar_valid"])


READ = {  # answer: what the published parser and ours make of it
    "TRUE": (True, True),
    "False.": (False, False),
    "on the right": (True, None),
    "I am not sure.": (True, None),
    "That is not true.": (False, False),
    "No, it is not.": (True, False),  # published: "not" turns the "no" round
    "The statement isn't false": (True, True),
    "The cat is to the left.": (None, None),
    "It is false that the cat is right of the dog.": (True, False),
    "true or false": (True, None),
    "Is it true or false? False": (True, False),
    "0.7": (True, None),
    "": (None, None),
}


@pytest.mark.parametrize("text", READ)
def test_reading_an_answer(text: str) -> None:
    published, ours = READ[text]
    items, given = answered([], [], [text])
    sums = BENCHMARK.scorer("reference").tally(items, given).sums()
    assert (sums["known_absurd"], sums["agreed"]) == (published is not None, published is True)
    assert verdict(text) is ours


def test_random_answers_against_a_plain_count() -> None:
    rng = random.Random(3)
    for _ in range(40):
        n, m = rng.randint(0, 6), rng.randint(0, 5)
        original, inverted, absurd = ([rng.choice(["TRUE", "FALSE", "eh"]) for _ in range(k)] for k in (n, n, m))
        items, given = answered(original, inverted, absurd)
        order = rng.sample(range(len(items)), len(items))
        items, given = [items[i] for i in order], [given[i] for i in order]
        reference, strict = (BENCHMARK.scorer(name).score(items, given) for name in ("reference", "strict"))
        pairs = list(zip(original, inverted, strict=True))
        known = [pair for pair in pairs if "eh" not in pair]
        flips = sum(a != b for a, b in known)
        assert reference["SCS"] == (flips / len(known) if known else 0)
        valid = [one for one in absurd if one != "eh"]
        assert reference["IAR"] == (valid.count("TRUE") / len(valid) if valid else 0)
        said = [*original, *inverted, *absurd]
        assert reference["coverage"] == ((len(said) - said.count("eh")) / len(said) if said else 0)
        if pairs:
            assert strict["SCS"] == flips / n
            assert strict["pair_accuracy"] == pairs.count(("TRUE", "FALSE")) / n
            assert strict["accuracy"] == (original.count("TRUE") + inverted.count("FALSE")) / (2 * n)
        if absurd:
            assert strict["IAR"] == absurd.count("TRUE") / m


def test_wrong_twice_is_consistent_and_inaccurate() -> None:
    items, given = answered(["FALSE"] * 5, ["TRUE"] * 5, [])
    assert BENCHMARK.scorer("reference").score(items, given)["SCS"] == 1
    strict = BENCHMARK.scorer("strict").score(items, given)
    assert (strict["SCS"], strict["accuracy"], strict["pair_accuracy"]) == (1, 0, 0)


def test_a_pair_with_a_missing_answer_is_left_out() -> None:
    items, given = answered(["TRUE", "TRUE"], ["TRUE", "FALSE"], [])
    whole = BENCHMARK.scorer("reference").tally(items[2:], given[2:])
    assert BENCHMARK.scorer("reference").tally(items[1:], given[1:]) == whole
    assert whole.groups == ["p1"]


@pytest.mark.parametrize(
    ("statement", "relation", "published", "words"),
    [
        ("The cat is left of the dog.", "left", "The cat is right of the dog.", "The cat is right of the dog."),
        ("A cat in front of a dog", "front", "A cat in behind of a dog", "A cat behind a dog"),
        ("A cat behind a dog", "behind", "A cat front a dog", "A cat in front of a dog"),
        ("A cup on top of a box", "above", "A cup on top of a box", "A cup below a box"),
        ("A cup under a box", "below", "A cup under a box", "A cup above a box"),
        ("left, left", "left", "right, right", "right, left"),
    ],
)
def test_inversion(statement: str, relation: str, published: str, words: str) -> None:
    assert invert(statement, relation) == published
    assert invert(statement, relation, "words") == words


def test_inversion_refuses_what_it_cannot_turn() -> None:
    for call in (lambda: invert("A cat.", "left"), lambda: invert("left", "near"), lambda: invert("left", "left", "x")):
        with pytest.raises(InputError):
            call()


def test_denial() -> None:
    assert deny("The cat is left of the dog.") == "The cat is not left of the dog."
    assert deny("The cat sits.") == "It is not true that the cat sits."


def test_load(tmp_path: Path) -> None:
    items = BENCHMARK.items(folder(tmp_path))
    by_id = {item.id: item for item in items}
    # vsr_2 says "on top of", which the published rule does not change.
    assert list(by_id) == [
        "vsr_1/original", "vsr_1/inverted", "vsr_3/original", "vsr_3/inverted", "absurd_0/absurd", "absurd_1/absurd",
    ]  # fmt: skip
    first, second = by_id["vsr_1/original"], by_id["vsr_1/inverted"]
    assert second.gold["statement"] == first.gold["inverse"] == "The cat is right of the dog."
    assert first.prompt == PROMPTS["audit"].format(statement="The cat is left of the dog.")
    assert {item.group for item in items if item.image and item.image.endswith("a.png")} == {first.group}
    assert [by_id[f"{name}/{part}"].gold["is_true"] for name, part in (
        ("vsr_1", "original"), ("vsr_1", "inverted"), ("vsr_3", "original"), ("vsr_3", "inverted"),
    )] == [True, False, False, None]  # fmt: skip
    assert json.loads(json.dumps(first.gold)) == first.gold
    assert len(BENCHMARK.items(folder(tmp_path), inversion="words", splits="vsr")) == 6


def test_load_gives_the_same_items_from_every_kind_of_file(tmp_path: Path) -> None:
    expected = BENCHMARK.items(folder(tmp_path))
    rows = [*ROWS, *ABSURD]

    def csv_file(path: Path) -> None:
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(rows)

    def parquet(path: Path) -> None:
        pq.write_table(pa.Table.from_pylist([{**one, "objects": ["x"]} for one in rows]), path.with_suffix(".parquet"))

    writers: list[Callable[[Path], object]] = [
        lambda path: path.with_suffix(".jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows)),
        csv_file,
        parquet,
    ]
    for n, write in enumerate(writers):
        other = tmp_path / str(n)
        other.mkdir()
        write(other / "mats")
        found = BENCHMARK.items(Files(other, [tmp_path / "images"]))
        assert [(item.id, item.prompt, item.group) for item in found] == [
            (item.id, item.prompt, item.group) for item in expected
        ]


def test_pictures_inside_parquet_become_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder(tmp_path)
    content = (tmp_path / "images" / "a.png").read_bytes()
    rows = [{**one, "objects": ["x"], "image": {"bytes": content, "path": one["image"]}} for one in ROWS]
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub" / "data" / "vsr-00000-of-00001.parquet")
    items = BENCHMARK.items(Files(tmp_path / "hub"), splits="vsr")
    assert len(items) == 4 and len({item.group for item in items}) == 1
    assert Path(items[0].image or "").read_bytes() == content


@pytest.mark.parametrize(
    ("vsr", "absurd", "options", "complaint"),
    [
        ([ROWS[0], ROWS[0]], ABSURD, {}, "Row 2 .*'vsr_1', which another row has"),
        ([ROWS[0], {**ROWS[2], "example_id": "vsr_1"}], ABSURD, {}, "'vsr_1', which another row has"),
        ([{**ROWS[0], "is_true": "maybe"}], ABSURD, {}, "'maybe' in 'is_true'"),
        ([{**ROWS[0], "relation": "near"}], ABSURD, {}, "Row 1 .*no relation 'near'"),
        ([{**ROWS[0], "statement": "A cat."}], ABSURD, {}, "Row 1 .*no words of the relation"),
        ([{**ROWS[0], "metadata": "{"}], ABSURD, {}, "not JSON"),
        ([{k: v for k, v in ROWS[0].items() if k != "image"}], ABSURD, {}, "no 'image'"),
        (ROWS, [{**ABSURD[0], "is_true": True}], {}, "absurd statements are false"),
        (ROWS, ABSURD, {"splits": "vsr,absrd"}, "did you mean 'absurd'"),
        (ROWS, ABSURD, {"prompt": "x"}, "no prompt 'x'"),
        (ROWS, [{**ABSURD[0], "image": "gone.png"}], {}, r"1 image is missing \(gone.png\)"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, vsr: Any, absurd: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        BENCHMARK.items(folder(tmp_path, vsr, absurd), **options)


def test_two_statements_about_one_picture_may_share_their_published_id(tmp_path: Path) -> None:
    second = {**ROWS[0], "statement": "The cup is left of the box."}
    items = BENCHMARK.items(folder(tmp_path, [ROWS[0], second]), splits="vsr")
    assert [item.id for item in items] == [
        "vsr_1/original", "vsr_1/inverted", "vsr_1#2/original", "vsr_1#2/inverted",
    ]  # fmt: skip


def test_no_files_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no table mats or vsr"):
        BENCHMARK.items(Files(tmp_path))


def test_a_contrastive_encoder_answers_the_same_items(tmp_path: Path) -> None:
    items = BENCHMARK.items(folder(tmp_path), inversion="words")
    model = load_scorer(device="cpu")
    given = clip_answers(items, model)
    for item, answer in zip(items, given, strict=True):
        other = item.gold["inverse"] if item.gold["part"] != "absurd" else deny(item.gold["statement"])
        assert answer.text == (
            "TRUE" if model.agrees(item.image or "", item.gold["statement"], other) >= 0 else "FALSE"
        )
    found = BENCHMARK.scorer("reference").score(items, given)
    assert (found["SCS"], found["coverage"]) == (1, 1)  # one comparison gives both answers of a pair
    for item, answer in zip(items, clip_answers(items, model, against="denial"), strict=True):
        said = model.agrees(item.image or "", item.gold["statement"], deny(item.gold["statement"])) >= 0
        assert answer.text == ("TRUE" if said else "FALSE")


def test_a_contrastive_encoder_refuses_other_items() -> None:
    with pytest.raises(InputError, match="no statement about an image"):
        clip_answers([Item("1", None, "?", "g", {})], "tiny-clip")
    with pytest.raises(InputError, match="did you mean 'denial'"):
        clip_answers([], "tiny-clip", against="denail")
