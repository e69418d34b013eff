"""How OpenVLA's vision towers are shown a picture: resized by Pillow, once for each tower, channels stacked.

`resize-naive` stretches the whole picture to the square, `letterbox` first pads it to one, `resize-crop` cuts one out
of its middle. The published statistics are ImageNet's as bfloat16 rounds them; what a checkpoint says is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vlmsteer.errors import ModelError, did_you_mean

STRATEGIES = ("resize-naive", "letterbox", "resize-crop")
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}
IMAGENET = ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375))  # in bfloat16
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class ImageProcessor:
    """What preprocessor_config.json says.

    Args:
        size: the side of the square in pixels.
        statistics: for each tower the mean and the standard deviation of each channel.
        strategy: one of `STRATEGIES`.
        interpolation: one of `FILTERS`.

    Raises:
        ModelError: if strategy or interpolation is unknown.
    """

    size: int = 224
    statistics: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (IMAGENET, HALF)
    strategy: str = "resize-naive"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for given, known in ((self.strategy, STRATEGIES), (self.interpolation, FILTERS)):
            if given not in known:
                raise ModelError(f"Images cannot be prepared by {given!r}{did_you_mean(str(given), known)}")

    @classmethod
    def parse(cls, written: Mapping[str, Any]) -> ImageProcessor:
        """From the content of preprocessor_config.json.

        Raises:
            ModelError: if it says nothing that OpenVLA's processor can follow.
        """
        try:
            sizes = {side for shape in written["input_sizes"] for side in shape[1:]}
            filters = set(written.get("interpolations") or ["bicubic"])
            rows = zip(written["means"], written["stds"], strict=True)
            statistics = tuple((tuple(mean), tuple(std)) for mean, std in rows)
            strategy = written["image_resize_strategy"]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"The checkpoint's preprocessor_config.json is not one of OpenVLA: {error!r}.") from error
        if len(sizes) != 1 or len(filters) != 1:
            raise ModelError("The towers of this checkpoint want pictures of different sizes or interpolations.")
        return cls(sizes.pop(), statistics, strategy, filters.pop())

    def written(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        towers = len(self.statistics)
        return {
            "image_processor_type": "PrismaticImageProcessor",
            "processor_class": "PrismaticProcessor",
            "use_fused_vision_backbone": towers > 1,
            "image_resize_strategy": self.strategy,
            "input_sizes": [[3, self.size, self.size]] * towers,
            "interpolations": [self.interpolation] * towers,
            "means": [list(mean) for mean, _ in self.statistics],
            "stds": [list(std) for _, std in self.statistics],
        }

    def __call__(self, images: Image.Image | Sequence[Image.Image], **options: Any) -> dict[str, Tensor]:
        """`pixel_values` (images, 3 channels a tower, size, size), float32."""
        given = [images] if isinstance(images, Image.Image) else images
        return {"pixel_values": torch.stack([self._prepared(image) for image in given])}

    def _prepared(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(self._square(image.convert("RGB")))).permute(2, 0, 1).float().div(255)
        parts = [(pixels - _column(mean)) / _column(std) for mean, std in self.statistics]
        return torch.cat(parts)

    def _square(self, image: Image.Image) -> Image.Image:
        how, side = FILTERS[self.interpolation], self.size
        if self.strategy == "letterbox":
            image = ImageOps.expand(image, margins(image.size), self._fill)
        if self.strategy == "resize-naive":
            return image.resize((side, side), how)
        short = min(image.size)
        width, height = (side if part == short else int(side * part / short) for part in image.size)
        image = image.resize((width, height), how)
        left, top = round((width - side) / 2), round((height - side) / 2)
        return image.crop((left, top, left + side, top + side))

    @property
    def _fill(self) -> tuple[int, ...]:
        """The color around a letterboxed picture: the last tower's mean, in all towers."""
        return tuple(int(value * 255) for value in self.statistics[-1][0])

    def window(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part of an image of this width and height that the square shows: left, top, right, bottom as fractions.

        A letterboxed picture does not fill the square, so its window is larger than the image.
        """
        width, height = size
        if self.strategy == "resize-naive":
            return 0.0, 0.0, 1.0, 1.0
        if self.strategy == "letterbox":
            across, down = margins(size)
            return -across / width, -down / height, 1 + across / width, 1 + down / height
        across, down = ((1 - min(size) / part) / 2 for part in size)
        return across, down, 1 - across, 1 - down


def margins(size: tuple[int, int]) -> tuple[int, int]:
    """How many pixels left and right, and above and below, make a square of an image."""
    longest = max(size)
    return (longest - size[0]) // 2, (longest - size[1]) // 2


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
