"""lmms-eval itself, offline, on local tasks over drawn pictures: a model answers there as it does in a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_worker import QUESTIONS

import vlmsteer
from vlmsteer.bench.drawn_examples import drawn_examples
from vlmsteer.errors import InputError, ModelError, RecipeError
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install 'vlmsteer[lmms]'")
from vlmsteer.plugins import lmms
from vlmsteer.plugins.manifest import manifests

ROOT = Path(__file__).parents[1]
CHOICES = ["red", "blue", "fire truck"]
FUNCTIONS = """
from PIL import Image

def visual(doc):
    return [Image.open(path) for path in doc["images"]]

def messages(doc):
    shown = [{"type": "image", "url": path} for path in doc["images"]]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": doc["question"]}]}]

def results(doc, results):
    return {"agrees": float(results[0] == doc["answer"])}
"""
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: {kind}
doc_to_visual: !function functions.visual
doc_to_text: question
doc_to_target: answer
{more}
"""
GENERATE = """process_results: !function functions.results
metric_list: [{{metric: agrees, aggregation: mean, higher_is_better: true}}]
generation_kwargs: {generation}
"""


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.set_num_threads(1)
    return vlmsteer.load("tiny-llava", check=False)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Yes/no questions and captions about drawn scenes, and a question without a picture."""
    folder, made = tmp_path_factory.mktemp("pictures"), []
    for number, example in enumerate(drawn_examples("captions", "test", 3)):
        path = folder / f"{number}.png"
        example.image.save(path)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        for question in (QUESTIONS[number].format("dog"), example.question, "What color is it?"):
            made.append({"images": [str(path)], "question": question, "answer": "blue"})
    return [*made, {"images": [], "question": "What color are most strawberries?", "answer": "red"}]


@pytest.fixture(scope="module")
def recipe_file(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(9)
    vectors = {layer: torch.randn(tiny.model.config.text_config.hidden_size, generator=generator) for layer in (3, 4)}
    path = tmp_path_factory.mktemp("recipe") / "push.safetensors"
    Recipe((Edit(Vectors("text", "block_out", vectors), strength=0.8, positions="all"),), tiny.fingerprint).save(path)
    return path


@pytest.fixture(scope="module")
def steer(recipe_file: Path) -> str:
    return f"recipe={recipe_file},recipe_hash={Recipe.load(recipe_file).hash}"


def write_task(folder: Path, documents: list[dict[str, Any]], kind: str = "generate_until", **generation: Any) -> Path:
    """A folder of one local task, "drawn", over the documents."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "functions.py").write_text(FUNCTIONS)
    (folder / "documents.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    more = GENERATE.format(generation=json.dumps(generation))
    if kind == "multiple_choice":
        more = "doc_to_choice: [red, blue, fire truck]\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
    fields = {"name": "drawn", "data": folder / "documents.jsonl", "cache": folder / "cache", "kind": kind}
    (folder / "drawn.yaml").write_text(TASK.format(more=more, **fields))
    return folder


def evaluated(folder: Path, arguments: str, **settings: Any) -> tuple[list[Any], dict[str, Any]]:
    """What lmms-eval has for each document of a folder's task, in order, and the metrics."""
    from lmms_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lmms_eval.models import MODEL_REGISTRY_V2  # pyright: ignore[reportMissingImports]
    from lmms_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    for manifest in manifests():  # the tests also run where vlmsteer is not installed
        MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)
    arguments = f"pretrained=tiny-llava,{arguments}".rstrip(",")
    tasks = TaskManager(include_path=str(folder), include_defaults=False, model_name="vlmsteer")
    found = simple_evaluate("vlmsteer", arguments, tasks=["drawn"], task_manager=tasks, log_samples=True, **settings)
    samples = sorted(found["samples"]["drawn"], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples], found["results"]["drawn"]


def asked(session: Any, documents: list[dict[str, Any]], recipe: Recipe | None, limit: int) -> list[list[str]]:
    """The session's own answer to each document, alone, as lmms-eval lists answers."""
    shown = [(one["images"][0] if one["images"] else None, one["question"]) for one in documents]
    return [[session.ask(image, question, recipe, limit)] for image, question in shown]


@pytest.mark.parametrize("simple", [False, True])
def test_answers_are_those_of_a_session(
    tiny: Any, documents: list[Any], recipe_file: Path, steer: str, simple: bool, tmp_path: Path
) -> None:
    folder = write_task(tmp_path / "task", documents, max_new_tokens=12, temperature=0, do_sample=False)
    recipe = Recipe.load(recipe_file)
    plain, metrics = evaluated(folder, "", batch_size="4", force_simple=simple)
    steered, _ = evaluated(folder, steer, batch_size="4", force_simple=simple)
    half, _ = evaluated(folder, f"{steer},strength=0.5", force_simple=simple, device="cpu")
    assert plain == asked(tiny, documents, None, 12)
    assert steered == asked(tiny, documents, recipe, 12)
    assert half == asked(tiny, documents, 0.5 * recipe, 12)
    assert steered != plain != half
    agrees = [answer == [one["answer"]] for answer, one in zip(plain, documents, strict=True)]
    assert metrics["agrees,none"] == pytest.approx(sum(agrees) / len(agrees))


def test_a_task_s_own_messages_and_way_of_writing(tiny: Any, documents: list[Any], tmp_path: Path) -> None:
    folder = write_task(tmp_path, documents[:3], until=["e", "is"], max_new_tokens=9, num_beams=3)
    task = folder / "drawn.yaml"
    task.write_text(task.read_text() + "doc_to_messages: !function functions.messages\n")
    answers, _ = evaluated(folder, "")
    for answer, one in zip(answers, documents, strict=False):
        whole = tiny.ask(one["images"][0], one["question"], None, 9, num_beams=3)
        assert answer == [min(whole.split("e")[0], whole.split("is")[0], key=len).strip()]


