"""Taking a recipe elsewhere: as a plain file of tensors, or as a control vector for llama.cpp.

llama.cpp (common_control_vector_load_one, llama_adapter_cvec) reads 1-d float32 tensors `direction.N` and adds each to
what leaves block N, counted from 0, at every token of every forward. So our `text.N.block_out` is its `direction.N`,
with the same N. It keeps nothing for block 0 and rejects a file with a `direction.0`. repeng counts the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from vlmsteer.errors import RecipeError
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors, whole

ARCHITECTURE = "controlvector"
EVERYWHERE = "llama.cpp adds these vectors at every token, of the prompt, the image and the answer."


def tensors(recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The recipe as named tensors, and what is to be done with each.

    Returns:
        Site name such as "text.14.block_out" -> float32 tensor; and site name -> operation, strength, positions and
        phase. Where the operation is "add" the strength is multiplied in (and 1 is left); additions at the same tokens
        of one site are summed.

    Raises:
        RecipeError: if the recipe has parts that are no tensors (gates, rules, vectors made for each question), or does
            two different things at one site.
    """
    _only_vectors(recipe)
    named: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for edit in recipe.edits:
        factor, left = (edit.strength, 1.0) if edit.operation == "add" else (1.0, edit.strength)
        about = {
            "operation": edit.operation, "strength": left, "positions": edit.spec()["positions"], "phase": edit.phase,
        }  # fmt: skip
        for site in edit.sites:
            name, vector = str(site), edit.fixed.layers[site.layer].detach().cpu().float() * factor
            if name in named and (edit.operation != "add" or described[name] != about):
                raise RecipeError(
                    f"The recipe does two things at {name}, and a file of tensors holds one tensor for a site; "
                    f"export its parts on their own."
                )
            named[name] = named[name] + vector if name in named else vector
            described[name] = about
    return named, described


def to_tensors(recipe: Recipe, path: str | Path) -> list[str]:
    """Write `tensors(recipe)` as a plain safetensors file; the metadata say what is to be done with each.

    Returns:
        Sentences that a user should read.

    Raises:
        RecipeError: as `tensors`, or if the file cannot be written.
    """
    named, described = tensors(recipe)
    metadata = {"format": "pt", "sites": described, "model": dict(recipe.model), "about": dict(recipe.about)}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    data = save({name: tensor.contiguous().clone() for name, tensor in named.items()}, texts)
    _write(path, ".safetensors", lambda part: part.write_bytes(data))
    others = sorted({about["operation"] for about in described.values()} - {"add"})
    if not others:
        return []
    return [f"These tensors are not all to be added: the metadata say where to {', '.join(others)}, and how strongly."]


