"""Local files first, the hub second: from its cache without a network; what is said where nothing is to be had."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmsteer import cli
from vlmsteer.bench.benchmark import Item
from vlmsteer.bench.files import Files, Published, read_json, read_rows, stored
from vlmsteer.errors import InputError
from vlmsteer.registry import BENCHMARKS

HUB = Published("owner/name", ("*.json",))
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    return hub.offline(monkeypatch, tmp_path / "hub")


def png(color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(out, "PNG")
    return out.getvalue()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def test_a_local_file_comes_first(tmp_path: Path, cache: Path) -> None:
    hub.cached(cache, "owner/name", {"rows.json": b"hub"})
    (tmp_path / "rows.json").write_bytes(b"local")
    files = Files(tmp_path, published=HUB)
    assert files.find("gone.json", "rows.json").read_bytes() == b"local" and not files.fetched


def test_the_hubs_cache_comes_second_and_the_folder_still_has_images(tmp_path: Path, cache: Path) -> None:
    snapshot = hub.cached(cache, "owner/name", {"deep/rows.json": b"hub", "images/b.png": png()})
    (tmp_path / "a.png").write_bytes(png())
    files = Files(tmp_path, published=HUB)
    assert files.find("rows.json", "deep/rows.json") == snapshot / "deep/rows.json"
    assert files.fetched == f"owner/name@{hub.COMMIT}"
    assert files.image("a.png") == str(tmp_path / "a.png")
    assert files.image("b.png", "images") == str(snapshot / "images/b.png")
    files.check_images()


def test_offline_it_says_what_was_looked_for_where_and_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(InputError) as said:
        Files(tmp_path, published=HUB).find("rows.json", "rows.jsonl")
    for part in (
        f"Looked for rows.json or rows.jsonl in {str(tmp_path)!r}", "'owner/name' is not in the cache",
        "hf download --repo-type dataset owner/name --include '*.json' --local-dir DIR; then give --data DIR.",
    ):  # fmt: skip
        assert part in str(said.value)


def test_a_cached_dataset_without_the_file_is_said(tmp_path: Path, cache: Path) -> None:
    hub.cached(cache, "owner/name", {"other.json": b"{}"})
    with pytest.raises(InputError, match=f"owner/name@{hub.COMMIT} of the Hugging Face hub, has no rows.json.*other"):
        Files(tmp_path, published=HUB).find("rows.json")


def test_a_folder_that_is_not_there_may_be_a_dataset(cache: Path) -> None:
    snapshot = hub.cached(cache, "some/body", {"rows.json": b"[]"})
    assert Files("some/body").find("rows.json") == snapshot / "rows.json"
    assert Files("some/body", published=HUB).find("rows.json") == snapshot / "rows.json"
    with pytest.raises(InputError, match="'some/one' is not in the cache"):
        Files("some/one").find("rows.json")
    with pytest.raises(InputError, match="There is no folder 'nobody'; it should hold rows.json"):
        Files("nobody").find("rows.json")


def test_without_a_published_dataset_nothing_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "row.json").touch()
    with pytest.raises(InputError, match="has no rows.json; did you mean 'row.json'"):
        Files(tmp_path).find("rows.json")


def test_a_folder_of_the_name_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.json").mkdir()
    with pytest.raises(InputError, match=r"has no rows.json\.$"):
        Files(tmp_path).find("rows.json")


def test_missing_images_are_named_once_each(tmp_path: Path) -> None:
    files = Files(tmp_path)
    for name in ("a.png", "a.png", "b.png", "c.png"):
        files.image(name)
    with pytest.raises(InputError, match=r"3 images are missing \(a.png, b.png, c.png\)"):
        files.check_images()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_brackets_without_end_are_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(InputError, match="is not valid JSON"):
        read_rows(tmp_path / "rows.json")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(tmp_path / "rows.json")


def test_pictures_of_tables_are_written_once_and_mended(tmp_path: Path) -> None:
    path = Path(stored(png()))
    assert path.is_relative_to(tmp_path / "own") and path.suffix == ".png" and path.read_bytes() == png()
    before = path.stat().st_mtime_ns
    assert stored(png()) == str(path) and path.stat().st_mtime_ns == before
    assert stored(png("blue")) != str(path)
    path.write_bytes(b"cut off")
    assert Path(stored(png())).read_bytes() == png()


def mats(split: str) -> bytes:
    row = {"example_id": f"{split}_1", "image": "1.png", "statement": "The cat is left of the dog.", "relation": "left"}
    return json.dumps([{**row, "is_true": split != "absurd", "objects": [], "split": split, "metadata": "{}"}]).encode()


def picture(color: str) -> dict[str, Any]:
    return {"bytes": png(color), "path": None}


CONTENTS: dict[str, dict[str, bytes]] = {
    "mats": {"vsr.json": mats("vsr"), "absurd.json": mats("absurd"), "images/1.png": png()},
    "naturalbench": {"data/train-00000-of-00001.parquet": parquet([{
        "Index": 0, "Question_Type": "yes_no", "Question_0": "A?", "Question_1": "B?", "Image_0": picture("red"),
        "Image_1": picture("blue"), "Image_0_Question_0": "Yes", "Image_0_Question_1": "No", "Image_1_Question_0": "No",
        "Image_1_Question_1": "Yes", "Source": "x",
    }])},
    "vlms_are_biased": {"data/main-00000-of-00001.parquet": parquet([{
        "image": picture("red"), "ID": "1", "image_path": "1.png", "topic": "t", "sub_topic": "s", "prompt": "How?",
        "ground_truth": "3", "expected_bias": "4", "type_of_question": "Q1", "pixel": 384,
    }])},
    "vilp": {"ViLP.parquet": parquet([{"question": "A fact. What?"} | {
        f"{what}{n}": picture(color) if what == "image" else color
        for n, color in ((1, "red"), (2, "blue"), (3, "green")) for what in ("image", "answer")
    }])},
    "vcf": {"data/color-00000-of-00001.parquet": parquet([{
        "object": "cherry", "original_image": picture("red"), "counterfact_image": picture("blue"),
        "correct_answer": "['red']", "incorrect_answer": "blue",
    }])},
    "truthfulqa": {"multiple_choice/validation-00000-of-00001.parquet": parquet([{
        "question": "Why?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]},
    }])},
    "vlind": {"VLind-Bench Dataset/data.json": json.dumps([{
        "concept": "diet", "context_id": 1, "context": "Cows eat meat.", "factual_context": "Cows eat grass.",
        "true_statement": "Cows eat meat.", "false_statement": "Cows eat grass.", "existent_noun": "a cow",
        "non-existent_noun": "a car", "aggregated_human_label_good_images": {"0": 3}, "best_img_id": 0,
    }]).encode(), "VLind-Bench Dataset/images/factual/diet/1_Cows eat grass./0.jpg": png(),
        "VLind-Bench Dataset/images/counterfactual/diet/1_Cows eat meat./0.jpg": png()},
}  # fmt: skip


def test_every_benchmark_with_a_published_dataset_is_tested_here() -> None:
    known = {name for name in BENCHMARKS if BENCHMARKS.load(name).hub is not None}
    assert known >= CONTENTS.keys() and len(known) >= 7


@pytest.mark.parametrize("name", CONTENTS)
def test_benchmarks_load_from_the_hubs_cache(name: str, tmp_path: Path, cache: Path) -> None:
    benchmark = BENCHMARKS.load(name)
    assert benchmark.hub is not None
    with pytest.raises(InputError, match=f"'{benchmark.hub.dataset}' is not in the cache"):
        benchmark.items(Files(tmp_path / "nowhere"))
    snapshot = hub.cached(cache, benchmark.hub.dataset, CONTENTS[name])
    items: list[Item] = benchmark.items(Files(tmp_path / "nowhere"))
    for item in items:
        assert item.image is None or Image.open(item.image).size == (4, 4)
    local: list[Item] = benchmark.items(Files(snapshot))
    assert items == local and items


def test_the_variable_that_keeps_the_hub_offline_is_honored(tmp_path: Path, cache: Path) -> None:
    hub.cached(cache, "truthfulqa/truthful_qa", CONTENTS["truthfulqa"])
    script = "import sys; from vlmsteer.bench.files import Files; from vlmsteer.bench.truthfulqa import BENCHMARK\n"
    script += "files = Files(sys.argv[1]); print(len(BENCHMARK.items(files)), files.fetched)"
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "counterfacts"))),
    }  # fmt: skip
    command = [sys.executable, "-c", script, str(tmp_path / "nowhere")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", f"truthfulqa/truthful_qa@{hub.COMMIT}"]


def test_a_run_says_which_published_files_it_asked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        command = ["vlmsteer", "bench", "vilp", "--data", "nowhere", "--out", "out"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    monkeypatch.chdir(tmp_path)
    assert main() == 2 and "'ViLP/ViLP' is not in the cache" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()
    hub.cached(cache, "ViLP/ViLP", CONTENTS["vilp"])
    assert main() == 0
    (task,) = json.loads((tmp_path / "out" / "run.json").read_text())["tasks"]
    assert task["options"] == {"hub": f"ViLP/ViLP@{hub.COMMIT}"} and task["items"] == 3
