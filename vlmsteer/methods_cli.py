"""`vlmsteer methods`, `learn` and `compare`: every method through the same three commands."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vlmsteer.console import AsJson, Model, Seed, layers_in, load, out, print_json, recipe_file, working, writable
from vlmsteer.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from vlmsteer.recipe import Recipe

Data = Annotated[
    str, typer.Option(help="'drawn', 'lures' (objects without their companions), or a JSONL file (see the README).")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="An option of the method, name=value; see `methods`.")]


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its options.")] = None, as_json: AsJson = False
) -> None:
    """List the methods: paper, what they learn from, what is edited; or one with its options."""
    from vlmsteer.registry import METHODS

    chosen = [METHODS.load(one) for one in ([name] if name else METHODS)]
    rows = [
        {
            "name": method.name, "title": method.title, "paper": method.paper, "needs": method.needs,
            "reconstruction": method.reconstruction, "notes": method.notes, "options": _options(method.learn),
        }
        for method in chosen
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    if name is None:
        table = Table("method", "what it is", "learns from", "paper")
        for row in rows:
            table.add_row(row["name"], row["title"], row["needs"], row["paper"])
        out.print(table)
        print("vlmsteer methods NAME shows a method's options; METHODS.md says what differs from the authors' code.")
        return
    (row,) = rows
    print(f"{row['title']} ({row['paper']}); learns from: {row['needs']}")
    if row["notes"]:
        print(row["notes"])
    print(f"\n{inspect.cleandoc(chosen[0].learn.__doc__ or '')}\n")
    for option, value in row["options"].items():
        print(f"--set {option}={value}" if value is not None else f"--set {option}=2-3,5  (not set)")


def learn(
    method: Annotated[str, typer.Argument(help="A name from `vlmsteer methods`.")],
    path: Annotated[Path, typer.Option("--out", help="The recipe file to write.")],
    model: Model = "tiny-llava",
    data: Data = "drawn",
    n: Annotated[int, typer.Option(min=2, help="Examples to learn from.")] = 200,
    kind: Annotated[
        str | None, typer.Option("--from", help="Other examples than the method's: captions, own, cut, presence.")
    ] = None,
    first: Annotated[
        int | None, typer.Option(min=2, help="Only the first so many of the examples that n scenes give (own, cut).")
    ] = None,
    options: Set = None,
    strength: Annotated[
        float | None, typer.Option(help="Multiplies the paper's; by default 1. `compare` chooses on validation scenes.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Learn a method's recipe from examples and save it."""
    from vlmsteer.bench.fitting import answered, material
    from vlmsteer.methods.method import NEEDS
    from vlmsteer.registry import METHODS

    found = METHODS.load(method)
    if kind is not None and kind not in NEEDS:
        raise InputError(f"There are no examples of the kind {kind!r}{did_you_mean(kind, NEEDS)}")
    given = parse(found.learn, options or [])
    recipe_file(path)
    needs = kind or found.needs
    examples = material(needs, data, n, seed)
    session = load(model)
    with working(f"Learning {found.title}"):
        recipe = found.learn(session, answered(session, needs, examples)[:first], **given).scaled(
            1.0 if strength is None else strength
        )
    recipe.save(path)
    print(f"{path}: {found.title}, edits {len(recipe.edits)}, rules {len(recipe.rules)}, hash {recipe.hash[:12]}")


