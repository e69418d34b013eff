"""Names that stand for things loaded only when asked for: families of models, bundled checkpoints, methods.

An entry is a name and the text "module:attribute"; nothing is imported until `load`. Registering a name twice is an
error.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from vlmsteer.errors import ModelError, VlmsteerError, did_you_mean


class Registry:
    """A table from names to "module:attribute"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, str] = {}

    def add(self, name: str, target: str) -> None:
        """Add one entry.

        Raises:
            VlmsteerError: if the name is taken.
        """
        if name in self._entries:
            raise VlmsteerError(f"There is already a {self.kind} called {name!r} ({self._entries[name]}).")
        self._entries[name] = target

    def load(self, name: str) -> Any:
        """Import and return what the name stands for.

        Raises:
            ModelError: if the name is unknown.
        """
        if name not in self._entries:
            raise ModelError(f"No {self.kind} is called {name!r}{did_you_mean(name, self._entries)}")
        module, attribute = self._entries[name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


# transformers' model_type, where its language model (or a variant that the configuration names) makes a difference
# "model_type/language model" -> the declaration
FAMILIES = Registry("model family")
FAMILIES.add("llava", "vlmsteer.adapters.llava:LLAVA")
FAMILIES.add("llava_next", "vlmsteer.adapters.llava:LLAVA_NEXT")
FAMILIES.add("llava_onevision", "vlmsteer.adapters.llava:LLAVA_ONEVISION")
FAMILIES.add("instructblip", "vlmsteer.adapters.instructblip:INSTRUCTBLIP")
FAMILIES.add("instructblip/t5", "vlmsteer.adapters.instructblip:INSTRUCTBLIP_T5")
FAMILIES.add("qwen2_vl", "vlmsteer.adapters.qwen_vl:QWEN2_VL")
FAMILIES.add("qwen2_5_vl", "vlmsteer.adapters.qwen_vl:QWEN2_5_VL")
FAMILIES.add("qwen3_vl", "vlmsteer.adapters.qwen_vl:QWEN3_VL")
FAMILIES.add("openvla", "vlmsteer.adapters.openvla:OPENVLA")
FAMILIES.add("openvla/one tower", "vlmsteer.adapters.openvla:OPENVLA_ONE_TOWER")
FAMILIES.add("pi0", "vlmsteer.adapters.pi0:PI0")


def family_of(config: Any) -> Any:
    """The declaration of the family that a model's configuration belongs to.

    Raises:
        ModelError: if the family is not supported.
    """
    language = getattr(getattr(config, "text_config", None), "model_type", None)
    key = family_key(config.model_type, getattr(config, "variant", language))
    if key is None:
        raise ModelError(f"This is a {config.model_type!r} model; supported families: {', '.join(FAMILIES)}.")
    return FAMILIES.load(key)


def family_key(model_type: str, language: str | None) -> str | None:
    """The family's name in the table, from the two model types of a configuration; None if it is not supported."""
    return next((name for name in (f"{model_type}/{language}", model_type) if name in FAMILIES), None)


# model name -> how `vlmsteer train` makes it: a plan, or a function of folder, steps, seed and report
BUILDERS = Registry("bundled model")
BUILDERS.add("tiny-llava", "vlmsteer.training.tiny_llava:PLAN")
BUILDERS.add("tiny-instructblip", "vlmsteer.training.tiny_instructblip:PLAN")
BUILDERS.add("tiny-qwen-vl", "vlmsteer.training.tiny_qwen_vl:PLAN")
BUILDERS.add("tiny-clip", "vlmsteer.training.tiny_clip:make")
BUILDERS.add("tiny-openvla", "vlmsteer_robotics.training.tiny_openvla:make")
BUILDERS.add("tiny-inpaint", "vlmsteer.training.tiny_inpaint:make")

METHODS = Registry("method")
for _name, _module in (
    ("pvp", "pvp"), ("vti", "vti"), ("vista", "vista"), ("iti", "iti"), ("truthprint", "truthprint"),
    ("comnhallu", "comnhallu"), ("vseam", "vseam"), ("caa", "caa"), ("actadd", "actadd"), ("cast", "cast"),
    ("act", "act"), ("aura", "aura"), ("repit", "repit"), ("hneurons", "hneurons"), ("persona", "persona"),
    ("dynamic", "dynamic"), ("fasb", "fasb"), ("vcd", "vcd"), ("pai", "pai"), ("opera", "opera"),
):  # fmt: skip
    METHODS.add(_name, f"vlmsteer.methods.{_module}:METHOD")
METHODS.add("nl_iti", "vlmsteer.methods.iti:NL_ITI")

BENCHMARKS = Registry("benchmark")
for _name in (
    "pope", "chair", "amber", "mme", "mmhal", "hallusionbench", "mats", "naturalbench", "vlind", "vilp",
    "vlms_are_biased", "phd", "vcf", "truthfulqa",
):  # fmt: skip
    BENCHMARKS.add(_name, f"vlmsteer.bench.{_name}:BENCHMARK")
BENCHMARKS.add("amber-g", "vlmsteer.bench.amber:AMBER_G")
BENCHMARKS.add("amber-d", "vlmsteer.bench.amber:AMBER_D")
