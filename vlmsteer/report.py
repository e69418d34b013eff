"""The demo's folder: report.json, report.md, figures and recipe files. Orange is the prior, blue the pixels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from vlmsteer.demo import DIRECTIONS, Result
from vlmsteer.errors import InputError

plt.switch_backend("Agg")

PRIOR, PIXEL, GRAY = "#d9730d", "#1f6fd1", "#8a8f98"
CELLS = {
    "real_this": "real picture, asked about this one",
    "real_most": "real picture, asked about most",
    "counterfactual_this": "counterfactual picture, asked about this one",
    "counterfactual_most": "counterfactual picture, asked about most",
}


def write_report(result: Result, folder: Path) -> dict[str, Any]:
    """Write the folder; report.json comes last, so that it names only what is there.

    Raises:
        InputError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recipes = {}
        for name, recipe in result.recipes.items():
            recipe.save(folder / f"{name}.safetensors")
            recipes[name] = {"path": f"{name}.safetensors", "hash": recipe.hash}
        report = {**result.report, "recipe": recipes["color_to_pixels"], "recipes": recipes}
        _curves(result, folder / "curves.png")
        _flips(result, folder / "flips.png")
        _sweeps(result, folder / "sweep.png")
        _before_after(result, folder / "before_after.png")
        result.example["counterfactual"].save(folder / "example.png")
        (folder / "report.md").write_text(markdown(report), encoding="utf-8")
        part = folder / "report.json.part"
        part.write_text(json.dumps(report, indent=1), encoding="utf-8")
        os.replace(part, folder / "report.json")
    except OSError as error:
        raise InputError(f"The report folder {str(folder)!r} cannot be written: {error.strerror}.") from error
    return report


def percent(value: dict[str, Any], key: str = "rate") -> str:
    """ "93.5 % [90.1, 96.0]", or a dash where nothing was measured."""
    if value[key] is None:
        return "–"
    low, high = value["interval"]
    return f"{100 * value[key]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def site(flip: dict[str, Any]) -> str:
    """ "text.2.block_out", or "text.2-4.block_out"."""
    first, last = flip["layers"][0], flip["layers"][-1]
    return f"text.{first if first == last else f'{first}-{last}'}.{flip['point']}"


