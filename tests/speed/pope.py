"""POPE by the runner, beside one `generate` a question on the same model: at least 3 times the throughput is the aim.

Six questions share an image of 576 tokens, as with LLaVA-1.5. The model is LLaVA at tiny-llava's width with
random weights: speed does not depend on what it says, and both must say the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from results import record
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

import vlmsteer
from vlmsteer.bench.arms import make
from vlmsteer.bench.drawn_files import drawn_folder
from vlmsteer.bench.files import Files
from vlmsteer.bench.plan import Task, limited
from vlmsteer.bench.pope import BENCHMARK
from vlmsteer.bench.results import read_run
from vlmsteer.bench.runner import run
from vlmsteer.training.tiny_llava import build

SIDE, PATCH, QUESTIONS, TOKENS, REPEATS = 336, 14, 60, 10, 3


def save(folder: Path) -> None:
    """A LLaVA with 24 x 24 image tokens."""
    model, processor = build()
    config: Any = model.config
    config.vision_config.image_size, config.vision_config.patch_size = SIDE, PATCH
    config.image_seq_length, config.text_config.max_position_embeddings = (SIDE // PATCH) ** 2, 1024
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        images, processor.tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=processor.chat_template,
    ).save_pretrained(folder)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as place:
        save(Path(place, "model"))
        session = vlmsteer.load(str(Path(place, "model")))
        items = limited(BENCHMARK.items(Files(drawn_folder() / "pope")), QUESTIONS)
        task = Task(BENCHMARK, items, longest=TOKENS)
        seconds = {"generate": float("inf"), "runner": float("inf")}
        for repeat in range(REPEATS):
            started = time.perf_counter()
            said = []
            for item in items:
                layout = session.encoder.encode([Image.open(item.image or "")], [item.prompt]).whole(session.device)
                tokens = session.model.generate(**layout.inputs, max_new_tokens=TOKENS, do_sample=False)
                said.append(session.encoder.decode(tokens[0, layout.positions.shape[1] :]))
            seconds["generate"] = min(seconds["generate"], time.perf_counter() - started)
            started = time.perf_counter()
            done = run(session, [task], make({}, [1.0], 0, 0), Path(place, str(repeat)))
            seconds["runner"] = min(seconds["runner"], time.perf_counter() - started)
            rows = read_run(Path(place, str(repeat))).answers["pope"]["none"]
            assert not done.failed and [rows[item.id].text for item in items] == said, "both must say the same"
        record(
            "POPE with a shared prefix", seconds, "runner",
            f"LLaVA at tiny-llava's width, {(SIDE // PATCH) ** 2} image tokens, {QUESTIONS} questions about "
            f"{len({item.image for item in items})} images, {TOKENS} tokens, one thread, min of {REPEATS} interleaved; "
            "the runner also opens and checks the files and writes the rows",
        )  # fmt: skip


if __name__ == "__main__":
    main()
