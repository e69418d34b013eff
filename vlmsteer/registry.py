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


# transformers' model_type -> the family's declaration
FAMILIES = Registry("model family")
FAMILIES.add("llava", "vlmsteer.adapters.llava:LLAVA")
FAMILIES.add("llava_next", "vlmsteer.adapters.llava:LLAVA_NEXT")

# model name -> how `vlmsteer train` makes it
BUILDERS = Registry("bundled model")
BUILDERS.add("tiny-llava", "vlmsteer.training.tiny_llava:PLAN")

METHODS = Registry("method")
METHODS.add("pvp", "vlmsteer.methods.pvp:learn")
