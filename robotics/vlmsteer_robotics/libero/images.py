"""How OpenVLA's evaluation shows LIBERO's camera picture to the policy, without TensorFlow.

Turned by 180 degrees, through JPEG as the training data were, resized to 224 pixels, and cut to the middle 90 % of its
area, as far as training's random crops left it in the mean. (openvla/openvla, `libero_utils.py`, `openvla_utils.py`)

Against TensorFlow 2.21 on four pictures (smooth, noise, edges, a rendered robot): resizing and cropping differ by at
most 1 of 255, in at most 0.2 % of the numbers. The JPEG files hold the same coefficients, but TensorFlow decodes them
by a fast, inexact cosine transform: 0.1 to 1.5 of 255 in the mean, 15 at most. That also is all that differs in the
end: 1.2 of 255 in the mean and 14 at most.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vlmsteer.errors import InputError

SIDE = 224
AREA = 0.9
QUALITY = 95  # TensorFlow's own, with colors at half the resolution


def prepared(frame: np.ndarray, crop: bool = True) -> np.ndarray:
    """What the policy sees of a camera picture.

    Args:
        frame: (height, width, 3) uint8, upside down as LIBERO renders it.
        crop: for policies that were trained with random crops, as the published ones were.

    Returns:
        (224, 224, 3) uint8.

    Raises:
        InputError: the frame is no such picture.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"A picture of shape (height, width, 3) is needed, uint8; {frame.shape} {frame.dtype} came.")
    seen = resized(through_jpeg(frame[::-1, ::-1]))
    return center_crop(seen) if crop else seen


def through_jpeg(picture: np.ndarray) -> np.ndarray:
    """The picture as it is after saving and loading."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def resized(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) uint8 by Lanczos' filter, which is widened where the picture shrinks.

    Channels are resized as floats: Pillow rounds between the two axes of a picture of bytes, TensorFlow does not.
    """
    channels = [Image.fromarray(channel) for channel in np.moveaxis(picture, 2, 0).astype(np.float32)]
    made = [np.asarray(channel.resize((side, side), Image.Resampling.LANCZOS)) for channel in channels]
    return np.stack(made, 2).round().clip(0, 255).astype(np.uint8)


def center_crop(picture: np.ndarray, area: float = AREA) -> np.ndarray:
    """The middle of a picture that holds a part of its area, bilinear at the size of the whole.

    Points are sampled, not averaged: the corners of the result are those of the cut. (`tf.image.crop_and_resize`)
    """
    made = picture / 255
    for axis in (0, 1):
        last = picture.shape[axis] - 1
        at = (1 - np.sqrt(area)) / 2 * last + np.sqrt(area) * np.arange(last + 1)
        before = np.floor(at).astype(int)
        part = (at - before)[:, None] if axis else (at - before)[:, None, None]
        made = (1 - part) * made.take(before, axis) + part * made.take(np.minimum(before + 1, last), axis)
    return (made * 255.5).clip(0, 255).astype(np.uint8)  # TensorFlow cuts off after adding a half
