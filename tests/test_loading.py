"""Large models: spread over memory and disk, in half precision, quantized, or refused before anything is read.

Main memory and the disk stand for two devices: accelerate fetches what is on the disk for each forward, as it does for
what a GPU has no room for. Numbers must be those of the undivided model to the last bit.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import psutil
import pytest
import torch
import transformers
from engine_recipes import QUESTIONS, both, recipe
from PIL import Image
from torch import nn

import vlmsteer
from vlmsteer import loading
from vlmsteer.actions import Action
from vlmsteer.errors import ModelError
from vlmsteer.recipe import Recipe
from vlmsteer.sites import Site

Pictures = list[Image.Image]
Free = namedtuple("Free", "available")
FAMILIES = ["llava", "instructblip", "instructblip_t5", "qwen2_5_vl"]
SEVEN = "llava-hf/llava-1.5-7b-hf"
PARTS = {"query_tokens": "cpu"} | dict.fromkeys(
    ("vision_model", "qformer", "language_projection", "language_model"), "disk"
)


def size(model: nn.Module) -> int:
    """Bytes of a model's weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def steers(one: Any) -> list[Recipe | None]:
    """Recipes that differ in tower, operation and positions; the first is none."""
    prompt = one.family.reads_prompt
    return [
        None,
        recipe(one, f"{prompt}.0-1.block_out", strength=2.0, positions="image", seed=1),
        both(recipe(one, "text.1.block_out", "replace", seed=3), recipe(one, "text.2.head", seed=4)),
        recipe(one, "vision.0.block_out", "add_keep_norm", 0.5, "image", seed=5),
        recipe(one, f"{prompt}.1.neuron", "affine", 0.3, (0, -1), "prefill", seed=6),
    ]


@pytest.fixture(scope="module", params=[(family, share) for family in FAMILIES for share in (0.4, 0.8)], ids=str)
def pair(request: Any, sessions: Any, folders: Any, tmp_path_factory: Any) -> tuple[Any, Any]:
    """A model undivided, and with only a share of it in memory."""
    family, share = request.param
    whole = sessions[family]
    limit = {"cpu": int(share * size(whole.model))}
    folder = tmp_path_factory.mktemp("offloaded")
    return whole, vlmsteer.load(folders[family], device_map="auto", max_memory=limit, offload_folder=folder)


def test_a_part_is_on_the_disk(pair: tuple[Any, Any]) -> None:
    whole, split = pair
    places = [weight.is_meta for weight in split.model.parameters()]
    assert any(places) and not all(places)
    assert split.device == whole.device == torch.device("cpu")


def test_reading_and_editing_a_split_model(pair: tuple[Any, Any], pictures: Pictures) -> None:
    whole, split = pair
    seen = []
    for one in pair:
        with one.read(one.sites, "all") as states:
            one.logits(pictures[1:2], QUESTIONS[:1])
        seen.append(states)
    for site in whole.sites:
        assert torch.equal(seen[0].rows(site)[0], seen[1].rows(site)[0]), site
    plain = whole.logits(pictures, QUESTIONS)
    for own in (*steers(whole), steers(whole)[1:4]):
        expected = whole.logits(pictures, QUESTIONS, own)
        assert torch.equal(split.logits(pictures, QUESTIONS, own), expected)
        assert own is None or not torch.allclose(expected, plain, atol=1e-3)
    last = f"text.{whole.layers() - 1}.block_out"
    assert torch.equal(split.unembed(seen[1].rows(last)[0]), whole.unembed(seen[0].rows(last)[0]))
    if whole.family.boxes:
        assert torch.equal(split.boxes(pictures[1]).nan_to_num(), whole.boxes(pictures[1]).nan_to_num())


