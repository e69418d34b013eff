"""A steered model in VLMEvalKit, which has no plug-in point: a name is put into its table of models.

    from vlmsteer.plugins.vlmevalkit import register
    register("tiny-llava-vista", "tiny-llava", recipe="vista.safetensors")
    from vlmeval.run import main; main()        # now: --model tiny-llava-vista --data POPE

Written for ms-vlmeval 0.0.20. It keeps predictions by this name and takes them up again: give every recipe its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmsteer.errors import InputError
from vlmsteer.plugins.steered import chosen, one_image, opened
from vlmsteer.recipe import Recipe

Message = Sequence[dict[str, Any]]


def register(
    name: str,
    pretrained: str,
    recipe: str | Path | Recipe | None = None,
    recipe_hash: str | None = None,
    strength: float | None = None,
    max_new_tokens: int = 512,
    **loading: Any,
) -> str:
    """Give VLMEvalKit a model of ours, in this process; it is loaded when VLMEvalKit wants it.

    Args:
        name: what `--model` calls it.
        pretrained: a model as `vlmsteer.load` takes it.
        recipe: a recipe, or the file of one.
        recipe_hash: refuse the recipe if its hash is another.
        strength: a factor of the recipe's own strength.
        max_new_tokens: of every answer.
        loading: more arguments of `vlmsteer.load`, such as dtype and device_map.

    Returns:
        The name.

    Raises:
        RecipeError: if the recipe cannot be read, or is not the one that its hash names.
        InputError: if VLMEvalKit has a model of this name.
    """
    from vlmeval.config import supported_VLM  # pyright: ignore[reportMissingImports]

    if name in supported_VLM and getattr(supported_VLM[name], "func", None) is not SteeredVLM:
        raise InputError(f"VLMEvalKit has a model {name!r}; give this one another name.")
    kept = chosen(recipe, recipe_hash, strength)
    supported_VLM[name] = partial(SteeredVLM, pretrained, kept, max_new_tokens=max_new_tokens, **loading)
    return name


class SteeredVLM:
    """What VLMEvalKit's BaseModel is to its runner, around a session."""

    INTERLEAVE = False
    is_api = False
    allowed_types = ("text", "image")

    def __init__(
        self, pretrained: str, recipe: Recipe | None = None, max_new_tokens: int = 512, **loading: Any
    ) -> None:
        self.recipe, self.max_new_tokens = recipe, max_new_tokens
        self.session = opened(pretrained, recipe, **loading)
        self.dump_image_func: Callable[..., Any] | None = None

    def set_dump_image(self, dump_image_func: Callable[..., Any]) -> None:
        """Take how a dataset writes the images of a line to files; its own prompts do so already."""
        self.dump_image_func = dump_image_func

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """Whether there is a prompt of ours for a dataset: never, the dataset's own is asked."""
        return False

    def generate(self, message: Message | str, dataset: str | None = None) -> str:
        """As `generate_inner`; a text alone is a question without an image."""
        return self.generate_inner(
            [{"type": "text", "value": message}] if isinstance(message, str) else message, dataset
        )

    def generate_inner(self, message: Message, dataset: str | None = None) -> str:
        """The greedy answer to a message: pieces {"type": "text" or "image", "value": text or path}.

        Raises:
            InputError: if it has several images or a video, or cannot be answered.
        """
        where = f"A message of {dataset}" if dataset else "The message"
        for piece in message:
            if piece["type"] not in self.allowed_types:
                raise InputError(f"{where} shows {piece['type']}; vlmsteer takes one still image for each question.")
        image = one_image([piece["value"] for piece in message if piece["type"] == "image"], where)
        question = "\n".join(piece["value"] for piece in message if piece["type"] == "text")
        return self.session.ask(image, question, self.recipe, self.max_new_tokens)
