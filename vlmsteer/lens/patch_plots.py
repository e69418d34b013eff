"""Maps of patching as pictures: layers by tokens, and layer by layer over the image. Orange moves towards the donor."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.lens.patch_map import PatchMap

COLORS = "PuOr_r"  # told apart by color-blind readers; white is no effect
PANELS = 12  # at most so many layers over the image
SAYS = {"denoise": "clean states into the corrupted run", "noise": "corrupted states into the clean run"}
METRIC = {
    "logit_difference": "logit difference", "probability": "probability", "log_probability": "log-probability",
    "kl": "KL divergence",
}  # fmt: skip


def heat_map(found: PatchMap) -> bytes:
    """PNG of layers by tokens; the image's tokens are one column, which has the largest of them."""
    values, labels = _columns(found)
    columns, rows = len(labels), len(found.layers)
    figure, axes = _figure(max(5.0, 0.34 * columns + 2.4), max(2.8, 0.26 * rows + 1.9))
    shown = axes.imshow(values, cmap=COLORS, aspect="auto", origin="lower", **_limits(values))
    axes.set_xticks(range(columns), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    step = max(1, rows // 16)
    axes.set_yticks(range(0, rows, step), [str(layer) for layer in found.layers[::step]], fontsize=8)
    axes.set_ylabel("layer", fontsize=9)
    axes.tick_params(length=0)
    if columns * rows <= 400:
        _write(axes, values)
    axes.spines[:].set_visible(False)
    axes.set_title(_title(found), fontsize=9, loc="left")
    _bar(figure, axes, shown, found)
    return _png(figure)


def over_image(found: PatchMap, image: Image.Image, boxes: Tensor) -> bytes:
    """PNG with a panel a layer, each image token's cell colored over the picture.

    Args:
        image: the recipient's.
        boxes: (image tokens, 4), `session.boxes` of it.

    Raises:
        SiteError: if no image token was patched by itself.
        InputError: if the boxes are not those of the map's tokens.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    grids = [found.grid(layer) for layer in found.layers]
    if max(grids[0]) >= len(boxes):
        raise InputError(f"The map has an image token {max(grids[0])}, but the image has {len(boxes)}.")
    chosen = sorted({round(i) for i in np.linspace(0, len(grids) - 1, min(PANELS, len(grids)))})
    across = min(4, len(chosen))
    down = -(-len(chosen) // across)
    width, height = image.size
    figure, panels = _figure(2.0 * across + 1.0, 2.1 * down * height / width + 0.9, down, across)
    limits = _limits(np.array([list(grid.values()) for grid in grids]))
    colors = plt.get_cmap(COLORS)
    scale = Normalize(**limits)
    for panel, axes in enumerate(panels.flat):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#d0d0d0")
        axes.set_visible(panel < len(chosen))
        if panel >= len(chosen):
            continue
        axes.imshow(np.asarray(image.convert("L")), cmap="gray", vmin=-60, vmax=255)
        for cell, value in grids[chosen[panel]].items():
            left, top, right, bottom = (
                float(edge) * size for edge, size in zip(boxes[cell], (width, height) * 2, strict=True)
            )
            if left == left:  # a token that ends a row shows no part of the image
                alpha = 0.25 + 0.6 * abs(value) / limits["vmax"] if value == value else 0.0
                axes.add_patch(
                    Rectangle((left, top), right - left, bottom - top, color=colors(scale(value)), alpha=min(1, alpha),
                              linewidth=0)
                )  # fmt: skip
        axes.set_title(f"layer {found.layers[chosen[panel]]}", fontsize=9)
    figure.suptitle(_title(found), fontsize=9, x=0.02, ha="left")
    _bar(figure, panels, plt.cm.ScalarMappable(scale, COLORS), found)
    return _png(figure)


def _columns(found: PatchMap) -> tuple[np.ndarray, list[str]]:
    """(layers, columns) and the columns' labels."""
    share = found.by_position
    image = [i for i, cell in enumerate(found.cells) if cell >= 0]
    columns, labels = [], []
    for i, token in enumerate(found.tokens):
        if image and i == image[0] and len(image) > 1:
            part = np.nan_to_num(share[:, image])
            columns.append(np.take_along_axis(part, np.abs(part).argmax(1)[:, None], 1)[:, 0])
            labels.append(f"image, largest of {len(image)}")
        elif i not in image or len(image) == 1:
            columns.append(share[:, i])
            labels.append(_plain(token))
    return np.stack(columns, 1), labels


def _write(axes: Any, values: np.ndarray) -> None:
    """The numbers that matter, in their cells."""
    most = np.nanmax(np.abs(values), initial=0)
    for (row, column), value in np.ndenumerate(values):
        if most and abs(value) >= max(0.05, 0.1 * most):
            dark = abs(value) > 0.6 * most
            axes.text(column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center", fontsize=6,
                      color="white" if dark else "black")  # fmt: skip


def _limits(values: np.ndarray) -> dict[str, Any]:
    most = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    return {"vmin": -most, "vmax": most}


def _title(found: PatchMap) -> str:
    pairs = f", mean of {found.pairs} pairs" if found.pairs > 1 else ""
    return f"{found.point}: {SAYS[found.direction]}{pairs}\n{METRIC[found.metric]}, {found.method}"


def _bar(figure: Any, axes: Any, shown: Any, found: PatchMap) -> None:
    bar = figure.colorbar(shown, ax=axes, shrink=0.9, pad=0.02, aspect=25)
    bar.set_label("recovered" if found.direction == "denoise" else "lost", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _plain(text: str) -> str:
    return (text if len(text) <= 14 else text[:13] + "…").replace("$", r"\$")


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    grid = rows * columns > 1
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=not grid)


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    out = io.BytesIO()
    figure.savefig(out, dpi=150, format="png")
    plt.close(figure)
    return out.getvalue()
