"""CHAIR: the recorded results of three references, our strict scorer, and files that are not as they should be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmsteer.bench import answer_files
from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.chair import BENCHMARK, PROMPTS, invented
from vlmsteer.bench.chair_truth import image_key, write_ground_truth
from vlmsteer.bench.chair_words import TABLE, WAYS, coco, mentions, plurals, read_vocabulary
from vlmsteer.bench.files import Files
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"
PUBLISHED = SHARED.parent / "data" / "chair" / "synonyms.txt"
RUNS = {"maxlinn_pattern": "pattern", "opera_wordnet": "wordnet", "vista_pai_wordnet": "vista", "vista_pai": "vista"}
NAMES = {
    "chair_s": "CHAIRs",
    "chair_i": "CHAIRi",
    "recall": "Recall",
    "precision": "Precision",
    "f1": "F1",
    "len": "Len",
}


def golden(name: str) -> Any:
    if not (SHARED / name).exists():
        pytest.skip("the reference scorers' recorded cases are not here")
    return json.loads((SHARED / name).read_text())


def item(id: str, objects: list[str], **gold: Any) -> Item:
    return Item(id, None, "", id, {"objects": objects, "captions": [], "finished": False} | gold)


def score(way: str, told: list[str], objects: list[list[str]], **gold: Any) -> dict[str, float]:
    items = [item(str(place), shown, **gold) for place, shown in enumerate(objects)]
    return BENCHMARK.scorer(way).score(items, [Answer(caption) for caption in told])


def test_golden_captions() -> None:
    wrong = []
    for row in golden("chair_caption_words.json"):
        for run in RUNS.keys() & row.keys():
            found, told = mentions(row["caption"], RUNS[run]), row[run]
            expected = (told["words"], told["node_words"], told["idxs"], told["double_words"])
            if (found.words, found.nodes, found.positions, found.tokens) != expected:
                wrong.append((row["caption"], run))
    assert wrong == []


def test_golden_sets() -> None:
    for row in golden("chair_metrics.json"):
        captions = [one["caption"] for one in row["captions"]]
        objects = [row["gt_objects"][str(one["image_id"])] for one in row["captions"]]
        for run in RUNS.keys() & row.keys():
            way = RUNS[run]
            found = score(way, captions, objects)
            if "raises" in row[run]:
                assert row[run]["raises"] == "ZeroDivisionError" and any(math.isnan(value) for value in found.values())
                continue
            overall = row[run]["overall_metrics"]
            assert {name: found[key] for key, name in NAMES.items() if key in found and name in overall} == overall
            for told in row[run]["sentences"]:
                saw, wrong = invented(told["caption"], told["mscoco_gt_words"], way)
                assert [saw.positions[place] for place in wrong] == told["hallucination_idxs"]
                assert [[saw.words[place], saw.nodes[place]] for place in wrong] == told["mscoco_hallucinated_words"]
                assert (saw.tokens, saw.nodes) == (told["words"], told["mscoco_generated_words"])


def test_golden_core() -> None:
    checked = 0
    for row in golden("core.json"):
        kind, _, run = row["scorer"].partition(":")
        checked += kind.startswith("chair")
        if kind == "chair-words":
            found = mentions(row["input"], RUNS[run])
            assert [list(pair) for pair in zip(found.words, found.nodes, strict=True)] == row["expected"]
        if kind == "chair-set":
            rows, told = row["input"]["captions"], row["expected"]
            shown = [row["input"]["gt_objects"][str(one["image_id"])] for one in rows]
            found = score(RUNS[f"{run}_pattern"], [one["caption"] for one in rows], shown)
            if "raises" in told:
                assert math.isnan(found["chair_i"])
                continue
            assert [found["chair_s"], found["chair_i"], found["recall"]] == [
                told[name] for name in ("CHAIRs", "CHAIRi", "Recall")
            ]
            seen = [invented(one["caption"], there, "pattern") for one, there in zip(rows, shown, strict=True)]
            assert [[saw.positions[place] for place in wrong] for saw, wrong in seen] == told["hallucination_idxs"]
    assert checked > 0


@pytest.mark.parametrize(
    ("caption", "pattern", "wordnet", "strict"),
    [
        ("A bus and two buses near three men.", "bus man", "bus bus", "bus bus man"),
        ("Two motor bikes and a motor bike.", "", "", "motor_bike motor_bike"),
        ("A passenger jet over a baby elephant.", "jet elephant", "jet elephant", "jet elephant"),
        ("The seats near the toilet.", "toilet", "toilet", "seat toilet"),
        ("Wine glasses, a wine glass.", "wine_glass wine_glass", "wine_glass wine_glass", "wine_glass wine_glass"),
        ("People skiing with skis.", "person ski", "people ski ski", "people skis"),
        ("Vases, an iPhone, a stove top oven", "vase stove oven", "stove oven", "vase iPhone stove_top_oven"),
        ("no dog, not a dog", "dog dog", "dog dog", "dog dog"),
        ("A Frisbee/Kite\nfire-hydrant, doghouse", "", "", "frisbee kite fire_hydrant"),
    ],
)
def test_what_each_scorer_sees(caption: str, pattern: str, wordnet: str, strict: str) -> None:
    for way, expected in (("pattern", pattern), ("wordnet", wordnet), ("vista", wordnet), ("strict", strict)):
        assert [word.replace(" ", "_") for word in mentions(caption, way).words] == expected.split(), way


def test_positions_after_a_double_word() -> None:
    caption = "Hot dogs, a stop sign and a cat."
    assert mentions(caption, "wordnet").positions == [0, 4, 8]
    assert mentions(caption, "vista").positions == mentions(caption, "strict").positions == [0, 3, 6]


def test_counts_and_metrics() -> None:
    captions = ["A cat, a cat and a dog.", "", "a dog a dog a dog"]
    objects = [["dog", "horse"], ["person"], ["dog"]]
    for way in WAYS:
        found = score(way, captions, objects)
        assert found["chair_s"] == 1 / 3 and found["chair_i"] == 2 / 6 and found["recall"] == 2 / 4
        assert found["objects"] == 3 / 3 and found["words"] == (7 + 0 + 6) / 3 and found["empty"] == 1 / 3
        assert found["repetition"] == 2 / 9  # of 5 + 4 runs of three words, the last two of "a dog a dog a dog"
        if way in ("vista", "strict"):
            assert found["precision"] == 2 / 3 and found["f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
        if way in ("wordnet", "vista"):
            assert found["len"] == pytest.approx(0.01 * (9 + 0 + 6) / 3)


def test_every_metric_is_announced_with_its_unit() -> None:
    for scorer in BENCHMARK.scorers:
        counted = {name for name in scorer.wanted if scorer.unit(name) == "number"}
        assert counted == {"words", "objects", "len"} & scorer.wanted.keys()
        assert list(scorer.wanted) == list(score(scorer.name, ["A dog."], [["dog"]]))


@pytest.mark.parametrize("way", WAYS)
def test_nothing_crashes(way: str) -> None:
    for caption in ("", "....", "'" * 3000, "toilet seat " * 300, "\x00 İ ß 🐶 \u2028", "-in-", "[a] (b) *c* \\d+"):
        found = score(way, [caption], [[]])
        assert math.isnan(found["recall"])
    assert all(math.isnan(value) for value in BENCHMARK.scorer(way).metrics(_zeros()).values())


def _zeros() -> dict[str, Any]:
    return {name: value * 0 for name, value in BENCHMARK.scorer().tally([item("1", [])], [Answer("")]).sums().items()}


def test_unfinished_sentences_can_be_left_out() -> None:
    caption = ["A dog. A cat next to"]
    assert score("pattern", caption, [["dog"]])["chair_s"] == 1
    assert score("pattern", caption, [["dog"]], finished=True)["chair_s"] == 0
    assert score("pattern", ["A cat"], [["dog"]], finished=True)["empty"] == 1


def test_peoples_captions_are_read_as_the_answers_are() -> None:
    gold = {"captions": ["Two men on a bus."]}
    assert score("pattern", ["A man on buses."], [[]], **gold)["chair_i"] == 0.5  # "bu" is no bus
    assert score("wordnet", ["A man on buses."], [[]], **gold)["chair_i"] == 0.5  # "men" is no man
    assert score("strict", ["A man on buses."], [[]], **gold)["chair_i"] == 0


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published list of synonyms is not here")
def test_our_table_says_what_the_published_list_says() -> None:
    objects: dict[str, set[str]] = {}
    deciding: dict[str, str] = {}  # of a word that stands in two lines the later line decides, as in the references
    for line in PUBLISHED.read_text().splitlines():
        name, *others = line.strip().split(", ")
        objects[name] = {name, *others}
        deciding |= dict.fromkeys(objects[name], name)
    assert [row[0] for row in coco().rows] == list(objects)  # in the same order
    assert {row[0]: set(row) for row in coco().rows} == objects and len(objects) == 80
    assert coco().nodes == deciding
    assert read_vocabulary(PUBLISHED) is coco()


def test_our_table_is_sorted_and_repeats_nothing() -> None:
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, *columns = line.split("\t")
            for words in (column.split(", ") for column in columns if column):
                assert words == sorted(set(words), key=str.lower) and name not in words


@pytest.mark.parametrize(
    ("word", "plural"),
    [("bus", "buses"), ("knife", "knives"), ("woman", "women"), ("pony", "ponies"), ("hot dog", "hot dogs")],
)
def test_plurals(word: str, plural: str) -> None:
    assert plural in plurals(word)


# Files


def folder(tmp_path: Path, truth: Any, images: list[str], **files: str) -> Files:
    (tmp_path / "val2014").mkdir()
    for name in images:
        Image.new("RGB", (4, 4)).save(tmp_path / "val2014" / name)
    if truth is not None:
        (tmp_path / "chair_ground_truth.json").write_text(json.dumps(truth))
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return Files(tmp_path)


def test_a_ground_truth_of_ours(tmp_path: Path) -> None:
    names = [f"COCO_val2014_{number:012d}.jpg" for number in (2, 10, 30)]
    files = folder(tmp_path, {"10": ["dog"], "2": [], names[2]: ["cat"]}, names)
    items = BENCHMARK.items(files)
    assert [one.id for one in items] == ["2", "10", "30"]
    assert [Path(one.image or "").name for one in items] == names
    assert {one.prompt for one in items} == {PROMPTS["opera"]} and items[1].gold["objects"] == ["dog"]
    drawn = [one.id for one in BENCHMARK.items(files, n=2, seed=3)]
    assert len(drawn) == 2 and drawn == [one.id for one in BENCHMARK.items(files, n=2, seed=3)]
    pai = BENCHMARK.items(files, prompt="pai", max_new_tokens=64, finished=True)[0]
    assert pai.prompt == PROMPTS["pai"] and pai.max_new_tokens == 64 and pai.gold["finished"]
    json.dumps([dict(one.gold) for one in items])


@pytest.mark.parametrize(
    "text",
    [
        '[30, "2"]',
        '{"image_id": 30}\n{"image": "COCO_val2014_000000000002.jpg"}',
        '[{"image_id": "000000000030.jpg"}, {"image_id": 2}]',
    ],
)
def test_a_list_of_images(tmp_path: Path, text: str) -> None:
    names = [f"COCO_val2014_{number:012d}.jpg" for number in (2, 30)]
    files = folder(tmp_path, {"30": [], "2": [], "7": []}, names, list__jsonl=text)
    found = BENCHMARK.load(files, images="list.jsonl")
    assert [one.id for one in found] == ["30", "2"]
    assert [one.id for one in BENCHMARK.load(files, images="list.jsonl", n=1)] == ["30"]


def test_another_vocabulary(tmp_path: Path) -> None:
    files = folder(
        tmp_path, {"a.png": ["fire truck"]}, ["a.png"], synonyms__txt="fire truck, fire engine\nstrawberry\nbus\n"
    )
    items = BENCHMARK.items(files)
    for way in WAYS:
        found = BENCHMARK.scorer(way).score(items, [Answer("Fire engines, a strawberry and a dog.")])
        assert found["chair_i"] == 0.5 and found["recall"] == 1


def test_a_list_of_synonyms_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = folder(
        tmp_path, {"a.png": ["berry"]}, ["a.png"], synonyms__txt="cat\nberry\n", own__txt="berry, date\npalm, date\n"
    )
    items = BENCHMARK.items(files, synonyms="own.txt")
    for way in WAYS:  # of a word of two objects the later object counts
        assert BENCHMARK.scorer(way).score(items, [Answer("A date and a berry.")])["chair_i"] == 0.5
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "own.txt").rename(tmp_path / "elsewhere" / "own.txt")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert BENCHMARK.items(files, synonyms="own.txt") == items
    with pytest.raises(InputError, match="no none.txt"):
        BENCHMARK.items(files, synonyms="none.txt")


def test_coco_objects_with_more_words_keep_cocos_rules(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("".join(f"{', '.join(row)}{', hound dog' * (row[0] == 'dog')}\n" for row in coco().rows))
    found = read_vocabulary(path)
    assert mentions("A baby elephant, a toilet seat and a motor bike.", "pattern", found).words == [
        "elephant",
        "toilet",
    ]
    assert mentions("Hound dogs", "strict", found).words == ["hound dog"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"\n \n", "no words"),
        (b"dog, puppy\ncat,kitten\n", "Line 2"),
        (b"dog, puppy,\n", "Line 1"),
        (b"dog, , puppy\n", "Line 1"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_synonyms_that_are_not_as_they_should_be(tmp_path: Path, text: bytes, complaint: str) -> None:
    (tmp_path / "synonyms.txt").write_bytes(text)
    with pytest.raises(InputError, match=complaint):
        read_vocabulary(tmp_path / "synonyms.txt")


def annotate(tmp_path: Path, split: str, number: int, objects: list[int], captions: list[str]) -> None:
    at = tmp_path / "annotations"
    at.mkdir(exist_ok=True)
    images = [{"id": number, "file_name": f"COCO_{split}_{number:012d}.jpg"}]
    boxes = [{"image_id": number, "category_id": one} for one in objects]
    told = [{"image_id": number, "caption": one} for one in captions]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 44, "name": "hair drier"}]
    (at / f"instances_{split}.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": boxes})
    )
    (at / f"captions_{split}.json").write_text(json.dumps({"images": images, "annotations": told}))


def test_cocos_own_files(tmp_path: Path) -> None:
    annotate(tmp_path, "val2014", 5, [18, 18, 1], ["A puppy with a man.", "Kites."])
    annotate(tmp_path, "train2014", 9, [44], ["A bus."])
    items = BENCHMARK.load(Files(tmp_path))
    assert [one.id for one in items] == ["5"]  # images are drawn from val2014
    assert sorted(items[0].gold["objects"]) == ["dog", "person"]
    assert BENCHMARK.scorer().score(items, [Answer("A kite, a dog, a cat.")])["recall"] == 2 / 3
    write_ground_truth(tmp_path, tmp_path / "chair_ground_truth.json", "strict")
    truth = json.loads((tmp_path / "chair_ground_truth.json").read_text())
    assert truth == {
        "COCO_val2014_000000000005.jpg": ["dog", "kite", "person"],
        "COCO_train2014_000000000009.jpg": ["bus", "hair drier"],
    }
    assert [one.id for one in BENCHMARK.load(Files(tmp_path))] == ["5"]


@pytest.mark.parametrize(
    ("truth", "options", "listed", "complaint"),
    [
        (None, {}, "", "chair_ground_truth.json or annotations"),
        ([], {}, "", "not a JSON object"),
        ({"1": "dog"}, {}, "", "not a list of objects"),
        ({"1": ["dgo"]}, {}, "", "did you mean 'dog'"),
        ({"1": [], "COCO_val2014_000000000001.jpg": []}, {}, "", "twice"),
        ({"1": []}, {"prompt": "opra"}, "", "did you mean 'opera'"),
        ({"1": []}, {"n": -1}, "", "number of images"),
        ({"1": []}, {"max_new_tokens": 0}, "", "1 or more"),
        ({"1": []}, {"n": 2}, "", "there are 1 images"),
        ({"1": []}, {}, "[1, 2]", "'2'"),
        ({"1": []}, {}, "[1, 1]", "Image 2 .* twice"),
        ({"1": []}, {}, "[1, true]", "True"),
        ({"1": []}, {}, '{"image_id": 1}\n{"image_id": null}', "Row 2"),
        ({"1": []}, {}, "[1, null]", "None"),
        ({"1": []}, {}, '{"id": 1}', "Row 1"),
        ({"1": []}, {}, "{", "Line 1"),
        ({}, {}, "", "no items"),
    ],
)
def test_files_that_are_not_as_they_should_be(
    tmp_path: Path, truth: Any, options: dict[str, Any], listed: str, complaint: str
) -> None:
    files = folder(tmp_path, truth, ["COCO_val2014_000000000001.jpg"])
    if listed:
        (tmp_path / "chair-500.jsonl").write_text(listed)
    with pytest.raises(InputError, match=complaint):
        BENCHMARK.items(files, **options)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"annotations": [{"image_id": 6, "category_id": 1}]}, "Row 1 of 'annotations'"),
        ({"annotations": [{"image_id": 5, "category_id": 2}]}, "category 2"),
        ({"annotations": [5]}, "not a JSON object"),
        ({"images": [{"id": 5, "file_name": "a.jpg"}, {"id": 5, "file_name": "b.jpg"}]}, "Row 2 of 'images'"),
        ({"annotations": [{"image_id": 5}]}, "category_id"),
        ({"categories": [{"id": 1, "name": "dragon"}]}, "dragon"),
        ({"images": 3}, "'images'"),
    ],
)
def test_annotations_that_are_not_as_they_should_be(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    annotate(tmp_path, "val2014", 5, [1], [])
    path = tmp_path / "annotations" / "instances_val2014.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=complaint):
        BENCHMARK.load(Files(tmp_path))


@pytest.mark.parametrize("split", ["train2014", "val2014"])
@pytest.mark.parametrize("kind", ["instances", "captions"])
def test_annotations_that_are_cut_off_or_missing(tmp_path: Path, kind: str, split: str) -> None:
    annotate(tmp_path, "val2014", 5, [1], ["A man."])
    annotate(tmp_path, "train2014", 6, [1], ["A man."])
    path = tmp_path / "annotations" / f"{kind}_{split}.json"
    whole = path.read_bytes()
    for part in (b"", whole[: len(whole) // 2], whole[:-1], b"[]", b"\xff"):
        path.write_bytes(part)
        with pytest.raises(InputError, match=path.name):
            BENCHMARK.load(Files(tmp_path))


def test_an_image_is_in_one_split_only(tmp_path: Path) -> None:
    annotate(tmp_path, "val2014", 5, [1], [])
    annotate(tmp_path, "train2014", 5, [18], [])
    with pytest.raises(InputError, match="id 5"):
        BENCHMARK.load(Files(tmp_path))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"image_id": 1, "caption": None}], "Row 1"),
        ([{"image_id": 1, "caption": "A dog."}, {"image_id": 2, "caption": 5}], "Row 2"),
        ([{"image_id": 1, "caption": "A dog."}, {"caption": "A dog."}], "Row 2"),
        (
            [{"image_id": 1, "caption": ""}, {"image_id": "COCO_val2014_000000000001.jpg", "caption": ""}],
            "Rows 1 and 2",
        ),
        ([{"image_id": 1, "caption": "A dog."}], "no answer"),
        ([{"image_id": one, "caption": "A dog."} for one in (1, 2, 3)], "all 2 images"),
    ],
)
def test_captions_that_are_not_as_they_should_be(tmp_path: Path, rows: list[dict[str, Any]], complaint: str) -> None:
    files = folder(tmp_path, {"1": [], "2": []}, [])
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=complaint):
        answer_files.join(BENCHMARK.load(files), answer_files.read(path), path.name)


def test_saved_captions_say_which_images_they_are_of(tmp_path: Path) -> None:
    files = folder(tmp_path, {str(one): ["dog"] for one in range(9)}, [])
    path = tmp_path / "captions.jsonl"
    rows = [{"image_id": f"{one:012d}.jpg", "text": "A dog and a cat."} for one in (7, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    joined = answer_files.join(BENCHMARK.load(files, images=str(path)), answer_files.read(path), path.name)
    assert [one.id for one in joined.items] == ["7", "3"]
    assert BENCHMARK.scorer().score(joined.items, joined.answers)["chair_i"] == 0.5


def test_names_of_an_image() -> None:
    assert {image_key(name) for name in (42, "42", "000000000042.jpg", "COCO_train2014_000000000042.jpg")} == {"42"}
    assert image_key("scene_7.png") == "scene_7.png" and image_key(0) == "0"
