"""AMBER: the recorded numbers of the reference, its loop written out again on random cases, and its files."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from vlmsteer.bench.amber import AMBER_D, AMBER_G, BENCHMARK
from vlmsteer.bench.amber_nouns import nouns
from vlmsteer.bench.amber_scores import amber_score, scorer
from vlmsteer.bench.benchmark import Answer
from vlmsteer.bench.files import Files
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared"
GOLDEN = SHARED / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded reference cases are not here")
needs_data = pytest.mark.skipif(not (SHARED / "data" / "amber").is_dir(), reason="AMBER's own files are not here")

RELATION = {
    "dog": ["puppy"], "cat": ["kitten"], "person": ["man", "woman", "people"], "man": ["person", "boy"], "boy": [],
    "grass": ["ground"], "ground": ["floor"], "car": ["truck"], "sofa": [], "couch": [], "line": [], "vase": [],
}  # fmt: skip
SAFE = ["line"]
ALIKE = {frozenset(("sofa", "couch")): 0.95, frozenset(("dog", "cat")): 0.8, frozenset(("boy", "man")): 0.85}
SECTIONS = {
    "Descriminative Task": "", "Exsitence": "existence_", "Attribute": "attribute_", "State": "state_",
    "Number": "number_", "Action": "action_", "Relation": "relation_",
}  # fmt: skip
QUESTION_TYPES = [
    "discriminative-attribute-state", "discriminative-attribute-number", "discriminative-attribute-action",
    "discriminative-hallucination", "discriminative-relation", "relation",
]  # fmt: skip


def similarity(one, other):
    return 1.0 if one == other else ALIKE.get(frozenset((one, other)), 0.1)


def folder_of(folder, annotations, relation=RELATION, safe=SAFE, queries=None):
    """Files as AMBER publishes them, with images that are empty files, for these annotations."""
    folder.mkdir(exist_ok=True)
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "relation.json").write_text(json.dumps(relation))
    (folder / "safe_words.txt").write_text("\n".join(safe))
    if queries is None:
        queries = [
            {"id": one["id"], "image": f"AMBER_{one.get('image', one['id'])}.jpg", "query": "Describe this image."}
            for one in annotations
        ]
    for row in queries:
        (folder / row["image"]).touch()
    (folder / "query_all.json").write_text(json.dumps(queries))
    return Files(folder)


def scored(one, files, responses, **options):
    items = {item.id: item for item in BENCHMARK.items(files, **options)}
    rows = [(items[str(row["id"])], Answer(row["response"])) for row in responses]
    return one.score([item for item, _ in rows], [answer for _, answer in rows])


def same(found, expected):
    return found == expected or (math.isnan(found) and math.isnan(expected))


def generative_cases():
    if not GOLDEN.is_dir():
        return [], {}
    recorded = json.loads((GOLDEN / "amber_generative.json").read_text())
    cases = list(recorded["cases"])
    for one in json.loads((GOLDEN / "core.json").read_text()):
        if one["scorer"] == "amber-g":
            cases.append(one["input"] | {"name": f"core {one['why']}", "reference": one["expected"]})
    return cases, recorded


CASES, RECORDED = generative_cases()


@needs_golden
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_official_gives_the_recorded_generative_numbers(case, tmp_path):
    table = {frozenset(pair[:2]): pair[2] for pair in RECORDED["similarity_table"]}

    def alike(one, other):
        return 1.0 if one == other else table.get(frozenset((one, other)), RECORDED["default_similarity"])

    files = folder_of(tmp_path / "amber", case["annotations"], RECORDED["relation"], RECORDED["safe_words"])
    found = scored(scorer("official", similarity=alike), files, case["responses"])
    assert {name: found[name.lower()] for name in ("CHAIR", "Cover", "Hal", "Cog")} == case["reference"][
        "Generative Task"
    ]


@needs_golden
def test_official_gives_the_recorded_discriminative_numbers(tmp_path):
    recorded = json.loads((GOLDEN / "amber_discriminative.json").read_text())
    files = folder_of(tmp_path / "amber", recorded["annotations"])
    cases = [(case["name"], case["responses"], case["reference"]) for case in recorded["cases"]]
    for one in json.loads((GOLDEN / "core.json").read_text()):
        if one["scorer"] == "amber-d":
            cases.append((one["why"], one["input"], one["expected"]))
    assert len(cases) > 4
    for name, responses, reference in cases:
        rows = [{"id": number, "response": text} for number, text in enumerate(responses, 1)]
        found = scored(AMBER_D.scorer("official"), files, rows)
        for section, values in reference.items():
            assert {key: found[SECTIONS[section] + key.lower()] for key in values} == values, (name, section)


@needs_golden
def test_nouns_are_the_recorded_ones():
    for case in json.loads((GOLDEN / "amber_nouns.json").read_text()):
        assert nouns(case["text"]) == case["nouns"], case["text"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("A cat and two kittens are lying near the geese.", ["cat", "kitten", "goose"]),
        ("Cats. The Sky is blue.", ["Cats", "Sky"]),
        ("two men, vases and leaves", ["men", "vas", "leaf"]),
        ("She is holding an umbrella and wearing glasses.", ["umbrella", "glass"]),
        ("People watch the game while a dog drinks water.", ["People", "game", "dog", "water"]),
        ("He likes to watch the boats; a watch is next to water.", ["boat", "watch", "water"]),
        ("A can is on the wall and a bird can be seen.", ["can", "wall", "bird"]),
        ("They leave the building. Two people are building a wall.", ["building", "people", "wall"]),
        ("An orange cat eats an orange.", ["cat", "orange"]),
        ("A light blue car waits at traffic lights near a street sign", ["car", "traffic", "light", "street", "sign"]),
        ("The dog's ball isn't a frisbee-like toy.", ["dog", "ball", "toy"]),
    ],
)  # fmt: skip
def test_nouns_by_context(text, expected):
    assert nouns(text) == expected


def program(found_nouns, annotation, alike):
    """The published loop over one description's nouns, written out with its flag lists: (scores, totals)."""
    vocabulary = {one for word, others in RELATION.items() for one in (word, *others)}
    kept = [noun for noun in found_nouns if noun in vocabulary]
    flags, words = {}, {}
    for side in ("truth", "hallu"):
        own = annotation[side]
        words[side] = [other for word in own for other in RELATION[word]] + own
        owner = [number for number, word in enumerate(own) for _ in RELATION[word]] + list(range(len(own)))
        flags[side] = ([0] * len(own), owner)

    def mark(side, test):
        for number, word in enumerate(words[side]):
            if test(word):
                flags[side][0][flags[side][1][number]] = 1
                return True
        return False

    wrong = 0
    for noun in kept:
        if noun in SAFE or mark("truth", lambda word, noun=noun: word == noun):
            continue
        mark("hallu", lambda word, noun=noun: word == noun)
        mark("hallu", lambda word, noun=noun: alike(noun, word) > 0.8)
        wrong += not mark("truth", lambda word, noun=noun: alike(noun, word) > 0.8)
    return np.array(
        [wrong, len(kept), sum(flags["truth"][0]), len(flags["truth"][0]), sum(flags["hallu"][0]),
         len(flags["hallu"][0]), wrong == 0, 1.0]
    )  # fmt: skip


