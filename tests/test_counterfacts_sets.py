"""Sets of counterfactual pairs: same configuration, same bytes; whole or not there; read by Hugging Face's datasets."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer_counterfacts.audit import recheck, statistics
from vlmsteer_counterfacts.build import CHUNK, build, digest, record_of
from vlmsteer_counterfacts.config import Config, load_config
from vlmsteer_counterfacts.dataset import load_pairs, save_pairs
from vlmsteer_counterfacts.drawn import World, draw_pair
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.pair_sheet import pair_sheet
from vlmsteer_counterfacts.record import REJECTED, Record, add, load_records, replace_file, write, write_lines

ATTRIBUTES = ("color", "size", "presence", "relation", "texture")
SMALL = Config(name="small", counts=dict.fromkeys(ATTRIBUTES, 6), seed=3, pixels=96, scorer="")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "small"
    built = build(SMALL, root)
    assert built.accepted + built.rejected == 30 and built.left == 0 and built.accepted >= 27
    return root


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return load_records(folder)


def test_only_what_the_mask_covers_differs(records: list[Record]) -> None:
    assert {record.attribute for record in records} == set(ATTRIBUTES)
    for record in records:
        before, after, mask = (np.asarray(record.picture(name)) for name in ("original", "counterfactual", "mask"))
        differs = (before != after).any(-1)
        assert differs.any() and not differs[mask == 0].any(), record.id
        assert record.accepted and record.prior != record.pixel and record.prior_source and all(record.texts)


def test_answers_are_those_of_the_table(records: list[Record]) -> None:
    table = facts()
    for record in records:
        if record.attribute == "color":
            assert record.prior == table[record.object].color and table[record.object].color_source
        if record.attribute == "size":
            assert table[record.prior].size_m >= 2.5 * table[record.pixel].size_m
        if record.attribute == "relation":
            assert {record.prior, record.pixel} in ({"left", "right"}, {"above", "below"})


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_pair_depends_on_its_seed_alone(attribute: str) -> None:
    one, same, other = (draw_pair(attribute, World(pixels=96), random.Random(seed)) for seed in (1, 1, 2))
    assert one.original == same.original and one.counterfactual == same.counterfactual and one.edit == same.edit
    assert one.original != other.original


def test_a_swapped_relation_holds_in_the_picture() -> None:
    for seed in range(12):
        draft = draw_pair("relation", World(pixels=96), random.Random(seed))
        first, second = draft.edit["of"]
        assert draft.object == first and f"a {second}" in draft.texts[0].replace("an ", "a ")
        assert draft.prior in draft.texts[0] and draft.pixel in draft.texts[1]


def test_a_world_may_be_small() -> None:
    world = World(objects=("frog",), colors=("green", "blue"), pixels=64)
    draft = draw_pair("color", world, random.Random(0))
    assert (draft.object, draft.prior, draft.pixel) == ("frog", "green", "blue")
    for attribute in ("size", "presence", "relation"):
        with pytest.raises(InputError):
            draw_pair(attribute, world, random.Random(0))
    with pytest.raises(InputError, match="own"):
        draw_pair("color", World(objects=("frog",), colors=("green",)), random.Random(0))


@pytest.mark.parametrize("part", ["datasets", "ours"])
def test_hugging_face_datasets_reads_the_folder(part: str, folder: Path, records: list[Record], tmp_path: Path) -> None:
    if part == "datasets":
        rows = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path))
        assert len(rows) == len(records)
        for row, record in zip(rows, records, strict=True):
            row: Any
            assert (row["id"], row["prior"], row["pixel"]) == (record.id, record.prior, record.pixel)
            assert np.array_equal(np.asarray(row["counterfactual"]), np.asarray(record.picture("counterfactual")))
            assert np.array_equal(np.asarray(row["mask"].convert("L")), np.asarray(record.picture("mask")))
    else:
        again = load_records(folder, "size")
        assert [record.id for record in again] == [record.id for record in records if record.attribute == "size"]


def test_what_datasets_writes_we_read(folder: Path, records: list[Record], tmp_path: Path) -> None:
    """Through the parquet layout of Visual CounterFact and back, all five attributes."""
    save_pairs(records, tmp_path / "parquet")
    for attribute in ATTRIBUTES:
        ours = [record for record in records if record.attribute == attribute]
        rows: Any = datasets.load_dataset(
            "parquet", data_files=str(tmp_path / f"parquet/data/{attribute}-*.parquet"), split="train",
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        rows.to_parquet(str(tmp_path / f"again/data/{attribute}-00000-of-00001.parquet"))
        back = load_pairs(tmp_path / "again", attribute)
        assert [(pair.id, pair.prior, pair.pixel) for pair in back] == [(r.id, r.prior, r.pixel) for r in ours]
        for pair, record in zip(back, ours, strict=True):
            assert np.array_equal(np.asarray(pair.image("original")), np.asarray(record.picture("original")))


def test_the_folder_is_a_source_of_pairs(folder: Path, records: list[Record]) -> None:
    assert [pair.id for pair in load_pairs(folder, "color")] == [r.id for r in records if r.attribute == "color"]
    with pytest.raises(InputError, match="no color pairs"):
        load_pairs(_set(folder.parent / "sizes", [r for r in records if r.attribute == "size"]), "color")


def _set(folder: Path, records: list[Record]) -> Path:
    write_lines([write(record, folder) for record in records], folder)
    return folder


def test_same_configuration_same_bytes(folder: Path, tmp_path: Path) -> None:
    build(SMALL, tmp_path / "again", workers=2)
    assert digest(tmp_path / "again") == digest(folder)
    build(replace(SMALL, seed=4), tmp_path / "other")
    assert digest(tmp_path / "other") != digest(folder)
    before = digest(folder)
    assert build(SMALL, folder).accepted == len(load_records(folder)) and digest(folder) == before


def test_killed_and_restarted_it_ends_the_same(tmp_path: Path) -> None:
    config = tmp_path / "set.toml"
    config.write_text(f'name = "killed"\nseed = 5\npixels = 64\nscorer = ""\n[counts]\ncolor = {10 * CHUNK}\n')
    program = [sys.executable, "-c", "from vlmsteer.cli import main; main()", "counterfacts", "build", str(config)]
    for number, workers, enough in ((signal.SIGKILL, "1", 2), (signal.SIGINT, "2", 4)):
        process = subprocess.Popen([*program, "--out", str(tmp_path / "one"), "--workers", workers])
        start, parts = time.monotonic(), 0
        while parts < enough and process.poll() is None and time.monotonic() - start < 60:
            time.sleep(0.02)
            parts = len(list((tmp_path / "one/__parts__").glob("*.json")))
        process.send_signal(number)
        process.wait(60)
        assert process.returncode != 0 and not (tmp_path / "one/metadata.jsonl").exists()
    done = len(list((tmp_path / "one/__parts__").glob("*.json")))
    assert 0 < done < 10
    build(load_config(config), tmp_path / "one")
    build(load_config(config), tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert not [path for path in (tmp_path / "one").rglob("*") if path.name.endswith(".tmp")]


def test_processes_of_several_machines_share_the_work(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    left = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        left.append(build(SMALL, tmp_path / "shared").left)
    assert left == [1, 0] and digest(tmp_path / "shared") == digest(folder)


def test_two_runs_at_once_in_one_folder(folder: Path, tmp_path: Path) -> None:
    """The second starts before the first has finished, and ends after the first has written the metadata."""
    root, ended = tmp_path / "twice", []

    def other(done: int, count: int) -> None:
        if not ended:
            ended.append(build(SMALL, root))

    assert build(SMALL, root, report=other) == ended[0] and ended[0].left == 0
    assert digest(root) == digest(folder)


def test_rejects_are_kept_with_their_reason(tmp_path: Path) -> None:
    config = Config(counts={"color": 30}, seed=1, pixels=96, color_edit="redraw", objects=("crow", "swan"), scorer="")
    built = build(config, tmp_path / "set")
    rejected = load_records(tmp_path / "set" / REJECTED)
    assert built.rejected == len(rejected) > 0 and all(record.reasons for record in rejected)
    numbers = statistics(tmp_path / "set")
    assert numbers["pairs"] == 30 and numbers["accepted"] == built.accepted and numbers["failed_checks"]
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), split="train", cache_dir=str(tmp_path))
    assert len(rows) == built.accepted  # `datasets` passes over the rejected ones


def test_checked_again_every_pair_passes_until_a_picture_is_changed(folder: Path, tmp_path: Path) -> None:
    records = load_records(folder)
    assert recheck(folder).failed == {} and recheck(folder).pairs == len(records)
    color = next(record for record in records if record.attribute == "color")
    spoiled = color.picture("counterfactual")
    spoiled.putpixel((0, 0), (255, 0, 255))
    path = _set(tmp_path / "spoiled", [replace(color, counterfactual=_png(spoiled))])
    assert "outside" in recheck(path).failed[color.id][0]
    (path / f"images/{color.id}-mask.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="not the picture that was written"):
        recheck(path)


def _png(image: Image.Image) -> bytes:
    from vlmsteer_counterfacts.record import png

    return png(image)


def test_a_pair_joins_those_that_are_there(records: list[Record], tmp_path: Path) -> None:
    for record in (*records[:3], replace(records[1], prior_source="again")):
        add(record, tmp_path / "pairs")
    found = load_records(tmp_path / "pairs")
    assert sorted(one.id for one in found) == sorted(one.id for one in records[:3])
    assert next(one for one in found if one.id == records[1].id).prior_source == "again"


def test_the_sheet_shows_pairs(folder: Path) -> None:
    sheet = pair_sheet(folder, 8)
    colors = sheet.convert("RGB").getcolors(maxcolors=10**7)
    assert sheet.width > 1000 and colors is not None and len(colors) > 500
    with pytest.raises(InputError, match="no metadata"):
        pair_sheet(folder / "images")


def test_a_folder_of_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another configuration"):
        build(replace(SMALL, seed=9), folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        build(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('colour = "red"', "color"),
        ("[counts]\ncolors = 3", "did you mean 'color'"),
        ("[counts]\ncolor = 0", "1 to 1000000"),
        ('[counts]\ncolor = "x"', "1 to 1000000"),
        ("seed = 1", r"either \[counts\]"),
        ('styles = ["flatt"]\n[counts]\ncolor = 1', "did you mean 'flat'"),
        ('objects = ["strawbery"]\n[counts]\ncolor = 1', "did you mean 'strawberry'"),
        ("pixels = 8000\n[counts]\ncolor = 1", "64 to 512"),
        ('color_edit = "paint"\n[counts]\ncolor = 1', "redraw"),
        ("[[photos]]\nimage = 'a.png'\nobjct = 'cup'", "did you mean 'object'"),
        ("counts = ", "TOML"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(line)
    with pytest.raises(InputError, match=says):
        load_config(tmp_path / "c.toml")


def test_a_path_cannot_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    draft = draw_pair("color", World(pixels=64), random.Random(0))
    record = record_of(replace(draft, object="../../etc/passwd"), "color-000000-x", None)
    line = write(record, tmp_path / "set")
    assert {path.parent for path in (tmp_path / "set").rglob("*.png")} == {tmp_path / "set/images"}
    with pytest.raises(InputError, match="names files"):
        record_of(draft, "../x", None)
    (tmp_path / "secret.png").write_bytes(record.original)
    write_lines([{**line, "original_file_name": "../secret.png"}], tmp_path / "set")
    with pytest.raises(InputError, match="outside the folder"):
        load_records(tmp_path / "set")


@pytest.mark.parametrize("cut", ["{", '{"id": "a"}', "[]", "null"])
def test_a_damaged_line_is_named(cut: str, folder: Path, tmp_path: Path) -> None:
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    replace_file(tmp_path / "metadata.jsonl", "\n".join([cut, *lines]).encode())
    with pytest.raises(InputError, match="line 1"):
        load_records(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="nothing here refuses to be written")
def test_a_full_disk_is_one_sentence_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):  # the folder's place is taken by a file
        replace_file(tmp_path / "file" / "a.png", b"x")
    small = subprocess.run(
        [
            "bash", "-c",
            f"ulimit -f 8; {sys.executable} -c \"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "from pathlib import Path; from vlmsteer_counterfacts.record import replace_file;"
            f"replace_file(Path('{tmp_path}/out/a.bin'), bytes(100000))\"",
        ],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "cannot be written" in small.stderr and not list((tmp_path / "out").iterdir())


def test_a_hub_that_cannot_be_reached_is_one_sentence(folder: Path) -> None:
    code = "import sys; from vlmsteer.cli import main; sys.argv[1:] = ['counterfacts', 'push', *sys.argv[1:]]; main()"
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(folder), "me/set"], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "hf auth login" in done.stderr, done.stderr


def test_statistics_are_those_of_the_card(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for name, counts in statistics(folder)["by_attribute"].items():
        assert f"| {name} | {counts['made']} | {counts['accepted']} |" in card
    assert json.loads((folder / "config.json").read_text())["seed"] == 3
    assert load_config(folder / "config.json") == SMALL
