"""`vlmsteer recipe`: looking into recipe files, combining them, and taking them elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vlmsteer.errors import InputError, did_you_mean

app = typer.Typer(help="Recipe files: show, add, scale, export.", no_args_is_help=True)
out = Console()
FORMATS = ("tensors", "gguf")
SHOWN = 300  # characters of a value

File = Annotated[Path, typer.Argument(help="A recipe file.")]
Out = Annotated[Path, typer.Option("--out", help="The recipe file to write.")]


@app.command()
def show(file: File, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What a recipe does to which sites, how strongly, and where it comes from."""
    from vlmsteer.recipe import Recipe

    recipe = Recipe.load(file)
    header = {"hash": recipe.hash, **recipe.header()}
    if as_json:
        print(json.dumps(header, indent=1, ensure_ascii=False))
        return
    if header["edits"]:
        table = Table("sites", "operation", "strength", "positions", "phase", "norms", "gate")
        for column in table.columns:
            column.overflow = "fold"
        for edit in header["edits"]:
            table.add_row(
                f"{edit['tower']}.{_runs(edit['layers'])}.{edit['point']}", edit["operation"], f"{edit['strength']:g}",
                _text(edit["positions"]), edit["phase"], _norms(edit), _gate(edit.get("gate")),
            )  # fmt: skip
        out.print(table)
    for rule in header.get("rules", []):
        settings = ", ".join(f"{name} {_text(value)}" for name, value in rule.get("settings", {}).items())
        _say(f"rule {rule['name']}, strength {rule['strength']:g}{': ' if settings else ''}{settings}")
    for title, values in (("made for", header["model"]), ("origin", header["about"])):
        for name, value in values.items():
            _say(f"{title}  {name}: {_text(value)[:SHOWN]}")
    _say(f"hash  {header['hash']}")


@app.command()
def add(
    first: Annotated[Path, typer.Argument(help="Acts first.")],
    second: Annotated[Path, typer.Argument(help="Acts on what the first one left.")],
    target: Out,
) -> None:
    """Chain two recipes made for one model: both act."""
    from vlmsteer.recipe import Recipe

    (Recipe.load(first) + Recipe.load(second)).save(target)
    _say(f"Written: {target}")


# Unknown options are left alone so that a negative factor passes for a number.
@app.command(context_settings={"ignore_unknown_options": True})
def scale(
    file: File,
    factor: Annotated[float, typer.Argument(help="Multiplies every strength; a negative one turns the recipe around.")],
    target: Out,
) -> None:
    """Make a recipe stronger, weaker or opposite."""
    from vlmsteer.recipe import Recipe

    Recipe.load(file).scaled(factor).save(target)
    _say(f"Written: {target}")


@app.command()
def export(
    file: File,
    to: Annotated[str, typer.Option("--to", help="tensors (plain safetensors) or gguf (llama.cpp control vector).")],
    target: Annotated[Path, typer.Option("--out", help="The .safetensors or .gguf file to write.")],
    hint: Annotated[str, typer.Option(help="gguf: llama.cpp's name of the model's architecture, such as llama.")] = "",
    without_layer_0: Annotated[
        bool, typer.Option(help="gguf: leave out layer 0, which llama.cpp cannot edit.")
    ] = False,
) -> None:
    """Write a recipe's vectors for other programs, and say what those will do differently."""
    from vlmsteer.export import to_gguf, to_tensors
    from vlmsteer.recipe import Recipe

    if to not in FORMATS:
        raise InputError(f"There is no format {to!r}{did_you_mean(to, FORMATS)}")
    recipe = Recipe.load(file)
    told = to_tensors(recipe, target) if to == "tensors" else to_gguf(recipe, target, hint, without_layer_0)
    for sentence in told:
        _say(sentence)
    _say(f"Written: {target}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A control vector, .gguf.")],
    target: Out,
    strength: Annotated[float, typer.Option(help="Multiplies the vectors.")] = 1.0,
) -> None:
    """Make a recipe of a llama.cpp or repeng control vector; it acts at every token, as there."""
    from vlmsteer.export import from_gguf
    from vlmsteer.recipe import Recipe

    Recipe.of(from_gguf(file), strength, positions="all").save(target)
    _say(f"Written: {target}")


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _runs(layers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _norms(edit: dict[str, Any]) -> str:
    norms = list((edit.get("norms") or {}).values())
    if not norms:
        return ""
    return f"{min(norms):.3g}" if min(norms) == max(norms) else f"{min(norms):.3g} to {max(norms):.3g}"


def _gate(gate: dict[str, Any] | None) -> str:
    if not gate:
        return ""
    return f"{gate.get('site')} {gate.get('score')} {gate.get('when')} {gate.get('threshold')}"