def markdown(report: dict[str, Any]) -> str:
    """The report as a page of Markdown."""
    lines = [
        f"# Pixels versus priors in {report['model']}", "",
        f"{report['n']} test pairs for each attribute, of objects that the vectors were not learned on "
        f"({report['pairs']} pairs), seed {report['seed']}; 95 % intervals, bootstrap clustered by object. "
        f"{report['seconds']} s, peak memory {report['peak_memory_mb']} MB.", "",
        "## What it answers", "", "| | color | size |", "|---|---|---|",
    ]  # fmt: skip
    for key, words in CELLS.items():
        cells = [percent(report["cells"][attribute][key], "accuracy") for attribute in ("color", "size")]
        lines.append(f"| {words} | {cells[0]} | {cells[1]} |")
    lines += [
        "", "## What PvP flips", "",
        "Of the answers to counterfactual pictures that were not at the target, the share that is after steering. "
        "*Broken* is the share of right answers about real pictures that are no longer right. Both controls have the "
        "recipe's length in every layer; the random direction is one of five in turn.", "",
        "| | site | strength | flipped | random direction | shuffled pairs | broken | n |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for attribute, directions in report["flips"].items():
        for direction, flip in directions.items():
            lines.append(
                f"| {attribute} {direction.replace('_', ' ')} | {site(flip)} | {flip['strength']:g} | "
                f"{percent(flip)} | "
                f"{percent(flip['random'])} | {percent(flip['shuffled'])} | {percent(flip['broken'])} | {flip['n']} |"
            )
    lines += [
        "",
        "Vectors are read and written either at the block's output, as the paper does, or at attention's output, "
        "before the MLP; the table has what did better on validation pairs. As published, at the block's output:", "",
        "| | site | strength | flipped | broken | n |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for attribute, directions in report["flips"].items():
        for direction, flip in directions.items():
            form = flip["published_form"]
            lines.append(
                f"| {attribute} {direction.replace('_', ' ')} | {site(form)} | {form['strength']:g} | "
                f"{percent(form)} | {percent(form['broken'])} | {form['n']} |"
            )
    lines += ["", "![flips](flips.png)", "", "![sweep](sweep.png)", "", "## What each layer believes", ""]
    for attribute, layer in report["crossing_layer"].items():
        lines.append(
            f"* {attribute}: asked about this picture, "
            + (
                f"the pixels overtake the prior at layer {layer}."
                if layer is not None
                else "the pixels never overtake."
            )
        )
    lines += ["", "![curves](curves.png)", "", "![before and after](before_after.png)", "", "## Side effects", ""]
    for attribute, directions in report["side_effects"].items():
        for direction, effect in directions.items():
            kl = effect["kl_nats"]
            low, high = kl["interval"]
            bounds = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
            lines.append(
                f'* {attribute} {direction.replace("_", " ")}: "{effect["question"]}" moves by '
                f"{kl['rate']:.3f}{bounds} nats "
                f"(KL of the next token, n = {kl['n']})."
            )
    lines += ["", "## Made with", "", ", ".join(f"{name} {number}" for name, number in report["versions"].items()), ""]
    return "\n".join(lines)


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _curves(result: Result, path: Path) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(9, 6), sharey=True, sharex=True, layout="constrained")
    for row, (attribute, by_scope) in zip(panels, result.curves.items(), strict=True):
        for axes, (scope, found) in zip(row, by_scope.items(), strict=True):
            depth = np.arange(found.prior.shape[1])
            for values, color, label, style in (
                (found.prior, PRIOR, "prior", "--o"),
                (found.pixel, PIXEL, "pixel", "-s"),
            ):
                low, high = np.quantile(values, [0.25, 0.75], axis=0)
                axes.fill_between(depth, low, high, color=color, alpha=0.12, linewidth=0)
                axes.plot(depth, values.mean(0), style, color=color, label=label, markersize=4)
            crossing = found.crossing if scope == "this" else None
            if crossing is not None:
                axes.axvline(crossing, color=GRAY, linewidth=1, linestyle=":")
                axes.text(
                    crossing + 0.1, 1.0, f"pixels lead from layer {crossing}", fontsize=8, color="#4a4f57", va="top"
                )
            asked = "this picture" if scope == "this" else "most such objects"
            axes.set_title(f"{attribute}, asked about {asked}", fontsize=10)
            axes.set_ylim(0, 1.02)
            _clean(axes)
    for axes in panels[-1]:
        axes.set_xlabel("layer")
        axes.set_xticks(depth)
    for axes in panels[:, 0]:
        axes.set_ylabel("probability of the answer")
    panels[0, 0].legend(frameon=False, loc="center right")
    figure.suptitle(
        f"What {result.report['model']} believes at each layer (counterfactual pictures, mean and quartiles)"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _flips(result: Result, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    arms = (
        ("steered", "#2f3b52"),
        ("as published", "#7d8db0"),
        ("random direction", GRAY),
        ("shuffled pairs", "#c9ccd2"),
    )
    labels = []
    for group, (attribute, direction) in enumerate((a, d) for a in result.report["flips"] for d in DIRECTIONS):
        flip = result.report["flips"][attribute][direction]
        labels.append(f"{attribute}\n{direction.replace('_', ' ')}")
        for offset, ((name, color), value) in enumerate(
            zip(arms, (flip, flip["published_form"], flip["random"], flip["shuffled"]), strict=True)
        ):
            if value["rate"] is None:
                continue
            x, rate, (low, high) = group + 0.21 * (offset - 1.5), value["rate"], value["interval"]
            axes.bar(x, rate, 0.19, color=color, label=name if group == 0 else None)
            axes.errorbar(x, rate, [[max(0, rate - low)], [max(0, high - rate)]], color="black", linewidth=1, capsize=2)
            axes.text(x, min(1.0, high) + 0.02, f"{100 * rate:.0f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, 1.14)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"])
    axes.set_ylabel("answers flipped to the target")
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    _clean(axes)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _sweeps(result: Result, path: Path) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for row, (attribute, by_direction) in zip(panels, result.sweeps.items(), strict=True):
        for axes, (direction, choice) in zip(row, by_direction.items(), strict=True):
            spans = sorted(
                {(first, last) for first, last, *_ in choice.sweep}, key=lambda span: (span[1] - span[0], span)
            )
            strengths = sorted({strength for *_, strength, _ in choice.sweep})
            table = np.zeros((len(strengths), len(spans)))
            for first, last, strength, value in choice.sweep:
                table[strengths.index(strength), spans.index((first, last))] = value
            shown = axes.imshow(table, vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower")
            spot = (spans.index((choice.layers[0], choice.layers[-1])), strengths.index(choice.strength))
            axes.plot(*spot, "o", markersize=9, markerfacecolor="none", markeredgecolor=PRIOR, markeredgewidth=2)
            axes.set_title(f"{attribute} {direction.replace('_', ' ')}, {choice.point}", fontsize=10)
            axes.set_yticks(range(len(strengths)), [f"{strength:g}" for strength in strengths])
            axes.set_xticks(
                range(len(spans)), [f"{a}-{b}" if a != b else str(a) for a, b in spans], rotation=90, fontsize=7
            )
    for axes in panels[:, 0]:
        axes.set_ylabel("strength")
    for axes in panels[-1]:
        axes.set_xlabel("layers")
    figure.colorbar(shown, ax=panels, label="flipped to the target", shrink=0.6)
    figure.suptitle("Sweep on validation pairs; the circle is what was chosen")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _before_after(result: Result, path: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.6), width_ratios=(1, 1, 1.7), layout="constrained")
    for axes, which in zip(panels, ("original", "counterfactual"), strict=False):
        axes.imshow(result.example[which])
        axes.set_title("usual" if which == "original" else which, fontsize=10)
        axes.axis("off")
    panels[2].axis("off")
    y = 0.95
    for row in result.example["rows"]:
        color = PIXEL if row["direction"] == "to_pixels" else PRIOR
        panels[2].text(0, y, row["question"], fontsize=9, va="top")
        panels[2].text(0.03, y - 0.12, f"before   {row['baseline']}", fontsize=11, va="top", color="#4a4f57")
        panels[2].text(
            0.03,
            y - 0.25,
            f"steered {row['direction'].replace('_', ' ')}   {row['steered']}",
            fontsize=11,
            va="top",
            color=color,
        )
        y -= 0.5
    figure.savefig(path, dpi=130)
    plt.close(figure)