def test_random_descriptions_score_as_the_written_out_loop(tmp_path):
    chance = random.Random(3)
    objects = list(RELATION)
    said = [*objects, "puppy", "kitten", "woman", "people", "floor", "truck", "Dog", "bottle"]
    for round_ in range(30):
        annotations, responses, wanted = [], [], []
        for number in range(1, chance.randint(1, 6) + 1):
            annotation = {"id": number, "type": "generative", "truth": chance.choices(objects, k=chance.randint(1, 4)),
                          "hallu": chance.sample(objects, chance.randint(0, 3))}  # fmt: skip
            spoken = chance.choices(said, k=chance.randint(0, 6))
            annotations.append(annotation)
            responses.append({"id": number, "response": " and ".join(f"the {word}" for word in spoken)})
            wanted.append((spoken, annotation))
        files = folder_of(tmp_path / str(round_), annotations)
        for name, alike in (("official", similarity), ("nosim", lambda a, b: float(a == b)), ("lmms", similarity)):
            sums = np.sum([program(spoken, annotation, alike) for spoken, annotation in wanted], axis=0)
            start = 0.001 * (len(wanted) if name == "lmms" else 1)
            chair, cover, cog, clean = (sums[i] / (sums[i + 1] + start) * 100 for i in (0, 2, 4, 6))
            numbers = (chair, cover, cog, 100 - clean)
            expected = [float(one) if name == "lmms" else round(float(one), 1) for one in numbers]
            found = scored(scorer(name, similarity=similarity), files, responses)
            assert [found[one] for one in ("chair", "cover", "cog", "hal")] == pytest.approx(expected, abs=1e-9)


