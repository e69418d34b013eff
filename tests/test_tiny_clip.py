"""tiny-clip's training data says what is true and holds back what it promises; a resumed run is an undisturbed one."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vlmsteer.training import clip_captions, tiny_clip
from vlmsteer.training.clip_captions import Caption, Group, colors_of, exchanged, group
from vlmsteer.training.mix import SIZE_RATIO
from vlmsteer.training.splits import HELD_OUT_OBJECTS, HELD_OUT_STYLE, held_out_colors
from vlmsteer.training.tiny_clip import Batches
from vlmsteer_counterfacts.clip import load_scorer
from vlmsteer_counterfacts.draw import Scene, group_scene
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.palette import COLORS

SAID = re.compile(
    rf"\b(?:({'|'.join(COLORS)}) )?({'|'.join(form for f in facts().values() for form in (f.plural, f.name))})\b"
)
SINGULAR = {form: fact.name for fact in facts().values() for form in (fact.plural, fact.name)}


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    rng = random.Random(5)
    return [group(rng) for _ in range(3000)]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(first: tuple[str, str] = ("tree", "red"), second: tuple[str, str] = ("acorn", "blue")) -> Scene:
    """The first left of the second, both of one size."""
    scene = group_scene([first, second], random.Random(0), "flat")
    left, right = scene.items
    return replace(
        scene, items=(replace(left, center=(0.25, 0.5), side=0.4), replace(right, center=(0.75, 0.5), side=0.4))
    )


def test_training_never_shows_what_is_held_out(groups: list[Group]) -> None:
    shown = set()
    for one in groups:
        for scene in one.scenes:
            assert scene.style != HELD_OUT_STYLE
            shown |= {(item.object, item.color) for item in scene.items}
        if one.kind == "size":
            names = {item.object for item in one.scenes[0].items}
            small, large = sorted(facts()[name].size_m for name in names)
            assert large / small < SIZE_RATIO or not names & set(HELD_OUT_OBJECTS)
    assert shown == {(name, color) for name in facts() for color in COLORS if color not in held_out_colors(name)}


def test_the_color_of_a_held_out_object_is_never_said(groups: list[Group]) -> None:
    rng, named = random.Random(1), Counter()
    for one in groups:
        for caption in one.captions(rng):
            for color, form in SAID.findall(caption.text(rng)):
                name = SINGULAR[form]
                named[name] += 1
                assert not (color and name in HELD_OUT_OBJECTS)
    assert min(named[name] for name in facts()) > 50


def test_every_caption_is_true_of_its_scene_and_of_no_other_in_its_group(groups: list[Group]) -> None:
    rng = random.Random(2)
    for one in groups:
        captions = one.captions(rng)
        for i, j in itertools.product(range(len(captions)), repeat=2):
            assert captions[i].true_of(one.scenes[j]) == (i == j), (one.kind, captions[i], one.scenes[j])


def test_colors_are_balanced(groups: list[Group]) -> None:
    counts: dict[str, Counter[str]] = {}
    for one in groups:
        if one.kind == "color":
            for scene in one.scenes:
                counts.setdefault(scene.items[0].object, Counter())[scene.items[0].color] += 1
    usual = sum(count[facts()[name].color] for name, count in counts.items())
    total = sum(sum(count.values()) for count in counts.values())
    assert total > 3000
    assert abs(usual / total - 1 / len(colors_of("tomato"))) < 0.02


def test_a_group_differs_in_one_thing(groups: list[Group]) -> None:
    for one in groups:
        first = one.scenes[0]
        for other in one.scenes[1:]:
            if one.kind == "color" and other.items[0].object == first.items[0].object:
                assert other == first.recolor(0, other.items[0].color)
            elif one.kind == "binding":
                assert [item.color for item in other.items] == [item.color for item in first.items[::-1]]
                assert exchanged(other, "color") == first
            elif one.kind == "relation":
                assert exchanged(other, "center") == first
            elif one.kind == "size":
                assert exchanged(other, "object", "color") == first
            elif one.kind == "presence":
                assert other.items[: len(first.items) - 1] == first.items[:-1]
                assert replace(other, items=first.items) == first


@pytest.mark.parametrize(
    ("caption", "true"),
    [
        (Caption((("tree", None), ("acorn", None))), True),
        (Caption((("acorn", "blue"), ("tree", "red"))), True),
        (Caption((("acorn", "red"), ("tree", "blue"))), False),
        (Caption((("tree", "red"),)), False),
        (Caption((("tree", None), ("tree", None))), False),
        (Caption((("tree", None), ("acorn", None)), "left of"), True),
        (Caption((("acorn", None), ("tree", None)), "right of"), True),
        (Caption((("acorn", None), ("tree", None)), "left of"), False),
        (Caption((("tree", None), ("acorn", None)), "above"), False),
        (Caption((("tree", None), ("acorn", None)), "larger than"), False),
    ],
)
def test_a_caption_says_everything_that_is_there(caption: Caption, true: bool) -> None:
    assert caption.true_of(pair()) is true


def test_captions_in_words() -> None:
    rng = random.Random(0)

    def texts(caption: Caption) -> set[str]:
        return {caption.text(rng, "{}") for _ in range(40)}

    assert texts(Caption((("eraser", "orange"),))) == {"an orange eraser"}
    assert texts(Caption((("jeans", "red"),))) == {"red jeans"}
    assert texts(Caption((("mouse", "red"), ("mouse", "red")))) == {"two red mice"}
    assert texts(Caption((("tree", None), ("acorn", None)))) == {"a tree and an acorn", "an acorn and a tree"}
    assert texts(Caption((("tree", None), ("acorn", "red")), "above")) == {
        "a tree above a red acorn", "a tree over a red acorn", "a red acorn below a tree", "a red acorn under a tree",
    }  # fmt: skip
    assert {Caption((("tree", None),)).text(rng) for _ in range(80)} == {
        frame.format("a tree") for frame in clip_captions.FRAMES
    }


def test_in_a_batch_no_caption_is_true_of_two_pictures(groups: list[Group]) -> None:
    flat = [scene for one in groups for scene in one.scenes]
    batches, said = Batches(groups, 96, seed=3), []
    original = Caption.text
    for step in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Caption, "text", lambda self, rng: said.append(self) or original(self, rng))
            numbers, mirrored, texts = batches(step)
        assert 96 <= len(numbers) < 96 + 6 and len(numbers) == len(mirrored) == len(texts) == len(said)
        for i, j in itertools.product(range(len(numbers)), repeat=2):
            assert said[i].true_of(flat[numbers[j]]) == (i == j)
        said.clear()
    assert batches(2) == (numbers, mirrored, texts) != batches(1)


def test_sides_are_never_mirrored(groups: list[Group]) -> None:
    first = np.cumsum([0, *(len(one.scenes) for one in groups)])
    numbers, mirrored, _ = Batches(groups, 600, seed=0)(0)
    kinds = [groups[int(np.searchsorted(first, number, "right")) - 1].kind for number in numbers]
    assert {kind for kind, mirror in zip(kinds, mirrored, strict=True) if mirror} == set(clip_captions.KINDS) - {
        "relation"
    }


def test_drawing_goes_on_where_it_was_stopped(groups: list[Group], tmp_path: Path) -> None:
    some, lines = groups[:8], []
    whole = tiny_clip.draw(some, tmp_path / "whole.bytes", 0, lines.append)
    content = (tmp_path / "whole.bytes").read_bytes()
    (tmp_path / "stopped.part").write_bytes(content[: 3 * whole[0].size + 1000])
    assert (tiny_clip.draw(some, tmp_path / "stopped.bytes", 0, lines.append) == whole).all()
    assert not (tmp_path / "stopped.part").exists()
    count = sum(len(one.scenes) for one in some)
    assert whole.shape == (count, tiny_clip.IMAGE_SIZE, tiny_clip.IMAGE_SIZE, 3)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_clip.learn_tokenizer(0)


def test_words_are_single_tokens_and_anything_can_be_spelled(tokenizer: Any) -> None:
    for name in facts():
        text = f"a photo of a purple {name} to the left of a white {name}"
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split()) + 2 <= tiny_clip.CONTEXT
        assert ids[-1] == max(ids) == tokenizer.eos_token_id and ids.count(max(ids)) == 1
    odd = tokenizer("Ünknown 7 wörds, 猫!").input_ids
    assert odd.count(tokenizer.eos_token_id) == 1
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_a_resumed_run_is_an_undisturbed_one(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_clip, "SAVE_EVERY", 2)

    def run(folder: Path) -> dict[str, torch.Tensor]:
        if not folder.exists():
            tokenizer.save_pretrained(folder / "tokenizer")
        return tiny_clip.train(folder, 4, 0, lambda text: None, groups=6, batch=8).state_dict()

    whole = run(tmp_path / "whole")

    def stop(step: int, steps: int, peak: float) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return tiny_clip.PEAK_RATE * (step + 1) / 150

    original = tiny_clip.rate
    monkeypatch.setattr(tiny_clip, "rate", lambda *given: stop(*given) and original(*given))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped")
    monkeypatch.setattr(tiny_clip, "rate", original)
    resumed = run(tmp_path / "stopped")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_training_learns_and_ends_in_a_folder_with_its_card(tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tokenizer.save_pretrained(folder / "tokenizer")
    finished = tiny_clip.make(folder, 40, 0, lambda text: None, groups=6, batch=8, n=2)
    rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40]
    assert rows[1]["loss"] < rows[0]["loss"] - 0.3

    assert {"README.md", "evaluation.json", "open_clip_config.json", "open_clip_model.safetensors"} <= {
        path.name for path in finished.iterdir()
    }
    assert sum(path.stat().st_size for path in finished.iterdir()) < 10_000_000
    with safe_open(finished / "open_clip_model.safetensors", framework="pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert kinds == {torch.float16, torch.int64}  # the second counts the batches that a norm has seen
    card = (finished / "README.md").read_text()
    tasks = json.loads((finished / "evaluation.json").read_text())["tasks"]
    assert "vlmsteer train tiny-clip" in card and all(f"| {task} |" in card for task in tasks)

    trained = tiny_clip.train(folder, 40, 0, lambda text: None, groups=6, batch=8)
    image, texts = pair().render(tiny_clip.IMAGE_SIZE).image, ["a red tree and a blue acorn", "a plum"]
    scorer = load_scorer(str(finished))
    with torch.inference_mode():
        seen = trained.encode_image(scorer.preprocess(image)[None], normalize=True)
        said = trained.encode_text(scorer.tokenizer(texts), normalize=True)
    assert scorer([image], texts) == pytest.approx((seen @ said.T).numpy(), abs=0.01)
    assert all(math.isfinite(value["rate"]) for value in tasks.values())
