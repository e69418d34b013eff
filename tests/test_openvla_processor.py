"""What the processor makes of a picture and an instruction, computed again with plain Pillow, torchvision and torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as plain

from vlmsteer.errors import InputError, ModelError
from vlmsteer.openvla.images import ImageProcessor
from vlmsteer.openvla.processor import OpenVLAProcessor

# ImageNet's mean and deviation, rounded to bfloat16 (8 bits), as the published file has them.
MEAN, STD = [0.484375, 0.455078125, 0.40625], [0.228515625, 0.2236328125, 0.224609375]
SHAPES = [(40, 40), (61, 28), (28, 61), (224, 224), (200, 333), (224, 300)]


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(sum(size)))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def expected(image: Image.Image, strategy: str, side: int) -> Tensor:
    """Step by step by torchvision, as the published processor does it."""
    if strategy == "letterbox":
        width, height = image.size
        across, down = (int((max(image.size) - part) / 2) for part in (width, height))
        image = plain.pad(image, [across, down, across, down], fill=(127, 127, 127))  # pyright: ignore[reportArgumentType, reportAssignmentType]
    size = [side, side] if strategy == "resize-naive" else side
    image = plain.resize(image, size, plain.InterpolationMode.BICUBIC, antialias=True)  # pyright: ignore[reportArgumentType, reportAssignmentType]
    pixels = plain.to_tensor(plain.center_crop(image, [side, side]))  # pyright: ignore[reportArgumentType]
    return torch.cat([plain.normalize(pixels, MEAN, STD), plain.normalize(pixels, [0.5] * 3, [0.5] * 3)])


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
@pytest.mark.parametrize("size", SHAPES)
def test_pixels_equal_a_plain_computation(strategy: str, size: tuple[int, int]) -> None:
    for side in (28, 224):
        made = ImageProcessor(side, strategy=strategy)([picture(size)])["pixel_values"]
        assert made.shape == (1, 6, side, side) and made.dtype == torch.float32
        assert torch.equal(made[0], expected(picture(size), strategy, side))


def test_statistics_are_imagenets_in_bfloat16() -> None:
    for given, exact in ((MEAN, [0.485, 0.456, 0.406]), (STD, [0.229, 0.224, 0.225])):
        assert torch.tensor(exact).to(torch.bfloat16).tolist() == given
    assert ImageProcessor().statistics[0] == (tuple(MEAN), tuple(STD))


def test_a_gray_picture_by_hand() -> None:
    made = ImageProcessor(28)(Image.new("L", (9, 9), 51))["pixel_values"][0]  # 51 / 255 = 0.2
    color = [(0.2 - MEAN[0]) / STD[0], (0.2 - MEAN[1]) / STD[1], (0.2 - MEAN[2]) / STD[2], -0.6, -0.6, -0.6]
    torch.testing.assert_close(made, torch.tensor(color)[:, None, None].expand(6, 28, 28))


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
@pytest.mark.parametrize("size", [(60, 60), (120, 60), (60, 180)])
def test_the_window_is_what_the_square_shows(strategy: str, size: tuple[int, int]) -> None:
    """A dot in the image is found where the window says."""
    images = ImageProcessor(60, strategy=strategy, interpolation="bilinear")
    left, top, right, bottom = images.window(size)
    dot = Image.new("RGB", size, "black")
    x, y = int(size[0] * 0.45), int(size[1] * 0.55)
    dot.paste("white", (x - 2, y - 2, x + 3, y + 3))
    shown = images(dot)["pixel_values"][0, 3:].sum(0)
    shown = (shown - shown.min()) * (shown > 0)
    found = torch.stack([shown.sum(0) @ torch.arange(60.0), shown.sum(1) @ torch.arange(60.0)]) / shown.sum()
    wanted = [60 * ((x + 0.5) / size[0] - left) / (right - left), 60 * ((y + 0.5) / size[1] - top) / (bottom - top)]
    torch.testing.assert_close(found + 0.5, torch.tensor(wanted), atol=0.5, rtol=0)


@pytest.fixture(scope="module")
def llama() -> Any:
    """A tokenizer with Llama 2's numbers: 32,000 tokens, the empty one 29871, padding 32000."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(33, 127)]
    fill = [f"filler{number}" for number in range(32000 - len(pieces) - len(letters) - 1)]
    order = [*pieces, *letters, *fill]
    order.insert(29871, "▁")
    tokenizer = tf.LlamaTokenizer(vocab={piece: number for number, piece in enumerate(order)}, merges=[])
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    return tokenizer


