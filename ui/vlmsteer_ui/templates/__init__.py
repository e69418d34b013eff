"""HTML with Handlebars and scripts for `gr.HTML`, a file each. Only `{{value}}`, which escapes, never `${value}`."""

from __future__ import annotations

from pathlib import Path


def read(name: str) -> str:
    """A template by its file's name."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