def test_random_answers_score_as_counted_by_hand(tmp_path):
    chance = random.Random(5)
    annotations = [
        {"id": number, "type": kind, "truth": {"discriminative-relation": "yes", "relation": "no",
         "discriminative-hallucination": "no"}.get(kind, chance.choice(["yes", "no"]))}
        for number, kind in enumerate(QUESTION_TYPES * 8, 1)
    ]  # fmt: skip
    files = folder_of(tmp_path / "amber", annotations)
    kinds = {"": QUESTION_TYPES, "existence_": QUESTION_TYPES[3:4], "attribute_": QUESTION_TYPES[:3],
             "state_": QUESTION_TYPES[:1], "number_": QUESTION_TYPES[1:2], "action_": QUESTION_TYPES[2:3],
             "relation_": QUESTION_TYPES[4:]}  # fmt: skip
    for _ in range(20):
        texts = chance.choices(
            ["Yes", "No", "yes", "No.", "Yes, it is", "maybe"], [4, 4, 1, 1, 1, 1], k=len(annotations)
        )
        rows = [{"id": number, "response": text} for number, text in enumerate(texts, 1)]
        found = scored(AMBER_D.scorer(), files, rows)
        for prefix, types in kinds.items():
            part = [(a["truth"], text) for a, text in zip(annotations, texts, strict=True) if a["type"] in types]
            start = 0.003 if prefix == "attribute_" else 0.001
            right = sum((truth, text) in {("yes", "Yes"), ("no", "No")} for truth, text in part)
            hits = part.count(("no", "No"))
            precision = round(hits / (sum(text == "No" for _, text in part) + start) * 100, 1)
            recall = round(hits / (sum(truth == "no" for truth, _ in part) + start) * 100, 1)
            below = precision / 100 + recall / 100 + (0.001 if prefix == "existence_" else 0.0001)
            f1 = round(2 * (precision / 100) * (recall / 100) / below * 100, 1)
            accuracy = round(right / (len(part) + start) * 100, 1)
            values = [found[prefix + name] for name in ("accuracy", "precision", "recall", "f1")]
            assert values == [accuracy, precision, recall, f1], (prefix, texts)
        assert found["unparsed"] == pytest.approx(sum(text not in ("Yes", "No") for text in texts) / len(texts))


