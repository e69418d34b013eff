"""vlmsteer: read, explain and steer vision-language models at inference time.

session = vlmsteer.load("tiny-llava")
session.ask("strawberry.png", "What color is this strawberry?")
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "vlmsteer.loading:load",
    "Recipe": "vlmsteer.recipe:Recipe",
    "Edit": "vlmsteer.recipe:Edit",
    "Vectors": "vlmsteer.vectors:Vectors",
    "Session": "vlmsteer.session:Session",
    "Site": "vlmsteer.sites:Site",
    "VlmsteerError": "vlmsteer.errors:VlmsteerError",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'vlmsteer' has no attribute {name!r}")
    module, attribute = _LAZY[name].split(":")
    return getattr(importlib.import_module(module), attribute)
