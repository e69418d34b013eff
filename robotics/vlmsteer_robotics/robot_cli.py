"""`vlmsteer robot`: a policy in the simulator, plain and steered, over the same seeds; and finding what steers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vlmsteer.bench_cli import Strengths
from vlmsteer.console import AsJson, Seed, err, layers_in, load, out, print_json, recipe_file, working, writable
from vlmsteer.errors import InputError
from vlmsteer.methods_cli import titled
from vlmsteer_robotics import tasks
from vlmsteer_robotics.viewers import RENDERERS, viewer

app = typer.Typer()
FOLDER = Path("runs/robot")
METHODS = ("words", "kmeans", "residual")
EVERY = 10  # episodes between two lines of progress

Model = Annotated[str, typer.Option("--model", "-m", help="A bundled policy, a folder, a hub name, or 'expert'.")]
TaskName = Annotated[str, typer.Option("--task", help="reach, push or pick; with a color or side: reach-red.")]
Split = Annotated[str, typer.Option(help="test (places and color pairs not trained on) or train.")]
Distractors = Annotated[int, typer.Option(help="Blocks beside the one meant, up to 4.")]
Prompt = Annotated[list[str] | None, typer.Option(help="Also say it instead: slow, fast, low or high.")]
Out = Annotated[Path | None, typer.Option("--out", help="By default runs/robot and a name of its own.")]
Together = Annotated[int, typer.Option(min=1, help="Robots that act by one forward of the policy.")]
Key = Annotated[str | None, typer.Option(help="Whose units actions are in, if the policy knows several data sets.")]
Restrict = Annotated[bool, typer.Option("--restrict", help="Let the policy choose among action tokens only.")]
Hold = Annotated[float | None, typer.Option(min=0, help="Also hold this step length (meters) by turning the recipe.")]
HoldHeight = Annotated[float | None, typer.Option(min=0, help="Also hold this height of the hand (meters).")]
Limits = Annotated[tuple[float, float], typer.Option(help="What the controller keeps the strength between.")]
Random = Annotated[int, typer.Option(min=0, help="Random sets beside each recipe, to stand out from.")]


@app.command()
def rollout(
    task: TaskName = "reach-red",
    recipe: Annotated[Path | None, typer.Option(help="A recipe file; without one, the policy alone.")] = None,
    strength: Annotated[float, typer.Option(help="Multiplies the recipe's strengths.")] = 1.0,
    episodes: Annotated[int, typer.Option(min=1, help="Seeds, the same for every arm.")] = 20,
    model: Model = "tiny-openvla",
    split: Split = "test",
    distractors: Distractors = 2,
    prompt: Prompt = None,
    random: Random = 0,
    hold_speed: Hold = None,
    hold_height: HoldHeight = None,
    limits: Limits = (0.0, 3.0),
    video: Annotated[bool, typer.Option(help="Write a video of one pair.")] = True,
    renderer: Annotated[str, typer.Option(help="Who draws it: auto, egl, osmesa or rays.")] = "auto",
    export: Annotated[Path | None, typer.Option(help="Also write the episodes as a LeRobot data set there.")] = None,
    together: Together = 16,
    unnorm_key: Key = None,
    restrict: Restrict = False,
    folder: Out = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Run a policy plain and with a recipe over the same seeds: a table, a figure, a video. Stopped, it goes on.

    `--model expert` shows what the scripted expert does.
    """
    recipes = [] if recipe is None else [recipe]
    if video and recipe is not None:
        _try(renderer)
    if export is not None and export.exists():
        raise InputError(f"{str(export)!r} exists; give a folder that does not.")
    holds = {"displacement": hold_speed, "height": hold_height}
    _run(
        task, recipes, [strength], episodes, model, split, distractors, prompt or [], random, together,
        (unnorm_key, restrict), folder, seed, as_json, {name: value for name, value in holds.items() if value}, limits,
        renderer if video and recipe is not None else None, export,
    )  # fmt: skip


