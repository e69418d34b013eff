"""The Vectors tab: the gallery's table, files in and out, learning with progress and Stop, separation by layer."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("gradio")

from vlmsteer import vectors as store
from vlmsteer.errors import InputError, RecipeError, VlmsteerError
from vlmsteer.recipe import Recipe
from vlmsteer.registry import METHODS
from vlmsteer.vectors import Vectors
from vlmsteer_ui import editing, figures, gallery, learning, vector_figures
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.gallery import Gallery
from vlmsteer_ui.learning import Wanted
from vlmsteer_ui.residents import Stopped
from vlmsteer_ui.tabs import vectors
from vlmsteer_ui.workbench import Workbench

SHIPPED = "color to pixels"
TINY = Recipe.of(Vectors("text", "block_out", {0: torch.ones(4)}))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    made = Workbench(["tiny-llava"], tmp_path_factory.mktemp("bench"))
    made.residents("tiny-llava")
    return made


def learn(bench: Workbench, desk: Desk, *values: Any) -> list[Any]:
    return list(learning.learned(bench, desk, "tiny-llava", Wanted.of(bench, *values)))


def hooks(session: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in session.model.modules())


def test_a_row_says_what_a_file_holds(bench: Workbench) -> None:
    session = bench.residents("tiny-llava").session
    shown = vector_figures.table(bench.vectors.entries(), session, "tiny-llava", [SHIPPED], SHIPPED)
    row = next(row for row in shown["rows"] if row["name"] == SHIPPED)
    assert (row["pressed"], row["why"], row["kind"]) == ("true", "", "shown")
    cells = dict(zip(vector_figures.COLUMNS, row["cells"], strict=True))
    assert cells["model"] == "tiny-llava" and cells["method"] == "pvp"
    assert cells["hash"] == bench.vectors[SHIPPED].recipe.hash[:12]
    assert vector_figures.detail(bench.vectors[SHIPPED])["name"] == SHIPPED


def test_what_does_not_fit_says_why_and_cannot_be_chosen(bench: Workbench) -> None:
    session = bench.residents("tiny-llava").session
    foreign = bench.vectors[SHIPPED].recipe
    foreign = Recipe(foreign.edits, {**foreign.model, "id": "other", "architecture": "Other"}, foreign.about)
    bench.vectors.add("foreign", foreign)
    bench.vectors.add("narrow", TINY)  # tied to no model, but too narrow for this one
    rows = {
        row["name"]: row for row in vector_figures.table(bench.vectors.entries(), session, "tiny-llava", [])["rows"]
    }
    assert "made for other" in rows["foreign"]["why"] and "4 numbers" in rows["narrow"]["why"]
    asking = METHODS.load("vista").learn(session, ()).for_any_model()
    assert gallery.refusal(asking, session) is None  # what is made anew for each question fits where it is made
    assert not {"foreign", "narrow"} & set(bench.vectors.fitting(session))
    for name in ("foreign", "narrow"):
        with pytest.raises(InputError, match="not made for"):
            vectors.pick(bench, Desk(), {"act": "toggle", "name": name}, "tiny-llava", [])
        bench.vectors.delete(name)
    waiting = vector_figures.table(bench.vectors.entries(), None, "tiny-llava", [])["rows"]
    assert all("not loaded yet" in row["why"] for row in waiting)


def test_picking_turns_on_and_off(bench: Workbench) -> None:
    desk = Desk()
    chosen, table, detail, _ = vectors.pick(bench, desk, {"act": "toggle", "name": SHIPPED}, "tiny-llava", [])
    assert chosen["value"] == [SHIPPED] and detail["name"] == SHIPPED
    assert next(row for row in table["rows"] if row["name"] == SHIPPED)["label"] == "On"
    chosen, *_ = vectors.pick(bench, desk, {"act": "toggle", "name": SHIPPED}, "tiny-llava", [SHIPPED])
    assert chosen["value"] == []
    for event in (None, {}, {"name": "../" + SHIPPED}, {"act": "toggle", "name": ["x"]}, {"name": "/etc/passwd"}):
        with pytest.raises(InputError, match="no vector"):
            vectors.pick(bench, desk, event, "tiny-llava", [])


@pytest.mark.parametrize(
    "name", ["", " ", "../up", "a/b", "/tmp/x", ".hidden", "x" * 70, "<b>bold</b>", None, 3, "a\nb"]
)
def test_names_are_never_paths(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InputError, match="name has 1 to 60"):
        Gallery(tmp_path / "in").add(name, TINY)
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_of_many_at_once_one_gets_the_name(tmp_path: Path) -> None:
    kept, refused = Gallery(tmp_path), []
    recipes = [TINY.scaled(float(i + 1)) for i in range(8)]

    def add(recipe: Recipe) -> None:
        try:
            kept.add("mine", recipe)
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=add, args=(recipe,)) for recipe in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7 and all("already" in text for text in refused)
    assert kept["mine"].recipe.hash in {recipe.hash for recipe in recipes}
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]  # whole, and nothing left beside it
    with pytest.raises(InputError, match="already"):
        kept.add("Mine", TINY)
    with pytest.raises(InputError, match="already"):
        kept.add(SHIPPED, TINY)


def test_uploads_are_recipes_or_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Gallery(tmp_path / "in")
    secret = tmp_path / "secret-folder"
    secret.mkdir()
    ours, pickle, plain, foreign, odd = (
        secret / name for name in ("ours.safetensors", "a.pt", "b.safetensors", "c.safetensors", "d.safetensors")
    )
    TINY.save(ours)
    torch.save({"a": torch.ones(2)}, pickle)
    plain.write_text("no tensors at all")
    save_file({"a": torch.ones(2)}, foreign)
    store.write(odd, {"version": 1, "model": {}, "about": {}, "edits": [7]}, {"a": torch.ones(1)})
    assert kept.upload(ours, "mine").recipe.hash == TINY.hash
    for path, why in (
        (pickle, "never opened"),
        (plain, "never opened"),
        (foreign, "no recipe"),
        (odd, "cannot be used"),
    ):
        with pytest.raises(RecipeError, match=why) as caught:
            kept.upload(path, "other")
        assert "secret-folder" not in str(caught.value)
    renamed = secret / "renamed.safetensors"
    renamed.write_bytes(pickle.read_bytes())
    with pytest.raises(RecipeError, match="never opened"):
        kept.upload(renamed, "other")
    monkeypatch.setattr(gallery, "LARGEST", 10)
    with pytest.raises(RecipeError, match="too large"):
        kept.upload(ours, "other")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["mine.safetensors"]


def test_own_ones_are_deleted_and_shipped_ones_are_not(bench: Workbench, tmp_path: Path) -> None:
    desk = Desk()
    with pytest.raises(InputError, match="name first"):
        vectors.deleted(bench, desk, "tiny-llava", [])
    TINY.save(tmp_path / "a vector.safetensors")
    vectors.uploaded(bench, desk, str(tmp_path / "a vector.safetensors"), "", "tiny-llava", [])
    file = json.loads(vectors.taken(bench, desk))
    assert file["name"] == "a vector.safetensors"
    (tmp_path / "back.safetensors").write_bytes(base64.b64decode(file["base64"]))
    assert Recipe.load(tmp_path / "back.safetensors").hash == TINY.hash
    vectors.deleted(bench, desk, "tiny-llava", ["a vector", SHIPPED])
    assert "a vector" not in {entry.name for entry in bench.vectors.entries()}
    vectors.pick(bench, desk, {"act": "show", "name": SHIPPED}, "tiny-llava", [])
    with pytest.raises(InputError, match="ships with"):
        vectors.deleted(bench, desk, "tiny-llava", [])
    assert json.loads(vectors.taken(bench, desk))["name"] == f"{SHIPPED}.safetensors"


@pytest.mark.parametrize(
    "values",
    [
        ("nothing", "drawn", 16, "a"), (None, "drawn", 16, "a"), ("pvp", "lures", 16, "a"), ("pvp", "/tmp", 16, "a"),
        ("caa", "set: mine", 16, "a"), ("caa", "drawn", 1, "a"), ("caa", "drawn", 10_000, "a"),
        ("caa", "drawn", True, "a"), ("caa", "drawn", float("nan"), "a"), ("caa", "drawn", 16, "../a"),
        ("caa", "drawn", 16, ""), ("caa", "drawn", 16, SHIPPED),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_says_so(bench: Workbench, values: tuple[Any, ...]) -> None:
    with pytest.raises(VlmsteerError):
        Wanted.of(bench, *values)


def test_every_method_has_its_data_and_a_line(bench: Workbench) -> None:
    assert {name for _, name in learning.methods()} == set(METHODS)
    for name in METHODS:
        possible = learning.datasets(bench, name)
        assert bool(possible) == (METHODS.load(name).needs != "nothing")
        assert METHODS.load(name).paper in learning.told_of(name)


def test_learning_reports_and_measures_what_it_found(bench: Workbench) -> None:
    *reports, entry = learn(bench, Desk(), "caa", "drawn", 8, "by hand")
    assert any("forwards" in text for text in reports) and entry.name == "by hand"
    assert entry.recipe.about["examples"] == 8 and entry.recipe.about["learned_from"] == "drawn"
    found = entry.recipe.about["separation_of_held_out"]
    assert found["n"] == learning.HELD and set(found["auroc"]) == {str(x) for x in entry.recipe.edits[0].vectors.layers}
    bars = vector_figures.detail(entry)["bars"]
    assert len(bars) == len(found["auroc"]) and f"AUROC {next(iter(found['auroc'].values())):.2f}" in bars[0]["tip"]
    assert "by hand" in bench.vectors.fitting(bench.residents("tiny-llava").session)
    again = METHODS.load("caa").learn(bench.residents("tiny-llava").session, learning.material("presence", "drawn", 8))
    assert torch.equal(again.edits[0].fixed.layers[3], entry.recipe.edits[0].fixed.layers[3])


def test_pvp_learns_from_a_set_of_the_page(bench: Workbench) -> None:
    work = editing.marked(editing.begun(figures.picture("blue_strawberry")), {"box": [0.1, 0.1, 0.75, 0.95]})
    for color in ("yellow", "pink", "green"):
        editing.add(editing.made(work, "strawberry", "color", color), bench.folder, "own")
    with pytest.raises(InputError, match="3 color pairs"):
        learn(bench, Desk(), "pvp", "set: own", 8, "from own")
    editing.add(editing.made(work, "strawberry", "color", "purple"), bench.folder, "own")
    *_, entry = learn(bench, Desk(), "pvp", "set: own", 8, "from own")
    assert entry.recipe.about["pairs"] == 4 and entry.recipe.about["learned_from"] == "set: own"
    assert len(entry.recipe.about["separation_of_held_out"]["auroc"]) == 8  # of all layers, though few are kept


def test_stop_ends_learning_within_a_forward(bench: Workbench) -> None:
    session = bench.residents("tiny-llava").session
    desk, reports, before = Desk(), [], hooks(session)
    with pytest.raises(Stopped):
        for report in learning.learned(bench, desk, "tiny-llava", Wanted.of(bench, "vti", "drawn", 8, "never")):
            reports.append(report)
            if "forwards" in str(report):
                desk.halt()
    assert len(reports) < 12
    assert "never" not in {entry.name for entry in bench.vectors.entries()}
    assert not session.instrument.busy and hooks(session) == before


def test_damaged_separations_are_not_drawn(tmp_path: Path) -> None:
    good = {"auroc": {"0": 0.9, "3": 0.2}, "distance": {"0": 1.0, "3": -2.0}, "n": 9, "point": "block_out"}
    bars = vector_figures.separation(good)["bars"]
    assert [bar["layer"] for bar in bars] == ["0", "3"] and float(bars[0]["y"]) < float(bars[1]["y"])
    for bad in ({"0": "x"}, {"0": 7.0}, {"0": float("nan")}, {"0": None}):
        assert vector_figures.separation({**good, "auroc": bad})["bars"] == []
    for bad in ({}, {"auroc": 3}, {"auroc": {"0": 0.5}, "distance": []}):
        assert vector_figures.separation(bad)["bars"] == []
