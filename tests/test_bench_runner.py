"""The runner on a bundled model: the same rows whatever happens to it, and an error is an error."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_worker import BENCHMARK, write
from program import forked

import vlmsteer
from vlmsteer.bench import arms, asking, plan, runner
from vlmsteer.bench.asking import Decoding
from vlmsteer.bench.benchmark import Arm, Item
from vlmsteer.bench.files import Files
from vlmsteer.bench.ledger import rows_in
from vlmsteer.bench.plan import Task
from vlmsteer.bench.ranks import Ranks
from vlmsteer.errors import InputError, RecipeError
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tiny() -> Any:
    return vlmsteer.load("tiny-llava")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("seen"), 4)


@pytest.fixture(scope="module")
def task(data: Path) -> Task:
    return Task(BENCHMARK, BENCHMARK.items(Files(data)))


@pytest.fixture(scope="module")
def made(tiny: Any) -> list[Arm]:
    """The baseline, a recipe that touches the last position, and one that touches all positions."""
    width = tiny.taps[tiny.sites[-1]].width
    vector = torch.randn(width, generator=torch.Generator().manual_seed(55))
    late = Recipe((Edit(Vectors("text", "block_out", {3: vector})),), tiny.fingerprint)
    seen = Recipe((Edit(Vectors("text", "block_out", {1: vector}), positions="all"),), tiny.fingerprint)
    return arms.make({"late": late, "seen": seen}, controls=0)


@pytest.fixture(scope="module")
def whole(tiny: Any, task: Task, made: list[Arm], tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    done = runner.run(tiny, [task], made, folder, batch_size=8)
    assert done.failed == 0 and done.answers == done.asked == len(task.items) * len(made)
    return rows_in(folder / "samples.jsonl")


def untimed(rows: Sequence[dict[str, Any]]) -> Rows:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_every_item_has_one_row_an_arm_in_order(whole: Rows, task: Task, made: list[Arm]) -> None:
    expected = [(arm.name, item.id) for arm in made for item in task.items]
    assert [(row["arm"], row["item"]) for row in whole] == expected
    assert len({row["key"] for row in whole}) == len(expected)
    assert [arm.name for arm in made] == ["none", "late", "seen"]


def test_answers_are_those_of_one_question_at_a_time(whole: Rows, task: Task, made: list[Arm], tiny: Any) -> None:
    by = {(row["arm"], row["item"]): row for row in whole}
    for arm in made:
        for item in task.items:
            row = by[arm.name, item.id]
            if item.choices:
                expected = [
                    float(tiny.score([item.image], [item.prompt], [one], arm.recipe)[0].sum()) for one in item.choices
                ]
                assert list(row["logprobs"].values()) == pytest.approx(expected, abs=1e-3) and row["answer"] == ""
                continue
            assert row["answer"] == tiny.ask(item.image, item.prompt, arm.recipe, item.max_new_tokens or 4)
            logprobs = tiny.logits([item.image], [item.prompt], arm.recipe)[0].log_softmax(-1)
            for word, forms in (("yes", ("Yes", "yes")), ("no", ("No", "no"))):
                ids = {tiny.tokenizer(form, add_special_tokens=False).input_ids[0] for form in forms}
                assert row["logprobs"][word] == pytest.approx(float(logprobs[sorted(ids)].logsumexp(0)), abs=1e-3)
    assert len({row["answer"] for row in whole}) > 5
    steered = [by["late", item.id]["logprobs"] for item in task.items]
    assert steered != [by["none", item.id]["logprobs"] for item in task.items]


def test_questions_about_one_image_share_its_prefix(tiny: Any, task: Task, tmp_path: Path) -> None:
    seen: list[int] = []
    tower = tiny.model.model.vision_tower
    hook = tower.register_forward_hook(lambda module, given, output: seen.append(len(output[0])))
    shown = [item for item in task.items if item.image and task.limit(item) == 4]
    try:
        runner.run(tiny, [replace(task, items=shown)], arms.make({}), tmp_path)
    finally:
        hook.remove()
    assert sum(seen) == len({item.image for item in shown}) == len(shown) / 4


def test_batches_hold_whole_images_and_depend_on_the_items_alone(task: Task) -> None:
    found = plan.batches(task, 8)
    assert sorted(item.id for batch in found for item in batch) == sorted(item.id for item in task.items)
    for batch in found:
        assert len(batch) <= 8
        assert len({(task.limit(item), item.image is None) for item in batch}) == 1
    asked = [batch for batch in found if task.limit(batch[0]) == 4 and batch[0].image]
    assert Counter(len(batch) for batch in asked) == {8: 2}  # two images of four questions each
    many = Task(BENCHMARK, [Item(str(i), "one.png", "?", "g") for i in range(20)])
    assert [len(batch) for batch in plan.batches(many, 8)] == [8, 8, 4]
    with pytest.raises(InputError, match="at least one question"):
        plan.batches(task, 0)


def test_a_limit_keeps_groups_whole(task: Task) -> None:
    sizes = Counter(item.group for item in task.items)
    for most in (1, 6, 13, 36, 1000):
        for shuffle in (None, 3):
            kept = plan.limited(task.items, most, shuffle)
            groups = Counter(item.group for item in kept)
            assert all(groups[group] == sizes[group] for group in groups)
            assert len(kept) <= max(most, 6) and kept == [item for item in task.items if item.group in groups]
            assert set(kept_ids(kept)) <= set(kept_ids(plan.limited(task.items, most + 6, shuffle)))
    assert plan.limited(task.items, 12) != plan.limited(task.items, 12, 1)
    assert plan.limited(task.items, 12, 1) == plan.limited(task.items, 12, 1)
    with pytest.raises(InputError, match="at least 1"):
        plan.limited(task.items, 0)


def kept_ids(items: Sequence[Item]) -> list[str]:
    return [item.id for item in items]


@pytest.mark.parametrize(("kills", "size"), [(5, 8), pytest.param(20, 2, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_as_undisturbed(
    tiny: Any, task: Task, made: list[Arm], tmp_path: Path, kills: int, size: int
) -> None:
    chance, file = random.Random(kills), tmp_path / "killed" / "samples.jsonl"
    for _ in range(kills):
        before, had = len(rows_in(file)), file.stat().st_size if file.exists() else 0
        child = forked(lambda: runner.run(tiny, [task], made, tmp_path / "killed", batch_size=size))
        wanted = had + chance.randint(0, 1)  # sometimes not one answer comes before the end
        while wanted and (not file.exists() or file.stat().st_size < wanted):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        there = rows_in(file)
        assert len({row["key"] for row in there}) == len(there) >= before
    assert len(there) > 0
    runner.run(tiny, [task], made, tmp_path / "killed", batch_size=size)
    runner.run(tiny, [task], made, tmp_path / "undisturbed", batch_size=size)
    assert untimed(rows_in(file)) == untimed(rows_in(tmp_path / "undisturbed" / "samples.jsonl"))


def test_a_finished_run_asks_nothing_again(tiny: Any, task: Task, made: list[Arm], tmp_path: Path) -> None:
    short = replace(task, items=task.items[:6])
    runner.run(tiny, [short], made[:1], tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes()
    done = runner.run(tiny, [short], made[:1], tmp_path, retry_errors=True)
    assert done.asked == 0 and done.answers == 6
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_rows_cut_off_inside_a_batch_come_back_the_same(
    tiny: Any, task: Task, made: list[Arm], whole: Rows, tmp_path: Path
) -> None:
    runner.run(tiny, [task], made, tmp_path, batch_size=8)
    lines = (tmp_path / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_bytes(b"".join(lines[:-30]) + lines[-30][:40])
    done = runner.run(tiny, [task], made, tmp_path, batch_size=8)
    assert done.asked == 30
    assert untimed(rows_in(tmp_path / "samples.jsonl")) == untimed(whole)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_end_as_one(
    tiny: Any, task: Task, made: list[Arm], whole: Rows, tmp_path: Path, world: int
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world), RANK=str(rank), LOCAL_RANK=str(rank)
        )
        ranks = Ranks.here()
        assert ranks == Ranks(rank, world, rank)
        ranks.join()
        done = runner.run(tiny, [task], made, tmp_path, batch_size=8, ranks=ranks)
        assert 0 < done.asked < done.answers == len(whole)
        ranks.leave()

    children = [forked(lambda rank=rank: work(rank)) for rank in range(world)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
    assert untimed(rows_in(tmp_path / "samples.jsonl")) == untimed(whole)
    assert not list(tmp_path.glob("samples-*"))


def test_what_another_process_left_is_not_asked_again(
    tiny: Any, task: Task, made: list[Arm], whole: Rows, tmp_path: Path
) -> None:
    runner.run(tiny, [task], made, tmp_path, batch_size=8)
    (tmp_path / "samples.jsonl").rename(tmp_path / "samples-3.jsonl")
    assert runner.run(tiny, [task], made, tmp_path, batch_size=8).asked == 0
    assert untimed(rows_in(tmp_path / "samples.jsonl")) == untimed(whole)
    assert not list(tmp_path.glob("samples-*"))


def test_an_image_that_cannot_be_read_is_an_error_and_is_asked_when_it_is_repaired(
    tiny: Any, tmp_path: Path, whole: Rows
) -> None:
    data = write(tmp_path / "data", 4)
    good = (data / "2.png").read_bytes()
    (data / "2.png").write_bytes(good[:200])
    task = Task(BENCHMARK, BENCHMARK.items(Files(data)))
    done = runner.run(tiny, [task], arms.make({}), tmp_path / "run", batch_size=8)
    assert {item.partition("-")[0] for item in done.errors["seen", "none"]} == {"2"} and done.failed == 6
    for row in rows_in(tmp_path / "run" / "samples.jsonl"):
        assert (row["error"] is None) == (not row["item"].startswith("2-"))
        if row["error"] is not None:
            assert row["answer"] is None and "2.png" in row["error"] and "truncated" in row["error"]
    assert runner.run(tiny, [task], arms.make({}), tmp_path / "run", batch_size=8).asked == 0
    assert runner.run(tiny, [task], arms.make({}), tmp_path / "run", batch_size=8, retry_errors=True).asked == 6
    with pytest.raises(InputError, match=r"item '2-.*2\.png.*--retry-errors"):
        runner.run(tiny, [task], arms.make({}), tmp_path / "run", batch_size=8, fail_on_error=True)
    (data / "2.png").write_bytes(good)
    done = runner.run(tiny, [task], arms.make({}), tmp_path / "run", batch_size=8)
    assert done.asked == 6 and done.failed == 0
    answers = {row["item"]: row["answer"] for row in whole if row["arm"] == "none"}
    assert {row["item"]: row["answer"] for row in rows_in(tmp_path / "run" / "samples.jsonl")} == answers


def test_one_question_that_cannot_be_asked_does_not_take_others_with_it(
    tiny: Any, task: Task, tmp_path: Path, whole: Rows
) -> None:
    marker = str(tiny.processor.image_token)
    bad = replace(task.items[3], id="bad", prompt=f"What is {marker}?")
    items = [*task.items[:3], bad, *task.items[3:]]
    runner.run(tiny, [replace(task, items=items)], arms.make({}), tmp_path, batch_size=8)
    rows = {row["item"]: row for row in rows_in(tmp_path / "samples.jsonl")}
    assert marker in rows["bad"]["error"] and rows["bad"]["answer"] is None
    answers = {row["item"]: row["answer"] for row in whole if row["arm"] == "none"}
    assert {item: row["answer"] for item, row in rows.items() if item != "bad"} == answers


def test_an_unexpected_exception_is_an_error_with_its_type(
    tiny: Any, task: Task, tmp_path: Path, monkeypatch: Any
) -> None:
    true = tiny.encoder.encode

    def encode(images: Any, questions: Any, answers: Any = None) -> Any:
        if task.items[5].prompt in questions:
            raise ZeroDivisionError("as odd as it gets")
        return true(images, questions, answers)

    monkeypatch.setattr(tiny.encoder, "encode", encode)
    runner.run(tiny, [task], arms.make({}), tmp_path, batch_size=8)
    failed = {row["item"]: row["error"] for row in rows_in(tmp_path / "samples.jsonl") if row["error"]}
    assert failed == {
        item.id: "ZeroDivisionError: as odd as it gets" for item in task.items if item.prompt == task.items[5].prompt
    }
    monkeypatch.setattr(tiny.encoder, "encode", true)
    assert runner.run(tiny, [task], arms.make({}), tmp_path, batch_size=8, retry_errors=True).failed == 0


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("MPS: out of memory")]
)
def test_a_batch_that_memory_does_not_hold_is_halved_and_stays_so(
    tiny: Any, task: Task, tmp_path: Path, monkeypatch: Any, whole: Rows, error: Exception
) -> None:
    sizes: list[int] = []
    true = tiny.opened

    def opened(images: Any, questions: Any, *more: Any) -> Any:
        sizes.append(len(questions))
        if len(questions) > 3:
            raise error
        return true(images, questions, *more)

    monkeypatch.setattr(tiny, "opened", opened)
    done = runner.run(tiny, [task], arms.make({}), tmp_path, batch_size=8)
    assert done.failed == 0
    first = next(i for i, size in enumerate(sizes) if size <= 3)
    assert sizes[:first] == [8, 4] and max(sizes[first + 4 :]) == 2
    answers = [row["answer"] for row in whole if row["arm"] == "none"]
    assert [row["answer"] for row in rows_in(tmp_path / "samples.jsonl")] == answers


def test_a_question_too_large_for_memory_does_not_make_other_batches_small(
    tiny: Any, task: Task, monkeypatch: Any
) -> None:
    items = [item for item in task.items if task.limit(item) == 4 and item.image]
    true = tiny.opened

    def opened(images: Any, questions: Any, *more: Any) -> Any:
        if items[2].prompt in questions:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return true(images, questions, *more)

    monkeypatch.setattr(tiny, "opened", opened)
    asker, batch = asking.Asker(tiny, Decoding(), 8), asking.Batch(tiny, items[:8])
    found = asker.ask(batch, range(8), None, 4, True)
    odd = [row for row in range(8) if items[row].prompt == items[2].prompt]
    assert [row for row, one in found.items() if isinstance(one, str)] == odd
    assert "does not fit into memory" in str(found[odd[0]]) and asker.most >= 2


def test_numbers_that_are_none_are_an_error(tiny: Any, task: Task, tmp_path: Path) -> None:
    huge = torch.full((tiny.taps[tiny.sites[-1]].width,), 3e38)
    recipe = Recipe((Edit(Vectors("text", "block_out", {3: huge}), strength=10.0),), tiny.fingerprint)
    short = replace(task, items=[item for item in task.items if not item.choices][:3])
    done = runner.run(tiny, [short], arms.make({"huge": recipe}, controls=0), tmp_path)
    assert "NaN" in next(iter(done.errors["seen", "huge"].values())) and done.failed == 3


def test_another_run_is_refused_in_the_same_folder(tiny: Any, task: Task, made: list[Arm], tmp_path: Path) -> None:
    short = replace(task, items=task.items[:2])
    runner.run(tiny, [short], made[:2], tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes()
    others: list[tuple[Callable[[], Any], str]] = [
        (lambda: runner.run(tiny, [task], made[:2], tmp_path), r"its tasks\.seen\.items is 2, here 25"),
        (
            lambda: runner.run(tiny, [short], made[:3], tmp_path),
            "its arms are none, late, here none, late, seen",
        ),
        (
            lambda: runner.run(tiny, [replace(short, longest=9)], made[:2], tmp_path),
            r"max_new_tokens\.seen is 4, here 9",
        ),
        (
            lambda: runner.run(tiny, [short], made[:2], tmp_path, Decoding(beams=2)),
            "its decoding.kind is 'greedy', here",
        ),
    ]
    for other, difference in others:
        with pytest.raises(InputError, match=f"holds another run: .*{difference}"):
            other()
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    runner.run(tiny, [short], made[:2], tmp_path, batch_size=1)  # no other answers, only other batches


def test_a_recipe_for_another_model_is_refused_before_the_first_question(
    tiny: Any, task: Task, made: list[Arm], tmp_path: Path
) -> None:
    alien = replace(made[1].recipe, model={**tiny.fingerprint, "id": "tiny-alpaca"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="tiny-alpaca"):
        runner.run(tiny, [task], arms.make({"alien": alien}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_folder_holds_all_that_a_replay_needs(tiny: Any, task: Task, made: list[Arm], tmp_path: Path) -> None:
    short = replace(task, items=task.items[:4], options={"split": "all"})
    runner.run(tiny, [short], made, tmp_path, about={"seed": 7})
    about = json.loads((tmp_path / "run.json").read_text())
    for row, arm in zip(about["arms"], made, strict=True):
        assert (row["name"], row["kind"], row["of"]) == (arm.name, arm.kind, arm.of)
        if arm.recipe is not None:
            assert Recipe.load(tmp_path / row["file"]).hash == row["recipe"] == arm.recipe.hash
    assert about["model"]["id"] == "tiny-llava" and about["decoding"]["kind"] == "greedy" and about["seed"] == 7
    assert about["tasks"][0]["options"] == {"split": "all"}
    rows = [json.loads(line) for line in (tmp_path / "items-seen.jsonl").read_text().splitlines()]
    assert [Item(**{**row, "choices": tuple(row["choices"])}) for row in rows] == short.items


def test_sampling_has_a_seed_an_item_and_beams_are_transformers(tiny: Any, task: Task, tmp_path: Path) -> None:
    captions = replace(task, items=[item for item in task.items if item.max_new_tokens][:3], longest=12)
    said = {}
    for name, decoding in (
        ("one", Decoding(temperature=1.5, seed=1)), ("again", Decoding(temperature=1.5, seed=1)),
        ("two", Decoding(temperature=1.5, seed=2)), ("beams", Decoding(beams=3)),
    ):  # fmt: skip
        batch = 1 if name == "again" else 8
        runner.run(tiny, [captions], arms.make({}), tmp_path / name, decoding, batch)
        said[name] = [row["answer"] for row in rows_in(tmp_path / name / "samples.jsonl")]
    assert said["one"] == said["again"] != said["two"]
    assert said["beams"] == [tiny.ask(one.image, one.prompt, None, 12, num_beams=3) for one in captions.items]
    with pytest.raises(InputError, match="a temperature 0 or more"):
        Decoding(temperature=-1)


def test_arms_are_recipes_times_strengths_with_controls(made: list[Arm]) -> None:
    late = made[1].recipe
    assert late is not None
    found = arms.make({"late": late}, (0, 0.5, 1), controls=2, seed=3)
    assert [arm.name for arm in found] == [
        "none", "late x0", "late x0.5", "late x0.5, random 1", "late x0.5, random 2",
        "late", "late, random 1", "late, random 2",
    ]  # fmt: skip
    norms = [[edit.fixed.norms()[3] * edit.strength for edit in arm.recipe.edits] for arm in found if arm.recipe]
    assert norms[2] == pytest.approx(norms[1]) and norms[5] == pytest.approx(norms[4])
    assert found[3].of == "late x0.5" and found[3].strength == 0.5 and found[3].kind == "random"
    hashes = [arm.recipe.hash for arm in found if arm.recipe]
    assert len(set(hashes)) == len(hashes)
    with pytest.raises(InputError, match="one recipe at one strength"):
        arms.make({"late": late, "same": late})
    with pytest.raises(InputError, match="rename the recipe file"):
        arms.make({"none": late})
