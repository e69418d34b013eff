"""A run's folder: results.json, report.md, a figure of the effects beside the random sets', a video of one pair."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from vlmsteer.bench.tables import certain
from vlmsteer.errors import InputError
from vlmsteer_robotics.arms import Arm
from vlmsteer_robotics.effects import Rated
from vlmsteer_robotics.metrics import METRICS, Metric
from vlmsteer_robotics.rollouts import Setting, played
from vlmsteer_robotics.video import film, save_gif, save_mp4, side_by_side

plt.switch_backend("Agg")

SIDE = 360  # pixels of each half of the video
SHOWN = ("displacement", "mean_height", "max_height", "drift", "success", "right_block", "other_tokens")
DRAWN = ("displacement", "mean_height", "drift", "success")
COLORS = {"recipe": "#1f6fd1", "hold": "#2a8a5a", "prompt": "#d9730d"}
GRAY = "#8a8f98"
LEAST = 20  # random sets; of fewer, bounds of 95 % say nothing
LEGEND = (
    "In brackets the change from the same seeds without a recipe, with its 95 % interval (paired bootstrap over "
    "seeds); bold if the interval excludes zero. Random sets are as many other neurons of the same layers, which move "
    "the residual stream as far (for other recipes: random directions of the same lengths): the mean of their changes, "
    "and in brackets what 95 % of the sets lie between; a dagger marks where the recipe lies outside, of 20 sets or "
    "more. *said* is the instruction with the word in it, and no recipe."
)


def write(
    folder: Path, title: str, setting: Setting, found: dict[str, Any], more: dict[str, Any], video: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write the report's files; results.json comes last, so that it names only what is there.

    Args:
        found: of `effects.summarize`.
        more: what results.json holds besides.
        video: files that are there already.

    Raises:
        InputError: if the folder cannot be written.
    """
    report = {
        "title": title, "task": setting.task, "split": setting.split, "distractors": setting.distractors, **more,
        "video": [path.name for path in video], "arms": found,
    }  # fmt: skip
    try:
        figure = draw(found, title)
        if figure is not None:
            figure.savefig(folder / "effects.png", dpi=130)
            plt.close(figure)
        (folder / "report.md").write_text(markdown(report, figure is not None), encoding="utf-8")
        part = folder / "results.json.part"
        part.write_text(json.dumps(report, indent=1), encoding="utf-8")
        os.replace(part, folder / "results.json")
    except OSError as error:
        raise InputError(f"The report in {str(folder)!r} cannot be written: {error.strerror}.") from error
    return report


def markdown(report: dict[str, Any], figure: bool) -> str:
    """The report as a page of Markdown."""
    lines = [f"# {report['title']}", "", table(report["arms"]), "", LEGEND, ""]
    if figure:
        lines += ["![effects](effects.png)", ""]
    moving = next((name for name in report["video"] if name.endswith(".gif")), None)
    if moving:
        lines += [f"Left without, right with the recipe, seed {report['video_seed']}:", "", f"![pair]({moving})", ""]
    for name, about in report["arms"].items():
        for said, against in about.get("against", {}).items():
            changes = ", ".join(
                f"{METRICS[metric].words} {_change(against[metric], METRICS[metric])}" for metric in DRAWN
            )
            lines.append(f"* {name}, compared with {said}: {changes}.")
    return "\n".join([*lines, ""])


