"""The main experiment at small size: the report has the promised shape, and its folder is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlmsteer
from vlmsteer.demo import run
from vlmsteer.errors import InputError
from vlmsteer.recipe import Recipe
from vlmsteer.report import markdown, percent, write_report

CELLS = {"real_this", "real_most", "counterfactual_this", "counterfactual_most"}


@pytest.fixture(scope="module")
def result() -> Any:
    return run(vlmsteer.load("tiny-llava"), n=24, pairs=12)


@pytest.fixture(scope="module")
def folder(result: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    write_report(result, path)
    return path


def test_report_json(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["model"] == "tiny-llava" and report["seconds"] > 0 and report["peak_memory_mb"] > 100
    for attribute in ("color", "size"):
        assert set(report["cells"][attribute]) == CELLS
        for cell in report["cells"][attribute].values():
            assert cell["n"] == 24
            assert 0 <= cell["interval"][0] <= cell["accuracy"] <= cell["interval"][1] <= 1
        for direction in ("to_pixels", "to_prior"):
            flip = report["flips"][attribute][direction]
            assert {"rate", "n", "interval", "broken", "layers", "strength", "point", "random", "shuffled"} <= set(flip)
            assert flip["published_form"]["point"] == "block_out"
            assert {"rate", "n", "interval"} <= set(flip["random"]) & set(flip["shuffled"])
        for scope in ("this", "most"):
            assert len(report["curves"][attribute][scope]["prior"]) == 8
        assert report["crossing_layer"][attribute] is None or 0 <= report["crossing_layer"][attribute] < 8
    assert {"python", "torch", "transformers", "vlmsteer"} <= set(report["versions"])


def test_folder(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    recipe = Recipe.load(folder / report["recipe"]["path"])
    assert recipe.hash == report["recipe"]["hash"]
    assert len(report["recipes"]) == 4
    for name in ("curves.png", "flips.png", "sweep.png", "before_after.png", "example.png"):
        assert Image.open(folder / name).width > 300
        assert name == "example.png" or f"]({name})" in (folder / "report.md").read_text()


def test_controls_are_as_long_as_the_vector_and_hit_the_same_prompts(result: Any) -> None:
    for directions in result.report["flips"].values():
        for flip in directions.values():
            assert flip["n"] == flip["random"]["n"] == flip["shuffled"]["n"]


def test_nothing_measured_is_a_dash() -> None:
    assert percent({"rate": None, "n": 0, "interval": [None, None]}) == "–"


def test_markdown_names_n_and_seed(result: Any, folder: Path) -> None:
    page = markdown(json.loads((folder / "report.json").read_text()))
    assert "24 test pairs" in page and "seed 0" in page


def test_a_folder_that_cannot_be_written(result: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_report(result, tmp_path / "file" / "report")
