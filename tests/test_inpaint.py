"""Filling keeps what the mask keeps, to the last bit, in every pipeline; a seed repeats; what is wrong is said."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.clip.configuration_clip import CLIPConfig

from vlmsteer.errors import InputError
from vlmsteer_counterfacts.inpaint import Inpainter, InstructEditor, fill

diffusers: Any = importlib.import_module("diffusers")
WIDTH = 16  # of the text encoders


def tokenizer() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20)  # pyright: ignore[reportArgumentType]


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        projection_dim=WIDTH,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def vae(**more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        layers_per_block=1,
        **more,
    )


def unet(channels: int, **more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": channels,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
        | more
    )


def scheduler() -> Any:
    return diffusers.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False)


def stable_diffusion(name: str, channels: int, **more: Any) -> Any:
    parts = {"vae": vae(), "text_encoder": CLIPTextModel(text_config()), "tokenizer": tokenizer()}
    safety = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False} | more
    return getattr(diffusers, name)(**parts, unet=unet(channels), scheduler=scheduler(), **safety)


def strict() -> Any:
    """A pipeline whose safety checker, of the published class, objects to everything."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=8)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision.to_dict(), text_config=text_config().to_dict(), projection_dim=8)
    )
    checker.concept_embeds_weights.data.fill_(-2.0)
    eyes = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    more = {"safety_checker": checker, "feature_extractor": eyes, "requires_safety_checker": True}
    return stable_diffusion("StableDiffusionInpaintPipeline", 9, **more)


def sdxl() -> Any:
    body = unet(
        9,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )
    return diffusers.StableDiffusionXLInpaintPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=body,
        scheduler=scheduler(),
        add_watermarker=False,
    )


def flux_fill() -> Any:
    words: Any = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁blue", -1.0)]
    return diffusers.FluxFillPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.1),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        tokenizer_2=T5Tokenizer(vocab=words, extra_ids=0),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=2 * 16 + 256,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
    )


BUILDERS = {
    "sd-inpaint": lambda: stable_diffusion("StableDiffusionInpaintPipeline", 9),
    "sd-text": lambda: stable_diffusion("StableDiffusionPipeline", 4),  # inpaints by mixing in the noised original
    "sd-strict": strict,
    "sdxl-inpaint": sdxl,
    "flux-fill": flux_fill,
    "instruct": lambda: stable_diffusion("StableDiffusionInstructPix2PixPipeline", 8),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of random pipelines in the published layout, written when first asked for."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> Path:
        path = root / name
        if not path.exists():
            torch.manual_seed(0)
            BUILDERS[name]().save_pretrained(path, safe_serialization=True)
        return path

    return folder


@pytest.fixture(scope="module")
def inpainter(saved: Any) -> Inpainter:
    return Inpainter.load(saved("sd-inpaint"), device="cpu")


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def box_mask(width: int = 64, height: int = 64, soft: bool = False) -> Image.Image:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 255
    if soft:
        mask[height // 2, width // 4 : width // 2] = 100
    return Image.fromarray(mask)


def assert_only_inside(before: Image.Image, after: Image.Image, mask: Image.Image) -> None:
    assert after.mode == "RGB" and after.size == before.size
    old, new, hidden = np.asarray(before), np.asarray(after), np.asarray(mask)
    assert (old[hidden == 0] == new[hidden == 0]).all()
    assert (old[hidden == 255] != new[hidden == 255]).any()


@pytest.mark.parametrize("method", ["telea", "navier-stokes"])
@given(
    width=st.integers(4, 40),
    height=st.integers(4, 40),
    seed=st.integers(0, 99),
    values=st.sampled_from([(0, 255), (0, 100, 255), (0, 1)]),
)
@settings(max_examples=25, deadline=None)
def test_classical_filling_keeps_the_rest(method: str, width: int, height: int, seed: int, values: Any) -> None:
    mask = np.random.default_rng(seed).choice(np.array(values, np.uint8), (height, width))
    mask[0, 0], mask[1, 1] = 0, values[-1]
    image = picture(width, height, seed)
    filled = fill(image, Image.fromarray(mask), method)
    assert filled.size == image.size and filled.mode == "RGB"
    assert (np.asarray(filled)[mask == 0] == np.asarray(image)[mask == 0]).all()


def test_classical_filling_continues_the_surroundings() -> None:
    image = Image.new("RGB", (32, 32), (10, 200, 30))
    image.paste((255, 0, 0), (10, 10, 20, 20))
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (10, 10, 20, 20))
    for method in ("telea", "navier-stokes"):
        off = np.asarray(fill(image, mask, method), int) - (10, 200, 30)
        assert abs(off).max() <= 4  # what rounding adds up to


def test_soft_edges_mix_in_proportion() -> None:
    image = Image.new("RGB", (32, 32), (0, 0, 0))
    image.paste((200, 200, 200), (10, 10, 20, 20))
    mask = Image.new("L", (32, 32), 0)
    mask.paste(64, (10, 10, 20, 20))
    level = np.asarray(fill(image, mask))[15, 15]
    assert abs(level - 150.0).max() <= 2  # a quarter of the black around


@pytest.mark.parametrize("name", ["sd-inpaint", "sd-text", "sdxl-inpaint", "flux-fill"])
def test_each_pipeline_paints_only_inside_and_repeats(saved: Any, name: str) -> None:
    loaded = Inpainter.load(saved(name), device="cpu")
    if name == "flux-fill":
        loaded.pipeline.default_sample_size = 8  # the class fixes 128: pictures of 1024 pixels
    size = (52, 70)  # no multiple of 8
    image, mask = picture(*size), box_mask(*size, soft=True)
    painted = loaded(image, mask, "a blue", steps=2, seed=3)
    assert_only_inside(image, painted, mask)
    assert painted.tobytes() == loaded(image, mask, "a blue", steps=2, seed=3).tobytes()
    assert painted.tobytes() != loaded(image, mask, "a blue", steps=2, seed=4).tobytes()


def test_loading_gives_the_pipeline_that_inpaints(saved: Any) -> None:
    found = [type(Inpainter.load(saved(name), device="cpu").pipeline).__name__ for name in ("sd-text", "flux-fill")]
    assert found == ["StableDiffusionInpaintPipeline", "FluxFillPipeline"]


@pytest.mark.parametrize("size", [(64, 64), (17, 90), (200, 30), (9, 9), (301, 203)])
def test_any_size_comes_back_as_it_was(inpainter: Inpainter, size: tuple[int, int]) -> None:
    image, mask = picture(*size), box_mask(*size)
    assert_only_inside(image, inpainter(image, mask, "a", steps=1), mask)


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (301, 203)])
def test_what_is_hidden_does_not_reach_the_pipeline(inpainter: Inpainter, size: tuple[int, int]) -> None:
    """Two pictures that differ only inside the mask are painted alike: the old color cannot shine through."""
    mask = box_mask(*size)
    first = picture(*size)
    second = Image.composite(picture(*size, seed=1), first, mask)
    painted = [inpainter(image, mask, "a", steps=1) for image in (first, second)]
    assert painted[0].tobytes() == painted[1].tobytes()