def compare(
    arms: Annotated[list[str], typer.Argument(help="Recipe files, method names, several joined by +, or 'all'.")],
    model: Model = "tiny-llava",
    data: Data = "drawn",
    n: Annotated[int, typer.Option(min=10, help="Captions of test scenes.")] = 300,
    questions: Annotated[int, typer.Option(min=0, help="Yes/no questions about test scenes.")] = 400,
    pairs: Annotated[int, typer.Option(min=10, help="Examples that methods learn from.")] = 400,
    folder: Annotated[Path | None, typer.Option("--out", help="Write tables, numbers and recipes there.")] = None,
    controls: Annotated[int, typer.Option(min=0, help="Random directions beside each arm.")] = 3,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Put recipes side by side on scenes that nothing was learned or chosen on.

    A method's name is learned first, and its strength and layers are chosen on validation scenes. A+B is both at
    once; beside A and B, how much they interfere is measured.
    """
    from vlmsteer.bench.compare import compare as run
    from vlmsteer.bench.compare_report import as_markdown
    from vlmsteer.bench.drawn_examples import select_examples
    from vlmsteer.bench.fitting import QUESTIONS, Fitted, fit
    from vlmsteer.recipe import Recipe
    from vlmsteer.registry import METHODS

    names = list(dict.fromkeys(name for arm in arms for name in ([arm] if arm != "all" else comparable())))
    parts = list(dict.fromkeys(part for name in names for part in joined(name)))
    for part in parts:
        if not part.endswith(".safetensors") and part not in METHODS:
            raise InputError(f"{part!r} is no recipe file and no method{did_you_mean(part, METHODS)}")
    recipes = {part: Recipe.load(part) for part in parts if part.endswith(".safetensors")}
    if folder is not None:
        writable(folder)
    captions = select_examples(data, "captions", "test", n, seed)
    asked = select_examples(data, "presence", "test", questions, seed) if questions else []
    session = load(model)
    session.check(list(recipes.values()))
    if weighed(parts, recipes):
        session.model.set_attn_implementation("eager")
    titles = titled(parts)
    with working("Starting") as update:
        fitted: dict[str, Fitted] = {}
        for part in (part for part in parts if part not in recipes):
            tried = min(questions, QUESTIONS)
            fitted[part] = fit(session, METHODS.load(part), data, pairs, seed, tried, update)
            recipes[part] = fitted[part].recipe
        together = {
            "+".join(titles[part] for part in joined(name)): reduce(add, [recipes[part] for part in joined(name)])
            for name in names
        }
        found = run(session, together, captions, asked, controls, seed, progress=update)
    report = {**found.report, "fitted": {name: one.as_dict() for name, one in fitted.items()}}
    page = as_markdown(report)
    if folder is not None:
        (folder / "compare.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "compare.md").write_text(page, encoding="utf-8")
        (folder / "answers.json").write_text(json.dumps(found.said, indent=1, ensure_ascii=False), encoding="utf-8")
        for name, one in fitted.items():
            one.recipe.save(folder / f"{name}.safetensors")
    if as_json:
        print_json(report)
    else:
        print(page)


def comparable() -> list[str]:
    """The methods that `compare all` learns: those that need no counterfactual question pairs."""
    from vlmsteer.registry import METHODS

    return [name for name in METHODS if METHODS.load(name).needs != "pairs"]


def weighed(parts: Sequence[str], recipes: Mapping[str, Recipe]) -> bool:
    """Whether an arm reads attention weights (OPERA); then all arms are measured with the attention that gives them."""
    return "opera" in parts or any(rule.name == "overtrust" for one in recipes.values() for rule in one.rules)


def joined(name: str) -> list[str]:
    """The parts of an arm A+B; a file whose name holds a + is one part."""
    return [name] if Path(name).is_file() else name.split("+")


def titled(parts: Sequence[str]) -> dict[str, str]:
    """What each part is called in the tables: a file's name without its folder, unless another has that too."""
    short = {part: Path(part).stem if part.endswith(".safetensors") else part for part in parts}
    shared = {name for name, count in Counter(short.values()).items() if count > 1}
    return {part: part if name in shared else name for part, name in short.items()}


def _options(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


def parse(function: Any, given: Sequence[str]) -> dict[str, Any]:
    """Options written name=value, as the function takes them.

    Raises:
        InputError: if there is no such option, or its value is of another kind.
    """
    signature = inspect.signature(function, eval_str=True)
    known = _options(function)
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"Options are written name=value, not {text!r}{did_you_mean(name, known)}")
        if name not in known:
            raise InputError(f"There is no option {name!r}{did_you_mean(name, known)}.")
        values[name] = _value(name, value, signature.parameters[name].annotation, known[name])
    return values


def _value(name: str, text: str, kind: Any, default: Any) -> Any:
    if "Sequence[int]" in str(kind):
        return [layer for part in text.split(",") for layer in layers_in(part)]
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
    except (ValueError, KeyError) as error:
        raise InputError(f"{name} is a {type(default).__name__}, such as {default}, not {text!r}.") from error
    return text
