"""`vlmsteer patch` as a user types it, and what patching finds on tiny-llava's counterfactual pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import Main, program

import vlmsteer
from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.bench.patching import intervals, patch_pairs
from vlmsteer.demo import question
from vlmsteer.errors import InputError
from vlmsteer.lens.patch_map import PatchMap

QUESTION = "Answer with one word. What color is this banana?"
WORDS = ("--clean-answer", "yellow", "--corrupted-answer", "orange")


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    return program(monkeypatch, capsys)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A yellow and an orange banana."""
    pair, folder = drawn_pairs("color", "test", 2)[1], tmp_path_factory.mktemp("pictures")
    assert (pair.object, pair.prior, pair.pixel) == ("banana", "yellow", "orange")
    (folder / "clean.png").write_bytes(pair.original)
    (folder / "corrupted.png").write_bytes(pair.counterfactual)
    return folder / "clean.png", folder / "corrupted.png"


def test_two_images_give_sites_and_maps(main: Main, files: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, _ = main(
        "patch", *files, QUESTION, *WORDS, "--layers", "2-5", "--points", "block_out", "--points", "head", "--top", 3,
        "--out", tmp_path,
    )  # fmt: skip
    assert code == 0 and "text.5.block_out" in out and "recovered" in out and "head" in out
    for name in ("block_out-exact", "head-exact"):
        assert PatchMap.load(tmp_path / f"{name}.json").layers == [2, 3, 4, 5]
        for figure in (f"{name}.png", f"{name}-image.png"):
            assert Image.open(tmp_path / figure).size[0] > 400
    found = PatchMap.load(tmp_path / "block_out-exact.json")
    assert found.effects.shape == (4, 67) and found.clean > 0 > found.corrupted
    assert max(found.grid(2).values()) > 0.3  # the banana's patches carry its color, and the last token after them
    assert found.recovery[3, -1] > 0.3


def test_two_questions_about_one_image(main: Main, files: tuple[Path, Path]) -> None:
    code, out, _ = main(
        "patch", files[1], QUESTION, "--question2", "Answer with one word. What color are most bananas?",
        "--clean-answer", "orange", "--corrupted-answer", "yellow", "--positions", "-1", "--method", "attribution",
        "--direction", "noise", "--json",
    )  # fmt: skip
    (told,) = json.loads(out)
    assert code == 0 and told["method"] == "attribution" and told["clean"] > told["corrupted"]
    assert {row["positions"][0] for row in told["strongest"]} == {66}


def test_pairs_give_means_with_intervals(main: Main, tmp_path: Path) -> None:
    code, out, _ = main("patch", "--pairs", 3, "--positions", "last", "--out", tmp_path, "--json")
    (told,) = json.loads(out)
    assert code == 0 and told["n"] == told["asked"] == 3
    best = told["strongest"][0]
    assert best["site"] == "text.7.block_out" and best["share"] == pytest.approx(1, abs=1e-4)
    low, high = told["strongest"][1]["interval"]
    assert low <= told["strongest"][1]["share"] <= high and low < high
    assert PatchMap.load(tmp_path / "block_out-exact.json").pairs == 3
    saved = json.loads((tmp_path / "block_out-exact.json").read_text())
    assert saved["n"] == 3 and np.shape(saved["low"]) == np.shape(saved["effects"]) == (8, 1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "or --pairs N"),
        (("{clean}", "q"), "or --pairs N"),
        (("{clean}", "--question2", "q"), "one image and the clean run's question"),
        (("{clean}", "{corrupted}", "q"), "--clean-answer and --corrupted-answer"),
        (("--pairs", 2, "{clean}"), "come with the pairs"),
        (("{clean}", "missing.png", "q", *WORDS), "missing.png"),
        (("{clean}", "{corrupted}", "q", *WORDS, "--method", "exat"), "'exact'"),
        (("{clean}", "{corrupted}", "q", *WORDS, "--layers", "x"), "Layers are written"),
        (("{clean}", "{corrupted}", "q", *WORDS, "--out", "{clean}"), "cannot be written"),
    ],
)
def test_what_cannot_be_asked_is_said(
    main: Main, files: tuple[Path, Path], arguments: tuple[str, ...], complaint: str
) -> None:
    named = {"clean": files[0], "corrupted": files[1]}
    code, _, said = main("patch", *(str(one).format(**named) for one in arguments))
    assert code == 2 and complaint in said


def test_intervals_are_of_whole_objects() -> None:
    """Two pairs of one object and one of another: only three resamples differ, and they give the bounds."""

    def made(effect: float) -> PatchMap:
        return PatchMap(
            np.array([[effect]]), [0], [(0,)], ["a"], ["end -1"], 4.0, 0.0, "text", "block_out", "logit_difference",
            "exact", "denoise",
        )  # fmt: skip

    low, high = intervals([made(1.0), made(1.0), made(3.0)], ["cup", "cup", "bear"])
    assert low[0, 0] == pytest.approx(0.25) and high[0, 0] == pytest.approx(0.75)
    assert np.isnan(intervals([made(1.0)], ["cup"])[0]).all()


def test_pairs_that_are_not_told_apart_are_left_out() -> None:
    session = vlmsteer.load("tiny-llava")
    pairs = drawn_pairs("color", "test", 2)
    asked = [question(pairs[0], "most"), question(pairs[1], "this")]  # memory answers the first in both pictures
    found = patch_pairs(session, pairs, asked, ["attribution"], positions="last")["attribution"]
    assert found.used == [pairs[1]] and found.asked == 2 and found.map.pairs == 1
    with pytest.raises(InputError, match="none of the 1 pairs"):
        patch_pairs(session, pairs[:1], asked[:1])