def test_prompt_guidance_and_strength_count(inpainter: Inpainter) -> None:
    image, mask = picture(), box_mask()
    made = [
        inpainter(image, mask, *words, steps=2, **more).tobytes()
        for words, more in [
            (("a cat",), {}),
            (("a dog",), {}),
            (("a cat", "a dog"), {}),
            (("a cat",), {"guidance_scale": 30.0}),
            (("a cat",), {"strength": 0.5}),
        ]
    ]
    assert len(set(made)) == len(made)


def test_fill_takes_an_inpainter(inpainter: Inpainter) -> None:
    image, mask = picture(), box_mask()
    assert_only_inside(image, fill(image, mask, inpainter), mask)


def test_a_pipeline_can_bring_its_own_defaults(saved: Any, tmp_path: Path) -> None:
    shutil.copytree(saved("sd-inpaint"), tmp_path / "tuned")
    (tmp_path / "tuned" / "generation_config.json").write_text('{"num_inference_steps": 1, "guidance_scale": 1.0}')
    tuned, plain = (Inpainter.load(path, device="cpu") for path in (tmp_path / "tuned", saved("sd-inpaint")))
    image, mask = picture(), box_mask()
    expected = plain(image, mask, "a", steps=1, guidance_scale=1.0)
    assert tuned(image, mask, "a").tobytes() == expected.tobytes()


def test_dtype_and_device_are_kept(saved: Any) -> None:
    loaded = Inpainter.load(saved("sd-inpaint"), device="cpu", dtype="bfloat16")
    assert loaded.pipeline.unet.dtype == torch.bfloat16
    assert_only_inside(picture(), loaded(picture(), box_mask(), "a", steps=1), box_mask())


def test_the_safety_checker_stays_and_is_heard(saved: Any) -> None:
    loaded = Inpainter.load(saved("sd-strict"), device="cpu")
    assert loaded.pipeline.safety_checker is not None
    with pytest.raises(InputError, match="safety checker of 'sd-strict' withheld"):
        loaded(picture(), box_mask(), "a", steps=1)


