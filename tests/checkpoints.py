"""Small random checkpoints of the real classes, saved in the published layout.

Weights are larger than a fresh initialization's, so that different prompts and edits give different answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = ["USER: [INST]", "What color is the strawberry here? ASSISTANT: red", "[/INST] green blue yellow small large"]
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
NEXT_TEMPLATE = (
    "{% for message in messages %}{{ '[INST] ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endfor %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ IMAGE }}{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_IMAGE = "'<|vision_start|><|image_pad|><|vision_end|>'"
QWEN_TOKENS = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
SIZE, PATCH = 28, 14
PINPOINTS = [[28, 56], [56, 28], [56, 56]]
DECODER: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": PATCH,
}


def _bpe(pieces: Any, special: list[str], letters: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pieces
    trainer: Any = trainers.BpeTrainer
    learned.train_from_iterator(
        TEXT, trainer(vocab_size=420, special_tokens=special, initial_alphabet=letters, show_progress=False)
    )
    state = json.loads(learned.to_str())["model"]
    return state["vocab"], [tuple(pair) for pair in state["merges"]]


def _llama_tokenizer() -> Any:
    pieces = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Punctuation()])
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab, merges = _bpe(pieces, special, letters)
    tokenizer = tf.LlamaTokenizer(vocab=vocab, merges=merges, pad_token="<pad>", padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def _qwen_tokenizer(extra: list[str]) -> Any:
    vocab, merges = _bpe(
        tf.Qwen2Tokenizer().backend_tokenizer.pre_tokenizer, [], sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer: Any = tf.Qwen2Tokenizer
    return tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=extra,
    )


def _bert_tokenizer() -> Any:
    letters = [chr(code) for code in range(33, 127)]
    words = sorted({word.strip("?:[]/").lower() for line in TEXT for word in line.split()} - {""})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *letters, *(f"##{c}" for c in letters), *words]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return tf.BertTokenizer(vocab=vocab, bos_token="[DEC]")


def _t5_tokenizer() -> Any:
    # Written down, not trained: the trainer's vocabulary differs from process to process.
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    words = dict.fromkeys(f"▁{word}" for line in TEXT for word in line.split())
    pieces = [*((piece, -2.0 - 0.01 * i) for i, piece in enumerate(words)), *((letter, -6.0) for letter in letters)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]
    tokenizer = tf.T5Tokenizer(vocab=vocab, extra_ids=0)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def _ids(tokenizer: Any) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def _llava_like(kind: str, tower: Any, decoder: Any, tokenizer: Any, template: str, **extra: Any) -> tuple[Any, Any]:
    clip = isinstance(tower, tf.CLIPVisionConfig)
    shared: dict[str, Any] = {
        "vision_config": tower,
        "text_config": decoder,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2 if clip else -1,
        "vision_feature_select_strategy": "default" if clip else "full",
        "image_seq_length": (SIZE // PATCH) ** 2,
        **extra,
    }
    model = getattr(tf, f"{kind}ForConditionalGeneration")(getattr(tf, f"{kind}Config")(**shared))
    side: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    side = side if clip else {"size": {"height": SIZE, "width": SIZE}}
    images = {"Llava": "CLIPImageProcessor"}.get(kind, f"{kind}ImageProcessor")
    image_processor = getattr(tf, images)(**side, **{k: v for k, v in extra.items() if k == "image_grid_pinpoints"})
    steps: dict[str, Any] = {"vision_feature_select_strategy": shared["vision_feature_select_strategy"]}
    if clip:
        steps |= {"patch_size": PATCH, "num_additional_image_tokens": 1}
    else:
        steps |= {
            "num_image_tokens": (SIZE // PATCH) ** 2,
            "vision_aspect_ratio": shared["vision_aspect_ratio"],
            "video_processor": tf.LlavaOnevisionVideoProcessor(**side),
        }
    processor = getattr(tf, f"{kind}Processor")(image_processor, tokenizer, chat_template=template, **steps)
    with torch.no_grad():
        for module in model.model.multi_modal_projector.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 0.3)
    return model, processor


def llava() -> tuple[Any, Any]:
    tokenizer = _llama_tokenizer()
    tower = tf.CLIPVisionConfig(**TOWER, initializer_factor=3.0)
    return _llava_like("Llava", tower, tf.LlamaConfig(**DECODER, **_ids(tokenizer)), tokenizer, LLAVA_TEMPLATE)


def llava_next() -> tuple[Any, Any]:
    tokenizer = _llama_tokenizer()
    tower = tf.CLIPVisionConfig(**TOWER, initializer_factor=3.0)
    decoder = tf.MistralConfig(**DECODER, **_ids(tokenizer), sliding_window=None)
    return _llava_like("LlavaNext", tower, decoder, tokenizer, NEXT_TEMPLATE, image_grid_pinpoints=PINPOINTS)


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer(["<|im_start|>", "<image>", "<video>"])
    tower = tf.SiglipVisionConfig(**TOWER, vision_use_head=False)
    return _llava_like(
        "LlavaOnevision",
        tower,
        tf.Qwen2Config(**DECODER, **_ids(tokenizer)),
        tokenizer,
        CHATML_TEMPLATE.replace("IMAGE", r"'<image>\n'"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_3",
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )


def _instructblip(tokenizer: Any, decoder: Any) -> tuple[Any, Any]:
    bert = _bert_tokenizer()
    queries = 6
    processor = tf.InstructBlipProcessor(
        tf.BlipImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer, bert, num_query_tokens=queries
    )
    config = tf.InstructBlipConfig(
        vision_config={**TOWER, "initializer_range": 0.3},
        qformer_config={
            **{key: DECODER[key] for key in ("intermediate_size", "num_hidden_layers", "num_attention_heads")},
            "hidden_size": 40,
            "encoder_hidden_size": TOWER["hidden_size"],
            "vocab_size": len(bert),
            "initializer_range": 0.3,
        },
        text_config=decoder.to_dict(),
        num_query_tokens=queries,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = tf.InstructBlipForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_(0, 1)
        model.language_projection.weight.normal_(0, 0.3)
    return model, processor


def instructblip() -> tuple[Any, Any]:
    tokenizer = _llama_tokenizer()
    model, processor = _instructblip(tokenizer, tf.LlamaConfig(**DECODER, **_ids(tokenizer)))
    return model, processor


def instructblip_t5() -> tuple[Any, Any]:
    tokenizer = _t5_tokenizer()
    kind: Any = tf.T5Config
    decoder = kind(
        vocab_size=len(tokenizer),
        d_model=48,
        d_kv=12,
        d_ff=80,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=tokenizer.pad_token_id,
        initializer_factor=1.0,
    )
    model, processor = _instructblip(tokenizer, decoder)
    with torch.no_grad():
        for name, weight in model.language_model.named_parameters():
            if "Attention" in name and weight.dim() == 2:
                weight.mul_(4 if "EncDec" in name else 2)
        model.language_model.lm_head.weight[tokenizer.eos_token_id] = 0
    return model, processor


def _qwen(kind: str, vision: dict[str, Any], rope: str = "default") -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer(QWEN_TOKENS)
    ids = tokenizer.get_vocab()
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": 16**2, "longest_edge": 48**2},
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
    }
    family = "Qwen3VL" if kind == "Qwen3VL" else "Qwen2VL"
    processor = getattr(tf, f"{kind}Processor")(
        tf.Qwen2VLImageProcessor(**sizes),
        tokenizer,
        getattr(tf, f"{family}VideoProcessor")(**sizes),
        chat_template=CHATML_TEMPLATE.replace("IMAGE", QWEN_IMAGE),
    )
    config = getattr(tf, f"{kind}Config")(
        vision_config={
            "depth": 3,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.3,
            **vision,
        },
        text_config={
            **DECODER,
            **_ids(tokenizer),
            "rope_parameters": {"rope_type": rope, "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
            **({"head_dim": 12} if kind == "Qwen3VL" else {}),
        },
        **{f"{name}_token_id": ids[f"<|{name}_pad|>"] for name in ("image", "video")},
        **{f"vision_{name}_token_id": ids[f"<|vision_{name}|>"] for name in ("start", "end")},
    )
    return getattr(tf, f"{kind}ForConditionalGeneration")(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    return _qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2})


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = {"hidden_size": 32, "intermediate_size": 56, "out_hidden_size": 48}
    return _qwen("Qwen2_5_VL", vision | {"window_size": 16, "fullatt_block_indexes": [1]})


def qwen3_vl() -> tuple[Any, Any]:
    vision = {"hidden_size": 32, "intermediate_size": 56, "out_hidden_size": 48, "num_position_embeddings": 16}
    return _qwen("Qwen3VL", vision | {"deepstack_visual_indexes": [0, 1]})


def openvla() -> tuple[Any, Any]:
    from vlmsteer.openvla.configuration import OpenVLAConfig
    from vlmsteer.openvla.images import ImageProcessor
    from vlmsteer.openvla.model import OpenVLAForActionPrediction
    from vlmsteer.openvla.processor import OpenVLAProcessor

    tokenizer = _llama_tokenizer()
    ids = _ids(tokenizer)
    towers = {"depth": 3, "num_heads": 4, "mlp_ratio": 1.75}
    config = OpenVLAConfig(
        text_config={"model_type": "llama", **DECODER, **ids, "vocab_size": ids["vocab_size"] + 8},
        pad_to_multiple_of=8,
        image_sizes=[SIZE, SIZE],
        timm_overrides=[{**towers, "embed_dim": 32, "init_values": 0.5}, {**towers, "embed_dim": 24}],
        norm_stats={
            "blocks": {"action": {"q01": [-1.0] * 6 + [0.0], "q99": [2.0] * 6 + [1.0], "mask": [True] * 6 + [False]}}
        },
        arch_specifier="no-align+fused-gelu-mlp",
        auto_map={"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
    )
    model = OpenVLAForActionPrediction(config)
    with torch.no_grad():
        for weight in [*model.vision_backbone.parameters(), *model.projector.parameters()]:
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    processor = OpenVLAProcessor(ImageProcessor(SIZE), tokenizer, config.image_tokens, config.image_token_id, "v0.2")
    return model, processor


def pi0() -> tuple[Any, Any]:
    from vlmsteer.pi0.checkpoint import PI0Config, PI0ForConditionalGeneration
    from vlmsteer.pi0.processor import PI0Processor

    tokenizer = _llama_tokenizer()
    ids, image = _ids(tokenizer), tokenizer.convert_tokens_to_ids("<image>")
    decoder = {"model_type": "gemma", **DECODER, **ids, "head_dim": 12}
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "vision_config": {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False},
            "text_config": decoder,
            "projection_dim": DECODER["hidden_size"],
            "image_token_id": image,
        },
        dit_config={**decoder, "hidden_size": 40, "intermediate_size": 56},
        chunk_size=4,
        max_state_dim=6,
        max_action_dim=7,
        num_inference_steps=3,
    )
    model = PI0ForConditionalGeneration(config)
    with torch.no_grad():
        for module in [*model.embed_action_time.modules(), *model.model.vlm.multi_modal_projector.modules()]:
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 0.3)
        model.action_out_proj.weight.normal_(0, 0.3)
    make: Any = tf.PI0ImageProcessor
    patches = (SIZE // PATCH) ** 2
    sizes = {"size": {"max_height": SIZE, "max_width": SIZE}, "pad_size": {"height": SIZE, "width": SIZE}}
    return model, PI0Processor(make(**sizes, image_seq_length=patches), tokenizer, patches, image)


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (
        llava,
        llava_next,
        llava_onevision,
        instructblip,
        instructblip_t5,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        openvla,
        pi0,
    )
}


def save(name: str, folder: Path) -> Path:
    """Save a random checkpoint as a published one is."""
    torch.manual_seed(list(BUILDERS).index(name))
    model, processor = BUILDERS[name]()
    tokenizer = processor.tokenizer
    with torch.no_grad():  # bytes are hardly ever said: half a character would hide which byte it was
        unembedding = model.get_output_embeddings()
        for token, index in tokenizer.get_vocab().items() if unembedding is not None else ():
            if token.startswith("<0x") or (len(token) == 1 and not token.isascii()):
                unembedding.weight[index] = 0  # pyright: ignore[reportOptionalMemberAccess]
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    for part in {model, getattr(model, "language_model", model)}:
        if hasattr(part, "generation_config"):
            part.generation_config.update(**{name: getattr(tokenizer, name) for name in names})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