@app.command(cls=Strengths)
def sweep(
    recipe: Annotated[list[Path], typer.Option(help="Recipe files, one each.")],
    task: TaskName = "reach-red",
    strength: Annotated[list[float] | None, typer.Option(help="Multiples of the recipes: --strength 0.5 1 2.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Seeds, the same for every arm.")] = 50,
    model: Model = "tiny-openvla",
    split: Split = "test",
    distractors: Distractors = 2,
    prompt: Prompt = None,
    random: Random = 20,
    together: Together = 16,
    unnorm_key: Key = None,
    restrict: Restrict = False,
    folder: Out = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure recipes at several strengths against random sets and plain words. Stopped, it goes on."""
    _run(
        task, recipe, strength or [1.0], episodes, model, split, distractors, prompt or [], random, together,
        (unnorm_key, restrict), folder, seed, as_json,
    )  # fmt: skip


@app.command()
def neurons(
    words: Annotated[str, typer.Option(help="What to look for, such as slow,slowly.")],
    path: Annotated[Path | None, typer.Option("--out", help="The recipe file to write.")] = None,
    method: Annotated[
        str, typer.Option(help="words (nearest), kmeans (their cluster), residual (a direction).")
    ] = "words",
    size: Annotated[int, typer.Option(min=1, help="Neurons, at most.")] = 10,
    operation: Annotated[str, typer.Option(help="clamp (the paper's), scale or add.")] = "clamp",
    value: Annotated[float, typer.Option(help="What the neurons become, are multiplied by, or are given.")] = 4.0,
    against: Annotated[str, typer.Option(help="Not kmeans: the opposite, to be taken away, such as quickly.")] = "",
    by: Annotated[str, typer.Option(help="words: score, or top (one of the words among their top tokens).")] = "score",
    top: Annotated[int, typer.Option(min=1, help="Tokens of each neuron.")] = 10,
    norm: Annotated[bool, typer.Option("--norm", help="With the final norm before the unembedding.")] = False,
    layers: Annotated[
        str | None, typer.Option(help="Such as 4-7; by default all, for residual the middle one.")
    ] = None,
    clusters: Annotated[int, typer.Option(min=2, help="kmeans: how many.")] = 100,
    task: TaskName = "reach",
    pairs: Annotated[int, typer.Option(min=2, help="residual: pictures, of the expert's episodes.")] = 64,
    read: Annotated[str, typer.Option(help="residual: at the last token of the prompt, or every action.")] = "last",
    model: Model = "tiny-openvla",
    unnorm_key: Key = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find the neurons, or the direction, that words name; show them; write them as a recipe."""
    tasks.check("method", method, METHODS)
    if path is not None:
        recipe_file(path)
    given, other = ([word.strip() for word in text.split(",") if word.strip()] for text in (words, against))
    chosen = None if layers is None else [layer for part in layers.split(",") for layer in layers_in(part)]
    session = load(model)
    if method == "residual":
        with working(f"Reading {pairs} pictures"):
            made = _direction(session, given, other, task, pairs, read, chosen, unnorm_key, seed)
        rows: list[dict[str, Any]] = []
    else:
        from vlmsteer.methods import neuron_clusters, value_vectors

        with working("Looking at the neurons"):
            about: dict[str, Any] = {}
            if method == "kmeans":
                found, about = neuron_clusters.cluster(
                    session, given, size, count=clusters, k=top, norm=norm, layers=chosen, seed=seed
                )
            else:
                found = value_vectors.nearest(
                    session, given, size, against=other, by=by, k=top, norm=norm, layers=chosen
                )
                about = {"by": by, "against": other}
        about = {"found": method, "words": given, "norm": norm, **about}
        made = value_vectors.recipe(session, found, operation, value, about)
        rows = [one._asdict() for one in found]
    if path is not None:
        made.save(path)
    if as_json:
        print_json({"recipe": made.hash, "file": None if path is None else str(path), "about": dict(made.about),
                    "neurons": rows})  # fmt: skip
        return
    if rows:
        table = Table("neuron", "score", "pushes up")
        for row in rows:
            table.add_row(f"{row['layer']}.{row['number']}", f"{row['score']:.2f}", " ".join(row["tokens"]))
        out.print(table, markup=False)
    for name in ("named", "words_inside", "neurons_in_cluster", "prompts", "stability"):
        if name in made.about:
            out.print(f"{name.replace('_', ' ')}: {made.about[name]}", markup=False, highlight=False)
    if path is not None:
        print(f"{path}: {len(made.edits[0].sites)} layers, hash {made.hash[:12]}")


def _run(
    task: str,
    files: Sequence[Path],
    strengths: Sequence[float],
    episodes: int,
    model: str,
    split: str,
    distractors: int,
    prompts: Sequence[str],
    random: int,
    together: int,
    speaking: tuple[str | None, bool],
    folder: Path | None,
    seed: int,
    as_json: bool,
    holds: dict[str, float] | None = None,
    limits: tuple[float, float] = (0.0, 3.0),
    renderer: str | None = None,
    export: Path | None = None,
) -> None:
    from vlmsteer.recipe import Recipe
    from vlmsteer_robotics import arms, effects, report, rollouts
    from vlmsteer_robotics.policy import Expert, Vla

    setting = rollouts.Setting(tasks.task(task).name, split, distractors)
    setting.env(pictures=False)  # what is wrong with it is said before the model is loaded
    titles = titled([str(file) for file in files])
    recipes = {titles[str(file)]: Recipe.load(file) for file in files}
    if holds and not recipes:
        raise InputError("What is to be held is held by a recipe: give one with --recipe.")
    place = folder or FOLDER / "-".join([setting.task, split, Path(model).name, *recipes])
    writable(place)
    policy: Any = Expert() if model == "expert" else Vla(load(model), *speaking)
    session = getattr(policy, "session", None)
    if session is None and recipes:
        raise InputError("The scripted expert has nothing inside that a recipe could change: take a policy.")
    if session is not None:
        session.check(list(recipes.values()))
    made = arms.make(recipes, strengths, random, prompts, session, seed)
    seeds = range(1000 * seed, 1000 * seed + episodes)
    ledger = place / "episodes.jsonl"

    def go(chosen: Sequence[arms.Arm], update: Callable[[str], None]) -> list[dict[str, Any]]:
        def told(done: int, of: int, arm: str) -> None:
            if err.is_terminal or done % EVERY == 0 or done == of:
                update(f"{done} of {of} episodes, {arm}")

        return rollouts.run(policy, setting, seeds, chosen, ledger, together, told)

    try:
        with working(f"{len(made) * episodes} episodes") as update:
            rows = go(made, update)
            held = [_held(made, rows, quantity, target, limits) for quantity, target in (holds or {}).items()]
            rows += go(held, update) if held else []
            made = [*made, *held]
            film, shown = _video(place, setting, rows, made, renderer, update)
            if export is not None:
                update(f"Writing {export}")
                _export(setting, rows, export, policy.side)
    except KeyboardInterrupt:
        err.print(f"Finished episodes are kept in {ledger}; the same command goes on.", markup=False, highlight=False)
        raise
    found = effects.summarize(rows, made, seed)
    title = f"{setting.task} ({split}), {policy.name}, {episodes} seeds"
    more = {"model": policy.name, "policy": policy.spec, "seeds": [seeds.start, seeds.stop], "video_seed": shown}
    written = report.write(place, title, setting, found, more, film)
    if as_json:
        print_json({"folder": str(place), **written})
        return
    print(report.table(found))
    print(f"\n{place}: report.md, results.json" + "".join(f", {path.name}" for path in film))
    broken = [row for row in rows if row["error"] is not None]
    if broken:
        err.print(f"{len(broken)} of {len(rows)} episodes broke off, such as seed {broken[0]['seed']} under "
                  f"{broken[0]['arm']!r}: {broken[0]['error']}", style="yellow", markup=False)  # fmt: skip


def _held(
    made: Sequence[Any], rows: Sequence[dict[str, Any]], quantity: str, target: float, limits: tuple[float, float]
) -> Any:
    """An arm that holds a quantity; how much the recipe changes it is known from the episodes so far."""
    from vlmsteer_robotics.arms import Arm
    from vlmsteer_robotics.controller import Hold
    from vlmsteer_robotics.rollouts import effect

    (steered,) = (arm for arm in made if arm.kind == "recipe")
    metric = "mean_height" if quantity == "height" else quantity
    start, change = effect(rows, made[0].name, steered.name, metric)
    hold = Hold(quantity, target, start, change, limits)
    return Arm(f"{steered.name}, {quantity} held at {target:g} m", "hold", steered.recipe, strength=1.0, hold=hold)


def _video(
    place: Path, setting: Any, rows: Sequence[dict[str, Any]], made: Sequence[Any], renderer: str | None, update: Any
) -> tuple[list[Path], int | None]:
    """The longest way of the baseline that the recipe finished too, as a video, and which seed it is."""
    from vlmsteer_robotics.report import pair_video

    steered = next((arm for arm in made if arm.kind == "recipe"), None)
    if renderer is None or steered is None:
        return [], None
    done = {(row["arm"], row["seed"]): row for row in rows if row["error"] is None}
    seeds = [seed for arm, seed in done if arm == made[0].name and (steered.name, seed) in done]
    if not seeds:
        return [], None
    update("Drawing the video")
    shown = max(seeds, key=lambda seed: len(done[made[0].name, seed]["actions"]))
    before, after = (done[arm, shown] for arm in (made[0].name, steered.name))
    return pair_video(place, setting, before, after, steered, renderer), shown


def _export(setting: Any, rows: Sequence[dict[str, Any]], folder: Path, side: int) -> None:
    from vlmsteer_robotics import lerobot
    from vlmsteer_robotics.rollouts import played

    env = setting.env(side)
    lerobot.export((played(env, row)[0] for row in rows if row["error"] is None), folder)


def _try(renderer: str) -> None:
    """Find out before the episodes that their video can be drawn."""
    from vlmsteer_robotics.robot import Robot

    tasks.check("renderer", renderer, RENDERERS)
    with viewer(Robot(1).model, 8, renderer):
        pass


def _direction(
    session: Any, words: Sequence[str], against: Sequence[str], task: str, pairs: int, read: str,
    layers: list[int] | None, key: str | None, seed: int,
) -> Any:  # fmt: skip
    """The direction that words add to instructions, learned on pictures of the expert's episodes."""
    import numpy as np
    from PIL import Image

    from vlmsteer.methods.paired_instructions import learn
    from vlmsteer_robotics.demonstrations import demonstrations

    if not words:
        raise InputError("Give one or more words, such as slow,slowly.")
    images, plain = [], []
    rng = np.random.default_rng(seed)
    side = int(session.model.config.image_sizes[0])
    seeds = range(1000 * seed, 1000 * seed + pairs)
    for episode in demonstrations(task, seeds, speed="normal", height="normal", side=side):
        images.append(Image.fromarray(episode.images[rng.integers(len(episode.images))]))
        plain.append(episode.instruction)
    changed, before = ([one + _said(names) for one in plain] if names else plain for names in (words, against))
    recipe = learn(session, images, before, changed, layers=layers, read=read, unnorm_key=key)
    return replace(recipe, about={**recipe.about, "words": list(words), "against": list(against)})


def _said(words: Sequence[str]) -> str:
    """What an instruction ends in that says the words: as the tasks do, if one of them is theirs."""
    own = {**tasks.SPEED_WORDS, **tasks.HEIGHT_WORDS}
    known = (end for name, end in own.items() if end and {name, *end.replace(",", "").split()} & set(words))
    return next(known, f" {words[0]}")
