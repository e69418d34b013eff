"""The command line: one function a command. Errors the user can act on end with one sentence and exit code 2."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from vlmsteer import evidence_cli, methods_cli, patch_cli, score_cli
from vlmsteer.bench_cli import app as bench_app
from vlmsteer.console import (
    AsJson,
    Model,
    Seed,
    err,
    layers_in,
    load,
    out,
    placement,
    print_json,
    recipe_file,
    working,
    writable,
)
from vlmsteer.counterfacts_cli import app as counterfacts_app
from vlmsteer.errors import InputError, VlmsteerError
from vlmsteer.recipe_cli import app as recipe_app

ROBOT = "Robot policies in simulation: rollouts, sweeps, and the neurons that steer them."


class Robot(TyperGroup):
    """Commands of the package that is installed with the extra `robotics`, read when one is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return self._real.list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._real.get_command(ctx, cmd_name)

    @property
    def _real(self) -> Any:
        return typer.main.get_command(import_module("vlmsteer_robotics.robot_cli").app)


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
pvp_app = typer.Typer(help="Pixels versus priors: learn, sweep and test steering vectors.", no_args_is_help=True)
robot_app = typer.Typer(cls=Robot, no_args_is_help=True, help=ROBOT)
world_app = typer.Typer(help="The drawn world that the bundled models were trained on.", no_args_is_help=True)
app.add_typer(pvp_app, name="pvp")
app.add_typer(world_app, name="world")
app.add_typer(counterfacts_app, name="counterfacts")
app.add_typer(recipe_app, name="recipe")
app.add_typer(bench_app, name="bench")
app.add_typer(robot_app, name="robot")
for command in (
    methods_cli.methods, methods_cli.learn, methods_cli.compare, score_cli.score, patch_cli.patch,
):  # fmt: skip
    app.command()(command)
for command in (evidence_cli.evidence, evidence_cli.pointing):
    app.command()(command)

Attribute = Annotated[str, typer.Option(help="color or size.")]
Data = Annotated[str, typer.Option(help="'drawn', a folder in the Visual CounterFact layout, or a hub dataset.")]
Direction = Annotated[str, typer.Option(help="to_pixels or to_prior.")]
Point = Annotated[str, typer.Option(help="block_out, as published, or another point such as attn_out.")]


def main() -> None:
    """Entry point of the `vlmsteer` command."""
    try:
        app(standalone_mode=True)
    except VlmsteerError as error:
        err.print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("Stopped.")
        sys.exit(130)


@app.callback()
def large(
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto spreads a model over devices; cpu, cuda:0.")] = None,
    offload_folder: Annotated[Path | None, typer.Option(help="What fits nowhere else goes to disk here.")] = None,
    quantization: Annotated[str | None, typer.Option(help="8bit or 4bit (bitsandbytes).")] = None,
) -> None:
    """Look inside vision-language models, and steer them between memory and pixels.

    The options before a command say how a large model is loaded.
    """
    given = {
        "dtype": dtype, "device_map": device_map, "quantization": quantization,
        "offload_folder": None if offload_folder is None else str(offload_folder),
    }  # fmt: skip
    placement.clear()
    placement.update({name: value for name, value in given.items() if value is not None})


