"""`vlmsteer patch`: which states carry an answer over, between two images, two questions, or many pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vlmsteer.console import AsJson, Model, Seed, layers_in, load, out, print_json, working, writable
from vlmsteer.errors import InputError, did_you_mean

Given = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CLEAN CORRUPTED QUESTION]", help="Two image files and a question; none with --pairs."),
]


def patch(
    given: Given = None,
    clean_answer: Annotated[str | None, typer.Option(help="What is right in the clean run.")] = None,
    corrupted_answer: Annotated[str | None, typer.Option(help="What is right in the corrupted run.")] = None,
    question2: Annotated[
        str | None, typer.Option(help="The corrupted run's question; then give one image and the clean question.")
    ] = None,
    points: Annotated[
        list[str] | None, typer.Option(help="block_out (default), block_in, attn_out, head, mlp_out, neuron, norm_out.")
    ] = None,
    method: Annotated[str, typer.Option(help="exact, attribution, atp or relp.")] = "exact",
    direction: Annotated[
        str, typer.Option(help="denoise: clean states into the corrupted run; noise: the other way.")
    ] = "denoise",
    metric: Annotated[str, typer.Option(help="logit_difference, probability, log_probability or kl.")] = (
        "logit_difference"
    ),
    positions: Annotated[str, typer.Option(help="all, image, question, last, or indices such as 3,4,-1.")] = "all",
    layers: Annotated[str | None, typer.Option(help="Such as 2 or 14-16; by default all.")] = None,
    pairs: Annotated[int, typer.Option(min=0, help="In place of files: the mean over so many pairs.")] = 0,
    data: Annotated[str, typer.Option(help="Of --pairs: 'drawn', a folder, or a hub dataset.")] = "drawn",
    attribute: Annotated[str, typer.Option(help="Of --pairs: color or size.")] = "color",
    folder: Annotated[Path | None, typer.Option("--out", help="Write figures and JSON there.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many sites are printed.")] = 10,
    model: Model = "tiny-llava",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Put states of one run into another, site by site, and see which carry the answer over."""
    from vlmsteer.lens.patch import METHODS

    if method not in METHODS:
        raise InputError(f"There is no method {method!r}{did_you_mean(method, METHODS)}")
    options = {
        "positions": _positions(positions), "layers": None if layers is None else layers_in(layers),
        "measure": metric, "direction": direction,
    }  # fmt: skip
    runs = None if pairs else _runs(given or [], question2)
    if runs is not None and not (clean_answer and corrupted_answer):
        raise InputError("Give --clean-answer and --corrupted-answer, one word each, or --pairs N for drawn pairs.")
    if pairs and (given or question2 or clean_answer or corrupted_answer):
        raise InputError("With --pairs, images, questions and answers come with the pairs; leave them out.")
    if folder is not None:
        writable(folder)
    session = load(model)
    reports = []
    for point in points or ["block_out"]:
        one = {**options, "point": point}
        if runs is None:
            report = _of_pairs(session, pairs, data, attribute, method, seed, one, folder, top)
        else:
            answers = (str(clean_answer), str(corrupted_answer))
            report = _of_runs(session, runs, answers, method, one, folder, top)
        reports.append(report)
        if not as_json:
            _print(report)
    if as_json:
        print_json(reports)
    elif folder is not None:
        out.print(f"\nMaps and figures: {folder}", markup=False)


def _of_runs(
    session: Any, runs: list[tuple[Any, str]], answers: tuple[str, str], method: str, options: dict[str, Any],
    folder: Path | None, top: int,
) -> dict[str, Any]:  # fmt: skip
    from vlmsteer.lens.patch import patch as run

    with working(f"Patching {options['point']}"):
        found = run(session, runs[0], runs[1], answers, method=method, **options)
    recipient = runs[1 if found.direction == "denoise" else 0][0]
    if folder is not None:
        found.save(folder / f"{found.point}-{method}.json")
    _draw(session, found, recipient, folder)
    return _report(found, found.strongest(top))


