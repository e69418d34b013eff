"""Examples: their files, their splits, and those of the drawn world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmsteer.bench.drawn_examples import drawn_examples, select_examples
from vlmsteer.bench.hallucination import mentions
from vlmsteer.bench.pairs import SPLITS
from vlmsteer.errors import InputError
from vlmsteer.examples import Example, digest, load_examples, save_examples, split_groups
from vlmsteer.training.splits import HELD_OUT_OBJECTS
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.palette import COLORS, oklch_to_rgb

VTI = {"image": "a.png", "question": "Describe.", "value": "A cat.", "h_value": "A cat and a dog.", "id": 3}
POPE = {"image": "a.png", "text": "Is there a snowboard in the image?", "label": "no", "question_id": 1}
OURS = {"image": "a.png", "question": "Which?", "right": "red", "wrong": "blue", "group": "x", "kind": "attribute"}


def write(folder: Path, *rows: Any) -> Path:
    Image.new("RGB", (8, 6), "red").save(folder / "a.png")
    Image.new("RGB", (8, 6), "blue").save(folder / "b.png")
    path = folder / "examples.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_three_layouts_are_read_and_images_lie_beside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, VTI, "", POPE, OURS | {"edited": "b.png"}, POPE | {"label": "Yes"})
    image, other = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    assert load_examples(path) == [
        Example(image, "Describe.", "A cat.", "A cat and a dog.", "a.png", "caption"),
        Example(image, "Is there a snowboard in the image?", "No", "Yes", "a.png", "presence"),
        Example(image, "Which?", "red", "blue", "x", "attribute", other),
        Example(image, "Is there a snowboard in the image?", "Yes", "No", "a.png", "presence"),
    ]


def test_one_list_is_read_too_and_ours_may_have_no_image(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([POPE, OURS | {"image": None}], indent=1))
    assert [one.image for one in load_examples(path)] == [str(tmp_path / "a.png"), None]
    with pytest.raises(InputError, match=r"Entry 2 of .* label 'maybe'"):
        load_examples(write(tmp_path, json.dumps([POPE, POPE | {"label": "maybe"}])))


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[1, 2", "not valid JSON"),
        ("3", "not a JSON object"),
        ({"image": "a.png", "caption": "x"}, "it needs image, question, right, wrong"),
        (VTI | {"value": ""}, "a text in 'value'"),
        (VTI | {"h_value": 4}, "a text in 'h_value'"),
        (OURS | {"right": "blue"}, "same right and wrong"),
        (OURS | {"kind": "atribute"}, "did you mean 'attribute'"),
        (OURS | {"edited": "none.png"}, "edited 'none.png'"),
        (POPE | {"label": "unsure"}, "label 'unsure'"),
        (POPE | {"image": None}, "names no image"),
        ({key: VTI[key] for key in ("question", "value", "h_value")}, "names no image"),
        (VTI | {"image": "missing.png"}, "'missing.png', which is not in"),
        (VTI | {"image": 3}, "a text in 'image'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, bad: Any, complaint: str) -> None:
    with pytest.raises(InputError) as error:
        load_examples(write(tmp_path, OURS, bad, OURS))
    assert complaint in str(error.value) and "Line 2 of" in str(error.value)


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no examples"):
        load_examples(write(tmp_path, ""))
    with pytest.raises(InputError, match="cannot be read"):
        load_examples(tmp_path / "nothing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_examples(tmp_path / "binary.jsonl")


def test_saved_examples_come_back(tmp_path: Path) -> None:
    examples = [*drawn_examples("edits", "learn", 3), *drawn_examples("presence", "learn", 2)]
    examples.append(Example(None, "What color are most plums?", "purple", "red", "plum", "attribute"))
    save_examples(tmp_path / "new" / "set.jsonl", examples)
    loaded = load_examples(tmp_path / "new" / "set.jsonl")
    assert digest(loaded) == digest(examples)
    assert [(one.group, one.kind) for one in loaded] == [(one.group, one.kind) for one in examples]
    assert len(list((tmp_path / "new" / "set").iterdir())) == 7  # both questions of a scene share its picture
    with pytest.raises(InputError, match="ending"):
        save_examples(tmp_path / "set", examples)


def test_the_digest_changes_with_everything(tmp_path: Path) -> None:
    (one,) = drawn_examples("edits", "learn", 1)
    wide = Image.new("RGB", (6, 4), "red")
    changed = [
        *(replace(one, **{name: "else"}) for name in ("question", "right", "wrong", "group", "kind")),
        replace(one, image=one.edited, edited=one.image),
        replace(one, edited=None),
        replace(one, image=None, edited=one.image),
        replace(one, image=wide),
        replace(one, image=wide.transpose(Image.Transpose.ROTATE_90)),
    ]
    assert len({digest([other]) for other in [one, *changed]}) == 1 + len(changed)
    assert digest([one]) == digest(drawn_examples("edits", "learn", 1))


def test_splits_have_no_group_in_common() -> None:
    examples = [Example(None, f"{i}?", "a", "b", f"group {i % 10}") for i in range(40)]
    first, second = split_groups(examples, 0.3, seed=4)
    groups = {one.group for one in first}, {one.group for one in second}
    assert not groups[0] & groups[1] and len(groups[0]) == 3 and len(first) + len(second) == 40
    assert (first, second) == split_groups(examples, 0.3, seed=4)
    assert {one.group for one in split_groups(examples[::-1], 0.3, seed=4)[0]} == groups[0]
    assert any({one.group for one in split_groups(examples, 0.3, seed)[0]} != groups[0] for seed in range(3))
    assert all(split_groups(examples[:2], share)[0] for share in (0.01, 0.99))
    with pytest.raises(InputError, match="at least two groups"):
        split_groups(examples[::10], 0.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        split_groups(examples, 1.0)


def test_drawn_scenes_differ_between_splits_and_seeds_only() -> None:
    for kind in ("captions", "presence", "edits"):
        made = {key: drawn_examples(kind, key[0], 6, key[1]) for key in [("learn", 0), ("test", 0), ("test", 1)]}  # pyright: ignore[reportArgumentType]
        groups = [{one.group for one in examples} for examples in made.values()]
        assert not (groups[0] & groups[1] or groups[1] & groups[2])
        pictures = [one.image.tobytes() for examples in made.values() for one in examples]  # pyright: ignore
        assert len(set(pictures)) == (9 if kind == "presence" else 18)
        assert digest(made["test", 0][:4]) == digest(drawn_examples(kind, "test", 4, 0))


def test_wrong_captions_add_what_models_make_up() -> None:
    companions = 0
    for one in drawn_examples("captions", "learn", 60):
        right, wrong = mentions(one.right), mentions(one.wrong)
        added = [name for name in wrong if name not in right]
        assert added and [name for name in wrong if name in right] == right
        assert len(wrong) == len(set(wrong)) and one.kind == "caption"
        for name in added:
            if facts()[name].companion in right:
                companions += 1
                assert wrong[wrong.index(name) - 1] == facts()[name].companion
            assert f"{facts()[name].color} {name}" in one.wrong
        missing = [facts()[name].companion for name in right if facts()[name].companion not in right]
        assert not missing or set(added) <= set(missing)
    assert companions > 20


def test_lures_show_nothing_with_its_companion() -> None:
    counts = set()
    for one in drawn_examples("captions", "learn", 60, data="lures"):
        right, wrong = mentions(one.right), mentions(one.wrong)
        assert not any(facts()[name].companion in right for name in right)
        assert {name for name in wrong if name not in right} <= {facts()[name].companion for name in right}
        assert len({facts()[name].group for name in right}) == 1
        counts.add(len(right))
    assert counts == {1, 2, 3}
    pictures = [{one.image.tobytes() for one in select_examples("lures", "captions", split, 8)} for split in SPLITS]  # pyright: ignore
    assert not (pictures[0] & pictures[1] or pictures[1] & pictures[2])
    with pytest.raises(InputError, match="did you mean 'lures'"):
        drawn_examples("captions", "learn", 1, data="lure")


def test_presence_asks_yes_and_no_about_each_scene() -> None:
    examples = drawn_examples("presence", "validate", 40)
    for yes, no in zip(examples[::2], examples[1::2], strict=True):
        assert (yes.right, yes.wrong, no.right, no.wrong) == ("Yes", "No", "No", "Yes")
        assert yes.group == no.group and yes.image is no.image and mentions(yes.question) != mentions(no.question)


def nearest(color: tuple[float, ...]) -> str:
    named = {name: np.array(oklch_to_rgb(*value[:3])) for name, value in COLORS.items()}
    return min(named, key=lambda name: float(np.square(named[name] - np.array(color)).sum()))


def test_edits_differ_where_the_answer_does() -> None:
    examples = drawn_examples("edits", "test", 90)
    assert [one.kind for one in examples[:3]] == ["object", "attribute", "relation"]
    assert [one.right for one in examples if one.kind == "object"].count("Yes") == 15
    colors = 0
    for one in examples:
        before, after = (np.asarray(image, float) for image in (one.image, one.edited))
        differs = np.abs(before - after).sum(-1) > 0
        assert 0.005 < differs.mean() < 0.9
        if one.kind == "attribute":
            assert mentions(one.question)[0] not in HELD_OUT_OBJECTS
            middle = np.median(before[differs], axis=0), np.median(after[differs], axis=0)
            colors += [nearest(tuple(color)) for color in middle] == [one.right, one.wrong]
        if one.kind == "relation":
            assert set(mentions(one.question)) == {one.right, one.wrong}
    assert colors >= 18  # of 30; shading and outlines move the others


def test_select_splits_a_file_by_group(tmp_path: Path) -> None:
    rows = [OURS | {"group": f"g{i // 2}", "question": f"{i}", "kind": "caption"} for i in range(80)]
    path = write(tmp_path, *rows, POPE)
    parts = [select_examples(str(path), "captions", split, 100) for split in ("learn", "validate", "test")]
    groups = [{one.group for one in part} for part in parts]
    assert sum(map(len, parts)) == 80 and sum(map(len, groups)) == 40
    assert len(select_examples(str(path), "captions", "learn", 5)) == 5
    assert select_examples(str(path), "captions", "learn", 5, seed=1) != parts[0][:5]
    with pytest.raises(InputError, match="0 examples of the kind 'edits'"):
        select_examples(str(path), "edits", "test", 5)


def test_unknown_kinds_and_splits_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'captions'"):
        drawn_examples("caption", "learn", 1)
    with pytest.raises(InputError, match="did you mean 'test'"):
        select_examples("drawn", "captions", "tst", 1)  # pyright: ignore[reportArgumentType]
