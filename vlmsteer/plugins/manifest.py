"""What the entry point group `lmms_eval.models` loads: which classes answer to `--model vlmsteer`.

The harness reads it in the middle of its own import, so nothing is imported here that could want the harness in turn.
"""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """One model name for lmms-eval, with chat messages and (`--force_simple`) without."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    simple, chat = "vlmsteer.plugins.lmms.Steered", "vlmsteer.plugins.lmms.SteeredChat"
    return [ModelManifest("vlmsteer", simple_class_path=simple, chat_class_path=chat)]