def _of_pairs(
    session: Any, count: int, data: str, attribute: str, method: str, seed: int, options: dict[str, Any],
    folder: Path | None, top: int,
) -> dict[str, Any]:  # fmt: skip
    from vlmsteer.bench.pairs import select
    from vlmsteer.bench.patching import patch_pairs
    from vlmsteer.demo import question

    chosen = select(data, attribute, "test", count, seed)
    with working(f"Patching {options['point']} in {len(chosen)} pairs") as update:
        asked = [question(pair, "this") for pair in chosen]
        found = patch_pairs(session, chosen, asked, [method], update, seed, **options)[method]
    if folder is not None:
        text = json.dumps(found.as_dict(), ensure_ascii=False, indent=1)
        (folder / f"{found.map.point}-{method}.json").write_text(text, encoding="utf-8")
    _draw(session, found.map, None, folder)
    rows = found.map.strongest(top)
    for row in rows:
        place = tuple(row["index"])
        row["interval"] = [None if math.isnan(b[place]) else float(b[place]) for b in (found.low, found.high)]
    more = {"n": len(found.used), "asked": found.asked, "objects": len({pair.object for pair in found.used})}
    return {**_report(found.map, rows), **more}


def _report(found: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "point": found.point, "method": found.method, "metric": found.metric, "direction": found.direction,
        "clean": found.clean, "corrupted": found.corrupted, "strongest": rows,
    }  # fmt: skip


def _draw(session: Any, found: Any, image: Any, folder: Path | None) -> None:
    if folder is None:
        return
    from PIL import Image

    from vlmsteer.lens.patch_plots import heat_map, over_image

    name = f"{found.point}-{found.method}"
    (folder / f"{name}.png").write_bytes(heat_map(found))
    if max(found.cells) >= 0 and session.family.boxes is not None:
        blank = Image.new("RGB", (84, 84), "white") if image is None else image
        (folder / f"{name}-image.png").write_bytes(over_image(found, blank, session.boxes(blank)))


def _print(report: dict[str, Any]) -> None:
    moved = "recovered" if report["direction"] == "denoise" else "lost"
    units = [name for name in ("head", "unit") if name in report["strongest"][0]]
    intervals = "interval" in report["strongest"][0]
    table = Table("site", "token", *units, "effect", moved, *(["95 %"] if intervals else []))
    for row in report["strongest"]:
        token = f"image {row['image_token']}" if "image_token" in row else f"{row['token']} ({row['positions'][0]})"
        cells = [
            row["site"],
            token,
            *(str(row[name]) for name in units),
            f"{row['effect']:+.3f}",
            _percent(row["share"]),
        ]
        if intervals:
            cells.append(" to ".join(_percent(bound) for bound in row["interval"]))
        table.add_row(*cells)
    out.print(table)
    n = f"; {report['n']} of {report['asked']} pairs, {report['objects']} objects" if "n" in report else ""
    out.print(
        f"{report['metric']}: clean {report['clean']:.3f}, corrupted {report['corrupted']:.3f} "
        f"({report['method']}, {report['direction']}{n})",
        markup=False, highlight=False,
    )  # fmt: skip


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _positions(text: str) -> str | list[int]:
    parts = text.split(",")
    if not all(part.strip().lstrip("-").isdigit() for part in parts):
        return text
    return [int(part) for part in parts]


def _runs(given: list[str], question2: str | None) -> list[tuple[Any, str]]:
    from vlmsteer.images import open_image

    if question2 is not None:
        if len(given) != 2:
            raise InputError("With --question2, give one image and the clean run's question.")
        image = open_image(given[0])
        return [(image, given[1]), (image, question2)]
    if len(given) != 3:
        raise InputError(
            "Give the clean image, the corrupted image and a question; or an image, a question and --question2; or "
            "--pairs N."
        )
    return [(open_image(given[0]), given[2]), (open_image(given[1]), given[2])]
