"""A Hugging Face hub that cannot be reached, and datasets in its cache as its own client leaves them there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """As HF_HUB_OFFLINE=1 and HF_HUB_CACHE would have it, which the client reads when it is imported."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def cached(cache: Path, dataset: str, files: Mapping[str, bytes], commit: str = COMMIT) -> Path:
    """Put a dataset's files into a cache: their contents once, a snapshot of links, and what main is."""
    root = cache / f"datasets--{dataset.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = root / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root / "snapshots" / commit
