"""`lmms-eval --model vlmsteer`: its tasks on a steered model, through the entry point group `lmms_eval.models`.

    lmms-eval --model vlmsteer --model_args pretrained=tiny-llava,recipe=a.safetensors,recipe_hash=...,strength=0.5

Written for lmms-eval 0.7.3. Its cache of answers knows a model by these arguments alone, hence the hash. A request that
fails ends the run: an empty answer would be scored. The folder that lmms-eval writes to is named after `pretrained`
only, so plain and steered runs want an `--output_path` each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, unwrap_generation_output  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from loguru import logger  # pyright: ignore[reportMissingImports]
from PIL import Image
from tqdm import tqdm

from vlmsteer.errors import InputError, ModelError, RecipeError, VlmsteerError, did_you_mean
from vlmsteer.plugins.steered import chosen, one_image, opened
from vlmsteer.plugins.writing import Writing, writing

LOADING = ("device_map", "revision", "quantization", "offload_folder")
MARKER = "<image>"  # some tasks write where the image goes; a question's image has its place in the model's own format


class Asked(NamedTuple):
    """What one request shows and asks, and which document it is of."""

    image: Image.Image | str | None
    question: str
    where: str


class Steered(lmms):
    """A model with a recipe, for tasks that give a question as text and its image beside it.

    Args:
        pretrained: a model as `vlmsteer.load` takes it: bundled, a folder, or on the hub.
        recipe: a recipe file.
        recipe_hash: its hash (`vlmsteer recipe show FILE`); needed with a recipe.
        strength: a factor of the recipe's own strength.
        batch_size: questions answered at once; a number, perhaps as text.
        device: "cpu", "cuda", "cuda:1"; by default the GPU if there is one, each process's own if several run.
        dtype, device_map, revision, quantization, offload_folder: as for `vlmsteer.load`.

    Raises:
        VlmsteerError: if an argument is unknown, the model does not load, or the recipe is not the one that is named.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        recipe: str | None = None,
        recipe_hash: str | None = None,
        strength: float | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        max_batch_size: Any = None,
        **more: Any,
    ) -> None:
        super().__init__()
        for name in more.keys() - set(LOADING):
            possible = ("pretrained", "recipe", "recipe_hash", "strength", "batch_size", "device", "dtype", *LOADING)
            raise ModelError(f"--model vlmsteer has no argument {name!r}{did_you_mean(name, possible)}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size is a number from 1 on, not {str(batch_size)!r}.")
        self.batch_size = int(batch_size)
        self.recipe = chosen(recipe, recipe_hash, strength, hash_needed=True)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1 and device in (None, "cuda") and torch.cuda.is_available():
            device = f"cuda:{self.accelerator.local_process_index}"
        more["device_map"] = more.get("device_map") or device
        self.session = opened(pretrained, self.recipe, dtype=dtype, **more)
        self._said: set[str] = set()

    @property
    def device(self) -> torch.device:
        return self.session.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request, in order.

        The stop strings of a task are cut from finished answers; "\\n\\n", which the harness adds to tasks that name
        none, is no stop.

        Raises:
            InputError: if a request shows several images, a video or audio, or cannot be answered; it says which.
        """
        ways = [writing(self._parts(one)[2], self._ignored) for one in requests]
        order = sorted(range(len(requests)), key=lambda i: (repr(ways[i]), i))
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="vlmsteer", disable=self.rank != 0) as bar:
            for _, group in groupby(order, key=lambda i: ways[i]):
                for chunk in _chunks(list(group), self.batch_size):
                    asked = [self._asked(requests[i]) for i in chunk]
                    for i, answer in zip(chunk, self._answers(asked, ways[chunk[0]]), strict=True):
                        cuts = [answer.find(stop) for stop in ways[i].stops if stop in answer]
                        answers[i] = answer[: min(cuts, default=len(answer))]
                    bar.update(len(chunk))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """For each request the loss of its answer, and whether greedy decoding would give it.

        The loss is the negative log-likelihood, summed over the answer's tokens: lmms-eval's multiple choice takes the
        answer with the smallest number, or, for `acc_norm`, the smallest a character. lmms-eval 0.7.3 makes a text of
        every pair that is not wrapped, and its cache of answers takes neither: such tasks run with `--force_simple`
        and without `--use_cache`.

        Raises:
            RecipeError: if the recipe acts while answers are written, which no log-likelihood shows.
            InputError: if a request shows several images, or cannot be read; it says which.
        """
        if self.recipe is not None and self.recipe.decoding:
            names = ", ".join(rule.name for rule in self.recipe.decoding)
            raise RecipeError(f"This recipe acts while answers are written ({names}): run tasks that generate answers.")
        found: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), desc="vlmsteer", disable=self.rank != 0) as bar:
            for chunk in _chunks(range(len(requests)), self.batch_size):
                asked, answers = [], []
                for request in (requests[i] for i in chunk):
                    context, target, visual, doc_id, task, split = request.args
                    document = self.task_dict[task][split][doc_id]
                    answer = target(document) if callable(target) else target
                    asked.append(_simple(context, visual(document), f"Document {doc_id} of task {task!r}"))
                    answers.append(answer.lstrip() if isinstance(answer, str) else answer)
                found += self._scores(asked, answers)
                bar.update(len(chunk))
        pair = (0.0, True)
        return found if unwrap_generation_output(pair)[0] == pair else [GenerationResult(one) for one in found]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: a question and its answer are all that a session knows."""
        raise InputError("vlmsteer answers one question at a time; tasks of several rounds cannot be run with it.")

    def _parts(self, request: Any) -> tuple[Any, Any, Mapping[str, Any], Any, str, str]:
        """Text, what gives the image, generation arguments, document, task and split."""
        context, generation, visual, doc_id, task, split = request.args
        return context, visual, generation, doc_id, task, split

    def _asked(self, request: Any) -> Asked:
        context, visual, _, doc_id, task, split = self._parts(request)
        return _simple(context, visual(self.task_dict[task][split][doc_id]), f"Document {doc_id} of task {task!r}")

    def _answers(self, asked: Sequence[Asked], way: Writing) -> list[str]:
        images, questions = [one.image for one in asked], [one.question for one in asked]
        with _named(asked):
            if not way.generation:
                return self.session.ask_many(images, questions, self.recipe, way.limit, self.batch_size)
            settings = dict(way.generation)
            return [
                self.session.ask(image, question, self.recipe, way.limit, **settings)
                for image, question in zip(images, questions, strict=True)
            ]

    def _scores(self, asked: Sequence[Asked], answers: Sequence[str]) -> list[tuple[float, bool]]:
        images, questions = [one.image for one in asked], [one.question for one in asked]
        with _named(asked):
            encoder = self.session.encoder
            tokens = [
                encoder.answer_tokens(answer, image is not None)[0]
                for answer, image in zip(answers, images, strict=True)
            ]
            longest = max(map(len, tokens))
            logits = self.session.run(images, questions, answers, self.recipe, keep=longest + 1).float()
        found = []
        for row, ids in zip(logits, tokens, strict=True):
            known, ids = row[: len(ids)].log_softmax(-1), ids.to(row.device)
            loss = -known.gather(1, ids[:, None]).sum()
            found.append((float(loss), bool((known.argmax(-1) == ids).all())))
        return found

    def _ignored(self, name: str) -> None:
        if name not in self._said:
            self._said.add(name)
            logger.warning(f"vlmsteer has no generation setting {name!r}; answers are written without it.")


