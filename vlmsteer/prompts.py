"""From images and questions to token batches: prompts in the model's own chat format, laid out whole or split.

Rows are kept without padding; a `Layout` is one way to bring them to the model. Split layouts put the tokens up to the
end of the image before the rest, so that rows about one image can share them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.adapters.family import Family
from vlmsteer.errors import InputError
from vlmsteer.images import open_image
from vlmsteer.runs import Prompt


class Layout(NamedTuple):
    """Tensors for one forward: its arguments, the tokens' positions, and what is known of the whole prompt.

    Positions are (rows, columns), with several axes (rows, columns, axes).
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    prompt: Prompt

    def cut(self, count: int) -> tuple[Layout | None, Layout]:
        """All but the last `count` columns of new tokens, and those; the first is None if nothing is left in it."""
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        last = Layout({"input_ids": ids[:, -count:], "attention_mask": mask}, self.positions[:, -count:], self.prompt)
        if ids.shape[1] <= count:
            return None, Layout(self.inputs, self.positions, self.prompt)
        body = {**self.inputs, "input_ids": ids[:, :-count], "attention_mask": mask[:, :-count]}
        return Layout(body, self.positions[:, :-count], self.prompt), last

    def repeat(self, count: int) -> Layout:
        """Every row `count` times in a row."""
        inputs = {name: tensor.repeat_interleave(count, 0) for name, tensor in self.inputs.items()}
        return Layout(inputs, self.positions.repeat_interleave(count, 0), self.prompt.repeat(count))


class Row(NamedTuple):
    """One prompt without padding.

    `ids`, `question` (which are the question's) and `positions` are (tokens,), the last perhaps (tokens, axes);
    `prefix` is how many tokens come up to the image's end; `asked` is the question as other towers take it; `answer`
    are the tokens of an answer that is given, not generated.
    """

    ids: Tensor
    question: Tensor
    positions: Tensor
    prefix: int
    asked: dict[str, Tensor]
    answer: Tensor


