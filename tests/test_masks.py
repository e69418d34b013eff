"""Masks find the object, are zero where they must be, and say what is wrong with a box, a stroke or a checkpoint."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer_counterfacts.draw import Picture, portrait
from vlmsteer_counterfacts.masks import from_box, from_color, from_sam2, from_strokes, mask_weights

OBJECTS = [("tomato", "red"), ("jeans", "blue"), ("pig", "pink"), ("school bus", "yellow"), ("elephant", "gray")]
BOX = (60, 60, 140, 140)


def drawn(name: str, color: str, style: str = "flat") -> Picture:
    return portrait(name, color, random.Random(len(name)), style, min_side=0.6).render(160)


def disk() -> tuple[Image.Image, np.ndarray]:
    """A blue disk with a small hole and a loose dot, on gray."""
    y, x = np.mgrid[0:160, 0:200]
    blue = (np.hypot(x - 100, y - 80) < 40) & (np.hypot(x - 100, y - 80) >= 3) | (np.hypot(x - 20, y - 20) < 4)
    pixels = np.full((160, 200, 3), 150, np.uint8)
    pixels[blue] = (40, 80, 200)
    return Image.fromarray(pixels), blue


def overlap(mask: Image.Image, truth: Image.Image) -> float:
    found, wanted = np.asarray(mask) > 127, np.asarray(truth) > 127
    return float((found & wanted).sum() / (found | wanted).sum())


def widened(box: tuple[int, int, int, int], by: int, side: int) -> tuple[int, int, int, int]:
    return max(box[0] - by, 0), max(box[1] - by, 0), min(box[2] + by, side), min(box[3] + by, side)


@pytest.mark.parametrize(("name", "color"), OBJECTS)
def test_a_box_finds_a_drawn_object(name: str, color: str) -> None:
    picture = drawn(name, color)
    box = widened(picture.boxes[0], 4, 160)
    mask = from_box(picture.image, box)
    assert (mask.mode, mask.size) == ("L", (160, 160))
    assert overlap(mask, picture.masks[0]) > 0.85
    outside = np.asarray(mask).copy()
    outside[box[1] : box[3], box[0] : box[2]] = 0
    assert not outside.any()


def test_edges_are_soft_and_narrow() -> None:
    image, _ = disk()
    weights = np.asarray(from_box(image, (50, 30, 150, 130)))
    between = (weights > 0) & (weights < 255)
    assert 100 < between.sum() < 2 * np.pi * 40 * 5, "a few pixels along the outline"
    assert weights[80, 100] == 255, "the small hole is filled"


def test_the_same_box_gives_the_same_mask_whatever_ran_before() -> None:
    picture = drawn("elephant", "gray", "textured")
    box = widened(picture.boxes[0], 4, 160)
    first = from_box(picture.image, box).tobytes()
    cv2.setRNGSeed(12345)
    cv2.randu(np.zeros((50, 50), np.uint8), 0, 255)  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert from_box(picture.image, box).tobytes() == first


def test_a_large_photo_is_cut_at_full_size() -> None:
    image, truth = disk()
    large = image.resize((1600, 1280), Image.Resampling.LANCZOS)
    mask = from_box(large, (400, 240, 1200, 1040))
    wanted = Image.fromarray((255 * truth).astype(np.uint8)).resize(large.size)
    left_out = np.asarray(wanted).copy()
    left_out[:, :300] = 0
    assert mask.size == large.size
    assert overlap(mask, Image.fromarray(left_out)) > 0.97


def test_a_box_as_it_is() -> None:
    image, _ = disk()
    weights = np.asarray(from_box(image, (10, 20, 30, 50), refine=False))
    assert weights.sum() == 255 * 20 * 30 and weights[20:50, 10:30].min() == 255


def test_a_photo_by_box() -> None:
    """The orange suit of the astronaut: the suit is in, her face, the flag and the helmet are out."""
    photo = Image.fromarray(skimage.data.astronaut()).resize((256, 256))
    weights = np.asarray(from_box(photo, (8, 97, 188, 256)))
    for x, y in ((60, 150), (40, 200), (95, 215), (140, 140)):
        assert weights[y, x] == 255, f"suit at {x}, {y}"
    for x, y in ((110, 75), (20, 120), (185, 220), (160, 240)):
        assert weights[y, x] == 0, f"not the suit at {x}, {y}"


@pytest.mark.parametrize("outside", [None, [(20, 140, 8), (180, 20, 8), (20, 20, 5)]])
def test_strokes_find_the_object_under_them(outside: list[tuple[float, float, float]] | None) -> None:
    image, truth = disk()
    mask = from_strokes(image, [(85, 80, 6), (115, 85, 6)], outside)
    truth[:60, :60] = False
    assert overlap(mask, Image.fromarray((255 * truth).astype(np.uint8))) > 0.95
    assert np.asarray(mask)[20, 20] == 0, "the loose dot has no stroke"


def test_strokes_may_be_masks() -> None:
    image, truth = disk()
    inside, never = np.zeros(truth.shape, np.uint8), np.zeros(truth.shape, np.uint8)
    inside[70:90, 80:95], never[:, 120:] = 255, 255
    weights = np.asarray(from_strokes(image, Image.fromarray(inside), Image.fromarray(never)))
    assert weights[:, 120:].max() == 0, "what was marked as outside stays outside"
    assert weights[75, 90] == 255 and weights[80, 70] == 255


def test_a_color_finds_what_has_it() -> None:
    image, truth = disk()
    by_name, by_distance = from_color(image, "blue"), from_color(image, (40, 80, 200), 0.05)
    truth[:60, :60] = False
    for mask in (by_name, by_distance):
        assert overlap(mask, Image.fromarray((255 * truth).astype(np.uint8))) > 0.97
    in_box = np.asarray(from_color(image, "#2850c8", 0.05, box=(100, 0, 200, 160)))
    assert in_box[:, :100].max() == 0 and in_box[80, 130] == 255


def test_a_color_leaves_seeds_and_leaves_out() -> None:
    picture = drawn("strawberry", "red")
    assert overlap(from_color(picture.image, "red"), picture.bodies[0]) > 0.9


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((50, 50, 40, 90), "no area"),
        ((50, 90, 90, 50), "no area"),
        ((50, 50, 50, 90), "no area"),
        ((-1, 0, 50, 50), "leaves the image, which is 200 x 160"),
        ((150, 100, 201, 150), "leaves the image"),
        ((500, 500, 600, 600), "leaves the image"),
        ((0, 0, float("nan"), 10), "four numbers"),
        ((0, 0, 10), "four numbers"),
        ((0, 0, 200, 160), "whole image"),
    ],
)
def test_boxes_that_cannot_be_used(box: tuple[float, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_box(disk()[0], box)


def test_a_box_with_nothing_in_it() -> None:
    with pytest.raises(InputError, match="no object"):
        from_box(Image.new("RGB", (80, 80), (90, 90, 90)), (20, 20, 60, 60))


@pytest.mark.parametrize(
    ("inside", "outside", "says"),
    [
        ([], None, "No stroke"),
        ([(300, 10, 4)], None, "leaves the image"),
        ([(30, 10)], None, r"\(x, y, radius\)"),
        ([(30, 10, -2)], None, r"\(x, y, radius\)"),
        ([(30, 10, 5)], [(32, 10, 5)], "both inside and outside"),
        (Image.new("L", (200, 160), 0), None, "empty"),
        (Image.new("L", (20, 16), 255), None, "20 x 16"),
        (Image.new("L", (200, 160), 255), None, "border"),
    ],
)
def test_strokes_that_cannot_be_used(inside: object, outside: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_strokes(disk()[0], inside, outside)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("color", "tolerance", "says"),
    [
        ("pink", None, "Nothing here is 'pink'; give a tolerance"),
        ("pink", 0.01, "the nearest pixel is 0.1"),
        ((1, 2, 3), None, "needs a tolerance"),
        ("blue", 0.0, "above 0"),
        ("blue", float("nan"), "above 0"),
        ("blurple", None, "did you mean"),
    ],
)
def test_colors_that_cannot_be_found(color: str, tolerance: float | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_color(disk()[0], color, tolerance)


def test_weights_keep_every_level() -> None:
    mask = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(np.round(mask_weights(mask, (16, 16)) * 255), np.arange(256).reshape(16, 16))


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SAM 2 of the real classes, 0.1 million parameters, saved as a published one is."""
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2Processor,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    side = 128
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[side, side],
        window_positional_embedding_background_size=[2, 2],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        window_size_per_stage=[8, 4, 4, 4],
        global_attention_blocks=[4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[side // part] * 2 for part in (4, 8, 16)],
        fpn_hidden_size=32,
    )
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=32, image_size=side, mask_input_channels=4),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    folder = tmp_path_factory.mktemp("sam2")
    torch.manual_seed(0)
    Sam2Model(config).save_pretrained(folder)
    size, mask_size = ({"height": part, "width": part} for part in (side, side // 4))
    Sam2Processor(Sam2ImageProcessor(size=size, mask_size=mask_size)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", [(75, 70, 180, 150), [(100, 80)], [(100, 80), (10, 10, 0)]])
def test_sam2_masks_have_the_size_of_the_picture(sam2: Path, prompt: object) -> None:
    image, _ = disk()
    mask = from_sam2(image, prompt, sam2)  # pyright: ignore[reportArgumentType]
    assert (mask.mode, mask.size) == ("L", image.size)
    assert 0 < np.asarray(mask).mean() < 255
    assert from_sam2(image, prompt, str(sam2)).tobytes() == mask.tobytes()  # pyright: ignore[reportArgumentType]


def test_sam2_returns_the_mask_that_the_model_prefers(sam2: Path) -> None:
    """Against the classes themselves: of the three masks, the one with the highest predicted overlap."""
    from transformers import Sam2Model, Sam2Processor

    image, _ = disk()
    inputs = Sam2Processor.from_pretrained(sam2)(image, input_points=[[[[100, 80]]]], return_tensors="pt")
    with torch.no_grad():
        output = Sam2Model.from_pretrained(sam2)(**inputs)
    logits = torch.nn.functional.interpolate(
        output.pred_masks[0], (image.height, image.width), mode="bilinear", align_corners=False
    )
    found = np.asarray(from_sam2(image, [(100, 80)], sam2)) > 127
    held = [float((found & (mask.numpy() > 0)).sum() / found.sum()) for mask in logits[0]]
    best = int(output.iou_scores[0, 0].argmax())
    assert held[best] == max(held) and held[best] > 0.9, "all of it but small filled holes"


@pytest.mark.parametrize(
    ("prompt", "says"), [((50, 50, 40, 90), "no area"), ([(900, 3)], "leaves the image"), ([], "at least one")]
)
def test_sam2_prompts_that_cannot_be_used(sam2: Path, prompt: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_sam2(disk()[0], prompt, sam2)  # pyright: ignore[reportArgumentType]


def test_what_is_no_sam2_is_refused(tmp_path: Path, sam2: Path) -> None:
    image, _ = disk()
    with pytest.raises(InputError, match="no checkpoint on this machine"):
        from_sam2(image, BOX, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="'clip' checkpoint and no SAM 2"):
        from_sam2(image, BOX, tmp_path)
    (tmp_path / "config.json").write_bytes((sam2 / "config.json").read_bytes())
    with pytest.raises(InputError, match="not complete"):
        from_sam2(image, BOX, tmp_path)