class SteeredChat(Steered):
    """The same for tasks that give chat messages: one user turn with at most one image."""

    is_simple = False

    def _parts(self, request: Any) -> tuple[Any, Any, Mapping[str, Any], Any, str, str]:
        context, messages, generation, doc_id, task, split = request.args
        return context, messages, generation, doc_id, task, split

    def _asked(self, request: Any) -> Asked:
        _, messages, _, doc_id, task, split = self._parts(request)
        where = f"Document {doc_id} of task {task!r}"
        turns = messages(self.task_dict[task][split][doc_id])
        if [turn["role"] for turn in turns] != ["user"]:
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise InputError(f"{where} has the turns {roles}; vlmsteer takes one turn of the user. Try --force_simple.")
        content = turns[0]["content"]
        pieces = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        for piece in pieces:
            if piece["type"] not in ("text", "image"):
                raise InputError(f"{where} shows {piece['type']}; vlmsteer takes one still image for each question.")
        texts = [piece["text"] for piece in pieces if piece["type"] == "text"]
        return _simple("\n".join(texts), [piece["url"] for piece in pieces if piece["type"] == "image"], where)


@contextmanager
def _named(asked: Sequence[Asked]) -> Iterator[None]:
    """Say of which documents an error is."""
    try:
        yield
    except VlmsteerError as error:
        last = f" to {asked[-1].where}" if len(asked) > 1 else ""
        raise InputError(f"{asked[0].where}{last}: {error}") from error


def _simple(context: str, visuals: Sequence[Any] | None, where: str) -> Asked:
    """A question as the harness's simple models get it."""
    image = one_image(list(visuals or ()), where)
    if image is not None and not isinstance(image, (Image.Image, str)):
        raise InputError(f"{where} shows {type(image).__name__}; vlmsteer takes one still image for each question.")
    return Asked(image, context.removeprefix(MARKER).lstrip("\n") if image is not None else context, where)


def _chunks(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
