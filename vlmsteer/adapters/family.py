"""How a family is declared, and how a declaration is checked against a loaded model.

A family names, for each tower, the path of its blocks (alternatives where library versions moved them) and for each
point the submodule and which side of it is meant. Numbers (layers, widths, heads) come from the checkpoint's own
configuration. `taps` resolves all of it and compares it with the modules that are really there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from vlmsteer.actions import Tap
from vlmsteer.errors import ModelError
from vlmsteer.sites import Site


class Port(NamedTuple):
    """Where a point is: a submodule of the block ("" is the block itself), its side, and which width it has."""

    path: str
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
ORDER = ("block_in", "head", "attn_out", "norm_out", "neuron", "mlp_out", "block_out")


@dataclass(frozen=True)
class Tower:
    """One stack of blocks.

    Attributes:
        blocks: module paths of the list of blocks, the first that exists counts.
        config: the configuration's section that describes the tower ("" is the whole).
        ports: point -> where it is in a block.
        live: how many blocks from the front can influence the answer, from the configuration; None means all.
        pre_norm: whether a block adds attention, then an MLP, to the stream, each after a norm (`selfcheck`).
    """

    blocks: tuple[str, ...]
    config: str
    ports: Mapping[str, Port]
    live: Callable[[Any, int], int] | None = None
    pre_norm: bool = True


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: what users read.
        architecture: the transformers class.
        towers: tower name -> stack of blocks.
        projector: module paths of the projector, with the submodule whose input are its neurons.
        patch_grid: whether image tokens are cells of a grid over the image.
        image_first: whether image states do not depend on the question that follows, so a prefix may be reused.
        skip: how many leading tokens of the vision tower are not patches.
        tiles: vision rows of each image, from the forward's arguments and the configuration.
        final_norm, unembedding: module paths, alternatives first to last.
        checkpoints: published names known to load.
    """

    name: str
    architecture: str
    towers: Mapping[str, Tower]
    projector: tuple[str, ...]
    projector_neurons: str
    final_norm: tuple[str, ...]
    unembedding: tuple[str, ...]
    checkpoints: tuple[str, ...]
    patch_grid: bool = True
    image_first: bool = True
    skip: Callable[[Any], int] = lambda config: 0
    tiles: Callable[[Any, Mapping[str, Any]], list[int] | None] = lambda config, arguments: None
    notes: tuple[str, ...] = field(default=())

    def taps(self, model: nn.Module) -> dict[Site, Tap]:
        """Every site of a loaded model, in network order.

        Raises:
            ModelError: if a declared module is missing or has another width than declared.
        """
        taps: dict[Site, Tap] = {}
        for name, tower in self.towers.items():
            if name == "text":
                taps |= self._projector_taps(model)
            blocks = find(model, tower.blocks)
            config = _section(model, tower.config)
            if not isinstance(blocks, nn.ModuleList):
                raise ModelError(f"The {name} tower's blocks are a {type(blocks).__name__}, not a list of layers.")
            if len(blocks) != config.num_hidden_layers:
                raise ModelError(
                    f"The {name} tower has {len(blocks)} layers, its configuration says {config.num_hidden_layers}."
                )
            heads = config.num_attention_heads
            hidden = config.hidden_size
            head_dim = getattr(config, "head_dim", None) or hidden // heads
            widths = {"hidden": hidden, "heads": heads * head_dim, "neurons": config.intermediate_size}
            for layer, block in enumerate(blocks):
                for point in ORDER:
                    port = tower.ports[point]
                    module = find(block, (port.path,)) if port.path else block
                    width = widths[port.width]
                    if isinstance(module, nn.Linear) and port.side == "in" and module.in_features != width:
                        raise ModelError(f"{name}.{layer}.{point} has width {module.in_features}, declared {width}.")
                    taps[Site(name, layer, point)] = Tap(module, port.side, width, heads if point == "head" else None)
        return taps

    def _projector_taps(self, model: nn.Module) -> dict[Site, Tap]:
        projector = find(model, self.projector)
        last = find(projector, (self.projector_neurons,))
        text = _section(model, self.towers["text"].config)
        vision = _section(model, self.towers["vision"].config)
        selected = _section(model, "").vision_feature_layer
        features = 1 if isinstance(selected, int) else len(selected)
        return {
            Site("projector", 0, "block_in"): Tap(projector, "in", vision.hidden_size * features),
            Site("projector", 0, "neuron"): Tap(last, "in", getattr(last, "in_features", text.hidden_size)),
            Site("projector", 0, "block_out"): Tap(projector, "out", text.hidden_size),
        }

    def live_layers(self, config: Any, tower: str) -> int:
        """How many layers of a tower, from the front, can change the answer."""
        declared = self.towers[tower]
        section = getattr(config, declared.config) if declared.config else config
        count = section.num_hidden_layers
        return declared.live(config, count) if declared.live else count


def _section(model: Any, name: str) -> Any:
    return getattr(model.config, name) if name else model.config


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
