"""Loading a model by name: bundled with the project, a local folder, or a checkpoint on the hub.

Whether a model fits is known before its weights are read: its configuration says how many there are. One that does not
fit can be kept in half precision, spread over devices and the disk, or quantized, and then has the same sites and
answers the same calls. What goes wrong on the way ends in a sentence that says what to do.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlmsteer.errors import ModelError, did_you_mean
from vlmsteer.registry import FAMILIES, family_key, family_of

BUNDLED = Path(__file__).parent / "bundled"
DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTIZATIONS = ("4bit", "8bit")
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # the device maps that transformers works out itself
GROWTH = 8  # the most that a checkpoint can grow by when it is loaded: half a byte a number becomes a float32
FOREIGN = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, MemoryError, SafetensorError)


def bundled() -> dict[str, Path]:
    """The checkpoints that ship with the project, by name."""
    return {path.parent.name: path.parent for path in sorted(BUNDLED.glob("*/config.json"))}


def load(
    name: str | os.PathLike[str],
    dtype: Any = None,
    device_map: Any = None,
    revision: str | None = None,
    quantization: Any = None,
    check: bool = True,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
) -> Any:
    """Load a model and its processor.

    Args:
        name: a bundled name such as "tiny-llava", a folder, or a hub name such as "llava-hf/llava-1.5-7b-hf".
        dtype: a torch dtype or its name, or "auto" for the checkpoint's own; by default float32 on a CPU and the
            checkpoint's own where there is a GPU.
        device_map: as in transformers: "auto" spreads one model over all devices, a dict says where each part goes.
            By default the whole model is on the GPU if there is one, else in main memory.
        revision: a commit or tag on the hub.
        quantization: a transformers quantization config, or "8bit" or "4bit" (bitsandbytes).
        check: compare declared sites with the loaded model by running it with edits (`selfcheck.check`).
        max_memory: what a spread model may take of each device, in bytes or as text: {0: "10GB", "cpu": "30GB"}.
        offload_folder: a folder for what a spread model keeps on the disk; without one, nothing may go there.

    Returns:
        A `Session`.

    Raises:
        ModelError: if there is no such model, its family is not supported, it cannot be loaded, it does not fit into
            memory, or the package that quantizes it is missing.
    """
    import torch
    import transformers

    from vlmsteer.selfcheck import check as self_check
    from vlmsteer.session import Session

    name = os.fspath(name)
    source = _source(name)
    dtype = _dtype(dtype)
    spread = isinstance(device_map, str) and device_map in SPREAD
    if (max_memory is not None and not spread) or (offload_folder is not None and device_map is None):
        raise ModelError("max_memory and offload_folder are for a model that is spread: give device_map='auto' too.")
    if isinstance(device_map, Mapping) and "disk" in device_map.values() and offload_folder is None:
        raise ModelError("This device_map puts a part of the model on the disk: give a folder for it, offload_folder.")
    failed = f"{name!r} could not be loaded"
    remote = "" if Path(source).is_dir() else " If the hub cannot be reached, give the folder of a downloaded copy."
    with _explained(failed, remote):
        config, family = _configuration(source, revision)
        library = import_module(family.library)
        architecture = getattr(library, family.architecture)
        stored = _stored(dtype, config)
        quantization = _quantization(quantization, stored)
        packed = quantization is not None or getattr(config, "quantization_config", None) is not None
        free = _free(spread, max_memory)
        size = None if packed or _small(Path(source), free) else _size(architecture, config, stored)
    needs = "does not fit" if size is None else f"needs about {_gigabytes(size)} in {str(stored).split('.')[-1]}"
    room = f"{_gigabytes(free)} are free" if max_memory is None else f"max_memory allows {_gigabytes(free)}"
    too_large = f"{name!r} {needs}, {room}: {_ways(stored, device_map, packed, offload_folder)}."
    if size is not None and size > free and (device_map is None or (spread and offload_folder is None)):
        raise ModelError(too_large)
    with _explained(failed, remote, too_large):
        model, loaded = architecture.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            device_map="cuda" if device_map is None and torch.cuda.is_available() else device_map,
            max_memory=None if max_memory is None else dict(max_memory),
            offload_folder=offload_folder,
            quantization_config=quantization,
            output_loading_info=True,
        )
        if loaded["missing_keys"]:
            missing = sorted(loaded["missing_keys"])
            raise ModelError(f"{name!r} lacks {len(missing)} of the model's weights, for example {missing[0]!r}.")
        if offload_folder is None and "disk" in getattr(model, "hf_device_map", {}).values():
            raise ModelError(too_large)
        _check_placement(model)
        if library is transformers:
            processor = transformers.AutoProcessor.from_pretrained(source, revision=revision)
        else:
            processor = library.processor(source, config, revision)
    identity = Path(name).resolve().name if Path(source).is_dir() else name
    session = Session(model.eval(), processor, identity, family, getattr(config, "_commit_hash", None))
    if check:
        unusual = FOREIGN if packed or device_map is not None else ()
        with _explained(f"{name!r} cannot run with this device_map or quantization", "", too_large, unusual):
            self_check(session)
    return session


def _source(name: str) -> str | Path:
    """Where a model is: its folder, or its name on the hub."""
    source: str | Path = bundled().get(name, name)
    if not Path(source).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ModelError(
            f"There is no model {name!r}: it is neither bundled nor a folder, and hub names look like owner/name"
            f"{did_you_mean(name, bundled())}"
        )
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"The folder {name!r} holds no config.json, so it is not a checkpoint.")
    return source


def _configuration(source: str | Path, revision: str | None) -> tuple[Any, Any]:
    """A model's configuration and its family; where transformers has no class for it, one of ours reads it."""
    import transformers

    written, _ = transformers.PreTrainedConfig.get_config_dict(source, revision=revision)
    key = family_key(str(written.get("model_type", written.get("type"))), None)  # LeRobot writes `type`
    library = FAMILIES.load(key).library if key else "transformers"
    if library == "transformers":
        config = transformers.AutoConfig.from_pretrained(source, revision=revision)
    else:
        config = import_module(library).configuration(source, revision)
    return config, family_of(config)