def test_parsers_of_yes_and_no(tmp_path):
    annotations = [{"id": n, "type": "relation", "truth": truth} for n, truth in enumerate(("yes", "no", "no"), 1)]
    files = folder_of(tmp_path / "amber", annotations)
    rows = [{"id": n, "response": text} for n, text in enumerate(("yes.", "No, it is not", "Unknown"), 1)]
    found = {name: scored(AMBER_D.scorer(name), files, rows) for name in ("official", "lmms", "strict")}
    assert [found[name]["accuracy"] for name in found] == pytest.approx([0.0, 100.0, 200 / 3])
    assert found["strict"]["f1"] == pytest.approx(200 * 1 / (1 + 2))  # one no said, and right, of two
    assert found["strict"]["f1_yes"] == 100
    assert (found["official"]["unparsed"], found["lmms"]["unparsed"]) == (1, 0)
    assert found["strict"]["unparsed"] == pytest.approx(1 / 3)
    assert math.isnan(found["official"]["existence_accuracy"])


def test_strict_ignores_case_start_values_and_lost_plurals(tmp_path):
    annotations = [{"id": 1, "type": "generative", "truth": ["man", "vase", "vase"], "hallu": ["dog"]}]
    files = folder_of(tmp_path / "amber", annotations)
    rows = [{"id": 1, "response": "Two men beside vases on a line. Dog."}]
    strict = scored(BENCHMARK.scorer("strict"), files, rows)
    assert strict["chair"] == pytest.approx(100 / 3)  # men, vases, Dog; the line is safe and left out
    assert (strict["cover"], strict["hal"], strict["cog"]) == (100, 100, 100)
    plain = scored(BENCHMARK.scorer("nosim"), files, rows)
    assert (plain["chair"], plain["cover"], plain["hal"]) == (0, 0, 0.1)  # only the safe line is a noun of the list


def test_a_word_without_associations_is_no_crash(tmp_path):
    annotations = [{"id": 1, "type": "generative", "truth": ["dog", "unlisted"], "hallu": []}]
    files = folder_of(tmp_path / "amber", annotations)
    found = scored(BENCHMARK.scorer("nosim"), files, [{"id": 1, "response": "A dog."}])
    assert (found["chair"], found["cover"]) == (0, 50)


