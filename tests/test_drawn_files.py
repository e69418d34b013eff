"""The drawn world's own files: the public formats to the letter, true answers, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vlmsteer.bench import amber, chair, chair_words, drawn_files, mats, pope, vcf
from vlmsteer.bench.drawn_examples import drawn_examples
from vlmsteer.bench.drawn_files import drawn_folder, write_drawn
from vlmsteer.bench.files import Files
from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer_counterfacts.facts import article, facts

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
published = pytest.mark.skipif(not DATA.is_dir(), reason="the public data files are not beside this checkout")
COUNT = 12


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn(tmp_path_factory.mktemp("files") / "drawn", images=COUNT)


def digest(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def truth(drawn: Path) -> dict[str, list[str]]:
    return json.loads((drawn / "chair" / "chair_ground_truth.json").read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shape(value: Any) -> Any:
    """Keys in their order and types, without the values."""
    if isinstance(value, dict):
        return [(key, shape(one)) for key, one in value.items()]
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_the_same_call_writes_the_same_bytes_and_another_seed_other_scenes(drawn: Path, tmp_path: Path) -> None:
    assert digest(write_drawn(tmp_path / "again", images=COUNT)) == digest(drawn)
    pictures = {open_image(path).tobytes() for path in (drawn / "chair" / "images").iterdir()}
    assert len(pictures) == COUNT
    others = (
        write_drawn(tmp_path / "seed", images=3, seed=1),
        write_drawn(tmp_path / "split", images=3, split="validate"),
        write_drawn(tmp_path / "style", images=3, style="crayon"),
    )
    for other in others:
        assert not pictures & {open_image(path).tobytes() for path in (other / "chair" / "images").iterdir()}
    fewer = write_drawn(tmp_path / "fewer", images=2)
    assert {open_image(path).tobytes() for path in (fewer / "pope" / "images").iterdir()} <= pictures


def test_no_scene_is_one_that_methods_learn_or_are_chosen_on(drawn: Path) -> None:
    pictures = {open_image(path).tobytes() for path in (drawn / "chair" / "images").iterdir()}
    for split in ("learn", "validate", "test"):
        for kind in ("captions", "presence"):
            seen = {open_image(str(one.image) if isinstance(one.image, str) else one.image).tobytes()  # type: ignore[arg-type]
                    for one in drawn_examples(kind, split, 6)}  # fmt: skip
            assert not pictures & seen


def test_every_benchmark_has_its_own_copy_of_the_same_images(drawn: Path) -> None:
    names = {path.name for path in (drawn / "pope" / "images").iterdir()}
    for folder in ("pope", "chair", "amber", "mats"):
        found = digest(drawn / folder / "images")
        assert set(found) == names and found == digest(drawn / "pope" / "images")
    assert "drawn" in (drawn / "README.txt").read_text().lower()


@pytest.mark.parametrize("split", ["random", "popular", "adversarial"])
def test_pope_questions_are_true_and_half_of_them_yes(drawn: Path, split: str) -> None:
    rows, shown = lines(drawn / "pope" / f"coco_pope_{split}.json"), truth(drawn)
    assert [row["question_id"] for row in rows] == list(range(1, 6 * COUNT + 1))
    for start in range(0, len(rows), 6):
        six = rows[start : start + 6]
        assert len({row["image"] for row in six}) == 1 and len({row["text"] for row in six}) == 6
        assert Counter(row["label"] for row in six) == {"yes": 3, "no": 3}
        for row in six:
            name = row["text"].removeprefix("Is there ").partition(" ")[2].removesuffix(" in the image?")
            assert (name in shown[row["image"]]) == (row["label"] == "yes") and name in facts()
            assert row["text"].startswith("Is there an ") == (name[0] in "aeiou")
    items = pope.BENCHMARK.items(Files(drawn / "pope"), split=split)
    assert [item.gold["label"] for item in items] == [row["label"] for row in rows]


def test_popular_asks_for_few_objects_and_adversarial_for_companions(drawn: Path) -> None:
    asked: dict[str, list[str]] = {}
    missing = set()
    for split in ("random", "popular", "adversarial"):
        rows = [row for row in lines(drawn / "pope" / f"coco_pope_{split}.json") if row["label"] == "no"]
        asked[split] = [
            row["text"].removeprefix("Is there ").partition(" ")[2].removesuffix(" in the image?") for row in rows
        ]
        if split == "adversarial":
            for name, row in zip(asked[split], rows, strict=True):
                if any(facts()[one].companion == name for one in truth(drawn)[row["image"]]):
                    missing.add((row["image"], name))
    assert len(set(asked["popular"])) < len(set(asked["random"]))
    assert len(missing) >= COUNT / 3
    yes = [[row for row in lines(drawn / "pope" / f"coco_pope_{one}.json") if row["label"] == "yes"] for one in asked]
    assert yes[0] == yes[1] == yes[2]


@published
def test_pope_rows_have_the_published_shape(drawn: Path) -> None:
    ours, theirs = (lines(folder / "pope" / "coco_pope_popular.json") for folder in (drawn, DATA))
    assert {json.dumps(shape(row)) for row in ours} == {json.dumps(shape(theirs[0]))}
    assert [row["label"] for row in ours[:6]] == [row["label"] for row in theirs[:6]]


def test_chair_words_name_every_object_once(drawn: Path) -> None:
    rows = [line.split(", ") for line in (drawn / "chair" / "synonyms.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == list(facts())
    every = [word for row in rows for word in set(row)]
    assert len(every) == len(set(every)), "no word stands for two objects"
    for row in rows:
        assert facts()[row[0]].plural in row
    assert [row["image"] for row in lines(drawn / "chair" / "images.jsonl")] == list(truth(drawn))
    assert all(3 <= len(names) <= 6 and set(names) <= set(facts()) for names in truth(drawn).values())


def test_chair_loads_and_every_way_finds_every_object(drawn: Path) -> None:
    items = chair.BENCHMARK.items(Files(drawn / "chair"))
    assert {item.id: item.gold["objects"] for item in items} == truth(drawn)
    vocabulary = chair_words.read_vocabulary(drawn / "chair" / "synonyms.txt")
    for way in chair_words.WAYS:
        for name, fact in facts().items():
            for text in (f"There is {article(f'{fact.color} {name}')}.", f"Two {fact.plural} and a box."):
                assert chair_words.mentions(text, way, vocabulary).nodes == [name], (way, text)


def amber_files(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return json.loads((folder / "query_all.json").read_text()), json.loads((folder / "annotations.json").read_text())


def test_amber_ids_are_places_and_answers_are_true(drawn: Path) -> None:
    queries, annotations = amber_files(drawn / "amber")
    shown = truth(drawn)
    assert [row["id"] for row in queries] == [row["id"] for row in annotations] == list(range(1, len(queries) + 1))
    parts = ("generative", "discriminative-attribute", "discriminative-existence", "discriminative-relation")
    split = [json.loads((drawn / "amber" / f"query_{part}.json").read_text()) for part in parts]
    assert [row for rows in split for row in rows] == queries, "ids in the published order"
    assert json.loads((drawn / "amber" / "query_discriminative.json").read_text()) == queries[COUNT:]
    truths = Counter()
    for query, row in zip(queries, annotations, strict=True):
        names = shown[query["image"]]
        if row["type"] == "generative":
            assert row["truth"] == names and len(row["hallu"]) == 3 and not set(row["hallu"]) & set(names)
            continue
        truths[row["type"], row["truth"]] += 1
        if row["type"] == "discriminative-hallucination":
            name = query["query"].removeprefix("Is there a ").removesuffix(" in this image?")
            assert name in facts() and name not in names and row["truth"] == "no"
        elif row["type"] == "discriminative-attribute-state":
            told = re.fullmatch(r"Is there (?:an? )?(\S+) (.+) in this image\?", query["query"])
            assert told
            color, name = told.groups()
            assert name in names and (facts()[name].color == color) == (row["truth"] == "yes")
        elif row["type"] == "discriminative-attribute-number":
            one = query["query"].removeprefix("Is there one ").removesuffix(" in this image?")
            assert (one in names) == (row["truth"] == "yes"), "every object is there once"
            assert row["truth"] == "yes" or query["query"].startswith("Are there two ")
        else:
            told = re.fullmatch(r"Is there (?:an? )?(.+) (left|right) of the (.+) in this image\?", query["query"])
            if told:
                first, second = names.index(told[1]), names.index(told[3])
                assert ((first < second) == (told[2] == "left")) == (row["truth"] == "yes")
    assert truths == {
        ("discriminative-attribute-state", "yes"): COUNT,
        ("discriminative-attribute-state", "no"): COUNT,
        ("discriminative-attribute-number", "yes"): COUNT,
        ("discriminative-attribute-number", "no"): COUNT,
        ("discriminative-hallucination", "no"): 3 * COUNT,
        ("discriminative-relation", "yes"): COUNT,
        ("relation", "no"): COUNT,
    }
    relation = json.loads((drawn / "amber" / "relation.json").read_text())
    assert set(relation) == set(facts()), "a word that is not there is a KeyError in the published program"


def test_amber_loads_and_finds_every_object_in_a_description(drawn: Path) -> None:
    from vlmsteer.bench.benchmark import Answer

    items = amber.BENCHMARK.items(Files(drawn / "amber"))
    assert len(items) == len(amber_files(drawn / "amber")[0])
    described = [item for item in items if item.gold["type"] == "generative"]
    scorer = amber.AMBER_G.scorer("nosim")
    listed = [", ".join(f"a {facts()[name].color} {name}" for name in item.gold["truth"]) for item in described]
    found = scorer.score(described, [Answer(f"There is {text}.") for text in listed])
    cover, chair = (next(value for name, value in found.items() if name.lower() == key) for key in ("cover", "chair"))
    assert cover > 99 and chair == 0
    made_up = [Answer(f"There is a {item.gold['hallu'][0]}.") for item in described]
    wrong = scorer.score(described, made_up)
    assert next(value for name, value in wrong.items() if name.lower() == "chair") > 99


@published
def test_amber_files_have_the_published_shape(drawn: Path) -> None:
    ours, theirs = (json.loads((folder / "amber" / "annotations.json").read_text()) for folder in (drawn, DATA))
    by_type = {row["type"]: shape(row) for row in theirs}
    for row in ours:
        assert shape(row) == by_type[row["type"]]
    ours, theirs = (json.loads((folder / "amber" / "query_generative.json").read_text()) for folder in (drawn, DATA))
    assert shape(ours) == shape(theirs) and ours[0]["query"] == theirs[0]["query"]
    values = [
        dict(line.split("=") for line in (folder / "amber" / "metrics.txt").read_text().splitlines())
        for folder in (drawn, DATA)
    ]
    assert values[0] == values[1]


def test_mats_statements_are_true_and_their_inversions_absurd(drawn: Path) -> None:
    vsr, absurd, patching = (
        json.loads((drawn / "mats" / f"{one}.json").read_text()) for one in ("vsr", "absurd", "patching")
    )
    shown = truth(drawn)
    keys = ["example_id", "image", "statement", "relation", "is_true", "objects", "split", "metadata"]
    for true, false, both in zip(vsr, absurd, patching, strict=True):
        assert [list(row) for row in (true, false, both)] == [keys] * 3
        assert true["is_true"] is True and false["is_true"] is False and true["image"] == false["image"]
        assert mats.invert(true["statement"], true["relation"]) == false["statement"]
        assert json.loads(false["metadata"])["original_statement"] == true["statement"]
        assert json.loads(both["metadata"])["absurd_text"] == false["statement"]
        order = shown[true["image"]]
        if true["relation"] in ("left", "right"):
            first, second = (order.index(name) for name in true["objects"])
            assert (first < second) == (true["relation"] == "left")
    assert {row["relation"] for row in vsr} == {"left", "right", "above", "below"}
    assert len({row["example_id"] for row in (*vsr, *absurd, *patching)}) == 3 * COUNT
    items = mats.BENCHMARK.items(Files(drawn / "mats"))
    assert len(items) == 3 * COUNT
    assert len(mats.BENCHMARK.items(Files(drawn / "mats"), splits="vsr,absurd,patching")) == 5 * COUNT


def test_visual_counterfact_loads(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    items = vcf.BENCHMARK.items(Files(drawn / "vcf"))
    assert Counter(item.gold["attribute"] for item in items) == {"color": COUNT, "size": COUNT}


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="there already"):
            write_drawn(folder, images=1)
    with pytest.raises(InputError, match="cannot be written"):
        write_drawn(tmp_path / "file" / "inside", images=1)
    with pytest.raises(InputError, match="split 'train'"):
        write_drawn(tmp_path / "new", split="train")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'crayon'"):
        write_drawn(tmp_path / "new", style="crayons")
    with pytest.raises(InputError, match="At least one image"):
        write_drawn(tmp_path / "new", images=0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"


def test_the_default_set_is_made_once_by_whoever_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=60)

    def late(folder: Path) -> Path:  # both have found nothing there before either writes
        together.wait()
        return write_drawn(folder, images=2)

    monkeypatch.setattr(drawn_files, "write_drawn", late)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        told = [str(future.result()) for future in [pool.submit(drawn_folder) for _ in range(2)]]
    assert told[0] == told[1]
    folder = drawn_folder()
    assert str(folder) == told[0] and folder.parent == tmp_path / "vlmsteer"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half-made is left"
    assert len(truth(folder)) == 2


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        drawn_folder()
