"""`vlmsteer counterfacts`: making, building, checking and showing counterfactual pairs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vlmsteer.errors import InputError

app = typer.Typer(help="Counterfactual pictures: make one, build and check whole sets.", no_args_is_help=True)
out, err = Console(), Console(stderr=True)

Folder = Annotated[Path, typer.Argument(help="The folder of a set.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Score = Annotated[str, typer.Option(help="Whose agreement is asked: tiny-clip, an open_clip model, or '' for none.")]


@app.command()
def make(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    object: Annotated[str, typer.Option(help="What to change, as people call it.")],
    attribute: Annotated[str, typer.Option(help="color, size, presence, relation or texture.")] = "color",
    to: Annotated[str, typer.Option("--to", "--color", help="The new color (a name or #rrggbb) or pattern.")] = "",
    box: Annotated[str, typer.Option(help="Where it is: left,top,right,bottom in pixels.")] = "",
    strokes: Annotated[str, typer.Option(help="Dots on it: x,y,radius x,y,radius ...")] = "",
    by_color: Annotated[str, typer.Option(help="It is whatever has this color (in the box, if given).")] = "",
    mask: Annotated[Path | None, typer.Option(help="A picture of its mask.")] = None,
    sam2: Annotated[str, typer.Option(help="A SAM 2 checkpoint that finds it from the box or the strokes.")] = "",
    prior: Annotated[str, typer.Option(help="The usual answer, if the table does not know the object.")] = "",
    factor: Annotated[float, typer.Option(help="size: how many times as large.")] = 0.0,
    other: Annotated[str, typer.Option(help="size, relation: the other object's name.")] = "",
    other_box: Annotated[str, typer.Option(help="relation: where the other object is.")] = "",
    inpaint: Annotated[str, typer.Option(help="telea, navier-stokes, or an inpainting pipeline.")] = "telea",
    instruct: Annotated[str, typer.Option(help="An InstructPix2Pix pipeline that changes the color.")] = "",
    score: Score = "tiny-clip",
    seed: Annotated[int, typer.Option(help="Seed of a pipeline.")] = 0,
    folder: Annotated[Path, typer.Option("--out", help="Where the pair goes.")] = Path("runs/counterfact"),
    as_json: AsJson = False,
) -> None:
    """Make one counterfactual of a picture, check it, and write both with the mask."""
    from vlmsteer_counterfacts.build import record_of, scorer_of
    from vlmsteer_counterfacts.photos import edit
    from vlmsteer_counterfacts.record import add, slug

    dots = [_numbers(dot, 3, "--strokes", "x,y,radius") for dot in strokes.split()]
    where: dict[str, Any] = {
        "box": _box(box, "--box"), "strokes": dots, "color": by_color, "mask": str(mask) if mask else "",
        "sam2": sam2, "points": [dot[:2] for dot in dots] if sam2 else None,
    }  # fmt: skip
    given = {key: value for key, value in where.items() if value}
    draft = edit(
        image, object, attribute, to=to, prior=prior, factor=factor, other=other,
        other_box=_box(other_box, "--other-box"), inpaint=inpaint, instruct=instruct, seed=seed, **given,
    )  # fmt: skip
    record = record_of(draft, f"{attribute}-{slug(object)}-{slug(draft.pixel)}", scorer_of(score))
    add(record, folder)
    if as_json:
        print(json.dumps([dict(check) for check in record.checks], indent=1))
        return
    for check in record.checks:
        out.print(f"{'ok  ' if check['ok'] else 'NOT '} {check['says']}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"{'Accepted' if record.accepted else 'Rejected'}; the pictures are in {folder}.", markup=False)
    if not record.accepted:
        raise typer.Exit(1)


@app.command()
def build(
    config: Annotated[Path, typer.Argument(help="A TOML file; see datasets/README.md.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the set goes; a stopped run goes on there.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Build a set of pairs. The same configuration gives the same bytes, however often it was interrupted."""
    from vlmsteer_counterfacts.build import build as run
    from vlmsteer_counterfacts.config import load_config

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task("pairs", total=None)
        built = run(
            load_config(config), folder, workers, lambda done, all: progress.update(task, completed=done, total=all)
        )
    if as_json:
        print(json.dumps(asdict(built)))
    elif built.left:
        out.print(f"{built.left} chunks are left to other processes.")
    else:
        out.print(f"{built.accepted} pairs accepted, {built.rejected} rejected: {folder}", markup=False)


