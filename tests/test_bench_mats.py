"""MATS: statements and their inversions, the published counts and our own, contrastive encoders on the same items."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from program import Main, program

from vlmsteer.bench import mats_clip
from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.inversion import deny, invert
from vlmsteer.bench.ledger import rows_in
from vlmsteer.bench.mats import BENCHMARK, PROMPTS, verdict
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
    path.mkdir(exist_ok=True)
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


def test_no_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.offline(monkeypatch, tmp_path / "hub")
    with pytest.raises(InputError, match="Looked for a table vsr or absurd or mats .*'thubZ9/mats-dataset' is not in"):
        BENCHMARK.items(Files(tmp_path))


def test_a_contrastive_encoder_answers_the_same_items(tmp_path: Path) -> None:
    model = load_scorer(device="cpu")
    for against in mats_clip.AGAINST:
        items = mats_clip.BENCHMARK.items(folder(tmp_path / against), inversion="words", against=against)
        assert [item.id for item in items] == [
            item.id for item in BENCHMARK.items(Files(tmp_path / against), inversion="words")
        ]
        given = mats_clip.answers(items, model)
        for item, answer in zip(items, given, strict=True):
            statement, inverse = item.gold["statement"], item.gold["inverse"]
            other = inverse if against == "inversion" and item.gold["part"] != "absurd" else deny(statement)
            assert item.prompt == f"{statement} / {other}"
            nearer = model.agrees(item.image or "", statement, other)
            assert answer.text == ("TRUE" if nearer >= 0 else "FALSE")
            true, false = answer.logprobs["TRUE"], answer.logprobs["FALSE"]
            assert math.exp(true) + math.exp(false) == pytest.approx(1)
            assert true - false == pytest.approx(float(model.model.logit_scale.detach().exp()) * nearer, abs=1e-4)
        if against == "inversion":
            found = BENCHMARK.scorer("reference").score(items, given)
            assert (found["SCS"], found["coverage"]) == (1, 1)  # one comparison gives both answers of a pair


def test_a_contrastive_encoder_refuses_other_items(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no two statements"):
        mats_clip.answers([Item("1", None, "?", "g", {})], "tiny-clip")
    with pytest.raises(InputError, match="did you mean 'denial'"):
        mats_clip.load(folder(tmp_path), against="denail")


def test_what_is_a_contrastive_encoder(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").touch()
    assert mats_clip.encoder("tiny-clip") == "tiny-clip"
    assert mats_clip.encoder("open_clip:ViT-B-32/laion2b_s34b_b79k") == "ViT-B-32/laion2b_s34b_b79k"
    assert mats_clip.encoder("hf-hub:a/b") == "hf-hub:a/b"
    assert mats_clip.encoder(str(tmp_path)) == str(tmp_path)
    assert mats_clip.encoder("tiny-llava") is None and mats_clip.encoder(str(tmp_path.parent)) is None


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Main:
    monkeypatch.chdir(tmp_path)
    return program(monkeypatch, capsys)


def test_an_encoder_runs_from_the_command_line_and_goes_on(main: Main, tmp_path: Path) -> None:
    folder(tmp_path / "data")
    command = ("bench", "mats", "--model", "tiny-clip", "--data", "data", "--set", "against=denial", "--out", "out")
    code, printed, complaints = main(*command)
    assert code == 0 and "SCS" in printed, complaints
    items = mats_clip.BENCHMARK.items(Files(tmp_path / "data"), against="denial")
    rows = rows_in(tmp_path / "out" / "samples.jsonl")
    answers = mats_clip.answers(items, "tiny-clip")
    assert [(row["item"], row["answer"], row["error"]) for row in rows] == [
        (item.id, answer.text, None) for item, answer in zip(items, answers, strict=True)
    ]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["tasks"]["mats"]["scorers"]
    expected = BENCHMARK.scorer("strict").score(items, answers)
    values = metrics["strict"]["arms"]["none"]["values"]
    assert {name: rate["rate"] for name, rate in values.items()} == {
        name: value for name, value in expected.items() if not math.isnan(value)
    }
    assert (tmp_path / "out" / "report.html").is_file() and "SCS is 1 by construction" in "".join(
        (tmp_path / "out" / "report.html").read_text().split("\n")
    )
    text = (tmp_path / "out" / "samples.jsonl").read_text()
    (tmp_path / "out" / "samples.jsonl").write_text("".join(text.splitlines(keepends=True)[:2]) + '{"key": "cut o')
    code, printed, complaints = main(*command, "--json")
    assert code == 0 and json.loads(printed)["answers"] == len(items), complaints
    assert [row["answer"] for row in rows_in(tmp_path / "out" / "samples.jsonl")] == [row["answer"] for row in rows]
    code, _, complaints = main(*command[:6], "--out", "out")
    assert code == 2 and "holds another run" in complaints


def test_an_image_that_cannot_be_read_is_an_error_of_its_items(main: Main, tmp_path: Path) -> None:
    files = folder(tmp_path / "data")
    items = mats_clip.BENCHMARK.items(files)
    broken = Path(str(items[0].image))
    broken.write_bytes(b"no picture")
    code, _, complaints = main("bench", "mats", "--model", "tiny-clip", "--data", "data", "--out", "out")
    assert code == 0 and broken.name in complaints
    rows = rows_in(tmp_path / "out" / "samples.jsonl")
    assert {row["item"] for row in rows if row["error"]} == {one.id for one in items if one.image == str(broken)}
    assert all(row["answer"] in ("TRUE", "FALSE") for row in rows if not row["error"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pope", "mats"], "it takes mats alone; leave out pope."),
        (["mats", "--recipe", "vista.safetensors"], "leave out --recipe."),
        (["mats", "--beams", "3", "--strength", "0", "1"], "leave out --strength, --beams."),
    ],
)
def test_an_encoder_says_what_it_cannot_do(main: Main, arguments: list[str], sentence: str) -> None:
    code, _, complaints = main("bench", *arguments, "--model", "tiny-clip")
    assert code == 2 and "'tiny-clip' is a contrastive encoder" in complaints and sentence in complaints
