"""Layers."""

from __future__ import annotations

from vlmsteer_ui.page import Page
from vlmsteer_ui.workbench import Workbench

TITLE = "Layers"


def build(bench: Workbench, page: Page) -> None:
    """Fill the tab."""
