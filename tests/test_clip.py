"""Scoring is what open_clip computes, for every published layout; what cannot be loaded or read ends in a sentence."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.errors import InputError, ModelError
from vlmsteer.training.questions import article
from vlmsteer_counterfacts.clip import BUNDLED, Scorer, load_scorer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 55, "width": 32, "heads": 2, "layers": 1},
}
TEXTS = ["a red dog", "a cat", "x"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as open_clip publishes one: configuration, safetensors, tokenizer."""
    folder = tmp_path_factory.mktemp("random") / "clip"
    tokens = ["<pad>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer: Any = CLIPTokenizer(vocab=vocab, merges=[], pad_token="<pad>")
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    open_clip.model.set_model_preprocess_cfg(model, {"mean": (0.5,) * 3, "std": (0.25,) * 3, "size": 32})
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "beside"}}
    save_for_hf(model, tokenizer, config, str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return load_scorer(str(folder), device="cpu", batch=2)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for size in (32, 32, 40, 90, 32)]


def test_scores_are_what_open_clip_computes(folder: Path, scorer: Scorer, images: list[Image.Image]) -> None:
    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model, preprocess = loaded[0].eval(), loaded[1]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        seen = [model.encode_image(preprocess(image)[None])[0] for image in images]
        said = model.encode_text(tokens)
    expected = torch.nn.functional.cosine_similarity(torch.stack(seen)[:, None], said[None], dim=-1).numpy()
    scores = scorer(images, TEXTS)
    assert scores.shape == (5, 3) and scores.dtype == np.float32
    assert scores == pytest.approx(expected, abs=1e-5)
    assert np.ptp(scores) > 0.01


def test_agreement_is_a_margin(scorer: Scorer, images: list[Image.Image]) -> None:
    right, wrong = scorer(images[:1], TEXTS[:2])[0]
    assert scorer.agrees(images[0], TEXTS[0], TEXTS[1]) == pytest.approx(right - wrong, abs=1e-6)
    assert scorer.agrees(images[0], TEXTS[1], TEXTS[0]) == pytest.approx(wrong - right, abs=1e-6)
    assert isinstance(scorer.agrees(images[0], *TEXTS[:2]), float)


def test_files_bytes_and_modes_are_opened_like_everywhere(
    scorer: Scorer, images: list[Image.Image], tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    images[0].save(buffer, "PNG")
    images[0].save(tmp_path / "image.png")
    clear = Image.merge("RGBA", [*images[0].split(), Image.new("L", (32, 32), 255)])
    scores = scorer([images[0], buffer.getvalue(), tmp_path / "image.png", str(tmp_path / "image.png"), clear], TEXTS)
    assert scores == pytest.approx(np.repeat(scores[:1], 5, 0), abs=1e-6)


def test_nothing_asked_gives_nothing(scorer: Scorer, images: list[Image.Image]) -> None:
    assert scorer([], TEXTS).shape == (0, 3) and scorer(images, []).shape == (5, 0)


def test_a_folder_of_the_hub_s_client_loads_without_a_network(
    folder: Path, scorer: Scorer, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "models--someone--clip"
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, copy / "snapshots" / ("0" * 40))
    config = copy / "snapshots" / ("0" * 40) / "open_clip_config.json"
    config.write_text(config.read_text().replace("beside", "someone/clip"))
    missing = copy / ".no_exist" / ("0" * 40) / "config.json"  # which the client notes when it has asked for it
    missing.parent.mkdir(parents=True)
    missing.touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = load_scorer("hf-hub:someone/clip", device="cpu")
    assert loaded(images, TEXTS) == pytest.approx(scorer(images, TEXTS), abs=1e-5)


@pytest.fixture
def architecture(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The random model's shapes as one of open_clip's architectures."""
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": str(folder)}}
    (tmp_path / "some-vit.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.add_model_config(tmp_path)
    return "some-vit"


def test_an_architecture_loads_with_a_file_of_weights(
    architecture: str, folder: Path, scorer: Scorer, images: list[Image.Image]
) -> None:
    loaded = load_scorer(f"{architecture}/{folder / 'open_clip_model.safetensors'}", device="cpu")
    names = {name for name, _ in loaded.model.named_parameters()}
    assert names == set(load_file(folder / "open_clip_model.safetensors"))
    same = Scorer("same", loaded.model, scorer.preprocess, loaded.tokenizer, "cpu")  # the file has no preprocessing
    assert same(images, TEXTS) == pytest.approx(scorer(images, TEXTS), abs=1e-5)


@pytest.mark.parametrize("quick", [True, False])
def test_a_tag_decides_the_activation(
    quick: bool, architecture: str, folder: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's weights need QuickGELU, which the architecture of the same name has not."""
    tag = {"file": str(folder / "open_clip_model.safetensors"), "quick_gelu": quick}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, {"tagged": tag})
    loaded = load_scorer(f"{architecture}/tagged", device="cpu")
    gelu = QuickGELU if quick else torch.nn.GELU
    assert any(isinstance(module, gelu) for module in loaded.model.modules())
    assert loaded(images, TEXTS).shape == (5, 3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tiny-clp", "did you mean 'tiny-clip'"),
        ("ViT-B-32/openia", "no weights 'openia'.*did you mean 'openai'"),
        ("ViT-B-32", "no weights ''"),
        ("hf-hub:someone/clip-that-is-not-here", "could not be downloaded"),
        ("hf-hub:", "cannot be loaded: Empty identifier"),
        ("ViT-B-32/openai", "could not be downloaded"),
        ("", "no contrastive model ''"),
    ],
)
def test_a_model_that_is_not_at_hand_gives_a_sentence(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=says) as caught:
        load_scorer(name)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".") and len(str(caught.value)) < 700
    assert not caplog.records


