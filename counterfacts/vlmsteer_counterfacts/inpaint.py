"""Filling a masked part of a picture: by OpenCV, by any diffusers inpainting pipeline, or by an instruction.

Whatever paints, the result is pasted in through the caller's mask, so that a pixel where the mask is 0 keeps its bytes.
What the painter sees is hidden a little more generously than what is pasted: at another resolution the old color would
otherwise show at the rim. A pipeline runs from a seeded generator on the CPU, so a seed means the same on every device.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.images import open_image

CLASSICAL = ("telea", "navier-stokes")
RADIUS = 5  # pixels around a hidden one that OpenCV looks at
BUNDLED = Path(__file__).parent / "bundled"
LONGEST = 4  # a picture's longer side is shown to a pipeline with at most so many times the side it was trained at
FOREIGN = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, MemoryError)


def fill(image: Image.Image, mask: Image.Image, method: str | Inpainter = "telea") -> Image.Image:
    """Fill what the mask hides from what lies around it.

    Args:
        image: the picture.
        mask: "L" or "1", as large as the picture; 0 keeps the pixel, 255 replaces it, between both is mixed.
        method: "telea" or "navier-stokes" (OpenCV's), or an `Inpainter`, which is given the empty prompt.

    Returns:
        A new RGB picture of the same size, equal to `image` to the last bit where the mask is 0.

    Raises:
        InputError: unknown method, a mask that is empty, of another size or mode, or leaves nothing to continue from.
    """
    if isinstance(method, Inpainter):
        return method(image, mask)
    if method not in CLASSICAL:
        raise InputError(f"No inpainting method {method!r}{did_you_mean(method, CLASSICAL)}; or pass an Inpainter.")
    import cv2

    image, mask = _checked(image, mask)
    hidden = np.asarray(mask) > 0
    if hidden.all():
        raise InputError(
            "The mask hides the whole picture, so there is nothing to fill it from; leave a part of it at 0."
        )
    flag = cv2.INPAINT_TELEA if method == "telea" else cv2.INPAINT_NS
    filled = cv2.inpaint(np.asarray(image), hidden.astype(np.uint8), RADIUS, flag)
    return Image.composite(Image.fromarray(filled), image, mask)


class _Painter:
    """A loaded diffusers pipeline with what it needs to know about sizes, defaults and seeds."""

    def __init__(self, pipeline: Any, name: str, defaults: Mapping[str, float]) -> None:
        takes = inspect.signature(type(pipeline).__call__).parameters
        self.pipeline, self.name, self.takes = pipeline, name, frozenset(takes)
        self.defaults = {"num_inference_steps": takes["num_inference_steps"].default} | dict(defaults)
        self._turn = threading.Lock()  # a pipeline's scheduler counts its steps, so one picture at a time
        pipeline.set_progress_bar_config(disable=True)

    def _paint(self, view: View, seed: int, settings: Mapping[str, Any]) -> Image.Image:
        """Run the pipeline on a view; the painted picture at the original's size."""
        import torch

        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise InputError(f"A seed is a whole number from 0 to 2^63 - 1, not {seed!r}.")
        for name in ("guidance_scale", "image_guidance_scale"):
            scale = settings.get(name)
            if scale is not None and not 0 <= scale < math.inf:
                raise InputError(f"The {name.replace('_', ' ')} is a number from 0 up, not {scale!r}.")
        values: dict[str, Any] = self.defaults | {
            name: value for name, value in settings.items() if value is not None and value != ""
        }
        foreign = sorted(name for name in values if name not in self.takes)
        # Without a word for strength a pipeline always starts from noise, which is what strength 1 means.
        if foreign and not (foreign == ["strength"] and values.pop("strength") == 1.0):
            raise InputError(f"{type(self.pipeline).__name__} of {self.name!r} takes no {', '.join(foreign)}.")
        values.setdefault("prompt", "")
        if {"height", "width"} <= self.takes:
            values |= {"width": view.image.width, "height": view.image.height}
        try:
            with self._turn:
                made = self.pipeline(**values, generator=torch.Generator("cpu").manual_seed(seed))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise InputError(
                f"{self.name!r} does not fit into memory at {view.image.width} x {view.image.height} pixels."
            ) from error
        if any(getattr(made, "nsfw_content_detected", None) or ()):
            raise InputError(f"The safety checker of {self.name!r} withheld the picture; try another seed or prompt.")
        return view.back(made.images[0])

    def _steps(self, steps: int | None) -> int:
        if steps is None:
            return int(self.defaults["num_inference_steps"])
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 1000:
            raise InputError(f"The number of steps is a whole number from 1 to 1000, not {steps!r}.")
        return steps

    def _view(self, image: Image.Image, mask: Image.Image | None) -> View:
        return View(image, mask, *_native(self.pipeline))


class Inpainter(_Painter):
    """An inpainting pipeline: Stable Diffusion 1.5, 2, XL, 3, Flux (fill too), or the bundled "tiny-inpaint".

    Example:
        >>> inpainter = Inpainter.load("tiny-inpaint")
        >>> inpainter(image, mask, "a blue strawberry", seed=1)
    """

    @classmethod
    def load(cls, name_or_folder: str | os.PathLike[str], device: Any = None, dtype: Any = None) -> Inpainter:
        """Load a pipeline with diffusers' `AutoPipelineForInpainting`.

        Args:
            name_or_folder: "tiny-inpaint", a folder with a model_index.json, or a hub name such as
                "stable-diffusion-v1-5/stable-diffusion-inpainting". Only safetensors are read.
            device: "cpu", "cuda", ...; by default the GPU if there is one.
            dtype: a torch dtype or its name; by default float32 on a CPU, bfloat16 (or float16) on a GPU.

        Raises:
            InputError: diffusers is missing, there is no such pipeline, it cannot be loaded, or does not inpaint.
        """
        diffusers = _diffusers()

        def read(source: str, **settings: Any) -> Any:
            try:
                return diffusers.AutoPipelineForInpainting.from_pretrained(source, **settings)
            except ValueError as error:
                # The table of AutoPipeline lacks pipelines that only inpaint, such as FluxFillPipeline.
                if "AutoPipeline can't find" not in str(error):
                    raise
                return diffusers.DiffusionPipeline.from_pretrained(source, **settings)

        painter = _load(cls, read, name_or_folder, device, dtype, "an inpainting pipeline")
        if not {"image", "mask_image"} <= painter.takes:
            raise InputError(f"{painter.name!r} is a {type(painter.pipeline).__name__}, which does not inpaint.")
        _channels(painter, (4, 9), "inpaints")
        return painter

    def __call__(
        self,
        image: Image.Image,
        mask: Image.Image,
        prompt: str = "",
        negative_prompt: str = "",
        strength: float = 1.0,
        guidance_scale: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Image.Image:
        """Paint what the prompt says where the mask is not 0.

        Args:
            image: the picture, of any size; the pipeline sees it near the size it was trained at, aspect kept.
            mask: "L" or "1", as large as the picture; 0 keeps the pixel, 255 replaces it, between both is mixed.
            prompt: what to paint.
            negative_prompt: what to keep away from; counts only with a guidance scale above 1.
            strength: 0 to 1; below 1 the painting starts from the picture instead of noise.
            guidance_scale: weight of the prompt; by default the pipeline's own.
            steps: denoising steps; by default the pipeline's own.
            seed: of the noise. The same seed gives the same bytes on a CPU.

        Returns:
            A new RGB picture of the same size, equal to `image` to the last bit where the mask is 0.

        Raises:
            InputError: a mask that is empty or of another size, or a setting out of range.
        """
        image, mask = _checked(image, mask)
        if not 0 < strength <= 1:
            raise InputError(f"The strength is above 0 and at most 1, not {strength}.")
        steps = self._steps(steps)
        if int(steps * strength) < 1:
            raise InputError(
                f"{steps} steps at strength {strength} come to none; take {math.ceil(1 / strength)} or more."
            )
        view = self._view(image, mask)
        settings = {
            "image": view.image,
            "mask_image": view.mask,
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "strength": strength,
            "guidance_scale": guidance_scale,
            "num_inference_steps": steps,
        }
        return Image.composite(self._paint(view, seed, settings), image, mask)


class InstructEditor(_Painter):
    """An InstructPix2Pix pipeline: "make the strawberry blue"."""

    @classmethod
    def load(cls, name_or_folder: str | os.PathLike[str], device: Any = None, dtype: Any = None) -> InstructEditor:
        """Load a `StableDiffusionInstructPix2PixPipeline`; arguments and errors are those of `Inpainter.load`."""
        read = _diffusers().StableDiffusionInstructPix2PixPipeline.from_pretrained
        painter = _load(cls, read, name_or_folder, device, dtype, "an InstructPix2Pix pipeline")
        _channels(painter, (8,), "follows instructions")
        return painter

    def __call__(
        self,
        image: Image.Image,
        instruction: str,
        mask: Image.Image | None = None,
        negative_prompt: str = "",
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Image.Image:
        """Edit a picture as the instruction says; with a mask, only where it is not 0.

        Args:
            image: the picture, of any size.
            instruction: what to change.
            mask: as for `Inpainter`; None changes the whole picture.
            negative_prompt: what to keep away from.
            guidance_scale: weight of the instruction; by default the pipeline's own.
            image_guidance_scale: weight of the picture as it was; by default the pipeline's own.
            steps: denoising steps; by default the pipeline's own.
            seed: of the noise. The same seed gives the same bytes on a CPU.

        Returns:
            A new RGB picture of the same size.

        Raises:
            InputError: an empty instruction, a mask that is empty or of another size, or a setting out of range.
        """
        if not instruction.strip():
            raise InputError('The instruction is empty; say what to change, for example "make the strawberry blue".')
        image, mask = (open_image(image), None) if mask is None else _checked(image, mask)
        view = self._view(image, None)
        settings = {
            "image": view.image,
            "prompt": instruction,
            "negative_prompt": negative_prompt,
            "guidance_scale": guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "num_inference_steps": self._steps(steps),
        }
        painted = self._paint(view, seed, settings)
        return painted if mask is None else Image.composite(painted, image, mask)


class View:
    """A picture and its mask as a pipeline takes them, and the way back.

    The picture is scaled to about `side` x `side` pixels in area, its aspect kept, and continued to the right and below
    by its own edge up to the next multiple of `multiple`. Its mask is white wherever a hidden pixel has any part.
    """

    def __init__(self, image: Image.Image, mask: Image.Image | None, side: int, multiple: int) -> None:
        self.original = image.size
        scale = min(side / math.sqrt(image.width * image.height), LONGEST * side / max(image.size))
        self.size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        # Box filters mix exactly the pixels that the mask covers; bicubic ones reach two pixels further.
        larger = self.size[0] > image.width or self.size[1] > image.height
        filters = Image.Resampling.BICUBIC if larger else Image.Resampling.BOX
        self.image = self._padded(image.resize(self.size, filters), multiple, "edge")
        self.mask = None
        if mask is not None:
            hidden = mask.point(lambda value: 255 if value else 0)
            hidden = hidden.filter(ImageFilter.MaxFilter(5)) if larger else hidden
            hidden = hidden.resize(self.size, Image.Resampling.BOX).point(lambda value: 255 if value else 0)
            self.mask = self._padded(hidden, multiple, "constant")

    def back(self, painted: Image.Image) -> Image.Image:
        """The painted picture at the original's size."""
        inner = painted.convert("RGB").crop((0, 0, *self.size))
        return inner if self.size == self.original else inner.resize(self.original, Image.Resampling.BICUBIC)

    @staticmethod
    def _padded(image: Image.Image, multiple: int, mode: Any) -> Image.Image:
        pixels = np.asarray(image)
        room = [(0, -length % multiple) for length in pixels.shape[:2]]
        return Image.fromarray(np.pad(pixels, [*room, (0, 0)][: pixels.ndim], mode=mode))


def _checked(image: Image.Image, mask: Image.Image) -> tuple[Image.Image, Image.Image]:
    if not isinstance(mask, Image.Image) or mask.mode not in ("L", "1"):
        given = f"mode {mask.mode!r}" if isinstance(mask, Image.Image) else type(mask).__name__
        raise InputError(f'A mask is a PIL image of mode "L" or "1" (0 keeps, 255 replaces), not {given}.')
    image, mask = open_image(image), mask.convert("L")
    if mask.size != image.size:
        sizes = [f"{size[0]} x {size[1]}" for size in (mask.size, image.size)]
        raise InputError(f"The mask is {sizes[0]} pixels, the picture {sizes[1]}; they must be equal.")
    if mask.getbbox() is None:
        raise InputError("The mask is empty (0 everywhere), so there is nothing to fill; mark what is to be replaced.")
    return image, mask


def _native(pipeline: Any) -> tuple[int, int]:
    """The side in pixels that a pipeline was trained at, and what sides must be a multiple of."""
    scale = pipeline.vae_scale_factor
    for holder, name in (("unet", "config"), ("transformer", "config")):
        size = getattr(getattr(getattr(pipeline, holder, None), name, None), "sample_size", None)
        if size:
            return (size if isinstance(size, int) else min(size)) * scale, 8 * scale
    return getattr(pipeline, "default_sample_size", 64) * scale, 8 * scale


def _channels(painter: _Painter, possible: tuple[int, ...], does: str) -> None:
    config = getattr(getattr(painter.pipeline, "unet", None), "config", None)
    if config is not None and config.in_channels not in possible:
        wanted = " or ".join(map(str, possible))
        raise InputError(
            f"The UNet of {painter.name!r} has {config.in_channels} input channels; one that {does} has {wanted}."
        )


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise InputError(
            "Inpainting models need the package diffusers; install it with: pip install 'vlmsteer[diffusion]'."
        ) from error
    return diffusers


def _load(cls: Any, read: Any, given: str | os.PathLike[str], device: Any, dtype: Any, what: str) -> Any:
    """Find and read a pipeline; what goes wrong becomes one sentence."""
    import torch
    from safetensors import SafetensorError

    name = os.fspath(given)
    bundled = {path.parent.name: path.parent for path in sorted(BUNDLED.glob("*/model_index.json"))}
    folder = Path(bundled.get(name, name)).expanduser()
    local = folder.is_dir()
    if local and not (folder / "model_index.json").is_file():
        raise InputError(f"The folder {name!r} holds no model_index.json, so it is not a diffusers pipeline.")
    if not local and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise InputError(
            f"There is no pipeline {name!r}: it is neither bundled nor a folder, and hub names look like owner/name"
            f"{did_you_mean(name, bundled)}."
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        fast = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
        dtype = torch.float32 if device.type == "cpu" else fast
    elif isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise InputError(f"No dtype {dtype!r}{did_you_mean(dtype, ('float32', 'bfloat16', 'float16'))}.")
        dtype = getattr(torch, dtype)
    try:
        with warnings.catch_warnings():
            # Newer versions call it dtype; older ones know only this name, and newer ones still take it.
            warnings.filterwarnings("ignore", ".*torch_dtype. is deprecated", FutureWarning)
            pipeline = read(str(folder) if local else name, torch_dtype=dtype, use_safetensors=True)
        tuned = folder / "generation_config.json"
        defaults = json.loads(tuned.read_text(encoding="utf-8")) if local and tuned.is_file() else {}
        return cls(pipeline.to(device), Path(name).resolve().name if local else name, defaults)
    except (*FOREIGN, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        hint = "" if local else " If the hub cannot be reached, give the folder of a downloaded copy."
        raise InputError(f"{name!r} could not be loaded as {what}: {lines[0].rstrip('.')}.{hint}") from error
