"""Visual CounterFact as a benchmark: four cells a pair, the published flips, our strict rule beside them."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
from dataclasses import asdict
from pathlib import Path

import hub
import pytest
from PIL import Image

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.drawn_files import write_drawn
from vlmsteer.bench.files import Files
from vlmsteer.bench.intervals import metric_intervals
from vlmsteer.bench.results import report
from vlmsteer.bench.vcf import BENCHMARK, CELLS
from vlmsteer.bench.vcf_flips import flips
from vlmsteer.bench.visual_counterfact import NEAR_COLORS
from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer_counterfacts.dataset import Pair, load_pairs, save_pairs

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "golden"
GOLDEN = SHARED / "visual_counterfact_flips.json"
CASES = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else []


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def pair(name: str, prior: str, pixel: str, attribute: str = "color", id: str | None = None) -> Pair:
    return Pair(id or name, name, attribute, prior, pixel, png("red"), png("blue"))


def saved(folder: Path, *pairs: Pair, **options: str) -> list[Item]:
    save_pairs(pairs, folder)
    return BENCHMARK.items(Files(folder), **options)


def said(items: list[Item], answer: str | dict[tuple[str, str], str]) -> list[Answer]:
    """One answer to all items, or by (picture, scope)."""
    cells = [(item.gold["picture"], item.gold["scope"]) for item in items]
    return [Answer(answer if isinstance(answer, str) else answer[cell]) for cell in cells]


def test_a_pair_is_four_items_with_the_published_prompts(tmp_path: Path) -> None:
    items = saved(tmp_path, pair("cherry", "red", "blue"), pair("ant", "bus", "ant", "size"))
    assert len(items) == 8 and len({item.id for item in items}) == 8
    assert [(item.gold["picture"], item.gold["scope"], item.gold["right"]) for item in items[:4]] == [
        ("original", "this", "red"),
        ("original", "most", "red"),
        ("counterfactual", "this", "blue"),
        ("counterfactual", "most", "red"),
    ]
    assert items[0].prompt == "Answer with one word. What color is this cherry?"
    assert items[1].prompt == "Answer with one word. What color are most cherrys?"
    assert {item.cluster for item in items} == {"cherry", "ant"}
    sizes = {item.prompt.partition("larger ")[2] for item in items[4:]}
    order = {text.partition(", ")[2] for text in sizes}
    assert len(order) == 1, "both questions list the options alike"
    assert sizes == {f"here, {(*order,)[0]}", f"usually, {(*order,)[0]}"}


def test_plurals_are_a_choice(tmp_path: Path) -> None:
    prompts = [item.prompt for item in saved(tmp_path, pair("strawberry", "red", "blue"), prompt="plural")]
    assert prompts[1] == "Answer with one word. What color are most strawberries?"
    with pytest.raises(InputError, match="did you mean 'plural'"):
        BENCHMARK.items(Files(tmp_path), prompt="plurals")
    with pytest.raises(InputError, match="did you mean 'color'"):
        BENCHMARK.items(Files(tmp_path), attribute="colour")


def test_pictures_are_files_written_once(tmp_path: Path, own_cache: Path) -> None:
    items = saved(tmp_path / "set", pair("cherry", "red", "blue"), pair("plum", "purple", "red"))
    files = {item.image for item in items}
    assert len(files) == 2, "the same picture is the same file"
    assert all(Path(str(file)).is_relative_to(own_cache) for file in files)
    for item in items:
        expected = "red" if item.gold["picture"] == "original" else "blue"
        assert open_image(str(item.image)).tobytes() == Image.new("RGB", (8, 8), expected).tobytes()
    before = {str(file): Path(str(file)).stat().st_mtime_ns for file in files}
    BENCHMARK.items(Files(tmp_path / "set"))
    assert {str(file): Path(str(file)).stat().st_mtime_ns for file in files} == before


def test_a_set_of_one_attribute_needs_no_option_and_an_absent_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.offline(monkeypatch, tmp_path / "hub")
    items = saved(tmp_path, pair("ant", "bus", "ant", "size"))
    assert {item.gold["attribute"] for item in items} == {"size"}
    with pytest.raises(InputError, match="color"):
        BENCHMARK.items(Files(tmp_path), attribute="color")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="Looked for parquet files or metadata.jsonl in .*empty"):
        BENCHMARK.items(Files(tmp_path / "empty"))


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        saved(tmp_path / "set", pair("cherry", "red", "blue"))


def test_what_each_kind_of_model_scores(tmp_path: Path) -> None:
    items = saved(tmp_path, pair("cherry", "red", "blue"), pair("plum", "red", "green"))
    for scorer in BENCHMARK.scorers:
        memory = scorer.score(items, said(items, "Red."))
        assert memory["accuracy"] == 0.75 and memory["color_counterfactual_this"] == 0
        assert (memory["prior"], memory["pixel"], memory["neither"]) == (1, 0, 0)
        assert memory["color_counterfactual_this_prior"] == 1 and memory["color_counterfactual_most_pixel"] == 0
        assert str(memory["size_original_this"]) == "nan"
        right = scorer.score(items, [Answer(item.gold["right"]) for item in items])
        assert right["accuracy"] == 1 and right["color_counterfactual_this"] == 1
        assert (right["prior"], right["pixel"]) == (0.5, 0.5)
        assert scorer.score(items, said(items, "a picture"))["neither"] == 1


def test_the_scorers_differ_in_near_colors_articles_and_sizes(tmp_path: Path) -> None:
    items = saved(tmp_path, pair("banana", "yellow", "blue"), pair("ant", "bus", "ant", "size"))
    reference, strict = (BENCHMARK.scorer(name) for name in ("reference", "strict"))

    def both(attribute: str, answer: str) -> tuple[float, float]:
        chosen = [item for item in items if item.gold["attribute"] == attribute]
        found = [scorer.score(chosen, said(chosen, answer)) for scorer in (reference, strict)]
        return found[0][f"{attribute}_original_this"], found[1][f"{attribute}_original_this"]

    assert both("color", "Gold") == (1, 0)
    assert both("color", "the yellow") == (0, 1)
    assert both("size", "The bus is usually larger than the ant.") == (1, 1)
    assert both("size", "a bus") == (0, 1)
    assert both("size", "The largest object in the image is the bus is larger") == (1, 0)


def items_of(case: dict) -> tuple[list[Item], list[Answer], list[Answer]]:
    items, before, after = [], [], []
    for name, target in case["target"].items():
        gold = {"attribute": case["task"], "picture": "counterfactual", "scope": "most", "pixel": target, "prior": "-"}
        items.append(Item(name, None, "?", name, gold))
        before.append(Answer(case["original"][name]))
        after.append(Answer(case["edited"][name]))
    return items, before, after


@pytest.mark.skipif(not CASES, reason="the golden cases are not beside this checkout")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_flips(case: dict) -> None:
    found = flips(*items_of(case), target="pixels", rule="reference")
    counts, expected = found.counts[case["task"]], case["reference"]
    names = ("eligible", "flips", "eligible_flips", "flips_to_target")
    assert {name: getattr(counts, name) for name in names} == {name: expected[name] for name in names}
    if expected["eligible"]:
        assert found.flipped.rate == expected["flips_to_target"] / expected["eligible"]
    assert found.changed.rate == expected["flips"] / len(case["target"])


def published(task: str, edit: dict, original: dict, true: dict) -> tuple[int, int, int, int]:
    """The published counting, written down again from its description, on texts that are clean already."""
    wrong = [key for key in edit if original[key] != true[key]]
    changed = [key for key in edit if original[key] != edit[key]]
    near = {key: {true[key], *(NEAR_COLORS.get(true[key], ()) if task == "color" else ())} for key in edit}
    to_target = [key for key in wrong if key in changed and edit[key] in near[key]]
    return len(wrong), len(changed), len(set(wrong) & set(changed)), len(to_target)


def test_flips_count_as_published_on_every_triple_of_colors() -> None:
    colors = ["yellow", "gold", "orange", "brown", "blue"]
    triples = list(itertools.product(colors, repeat=3))
    case: dict = {"task": "color"} | {
        name: {str(number): triple[place] for number, triple in enumerate(triples)}
        for place, name in enumerate(("edited", "original", "target"))
    }
    counts = flips(*items_of(case), target="pixels", rule="reference").counts["color"]
    expected = published("color", case["edited"], case["original"], case["target"])
    assert (counts.eligible, counts.flips, counts.eligible_flips, counts.flips_to_target) == expected


def test_flips_look_at_the_cell_that_asks_for_the_other_thing(tmp_path: Path) -> None:
    items = saved(tmp_path, pair("cherry", "red", "blue"), pair("plum", "purple", "green"))
    before = [Answer(item.gold["right"]) for item in items]
    pixels = [Answer(item.gold["pixel"] if item.gold["picture"] == "counterfactual" else "brown") for item in items]
    found = flips(items, before, pixels, "pixels")
    assert (found.flipped.rate, found.flipped.n) == (1, 2)
    assert (found.real_broken.rate, found.real_broken.n) == (1, 4)
    assert found.broken.n == 0
    other = flips(items, before, pixels, "prior")
    assert (other.flipped.rate, other.changed.rate, other.flipped.n) == (0, 0, 2)
    memory = [Answer(item.gold["prior"]) for item in items]
    back = flips(items, memory, [Answer("brown")] * len(items), "prior")
    assert (back.broken.rate, back.broken.n, back.flipped.n) == (1, 2, 0)
    low, high = back.broken.interval
    assert low < 1 and high == 1


def test_flips_are_clustered_and_may_be_of_one_attribute(tmp_path: Path) -> None:
    rng = random.Random(1)
    pairs = [pair("cherry", "red", "blue", id=f"c{number}") for number in range(6)]
    items = saved(tmp_path, *pairs, pair("ant", "bus", "ant", "size"))
    before = [Answer(item.gold["prior"]) for item in items]
    after = [Answer(item.gold["pixel"] if rng.random() < 0.5 else item.gold["prior"]) for item in items]
    found = flips(items, before, after, "pixels", attribute="color")
    assert found.flipped.n == 6 and set(found.counts) == {"color"}
    k = 1  # one object: the widest interval that one cluster leaves
    assert found.flipped.interval[1] - found.flipped.interval[0] == pytest.approx(1.96**2 / (k + 1.96**2), abs=0.01)
    with pytest.raises(InputError, match="did you mean 'pixels'"):
        flips(items, before, after, "pixel")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two answers an item"):
        flips(items, before, after[1:], "pixels")


def by_hand(items: list[Item], before: list[Answer], after: list[Answer]) -> dict[str, float]:
    """The rates of strict flips, from the words alone."""
    hits: dict[str, list[bool]] = {}
    for item, one, other in zip(items, before, after, strict=True):
        gold = item.gold
        if gold["picture"] == "original":
            if one.text == gold["prior"]:
                hits.setdefault("real_broken", []).append(other.text != gold["prior"])
            continue
        target = gold["pixel"] if gold["scope"] == "most" else gold["prior"]
        name = f"{gold['attribute']}_to_{'pixels' if gold['scope'] == 'most' else 'prior'}"
        hits.setdefault(f"{name}_changed", []).append(one.text != other.text)
        if one.text == target:
            hits.setdefault(f"{name}_lost", []).append(other.text != target)
        else:
            hits.setdefault(name, []).append(other.text == target)
    return {name: sum(each) / len(each) for name, each in hits.items()}


def some_pairs() -> list[Pair]:
    colors = [pair(f"cherry {n}", "red", "blue") for n in range(9)] + [pair("plum", "purple", "green")]
    return colors + [pair("ant", "bus", "ant", "size", id=f"s{n}") for n in range(6)]


def test_the_scorer_of_flips_counts_as_flips_does(tmp_path: Path) -> None:
    items, rng = saved(tmp_path, *some_pairs()), random.Random(3)
    words = [(item.gold["prior"], item.gold["pixel"], "gold") for item in items]
    before, after = ([Answer(rng.choice(each)) for each in words] for _ in range(2))
    given = {item.id: answer for item, answer in zip(items, before, strict=True)}
    for make, rule in zip(BENCHMARK.against, ("reference", "strict"), strict=True):
        scorer = make(given)
        assert scorer.name == f"{rule} flips"
        found = metric_intervals(scorer.tally(items, after), scorer)
        assert set(found) == set(scorer.wanted)
        for target in ("pixels", "prior"):
            for kind in ("color", "size"):
                rates = flips(items, before, after, target, rule=rule, attribute=kind)
                name = f"{kind}_to_{target}"
                assert found[name].rate == rates.flipped.rate and found[f"{name}_lost"].rate == rates.broken.rate
                assert found[f"{name}_changed"].rate == rates.changed.rate
                assert found[f"{name}_eligible"].rate == rates.counts[kind].eligible == rates.flipped.n
        assert found["real_broken"].rate == flips(items, before, after, "pixels", rule=rule).real_broken.rate
    strict = BENCHMARK.against[1](given).score(items, after)
    expected = by_hand(items, before, after)
    assert {name: strict[name] for name in expected} == expected and len(expected) == 13


def test_a_run_shows_the_cells_and_the_flips_between_its_arms(tmp_path: Path) -> None:
    items = saved(tmp_path / "set", *some_pairs())
    folder = tmp_path / "run"
    folder.mkdir()
    rng = random.Random(4)
    arms = [
        {"name": "none", "kind": "baseline"},
        {"name": "pixels", "kind": "recipe"},
        {"name": "pixels, random 1", "kind": "random", "of": "pixels"},
    ]
    given: dict[str, list[Answer]] = {
        "none": [Answer(item.gold["right"]) for item in items],
        "pixels": [Answer(item.gold["pixel"] if rng.random() < 0.8 else item.gold["prior"]) for item in items],
        "pixels, random 1": [Answer(item.gold["right"]) for item in items],
    }
    about = {"model": "made", "arms": arms, "tasks": [{"name": "vcf", "version": 1}]}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "items-vcf.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
    lost = items[3].id  # a question whose baseline had an error is in no count of flips
    rows = [
        {"task": "vcf", "arm": arm, "item": item.id, "answer": answer.text, "error": None}
        if (arm, item.id) != ("none", lost)
        else {"task": "vcf", "arm": arm, "item": item.id, "answer": None, "error": "no memory"}
        for arm, answers in given.items()
        for item, answer in zip(items, answers, strict=True)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    markdown = report(folder, {"vcf": BENCHMARK}, draws=200)
    kept = [number for number, item in enumerate(items) if item.id != lost]
    before, after = ([given[arm][number] for number in kept] for arm in ("none", "pixels"))
    expected = by_hand([items[number] for number in kept], before, after)
    scorers = json.loads((folder / "metrics.json").read_text())["tasks"]["vcf"]["scorers"]
    values = scorers["strict flips"]["arms"]["pixels"]["values"]
    assert {name: values[name]["rate"] for name in expected} == pytest.approx(expected)
    beyond = scorers["reference flips"]["arms"]["pixels"]["beyond"]["random"]["color_to_pixels"]
    assert beyond["rate"] == pytest.approx(expected["color_to_pixels"]) and beyond["interval"][0] > 0
    assert set(scorers["strict flips"]["arms"]) == {"pixels", "pixels, random 1"}
    cells = [f"{cell} %" for cell in (*CELLS[2:], *CELLS[:2])]
    assert f"| {' | '.join(cells)} |" in markdown
    table = markdown[markdown.index("reference flips") :]
    assert "| color_to_pixels % | color_to_prior % | size_to_pixels % | size_to_prior % |" in table
    assert re.search(rf"\| pixels \| {100 * expected['color_to_pixels']:.1f} \[[\d.]+, [\d.]+\] \|", table)
    assert "beyond random" in table and "of the answers that were not the target" in table
    page = (folder / "report.html").read_text()
    assert "color_to_pixels %" in page and "counterfactual_this %" in page
    report(folder, {"vcf": BENCHMARK}, {"vcf": ["strict"]}, draws=50)
    scorers = json.loads((folder / "metrics.json").read_text())["tasks"]["vcf"]["scorers"]
    assert "strict flips" in scorers and "reference flips" not in scorers


def test_cells_of_both_attributes_are_pooled(tmp_path: Path) -> None:
    items = saved(tmp_path, *some_pairs())
    answers = [Answer(item.gold["prior"] if item.gold["attribute"] == "color" else "nothing") for item in items]
    for scorer in BENCHMARK.scorers:
        found = scorer.score(items, answers)
        assert found["counterfactual_this"] == 0 and found["counterfactual_most"] == 10 / 16 == found["original_this"]


def test_the_drawn_set_loads(tmp_path: Path) -> None:
    folder = write_drawn(tmp_path / "drawn", images=8, split="test") / "vcf"
    items = BENCHMARK.items(Files(folder))
    pairs = [*load_pairs(folder, "color"), *load_pairs(folder, "size")]
    assert len(items) == 4 * len(pairs) == 16
    assert [item.gold["prior"] for item in items[::4]] == [one.prior for one in pairs]
