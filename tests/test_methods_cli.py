"""`methods`, `learn`, `compare` and `recipe` as a user types them, on the bundled model."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Main, program

import vlmsteer
from vlmsteer.bench import fitting
from vlmsteer.bench.drawn_examples import drawn_examples, select_examples
from vlmsteer.errors import InputError
from vlmsteer.examples import digest, save_examples
from vlmsteer.methods import caa, vti
from vlmsteer.methods.method import NEEDS, Method
from vlmsteer.methods_cli import parse, titled
from vlmsteer.recipe import Recipe
from vlmsteer.registry import METHODS


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    return program(monkeypatch, capsys)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return vlmsteer.load("tiny-llava")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Path:
    """A recipe, one for another model, and captions in our format and in VTI's."""
    path = tmp_path_factory.mktemp("methods")
    made = caa.learn(tiny, drawn_examples("presence", "learn", 8))
    made.save(path / "made.safetensors")
    replace(made, model={**made.model, "id": "tiny-alpaca"}).save(path / "other.safetensors")
    captions = drawn_examples("captions", "learn", 12)
    save_examples(path / "ours.jsonl", captions)
    rows = [json.loads(line) for line in (path / "ours.jsonl").read_text().splitlines()]
    theirs = [
        {"image": r["image"], "question": r["question"], "value": r["right"], "h_value": r["wrong"]} for r in rows
    ]
    (path / "vti.jsonl").write_text("\n".join(map(json.dumps, theirs)))
    return path


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_whole(name: str) -> None:
    method = METHODS.load(name)
    assert isinstance(method, Method) and method.name == name and method.title and method.paper
    assert method.needs in NEEDS and isinstance(method.reconstruction, bool)
    assert method.strengths and all(isinstance(one, int | float) and one > 0 for one in method.strengths)
    assert list(method.strengths) == sorted(set(method.strengths))
    signature = inspect.signature(method.learn, eval_str=True)
    assert list(signature.parameters)[:2] == ["session", "examples"]
    options = list(signature.parameters.values())[2:]
    for option in options:
        assert option.kind is option.KEYWORD_ONLY, f"{option.name} can be given without its name"
        written = {int: "3", float: "0.5", str: "word", bool: "no"}
        if option.annotation in written:
            assert type(option.default) is option.annotation, option.name
            (value,) = parse(method.learn, [f"{option.name}={written[option.annotation]}"]).values()
            assert type(value) is option.annotation
        else:
            assert "Sequence[int] | None" in str(option.annotation) and option.default is None, option.name
    for variant in method.variants:
        assert set(variant) <= {"needs", *(option.name for option in options)}
        assert variant.get("needs", method.needs) in NEEDS


def test_methods(main: Main) -> None:
    code, shown, _ = main("methods")
    assert code == 0 and all(name in shown for name in METHODS)
    code, shown, _ = main("methods", "--json")
    rows = {row["name"]: row for row in json.loads(shown)}
    assert code == 0 and list(rows) == list(METHODS)
    assert rows["vti"]["options"]["mode"] == "mean" and rows["vti"]["options"]["layers"] is None
    assert rows["truthprint"]["reconstruction"] and not rows["caa"]["reconstruction"]


def test_one_method(main: Main) -> None:
    code, shown, _ = main("methods", "vti")
    assert code == 0 and "arXiv 2410.15778" in shown and "captions" in shown
    assert "--set mode=mean" in shown and "--set layers=2-3,5" in shown and "mask_ratio: the share" in shown
    code, shown, complaint = main("methods", "vtii")
    assert code == 2 and not shown and "did you mean 'vti'?" in complaint


def test_options_are_read_as_what_they_are() -> None:
    def learn(
        session: Any,
        examples: Any,
        *,
        count: int = 3,
        share: float = 0.5,
        on: bool = True,
        word: str = "mean",
        layers: Sequence[int] | None = None,
    ) -> None: ...

    def one(text: str) -> Any:
        (value,) = parse(learn, [text]).values()
        return value

    assert [one(f"on={word}") for word in ("true", "no", "1", "False")] == [True, False, True, False]
    assert one("count=-2") == -2 and one("share=1e-3") == 0.001 and one("share=2") == 2.0
    assert one("word=a=b") == "a=b" and one("word=3") == "3"
    assert one("layers=2-3,5") == [2, 3, 5] and one("layers=0") == [0]
    assert parse(learn, ["count=1", "on=no"]) == {"count": 1, "on": False} and parse(learn, []) == {}
    for text, sentence in (
        ("count=1.5", "count is a int, such as 3, not '1.5'"),
        ("share=much", "share is a float"),
        ("on=maybe", "on is a bool"),
        ("layers=2..3", "Layers are written 2 or 14-16"),
        ("layers=", "Layers are written"),
        ("cuont=3", "no option 'cuont'; did you mean 'count'?"),
        ("count", "name=value"),
    ):
        with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
            parse(learn, [text])


