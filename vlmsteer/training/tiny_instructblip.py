"""tiny-instructblip: the real InstructBLIP classes at a size that trains and runs on a laptop.

A ViT, a Q-Former whose queries read the picture together with the question, one linear layer, and a Llama decoder.
The prompt is the bare question, as published. Text and vision start from tiny-llava's; the Q-Former and its WordPiece
vocabulary, learned on the drawn world's questions, are new. All files are those of a published checkpoint.
"""

from __future__ import annotations

import json
import random

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaTokenizer,
)

from vlmsteer.loading import BUNDLED
from vlmsteer.training.first_stage import learn_to_see, queries
from vlmsteer.training.loop import Plan
from vlmsteer.training.mix import SCENES_FROM, sample
from vlmsteer.training.packing import Tokens
from vlmsteer.training.questions import Exchange
from vlmsteer.training.start import Start
from vlmsteer.training.tiny_llava import decoder, special_ids

IMAGE_SIZE, PATCH = 84, 12
QUERIES = (IMAGE_SIZE // PATCH) ** 2  # one a patch: the first stage needs that; published models have 32
VOCABULARY = 600  # the Q-Former's
SAMPLES = 2000  # drawn to learn it from
FIRST_STEPS = 2500  # of the first stage
WORDPIECE_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build(seed: int = 0) -> tuple[InstructBlipForConditionalGeneration, InstructBlipProcessor]:
    """An untrained model and its processor."""
    tokenizer = LlamaTokenizer.from_pretrained(BUNDLED / "tiny-llava", add_bos_token=True)
    tokenizer.chat_template = None
    reader = _question_tokenizer(seed)
    image_processor = BlipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = InstructBlipProcessor(image_processor, tokenizer, reader, num_query_tokens=QUERIES)
    config = InstructBlipConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "initializer_range": 0.02,
        },
        qformer_config={
            "vocab_size": len(reader),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "cross_attention_frequency": 2,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": reader.pad_token_id,
        },
        text_config=decoder(tokenizer).to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.get_vocab()["<image>"],
    )
    config._attn_implementation = "sdpa"
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)  # equal queries would stay equal; a norm follows, so of its size
    model.generation_config.update(**special_ids(tokenizer))
    return model, processor


def tokenize(exchange: Exchange, processor, image_tokens: int) -> Tokens:
    """The image's tokens, then the bare question, which the Q-Former reads too; the answer follows after a space."""
    tokenizer = processor.tokenizer
    shown = [tokenizer.convert_tokens_to_ids(str(processor.image_token))] * image_tokens if exchange.image else []
    prompt = tokenizer(exchange.question).input_ids
    ids = [*shown, *tokenizer(f"{exchange.question} {exchange.answer}").input_ids, tokenizer.eos_token_id]
    reads = processor.qformer_tokenizer(exchange.question).input_ids if exchange.image else None
    return Tokens(ids, np.arange(len(ids)), len(shown) + len(prompt), reads)


def states(
    model: InstructBlipForConditionalGeneration, tensors: dict[str, torch.Tensor], mask: torch.Tensor
) -> torch.Tensor:
    """The text tower's last hidden states; every image goes through the ViT once, then once a question on."""
    seen = model.vision_model(pixel_values=tensors["pixel_values"]).last_hidden_state[tensors["image_of"]]
    read = queries(model, seen, tensors["qformer_input_ids"], tensors["qformer_attention_mask"])
    embeds = model.get_input_embeddings()(tensors["input_ids"])
    image = (tensors["input_ids"] == model.config.image_token_id)[..., None]
    embeds = embeds.masked_scatter(image, model.language_projection(read).to(embeds.dtype))
    return model.language_model.model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=tensors["position_ids"], use_cache=False
    ).last_hidden_state


def first_stage(model: InstructBlipForConditionalGeneration, processor: InstructBlipProcessor, seed: int) -> None:
    """Before the language model listens, the queries learn to give what tiny-llava's patches give."""
    learn_to_see(model, processor, "tiny-llava", FIRST_STEPS, seed, _say)


def _say(step: int, left: float) -> None:
    print(f"first stage, step {step}: {left:.3f} of the variance not explained yet", flush=True)


def _question_tokenizer(seed: int) -> BertTokenizer:
    rng = random.Random(seed)
    lines = [
        exchange.question for number in range(SAMPLES) for exchange in sample(rng, SCENES_FROM * (number % 2)).exchanges
    ]
    learned = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer = normalizers.BertNormalizer(lowercase=True)
    learned.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    learned.train_from_iterator(
        lines,
        trainers.WordPieceTrainer(
            vocab_size=VOCABULARY, special_tokens=WORDPIECE_SPECIAL, initial_alphabet=letters, show_progress=False
        ),
    )
    vocab = json.loads(learned.to_str())["model"]["vocab"]
    for letter in letters:  # any word can be spelled
        vocab.setdefault(f"##{letter}", len(vocab))
    return BertTokenizer(vocab=vocab)


PLAN = Plan(
    build,
    IMAGE_SIZE,
    image_tokens=QUERIES,
    steps=900,
    batch=12,
    peak_rate=2e-4,  # at 1e-3 the text tower forgets how to read what the first stage gives it
    tokenize=tokenize,
    states=states,
    start=Start(
        "tiny-llava",
        {
            "language_model.model.": "model.language_model.",
            "vision_model.embeddings.": "model.vision_tower.embeddings.",
            "vision_model.encoder.": "model.vision_tower.encoder.",
        },
        "The text tower and the first four vision layers start from tiny-llava's; in a first stage of "
        f"{FIRST_STEPS} steps without the text tower, query i learned to give what tiny-llava's projector gives for "
        "patch i.",
        parts={
            ".position_embedding": (".position_embedding.weight",),
            ".qkv.": (".q_proj.", ".k_proj.", ".v_proj."),
            ".projection.": (".out_proj.",),
        },
        scales={  # in tiny-llava a norm divides what these give by its deviation, 4.4 on average, and weighs it by 1.14
            "vision_model.embeddings.patch_embedding.weight": 0.26,
            "vision_model.embeddings.position_embedding": 0.26,
        },
    ),
    first_stage=first_stage,
    mix_offset=5500,
)
