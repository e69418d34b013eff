"""From images and questions to token batches: prompts in the model's own chat format, laid out whole or split.

Rows are kept without padding; a `Layout` is one way to bring them to the model. Split layouts put the tokens up to the
end of the image (the same for every row) before the rest, so that rows about one image can share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError
from vlmsteer.hooks import Prompt
from vlmsteer.images import open_image


class Layout(NamedTuple):
    """Tensors for one forward: its arguments, (rows, columns) positions, and what is known of the whole prompt."""

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
        question = self.prompt.question
        question = None if question is None else question.repeat_interleave(count, 0)
        return Layout(inputs, self.positions.repeat_interleave(count, 0), Prompt(self.prompt.columns, question))


class Row(NamedTuple):
    """One prompt without padding: token ids, which of them are the question's, how many come up to the image's end."""

    ids: list[int]
    question: list[bool]
    prefix: int


@dataclass
class Encoded:
    """Prompts of a batch. `owners[row]` is the number of the row's image among `vision`'s, or -1."""

    rows: list[Row]
    vision: dict[str, Tensor]
    owners: list[int]
    padding: int

    @property
    def images_used(self) -> int:
        return len(set(self.owners))

    @property
    def shareable(self) -> bool:
        """True if every row begins with the same tokens up to the end of its image."""
        first = self.rows[0]
        return all(
            owner >= 0 and row.prefix == first.prefix and row.ids[: row.prefix] == first.ids[: first.prefix]
            for row, owner in zip(self.rows, self.owners, strict=True)
        )

    def whole(self, device: torch.device) -> Layout:
        """Left-padded prompts with an image for each row that has one."""
        layout = self._padded([row.ids for row in self.rows], [row.question for row in self.rows], 0, device)
        shown = [owner for owner in self.owners if owner >= 0]
        for name, tensor in self.vision.items():
            layout.inputs[name] = tensor[shown].to(device)
        return layout

    def split(self, device: torch.device) -> tuple[Layout, Layout]:
        """The shared prefix, one row an image, and the rest of each row padded between the two."""
        length = self.rows[0].prefix
        images = 1 + max(self.owners)
        ids = torch.tensor([self.rows[0].ids[:length]] * images, device=device)
        positions = torch.arange(length, device=device).expand(images, -1)
        suffix = self._padded(
            [row.ids[length:] for row in self.rows], [row.question[length:] for row in self.rows], length, device
        )
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= {name: tensor.to(device) for name, tensor in self.vision.items()}
        return Layout(inputs, positions, Prompt(suffix.prompt.columns)), suffix

    def _padded(self, ids: list[list[int]], question: list[list[bool]], before: int, device: torch.device) -> Layout:
        length = max(map(len, ids))
        columns = before + length
        tokens = torch.full((len(ids), length), self.padding)
        mask, flags = torch.zeros(len(ids), columns, dtype=torch.long), torch.zeros(len(ids), columns, dtype=torch.bool)
        mask[:, :before] = 1
        for i, (row, asked) in enumerate(zip(ids, question, strict=True)):
            tokens[i, length - len(row) :] = torch.tensor(row)
            mask[i, columns - len(row) :] = 1
            flags[i, columns - len(row) :] = torch.tensor(asked)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
        inputs = {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}
        return Layout(inputs, positions.to(device), Prompt(columns, flags.to(device)))


class Encoder:
    """Makes prompts in a model's own format with its own processor."""

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token: int = config.image_token_id
        self.limit: int = getattr(config.text_config, "max_position_embeddings", 0) or 0
        self._tails: dict[bool, str] = {}

    def encode(self, images: Sequence[Image.Image | str | None], questions: Sequence[str]) -> Encoded:
        """Encode one batch; an image object given several times is processed once.

        Raises:
            InputError: if a question is empty, holds the image placeholder, or is too long; if an image cannot be read.
        """
        if len(images) != len(questions) or not len(questions):
            raise InputError(f"There are {len(images)} images and {len(questions)} questions; give one for one.")
        unique: dict[Any, int] = {}
        opened: list[Image.Image] = []
        owners: list[int] = []
        for image in images:
            if image is None:
                owners.append(-1)
                continue
            key = image if isinstance(image, str) else id(image)
            if key not in unique:
                unique[key] = len(opened)
                opened.append(open_image(image))
            owners.append(unique[key])
        vision: dict[str, Tensor] = {}
        texts = [self._prompt(question, owner >= 0) for question, owner in zip(questions, owners, strict=True)]
        shown = [opened[owner] for owner in owners if owner >= 0]
        batch = self.processor(images=shown or None, text=texts, return_offsets_mapping=True, padding=False)
        if shown:
            # One entry for each image, whichever row it was asked about first.
            firsts = [[owner for owner in owners if owner >= 0].index(number) for number in range(len(opened))]
            vision = {
                name: torch.stack([torch.as_tensor(values[i]) for i in firsts])
                for name, values in batch.items()
                if name not in ("input_ids", "attention_mask", "offset_mapping")
            }
        rows = [
            self._row(ids, offsets, text.removesuffix(self._tail(owner >= 0)), text, question)
            for ids, offsets, text, question, owner in zip(
                batch["input_ids"], batch["offset_mapping"], texts, questions, owners, strict=True
            )
        ]
        return Encoded(rows, vision, owners, self.tokenizer.pad_token_id)

    def decode(self, tokens: Tensor) -> str:
        """The text of generated tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def _prompt(self, question: str, image: bool) -> str:
        if not isinstance(question, str) or not question.strip():
            raise InputError("The question is empty: write what you want to know about the image.")
        marker = self.processor.image_token
        if marker in question:
            raise InputError(f"The question holds {marker!r}, which stands for the image itself; leave it out.")
        return self._render(question, image)

    def _render(self, question: str, image: bool) -> str:
        content = [{"type": "image"}] * image + [{"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _tail(self, image: bool) -> str:
        """What the chat format writes after the question."""
        if image not in self._tails:
            mark = "\ue000"  # a private character: no format holds it
            self._tails[image] = self._render(mark, image).rpartition(mark)[2]
        return self._tails[image]

    def _row(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], asked: str, text: str, question: str) -> Row:
        if self.limit and len(ids) >= self.limit:
            raise InputError(
                f"The prompt has {len(ids)} tokens; this model takes fewer than {self.limit}. Shorten the question."
            )
        # The processor lengthens the text before the question (one placeholder a patch), so count from its end.
        end = max(stop for _, stop in offsets) - (len(text) - len(asked))
        start = end - len(question if asked.endswith(question) else question.strip())
        inside = [start < stop and begin < end and stop > begin for begin, stop in offsets]
        prefix = len(ids) - list(reversed(ids)).index(self.image_token) if self.image_token in ids else 0
        return Row(list(ids), inside, prefix)