def test_a_folder_that_lacks_something_gives_a_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no open_clip_config.json"):
        load_scorer(str(tmp_path))
    shutil.copytree(folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "logit_scale": torch.tensor(float("nan"))}, weights)
    with pytest.raises(ModelError, match="not numbers"):
        load_scorer(str(tmp_path / "clip"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_scorer(str(tmp_path / "clip"))
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_scorer(str(tmp_path / "clip"))
    (tmp_path / "clip" / "open_clip_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_scorer(str(tmp_path / "clip"))


def test_what_cannot_be_scored_gives_a_sentence(scorer: Scorer, images: list[Image.Image], tmp_path: Path) -> None:
    fits = "abcdefghij"  # and where it begins and ends: twelve tokens
    assert scorer(images, [fits]).shape == (5, 1)
    with pytest.raises(InputError, match="at most 12 tokens"):
        scorer(images, ["a", fits + "k"])
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n0000")
    with pytest.raises(InputError, match=r"cut\.png"):
        scorer([images[0], tmp_path / "cut.png"], TEXTS)
    with pytest.raises(InputError, match="into a list"):
        scorer(images[0], TEXTS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="into a list"):
        scorer(images, "a cat")
    with pytest.raises(InputError, match="no device 'cuda:99'"):
        load_scorer(device="cuda:99")
    with pytest.raises(InputError, match="no device 'fast'"):
        load_scorer(device="fast")
    with pytest.raises(InputError, match="at least 1"):
        load_scorer(batch=0)


def test_import_is_light() -> None:
    code = (
        "import sys, vlmsteer_counterfacts.clip\n"
        "print([m for m in ('torch', 'open_clip', 'transformers') if m in sys.modules])"
    )
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "counterfacts")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def bundled() -> Scorer:
    return load_scorer(device="cpu")


@pytest.mark.parametrize(("split", "pixels"), [("test", 84), ("test", 256), ("validate", 84)])
def test_tiny_clip_prefers_the_right_caption_of_held_out_pairs(bundled: Scorer, split: Any, pixels: int) -> None:
    pairs = drawn_pairs("color", split, 60 if pixels < 256 else 20, seed=31, pixels=pixels)
    right = []
    for pair in pairs:
        texts = [article(f"{color} {pair.object}") for color in (pair.prior, pair.pixel)]
        scores = bundled([pair.image("original"), pair.image("counterfactual")], texts)
        right += [scores[0, 0] > scores[0, 1], scores[1, 1] > scores[1, 0]]
    assert np.mean(right) >= 0.93  # measured on 440 pairs each: the card


def test_tiny_clip_is_small_and_open_clip_loads_it_without_our_code(bundled: Scorer) -> None:
    folder = BUNDLED / "tiny-clip"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    loaded: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model, preprocess = loaded[0].eval(), loaded[2]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a blue strawberry", "a red strawberry"])
    (pair,) = drawn_pairs("color", "test", 1)
    with torch.inference_mode():
        seen = model.encode_image(preprocess(pair.image("original"))[None], normalize=True)
        said = model.encode_text(tokens, normalize=True)
    ours = bundled([pair.image("original")], ["a blue strawberry", "a red strawberry"])
    assert ours == pytest.approx((seen @ said.T).numpy(), abs=1e-6)


def test_the_card_shows_what_was_measured() -> None:
    folder = BUNDLED / "tiny-clip"
    card = (folder / "README.md").read_text()
    tasks = json.loads((folder / "evaluation.json").read_text())["tasks"]
    assert "vlmsteer train tiny-clip" in card and all(f"| {task} |" in card for task in tasks)
    required = [task for task in tasks if "held-out" in task and "right of two" in task and "style" not in task]
    assert len(required) == 8 and all(tasks[task]["n"] >= 400 and tasks[task]["rate"] >= 0.95 for task in required)
