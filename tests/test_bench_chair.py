"""CHAIR: the recorded results of three references, our strict scorer, and files that are not as they should be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.chair import BENCHMARK, PROMPTS, invented
from vlmsteer.bench.chair_truth import image_key, write_ground_truth
from vlmsteer.bench.chair_words import COCO, WAYS, coco, mentions, plurals, read_vocabulary
from vlmsteer.bench.files import Files
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"
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
    for row in golden("core.json"):
        kind, _, run = row["scorer"].partition(":")
        if kind == "chair-words":
            found = mentions(row["input"], RUNS[run])
            assert [list(pair) for pair in zip(found.words, found.nodes, strict=True)] == row["expected"]


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


def test_every_metric_is_announced() -> None:
    for scorer in BENCHMARK.scorers:
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


def test_bundled_list_is_the_published_one() -> None:
    published = SHARED.parent / "data" / "chair" / "synonyms.txt"
    if not published.exists():
        pytest.skip("the published list is not here")
    assert COCO.read_text() == published.read_text()
    assert len(set(coco().nodes.values())) == 80


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
    (tmp_path / "synonyms.txt").write_text("\n")
    with pytest.raises(InputError, match="no words"):
        read_vocabulary(tmp_path / "synonyms.txt")


def annotations(tmp_path: Path, split: str, number: int, objects: list[int], captions: list[str]) -> None:
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
    annotations(tmp_path, "val2014", 5, [18, 18, 1], ["A puppy with a man.", "Kites."])
    annotations(tmp_path, "train2014", 9, [44], ["A bus."])
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
        ({"1": []}, {"n": 0}, "", "1 or more"),
        ({"1": []}, {"n": 2}, "", "there are 1 images"),
        ({"1": []}, {}, "[1, 2]", "'2'"),
        ({"1": []}, {}, "[1, 1]", "Entry 2"),
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
        ({"annotations": [{"image_id": 6, "category_id": 1}]}, "Annotation 1"),
        ({"annotations": [{"image_id": 5}]}, "category_id"),
        ({"categories": [{"id": 1, "name": "dragon"}]}, "dragon"),
        ({"images": 3}, "'images'"),
    ],
)
def test_annotations_that_are_not_as_they_should_be(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    annotations(tmp_path, "val2014", 5, [1], [])
    path = tmp_path / "annotations" / "instances_val2014.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=complaint):
        BENCHMARK.load(Files(tmp_path))


def test_names_of_an_image() -> None:
    assert {image_key(name) for name in (42, "42", "000000000042.jpg", "COCO_train2014_000000000042.jpg")} == {"42"}
    assert image_key("scene_7.png") == "scene_7.png" and image_key(0) == "0"
