"""Threads share one model and never each other's recipes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from engine_recipes import QUESTIONS, both, hooks, recipe
from PIL import Image

from vlmsteer.sites import Site

Pictures = list[Image.Image]
THREADS, ROUNDS = 8, 12


def recipes(session: Any) -> list[Any]:
    """Eight recipes that share sites with each other, of every operation kind; one is the plain model."""
    return [
        None,
        recipe(session, "text.*.block_in", seed=1, size=3.0),
        recipe(session, "text.*.block_in", "replace", 0.5, positions="all", seed=2),
        recipe(session, "text.1.block_out", "add_keep_norm", 2.0, seed=3),
        both(recipe(session, "text.1.block_out", seed=4, size=3.0), recipe(session, "text.0.head", "scale", seed=4)),
        recipe(session, "vision.*.block_in", positions="image", seed=5, size=2.0),
        recipe(session, "projector.0.block_out", "project_out", positions="all", seed=6),
        recipe(session, "text.*.neuron", "clamp", positions="question", seed=7),
    ]


def test_eight_recipes_in_eight_threads(session: Any, pictures: Pictures) -> None:
    steers = recipes(session)
    alone = [
        (session.logits(pictures, QUESTIONS, steer), session.ask(pictures[1], QUESTIONS[0], steer, max_new_tokens=3))
        for steer in steers
    ]
    assert len({answer for _, answer in alone}) > 3
    before, gate = hooks(session.model), threading.Barrier(THREADS)

    def work(number: int) -> list[bool]:
        gate.wait()
        right = []
        for turn in range(ROUNDS):
            logits, answer = alone[number]
            if turn % 3 == 0:
                with session.apply(steers[number]):
                    right.append(torch.equal(session.logits(pictures, QUESTIONS), logits))
            elif turn % 3 == 1:
                right.append(torch.equal(session.logits(pictures, QUESTIONS, steers[number]), logits))
            else:
                *_, last = session.stream(pictures[1], QUESTIONS[0], steers[number], max_new_tokens=3)
                right.append(last == answer)
        return right

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(work, range(THREADS)))
    assert all(all(right) for right in results), results
    assert hooks(session.model) == before


def test_a_plain_thread_beside_hooks_that_come_and_go(llava: Any, pictures: Pictures) -> None:
    """Hooks that are added or removed in the middle of somebody's forward are not theirs to run."""
    plain, stop = llava.logits(pictures[:1], QUESTIONS[:1]), threading.Event()
    sites = set(llava.sites)

    def churn() -> None:
        while not stop.is_set():
            with llava.instrument.installed(sites):
                pass

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(60):
            assert torch.equal(llava.logits(pictures[:1], QUESTIONS[:1]), plain)
    finally:
        stop.set()
        thread.join()


def test_a_hook_called_without_its_keywords_does_nothing(llava: Any) -> None:
    """What torch does when another thread has just removed the hook: the flag for keywords is gone, the hook is not."""
    with llava.instrument.installed({llava.sites[0], llava.sites[-1]}):
        for name, (_, before) in hooks(llava.model).items():
            for hook in before:
                assert hook(llava.model.get_submodule(name), (torch.zeros(1, 2, 32),)) is None


def test_a_thread_starts_without_a_recipe(llava: Any, pictures: Pictures) -> None:
    plain = llava.logits(pictures[:1], QUESTIONS[:1])
    with llava.apply(recipe(llava, "text.*.block_out", size=4.0)), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(llava.logits, pictures[:1], QUESTIONS[:1]).result(), plain)


def test_readers_in_threads_keep_apart(llava: Any, pictures: Pictures) -> None:
    def work(number: int) -> torch.Tensor:
        with llava.read("text.*.block_out") as states:
            for _ in range(3):
                llava.logits([pictures[number % 3]], [QUESTIONS[number % 3]])
        return states["text.2.block_out"]

    alone = [work(number) for number in range(3)]
    with ThreadPoolExecutor(6) as pool:
        for number, states in enumerate(pool.map(work, range(12))):
            assert torch.equal(states, alone[number % 3])


def test_a_stream_may_move_between_threads(llava: Any, pictures: Pictures) -> None:
    steer = recipe(llava, "text.*.block_out", size=4.0)
    whole = list(llava.stream(pictures[0], QUESTIONS[0], steer, max_new_tokens=4))
    running = llava.stream(pictures[0], QUESTIONS[0], steer, max_new_tokens=4)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        pools = [first, second, first, second]
        assert [pool.submit(next, running).result() for pool in pools] == whole
    running.close()


def test_the_lock_may_be_taken_again_by_the_collector(llava: Any, pictures: Pictures) -> None:
    """Closing a stream while hooks are being placed, as the garbage collector does, does not wait for itself."""
    running = llava.stream(pictures[0], QUESTIONS[0], recipe(llava, "text.0.block_out"))
    next(running)

    def close() -> None:
        with llava.instrument._lock:
            running.close()

    thread = threading.Thread(target=close, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_hooks_that_another_thread_adds_in_the_middle_of_a_forward(
    sessions: dict[str, Any], pictures: Pictures
) -> None:
    """A plain question is under way in the vision tower when another thread's recipe comes to edit it."""
    qwen = sessions["qwen2_5_vl"]
    plain, tower, site = qwen.ask(pictures[0], "red?", max_new_tokens=2), qwen.model.model.visual, "vision.1.block_out"
    with ExitStack() as other:
        handle = tower.blocks[0].register_forward_pre_hook(
            lambda *given: other.enter_context(qwen.instrument.installed({Site.parse(site)})) and None
        )
        try:
            assert qwen.ask(pictures[0], "red?", max_new_tokens=2) == plain
        finally:
            handle.remove()
