"""Error messages and the one door for images: real files of every awkward kind, written by Pillow or cut by hand."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmsteer import errors
from vlmsteer.errors import InputError, VlmsteerError, did_you_mean
from vlmsteer.images import MAX_PIXELS, open_image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def one_sentence(message: str) -> bool:
    return "\n" not in message and message.endswith(".") and len(message) < 300


def test_every_error_has_one_root() -> None:
    for name in ("InputError", "SiteError", "RecipeError", "ModelError"):
        assert issubclass(getattr(errors, name), VlmsteerError)


def test_did_you_mean_names_the_nearest_and_the_possible() -> None:
    points = ["block_in", "block_out", "attn_out"]
    assert did_you_mean("blok_out", points) == "; did you mean 'block_out'? Possible: attn_out, block_in, block_out"
    assert did_you_mean("BLOCK_OUT", points).startswith("; did you mean 'block_out'?")
    assert did_you_mean("zzzz", points) == "; possible: attn_out, block_in, block_out"
    assert did_you_mean("zzzz", []) == ""


def test_did_you_mean_lists_at_most_twelve_and_keeps_the_near_one() -> None:
    tail = did_you_mean("layer_97", [f"layer_{i}" for i in range(100)])
    listed = tail.split("Possible: ")[1].split(", ...")[0].split(", ")
    assert len(listed) == 12 and listed[0] == "layer_97" and tail.endswith("(100 in all)")


@given(st.text(), st.lists(st.text(min_size=1), max_size=30))
def test_did_you_mean_never_fails(given_name: str, options: list[str]) -> None:
    assert did_you_mean(given_name, options).startswith("; ") == bool(options)


def test_path_string_bytes_and_image_agree(tmp_path: Path) -> None:
    picture = noise()
    path = tmp_path / "a.png"
    picture.save(path)
    for source in (path, str(path), path.read_bytes(), picture):
        result = open_image(source)
        assert result.mode == "RGB" and result.tobytes() == picture.tobytes()
    assert type(open_image(path)) is Image.Image


def test_result_is_a_copy() -> None:
    picture = noise()
    before = picture.tobytes()
    open_image(picture).paste((0, 0, 0), (0, 0, 40, 30))
    assert picture.tobytes() == before


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000"])
def test_still_formats_work(kind: str) -> None:
    result = open_image(encoded(noise(), kind))
    assert (result.mode, result.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (16, 8), "red")
    upright.paste("blue", (0, 0, 8, 8))
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = open_image(encoded(stored, kind, exif=exif))
    assert result.size == (16, 8)
    left, right = np.asarray(result)[4, 2].astype(int), np.asarray(result)[4, 13].astype(int)
    assert left[2] - left[0] > 100 and right[0] - right[2] > 100


def test_cmyk_keeps_its_colors() -> None:
    red = Image.new("RGB", (8, 8), (220, 20, 20)).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        pixel = np.asarray(open_image(encoded(red, kind)))[4, 4].astype(int)
        assert np.abs(pixel - (220, 20, 20)).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    result = open_image(encoded(Image.fromarray(values), kind))
    assert np.asarray(result)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_integer_and_float_gray() -> None:
    def grays(values: list[float], kind: type) -> list[int]:
        return np.asarray(open_image(Image.fromarray(np.array([values], dtype=kind))))[0, :, 1].tolist()

    assert grays([0, 7, 255], np.int32) == [0, 7, 255]
    assert grays([0, 257, 65535], np.int32) == [0, 1, 255]
    assert grays([0.0, 0.5, 1.0], np.float32) == [0, 128, 255]
    assert grays([0.0, 100.0, 255.0], np.float32) == [0, 100, 255]
    assert grays([-3.0, -1.0, 1.0], np.float32) == [0, 128, 255]
    assert grays([700.0, 700.0], np.float32) == [0, 0]
    with pytest.raises(InputError, match="finite"):
        grays([0.0, float("nan")], np.float32)


def test_transparency_is_seen_on_white() -> None:
    for mode, color in (("RGBA", (255, 0, 0, 0)), ("LA", (10, 0))):
        assert open_image(encoded(Image.new(mode, (4, 4), color), "PNG")).getpixel((1, 1)) == (255, 255, 255)
    half = open_image(Image.new("RGBA", (4, 4), (255, 0, 0, 128))).getpixel((1, 1))
    assert isinstance(half, tuple) and half[0] == 255 and abs(half[1] - 127) <= 1


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 200, 0])
    assert open_image(encoded(palette, "PNG")).getpixel((0, 0)) == (0, 200, 0)
    for kind in ("PNG", "GIF"):
        data = encoded(palette, kind, transparency=1)
        assert open_image(data).getpixel((0, 0)) == (255, 255, 255)


def test_one_bit_and_gray_and_ycbcr() -> None:
    assert open_image(encoded(Image.new("1", (4, 4), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("L", (4, 4), 9)).getpixel((0, 0)) == (9, 9, 9)
    for mode in ("YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La", "PA", "I;16B"):
        assert open_image(Image.new(mode, (4, 4))).mode == "RGB"


def test_a_phone_picture_with_a_preview_works() -> None:
    stream = io.BytesIO()
    noise().save(stream, "MPO", save_all=True, append_images=[noise(size=(8, 8))])
    assert Image.open(io.BytesIO(stream.getvalue())).format == "MPO"
    assert open_image(stream.getvalue()).size == (40, 30)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_says_how_many_frames(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="has 3 frames; pass one frame"):
        open_image(data)
    opened = Image.open(io.BytesIO(data))
    with pytest.raises(InputError, match="3 frames"):
        open_image(opened)
    opened.seek(1)
    assert open_image(opened.copy()).getpixel((4, 4))[1] > 100  # type: ignore[index]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0005, 0.3, 0.6, 0.9])
def test_truncated_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    data = encoded(noise(size=(200, 150)), kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: max(3, int(len(data) * share))])
    with pytest.raises(InputError) as caught:
        open_image(path)
    assert one_sentence(str(caught.value)) and str(path) in str(caught.value)


def test_missing_folder_empty_and_no_image(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.touch()
    text.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    cases: list[tuple[object, str]] = [
        (tmp_path / "none.png", "No image at"),
        (tmp_path, "is a folder"),
        (empty, "is empty"),
        (text, "is not an image"),
        (b"", "no bytes"),
        (b"hello world, not an image", "is not an image"),
        ("https://example.org/a.png", "web address"),
        ("a\0b", "cannot be opened|No image at"),
        ("x" * 5000, "cannot be opened|No image at"),
        ("/dev/null", "not a regular file"),
        (None, "NoneType"),
        (np.zeros((4, 4, 3), dtype=np.uint8), "ndarray"),
    ]
    for source, expected in cases:
        with pytest.raises(InputError, match=expected) as caught:
            open_image(source)  # type: ignore[arg-type]
        assert expected == "No image at" or len(str(caught.value)) < 5200


def test_zero_size_and_closed_images() -> None:
    with pytest.raises(InputError, match="0 x 5 pixels"):
        open_image(Image.new("RGB", (0, 5)))
    with pytest.raises(InputError):
        open_image(png_header(0, 5))
    opened = Image.open(io.BytesIO(encoded(noise(), "PNG")))
    opened.close()
    with pytest.raises(InputError, match="damaged"):
        open_image(opened)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 10_000), (8_000, 6_251), (2_000_000_000, 2_000_000_000)])
def test_huge_is_refused_before_decoding(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(*size))
    limit = Image.MAX_IMAGE_PIXELS
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(InputError, match="more than 50,000,000 pixels"):
        open_image(path)
    elapsed, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert elapsed < 2 and peak < 5_000_000 and limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_huge_is_refused_when_warnings_are_errors() -> None:
    with pytest.raises(InputError, match="more than 50,000,000 pixels"):
        open_image(png_header(10_000, 10_000))


def test_the_limit_itself_reaches_the_decoder() -> None:
    with pytest.raises(InputError, match="truncated or damaged"):
        open_image(png_header(MAX_PIXELS, 1))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damaged_bytes_work_or_give_a_sentence(kind: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind in ("GIF", "BMP") else {"exif": exif}
    content = bytearray(encoded(noise(size=(4, 3)), kind, **options))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert open_image(bytes(content)).mode == "RGB"
    except InputError as error:
        assert "\n" not in str(error)
