"""tiny-inpaint: what it is taught, that a stopped training goes on as undisturbed, and what the bundled one can do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from vlmsteer.training import tiny_inpaint
from vlmsteer.training.inpaint_examples import (
    PIXELS,
    REMOVAL,
    TEMPLATES,
    Example,
    caption,
    cases,
    example,
    grow,
    object_mask,
)
from vlmsteer.training.inpaint_measure import named, psnr
from vlmsteer.training.inpaint_parts import TOKENS, tokenizer
from vlmsteer.training.splits import HELD_OUT_OBJECTS, held_out_colors
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.inpaint import BUNDLED, Inpainter, fill
from vlmsteer_counterfacts.palette import COLORS, shade

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [example(random.Random(f"test/{number}")) for number in range(300)]


def test_every_word_is_a_token_and_every_prompt_fits() -> None:
    words = tokenizer()
    for name in facts():
        for template in TEMPLATES:
            text = caption(name, "orange", template)
            ids = words(text).input_ids
            assert len(ids) == len(text.replace("-", " - ").split()) + 2 <= TOKENS
            assert words.decode(ids, skip_special_tokens=True).split() == text.replace("-", " - ").split()
    assert len(words("Ünseen Zeichen 7").input_ids) > 5  # spelled out, nothing unknown


def test_examples_keep_the_held_out_colors_back(examples: list[Example]) -> None:
    said = {
        (name, color) for one in examples for name in facts() for color in COLORS if f"{color} {name}" in one.prompt
    }
    assert {name for name, _ in said} & set(HELD_OUT_OBJECTS)
    assert not [pair for pair in said if pair[1] in held_out_colors(pair[0])]
    assert {color for _, color in said} == set(COLORS)


def test_examples_hide_something_and_repeat(examples: list[Example]) -> None:
    assert all(one.mask.getbbox() and one.target.size == one.mask.size == (PIXELS, PIXELS) for one in examples)
    assert {value for one in examples for _, value in one.mask.getcolors() or []} == {0, 255}
    again = example(random.Random("test/7"))
    assert again.target.tobytes() == examples[7].target.tobytes() and again.prompt == examples[7].prompt
    share = mean(one.prompt in REMOVAL for one in examples)
    assert 0.15 < share < 0.35


def test_removal_shows_the_background_and_nothing_else_changed() -> None:
    for number in range(40):
        case = cases(1, number)[0]
        drawn, empty = case.scene.render(PIXELS), case.scene.without(0).render(PIXELS)
        kept = np.asarray(object_mask(drawn, 0, random.Random(number), "object")) == 0
        assert (np.asarray(drawn.image)[kept] == np.asarray(empty.image)[kept]).all()


@pytest.mark.parametrize("color", COLORS)
def test_every_shade_is_named(color: str) -> None:
    full = Image.new("L", (4, 4), 255)
    for seed in range(30):
        assert named(Image.new("RGB", (4, 4), shade(color, random.Random(seed))), full) == color


def test_psnr_counts_only_the_masked_pixels() -> None:
    true, mask = Image.new("RGB", (8, 8), (100, 100, 100)), Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    image = true.copy()
    image.paste((0, 0, 0), (4, 0, 8, 8))
    assert psnr(image, true, mask) == pytest.approx(60, abs=0.1)
    image.paste((110, 110, 110), (0, 0, 4, 8))
    assert psnr(image, true, mask) == pytest.approx(20 * np.log10(25.5))


SMALL: dict[str, Any] = {"steps": 4, "vae_steps": 3, "decoder_steps": 3, "pictures": 10, "save_every": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_inpaint, "BATCH", 2)
        patch.setattr(tiny_inpaint, "VAE_BATCH", 2)
        tiny_inpaint.train(folder, **SMALL)
    return folder


@pytest.mark.parametrize("stop", [2, 6, 10])  # the second step of the autoencoder, the third of UNet and decoder
def test_a_stopped_training_ends_as_an_undisturbed_one(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(tiny_inpaint, "BATCH", 2)
    monkeypatch.setattr(tiny_inpaint, "VAE_BATCH", 2)
    done, step = [], torch.optim.AdamW.step

    def stopping(self: Any, *given: Any) -> Any:
        done.append(1)
        if len(done) == stop:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        tiny_inpaint.train(tmp_path, **SMALL)
    tiny_inpaint.train(tmp_path, **SMALL)
    for stage in ("vae", "unet", "decoder"):
        ours, theirs = (torch.load(path / f"{stage}.pt", weights_only=True)["mean"] for path in (tmp_path, undisturbed))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"whole")

    def write(file: Any) -> None:
        file.write(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_inpaint._replace(path, write)
    assert path.read_bytes() == b"whole"


def test_export_is_in_the_published_layout(undisturbed: Path, tmp_path: Path) -> None:
    out = tiny_inpaint.export(undisturbed, tmp_path / "pipeline")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {
        "model_index.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
    } < files
    assert {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")} < files
    assert "text_encoder/model.safetensors" in files
    learned, written = tokenizer(), AutoTokenizer.from_pretrained(out / "tokenizer")
    for text in ("a blue strawberry", "an orange fire truck", "", "Zebra-9"):
        assert learned(text).input_ids == written(text).input_ids
    loaded = Inpainter.load(out, device="cpu")
    state = torch.load(undisturbed / "unet.pt", weights_only=True)["mean"]
    assert torch.equal(loaded.pipeline.unet.conv_in.weight, state["unet.conv_in.weight"].half().float())
    mask = Image.new("L", (PIXELS, PIXELS), 0)
    mask.paste(255, (0, 0, 9, 9))
    assert loaded(Image.new("RGB", mask.size), mask, "a blue strawberry", steps=1).size == mask.size


BUNDLE = BUNDLED / tiny_inpaint.NAME


@pytest.fixture(scope="module")
def bundled() -> Inpainter:
    return Inpainter.load(tiny_inpaint.NAME, device="cpu")


def test_the_bundle_is_small_and_its_card_says_what_was_measured() -> None:
    assert sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file()) < 10_000_000
    card, held = (BUNDLE / "README.md").read_text("utf-8"), json.loads((BUNDLE / "evaluation.json").read_text("utf-8"))
    assert "`vlmsteer train tiny-inpaint" in card
    for task, value in held["tasks"].items():
        scale = 1 if task.endswith("dB") else 100
        assert f"| {task.removesuffix(', dB')} | {scale * value['rate']:.1f} " in card


def test_it_restores_recolors_and_removes(bundled: Inpainter) -> None:
    gain, removed, right, drawn_cases = [], [], [], cases(8, 77)
    for case in drawn_cases:
        drawn, item = case.scene.render(PIXELS), case.scene.items[0]
        body = grow(drawn.bodies[0], 0)
        restored = bundled(drawn.image, body, caption(item.object, item.color))
        gain.append(psnr(restored, drawn.image, body) - psnr(fill(drawn.image, body), drawn.image, body))
        right.append(named(bundled(drawn.image, body, caption(item.object, case.color)), drawn.bodies[0]) == case.color)
        whole, empty = grow(drawn.masks[0], 2), case.scene.without(0).render(PIXELS).image
        removed.append(psnr(bundled(drawn.image, whole, ""), empty, whole) - psnr(drawn.image, empty, whole))
    assert mean(gain) > 3  # dB nearer to the object than what lies around it
    assert mean(removed) > 6  # dB nearer to the background than the object was
    assert sum(right) >= 6
