"""Every image enters the project here, as upright 8-bit RGB or not at all.

What a model cannot see is never hidden from the user: a truncated, animated, huge or empty image gives one sentence
instead of a guess. Transparency is seen on white, the background that the published datasets use. The size is checked
in the header, before a pixel is decoded, because these files come from strangers.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from vlmsteer.errors import InputError

MAX_PIXELS = 50_000_000

# Only self-contained decoders: Pillow's EPS reader, for one, would start Ghostscript on the file.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO", "JPEG2000")

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Open one still image as upright RGB.

    Transparent parts are composited on white and EXIF orientation is applied. 16-bit gray is scaled from 0..65535 to
    0..255. 32-bit integer and float gray keep their values when these lie in 0..255 (floats in 0..1 are multiplied by
    255, integers up to 65535 count as 16-bit) and are stretched from their minimum to their maximum otherwise. Of a
    phone's multi-picture JPEG (MPO) the main picture is taken; the others are its previews or depth maps.

    Args:
        source: a path, the bytes of an image file, or a PIL image (which is left unchanged).

    Returns:
        A new PIL image of mode "RGB", at most 50 million pixels.

    Raises:
        InputError: missing, empty or unreadable file, not an image, truncated, animated, or too large.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "The image")
    if isinstance(source, bytes):
        if not source:
            raise InputError("The image holds no bytes; pass the whole content of an image file.")
        return _decode(io.BytesIO(source), "The image")
    if not isinstance(source, (str, Path)):
        raise InputError(f"An image is a path, bytes or a PIL image, not {type(source).__name__}.")
    if str(source).startswith(("http://", "https://")):
        raise InputError(f"{str(source)!r} is a web address; download the image and pass the file.")

    name = repr(str(source))
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            raise InputError(f"{name} is a folder; pass one image file.")
        if not path.exists():
            raise InputError(f"No image at {name}; check the path (the current folder is {os.getcwd()!r}).")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file; pass one image file.")
        if path.stat().st_size == 0:
            raise InputError(f"{name} is empty (0 bytes); save or download the image again.")
        file = path.open("rb")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be opened: {_reason(error)}.") from error
    with file:
        return _decode(file, name)


def _decode(file: BinaryIO, name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(_too_large(name)) from error
    except Image.UnidentifiedImageError as error:
        known = "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM, TGA, ICO or JPEG 2000"
        raise InputError(f"{name} is not an image that can be read; pass {known}.") from error
    except Exception as error:  # Pillow's readers raise any type on a malformed header
        raise InputError(f"{name} is damaged: {_reason(error)}; save or download it again.") from error
    with image:
        return _upright_rgb(image, name)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width == 0 or height == 0:
        raise InputError(f"{name} is {width} x {height} pixels; pass an image with at least one pixel.")
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(name, f" ({width} x {height})"))
    try:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames == 1:
            image.load()
    except Exception as error:  # as above: the type depends on the format and on where the file breaks
        raise InputError(f"{name} is truncated or damaged: {_reason(error)}; save or download it again.") from error
    if frames > 1:
        raise InputError(f"{name} has {frames} frames; pass one frame, saved as a PNG or as PIL's `image.copy()`.")

    turn = UPRIGHT.get(_orientation(image))
    try:
        rgb = _to_rgb(image, name)
    except ValueError as error:
        raise InputError(f"{name} has the mode {image.mode!r}, which has no RGB form; save it as RGB.") from error
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except (ArithmeticError, LookupError, OSError, EOFError, SyntaxError, TypeError, ValueError, struct.error):
        # Broken metadata says nothing about orientation; the pixels themselves are intact.
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_to_8_bit(image, name).convert("RGB")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())


def _gray_to_8_bit(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds values that are not finite numbers; replace them and save it again.")
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1 and image.mode == "F":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535 and image.mode == "I":
        low, high = 0.0, 65535.0
    span = (high - low) or 1.0
    return Image.fromarray(np.rint((values - low) * (255.0 / span)).astype(np.uint8))


def _too_large(name: str, size: str = "") -> str:
    return f"{name} has more than {MAX_PIXELS:,} pixels{size}; make it smaller first."


def _reason(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    return (strerror or str(error) or type(error).__name__).strip().rstrip(".")
