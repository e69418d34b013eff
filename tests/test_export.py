"""Recipes taken elsewhere hold the same numbers, and what another program cannot do is refused or said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors import safe_open
from typer.testing import CliRunner

from vlmsteer.errors import InputError, RecipeError, VlmsteerError
from vlmsteer.export import from_gguf, tensors, to_gguf, to_tensors
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.recipe_cli import app
from vlmsteer.vectors import Vectors

WIDTH = 6
MODEL = {"id": "some model", "revision": "1", "architecture": "LlavaForConditionalGeneration", "shapes": "abc"}


def vectors(layers=(1, 2, 3), tower="text", point="block_out", seed=0) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    drawn = {layer: torch.randn(WIDTH, generator=generator) for layer in layers}
    return Vectors(tower, point, drawn, MODEL, {"method": "caa", "pairs": 7})


def recipe(*edits: Edit) -> Recipe:
    return Recipe(edits or (Edit(vectors(), "add", 0.5, "last"),), MODEL, {"method": "caa", "pairs": 7})


def read_gguf(path: Path) -> tuple[dict[str, str | int], dict[str, np.ndarray]]:
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_tensors_have_the_strength_multiplied_in(tmp_path):
    steer = recipe(Edit(vectors(), "add", -2.0, "all"), Edit(vectors((3, 4), seed=1), "add", 0.5, "all"))
    assert to_tensors(steer, tmp_path / "plain.safetensors") == []
    with safe_open(tmp_path / "plain.safetensors", "np") as file:
        named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    first, second = vectors().layers, vectors((3, 4), seed=1).layers
    assert set(named) == {f"text.{layer}.block_out" for layer in (1, 2, 3, 4)}
    np.testing.assert_allclose(named["text.1.block_out"], -2 * first[1].numpy(), rtol=1e-6)
    np.testing.assert_allclose(named["text.3.block_out"], (-2 * first[3] + 0.5 * second[3]).numpy(), rtol=1e-6)
    np.testing.assert_allclose(named["text.4.block_out"], 0.5 * second[4].numpy(), rtol=1e-6)
    sites = json.loads(metadata["sites"])
    assert sites["text.3.block_out"] == {"operation": "add", "strength": 1.0, "positions": "all", "phase": "both"}
    assert json.loads(metadata["model"]) == MODEL and json.loads(metadata["about"])["pairs"] == 7


def test_other_operations_keep_their_vector_and_say_so(tmp_path):
    steer = recipe(
        Edit(vectors((2,), point="mlp_out"), "add_keep_norm", 0.3, "all"),
        Edit(vectors((2,), seed=1), "add", 2.0, (0, 1), "prefill"),
    )
    told = to_tensors(steer, tmp_path / "plain.safetensors")
    assert len(told) == 1 and "add_keep_norm" in told[0]
    named, sites = tensors(steer)
    torch.testing.assert_close(named["text.2.mlp_out"], vectors((2,)).layers[2])
    torch.testing.assert_close(named["text.2.block_out"], 2 * vectors((2,), seed=1).layers[2])
    assert sites["text.2.mlp_out"] == {
        "operation": "add_keep_norm", "strength": 0.3, "positions": "all", "phase": "both"
    }  # fmt: skip
    assert sites["text.2.block_out"]["positions"] == [0, 1] and sites["text.2.block_out"]["phase"] == "prefill"


def test_a_tensor_file_is_not_taken_for_a_recipe(tmp_path):
    to_tensors(recipe(), tmp_path / "plain.safetensors")
    with pytest.raises(RecipeError, match="not a vlmsteer recipe"):
        Recipe.load(tmp_path / "plain.safetensors")


def test_a_control_vector_has_llama_cpps_layout(tmp_path):
    steer = recipe(Edit(vectors(), "add", -2.0, "all"), Edit(vectors((3, 4), seed=1), "add", 0.5, "all"))
    assert to_gguf(steer, tmp_path / "out.gguf", hint="llama") == []
    fields, named = read_gguf(tmp_path / "out.gguf")
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama" and fields["controlvector.layer_count"] == 4
    assert json.loads(str(fields["vlmsteer.model"])) == MODEL
    first, second = vectors().layers, vectors((3, 4), seed=1).layers
    # Block N, counted from 0, is direction.N: no shift.
    assert set(named) == {f"direction.{layer}" for layer in (1, 2, 3, 4)}
    assert all(vector.dtype == np.float32 and vector.shape == (WIDTH,) for vector in named.values())
    np.testing.assert_allclose(named["direction.1"], -2 * first[1].numpy(), rtol=1e-6)
    np.testing.assert_allclose(named["direction.3"], (-2 * first[3] + 0.5 * second[3]).numpy(), rtol=1e-6)


def test_what_llama_cpp_does_differently_is_said_and_kept(tmp_path):
    (sentence,) = to_gguf(recipe(), tmp_path / "out.gguf")
    assert "every token" in sentence and "last token" in sentence
    fields, _ = read_gguf(tmp_path / "out.gguf")
    assert fields["vlmsteer.note"] == sentence
    assert fields["controlvector.model_hint"] == "LlavaForConditionalGeneration"


def test_layer_0_is_refused_or_left_out(tmp_path):
    steer = recipe(Edit(vectors((0, 1)), "add", 1.0, "all"))
    with pytest.raises(RecipeError, match="block 0"):
        to_gguf(steer, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    (sentence,) = to_gguf(steer, tmp_path / "out.gguf", without_layer_0=True)
    assert "layer 0 is left out" in sentence
    assert set(read_gguf(tmp_path / "out.gguf")[1]) == {"direction.1"}
    with pytest.raises(RecipeError, match="layer 0 only"):
        to_gguf(recipe(Edit(vectors((0,)), positions="all")), tmp_path / "out.gguf", without_layer_0=True)


def test_a_control_vector_comes_back(tmp_path):
    to_gguf(recipe(Edit(vectors(), "add", 3.0, "all")), tmp_path / "out.gguf")
    back = from_gguf(tmp_path / "out.gguf")
    assert (back.tower, back.point, dict(back.model)) == ("text", "block_out", MODEL)
    for layer, vector in vectors().layers.items():
        torch.testing.assert_close(back.layers[layer], 3 * vector)


def foreign(path: Path, architecture: str = "controlvector", name: str = "direction.2") -> Path:
    """A file as repeng writes it."""
    writer = GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 1)
    writer.add_tensor(name, np.arange(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_other_programs_control_vectors(tmp_path):
    read = from_gguf(foreign(tmp_path / "repeng.gguf"))
    assert list(read.layers) == [2] and read.layers[2].tolist() == [0, 1, 2, 3]
    assert read.model == {} and read.about["hint"] == "mistral"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (Edit(vectors(), "add_keep_norm", positions="all"), "add_keep_norm"),
        (Edit(vectors(point="mlp_out"), positions="all"), "text.*.mlp_out"),
        (Edit(vectors(tower="vision"), positions="all"), "vision.*.block_out"),
        (Edit(vectors(), positions="image", phase="prefill"), "'image'"),
        (Edit(vectors(), positions="last", phase="decode"), "'decode'"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(tmp_path, edit, sentence):
    with pytest.raises(RecipeError) as raised:
        to_gguf(recipe(edit), tmp_path / "out.gguf")
    assert sentence in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_two_different_things_at_one_site_are_refused():
    for second in (Edit(vectors(), "project_out"), Edit(vectors(), "add", 1.0, "all")):
        with pytest.raises(RecipeError, match="two things at text.1.block_out"):
            tensors(recipe(Edit(vectors(), "add"), second))


def test_gates_and_rules_are_refused(tmp_path):
    from vlmsteer.recipe import Gate, Rule
    from vlmsteer.sites import Site

    gate = Gate(Site.parse("text.0.block_out"), torch.ones(WIDTH), 0.1)
    gated = recipe(Edit(vectors(), gate=gate))
    ruled = Recipe((Edit(vectors()),), MODEL, {}, rules=(Rule("self_logits", {}),))
    for steer, word in ((gated, "a gate"), (ruled, "rules")):
        with pytest.raises(RecipeError, match=word):
            to_gguf(steer, tmp_path / "out.gguf")
        with pytest.raises(RecipeError, match=word):
            tensors(steer)


def test_an_exported_recipe_does_what_it_did(llava, pictures, tmp_path):
    """The file read back and added at every token gives the recipe's own next-token logits."""
    width = llava.model.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(3)
    drawn = {1: torch.randn(width, generator=generator)}
    steer = Recipe(
        (Edit(Vectors("text", "block_out", drawn, llava.fingerprint), "add", 0.7, "all"),), llava.fingerprint
    )
    to_gguf(steer, tmp_path / "out.gguf")
    again = Recipe.of(from_gguf(tmp_path / "out.gguf"), positions="all")
    images, questions = pictures[:1], ["What is this?"]
    torch.testing.assert_close(llava.logits(images, questions, again), llava.logits(images, questions, steer))
    assert not torch.allclose(llava.logits(images, questions, again), llava.logits(images, questions))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture
