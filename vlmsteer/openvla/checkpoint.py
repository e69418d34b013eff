"""An OpenVLA checkpoint's files, read without the code that lies beside them: `loading` takes its classes from here.

config.json and preprocessor_config.json are data, whatever their `auto_map` names; the tokenizer is tokenizer.json as
it stands; weights are safetensors, in any number of shards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from vlmsteer.errors import ModelError
from vlmsteer.openvla.configuration import OpenVLAConfig
from vlmsteer.openvla.images import ImageProcessor
from vlmsteer.openvla.model import OpenVLAForActionPrediction
from vlmsteer.openvla.processor import OpenVLAProcessor

__all__ = ["OpenVLAForActionPrediction", "configuration", "processor"]


def configuration(source: Any, revision: str | None = None) -> OpenVLAConfig:
    """The configuration of a folder or of a name on the hub.

    Raises:
        ModelError: if it describes no OpenVLA that can be built.
    """
    config = OpenVLAConfig.from_pretrained(source, **_where(revision))
    if config.prompt is None:
        config.prompt = "v0.1" if "openvla-v01" in str(source) else "v0.2"
    return config


def processor(source: Any, config: OpenVLAConfig, revision: str | None = None) -> OpenVLAProcessor:
    """The processor of a folder or of a name on the hub.

    Raises:
        ModelError: if the tokenizer or the image processor does not fit the model.
    """
    where = _where(revision)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **where)
    if len(tokenizer) > config.image_token_id:
        raise ModelError(f"The tokenizer has {len(tokenizer)} tokens, the model {config.image_token_id}.")
    found = cached_file(source, "preprocessor_config.json", **where)
    images = ImageProcessor.parse(json.loads(Path(found).read_text(encoding="utf-8")))  # pyright: ignore[reportArgumentType]
    if images.size != config.image_sizes[0] or len(images.statistics) != len(config.image_sizes):
        raise ModelError(
            f"The image processor makes {len(images.statistics)} pictures of {images.size} pixels, the vision towers "
            f"take {len(config.image_sizes)} of {config.image_sizes[0]}."
        )
    return OpenVLAProcessor(images, tokenizer, config.image_tokens, config.image_token_id, config.prompt or "v0.2")


def _where(revision: str | None) -> dict[str, Any]:
    return {} if revision is None else {"revision": revision}