def made(tokenizer: Any, prompt: str = "v0.2") -> OpenVLAProcessor:
    return OpenVLAProcessor(ImageProcessor(28), tokenizer, 4, 32064, prompt)


def turn(text: str, image: bool = True) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}] * image + [{"type": "text", "text": text}]}]


def test_prompts_are_the_published_ones(llama: Any) -> None:
    new, old = made(llama), made(llama, "v0.1")
    assert new.apply_chat_template(turn("Pick UP the cup")) == (
        "<image>In: What action should the robot take to pick up the cup?\nOut: "
    )
    assert old.apply_chat_template(turn("Pick UP the cup"), add_generation_prompt=False) == (
        "<image>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: What action should the robot take to Pick UP the "
        "cup? ASSISTANT:"
    )
    assert new.apply_chat_template(turn("go", image=False)).startswith("In: What")
    with pytest.raises(InputError, match="one instruction"):
        new.apply_chat_template(turn("a") * 2)
    with pytest.raises(ModelError, match="v0.3"):
        made(llama, "v0.3")


def test_token_ids(llama: Any) -> None:
    """Start, a placeholder a patch, the text as the tokenizer has it by itself, and 29871 at the very end."""
    text = "<image>In: What action should the robot take to lift it?\nOut: "
    both = made(llama)(text=[text, "<image>In:"], images=[picture((40, 40))] * 2, return_offsets_mapping=True)
    ids, offsets = both["input_ids"][0], both["offset_mapping"][0]
    alone = llama("In: What action should the robot take to lift it?\nOut:", add_special_tokens=False).input_ids
    assert ids == [1, 32064, 32064, 32064, 32064, *alone, 29871]
    assert both["input_ids"][1] == [1, *[32064] * 4, *llama("In:", add_special_tokens=False).input_ids]
    assert len(offsets) == len(ids) and offsets[:5] == [(0, 0)] * 5 and offsets[-1][1] == len(text) - len("<image>")
    assert both["pixel_values"].shape == (2, 6, 28, 28)


def test_rows_are_padded_on_the_left(llama: Any) -> None:
    batch = made(llama)(text=["In: a\nOut: ", "<image>In: go there\nOut: "], return_tensors="pt")
    single = [made(llama)(text=one)["input_ids"][0] for one in ("In: a\nOut: ", "<image>In: go there\nOut: ")]
    lack = len(single[1]) - len(single[0])
    assert batch["input_ids"].tolist() == [[32000] * lack + single[0], single[1]]
    assert batch["attention_mask"].tolist() == [[0] * lack + [1] * len(single[0]), [1] * len(single[1])]


def test_what_the_processor_refuses(llama: Any) -> None:
    with pytest.raises(InputError, match="can only begin a text"):
        made(llama)(text="In: <image> what")
    with pytest.raises(ModelError, match="by 'resize-nave'; did you mean 'resize-naive'"):
        ImageProcessor(strategy="resize-nave")
    for wrong in ({}, {"input_sizes": [[3, 28, 28]], "means": 3, "stds": 3, "image_resize_strategy": "letterbox"}):
        with pytest.raises(ModelError, match="not one of OpenVLA"):
            ImageProcessor.parse(wrong)
    with pytest.raises(ModelError, match="different sizes"):
        ImageProcessor.parse({**ImageProcessor().written(), "input_sizes": [[3, 224, 224], [3, 384, 384]]})
    assert ImageProcessor.parse(ImageProcessor(28, strategy="letterbox").written()).strategy == "letterbox"
    with pytest.raises(ModelError, match="lacks the start token, the padding token or the empty token"):
        made(tf.BertTokenizer(vocab={"[UNK]": 0, "[PAD]": 1}))