def test_instructions_edit_the_picture_or_a_part(saved: Any) -> None:
    editor = InstructEditor.load(saved("instruct"), device="cpu")
    image, mask = picture(50, 71), box_mask(50, 71)
    whole = editor(image, "make it blue", steps=2, seed=1)
    assert whole.size == image.size and whole.tobytes() != image.tobytes()
    assert whole.tobytes() == editor(image, "make it blue", steps=2, seed=1).tobytes()
    part = editor(image, "make it blue", mask, steps=2, seed=1)
    assert_only_inside(image, part, mask)
    assert part.tobytes() == Image.composite(whole, image, mask).tobytes()
    with pytest.raises(InputError, match="instruction is empty"):
        editor(image, " ")


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Image.new("L", (63, 64), 255), "63 x 64 pixels, the picture 64 x 64"),
        (Image.new("L", (64, 64), 0), "mask is empty"),
        (Image.new("RGB", (64, 64)), "not mode 'RGB'"),
        (None, "not NoneType"),
    ],
)
def test_a_wrong_mask_is_refused(inpainter: Inpainter, mask: Any, says: str) -> None:
    for method in ("telea", inpainter):
        with pytest.raises(InputError, match=says):
            fill(picture(), mask, method)


def test_stopping_in_the_middle_leaves_nothing_behind(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Inpainter.load(saved("sd-inpaint"), device="cpu")
    image, mask = picture(), box_mask()
    before, expected = image.tobytes(), loaded(image, mask, "a", steps=3)
    steps, step = [], loaded.pipeline.scheduler.step

    def interrupted(*given: Any, **more: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return step(*given, **more)

    monkeypatch.setattr(loaded.pipeline.scheduler, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaded(image, mask, "a", steps=3)
    assert image.tobytes() == before
    assert loaded(image, mask, "a", steps=3).tobytes() == expected.tobytes()


def test_wrong_settings_are_refused(inpainter: Inpainter, saved: Any) -> None:
    with pytest.raises(InputError, match="did you mean 'telea'"):
        fill(picture(), box_mask(), "telae")
    with pytest.raises(InputError, match="hides the whole picture"):
        fill(picture(), Image.new("L", (64, 64), 255))
    for settings_, says in [
        ({"strength": 0.0}, "strength is above 0"),
        ({"strength": 0.1, "steps": 5}, "take 10 or more"),
        ({"strength": 0.001}, "50 steps at strength 0.001 come to none"),
        ({"steps": 0}, "from 1 to 1000"),
        ({"guidance_scale": float("nan")}, "guidance scale is a number from 0 up"),
        ({"seed": -1}, "seed is a whole number"),
    ]:
        with pytest.raises(InputError, match=says):
            inpainter(picture(), box_mask(), "a", **settings_)
    flux = Inpainter.load(saved("flux-fill"), device="cpu")
    with pytest.raises(InputError, match="FluxFillPipeline of 'flux-fill' takes no negative_prompt"):
        flux(picture(), box_mask(), "a", "red", steps=1)


def refusal(name: Any, loader: Any = Inpainter, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        loader.load(name, device="cpu", **more)
    return str(caught.value)


def test_what_is_no_pipeline_is_refused(saved: Any, tmp_path: Path) -> None:
    assert "holds no model_index.json" in refusal(tmp_path)
    assert "neither bundled nor a folder" in refusal("tiny-inpiant")
    assert "neither bundled nor a folder" in refusal("../nowhere")
    assert "does not inpaint" in refusal(saved("instruct"))
    assert "has 9 input channels; one that follows instructions has 8" in refusal(saved("sd-inpaint"), InstructEditor)
    assert "No dtype 'float61'" in refusal(saved("sd-inpaint"), dtype="float61")


@pytest.mark.parametrize("damage", ["truncated", "missing", "pickle", "config", "index"])
def test_damaged_folders_are_refused(saved: Any, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(saved("sd-inpaint"), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "missing":
        weights.unlink()
    elif damage == "pickle":
        weights.rename(weights.with_suffix(".bin"))
    elif damage == "config":
        (folder / "vae" / "config.json").write_text("{")
    else:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "NoSuchPipeline"}))
    says = refusal(folder)
    assert says.startswith(f"'{folder}' could not be loaded as an inpainting pipeline: ")
    assert "\n" not in says


def test_weights_that_are_not_at_hand_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    says = refusal("nobody/no-such-pipeline")
    assert "could not be loaded" in says and "give the folder of a downloaded copy" in says


def test_without_diffusers_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'vlmsteer[diffusion]'" in refusal("tiny-inpaint")
    assert "pip install 'vlmsteer[diffusion]'" in refusal("tiny-inpaint", InstructEditor)
