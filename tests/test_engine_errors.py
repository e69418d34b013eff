"""What a user gets wrong ends in a sentence: questions, images, sites, vectors, checkpoints, declarations."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, hooks, recipe
from PIL import Image
from safetensors.torch import load_file, save_file

import vlmsteer
from vlmsteer.adapters.family import Family, Port, Projector
from vlmsteer.errors import InputError, ModelError, RecipeError, SiteError, VlmsteerError
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.selfcheck import check
from vlmsteer.session import Session
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]


@pytest.mark.parametrize(
    ("question", "complaint"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (None, "empty"),
        (7, "empty"),
        ("What <image> is it?", "stands for the image"),
        ("word " * 300, r"takes fewer than 256\. Shorten"),
    ],
)
def test_questions(question: Any, complaint: str, session: Any, pictures: Pictures) -> None:
    for image in (pictures[0], None):
        with pytest.raises(InputError, match=complaint):
            session.ask(image, question)
        with pytest.raises(InputError, match=complaint):
            next(session.stream(image, question))


def test_images(session: Any, pictures: Pictures, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    pictures[0].resize((200, 200)).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    before = hooks(session.model)
    for source in (*map(str, tmp_path.iterdir()), str(tmp_path / "none.png"), 5, "http://example.com/a.png"):
        with pytest.raises(InputError):
            session.ask(source, "red?", recipe(session, "text.0.block_out"))
    assert hooks(session.model) == before
    pictures[1].save(tmp_path / "good.png")
    expected = session.ask(pictures[1], "red?", None, 3)
    for source in (tmp_path / "good.png", str(tmp_path / "good.png")):
        assert session.ask(source, "red?", None, 3) == expected


def steer(tower: str, layer: int, point: str, width: int, **edit: Any) -> Recipe:
    return Recipe((Edit(Vectors(tower, point, {layer: torch.ones(width)}), **edit),))


def test_sites_and_widths(llava: Any, pictures: Pictures) -> None:
    for made, complaint in (
        (lambda: steer("text", 3, "block_out", 48), "layers 0 to 2"),
        (lambda: steer("qformer", 0, "block_out", 48), "no such point"),
        (lambda: steer("projector", 0, "head", 48), "no such point"),
        (lambda: steer("text", 0, "blok_out", 48), "did you mean 'block_out'"),
        (lambda: steer("txt", 0, "block_out", 48), "did you mean 'text'"),
        (lambda: steer("text", 0, "block_out", 48, positions="lst"), "did you mean 'last'"),
        (lambda: steer("vision", 0, "block_out", 32, positions="last"), "'image', 'all' or indices"),
        (lambda: steer("vision", 0, "block_out", 32, positions=(9,)), "no token 9"),
    ):
        with pytest.raises(SiteError, match=complaint):
            llava.ask(pictures[0], QUESTIONS[0], made())
    for width, edit in ((47, {}), (48, {"operation": "affine"}), (1, {})):
        with pytest.raises(RecipeError, match=f"has {width} numbers; this model needs"):
            llava.ask(pictures[0], QUESTIONS[0], steer("text", 0, "block_out", width, **edit))
    for pattern in ("text.3.block_out", "text.*.nothing", "vision.0-9.head", "nothing"):
        with pytest.raises(SiteError), llava.read(pattern):
            pass
    with pytest.raises(SiteError, match="phase"), llava.read("text.0.block_out", phase="later"):
        pass
    with pytest.raises(SiteError, match="'image', 'all' or indices"), llava.read("vision.0.block_out"):
        llava.logits(pictures[:1], QUESTIONS[:1])
    with pytest.raises(SiteError, match="Nothing has been read"), llava.read("text.0.block_out") as states:
        states["text.0.block_out"]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ({"operation": "ad"}, "did you mean 'add'"),
        ({"phase": "both "}, "did you mean 'both'"),
        ({"strength": float("nan")}, "finite"),
        ({"strength": "1"}, "finite"),
        ({"strength": True}, "finite"),
        ({"positions": "image", "phase": "decode"}, "never acts"),
        ({"positions": (0,), "phase": "decode"}, "never acts"),
        ({"positions": "generated", "phase": "prefill"}, "never acts"),
    ],
)
def test_edits(edit: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        steer("text", 0, "block_out", 4, **edit)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_not_numbers(bad: float) -> None:
    vectors = Vectors("text", "block_out", {0: torch.tensor([1.0, bad])})
    with pytest.raises(RecipeError, match=r"text\.0\.block_out holds NaN or infinite"):
        Edit(vectors)
    with pytest.raises(RecipeError, match="at least one layer"):
        Vectors("text", "block_out", {})
    with pytest.raises(SiteError, match="no vector for layer"):
        vectors.select([0, 1])


def test_checkpoints(llava_folder: Path, tmp_path: Path) -> None:
    def broken(name: str, file: str, content: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(llava_folder, folder)
        if content is None:
            (folder / file).unlink()
        elif callable(content):
            content(folder / file)
        else:
            (folder / file).write_bytes(content)
        return folder

    def without_a_layer(path: Path) -> None:
        tensors = load_file(path)
        save_file({k: v for k, v in tensors.items() if "layers.1.mlp" not in k}, path, {"format": "pt"})

    def of_another_width(path: Path) -> None:
        config = json.loads(path.read_text())
        config["text_config"]["hidden_size"] = 64
        path.write_text(json.dumps(config))

    weights = (llava_folder / "model.safetensors").read_bytes()
    for folder, complaint in (
        (broken("no weights", "model.safetensors", None), "could not be loaded"),
        (broken("cut", "model.safetensors", weights[: len(weights) // 2]), "could not be loaded"),
        (broken("partial", "model.safetensors", without_a_layer), "lacks .* of the model's weights"),
        (broken("no config", "config.json", None), "no config.json"),
        (broken("no json", "config.json", b"{"), "could not be loaded"),
        (broken("width", "config.json", of_another_width), "could not be loaded"),
        (broken("other", "config.json", b'{"model_type": "bert"}'), "supported families"),
        (broken("unknown", "config.json", b'{"model_type": "no such type"}'), "could not be loaded|supported families"),
        (broken("no tokenizer", "tokenizer.json", b"{}"), "could not be loaded"),
        (tmp_path / "missing", "neither bundled nor a folder"),
    ):
        with pytest.raises(ModelError, match=complaint):
            vlmsteer.load(folder)
    with pytest.raises(ModelError, match="neither bundled"):
        vlmsteer.load("tiny-lava")


def redeclared(session: Any, tower: str, **change: Any) -> Any:
    """The loaded model under a changed declaration."""
    towers = {**session.family.towers, tower: dataclasses.replace(session.family.towers[tower], **change)}
    family: Family = dataclasses.replace(session.family, towers=towers)
    return Session(session.model, session.processor, session.name, family)


def test_the_check_passes(session: Any) -> None:
    before = hooks(session.model)
    check(session)
    assert hooks(session.model) == before


@pytest.mark.parametrize(
    ("tower", "point", "port"),
    [
        ("text", "attn_out", Port("mlp", "out")),
        ("text", "attn_out", Port("input_layernorm", "out")),
        ("text", "attn_out", Port("", "out")),
        ("text", "mlp_out", Port("self_attn", "out")),
        ("text", "norm_out", Port("input_layernorm", "out")),
        ("text", "norm_out", Port("mlp", "out")),
        ("text", "block_out", Port("", "in")),
        ("text", "block_in", Port("self_attn.q_proj", "in")),
        ("text", "neuron", Port("mlp.gate_proj", "out", "neurons")),
        ("text", "head", Port("self_attn.q_proj", "in", "heads")),
        ("text", "neuron", Port("mlp.down_proj", "in", "hidden")),
        ("vision", "attn_out", Port("mlp", "out")),
        ("vision", "norm_out", Port("layer_norm1", "out")),
        ("vision", "mlp_out", Port("layer_norm2", "out")),
        ("vision", "head", Port("self_attn.k_proj", "in", "heads")),
        ("vision", "neuron", Port("mlp.fc1", "out", "neurons")),
        ("vision", "attn_out", Port("no_such_module", "out")),
    ],
)
def test_a_wrong_port_is_found(tower: str, point: str, port: Port, session: Any) -> None:
    with pytest.raises(ModelError):
        check(redeclared(session, tower, ports={**session.family.towers[tower].ports, point: port}))


def test_a_wrong_block_list_is_found(session: Any) -> None:
    text, vision = (session.family.towers[name] for name in ("text", "vision"))
    for tower, change in (
        ("text", {"blocks": vision.blocks}),
        ("text", {"blocks": ("model.language_model",)}),
        ("text", {"blocks": ("model.no_such.layers",)}),
        ("vision", {"blocks": text.blocks}),
        ("vision", {"config": "text_config"}),
        ("vision", {"live": None}),
    ):
        with pytest.raises(ModelError):
            check(redeclared(session, tower, **change))


def test_blocks_in_another_order_are_found(llava_folder: Path) -> None:
    session = vlmsteer.load(llava_folder, check=False)
    layers = session.model.model.language_model.layers
    session.model.shuffled = torch.nn.ModuleList([layers[1], layers[0], layers[2]])
    with pytest.raises(ModelError, match="the block before it"):
        check(redeclared(session, "text", blocks=("shuffled",)))


@pytest.mark.parametrize(
    "change",
    [{"final_norm": ("model.multi_modal_projector.act",)}, {"projector": Projector(("no",), None, len)}],
)
def test_other_wrong_modules_are_found(change: dict[str, Any], llava: Any) -> None:
    family = dataclasses.replace(llava.family, **change)
    with pytest.raises(VlmsteerError):
        check(Session(llava.model, llava.processor, llava.name, family))


def test_an_edit_of_how_an_image_is_seen_needs_an_image(session: Any, pictures: Pictures) -> None:
    steer = recipe(session, "vision.0.block_out", positions="all")
    for call in (
        lambda: session.ask(None, "red?", steer),
        lambda: session.ask(None, "red?", steer, do_sample=False),
        lambda: next(session.stream(None, "red?", steer)),
        lambda: session.logits([pictures[0], None], QUESTIONS[:2], steer),
        lambda: session.ask_many([pictures[0], None], QUESTIONS[:2], [None, steer]),
    ):
        with pytest.raises(SiteError, match="shows no image"):
            call()