def test_answers_of_a_split_model(pair: tuple[Any, Any], pictures: Pictures) -> None:
    whole, split = pair
    own = steers(whole)
    grid = [None, *(recipe(whole, "text.*.block_out", strength=strength, seed=7) for strength in (1.0, -2.0))]
    answers = [
        (
            one.ask_many([*pictures, None], [*QUESTIONS, "red?"], [own[1], own[2], None, None], 5),
            one.ask_many([pictures[1]] * 3, QUESTIONS, max_new_tokens=5),
            one.ask_grid(pictures, QUESTIONS, grid, 4),
            one.ask(pictures[1], QUESTIONS[0], own[2], 5, do_sample=False),
            list(one.stream(pictures[1], QUESTIONS[0], own[2], 5))[-1],
        )
        for one in pair
    ]
    assert answers[0] == answers[1]
    assert answers[1][3] == answers[1][4] != split.ask(pictures[1], QUESTIONS[0], max_new_tokens=5)


def test_gradients_of_a_split_model(pair: tuple[Any, Any], pictures: Pictures) -> None:
    slopes = []
    for one in pair:
        with one.read("text.0.block_out", "all", grad=True) as states:
            best = one.logits(pictures[:1], QUESTIONS[:1], grad=True)[0].max()
        slopes.append(torch.autograd.grad(best, states.rows("text.0.block_out")[0])[0])
    assert slopes[0].abs().max() > 0 and torch.equal(slopes[0], slopes[1])


def test_threads_share_a_split_model(pair: tuple[Any, Any], pictures: Pictures) -> None:
    """A weight that one thread has fetched is not taken away by another."""
    whole, split = pair
    own = steers(whole)[:4]
    expected = [whole.logits(pictures[:1], QUESTIONS[:1], one) for one in own]
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                seen = split.logits(pictures[:1], QUESTIONS[:1], own[number])
                wrong.extend([number] * (not torch.equal(seen, expected[number])))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(own))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inputs_go_where_the_model_runs(folders: Any, llava: Any, pictures: Pictures, tmp_path: Path) -> None:
    on_disk = vlmsteer.load(folders["llava"], device_map={"": "disk"}, offload_folder=tmp_path)
    assert all(weight.is_meta for weight in on_disk.model.parameters())
    assert on_disk.model.device.type == "meta" and on_disk.device == torch.device("cpu")
    assert torch.equal(on_disk.logits(pictures, QUESTIONS), llava.logits(pictures, QUESTIONS))