def file(tmp_path) -> Path:
    recipe(Edit(vectors((1, 2, 3, 5)), "add", 0.5, "last")).save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_show(file):
    text = run("show", file)
    for word in ("text.1-3,5.block_out", "add", "0.5", "last", "some model", "caa"):
        assert word in text
    shown = json.loads(run("show", file, "--json"))
    assert shown["hash"] == Recipe.load(file).hash and shown["edits"][0]["layers"] == [1, 2, 3, 5]


def test_scale_and_add(file, tmp_path):
    run("scale", file, "-2.5", "--out", tmp_path / "b.safetensors")
    turned = Recipe.load(tmp_path / "b.safetensors")
    assert turned.edits[0].strength == -1.25
    run("add", file, tmp_path / "b.safetensors", "--out", tmp_path / "c.safetensors")
    both = Recipe.load(tmp_path / "c.safetensors")
    assert [edit.strength for edit in both.edits] == [0.5, -1.25]


def test_export_and_import(file, tmp_path):
    told = run("export", file, "--to", "gguf", "--out", tmp_path / "a.gguf", "--hint", "llama")
    assert "every token" in told and "Written" in told
    run("import", tmp_path / "a.gguf", "--strength", "2", "--out", tmp_path / "back.safetensors")
    back = Recipe.load(tmp_path / "back.safetensors").edits[0]
    assert back.positions == "all" and back.strength == 2
    torch.testing.assert_close(back.vectors.layers[5], 0.5 * vectors((1, 2, 3, 5)).layers[5])
    run("export", file, "--to", "tensors", "--out", tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", "np") as plain:
        assert "text.5.block_out" in plain.keys()  # noqa: SIM118


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["export", "a.safetensors", "--to", "guf", "--out", "x.gguf"], "did you mean 'gguf'"),
        (["export", "a.safetensors", "--to", "gguf", "--out", "x.bin"], "*.gguf"),
        (["export", "a.safetensors", "--to", "gguf", "--out", "no/x.gguf"], "no folder 'no'"),
        (["export", "a.safetensors", "--to", "tensors", "--out", "x.gguf"], "*.safetensors"),
        (["export", "none.safetensors", "--to", "gguf", "--out", "x.gguf"], "no recipe file"),
        (["import", "none.gguf", "--out", "x.safetensors"], "no file 'none.gguf'"),
        (["import", "a.safetensors", "--out", "x.safetensors"], "not a readable GGUF"),
        (["import", "empty.gguf", "--out", "x.safetensors"], "not a readable GGUF"),
        (["import", "cut.gguf", "--out", "x.safetensors"], "not a readable GGUF"),
        (["import", "llama.gguf", "--out", "x.safetensors"], "not a control vector"),
        (["import", "named.gguf", "--out", "x.safetensors"], "not a readable GGUF"),
        (["scale", "a.safetensors", "nan", "--out", "x.safetensors"], "finite"),
        (["scale", "a.safetensors", "2", "--out", "x.bin"], ".safetensors"),
        (["add", "a.safetensors", "none.safetensors", "--out", "x.safetensors"], "no recipe file"),
        (["add", "a.safetensors", "other.safetensors", "--out", "x.safetensors"], "other model"),
    ],
)
def test_what_a_user_gets_wrong(file, arguments, sentence, monkeypatch):
    folder = file.parent
    (folder / "empty.gguf").touch()
    to_gguf(recipe(), folder / "whole.gguf")
    (folder / "cut.gguf").write_bytes((folder / "whole.gguf").read_bytes()[:-40])
    foreign(folder / "llama.gguf", architecture="llama")
    foreign(folder / "named.gguf", name="direction.two")
    Recipe((Edit(vectors()),), {**MODEL, "id": "other model"}, {}).save(folder / "other.safetensors")
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    with pytest.raises(VlmsteerError) as raised:
        run(*arguments)
    assert isinstance(raised.value, InputError | RecipeError) and sentence in str(raised.value)
    assert sorted(folder.iterdir()) == before
