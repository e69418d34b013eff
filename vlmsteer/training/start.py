"""Starting from a trained model: published vision-language models begin with a trained language model, and so do ours.

Parameters are copied by name from a bundled checkpoint where their sizes agree; token embeddings one by one, where both
tokenizers have the token. Everything else keeps the values it was built with, and is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vlmsteer.loading import BUNDLED


@dataclass(frozen=True)
class Start:
    """What a new run takes over.

    Attributes:
        model: the bundled checkpoint.
        names: prefixes of our parameters -> the checkpoint's (as the library names them once loaded).
        says: what this comes to, for the model card.
        parts: pieces of our parameters' names -> the checkpoint's; of several the values are joined, as in a fused qkv.
        scales: names of our parameters -> a factor, where a norm that followed in the checkpoint has no counterpart.
    """

    model: str
    names: Mapping[str, str]
    says: str
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    def copy_to(self, model: Any, processor: Any) -> list[str]:
        """Copy what fits into an untrained model; returns the names of the parameters that were changed."""
        donor: Any = AutoModelForImageTextToText.from_pretrained(BUNDLED / self.model, dtype=torch.float32)
        theirs: dict[str, Tensor] = dict(donor.named_parameters())
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        copied = []
        with torch.no_grad():
            for name, ours in model.named_parameters():
                if ours is embedding or ours is output:
                    known = AutoTokenizer.from_pretrained(BUNDLED / self.model)
                    _copy_tokens(ours, donor.get_input_embeddings().weight, processor.tokenizer, known)
                    copied.append(name)
                    continue
                found = [theirs[other] for other in self._sources(name) if other in theirs]
                if found and sum(map(Tensor.numel, found)) == ours.numel():
                    ours.copy_(torch.cat(found).view_as(ours) * self.scales.get(name, 1.0))
                    copied.append(name)
        return copied

    def _sources(self, name: str) -> Iterator[str]:
        for prefix, other in self.names.items():
            if name.startswith(prefix):
                renamed = other + name.removeprefix(prefix)
                split = [(part, names) for part, names in self.parts.items() if part in renamed]
                if not split:
                    yield renamed
                for part, names in split:
                    yield from (renamed.replace(part, one) for one in names)


def _copy_tokens(ours: Tensor, theirs: Tensor, tokenizer: Any, known: Any) -> None:
    """The vector of every token that `known` has too, or else has after a space; the others' at the same scale."""
    words = {_text(token): index for token, index in known.get_vocab().items()}
    ours.mul_(theirs.std() / ours.std())
    for token, index in tokenizer.get_vocab().items():
        text = _text(token)
        other = words.get(text, words.get(" " + text))
        if other is not None:
            ours[index] = theirs[other]


def _text(token: str) -> str:
    """A token with plain spaces: Llama's tokenizer writes them "▁", a byte-level one "Ġ"."""
    return token.replace("▁", " ").replace("Ġ", " ")