def to_gguf(recipe: Recipe, path: str | Path, hint: str = "", without_layer_0: bool = False) -> list[str]:
    """Write a recipe that only adds to block outputs as a control vector for llama.cpp.

    Args:
        path: a .gguf file; run it by `--control-vector FILE`.
        hint: llama.cpp's name of the model's architecture, such as "llama"; kept in the file, not checked by llama.cpp.
        without_layer_0: leave out what the recipe adds to block 0, where llama.cpp can add nothing.

    Returns:
        Sentences on what llama.cpp will do differently.

    Raises:
        RecipeError: if the recipe is more than additions at text.*.block_out at positions "all" or "last" in both
            phases, adds to layer 0, or the file cannot be written.
    """
    from gguf import GGUFWriter

    _only_vectors(recipe)
    for edit in recipe.edits:
        _addable(edit)
    layers: dict[int, Tensor] = {}
    for edit in recipe.edits:
        for layer, vector in edit.fixed.layers.items():
            layers[layer] = layers.get(layer, torch.zeros(())) + vector.detach().cpu().float() * edit.strength
    if 0 in layers and not without_layer_0:
        raise RecipeError(
            "llama.cpp cannot add to the output of block 0, and this recipe does; leave that layer out "
            "(--without-layer-0), which weakens the recipe, or learn it without."
        )
    told = ["What the recipe adds to layer 0 is left out."] if layers.pop(0, None) is not None else []
    if not layers:
        raise RecipeError("Nothing is left to write: the recipe adds to layer 0 only.")
    if any(edit.positions == "last" for edit in recipe.edits):
        told.append(f"{EVERYWHERE} The recipe adds them at the last token of the prompt and in the answer only.")

    def fill(part: Path) -> None:
        writer = GGUFWriter(part, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint or str(recipe.model.get("architecture", "unknown")))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
        writer.add_string("vlmsteer.note", " ".join(told) or EVERYWHERE)
        writer.add_string("vlmsteer.model", json.dumps(dict(recipe.model)))
        writer.add_string("vlmsteer.about", json.dumps(dict(recipe.about)))
        for layer in sorted(layers):
            writer.add_tensor(f"direction.{layer}", layers[layer].contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    _write(path, ".gguf", fill)
    return told


def from_gguf(path: str | Path) -> Vectors:
    """The vectors of a control vector file, ours, repeng's or llama.cpp's, for text.*.block_out at positions "all".

    Raises:
        RecipeError: if it is not one.
    """
    from gguf import GGUFReader

    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"There is no file {str(path)!r}.")
    try:
        reader = GGUFReader(path)
        texts = {
            key: bytes(field.parts[-1]).decode()
            for key in ("general.architecture", f"{ARCHITECTURE}.model_hint", "vlmsteer.model", "vlmsteer.about")
            if (field := reader.get_field(key)) is not None
        }
        found = {
            int(tensor.name.removeprefix("direction.")): torch.tensor(tensor.data, dtype=torch.float32)
            for tensor in reader.tensors
            if tensor.name.startswith("direction.")
        }
        model, about = (dict(json.loads(texts.get(key, "{}"))) for key in ("vlmsteer.model", "vlmsteer.about"))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise RecipeError(f"{str(path)!r} is not a readable GGUF file ({error}).") from error
    if texts.get("general.architecture") != ARCHITECTURE or not found:
        raise RecipeError(f"{str(path)!r} is a GGUF file, but not a control vector.")
    about = about or {
        "method": "control vector",
        "file": path.name,
        "hint": texts.get(f"{ARCHITECTURE}.model_hint", ""),
    }
    return Vectors("text", "block_out", found, model, about)


def _only_vectors(recipe: Recipe) -> None:
    what = "rules for logits or decoding" if recipe.rules else ""
    for edit in recipe.edits:
        if not isinstance(edit.vectors, Vectors):
            what = "vectors that are made anew for each question"
        elif edit.gate is not None:
            what = "a gate"
    if what:
        raise RecipeError(f"The recipe has {what}, which a file of vectors cannot say; only plain edits are exported.")


def _addable(edit: Edit) -> None:
    vectors: Mapping[int, Tensor] = edit.fixed.layers
    site = f"{edit.vectors.tower}.*.{edit.vectors.point}"
    if edit.operation != "add" or site != "text.*.block_out":
        raise RecipeError(
            f"llama.cpp can only add vectors at text.*.block_out; this recipe does {edit.operation!r} at {site}."
        )
    if edit.positions not in ("all", "last") or edit.phase != "both":
        raise RecipeError(
            f"llama.cpp adds its vectors at every token; a recipe for positions {edit.positions!r} in phase "
            f"{edit.phase!r} would become another one. Positions 'all' or 'last' in both phases can be exported."
        )
    if any(vector.dim() != 1 for vector in vectors.values()):
        raise RecipeError(
            "llama.cpp adds one vector at all tokens; this recipe has a vector of its own for each token."
        )


def _write(path: str | Path, suffix: str, fill: Any) -> None:
    """Write one file, whole or not at all."""
    path = Path(path)
    if path.suffix != suffix:
        raise RecipeError(f"The file must be named *{suffix}, not {path.name!r}.")
    if not path.parent.is_dir():
        raise RecipeError(f"There is no folder {str(path.parent)!r} to write {path.name!r} in.")
    whole(path, fill)
