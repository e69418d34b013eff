"""Loading a model by name: bundled with the project, a local folder, or a checkpoint on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlmsteer.errors import ModelError, did_you_mean
from vlmsteer.registry import family_of

BUNDLED = Path(__file__).parent / "bundled"


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
) -> Any:
    """Load a model and its processor.

    Args:
        name: a bundled name such as "tiny-llava", a folder, or a hub name such as "llava-hf/llava-1.5-7b-hf".
        dtype: a torch dtype; by default float32 on a CPU and the checkpoint's own where there is a GPU.
        device_map: as in transformers ("auto" spreads one model over devices).
        revision: a commit or tag on the hub.
        quantization: a transformers quantization config.
        check: compare declared sites with the loaded model by running it once with edits (`selfcheck.check`).

    Returns:
        A `Session`.

    Raises:
        ModelError: if there is no such model, it cannot be loaded, or its family is not supported.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    from vlmsteer.selfcheck import check as self_check
    from vlmsteer.session import Session

    name = os.fspath(name)
    source: str | Path = bundled().get(name, name)
    if not Path(source).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ModelError(
            f"There is no model {name!r}: it is neither bundled nor a folder, and hub names look like owner/name"
            f"{did_you_mean(name, bundled())}"
        )
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"The folder {name!r} holds no config.json, so it is not a checkpoint.")
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision)
        family = family_of(config)
        if dtype is None:
            dtype = "auto" if torch.cuda.is_available() else torch.float32
        model, loaded = getattr(transformers, family.architecture).from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            device_map=device_map,
            quantization_config=quantization,
            output_loading_info=True,
        )
        if loaded["missing_keys"]:
            missing = sorted(loaded["missing_keys"])
            raise ModelError(f"{name!r} lacks {len(missing)} of the model's weights, for example {missing[0]!r}.")
        if device_map is None and quantization is None and torch.cuda.is_available():
            model = model.to("cuda")
        processor = transformers.AutoProcessor.from_pretrained(source, revision=revision)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name!r} could not be loaded: {reason} If the hub cannot be reached, download the checkpoint and give "
            "its folder."
        ) from error
    identity = Path(name).resolve().name if Path(source).is_dir() else name
    session = Session(model.eval(), processor, identity, family, getattr(config, "_commit_hash", None))
    if check:
        self_check(session)
    return session
