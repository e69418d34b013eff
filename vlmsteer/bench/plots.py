"""What changed, as pictures: each arm with its interval, random directions in gray; a metric over strengths."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from vlmsteer.bench.tables import MAIN, lines, number

STEERED, BIAS, GRAY, INK = "#1f6fd1", "#d9730d", "#8a8f98", "#4a4f57"
WORDS = 42  # longer names of arms are cut in a plot


def draw(found: dict[str, Any]) -> dict[str, bytes]:
    """PNG files by name: changes-TASK.png, and strength-TASK.png where an arm has several strengths.

    Args:
        found: what `summary.summarize` returns.
    """
    pictures = {}
    for task, about in found["tasks"].items():
        scored = next(iter(about["scorers"].values()), None)
        if scored is None:
            continue
        if any(row.get("change") for row in scored["arms"].values()):
            pictures[f"changes-{task}.png"] = _changes(about, scored)
        swept = {name: arms for name, arms in _families(about).items() if len(arms) > 1}
        if swept:
            pictures[f"strength-{task}.png"] = _strengths(about, scored, swept, found["baseline"])
    return pictures


def _changes(about: dict[str, Any], scored: dict[str, Any]) -> bytes:
    metrics = scored["metrics"][:MAIN]
    rows = [(name, row, control) for _, name, row, control in lines(about, scored) if row.get("change")]
    figure, panels = _figure(1, len(metrics), 2.3 * len(metrics) + 2.6, 0.3 * len(rows) + 1.5, sharey=True)
    for axes, metric in zip(panels[0], metrics, strict=True):
        unit = scored["units"][metric]
        scale = 100 if unit == "share" else 1
        axes.axvline(0, color=GRAY, linewidth=0.8)
        for y, (name, row, control) in enumerate(rows):
            rate = row["change"].get(metric)
            if rate is None or rate["rate"] is None:
                continue
            color = STEERED if not control else BIAS if name == "yes bias" else GRAY
            low, high = (math.nan if bound is None else scale * bound for bound in rate["interval"])
            axes.plot([low, high], [y, y], color=color, linewidth=2 if not control else 1.2, solid_capstyle="round")
            axes.plot(scale * rate["rate"], y, "o" if not control else "D", color=color, markersize=6 - 2 * control)
        better = {1: "more is better", -1: "less is better"}.get(scored["wanted"][metric], "")
        axes.set_title(_plain(metric) + (f"\n{better}" if better else ""), fontsize=9)
        axes.set_xlabel("change" if unit == "number" else "change, points", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.margins(x=0.12)
    first = panels[0][0]
    first.set_yticks(range(len(rows)), [_short(name) for name, *_ in rows], fontsize=8)
    for label, (_, _, control) in zip(first.get_yticklabels(), rows, strict=True):
        label.set_color(GRAY if control else "black")
    first.set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(f"{_plain(about['title'])}: change from the baseline, 95 % intervals", fontsize=10)
    return _png(figure)


def _strengths(
    about: dict[str, Any], scored: dict[str, Any], swept: dict[str, list[str]], baseline: str | None
) -> bytes:
    metrics = scored["metrics"][:MAIN]
    figure, panels = _figure(1, len(metrics), 2.7 * len(metrics) + 1.2, 3.1)
    colors = (STEERED, "#2a8a5a", "#8a4fc2", "#b3364a", "#0e8fa3", "#7a6a12")
    for axes, metric in zip(panels[0], metrics, strict=True):
        unit = scored["units"][metric]
        scale = 100 if unit == "share" else 1
        start = scored["arms"][baseline]["values"].get(metric) if baseline in scored["arms"] else None
        if start and start["rate"] is not None:
            axes.axhline(scale * start["rate"], color=INK, linewidth=0.9, linestyle=":")
            text = f"baseline {number(start['rate'], unit)}"
            axes.annotate(text, (1, scale * start["rate"]), xycoords=("axes fraction", "data"), xytext=(0, 2),
                          textcoords="offset points", ha="right", fontsize=7, color=INK)  # fmt: skip
        for number_, (name, arms) in enumerate(swept.items()):
            x = [about["arms"][arm]["strength"] for arm in arms]
            _line(axes, x, [scored["arms"][arm] for arm in arms], metric, scale, colors[number_ % len(colors)], name)
            random = [scored["arms"][arm].get("random") for arm in arms]
            label = "random directions" if number_ == 0 else None
            kept = [(at, row) for at, row in zip(x, random, strict=True) if row]
            _line(axes, [at for at, _ in kept], [row for _, row in kept], metric, scale, GRAY, label, "--")
        axes.set_title(_plain(metric) + ("" if unit == "number" else " %"), fontsize=9)
        axes.set_xlabel("strength", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.12)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=min(4, len(labels)))
    figure.suptitle(_plain(about["title"]), fontsize=10)
    return _png(figure)


def _line(
    axes: Any, x: Sequence[float], rows: Sequence[dict[str, Any]], metric: str, scale: float, color: str,
    label: str | None, style: str = "-o",
) -> None:  # fmt: skip
    points = [(at, row["values"][metric]) for at, row in zip(x, rows, strict=True) if row["values"].get(metric)]
    points = [(at, rate) for at, rate in points if rate["rate"] is not None]
    if not points:
        return
    at = [one for one, _ in points]
    bounds = [[math.nan if b is None else scale * b for b in rate["interval"]] for _, rate in points]
    axes.fill_between(
        at, [low for low, _ in bounds], [high for _, high in bounds], color=color, alpha=0.12, linewidth=0
    )
    axes.plot(
        at,
        [scale * rate["rate"] for _, rate in points],
        style,
        color=color,
        label=label and _plain(label),
        markersize=4,
    )


def _families(about: dict[str, Any]) -> dict[str, list[str]]:
    """Arms that are one recipe at several strengths ("vista x0.5", "vista"), by strength."""
    found: dict[str, list[str]] = {}
    for name, arm in about["arms"].items():
        if arm["kind"] == "recipe":
            found.setdefault(re.sub(r" x[-\d.e+]+$", "", name), []).append(name)
    return {name: sorted(arms, key=lambda arm: about["arms"][arm]["strength"]) for name, arms in found.items()}


def _short(name: str) -> str:
    return _plain(name if len(name) <= WORDS else name[: WORDS - 1] + "…")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # two dollar signs would be read as a formula


def _figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    out = io.BytesIO()
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)
    return out.getvalue()
