"""Recipe files: what is saved comes back, and whatever else lies in a file ends in one sentence."""

from __future__ import annotations

import json
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

import vlmsteer
from vlmsteer.errors import RecipeError, VlmsteerError
from vlmsteer.operations import OPERATIONS
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]


def small() -> Recipe:
    vectors = Vectors("text", "block_out", {0: torch.arange(4.0), 2: torch.ones(4)}, {"id": "m"}, {"pairs": 3})
    return Recipe.of(vectors, 0.5, positions=(0, -1), phase="prefill")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
    path = tmp_path / "steer.safetensors"
    small().save(path)
    return path, small().header(), small()._tensors()


def test_round_trip(session: Any, pictures: Pictures, tmp_path: Path) -> None:
    edits = both(
        *(recipe(session, "text.1.block_out", name, 0.5, "all", seed=i) for i, name in enumerate(OPERATIONS)),
        recipe(session, "vision.0.head", positions=(0,), phase="prefill"),
    )
    steer = Recipe(edits.edits, session.fingerprint, {"method": "random", "pairs": 0, "note": "süß"})
    steer.save(tmp_path / "a.safetensors")
    loaded = Recipe.load(tmp_path / "a.safetensors")
    assert loaded.hash == steer.hash and loaded.header() == steer.header()
    expected = session.logits(pictures, QUESTIONS, steer)
    assert torch.equal(session.logits(pictures, QUESTIONS, loaded), expected)
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_vector_for_several_layers(dtype: torch.dtype, tmp_path: Path) -> None:
    """Tensors that are the same, or views of one another, with a graph behind them."""
    stack = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    layers = {0: stack[0], 1: stack[0], 2: stack[1], 3: stack[:, 1]}
    layers[3] = torch.cat([layers[3], stack[2, :1]])
    steer = Recipe.of(Vectors("text", "block_out", layers))
    steer.save(tmp_path / "a.safetensors")
    assert Recipe.load(tmp_path / "a.safetensors").hash == steer.hash


def test_clamps_keep_their_holes(tmp_path: Path) -> None:
    vector = torch.tensor([1.0, float("nan")])
    steer = Recipe.of(Vectors("text", "neuron", {0: vector}), operation="clamp")
    steer.save(tmp_path / "a.safetensors")
    assert Recipe.load(tmp_path / "a.safetensors").edits[0].fixed.layers[0].isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"version": None},
        {"model": "x"},
        {"about": 3},
        {"edits": 3},
        {"edits": ["x"]},
        {"edits": [{}]},
        {"edits": {"a": 1}},
    ],
)
def test_headers_of_wrong_types(change: dict[str, Any], saved: Any) -> None:
    path, header, tensors = saved
    path.write_bytes(save(tensors, {"vlmsteer": json.dumps({**header, **change})}))
    with pytest.raises(RecipeError, match="steer.safetensors"):
        Recipe.load(path)


ODD = [None, 3, -1, 1.5, True, "x", "", [], {}, ["last"], [[0]], [9], 1e999, 10**400, float("nan")]


@pytest.mark.parametrize("key", ["tower", "point", "layers", "operation", "strength", "positions", "phase"])
@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:8])
def test_edits_of_wrong_types(key: str, value: Any, saved: Any) -> None:
    path, header, tensors = saved
    header["edits"][0][key] = value
    path.write_bytes(save(tensors, {"vlmsteer": json.dumps(header)}))
    if (key, value) in [("strength", 3), ("strength", -1), ("strength", 1.5), ("positions", [9])]:
        Recipe.load(path)
        return
    with pytest.raises(VlmsteerError):
        Recipe.load(path)


def test_missing_and_strange_tensors(saved: Any) -> None:
    path, header, tensors = saved
    for strange in (
        {"0.0": tensors["0.0"]},
        {**tensors, "0.2": torch.ones(2, 2, 2)},
        {**tensors, "0.2": torch.ones(4, dtype=torch.int64)},
        {**tensors, "0.2": torch.full((4,), float("nan"))},
        {**tensors, "0.2": torch.full((4,), float("inf"))},
    ):
        path.write_bytes(save(strange, {"vlmsteer": json.dumps(header)}))
        with pytest.raises(RecipeError):
            Recipe.load(path)


def test_files_that_are_no_recipes(saved: Any, tmp_path: Path) -> None:
    path, header, tensors = saved
    whole = path.read_bytes()

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    contents = [
        b"",
        whole[:4],
        whole[: len(whole) // 2],
        whole[:-1],
        os.urandom(300),
        pickle.dumps(Trap()),
        save(tensors),
        save(tensors, {"vlmsteer": "no json"}),
        save(tensors, {"vlmsteer": "[1]"}),
        save(tensors, {"vlmsteer": "[" * 100_000}),
        save(tensors, {"other": json.dumps(header)}),
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="steer.safetensors"):
            Recipe.load(path)
    torch.save({"a": Trap()}, path)
    with pytest.raises(RecipeError, match="pickle"):
        Recipe.load(path)
    assert not (tmp_path / "unpickled").exists()
    for place in (tmp_path, tmp_path / "no.safetensors"):
        with pytest.raises(RecipeError, match="no recipe file"):
            Recipe.load(place)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_gives_a_sentence_or_a_recipe(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    small().save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(VlmsteerError):
        assert isinstance(Recipe.load(path), Recipe)


def test_saving_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="no folder"):
        small().save(tmp_path / "missing" / "a.safetensors")
    with pytest.raises(RecipeError, match=r"\.safetensors"):
        small().save(tmp_path / "a.pt")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(RecipeError, match="could not be written"):
        small().save(tmp_path / "folder.safetensors")
    with pytest.raises(RecipeError, match="could not be written"):
        small().save(Path("/proc/a.safetensors"))
    with pytest.raises(RecipeError, match="could not be written"):
        small().save(tmp_path / f"{'a' * 250}.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]

    path = tmp_path / "a.safetensors"
    small().save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RecipeError, match="No space left"):
        small().scaled(2).save(path)
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.safetensors", "folder.safetensors"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RecipeError, match="could not be written"):
        small().save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_other_models_recipes(llava: Any, llava_next: Any, pictures: Pictures) -> None:
    steer = Recipe(recipe(llava, "text.0.block_out").edits, llava.fingerprint)
    assert llava.logits(pictures[:1], QUESTIONS[:1], steer).isfinite().all()
    with pytest.raises(RecipeError, match=r"made for random-llava: its class is 'LlavaForConditionalGeneration'"):
        llava_next.ask(pictures[0], QUESTIONS[0], steer)
    assert llava_next.ask(pictures[0], QUESTIONS[0], steer.for_any_model(), 2)
    for key, word in (("id", "model"), ("shapes", "shape fingerprint"), ("revision", "revision")):
        other = Recipe(steer.edits, {**llava.fingerprint, key: "other"})
        with pytest.raises(RecipeError, match=f"its {word} is 'other'"), llava.apply(other):
            pass
        with pytest.raises(RecipeError, match=f"its {word} is 'other'"):
            llava.logits(pictures, QUESTIONS, [None, other, None])


def test_public_names_stay_callable(llava_folder: Path) -> None:
    """Importing the submodule behind a name must not replace the name."""
    for _ in range(2):
        assert callable(vlmsteer.load) and vlmsteer.Recipe is Recipe and vlmsteer.Edit is Edit
        vlmsteer.load(llava_folder, check=False)