def table(found: dict[str, Any]) -> str:
    """The arms as a Markdown table, each with its random sets beneath."""
    heads = [METRICS[name].words + (f", {METRICS[name].unit}" if METRICS[name].unit else "") for name in SHOWN]
    rows = [["", *heads, "n", "errors"], ["---", *["---:"] * (len(heads) + 2)]]
    for name, about in found.items():
        if about["kind"] == "random":
            continue
        sets = about.get("random", {})
        enough = sets.get("sets", 0) >= LEAST
        cells = [_cell(about, metric, bool(enough and sets[metric] and sets[metric]["beyond"])) for metric in SHOWN]
        title = f"{name} (baseline)" if about["kind"] == "baseline" else name
        rows.append([title, *cells, str(about["n"]), str(about["errors"])])
        if sets:
            rows.append(
                [f"↳ {sets['sets']} random sets", *(_sets(sets[metric], METRICS[metric]) for metric in SHOWN), "", ""]
            )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(found: dict[str, Any], title: str) -> Any:
    """A figure of the changes: an arm a row with its interval, its random sets as gray dots; None without changes."""
    rows = [(name, about) for name, about in found.items() if about["kind"] in COLORS]
    if not rows:
        return None
    size = (2.6 * len(DRAWN) + 1.4, 0.5 * len(rows) + 1.7)
    figure, panels = plt.subplots(1, len(DRAWN), figsize=size, sharey=True, layout="constrained")
    for axes, metric in zip(panels, DRAWN, strict=True):
        about = METRICS[metric]
        axes.axvline(0, color=GRAY, linewidth=0.8)
        for y, (_, arm) in enumerate(rows):
            sets = arm.get("random", {}).get(metric)
            if sets:
                axes.plot([about.factor * one for one in sets["changes"]], [y + 0.22] * len(sets["changes"]), "o",
                          color=GRAY, markersize=3, alpha=0.6)  # fmt: skip
                axes.plot([about.factor * one for one in sets["bounds"]], [y + 0.22] * 2, color=GRAY, linewidth=0.8)
            rate = arm["change"][metric]
            if rate["rate"] is None:
                continue
            if None not in rate["interval"]:
                axes.plot(
                    [about.factor * one for one in rate["interval"]], [y, y], color=COLORS[arm["kind"]], linewidth=2
                )
            axes.plot(about.factor * rate["rate"], y, "o", color=COLORS[arm["kind"]], markersize=6)
        axes.set_title(about.words, fontsize=9)
        axes.set_xlabel(f"change, {'points' if about.unit == '%' else about.unit}", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.margins(x=0.12)
    panels[0].set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(f"{title}: change from the baseline, 95 % intervals; gray: random sets", fontsize=10)
    return figure


def pair_video(
    folder: Path, setting: Setting, before: dict[str, Any], after: dict[str, Any], arm: Arm, renderer: str = "auto"
) -> list[Path]:
    """The same seed without and with a recipe, beside each other: pair.gif, and pair.mp4 where PyAV is installed.

    Args:
        before, after: rows of `rollouts.run`.
        arm: of the second.
    """
    frames = []
    for row in (before, after):
        env = setting.env(pictures=False)
        _, positions = played(env, row)
        frames.append(film(env.model, positions, SIDE, renderer))
    turned = f"{arm.name}: strength {arm.strength:g}" if arm.hold is None else f"{arm.name}: strength as needed"
    captions = (f"baseline: {before['instruction']}", turned)
    joined = side_by_side(frames[0], frames[1], captions)
    made = [save_gif(folder / "pair.gif", joined[::2], fps=10)]
    return [*made, save_mp4(folder / "pair.mp4", joined)] if find_spec("av") else made


def _cell(about: dict[str, Any], metric: str, beyond: bool) -> str:
    value, change = about["values"][metric]["rate"], about.get("change", {}).get(metric)
    if value is None:
        return "–"
    text = f"{METRICS[metric].factor * value:.{METRICS[metric].digits}f}"
    if change is None:
        return text
    text = f"{text} ({_change(change, METRICS[metric])})" + " †" * beyond
    return f"**{text}**" if certain(change) else text


def _change(rate: Rated, about: Metric) -> str:
    """ "+1.3 [0.2, 2.4]"."""
    if rate["rate"] is None:
        return "–"
    return f"{_signed(rate['rate'], about)}{_bounds(rate['interval'], about)}"


def _sets(sets: dict[str, Any] | None, about: Metric) -> str:
    return "" if sets is None else f"{_signed(sets['mean'], about)}{_bounds(sets['bounds'], about)}"


def _signed(value: float, about: Metric) -> str:
    return f"{round(about.factor * value, about.digits) + 0.0:+.{about.digits}f}"


def _bounds(bounds: Sequence[float | None], about: Metric) -> str:
    known = [one for one in bounds if one is not None]
    if len(known) < 2:
        return ""
    return " [" + ", ".join(f"{about.factor * one:.{about.digits}f}" for one in known) + "]"
