"""How a family is declared, and how a declaration is checked against a loaded model.

A family names, for each tower, the path of its blocks (alternatives where library versions moved them) and for each
point the submodule and which side of it is meant. Numbers (layers, widths, heads) come from the checkpoint's own
configuration. `taps` resolves all of it and compares it with the modules that are really there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmsteer.actions import Tap
from vlmsteer.errors import ModelError
from vlmsteer.sites import HEADS, Site


class Port(NamedTuple):
    """Where a point is: a submodule of the block ("" is the block itself), its side, and which width it has.

    Of several paths the first that a block has counts; a block that has none of a point's modules lacks the point.
    """

    path: str | tuple[str, ...]
    side: str
    width: str = "hidden"


LLAMA_BLOCK: Mapping[str, Port] = {
    "block_in": Port("", "in"),
    "norm_out": Port("post_attention_layernorm", "out"),
    "head": Port("self_attn.o_proj", "in", "heads"),
    "attn_out": Port("self_attn", "out"),
    "neuron": Port("mlp.down_proj", "in", "neurons"),
    "mlp_out": Port("mlp", "out"),
    "block_out": Port("", "out"),
}
CLIP_BLOCK: Mapping[str, Port] = {
    "block_in": Port("", "in"),
    "norm_out": Port("layer_norm2", "out"),
    "head": Port("self_attn.out_proj", "in", "heads"),
    "attn_out": Port("self_attn", "out"),
    "neuron": Port("mlp.fc2", "in", "neurons"),
    "mlp_out": Port("mlp", "out"),
    "block_out": Port("", "out"),
}
ORDER = (
    "block_in", "head", "attn_out", "cross_head", "cross_out", "norm_out", "neuron", "mlp_out", "block_out",
)  # fmt: skip


class Sizes(NamedTuple):
    """The numbers of a tower: blocks, width, attention heads, width of one, and the MLP's hidden width."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    neurons: int


