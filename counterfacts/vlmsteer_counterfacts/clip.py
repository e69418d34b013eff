"""Does a picture show what it should? A contrastive model says how well each caption fits it.

Any open_clip model will do: the bundled tiny-clip, which knows the drawn world and nothing else, or a published one.
All of them come through open_clip's own loader, so the same two lines score drawings and photos.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmsteer.errors import InputError, ModelError, did_you_mean
from vlmsteer.images import open_image

BUNDLED = Path(__file__).parent / "bundled"
TINY = "tiny-clip"


@dataclass(frozen=True)
class Scorer:
    """A loaded contrastive model; make one with `load_scorer`.

    Attributes:
        name: what it was loaded as.
        model: open_clip's model.
        preprocess: a PIL image -> its tensor.
        tokenizer: texts -> token ids.
        device: where the model is.
        batch: how many images or texts it is given at once.
    """

    name: str
    model: Any
    preprocess: Callable[[Image.Image], Any]
    tokenizer: Any
    device: str
    batch: int = 64

    def __call__(self, images: Sequence[str | Path | bytes | Image.Image], texts: Sequence[str]) -> np.ndarray:
        """How well each text fits each image: cosine similarities, (images, texts) as float32.

        Raises:
            InputError: an image cannot be read, or a text is too long for the model.
        """
        if isinstance(texts, str) or isinstance(images, (str, bytes, Path, Image.Image)):
            raise InputError("Scoring takes a list of images and a list of texts; put a single one into a list.")
        if not len(images) or not len(texts):
            return np.zeros((len(images), len(texts)), np.float32)
        return self._embed_images(images) @ self._embed_texts(list(texts)).T

    def agrees(self, image: str | Path | bytes | Image.Image, right: str, wrong: str) -> float:
        """By how much the image is nearer to the right caption than to the wrong one; below 0 it is not.

        Example:
            >>> load_scorer().agrees("blue_strawberry.png", "a blue strawberry", "a red strawberry") > 0
            True
        """
        first, second = self([image], [right, wrong])[0]
        return float(first - second)

    def _embed_images(self, images: Sequence[Any]) -> np.ndarray:
        import torch

        found = []
        with torch.inference_mode():
            for first in range(0, len(images), self.batch):
                pixels = [self.preprocess(open_image(image)) for image in images[first : first + self.batch]]
                found.append(self.model.encode_image(torch.stack(pixels).to(self.device), normalize=True))
        return torch.cat(found).float().cpu().numpy()

    def _embed_texts(self, texts: list[str]) -> np.ndarray:
        import torch

        limit, found = int(self.model.context_length), []
        longer = self.tokenizer([*texts, ""], context_length=limit + 1)  # a cut text is not told: see if more would fit
        for text, last in zip(texts, longer[:-1, -1] != longer[-1, -1], strict=True):
            if last:
                raise InputError(f"{self.name!r} reads at most {limit} tokens; shorten the text {text!r}.")
        with torch.inference_mode():
            for first in range(0, len(texts), self.batch):
                tokens = self.tokenizer(texts[first : first + self.batch]).to(self.device)
                found.append(self.model.encode_text(tokens, normalize=True))
        return torch.cat(found).float().cpu().numpy()


def load_scorer(name: str = TINY, device: str | None = None, batch: int = 64) -> Scorer:
    """A contrastive model by name.

    Args:
        name: "tiny-clip" (bundled; only objects of the drawn world), an architecture of open_clip with the tag or the
            file of its weights ("ViT-B-32/laion2b_s34b_b79k", "ViT-B-32/weights.safetensors"), a hub name
            ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), or a folder in the layout that open_clip publishes.
        device: "cpu", "cuda", "cuda:1", ...; by default a GPU if there is one.
        batch: how many images or texts the model is given at once.

    Raises:
        InputError: the device does not exist here, or the batch is empty.
        ModelError: there is no such model, or it is neither here nor can it be downloaded.
    """
    if batch < 1:
        raise InputError(f"A batch holds at least 1 image, not {batch}.")
    device = _device(device)
    source, options = _source(name)
    import open_clip
    import torch

    with _one_sentence(name):
        model, preprocess = open_clip.create_model_from_pretrained(source, device=device, **options)  # pyright: ignore
        tokenizer = open_clip.get_tokenizer(source)
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):  # pyright: ignore
        raise ModelError(f"The weights of {name!r} hold values that are not numbers; download them again.")
    return Scorer(name, model.eval(), preprocess, tokenizer, device, batch)  # pyright: ignore[reportArgumentType]


def _device(given: str | None) -> str:
    import torch

    if given is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=given)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise InputError(f"There is no device {given!r} here; use 'cpu', or leave it out.") from error
    return given


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """A name as open_clip takes it, with what else it must be told."""
    import open_clip

    if name == TINY:
        return f"local-dir:{BUNDLED / TINY}", {}
    if name.startswith("hf-hub:"):
        return name, {}
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if name and folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise ModelError(f"{name!r} has no open_clip_config.json; pass a folder as open_clip publishes them.")
        return f"local-dir:{folder}", {}
    architecture, _, weights = name.partition("/")
    if architecture not in open_clip.list_models():
        raise ModelError(
            f"There is no contrastive model {name!r}: it is not {TINY!r}, a folder, 'hf-hub:owner/name' or "
            f"'architecture/tag' of open_clip{did_you_mean(architecture, [TINY, *open_clip.list_models()])}."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights in tags:
        # open_clip only warns where weights and architecture differ in this, and the scores would quietly be wrong.
        gelu = open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu", False)
        return architecture, {"pretrained": weights, "force_quick_gelu": bool(gelu)}
    if Path(weights).expanduser().is_file():
        return architecture, {"pretrained": str(Path(weights).expanduser())}
    raise ModelError(
        f"{architecture!r} has no weights {weights!r}: neither a tag nor a file{did_you_mean(weights, tags)}."
    )


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """What any library below raises, a network's errors among them, as one sentence."""
    root = logging.getLogger()
    root.addFilter(_not_open_clip)  # it logs every error that it raises, to the root logger
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if "download" in reason.lower() or "connect" in reason.lower():
            reason = "it is not on this computer and could not be downloaded"
        raise ModelError(
            f"{name!r} cannot be loaded: {reason[:300]}. Check the name and the connection, give a folder with its "
            f"files, or use {TINY!r}, which needs no download."
        ) from error
    finally:
        root.removeFilter(_not_open_clip)


def _not_open_clip(record: logging.LogRecord) -> bool:
    return "open_clip" not in record.pathname