def test_choices_are_ranked_by_what_the_session_scores(
    tiny: Any, documents: list[Any], recipe_file: Path, steer: str, tmp_path: Path
) -> None:
    shown = documents[:4]
    folder = write_task(tmp_path, shown, "multiple_choice")
    scored, metrics = evaluated(folder, steer, force_simple=True, batch_size="5")
    recipe, right, right_normed = Recipe.load(recipe_file), 0, 0
    for found, one in zip(scored, shown, strict=True):
        rows = (one["images"] * 3, [one["question"]] * 3, CHOICES)
        expected = torch.stack([row.sum() for row in tiny.score(*rows, recipes=recipe)])
        losses = torch.tensor([loss for loss, _ in found])
        torch.testing.assert_close(losses, -expected, rtol=1e-4, atol=1e-4)
        said = tiny.ask(one["images"][0], one["question"], recipe, 8)
        assert [is_greedy for _, is_greedy in found] == [said.startswith(choice) for choice in CHOICES]
        right += CHOICES[int(expected.argmax())] == one["answer"]
        lengths = torch.tensor([len(choice) for choice in CHOICES])
        right_normed += CHOICES[int((expected / lengths).argmax())] == one["answer"]
    assert metrics["acc,none"] == right / len(shown)
    assert metrics["acc_norm,none"] == right_normed / len(shown)


def test_the_recipe_must_be_the_one_that_is_named(recipe_file: Path, steer: str) -> None:
    real = Recipe.load(recipe_file).hash
    with pytest.raises(RecipeError, match=f"write recipe_hash={real}"):
        lmms.Steered("tiny-llava", recipe=str(recipe_file))
    wrong = "0" * 64
    with pytest.raises(RecipeError, match=f"recipe_hash={wrong} names: its hash is {real}"):
        lmms.SteeredChat("tiny-llava", recipe=str(recipe_file), recipe_hash=wrong)
    with pytest.raises(RecipeError, match="without a recipe"):
        lmms.Steered("tiny-llava", strength=0.5)
    with pytest.raises(RecipeError, match="made for tiny-llava"):
        lmms.Steered("tiny-qwen-vl", recipe=str(recipe_file), recipe_hash=real)
    with pytest.raises(InputError, match="batch_size"):
        lmms.Steered("tiny-llava", batch_size="auto")
    with pytest.raises(ModelError, match="'recipes'; did you mean 'recipe'"):
        lmms.Steered("tiny-llava", recipes="a")


@pytest.mark.parametrize("simple", [False, True])
def test_what_cannot_be_answered_ends_the_run(documents: list[Any], simple: bool, tmp_path: Path) -> None:
    """An empty answer in its place would be scored."""
    several = {**documents[0], "images": documents[0]["images"] * 2}
    folder = write_task(tmp_path / "several", [documents[0], several], max_new_tokens=3)
    with pytest.raises(InputError, match="Document 1 of task 'drawn' shows 2 images; vlmsteer takes one"):
        evaluated(folder, "", force_simple=simple)
    folder = write_task(tmp_path / "silent", [documents[0], {**documents[1], "question": " "}], max_new_tokens=3)
    with pytest.raises(InputError, match="Document 1 of task 'drawn': The question is empty"):
        evaluated(folder, "", force_simple=simple)


def test_videos_rounds_and_turns_are_refused(tiny: Any, tmp_path: Path) -> None:
    model = lmms.SteeredChat("tiny-llava")
    model.task_dict = {"t": {"test": [None]}}
    for turns, said in (
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "shows video"),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}], "turns system, user"),
    ):
        request = type("Request", (), {"args": ("", lambda _, turns=turns: turns, {}, 0, "t", "test")})
        with pytest.raises(InputError, match=f"Document 0 of task 't' .*{said}"):
            model.generate_until([request])
    with pytest.raises(InputError, match="one question at a time"):
        model.generate_until_multi_round([])


def test_the_command_finds_the_model_by_its_entry_point(
    tiny: Any, documents: list[Any], recipe_file: Path, steer: str, tmp_path: Path
) -> None:
    """The harness's own program, in a process of its own, with its cache of answers."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    installed = tmp_path / "site" / "vlmsteer-0.dist-info"  # as an install would write it
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: vlmsteer\nVersion: 0\n")
    lines = [f"{name} = {where}\n" for name, where in table.items()]
    (installed / "entry_points.txt").write_text("[lmms_eval.models]\n" + "".join(lines))
    paths = [installed.parent, ROOT, ROOT / "counterfacts", os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "hub"),
    }  # fmt: skip
    folder = write_task(tmp_path / "task", documents[:2], max_new_tokens=6, image_aspect_ratio="pad")
    command = (
        f"-m lmms_eval --model vlmsteer --model_args pretrained=tiny-llava,{steer} --tasks drawn "
        f"--include_path {folder} --log_samples --output_path {tmp_path / 'out'} --use_cache {tmp_path / 'cache'}"
    )
    done = subprocess.run(
        [sys.executable, *command.split()], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no generation setting 'image_aspect_ratio'") == 1, done.stdout
    (samples,) = (tmp_path / "out").rglob("*samples_drawn.jsonl")
    answers = {row["doc_id"]: row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())}
    assert [[answers[number]] for number in range(2)] == asked(tiny, documents[:2], Recipe.load(recipe_file), 6)