def standard(config: Any) -> Sizes:
    """Sizes under the names that most configurations use."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    return Sizes(config.num_hidden_layers, hidden, heads, head_dim, config.intermediate_size)


@dataclass(frozen=True)
class Tower:
    """One stack of blocks.

    Attributes:
        blocks: module paths of the list of blocks, the first that exists counts.
        config: the configuration's section that describes the tower ("" is the whole).
        ports: point -> where it is in a block.
        sizes: reads the tower's numbers from that section.
        live: how many blocks from the front can influence the answer, from the configuration; None means all.
        pre_norm: whether a block adds attention, then an MLP, to the stream, each after a norm (`selfcheck`).
        stitched: whether a block starts from exactly what the one before it gave, at every token (`selfcheck`).
        frame: the module whose call describes the tower's tokens; "" is the whole model, None means none is needed.
    """

    blocks: tuple[str, ...]
    config: str
    ports: Mapping[str, Port]
    sizes: Callable[[Any], Sizes] = standard
    live: Callable[[Any, int], int] | None = None
    pre_norm: bool = True
    stitched: bool = True
    frame: str | None = None


class Projector(NamedTuple):
    """Between the vision side and the text tower.

    Attributes:
        paths: module paths, the first that exists counts.
        neurons: the submodule whose input are its neurons; None if it is a single layer.
        width: the width of its input, from the model's configuration.
    """

    paths: tuple[str, ...]
    neurons: str | None
    width: Callable[[Any], int]


def one_row_each(config: Any, arguments: Mapping[str, Any]) -> list[int]:
    """Every image is one row of the vision tower."""
    return [1] * len(arguments["pixel_values"])


def counted(config: Any, ids: Tensor, image: Mapping[str, Tensor] | None) -> Tensor:
    """Positions 0, 1, 2, ...: (tokens,)."""
    return torch.arange(len(ids))


def call(model: Any, inputs: dict[str, Any], positions: Tensor, cache: Any, use_cache: bool) -> Any:
    """One forward of the whole model; gives `logits` and `past_key_values`.

    The logits are the last token's, or those of as many tokens as `logits_to_keep` in `inputs` says. `positions`
    is (rows, columns) or, with several axes, (rows, columns, axes).
    """
    if positions.dim() == 3:
        positions = positions.permute(2, 0, 1)
    inputs.setdefault("logits_to_keep", 1)
    return model(**inputs, position_ids=positions, past_key_values=cache, use_cache=use_cache)


def generate(model: Any, inputs: dict[str, Any], **arguments: Any) -> Tensor:
    """transformers' own generation: (rows, prompt and answer tokens)."""
    return model.generate(**inputs, **arguments)


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: what users read.
        architecture: the class.
        towers: tower name -> stack of blocks, in network order.
        projector: what lies between the vision side and the text side.
        final_norm, unembedding: module paths, alternatives first to last.
        checkpoints: published names known to load.
        library: the module of the class. One that is not transformers also has `configuration` (of a folder or hub
            name, and a revision) and `processor` (of the same, with the configuration between).
        boxes: the part of the image that each of its tokens in the prompt shows (`adapters.grid`); None if the tokens
            are no cells of a grid over the image.
        image_first: whether image states do not depend on the question that follows, so a prefix may be reused.
        bare_prompt: the prompt is the question itself, and the processor puts the image's tokens before it.
        question_inputs: what the processor makes from the question for another tower than the text one.
        skip: how many leading tokens of the vision tower are not patches.
        image_rows: vision rows of each image, from the configuration and the forward's arguments.
        patches: for a vision tower that takes all images' patches as one sequence: where in it each image's patches
            (or, merged, its cells) are, row by row; from the configuration, the images' grids and the length.
        positions: position of each token of a prompt, from the configuration, its ids and its image's tensors.
        call, generate: how the model is called.
        look: where the question comes first, what the vision tower gives for images (images, tokens, width), from the
            model and their pixels; `call` then takes it as `image_states` in place of the pixels.
        logit_scale: what the normalized stream is multiplied with before the unembedding.
        silent: of a family that does not answer in words: what it does instead, as a sentence.
        notes: what this family lacks or does otherwise, in sentences.
    """

    name: str
    architecture: str
    towers: Mapping[str, Tower]
    projector: Projector
    final_norm: tuple[str, ...]
    unembedding: tuple[str, ...]
    checkpoints: tuple[str, ...]
    boxes: Callable[..., Tensor] | None
    library: str = "transformers"
    image_first: bool = True
    bare_prompt: bool = False
    question_inputs: tuple[str, ...] = ()
    skip: Callable[[Any], int] = lambda config: 0
    image_rows: Callable[[Any, Mapping[str, Any]], list[int]] = one_row_each
    patches: Callable[[Any, Tensor, int], list[Tensor]] | None = None
    positions: Callable[[Any, Tensor, Mapping[str, Tensor] | None], Tensor] = counted
    call: Callable[..., Any] = call
    generate: Callable[..., Tensor] = generate
    look: Callable[[Any, Tensor], Tensor] | None = None
    logit_scale: Callable[[Any], float] = lambda config: 1.0
    silent: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def reads_prompt(self) -> str:
        """The tower that takes in the prompt: the text tower, or the encoder before it."""
        return "encoder" if "encoder" in self.towers else "text"

    @property
    def answers(self) -> str:
        """The tower whose last block the answer is read from: the text tower, or the action expert behind it."""
        return "expert" if "expert" in self.towers else "text"

    @property
    def points(self) -> dict[str, list[str]]:
        """The points of each tower, in network order."""
        found: dict[str, list[str]] = {}
        for name, tower in self.towers.items():
            if name == self.reads_prompt:
                found["projector"] = ["block_in", *(["neuron"] if self.projector.neurons else []), "block_out"]
            found[name] = [point for point in ORDER if point in tower.ports]
        return found

    def taps(self, model: nn.Module) -> dict[Site, Tap]:
        """Every site of a loaded model, in network order.

        Raises:
            ModelError: if a declared module is missing or has another width than declared.
        """
        taps: dict[Site, Tap] = {}
        for name, tower in self.towers.items():
            if name == self.reads_prompt:
                taps |= self._projector_taps(model)
            blocks = find(model, tower.blocks)
            sizes = tower.sizes(section(model.config, tower.config))
            if not isinstance(blocks, nn.ModuleList | nn.Sequential):
                raise ModelError(f"The {name} tower's blocks are a {type(blocks).__name__}, not a list of layers.")
            if len(blocks) != sizes.layers:
                raise ModelError(f"The {name} tower has {len(blocks)} layers, its configuration says {sizes.layers}.")
            widths = {"hidden": sizes.hidden, "heads": sizes.heads * sizes.head_dim, "neurons": sizes.neurons}
            missing = set(tower.ports)
            for layer, block in enumerate(blocks):
                for point in ORDER:
                    port = tower.ports.get(point)
                    module = _port(block, port)
                    if port is None or module is None:
                        continue
                    missing.discard(point)
                    width = widths[port.width]
                    if isinstance(module, nn.Linear) and port.side == "in" and module.in_features != width:
                        raise ModelError(f"{name}.{layer}.{point} has width {module.in_features}, declared {width}.")
                    heads = sizes.heads if point in HEADS else None
                    taps[Site(name, layer, point)] = Tap(module, port.side, width, heads)
            for point in sorted(missing):
                path = tower.ports[point].path
                raise ModelError(
                    f"No block of the {name} tower has {path!r}, declared as {point}: this version lays "
                    "it out differently."
                )
        return taps

    def _projector_taps(self, model: nn.Module) -> dict[Site, Tap]:
        projector = find(model, self.projector.paths)
        text = self.towers["text"]
        hidden = text.sizes(section(model.config, text.config)).hidden
        taps = {Site("projector", 0, "block_in"): Tap(projector, "in", self.projector.width(model.config))}
        if self.projector.neurons:
            last = find(projector, (self.projector.neurons,))
            taps[Site("projector", 0, "neuron")] = Tap(last, "in", getattr(last, "in_features", hidden))
        return {**taps, Site("projector", 0, "block_out"): Tap(projector, "out", hidden)}

    def ending(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The text tower's final norm and its unembedding."""
        return find(model, self.final_norm), find(model, self.unembedding)

    def live_layers(self, config: Any, tower: str) -> int:
        """How many layers of a tower, from the front, can change the answer."""
        declared = self.towers[tower]
        count = declared.sizes(section(config, declared.config)).layers
        return declared.live(config, count) if declared.live else count


def section(config: Any, name: str) -> Any:
    """A part of a model's configuration; "" is all of it."""
    return getattr(config, name) if name else config


def _port(block: nn.Module, port: Port | None) -> nn.Module | None:
    if port is None or not port.path:
        return block
    for path in (port.path,) if isinstance(port.path, str) else port.path:
        try:
            return block.get_submodule(path)
        except AttributeError:
            continue
    return None


def find(model: nn.Module, paths: tuple[str, ...]) -> nn.Module:
    """The module at the first path that exists.

    Raises:
        ModelError: if none does.
    """
    for path in paths:
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise ModelError(
        f"{type(model).__name__} has none of the modules {', '.join(paths)}: this version lays it out differently."
    )