def test_weights_that_belong_to_no_layer(folders: Any, sessions: Any, pictures: Pictures, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'query_tokens' belongs to no layer"):
        vlmsteer.load(folders["instructblip"], device_map={"": "disk"}, offload_folder=tmp_path)
    split = vlmsteer.load(folders["instructblip"], device_map=PARTS, offload_folder=tmp_path)
    asked = (pictures[0], QUESTIONS[0], None, 5)
    assert split.ask(*asked, do_sample=False) == sessions["instructblip"].ask(*asked)


def test_tied_and_half_precision_weights_on_the_disk(pictures: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = checkpoints.qwen2_5_vl()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "tied")
    whole = vlmsteer.load(tmp_path / "tied", dtype="bfloat16")
    assert whole.model.lm_head.weight is whole.model.get_input_embeddings().weight
    limit = {"cpu": size(whole.model) // 2}
    split = vlmsteer.load(
        tmp_path / "tied", "bfloat16", "auto", max_memory=limit, offload_folder=tmp_path / "offloaded"
    )
    assert split.model.lm_head.weight.is_meta
    seen = split.logits(pictures, QUESTIONS, steers(whole)[2])
    assert seen.dtype == torch.bfloat16 and torch.equal(seen, whole.logits(pictures, QUESTIONS, steers(whole)[2]))


def test_the_disk_needs_a_folder(folders: Any, llava: Any, full_size: Path, monkeypatch: Any) -> None:
    with pytest.raises(ModelError, match="give a folder for it, offload_folder"):
        vlmsteer.load(folders["llava"], device_map={"": "disk"})
    with pytest.raises(ModelError, match=r"max_memory allows .*, give a folder .*\(offload_folder="):
        vlmsteer.load(folders["llava"], device_map="auto", max_memory={"cpu": size(llava.model) // 2})
    with pytest.raises(ModelError, match=r"needs about 28.3 GB in float32, max_memory allows 5.0 GB: .*give a folder"):
        vlmsteer.load(full_size, device_map="auto", max_memory={"cpu": "5GB"})
    assert vlmsteer.load(folders["llava"], device_map="auto", max_memory={"cpu": "1GB"}).device == llava.device
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Free(int(1.05 * size(llava.model))))
    with pytest.raises(ModelError, match=r"GB are free: .*, give a folder"):  # transformers leaves a tenth free
        vlmsteer.load(folders["llava"], device_map="auto")


def test_arguments_that_would_be_ignored(folders: Any, tmp_path: Path) -> None:
    for given in ({"max_memory": {"cpu": "1GB"}}, {"offload_folder": tmp_path}):
        with pytest.raises(ModelError, match="give device_map='auto' too"):
            vlmsteer.load(folders["llava"], **given)
    with pytest.raises(ModelError, match="give device_map='auto' too"):
        vlmsteer.load(folders["llava"], device_map="cpu", max_memory={"cpu": "1GB"})


def test_arguments_that_mean_nothing(folders: Any) -> None:
    with pytest.raises(ModelError, match=r"kept as 'bfloat'; did you mean 'bfloat16'\?"):
        vlmsteer.load(folders["llava"], dtype="bfloat")
    with pytest.raises(ModelError, match=r"no quantization '4bits'; did you mean '4bit'\?"):
        vlmsteer.load(folders["llava"], quantization="4bits")
    with pytest.raises(ModelError, match="could not be loaded: .*'auto'"):
        vlmsteer.load(folders["llava"], device_map="everywhere")
    with pytest.raises(ModelError, match="could not be loaded: .*size"):
        vlmsteer.load(folders["llava"], device_map="auto", max_memory={"cpu": "much"})


def test_bugs_keep_their_traceback(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user asked for what a device or a package may not support."""

    def broken(*_: Any) -> None:
        raise RuntimeError("what")

    monkeypatch.setattr("vlmsteer.selfcheck.check", broken)
    with pytest.raises(RuntimeError, match="what"):
        vlmsteer.load(folders["llava"])
    with pytest.raises(ModelError, match="cannot run with this device_map or quantization: what"):
        vlmsteer.load(folders["llava"], device_map="cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hooks_keep_half_precision(anyone: Any, folders: Any, pictures: Pictures, dtype: str, monkeypatch: Any) -> None:
    """Every site passes on what it was given, whatever is done there, and a vector is cast once for an answer."""
    name = next(key for key in folders if folders[key].name == anyone.name)
    half = vlmsteer.load(folders[name], dtype=dtype)
    assert half.model.get_output_embeddings().weight.dtype == getattr(torch, dtype)
    with half.read(half.sites, "all") as plain:
        baseline = half.logits(pictures[:1], QUESTIONS[:1])
    assert baseline.dtype == getattr(torch, dtype) and baseline.isfinite().all()
    everywhere = dict.fromkeys(f"{site.tower}.*.{site.point}" for site in half.sites)
    operations = ("add", "add_keep_norm", "scale", "affine", "project_out", "replace")
    for operation, positions in [*zip(operations, ["all"] * 6, strict=True), ("add", (0, -1)), ("affine", (0, -1))]:
        acts = both(*(recipe(half, sites, operation, 0.1, positions, size=0.3) for sites in everywhere))
        with half.apply(acts), half.read(half.sites, "all") as edited:
            changed = half.logits(pictures[:1], QUESTIONS[:1])
        assert changed.dtype == baseline.dtype and not torch.equal(changed, baseline)
        for site in half.sites:
            assert edited.rows(site)[0].dtype == plain.rows(site)[0].dtype, (site, operation)

    used: dict[Action, list[torch.Tensor]] = defaultdict(list)

    def noted(action: Action, *arguments: Any) -> Any:
        used[action].append(placed(action, *arguments)[0])
        return placed(action, *arguments)

    placed = Action._on
    monkeypatch.setattr(Action, "_on", noted)
    answer = recipe(half, "text.*.block_out", positions="all", size=0.1)
    half.ask(pictures[0], QUESTIONS[0], answer, 4)
    assert len(used) == half.layers()
    for vectors in used.values():
        assert len(vectors) > 1 and all(vector is vectors[0] for vector in vectors)


@pytest.fixture
def full_size(tmp_path: Path) -> Path:
    """A published 7B checkpoint's configuration, without weights."""
    published = json.loads((Path(__file__).parent / "published.json").read_text())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text(json.dumps(published[SEVEN]["config"]))
    return tmp_path / "full"


def test_too_large_for_memory(full_size: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known from the configuration: there are no weights here that could be read."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Free(20 * 10**9))
    with pytest.raises(ModelError) as refused:
        vlmsteer.load(full_size)
    assert str(refused.value) == (
        f"{str(full_size)!r} needs about 28.3 GB in float32, 20.0 GB are free: load it in half precision "
        "(dtype=torch.bfloat16), spread it with device_map='auto' (offload_folder=... uses the disk), or quantize it "
        "(quantization='4bit')."
    )
    before = time.process_time()
    with pytest.raises(ModelError, match="28.3 GB"):
        vlmsteer.load(full_size)
    assert time.process_time() - before < 1
    with pytest.raises(ModelError, match="needs about 28.3 GB in float32, 20.0 GB are free: .*give a folder"):
        vlmsteer.load(full_size, device_map="auto")
    for allowed in ({"dtype": "bfloat16"}, {"device_map": "auto", "offload_folder": tmp_path}):
        with pytest.raises(ModelError, match="could not be loaded: .*no file named"):
            vlmsteer.load(full_size, **allowed)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Free(10 * 10**9))
    with pytest.raises(ModelError, match="14.1 GB in float16, 10.0 GB are free: spread it"):
        vlmsteer.load(full_size, dtype="auto")


def test_small_models_are_not_counted(llava_folder: Path, llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def count(*arguments: Any) -> int:
        counted.append(real(*arguments))
        return counted[-1]

    real = loading._size
    monkeypatch.setattr(loading, "_size", count)
    vlmsteer.load(llava_folder, check=False)
    assert not counted
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Free(size(llava.model) + 1))
    vlmsteer.load(llava_folder, check=False)
    assert counted == [size(llava.model)]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Free(size(llava.model) - 1))
    with pytest.raises(ModelError, match="load it in half precision"):
        vlmsteer.load(llava_folder, check=False)
    vlmsteer.load(llava_folder, dtype="bfloat16", check=False)


@pytest.mark.parametrize("where", ["loading", "checking"])
def test_memory_that_runs_out(where: str, llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_gpu(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def in_main_memory(*_: Any, **__: Any) -> None:
        torch.empty(10**15)

    place = "transformers.LlavaForConditionalGeneration.from_pretrained"
    for failure in (on_a_gpu, in_main_memory):
        monkeypatch.setattr(place if where == "loading" else "vlmsteer.selfcheck.check", failure)
        with pytest.raises(ModelError, match="does not fit, .* GB are free: load it in half precision"):
            vlmsteer.load(llava_folder)


def test_quantization_without_its_package(llava_folder: Path, full_size: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    for given in ("4bit", "8bit"):
        with pytest.raises(ModelError, match="needs the package bitsandbytes: pip install bitsandbytes"):
            vlmsteer.load(llava_folder, quantization=given)


def test_a_quantization_config_without_its_package(full_size: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantized model is not measured by its unquantized size; transformers then asks for the package."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Free(10**9))
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_8bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ModelError, match="could not be loaded: .*pip install -U bitsandbytes"):
        vlmsteer.load(full_size, quantization=transformers.BitsAndBytesConfig(load_in_8bit=True))


def roughly(family: str) -> float:
    """The least cosine between two roundings of a model, -1 for any.

    Random T5 looks so sharply at single tokens that bfloat16 alone turns its states by cosines down to 0.84; there the
    numbers say nothing, and that they add up is checked by `load`.
    """
    return -1.0 if family == "instructblip_t5" else 0.9


def rounded(plain: Any, quantized: Any, numbers: Callable[[Any], torch.Tensor]) -> Any:
    """The plain model with the weights of the quantized one, as numbers again: what its hooks should see."""
    modules = dict(plain.model.named_modules())
    with torch.no_grad():
        for name, module in quantized.model.named_modules():
            if isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter:
                modules[name].weight.copy_(numbers(module))
    return plain


def quantized_like(quantized: Any, plain: Any, pictures: Pictures, least: float) -> None:
    """Reading, zero edits, edits of many kinds, by row and one by one, and answers of a quantized model."""
    assert quantized.sites == plain.sites and quantized.fingerprint["shapes"] == plain.fingerprint["shapes"]

    def same(seen: torch.Tensor, expected: torch.Tensor, what: Any) -> None:
        assert seen.dtype == expected.dtype, what
        assert torch.cosine_similarity(seen.flatten().float(), expected.flatten().float(), dim=0) >= least, what

    states, plainly = [], []
    for one in (quantized, plain):
        with one.read(one.sites, "all") as seen:
            plainly.append(one.logits(pictures[:1], QUESTIONS[:1]))
        states.append(seen)
    for site in plain.sites:
        same(states[0].rows(site)[0], states[1].rows(site)[0], site)
    last = f"text.{plain.layers() - 1}.block_out"
    same(quantized.unembed(states[0].rows(last)[0][-1]), plainly[0], "unembed")
    own = steers(plain)
    together = quantized.logits([pictures[0]] * len(own), QUESTIONS[:1] * len(own), own)
    for row, steer in zip(together, own, strict=True):
        alone = quantized.logits(pictures[:1], QUESTIONS[:1], steer)[0]
        same(row, alone, steer)
        same(alone, plain.logits(pictures[:1], QUESTIONS[:1], steer)[0], steer)
        assert steer is None or not torch.allclose(alone, plainly[0][0], atol=1e-2)
    nothing = recipe(quantized, "text.*.head", "scale", positions="all", size=0.0)
    assert torch.equal(quantized.logits(pictures[:1], QUESTIONS[:1], nothing), plainly[0])
    assert len(set(quantized.ask_many(pictures, QUESTIONS, own[:3], 4))) > 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_weights_by_torchao(family: str, dtype: str, folders: Any, pictures: Pictures) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao, which quantizes, is not installed")
    config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    quantized = vlmsteer.load(folders[family], dtype=dtype, quantization=config)
    kinds = {type(module.weight).__name__ for module in quantized.model.modules() if isinstance(module, nn.Linear)}
    assert "Int8Tensor" in kinds
    plain = rounded(vlmsteer.load(folders[family], dtype=dtype), quantized, lambda it: it.weight.dequantize())
    quantized_like(quantized, plain, pictures, 0.9999 if dtype == "float32" else roughly(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_8_bit_by_bitsandbytes(family: str, folders: Any, pictures: Pictures) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes, is not installed")
    quantized = vlmsteer.load(folders[family], dtype="float16", quantization="8bit")
    heads = quantized.taps[Site("text", 0, "head")].module
    assert isinstance(heads, bitsandbytes.nn.Linear8bitLt) and heads.weight.dtype == torch.int8
    turned = bitsandbytes.functional.int8_vectorwise_dequant
    plain = vlmsteer.load(folders[family], dtype="float16")
    plain = rounded(plain, quantized, lambda it: turned(it.weight.data, it.state.SCB))
    quantized_like(quantized, plain, pictures, roughly(family))


def test_4_bit_by_bitsandbytes(pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes, is not installed")
    for section in (checkpoints.DECODER, checkpoints.TOWER):  # it takes 64 numbers at a time
        monkeypatch.setitem(section, "hidden_size", 64)
        monkeypatch.setitem(section, "intermediate_size", 128)
    folder = checkpoints.save("llava", tmp_path / "wider")
    quantized = vlmsteer.load(folder, dtype="bfloat16", quantization="4bit", check=False)
    neurons = quantized.taps[Site("text", 0, "neuron")].module
    assert isinstance(neurons, bitsandbytes.nn.Linear4bit) and neurons.weight.numel() == 64 * 128 / 2
    turned = bitsandbytes.functional.dequantize_4bit
    plain = vlmsteer.load(folder, dtype="bfloat16")
    plain = rounded(plain, quantized, lambda it: turned(it.weight.data, it.weight.quant_state))
    quantized_like(vlmsteer.load(folder, dtype="bfloat16", quantization="4bit"), plain, pictures, 0.95)