@app.command()
def check(folder: Folder, score: Score = "tiny-clip", as_json: AsJson = False) -> None:
    """Check every pair of a set again: its hashes, and everything that was checked when it was made."""
    from vlmsteer_counterfacts.audit import recheck
    from vlmsteer_counterfacts.build import scorer_of

    wrong = recheck(folder, scorer_of(score))
    if as_json:
        print(json.dumps({"pairs": wrong.pairs, "failed": wrong.failed}, indent=1, ensure_ascii=False))
    else:
        for name, reasons in wrong.failed.items():
            out.print(f"{name}: {' '.join(reasons)}", markup=False, highlight=False, soft_wrap=True)
        out.print(f"{wrong.pairs - len(wrong.failed)} of {wrong.pairs} pairs pass all checks.")
    if wrong.failed:
        raise typer.Exit(1)


@app.command()
def show(
    folder: Folder,
    image: Annotated[Path, typer.Option("--out", help="The picture to write.")] = Path("runs/pairs.png"),
    count: Annotated[int, typer.Option(min=1, max=200, help="How many pairs.")] = 24,
    rejected: Annotated[bool, typer.Option(help="The rejected pairs, with their reasons.")] = False,
) -> None:
    """Draw a contact sheet of a set."""
    from vlmsteer_counterfacts.pair_sheet import pair_sheet
    from vlmsteer_counterfacts.record import REJECTED

    sheet = pair_sheet(folder / REJECTED if rejected else folder, count)
    image.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(image)
    out.print(f"Written: {image}", markup=False)


@app.command()
def stats(folder: Folder, as_json: AsJson = False) -> None:
    """Count what is in a set, and why pairs were rejected."""
    from vlmsteer_counterfacts.audit import statistics

    numbers = statistics(folder)
    if as_json:
        print(json.dumps(numbers, indent=1, ensure_ascii=False))
        return
    table = Table("attribute", "made", "accepted", "objects", "answers in the pixels")
    for name, row in numbers["by_attribute"].items():
        table.add_row(name, str(row["made"]), str(row["accepted"]), str(row["objects"]), str(row["answers"]))
    out.print(table)
    for name, count in numbers["failed_checks"].items():
        out.print(f"{count} pairs failed the check {name!r}.")


@app.command()
def export(folder: Folder, target: Annotated[Path, typer.Option("--out", help="Receives data/*.parquet.")]) -> None:
    """Write a set in the parquet layout of Visual CounterFact."""
    from vlmsteer_counterfacts.dataset import save_pairs
    from vlmsteer_counterfacts.record import load_records

    for path in save_pairs(load_records(folder), target):
        out.print(f"Written: {path}", markup=False)


@app.command()
def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(help="owner/name on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option(help="Only you can see it.")] = False,
) -> None:
    """Upload a set to the Hugging Face hub; log in first with `hf auth login`."""
    from vlmsteer_counterfacts.audit import upload

    out.print(f"Uploaded: {upload(folder, repo, private)}", markup=False)


@app.command()
def priors(
    object: Annotated[str, typer.Argument(help="An object, as people call it.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose memory is asked.")] = "tiny-llava",
    as_json: AsJson = False,
) -> None:
    """Ask a model, without a picture, what color an object usually has; offer the five least likely as targets."""
    from vlmsteer.bench.priors import color_prior
    from vlmsteer.console import load

    found = color_prior(load(model), object)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    table = Table("color", f"probability, {model}")
    for name, value in found.probabilities.items():
        table.add_row(name, f"{100 * value:.1f} %")
    out.print(table)
    out.print(found.says, markup=False, highlight=False)
    out.print(f"Least likely, so good targets: {', '.join(found.targets)}.", markup=False, highlight=False)


def _numbers(text: str, count: int, option: str, form: str) -> list[float]:
    parts = re.split(r"[,\s]+", text.strip())
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise InputError(f"{option} is {form}, not {text!r}.")
    return numbers


def _box(text: str, option: str) -> list[int] | None:
    return [round(number) for number in _numbers(text, 4, option, "left,top,right,bottom")] if text else None
