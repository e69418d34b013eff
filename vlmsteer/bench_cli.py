"""`vlmsteer bench`: benchmarks under recipes, controls and strengths, in one table."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from vlmsteer.console import AsJson, Model, Seed, err, load, out, placement, print_json, writable
from vlmsteer.errors import InputError, VlmsteerError, did_you_mean
from vlmsteer.methods_cli import parse, titled
from vlmsteer.score_cli import JudgeName, JudgeUrl, JudgeVersion, Verdicts

NONE = "none"  # the arm without a recipe


class Words(TyperGroup):
    """`vlmsteer bench pope` is `vlmsteer bench run pope`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


class Strengths(TyperCommand):
    """`--strength 0 .5 1` is `--strength 0 --strength .5 --strength 1`: no benchmark is called like a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


app = typer.Typer(cls=Words, no_args_is_help=True, help="Benchmarks, with and without recipes, beside controls.")


@app.command(cls=Strengths)
def run(
    names: Annotated[list[str], typer.Argument(help="Benchmarks; `vlmsteer bench list` shows them.")],
    model: Model = "tiny-llava",
    recipe: Annotated[
        list[str] | None, typer.Option(help="A recipe file, or 'none', the baseline, which is always there.")
    ] = None,
    strength: Annotated[list[float] | None, typer.Option(help="Multiples of the recipes: --strength 0 .5 1.")] = None,
    controls: Annotated[int, typer.Option(min=0, help="Random directions beside each recipe.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="DIR/NAME or DIR holds the files; by default the drawn world's.")
    ] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Further folders in which images are looked for.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many questions each, groups whole.")] = None,
    shuffle: Annotated[int | None, typer.Option(help="With --limit: groups shuffled by this seed.")] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="Such as pope@opera; by default all there are.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="Such as pope.split=popular.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="In place of the benchmarks' own.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="More than 1: beam search, one question at a time.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="Above 0: sampled, each item with its own seed.")] = 0.0,
    folder: Annotated[Path | None, typer.Option("--out", help="By default runs/bench and a name of its own.")] = None,
    batch_size: Annotated[str, typer.Option(help="Questions asked together, or auto.")] = "auto",
    seed: Seed = 0,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Ask again where there was an error.")] = False,
    fail_on_error: Annotated[bool, typer.Option("--fail-on-error", help="Stop at the first error.")] = False,
    judge: JudgeName = None,
    judge_url: JudgeUrl = None,
    judge_version: JudgeVersion = "",
    verdicts: Verdicts = None,
    as_json: AsJson = False,
) -> None:
    """Ask benchmarks under recipes, and score the answers. Stopped, the same command goes on.

    In several processes: accelerate launch --num_processes 2 -m vlmsteer bench ... (torchrun and mpirun as well). Nodes
    must share the folder. Memory that does not hold a batch is given half of it.
    """
    from vlmsteer.bench.ranks import Ranks

    ranks = Ranks.here()
    ranks.join()
    try:
        from vlmsteer.bench import arms, judging, mats_clip, plan, runner
        from vlmsteer.bench.asking import Decoding
        from vlmsteer.bench.drawn_files import located
        from vlmsteer.recipe import Recipe

        size = runner.ROWS if batch_size == "auto" else _whole(batch_size)
        benchmarks = {name: _benchmark(name) for name in dict.fromkeys(names)}
        encoder = mats_clip.encoder(model)
        if encoder is not None:
            writing = {"--recipe": [one for one in recipe or [] if one != NONE], "--strength": strength,
                       "--beams": beams > 1, "--temperature": temperature, "--max-new-tokens": max_new_tokens,
                       "what places a model": placement}  # fmt: skip
            mats_clip.check(model, list(benchmarks), writing)
            benchmarks = {name: mats_clip.BENCHMARK for name in benchmarks}
        scorers = _scorers(benchmarks, scorer or [])
        given = {name: _options(benchmarks, name, options or []) for name in benchmarks}
        decoding = Decoding(beams, temperature, seed)
        files = [one for one in dict.fromkeys(recipe or []) if one != NONE]
        titles = titled(files)
        made = arms.make({titles[one]: Recipe.load(one) for one in files}, strength or (1.0,), controls, seed)
        tasks = []
        for name, benchmark in benchmarks.items():
            found = located(benchmark, data, images or [])
            items = benchmark.items(found, **given[name])
            _usable(benchmark, scorers.get(name, ()), items[0])
            chosen = {"limit": limit, "shuffle": shuffle} if limit else {}
            about = {**given[name], **{option: value for option, value in chosen.items() if value is not None}}
            if found.fetched:
                about["hub"] = found.fetched
            tasks.append(plan.Task(benchmark, plan.limited(items, limit, shuffle), about, max_new_tokens))
        place = folder or Path("runs/bench") / _folder_name(model, tasks, made, decoding)
        if ranks.rank == 0:
            writable(place)
        asked = judging.chosen(judge, judge_version, judge_url, verdicts, place / judging.FILE)
        judging.check_needed(asked, benchmarks.values())
        about = {"seed": seed, "processes": ranks.world, "scorers": scorers or "all"}
        if encoder is not None:
            done = ranks.first(lambda: mats_clip.run(encoder, tasks[0], made[0], place, about, retry_errors))
        else:
            _own_gpu(ranks)
            session = load(model)
            with _progress(ranks.rank == 0) as update:
                done = runner.run(
                    session, tasks, made, place, decoding, size, retry_errors, fail_on_error, about, update, ranks
                )  # fmt: skip
    except VlmsteerError:
        if ranks.rank:
            sys.exit(2)  # the first process says it
        raise
    finally:
        ranks.leave()
    if ranks.rank == 0:
        failed = None
        if asked is not None:
            with _progress(True) as update:
                failed = judging.judge_run(place, asked, benchmarks, lambda done, of: update(of, done, "Verdicts"))
        _show(place, benchmarks, scorers, done, as_json)
        if failed is not None:
            raise InputError(f"{failed} {judging.KEPT}")


@app.command("list")
def listed(as_json: AsJson = False) -> None:
    """List the benchmarks with their scorers and options; the first scorer is the default."""
    from vlmsteer.registry import BENCHMARKS

    rows = []
    for name in BENCHMARKS:
        found = BENCHMARKS.load(name)
        rows.append(
            {
                "name": name, "title": found.title, "source": found.source, "notes": found.notes,
                "scorers": {one.name: one.source for one in found.scorers}, "options": _known(found.load),
            }
        )  # fmt: skip
    if as_json:
        print_json(rows)
        return
    table = Table("benchmark", "what it is", "scorers", "options")
    for row in rows:
        chosen = " ".join(f"{name}={value}" for name, value in row["options"].items())
        table.add_row(row["name"], row["title"], " ".join(row["scorers"]), chosen)
    out.print(table)


@app.command()
def data(folder: Annotated[Path, typer.Option("--out", help="Where the files go.")] = Path("runs/bench-data")) -> None:
    """Write the drawn world's own benchmark files, in the public formats."""
    from vlmsteer.bench.drawn_files import write_drawn

    write_drawn(folder)
    print(folder)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another run's folder.")],
    arms: Annotated[tuple[str, str] | None, typer.Option(help="An arm of each; by default those both have.")] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="Such as pope@opera; by default the first.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what changed from one run to another, of another model or recipe on the same questions."""
    from vlmsteer.bench.run_compare import as_markdown, compare_runs

    chosen = {task: name for task, _, name in (text.partition("@") for text in scorer or [])}
    found = compare_runs(first, second, None, arms, chosen)
    if as_json:
        print_json(found)
    else:
        print(as_markdown(found))