@dataclass
class Encoded:
    """Prompts of a batch.

    Attributes:
        rows: the prompts.
        images: what the processor made of each image, tensors whose first dimension is the model's own.
        owners: for each row the number of its image, or -1.
        padding, image_token: token ids.
        start: the decoder's start token if an encoder reads the prompt, else None.
    """

    rows: list[Row]
    images: list[dict[str, Tensor]]
    owners: list[int]
    padding: int
    image_token: int
    start: int | None = None

    def whole(self, device: torch.device) -> Layout:
        """Left-padded prompts with an image for each row that has one; given answers follow, padded on the right."""
        layout = self._padded([0] * len(self.rows), device)
        shown = [row for row, owner in enumerate(self.owners) if owner >= 0]
        layout.inputs.update(_one_after_the_other([self.images[self.owners[row]] for row in shown], device))
        layout.inputs.update(_side_by_side([self.rows[row].asked for row in shown], device))
        if self.start is None:
            return self._answered(layout)
        prompt = {"encoder_ids": layout.inputs.pop("input_ids"), "encoder_mask": layout.inputs.pop("attention_mask")}
        start = torch.full((len(self.rows), 1), self.start, device=device)
        inputs = {"input_ids": start, "attention_mask": torch.ones_like(start), **prompt, **layout.inputs}
        return self._answered(Layout(inputs, torch.zeros_like(start), layout.prompt._replace(start=1)))

    def _answered(self, layout: Layout) -> Layout:
        """The layout with each row's given answer after its prompt."""
        answers = [row.answer for row in self.rows]
        if not max(map(len, answers)):
            return layout
        device, positions = layout.positions.device, layout.positions
        ids = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=self.padding).to(device)
        lengths = torch.tensor([len(answer) for answer in answers], device=device)
        steps = torch.arange(1, ids.shape[1] + 1, device=device)
        given = (steps <= lengths[:, None]).long()
        further = positions[:, -1:] + steps.view(1, -1, *[1] * (positions.dim() - 2))
        inputs = {
            **layout.inputs,
            "input_ids": torch.cat([layout.inputs["input_ids"], ids], 1),
            "attention_mask": torch.cat([layout.inputs["attention_mask"], given], 1),
        }
        return Layout(inputs, torch.cat([positions, further], 1), layout.prompt)

    def prefix(self, rows: Sequence[int], device: torch.device) -> Layout:
        """The tokens of these rows up to their image's end, padded on the left."""
        lengths = [self.rows[row].prefix for row in rows]
        ids, mask = self._flush([self.rows[row].ids[: self.rows[row].prefix] for row in rows], self.padding, device)
        positions, _ = self._flush([self.rows[row].positions[: self.rows[row].prefix] for row in rows], 0, device)
        images = _one_after_the_other([self.images[self.owners[row]] for row in rows], device)
        columns = max(lengths) + max(len(row.ids) - row.prefix for row in self.rows)
        shown = torch.zeros(len(rows), columns, dtype=torch.bool, device=device)
        asked = shown.clone()  # the question comes after its image
        shown[:, : ids.shape[1]] = ids == self.image_token
        return Layout({"input_ids": ids, "attention_mask": mask, **images}, positions, Prompt(columns, asked, shown))

    def suffix(self, device: torch.device) -> Layout:
        """What follows each row's image; its cached beginning is padded on the left, and so is what follows."""
        layout = self._padded([row.prefix for row in self.rows], device)
        begun = max(row.prefix for row in self.rows)
        return self._answered(layout._replace(prompt=layout.prompt._replace(begun=begun)))

    def _padded(self, skips: Sequence[int], device: torch.device) -> Layout:
        """What follows the first tokens of each row, padded to the left of it; `skips` says how many these are."""
        rows, before = list(zip(self.rows, skips, strict=True)), max(skips)
        ids, given = self._flush([row.ids[skip:] for row, skip in rows], self.padding, device)
        asked, _ = self._flush([row.question[skip:] for row, skip in rows], 0, device)
        positions, _ = self._flush([row.positions[skip:] for row, skip in rows], 0, device)
        none = torch.zeros(len(rows), before, dtype=torch.bool, device=device)
        begun = torch.arange(before, device=device) >= before - torch.tensor(skips, device=device)[:, None]
        prompt = Prompt(
            before + ids.shape[1], torch.cat([none, asked], 1), torch.cat([none, ids == self.image_token], 1)
        )
        mask = torch.cat([begun.long(), given], 1)
        return Layout({"input_ids": ids, "attention_mask": mask}, positions, prompt)

    def _flush(self, parts: Sequence[Tensor], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Parts of rows as one batch, flush right, and which of its columns are no padding."""
        length = max(len(part) for part in parts)
        both = [
            (torch.cat([part.new_full((length - len(part), *part.shape[1:]), fill), part]), length - len(part))
            for part in parts
        ]
        lacks = torch.tensor([lack for _, lack in both])
        given = (torch.arange(length) >= lacks[:, None]).long()
        return torch.stack([whole for whole, _ in both]).to(device), given.to(device)


def _one_after_the_other(images: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """The images' tensors joined along the first dimension, padded with zeros where they differ in the others."""
    joined = {}
    for name in images[0] if images else ():
        parts = [image[name] for image in images]
        shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        for i, part in enumerate(parts):
            short = [size - have for size, have in zip(shape, part.shape[1:], strict=True)]
            parts[i] = torch.nn.functional.pad(part, [side for lack in reversed(short) for side in (0, lack)])
        joined[name] = torch.cat(parts).to(device)
    return joined


def _side_by_side(rows: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """(rows, columns) tensors, padded with zeros on the right."""
    names = rows[0] if rows else ()
    return {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True).to(device)
        for name in names
    }


class Distinct:
    """An image processor that looks at each image once, however often it is given; else the real one."""

    def __init__(self, real: Any, packed: bool) -> None:
        self.real, self.packed = real, packed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __call__(self, images: Any, **options: Any) -> Any:
        """As the real one, of a flat list of images."""
        numbers: dict[int, int] = {}
        if not isinstance(images, list):
            return self.real(images, **options)
        places = [numbers.setdefault(id(image), len(numbers)) for image in images]
        if len(numbers) == len(images):
            return self.real(images, **options)
        made = self.real([images[places.index(number)] for number in range(len(numbers))], **options)
        if self.packed:  # all images' patches follow each other in one tensor
            grids = torch.as_tensor(made["image_grid_thw"])
            patches = torch.as_tensor(made["pixel_values"]).split(grids.prod(-1).tolist())
            made["pixel_values"] = torch.cat([patches[place] for place in places])
            made["image_grid_thw"] = grids[places]
            return made
        for name, values in made.items():
            made[name] = values[places] if isinstance(values, Tensor) else [values[place] for place in places]
        return made


class Encoder:
    """Makes prompts in a model's own format with its own processor."""

    def __init__(self, processor: Any, config: Any, family: Family) -> None:
        self.processor, self.tokenizer, self.config, self.family = processor, processor.tokenizer, config, family
        self.image_token: int = config.image_token_id
        self.limit: int = getattr(config.text_config, "max_position_embeddings", 0) or 0
        self.start: int | None = None
        if family.reads_prompt == "encoder":
            self.start = config.text_config.decoder_start_token_id
        self._tails: dict[bool, str] = {}
        self._once = copy.copy(processor)
        self._once.image_processor = Distinct(processor.image_processor, family.patches is not None)

    def encode(
        self,
        images: Sequence[Image.Image | str | None],
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
    ) -> Encoded:
        """Encode one batch; an image object given several times is kept once.

        `answers` follow their prompts as if the model had generated them.

        Raises:
            InputError: if a question is empty, holds the image placeholder, or is too long; if an image cannot be read.
        """
        if len(images) != len(questions) or not len(questions):
            raise InputError(f"There are {len(images)} images and {len(questions)} questions; give one for one.")
        if answers is not None and len(answers) != len(questions):
            raise InputError(f"There are {len(answers)} answers and {len(questions)} questions; give one for one.")
        opened, owners = _unique(images)
        texts = [self._prompt(question, owner >= 0) for question, owner in zip(questions, owners, strict=True)]
        read: list[dict[str, Tensor]] = [{} for _ in opened]
        rows: dict[int, Row] = {}
        for shown in (True, False):
            numbers = [row for row, owner in enumerate(owners) if (owner >= 0) == shown]
            if not numbers:
                continue
            given = {"images": [opened[owners[row]] for row in numbers]} if shown else {}
            text = [texts[row] for row in numbers]
            batch = dict(self._once(text=text, return_offsets_mapping=True, padding=False, **given))
            tokens = {name: batch.pop(name) for name in ("input_ids", "offset_mapping")}
            asked = {name: batch.pop(name) for name in self.family.question_inputs}
            for name in ("attention_mask", "mm_token_type_ids"):
                batch.pop(name, None)
            for row, image in zip(numbers, self._images(batch, len(numbers)), strict=True) if shown else ():
                read[owners[row]] = image
            for i, row in enumerate(numbers):
                aside = {name: torch.as_tensor(values[i]) for name, values in asked.items()} if shown else {}
                image = read[owners[row]] if shown else None
                ids, offsets = torch.as_tensor(tokens["input_ids"][i]), tokens["offset_mapping"][i]
                rows[row] = self._row(ids, offsets, texts[row], questions[row], image, aside)
        ordered = [rows[row] for row in range(len(questions))]
        if answers is not None:
            for row, answer in enumerate(answers):
                tokens, _ = self.answer_tokens(answer, owners[row] >= 0)
                if self.limit and len(ordered[row].ids) + len(tokens) > self.limit:
                    raise InputError(
                        f"Prompt and answer have {len(ordered[row].ids) + len(tokens)} tokens; this model takes "
                        f"{self.limit}. Shorten one."
                    )
                ordered[row] = ordered[row]._replace(answer=tokens)
        return Encoded(ordered, read, owners, self.tokenizer.pad_token_id, self.image_token, self.start)

    def _images(self, batch: dict[str, Any], count: int) -> list[dict[str, Tensor]]:
        """What the processor made of each of `count` images, with a first dimension as the model wants it."""
        if self.family.patches is not None:  # all images' patches follow each other in one tensor
            grids = torch.as_tensor(batch["image_grid_thw"])
            patches = torch.as_tensor(batch["pixel_values"]).split(grids.prod(-1).tolist())
            return [{"pixel_values": patches[i], "image_grid_thw": grids[i : i + 1]} for i in range(count)]
        return [{name: torch.as_tensor(values[i])[None] for name, values in batch.items()} for i in range(count)]

    def answer_tokens(self, answer: str, image: bool = True) -> tuple[Tensor, list[tuple[int, int]]]:
        """An answer as the model would generate it: token ids (tokens,) and where each lies in the text.

        Raises:
            InputError: if the answer is empty.
        """
        if not isinstance(answer, str) or not answer.strip():
            raise InputError("The answer is empty: write what the model is to be taken to have said.")
        marker = str(self.processor.image_token)
        if marker in answer:
            raise InputError(f"The answer holds {marker!r}, which stands for the image itself; leave it out.")
        if self.start is not None:
            read = self.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
            return torch.tensor(read.input_ids), list(read.offset_mapping)
        before = self._tail(image).lstrip() or "?"  # what a token looks like depends on what comes before it
        shown = len(before)  # the space before the answer may be a token of its own, and is the answer's then
        before += "" if before[-1].isspace() else " "
        read = self.tokenizer(before + answer, add_special_tokens=False, return_offsets_mapping=True)
        kept = [i for i, (_, stop) in enumerate(read.offset_mapping) if stop > shown]
        places = [tuple(max(0, place - len(before)) for place in read.offset_mapping[i]) for i in kept]
        return torch.tensor([read.input_ids[i] for i in kept]), places  # pyright: ignore[reportReturnType]

    def decode(self, tokens: Tensor) -> str:
        """The text of generated tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def _prompt(self, question: str, image: bool) -> str:
        if not isinstance(question, str) or not question.strip():
            raise InputError("The question is empty: write what you want to know about the image.")
        marker = str(self.processor.image_token)
        if marker in question:
            raise InputError(f"The question holds {marker!r}, which stands for the image itself; leave it out.")
        return self._render(question, image)

    def _render(self, question: str, image: bool) -> str:
        if self.family.bare_prompt:
            return question
        content = [{"type": "image"}] * image + [{"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _tail(self, image: bool) -> str:
        """What the chat format writes after the question."""
        if image not in self._tails:
            mark = "\ue000"  # a private character: no format holds it
            self._tails[image] = self._render(mark, image).rpartition(mark)[2]
        return self._tails[image]

    def _row(
        self,
        ids: Tensor,
        offsets: Sequence[tuple[int, int]],
        text: str,
        question: str,
        image: dict[str, Tensor] | None,
        asked: dict[str, Tensor],
    ) -> Row:
        if self.limit and len(ids) >= self.limit:
            raise InputError(
                f"The prompt has {len(ids)} tokens; this model takes fewer than {self.limit}. Shorten the question."
            )
        placeholders = (ids == self.image_token).nonzero().flatten()
        prefix = int(placeholders[-1]) + 1 if len(placeholders) else 0
        # The processor lengthens the text before the question (one placeholder a token), so count from its end.
        before = text.removesuffix(self._tail(image is not None))
        end = max(stop for _, stop in offsets[prefix:]) - (len(text) - len(before))
        start = end - len(question if before.endswith(question) else question.strip())
        inside = [
            column >= prefix and first < last and first < end and last > start
            for column, (first, last) in enumerate(offsets)
        ]
        positions = self.family.positions(self.config, ids, image)
        return Row(ids, torch.tensor(inside), positions, prefix, asked, ids.new_empty(0))


def _unique(images: Sequence[Image.Image | str | None]) -> tuple[list[Image.Image], list[int]]:
    """The different images, opened, and for each given one its number among them, or -1 for none."""
    numbers: dict[Any, int] = {}
    opened: list[Image.Image] = []
    owners: list[int] = []
    for image in images:
        if image is None:
            owners.append(-1)
            continue
        key = image if isinstance(image, str) else id(image)
        if key not in numbers:
            numbers[key] = len(opened)
            opened.append(open_image(image))
        owners.append(numbers[key])
    return opened, owners