@contextmanager
def _explained(
    sentence: str, remote: str = "", too_large: str | None = None, kinds: tuple[type[Exception], ...] = FOREIGN
) -> Iterator[None]:
    """Make a ModelError of what transformers, torch, accelerate and the hub raise; others keep their traceback."""
    import torch

    try:
        yield
    except ModelError:
        raise
    except FOREIGN as error:
        said = str(error).strip()
        full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in said
        if full and too_large is not None:
            raise ModelError(too_large) from error
        if not isinstance(error, kinds):
            raise
        reason = said.splitlines()[0].rstrip(".:") if said else type(error).__name__
        raise ModelError(f"{sentence}: {reason}.{remote}") from error


def _dtype(dtype: Any) -> Any:
    """A torch dtype, or "auto"."""
    import torch

    if dtype is None:
        return "auto" if torch.cuda.is_available() else torch.float32
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"Weights cannot be kept as {dtype!r}{did_you_mean(str(dtype), DTYPES)}")
    return getattr(torch, dtype)


def _stored(dtype: Any, config: Any) -> Any:
    """The torch dtype that the weights will have; half precision where the checkpoint does not say its own."""
    import torch

    return (getattr(config, "dtype", None) or torch.float16) if dtype == "auto" else dtype


def _quantization(given: Any, stored: Any) -> Any:
    """A transformers quantization config."""
    if not isinstance(given, str):
        return given
    if given not in QUANTIZATIONS:
        raise ModelError(f"There is no quantization {given!r}{did_you_mean(given, QUANTIZATIONS)}")
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization={given!r} needs the package bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    if given == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=stored)


def _free(spread: bool, max_memory: Mapping[int | str, int | str] | None) -> int:
    """Bytes for weights: of all devices together for a model that is spread, else of the one it goes to by default."""
    import psutil
    import torch
    from accelerate.utils import get_max_memory

    if spread:
        return int(sum(get_max_memory(None if max_memory is None else dict(max_memory)).values()))
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return psutil.virtual_memory().available


def _small(folder: Path, free: int) -> bool:
    """Whether a folder's weights fit whatever is made of them, so that counting them would be a waste of time."""
    files = [path.stat().st_size for kind in ("safetensors", "bin") for path in folder.glob(f"*.{kind}")]
    return bool(files) and GROWTH * sum(files) < free


def _size(architecture: Any, config: Any, stored: Any) -> int:
    """Bytes of all weights of a model, from its configuration alone."""
    import torch

    with torch.device("meta"):
        model = architecture(copy.deepcopy(config))
    return sum(weight.numel() for weight in model.parameters()) * stored.itemsize


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _ways(stored: Any, device_map: Any, packed: bool, offload_folder: Any) -> str:
    """What is left to try for a model that is too large, as the end of a sentence."""
    ways = []
    if stored.itemsize > 2:
        ways.append("load it in half precision (dtype=torch.bfloat16)")
    if device_map is None:
        ways.append("spread it with device_map='auto' (offload_folder=... uses the disk)")
    elif offload_folder is None:
        ways.append("give a folder for what does not fit (offload_folder=... uses the disk)")
    if not packed:
        ways.append("quantize it (quantization='4bit')")
    ways = ways or ["allow less memory for each device (max_memory), so that more goes to the disk"]
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"


def _check_placement(model: Any) -> None:
    """Refuse to have a weight on the disk that belongs to no layer: nothing fetches it for transformers' generate."""
    for name in (name for name, weight in model.named_parameters() if weight.is_meta and name.count(".") < 2):
        if next(model.get_submodule(name.rpartition(".")[0]).children(), None) is not None:
            raise ModelError(
                f"{name!r} belongs to no layer and must stay where the model runs: allow more memory there "
                "(max_memory), or give a device_map with an entry for each part."
            )
