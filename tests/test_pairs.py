"""The public pair layout: what we write comes back equal, what others wrote is read, what is broken is named."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer_counterfacts.dataset import Pair, load_pairs, save_pairs, shuffled_options

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
ANSWER = TEXT.filter(lambda text: not text.startswith("["))


def png(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(stream, "PNG")
    return stream.getvalue()


def make(number: int, attribute: str = "color", **changes: Any) -> Pair:
    fields = {"id": f"{attribute}-{number:05d}", "object": "banana", "attribute": attribute, "prior": "yellow"}
    images = {"original": png("yellow"), "counterfactual": png("blue")}
    return Pair(**{**fields, "pixel": "blue", **images, **changes})


def write(path: Path, rows: list[dict[str, Any]], answers: pa.DataType | None = None) -> Path:
    """A parquet file of the public layout, without our id column."""
    kinds = {"original_image": IMAGE, "counterfact_image": IMAGE, "correct_answer": answers or pa.string()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def row(**changes: Any) -> dict[str, Any]:
    image = {"bytes": png("red"), "path": "a.png"}
    fields = {"object": "cherry", "original_image": image, "counterfact_image": image}
    return {**fields, "correct_answer": "['red']", "incorrect_answer": "blue", **changes}


def test_saved_pairs_come_back_equal(tmp_path: Path) -> None:
    pairs = [make(i) for i in range(150)] + [make(i, "size", prior="bus", pixel="ant") for i in range(3)]
    files = save_pairs(pairs, tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "data/color-00000-of-00001.parquet",
        "data/size-00000-of-00001.parquet",
    ]
    assert load_pairs(tmp_path, "color") + load_pairs(str(tmp_path), "size") == pairs
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(file.name for file in files)
    save_pairs(pairs[:2], tmp_path)
    assert load_pairs(tmp_path, "color") == pairs[:2]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(Pair, TEXT, TEXT, st.just("size"), ANSWER, ANSWER, st.binary(min_size=1), st.binary(min_size=1)),
        min_size=1,
        max_size=5,
        unique_by=lambda pair: pair.id,
    )
)
def test_any_pairs_come_back_equal(tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    save_pairs(pairs, folder)
    assert load_pairs(folder, "size") == pairs
    colors = [Pair(p.id, p.object, "color", p.prior, p.pixel, p.original, p.counterfactual) for p in pairs]
    save_pairs(colors, folder)
    assert load_pairs(folder, "color") == colors


def test_images_decode(tmp_path: Path) -> None:
    save_pairs([make(0)], tmp_path)
    pair = load_pairs(tmp_path, "color")[0]
    assert pair.image("original").getpixel((1, 1)) == (255, 255, 0)
    assert pair.image("counterfactual").getpixel((1, 1)) == (0, 0, 255)
    with pytest.raises(InputError, match="did you mean 'original'"):
        pair.image("orignal")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Pair 'color-00001', original: .* is not an image"):
        make(1, original=b"nothing like an image").image("original")


def test_schema_tells_hugging_face_that_these_are_images(tmp_path: Path) -> None:
    (file,) = save_pairs([make(0)], tmp_path)
    schema = pq.read_schema(file)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["original_image"] == features["counterfact_image"] == {"_type": "Image"}
    assert features["object"] == {"dtype": "string", "_type": "Value"}
    assert schema.field("original_image").type == IMAGE
    stored = pq.read_table(file).to_pylist()[0]
    assert (stored["correct_answer"], stored["incorrect_answer"]) == ("['yellow']", "blue")


@pytest.mark.parametrize("name", ["data/color-00000-of-00001.parquet", "color.parquet", "deep/er/color/part-0.parquet"])
def test_public_layouts_are_found(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [row(), row(correct_answer="green"), row(correct_answer='["brown", "tan"]')])
    write(tmp_path / name.replace("color", "size"), [row(correct_answer="bus", incorrect_answer="ant")])
    pairs = load_pairs(tmp_path, "color")
    assert [(pair.id, pair.prior, pair.pixel) for pair in pairs] == [
        ("color-00000", "red", "blue"),
        ("color-00001", "green", "blue"),
        ("color-00002", "brown", "blue"),
    ]
    assert [(pair.prior, pair.pixel) for pair in load_pairs(tmp_path, "size")] == [("bus", "ant")]


def test_answers_as_lists_and_rows_numbered_over_shards(tmp_path: Path) -> None:
    for shard in range(2):
        rows = [row(correct_answer=["red"]), row(correct_answer=["green", "lime"])]
        write(tmp_path / f"data/color-0000{shard}-of-00002.parquet", rows, pa.list_(pa.string()))
    pairs = load_pairs(tmp_path, "color")
    assert [pair.id for pair in pairs] == [f"color-0000{i}" for i in range(4)]
    assert [pair.prior for pair in pairs] == ["red", "green"] * 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"original_image": {"bytes": None, "path": "a.png"}}, "original_image holds no image bytes"),
        ({"counterfact_image": None}, "counterfact_image holds no image bytes"),
        ({"correct_answer": None}, "correct_answer is 'None'"),
        ({"correct_answer": "[]"}, "correct_answer is '\\[\\]'"),
        ({"correct_answer": "['red'"}, "starts like a list"),
        ({"correct_answer": "[__import__('os').getcwd()]"}, "starts like a list"),
        ({"correct_answer": "[3]"}, "expected a text"),
        ({"incorrect_answer": ""}, "incorrect_answer is ''"),
        ({"object": None}, "object of a pair"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    file = write(tmp_path / "color.parquet", [row(), row(**changes)])
    with pytest.raises(InputError, match=f"row 1: .*{expected}") as caught:
        load_pairs(tmp_path, "color")
    assert str(file) in str(caught.value)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no parquet files"):
        load_pairs(tmp_path, "color")
    with pytest.raises(InputError, match="did you mean 'color'"):
        load_pairs(tmp_path, "colour")
    file = write(tmp_path / "colours.parquet", [row()])
    with pytest.raises(InputError, match="no split 'color'; did you mean 'colours'"):
        load_pairs(tmp_path, "color")
    with pytest.raises(InputError, match="is a file"):
        load_pairs(file, "color")
    with pytest.raises(InputError, match="no revision"):
        load_pairs(tmp_path, "color", revision="main")
    (tmp_path / "color.parquet").write_bytes(b"PAR1 this is no parquet PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        load_pairs(tmp_path, "color")
    short = row()
    del short["incorrect_answer"], short["object"]
    write(tmp_path / "color.parquet", [short])
    with pytest.raises(InputError, match="lacks the columns object, incorrect_answer; it has original_image"):
        load_pairs(tmp_path, "color")


def test_truncated_and_rewritten_parquet_is_refused(tmp_path: Path) -> None:
    (file,) = save_pairs([make(i) for i in range(5)], tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable parquet"):
        load_pairs(tmp_path, "color")
    file.write_bytes(content[:4] + bytes(300) + content[304:])
    with pytest.raises(InputError, match="damaged after row 0"):
        load_pairs(tmp_path, "color")


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same id"):
        save_pairs([make(1), make(1)], tmp_path)
    (file,) = save_pairs([make(1)], tmp_path)
    file.with_name("color-00001-of-00002.parquet").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="'color-00001' appears twice"):
        load_pairs(tmp_path, "color")
    with pytest.raises(InputError, match="already holds color pairs in color-00001-of-00002"):
        save_pairs([make(2)], tmp_path)
    with pytest.raises(InputError, match="no pairs"):
        save_pairs([], tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    (file,) = save_pairs([make(0)], tmp_path)
    before = file.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        save_pairs([make(1), make(2, object="\ud800")], tmp_path)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_a_pair_checks_itself() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"attribute": "colour"}, "did you mean 'color'"),
        ({"prior": ""}, "prior of a pair"),
        ({"prior": "['red']"}, "one plain text"),
        ({"original": b""}, "no bytes for its original image"),
    ]
    for changes, expected in cases:
        with pytest.raises(InputError, match=expected):
            make(0, **changes)
    assert len(repr(make(0))) < 200


def test_option_order_is_stable_and_balanced() -> None:
    first = [shuffled_options(make(i, "size", prior="bus", pixel="ant"))[0] for i in range(1000)]
    assert 430 <= first.count("bus") <= 570
    assert first[:8] == ["bus", "bus", "bus", "ant", "bus", "ant", "ant", "bus"]


def test_offline_hub_says_what_to_do() -> None:
    code = (
        "from vlmsteer_counterfacts.dataset import load_pairs\n"
        "from vlmsteer.errors import InputError\n"
        "import sys\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "for source in ('nobody/never-cached', './no/such/folder'):\n"
        "    try: load_pairs(source, 'color')\n"
        "    except InputError as error: print(error)\n"
    )
    path = {"PYTHONPATH": ":".join(entry for entry in sys.path if entry), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    hub, local = done.stdout.splitlines()
    assert "'nobody/never-cached' is no local folder" in hub and "--local-dir FOLDER" in hub
    assert local.startswith("There is no folder './no/such/folder'")
