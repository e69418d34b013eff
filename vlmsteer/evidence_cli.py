"""`vlmsteer evidence` and `pointing`: what in the image each word of an answer rests on, and how far to trust that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vlmsteer.console import AsJson, Model, Seed, load, out, print_json, working
from vlmsteer.errors import InputError

Method = Annotated[str, typer.Option(help="activation, attention or occlusion.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A recipe file: active while answering and reading.")]
Strength = Annotated[float, typer.Option(help="Multiplies the recipe's strengths.")]


def evidence(
    image: Annotated[str, typer.Argument(help="An image file.")],
    question: str,
    model: Model = "tiny-llava",
    method: Method = "activation",
    token: Annotated[str | None, typer.Option(help="Paint this token: its number, or a word of the answer.")] = None,
    answer: Annotated[str | None, typer.Option(help="What the model is taken to have said.")] = None,
    recipe: RecipeFile = None,
    strength: Strength = 1.0,
    path: Annotated[Path | None, typer.Option("--out", help="The PNG to paint the map into.")] = None,
    colormap: Annotated[str, typer.Option(help="A colormap of matplotlib.")] = "magma",
    as_json: AsJson = False,
) -> None:
    """Show what in the image each token of an answer rests on, and paint one map.

    Without --token, the painted map is the mean of all tokens' maps.
    """
    from vlmsteer.images import open_image
    from vlmsteer.lens.evidence import evidence as find

    if path is not None and (path.suffix.lower() != ".png" or not path.parent.is_dir()):
        raise InputError(f"{str(path)!r} must be a .png file in a folder that exists.")
    opened, loaded = open_image(image), _recipe(recipe, strength)
    session = load(model)
    with working(f"Looking for evidence by {method}"):
        found = find(session, opened, question, answer, loaded, method)
    chosen = int(token) if token is not None and token.isdecimal() else token
    found.at(chosen)
    if path is not None:
        found.paint(opened, chosen, colormap=colormap).save(path)
    if as_json:
        boxes = [None if any(edge != edge for edge in box) else box for box in found.boxes.tolist()]
        maps = [[None if value != value else value for value in row] for row in found.maps.tolist()]
        share = None if found.share is None else found.share.tolist()
        print_json({
            "method": method, "answer": found.answer, "tokens": found.tokens, "boxes": boxes, "maps": maps,
            "share": share, "peaks": [found.peak(i) for i in range(len(found.tokens))],
        })  # fmt: skip
        return
    out.print(_table(found))
    if path is not None:
        print(path)


def pointing(
    model: Model = "tiny-llava",
    method: Annotated[list[str] | None, typer.Option(help="One method; may be repeated. By default all.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Scenes of the drawn world.")] = 40,
    recipe: RecipeFile = None,
    strength: Strength = 1.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how often evidence for an object's color is largest inside that object, beside a random point."""
    from dataclasses import asdict

    from vlmsteer.bench.pointing import play, trials
    from vlmsteer.lens.evidence import METHODS, check_method
    from vlmsteer.report import percent

    names = list(dict.fromkeys(method or METHODS))
    for name in names:
        check_method(name)
    loaded = _recipe(recipe, strength)
    session = load(model)
    with working("Asking about scenes") as update:
        given, asked = trials(session, n, seed, loaded)
        found = {}
        for name in names:
            update(f"Pointing by {name}")
            found[name] = play(session, given, name, loaded)
    if as_json:
        print_json({"asked": asked, **{name: asdict(one) for name, one in found.items()}})
        return
    table = Table("evidence by", "in the object", "in the other object", "a random point", "scenes")
    for name, one in found.items():
        cells = [percent(part.as_dict()) for part in (one.hit, one.other)]
        table.add_row(name, *cells, f"{100 * one.chance:.0f} %", str(one.hit.n))
    out.print(table)
    print(f"Scenes count where the color is answered rightly: {len(given)} of {asked}.")


def _table(found: Any) -> Table:
    """One row a token: where its map is largest, and how much it attends to the image where that is known."""
    extra = [] if found.share is None else ["attention to the image"]
    table = Table("", "token", "largest at (right, down)", *extra)
    for i, token in enumerate(found.tokens):
        point = found.peak(i)
        place = "nowhere" if point is None else f"{100 * point[0]:.0f} %, {100 * point[1]:.0f} %"
        shares = [] if found.share is None else [f"{100 * found.share[i].mean():.0f} %"]
        table.add_row(str(i), token, place, *shares)
    return table


def _recipe(path: Path | None, strength: float) -> Any:
    from vlmsteer.recipe import Recipe

    return None if path is None else Recipe.load(path).scaled(strength)