def spread(args: Sequence[str], flag: str = "--strength") -> list[str]:
    """Arguments in which each number that follows the flag's first value has a flag of its own."""
    found: list[str] = []
    for arg in args:
        if len(found) > 1 and found[-2] == flag and _number(arg):
            found.append(flag)
        found.append(arg)
    return found


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _whole(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise InputError(f"A batch size is a number of questions or auto, not {text!r}.")
    return int(text)


def _benchmark(name: str) -> Any:
    from vlmsteer.registry import BENCHMARKS

    if name not in BENCHMARKS:
        raise InputError(f"No benchmark is called {name!r}{did_you_mean(name, BENCHMARKS)}.")
    return BENCHMARKS.load(name)


def _scorers(benchmarks: dict[str, Any], given: Sequence[str]) -> dict[str, list[str]]:
    """Scorers by benchmark, from pope@opera and the like; with one benchmark its name may be left out."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, at, which = text.rpartition("@")
        if not at and len(benchmarks) == 1:
            name = next(iter(benchmarks))
        if name not in benchmarks:
            raise InputError(
                f"A scorer is written BENCHMARK@NAME, not {text!r}; this run's benchmarks: {', '.join(benchmarks)}."
            )
        found.setdefault(name, []).append(benchmarks[name].scorer(which).name)
    return found


def _usable(benchmark: Any, names: Sequence[str], item: Any) -> None:
    """Let a scorer that was asked for say what it lacks, such as word vectors, before anything is answered."""
    from vlmsteer.bench.benchmark import Answer

    for name in names:
        benchmark.scorer(name).tally([item], [Answer("A dog.", dict.fromkeys(item.choices, 0.0))])


def _options(benchmarks: dict[str, Any], name: str, given: Sequence[str]) -> dict[str, Any]:
    """What is set for one benchmark, as its `load` takes it; with one benchmark its name may be left out."""
    own = []
    for text in given:
        option, equals, _ = text.partition("=")
        before, dot, rest = option.partition(".")
        if not equals or (dot and before not in benchmarks) or (not dot and len(benchmarks) > 1):
            raise InputError(f"Options are written BENCHMARK.NAME=VALUE, such as {name}.split=popular, not {text!r}.")
        if not dot or before == name:
            known = _known(benchmarks[name].load)
            if (rest or option) not in known:
                raise InputError(f"{name} has no option {rest or option!r}{did_you_mean(rest or option, known)}.")
            own.append(text.removeprefix(f"{name}."))
    return parse(benchmarks[name].load, own)


def _known(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


def _folder_name(model: str, tasks: Sequence[Any], arms: Sequence[Any], decoding: Any) -> str:
    """A name that only the same run has, so that the same command goes on and no two runs share a folder."""
    parts = [
        model, {name: str(value) for name, value in placement.items()}, decoding.spec(),
        [(task.name, task.benchmark.version, task.digest(), task.longest) for task in tasks],
        [(arm.name, arm.recipe and arm.recipe.hash) for arm in arms],
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
    return "-".join([Path(model).name, *(task.name for task in tasks), digest])


def _own_gpu(ranks: Any) -> None:
    """Let each process on a machine have a GPU of its own."""
    import torch

    if ranks.world > 1 and torch.cuda.is_available():
        placement.setdefault("device_map", f"cuda:{ranks.local % torch.cuda.device_count()}")


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left on a terminal; elsewhere nothing."""
    if not (shown and err.is_terminal):
        yield lambda total, done, text: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err) as bar:
        answers = bar.add_task("Answers", total=None)
        yield lambda total, done, text: bar.update(answers, total=total, completed=done, description=text or "Answers")


def _show(folder: Path, benchmarks: dict[str, Any], scorers: dict[str, list[str]], done: Any, as_json: bool) -> None:
    from vlmsteer.bench.results import report

    page = report(folder, benchmarks, scorers)
    if as_json:
        print_json({
            "folder": str(folder), "answers": done.answers, "errors": done.failed,
            "metrics": json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        })  # fmt: skip
    else:
        print(page)
        print(f"\n{folder}: {done.answers} answers; report.html shows them.")
    for (task, arm), errors in done.errors.items():
        item, text = next(iter(errors.items()))
        count = f"{len(errors)} question{'s' if len(errors) > 1 else ''} of {task} under {arm!r}"
        err.print(f"{count} had an error, such as {item}: {text}", style="yellow", markup=False, highlight=False)
    if done.failed:
        err.print("They are not scored. --retry-errors asks them again.", markup=False)