@app.command()
def demo(
    model: Model = "tiny-llava",
    folder: Annotated[Path, typer.Option("--out", help="Where the report goes.")] = Path("runs/demo"),
    n: Annotated[int, typer.Option(min=20, help="Test pairs for each attribute.")] = 400,
    pairs: Annotated[int, typer.Option(min=10, help="Pairs that the vectors are learned from.")] = 100,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Run the main experiment: four cells, layer curves, PvP both ways with controls; write a report folder."""
    from vlmsteer.demo import run
    from vlmsteer.report import markdown, write_report

    writable(folder)
    session = load(model)
    with working("Starting") as update:
        result = run(session, n, pairs, seed, update)
    report = write_report(result, folder)
    if as_json:
        print_json(report)
        return
    page = markdown(report).split("## What each layer believes")[0]
    out.print(re.sub(r"!\[.*\n\n", "", page), markup=False, highlight=False, soft_wrap=True)
    for name, layer in report["crossing_layer"].items():
        overtaken = "never lead" if layer is None else f"lead from layer {layer}"
        out.print(f"Asked about this picture's {name}, the pixels {overtaken}.")
    out.print(f"\nReport: {folder / 'report.md'}, figures and recipes beside it.", markup=False)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the families: their bundled models and published checkpoints, what each exposes and what it cannot."""
    from vlmsteer.loading import bundled
    from vlmsteer.registry import FAMILIES, family_key

    found: dict[str | None, list[str]] = {}
    for name, path in bundled().items():
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        found.setdefault(family_key(config["model_type"], config["text_config"].get("model_type")), []).append(name)
    rows = []
    for key in FAMILIES:
        family = FAMILIES.load(key)
        rows.append(
            {
                "family": family.name, "model_type": key, "class": family.architecture,
                "bundled": sorted(found.get(key, [])), "checkpoints": list(family.checkpoints),
                "sites": family.points, "patch_grid": family.boxes is not None,
                "shares_image_prefix": family.image_first, "notes": list(family.notes),
            }
        )  # fmt: skip
    if as_json:
        print_json(rows)
        return
    table = Table("model", "family", "patch grid")
    for row in rows:
        for name in (*row["bundled"], *row["checkpoints"]):
            table.add_row(name, row["family"], "yes" if row["patch_grid"] else "no")
    out.print(table)
    for row in rows:
        towers = ", ".join(f"{tower} ({', '.join(points)})" for tower, points in row["sites"].items())
        out.print(f"\n[bold]{row['family']}[/bold]: {towers}.")
        for note in row["notes"]:
            out.print(f"  {note[0].upper()}{note[1:]}.")


@app.command()
def ask(
    image: Annotated[str, typer.Argument(help="An image file.")],
    question: str,
    model: Model = "tiny-llava",
    recipe: Annotated[Path | None, typer.Option(help="A recipe file; the baseline is shown too.")] = None,
    strength: Annotated[float, typer.Option(help="Multiplies the recipe's strengths.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 48,
    as_json: AsJson = False,
) -> None:
    """Ask a question about an image, plain or with a recipe."""
    from vlmsteer.images import open_image

    opened = open_image(image)
    loaded = _recipe(recipe, strength)
    session = load(model)
    answer: dict[str, Any] = {
        "question": question,
        "answer": session.ask(opened, question, max_new_tokens=max_new_tokens),
    }
    if loaded is not None:
        answer["steered"] = session.ask(opened, question, loaded, max_new_tokens)
        answer["recipe"] = loaded.hash
    if as_json:
        print_json(answer)
    elif loaded is None:
        print(answer["answer"])
    else:
        print(f"baseline  {answer['answer']}\nsteered   {answer['steered']}")


@app.command()
def lens(
    image: Annotated[str, typer.Argument(help="An image file.")],
    question: str,
    model: Model = "tiny-llava",
    prior: Annotated[str | None, typer.Option(help="The answer from memory, to follow through the layers.")] = None,
    pixel: Annotated[str | None, typer.Option(help="The answer in the picture, to follow through the layers.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Read with this recipe active.")] = None,
    top: Annotated[int, typer.Option(min=1, max=20, help="Words shown for each token.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="How many of the last prompt tokens to show.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Show what each layer would say, and how it weighs the prior against the pixel answer."""
    from vlmsteer.images import open_image
    from vlmsteer.lens.beliefs import crossing_layer, curves, grid

    if (prior is None) != (pixel is None):
        raise InputError("Give both --prior and --pixel, or neither.")
    opened, loaded = open_image(image), _recipe(recipe, 1.0)
    session = load(model)
    found = grid(session, opened, question, top, loaded)
    result: dict[str, Any] = {"tokens": found.tokens, "words": found.words}
    if prior is not None and pixel is not None:
        line = curves(session, [opened], [question], [prior], [pixel], loaded)
        result["prior"], result["pixel"] = line.prior[0].tolist(), line.pixel[0].tolist()
        result["crossing_layer"] = crossing_layer(line.prior[0], line.pixel[0])
    if as_json:
        print_json(result)
        return
    shown = found.tokens[-tokens:]
    extra = [f"p({prior})", f"p({pixel})"] if "prior" in result else []
    table = Table("layer", *shown, *extra)
    for layer, words in enumerate(found.words):
        cells = [" ".join(f"{word} {p:.2f}" for word, p in cell) for cell in words[-tokens:]]
        table.add_row(
            str(layer), *cells, *([f"{result['prior'][layer]:.2f}", f"{result['pixel'][layer]:.2f}"] if extra else [])
        )
    out.print(table)
    if extra:
        layer = result["crossing_layer"]
        print("The pixels never overtake." if layer is None else f"The pixels lead from layer {layer}.")


@pvp_app.command("learn")
def pvp_learn(
    path: Annotated[Path, typer.Argument(help="The recipe file to write.")],
    attribute: Attribute = "color",
    direction: Direction = "to_pixels",
    model: Model = "tiny-llava",
    data: Data = "drawn",
    point: Point = "block_out",
    pairs: Annotated[int, typer.Option(min=2)] = 100,
    layers: Annotated[
        str | None, typer.Option(help="Such as 2 or 14-16; by default a sweep on other pairs chooses.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="By default chosen with the layers.")] = None,
    index_shift: Annotated[int, typer.Option(help="-1 pairs vectors and layers as the authors' code does.")] = 0,
    seed: Seed = 0,
) -> None:
    """Learn a PvP recipe from counterfactual pairs and save it."""
    from vlmsteer.bench.pairs import select
    from vlmsteer.demo import DIRECTIONS, POINTS, VALIDATION, WIDTHS, choose, learn

    _one_of(direction, DIRECTIONS, "direction")
    recipe_file(path)
    found = select(data, attribute, "learn", pairs, seed)
    session = load(model)
    with working(f"Learning from {len(found)} pairs") as update:
        learned = learn(session, found, point, index_shift)
        if layers is None or strength is None:
            update("Choosing layers and strength")
            span = None if layers is None else [len(layers_in(layers))]
            choice = choose(
                session, learned, select(data, attribute, "validate", VALIDATION, seed), direction, span or WIDTHS
            )
        picked = layers_in(layers) if layers is not None else choice.layers
        power = strength if strength is not None else choice.strength
    recipe = learned.recipe(DIRECTIONS[direction][1] * power, picked, POINTS.get(point, "both"))
    recipe.save(path)
    print(
        f"{path}: layers {picked[0]} to {picked[-1]}, strength {power:g}, {len(found)} pairs, hash {recipe.hash[:12]}"
    )


@pvp_app.command("test")
def pvp_test(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    attribute: Attribute = "color",
    direction: Direction = "to_pixels",
    model: Model = "tiny-llava",
    data: Data = "drawn",
    n: Annotated[int, typer.Option(min=1)] = 400,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a recipe on pairs of other objects: what flips, what breaks, beside a random direction."""
    from vlmsteer.bench.pairs import select
    from vlmsteer.demo import DIRECTIONS, controls, measure
    from vlmsteer.report import percent

    _one_of(direction, DIRECTIONS, "direction")
    loaded = _recipe(recipe, 1.0)
    assert loaded is not None
    found = select(data, attribute, "test", n, seed)
    session = load(model)
    with working(f"Asking about {len(found)} pairs"):
        arms = {"steered": loaded, "random": controls(loaded, seed)}
        flips = measure(session, found, direction, arms).flips
    if as_json:
        print_json({"direction": direction, "attribute": attribute, "recipe": loaded.hash, **flips})
        return
    table = Table("", "flipped", "broken", "n")
    for arm, flip in flips.items():
        table.add_row(arm, percent(flip), percent(flip["broken"]), str(flip["n"]))
    out.print(table)


@pvp_app.command("sweep")
def pvp_sweep(
    attribute: Attribute = "color",
    direction: Direction = "to_pixels",
    model: Model = "tiny-llava",
    data: Data = "drawn",
    point: Point = "block_out",
    pairs: Annotated[int, typer.Option(min=2)] = 100,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Flip rates over windows of layers and strengths, on validation pairs."""
    from vlmsteer.bench.pairs import select
    from vlmsteer.demo import DIRECTIONS, STRENGTHS, VALIDATION, choose, learn

    _one_of(direction, DIRECTIONS, "direction")
    session = load(model)
    with working("Learning") as update:
        learned = learn(session, select(data, attribute, "learn", pairs, seed), point)
        update("Sweeping")
        choice = choose(session, learned, select(data, attribute, "validate", VALIDATION, seed), direction)
    if as_json:
        rows = [{"first": a, "last": b, "strength": s, "flipped": f} for a, b, s, f in choice.sweep]
        print_json({"layers": choice.layers, "strength": choice.strength, "sweep": rows})
        return
    table = Table("layers", *(f"{strength:g}" for strength in STRENGTHS), title="flipped to the target, by strength")
    spans = dict.fromkeys((a, b) for a, b, *_ in choice.sweep)
    for a, b in spans:
        values = [f"{100 * f:.0f} %" for first, last, _, f in choice.sweep if (first, last) == (a, b)]
        table.add_row(f"{a}-{b}" if a != b else str(a), *values)
    out.print(table)
    print(f"Chosen: layers {choice.layers[0]} to {choice.layers[-1]}, strength {choice.strength:g}.")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A bundled model's name.")],
    folder: Annotated[Path, typer.Option("--out", help="Where checkpoints and the finished model go.")] = Path(
        "runs/train"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="By default the model's own number.")] = None,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw pictures.")] = 1,
) -> None:
    """Train a bundled model as its card says; run again to resume."""
    from vlmsteer.registry import BUILDERS
    from vlmsteer.training.loop import Plan
    from vlmsteer.training.run import train as run

    made = BUILDERS.load(name)
    writable(folder)

    def report(text: str) -> None:
        err.print(text, markup=False, highlight=False)

    if isinstance(made, Plan):
        done = run(name, made, folder / name, steps, seed, workers, report)
        print(f"{done}: load it with vlmsteer.load({str(done)!r})")
    else:
        print(made(folder / name, **({} if steps is None else {"steps": steps}), seed=seed, report=report))


@app.command()
def ui(
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Models to offer beside the bundled ones.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where vectors and runs are kept; all visitors see it.")] = Path(
        "runs/ui"
    ),
    host: Annotated[str, typer.Option(help="Other than this machine's own needs --auth.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="By default the first free one from 7860 on.")] = None,
    auth: Annotated[list[str] | None, typer.Option(help="NAME:PASSWORD of a visitor.")] = None,
) -> None:
    """Open the workbench, a page on this machine: ask, see the layers, steer, edit the image."""
    pairs = [tuple(one.split(":", 1)) for one in auth or []]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise InputError("--auth is NAME:PASSWORD.")
    writable(folder)
    try:
        serving = import_module("vlmsteer_ui.app")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("gradio", "vlmsteer_ui"):
            raise
        raise InputError("The workbench needs Gradio: pip install 'vlmsteer[ui]'.") from error
    serving.start(model or ["tiny-llava"], folder, host, port, pairs, placement, lambda text: err.print(text))


@world_app.command("sheet")
def world_sheet(
    path: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("world.png"),
    scenes: Annotated[bool, typer.Option(help="Scenes with boxes and masks instead of single objects.")] = False,
    seed: Seed = 0,
) -> None:
    """Draw a contact sheet of the drawn world."""
    from vlmsteer_counterfacts.sheet import contact_sheet, scenes_sheet

    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise InputError(f"{str(path)!r} must be a .png file in a folder that exists.")
    (scenes_sheet(seed) if scenes else contact_sheet()).save(path)
    print(path)


def _recipe(path: Path | None, strength: float) -> Any:
    from vlmsteer.recipe import Recipe

    return None if path is None else Recipe.load(path).scaled(strength)


def _one_of(given: str, options: Any, word: str) -> None:
    from vlmsteer.errors import did_you_mean

    if given not in options:
        raise InputError(f"There is no {word} {given!r}{did_you_mean(given, options)}")


if __name__ == "__main__":
    main()