def test_learn_with_options_of_every_kind(main: Main, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    options = ["mode=pc1", "image=0.5", "trials=2", "per_token=no", "layers=2-3,5"]
    given = [part for option in options for part in ("--set", option)]
    code, printed, complaint = main("learn", "vti", "--out", path, "--n", 4, "--strength", 0.5, "--seed", 1, *given)
    assert code == 0, complaint
    made = Recipe.load(path)
    assert made.hash[:12] in printed
    asked = {"mode": "pc1", "image": 0.5, "trials": 2, "per_token": False}
    assert asked.items() <= made.about["options"].items() and made.about["examples"] == 4
    (text,) = (edit for edit in made.edits if edit.vectors.tower == "text")
    assert sorted(text.vectors.layers) == [2, 3, 5] and text.strength == pytest.approx(0.5 * 0.8 * vti.UNIT)


def test_learn_takes_the_first_examples_that_many_scenes_give(main: Main, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    code, _, complaint = main("learn", "caa", "--from", "captions", "--out", path, "--n", 12, "--first", 5)
    assert code == 0, complaint
    about = Recipe.load(path).about
    assert about["examples"] == 5 and about["data"] == digest(drawn_examples("captions", "learn", 5))


@pytest.mark.parametrize("file", ["ours.jsonl", "vti.jsonl"])
def test_learn_from_a_file(main: Main, folder: Path, tiny: Any, tmp_path: Path, file: str) -> None:
    path = tmp_path / "r.safetensors"
    code, _, complaint = main("learn", "vti", "--out", path, "--data", folder / file, "--set", "image=0")
    assert code == 0, complaint
    examples = select_examples(str(folder / file), "captions", "learn", 200)
    expected, made = vti.learn(tiny, examples, image=0.0), Recipe.load(path)
    assert made.about["examples"] == len(examples) >= 2 and made.about["data"] == expected.about["data"]
    for layer, vector in expected.edits[0].vectors.layers.items():  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(made.edits[0].vectors.layers[layer], vector)  # pyright: ignore[reportArgumentType]


def test_a_method_that_needs_nothing_reads_no_data(main: Main, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    code, printed, complaint = main("learn", "vcd", "--out", path, "--data", "nowhere.jsonl", "--set", "amount=0.5")
    assert code == 0, complaint
    assert "edits 0, rules 1," in printed and len(Recipe.load(path).rules) == 1


LEARN = ("--model", "tiny-lava")  # a name that is wrong too: what is told of comes before any model is looked for


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["learn", "vtii", "--out", "o.safetensors", *LEARN], "No method is called 'vtii'; did you mean 'vti'?"),
        (["learn", "vti", "--out", "o.bin", *LEARN], ".safetensors file in a folder that exists"),
        (["learn", "vti", "--out", "nowhere/o.safetensors", *LEARN], "in a folder that exists"),
        (["learn", "vti", "--out", "dir.safetensors", *LEARN], "in a folder that exists"),
        (
            ["learn", "vti", "--out", "o.safetensors", "--set", "mod=pc1", *LEARN],
            "no option 'mod'; did you mean 'mode'",
        ),
        (["learn", "vti", "--out", "o.safetensors", "--set", "trials=few", *LEARN], "trials is a int"),
        (["learn", "vti", "--out", "o.safetensors", "--data", "none.jsonl", *LEARN], "none.jsonl"),
        (
            ["learn", "iti", "--out", "o.safetensors", "--data", "ours.jsonl", *LEARN],
            "0 examples of the kind 'presence'",
        ),
        (["learn", "caa", "--out", "o.safetensors", *LEARN], "tiny-llava"),
        (["learn", "vti", "--out", "o.safetensors", "--n", "2", "--set", "mode=pc2", "--set", "image=0"], "'pc2'"),
        (["learn", "caa", "--out", "o.safetensors", "--n", "2", "--set", "layers=7-9"], "no text layers [8, 9]"),
        (["compare", "missing.safetensors", *LEARN], "no recipe file"),
        (["compare", "vtii", "--out", "new", *LEARN], "'vtii' is no recipe file and no method; did you mean 'vti'?"),
        (["compare", "vti+cca", *LEARN], "'cca' is no recipe file and no method; did you mean 'caa'"),
        (["compare", "made.safetensors", "--data", "none.jsonl", *LEARN], "none.jsonl"),
        (["compare", "made.safetensors", "--out", "ours.jsonl/new", *LEARN], "cannot be written"),
        (["compare", "other.safetensors", "vti", "--questions", "0"], "made for tiny-alpaca"),
        (["compare", "made.safetensors+other.safetensors", "--questions", "0"], "made for tiny-alpaca"),
    ],
)
def test_what_a_user_gets_wrong_is_told_before_the_work(
    main: Main, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    (folder / "dir.safetensors").mkdir(exist_ok=True)
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    code, printed, complaint = main(*arguments)
    assert (code, printed) == (2, "") and sentence in complaint
    assert "captions," not in complaint  # nothing was asked yet
    assert sorted(folder.iterdir()) == before


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few validation scenes."""
    for name, value in (("SCENES", 6), ("AGAIN", 6), ("QUESTIONS", 4)):
        monkeypatch.setattr(fitting, name, value)


def test_compare_a_file_a_method_and_both(main: Main, folder: Path, tmp_path: Path, few: None) -> None:
    made = folder / "made.safetensors"
    arms = [made, "caa", f"{made}+caa"]
    counts = ("--n", 10, "--questions", 10, "--pairs", 10, "--controls", 1)
    code, printed, complaint = main("compare", *arms, *counts, "--out", tmp_path / "new" / "folder", "--json")
    assert code == 0, complaint
    report, written = json.loads(printed), tmp_path / "new" / "folder"
    assert json.loads((written / "compare.json").read_text()) == report
    assert list(report["arms"]) == ["made", "caa", "made+caa"] and (report["captions"], report["presence"]) == (10, 10)
    assert report["arms"]["made"]["recipe"] == Recipe.load(made).hash
    learned = Recipe.load(written / "caa.safetensors")
    assert report["arms"]["caa"]["recipe"] == learned.hash and report["fitted"]["caa"]["about"]["examples"] == 10
    assert report["arms"]["made+caa"]["recipe"] == (Recipe.load(made) + learned).hash
    beyond = report["interference"]["made+caa"]["beyond_sum"]["words"]["rate"]
    first, second, joint = (report["arms"][arm]["change"]["words"]["rate"] for arm in report["arms"])
    assert beyond == pytest.approx(joint - first - second)
    answers = json.loads((written / "answers.json").read_text())
    assert {"baseline", "made", "caa", "made+caa", "made, random"} <= set(answers)
    assert len(answers["caa"]["captions"]) == len(answers["caa"]["answers"]) == 10
    page = (written / "compare.md").read_text()
    assert "| made+caa |" in page and "beyond the sum" in page


def test_compare_prints_a_page(main: Main, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    one = shutil.copy(folder / "made.safetensors", tmp_path / "a+b" / "one+two.safetensors")
    code, printed, complaint = main("compare", one, "--n", 10, "--questions", 0, "--controls", 0)
    assert code == 0, complaint
    assert "| one+two |" in printed and "### Captions" in printed and "Yes/no" not in printed.partition("###")[2]


def test_compare_gives_opera_the_attention_that_it_reads(main: Main, tiny: Any, tmp_path: Path) -> None:
    METHODS.load("opera").learn(tiny, ()).save(tmp_path / "opera.safetensors")
    code, printed, complaint = main("compare", tmp_path / "opera.safetensors", "--n", 10, "--questions", 0)
    assert code == 0, complaint
    assert "| opera |" in printed and "| opera, no random control |" in printed


def test_files_of_one_name_keep_their_folders() -> None:
    assert titled(["a/x.safetensors", "vti", "b/y.safetensors"]) == {
        "a/x.safetensors": "x", "vti": "vti", "b/y.safetensors": "y"
    }  # fmt: skip
    parts = ["a/x.safetensors", "b/x.safetensors", "vti.safetensors", "vti"]
    assert titled(parts) == {part: part for part in parts}


def test_recipe_commands_are_part_of_the_program(main: Main, folder: Path, tmp_path: Path) -> None:
    made, both, turned, gguf, back = (
        folder / "made.safetensors", *(tmp_path / f"{name}.safetensors" for name in ("both", "turned")),
        tmp_path / "c.gguf", tmp_path / "back.safetensors",
    )  # fmt: skip
    assert main("recipe", "add", made, made, "--out", both)[0] == 0
    assert main("recipe", "scale", both, "-0.5", "--out", turned)[0] == 0
    plain, edits = Recipe.load(made), Recipe.load(turned).edits
    assert [edit.strength for edit in edits] == [-0.5 * plain.edits[0].strength] * 2
    code, shown, _ = main("recipe", "show", turned, "--json")
    assert code == 0 and json.loads(shown)["hash"] == Recipe.load(turned).hash
    code, shown, _ = main("recipe", "show", made)
    assert code == 0 and "block_out" in shown and "caa" in shown and plain.hash in shown
    for path, form in ((tmp_path / "t.safetensors", "tensors"), (gguf, "gguf")):
        assert main("recipe", "export", made, "--to", form, "--out", path)[0] == 0 and path.stat().st_size > 0
    assert main("recipe", "import", gguf, "--out", back)[0] == 0
    (layer, vector), *_ = plain.edits[0].vectors.layers.items()  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(Recipe.load(back).edits[0].vectors.layers[layer], vector)
    code, _, complaint = main("recipe", "show", tmp_path / "missing.safetensors")
    assert code == 2 and "no recipe file" in complaint