def test_both_halves_give_the_amber_score_and_sums_by_image(tmp_path):
    annotations = [
        {"id": 1, "image": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
        {"id": 2, "image": 2, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
        {"id": 3, "image": 1, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 4, "image": 2, "type": "discriminative-hallucination", "truth": "no"},
    ]
    files = folder_of(tmp_path / "amber", annotations)
    items = BENCHMARK.items(files)
    assert len({item.group for item in items}) == 2
    answers = [Answer(text) for text in ("a dog and a cat", "a dog", "No", "Yes")]
    for name in ("nosim", "strict"):
        one, halves = BENCHMARK.scorer(name), (scorer(name, ("generative",)), scorer(name, ("discriminative",)))
        both = one.score(items, answers)
        apart = [half.score(items, answers) for half in halves]
        expected = {"amber": amber_score(*apart)} | apart[0] | apart[1]
        assert set(both) == set(expected)
        assert all(same(both[metric], expected[metric]) for metric in expected)
        assert set(both) == set(one.wanted)
        tally = one.tally(items, answers)
        assert tally.groups == [item.group for item in items]
        weights = np.array([[2, 0, 2, 0], [1, 1, 1, 1]])  # the first image twice, and both
        drawn = one.metrics({count: weights @ np.array(values) for count, values in tally.counts.items()})
        twice = one.score([items[0], items[2]] * 2, [answers[0], answers[2]] * 2)
        for metric, values in drawn.items():
            assert same(values[0], twice[metric]), metric
            assert same(values[1], both[metric]), metric


def test_official_refuses_without_word_vectors(tmp_path):
    if importlib.util.find_spec("spacy"):
        pytest.skip("spaCy is installed")
    files = folder_of(tmp_path / "amber", [{"id": 1, "type": "generative", "truth": ["dog"], "hallu": []}])
    with pytest.raises(InputError, match=r"en_core_web_lg.*nosim"):
        scored(BENCHMARK.scorer("official"), files, [{"id": 1, "response": "A dog."}])


def test_malformed_files_are_refused(tmp_path):
    good = [
        {"id": 1, "type": "generative", "truth": ["dog"], "hallu": []},
        {"id": 2, "type": "relation", "truth": "no"},
    ]
    query = {"id": 1, "image": "a.jpg", "query": "Describe this image."}
    other = {"id": 2, "image": "a.jpg", "query": "Is there direct contact?"}
    cases = [
        ({"queries": [query | {"id": 7}]}, "Row 1 of .*id 7"),
        ({"queries": [query | {"id": "1"}]}, "Row 1 of .*'1'"),
        ({"queries": [query, query]}, "'1' stands for more than one"),
        ({"queries": [query, {**other, "question": ""}]}, None),
        ({"queries": [other], "annotations": [good[0], good[1] | {"truth": "maybe"}]}, "'maybe'"),
        ({"queries": [other], "annotations": [good[0], good[1] | {"type": "relations"}]}, "'relations'"),
        ({"queries": [query], "annotations": [good[0] | {"hallu": "dog"}]}, "Row 1 of annotations.json.*'dog'"),
        ({"queries": [query], "annotations": [good[0] | {"id": 3}]}, "does not have in that place"),
        ({"queries": [query], "relation": {"dog": "puppy"}}, "list of words"),
    ]
    for number, (changed, message) in enumerate(cases):
        options = {"annotations": good} | changed
        files = folder_of(tmp_path / str(number), **options)
        if message is None:
            assert len(BENCHMARK.items(files)) == 2
            continue
        with pytest.raises(InputError, match=message):
            BENCHMARK.items(files)
    files = folder_of(tmp_path / "kinds", good)
    for options in ({"kind": "relations"}, {"prompt": "orignal"}):
        with pytest.raises(InputError, match="did you mean"):
            BENCHMARK.items(files, **options)
    with pytest.raises(InputError, match="take the benchmark 'amber'"):
        AMBER_D.items(files, kind="generative")
    (tmp_path / "kinds" / "query_generative.json").write_text(json.dumps([other]))
    with pytest.raises(InputError, match="which is not generative"):
        AMBER_G.items(files)
    (tmp_path / "kinds" / "AMBER_1.jpg").unlink()
    with pytest.raises(InputError, match="AMBER_1.jpg"):
        BENCHMARK.items(Files(tmp_path / "kinds"))


@needs_data
def test_the_published_files_load(tmp_path):
    (tmp_path / "image").mkdir()
    for name in ("annotations.json", "relation.json", "safe_words.txt"):
        (tmp_path / name).symlink_to((SHARED / "data" / "amber" / name).resolve())
    (tmp_path / "query").mkdir()
    for name in ("generative", "discriminative-relation"):
        source = SHARED / "data" / "amber" / f"query_{name}.json"
        (tmp_path / "query" / source.name).symlink_to(source.resolve())
    for number in range(1, 1005):
        (tmp_path / "image" / f"AMBER_{number}.jpg").touch()
    described = AMBER_G.items(Files(tmp_path))
    assert len(described) == 1004
    asked = AMBER_D.items(Files(tmp_path), kind="relation", prompt="vlmevalkit")
    assert len(asked) == 1664
    assert asked[0].prompt.endswith("\nPlease answer yes or no.")
    answers = [Answer({"yes": "Yes", "no": "No"}[item.gold["truth"]]) for item in asked]
    found = AMBER_D.scorer("strict").score(asked, answers)
    assert (found["relation_accuracy"], found["yes_ratio"]) == (100, pytest.approx(975 / 1664))
    # naming every annotated object makes nothing up and leaves little out
    told = [Answer(" and ".join(f"a {word}" for word in item.gold["truth"])) for item in described]
    found = AMBER_G.scorer("strict").score(described, told)
    assert found["chair"] == 0
    assert found["cover"] > 99
    with pytest.raises(InputError, match=r"query_discriminative-existence\.json"):
        BENCHMARK.items(Files(tmp_path))
