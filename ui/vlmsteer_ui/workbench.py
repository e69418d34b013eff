"""What every handler works with: the models, the visitors' desks, the vectors and the saved runs of one server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmsteer_ui.desks import Desks
from vlmsteer_ui.gallery import Gallery
from vlmsteer_ui.residents import Residents
from vlmsteer_ui.runs import Runs


class Workbench:
    """One server's state.

    Args:
        names: models to offer beside the bundled ones; the first is the one that is open at first.
        folder: where vectors and runs are kept; everything in it can be seen by every visitor.
        options: how models are placed (`vlmsteer.load`).
    """

    def __init__(self, names: list[str], folder: Path, limit: int | None = None, **options: Any) -> None:
        self.folder = folder.resolve()
        self.residents = Residents(names, limit, **options)
        self.desks = Desks()
        self.vectors = Gallery(self.folder / "vectors")
        self.runs = Runs(self.folder / "saved")
