"""The untrained parts of tiny-inpaint: the published classes, small, and what of them can be set without learning.

The tokenizer's merges come from the captions. The autoencoder starts as one that averages 4 x 4 pixels and repeats
them, so that training only adds the detail.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from vlmsteer.training.inpaint_examples import PIXELS, REMOVAL, TEMPLATES, caption
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.palette import COLORS

LATENT = 16
TOKENS = 16  # of a prompt, its start and end included


def tokenizer() -> Any:
    """CLIP's tokenizer, its merges learned so that every word of the captions is one token."""
    from transformers import CLIPTokenizer

    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learned.decoder = decoders.ByteLevel()
    lines = [caption(name, color, text) for name in facts() for color in COLORS for text in TEMPLATES]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned.train_from_iterator(
        [*lines, *REMOVAL],
        trainers.BpeTrainer(
            vocab_size=2000,
            min_frequency=1,
            initial_alphabet=letters,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)  # pyright: ignore[reportArgumentType]


def build(seed: int = 0) -> dict[str, Any]:
    """The pipeline's untrained components by their names."""
    from transformers import CLIPTextConfig, CLIPTextModel

    diffusers = _diffusers()

    torch.manual_seed(seed)
    words = tokenizer()
    vae = diffusers.AutoencoderKL(
        sample_size=PIXELS,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    start_plain(vae)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=9,
        out_channels=4,
        block_out_channels=(48, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        steps_offset=1,
    )
    return {"tokenizer": words, "vae": vae, "text_encoder": text_encoder, "unet": unet, "scheduler": scheduler}


@torch.no_grad()
def start_plain(vae: Any) -> None:
    """Wire an untrained autoencoder so that it averages 4 x 4 pixels and repeats them; training then adds the detail.

    Residual branches start at zero, so that the trunk is linear up to the last norm. Constants in its group make that
    norm a fixed scale, and SiLU(x) - SiLU(-x) = x makes the activation after it linear. The fourth latent starts as the
    slope of brightness across the diagonal.
    """
    for module in vae.modules():
        if type(module).__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)

    def wire(conv: Any, gains: dict[int, dict[int, float]], window: Any = None, bias: float = 0.0) -> None:
        middle = conv.kernel_size[0] // 2
        for to, sources in gains.items():
            conv.weight[to], conv.bias[to] = 0.0, bias
            for source, gain in sources.items():
                if window is None:
                    conv.weight[to, source, middle, middle] = gain
                else:
                    conv.weight[to, source, :2, :2] = gain * torch.tensor(window)

    def signs(conv: Any, count: int, constant: float) -> None:
        wire(conv, {to: {to % count: 1.0 if to < count else -1.0} for to in range(2 * count)})
        wire(conv, {2 * count: {}}, bias=constant)
        wire(conv, {2 * count + 1: {}}, bias=-constant)

    same, mean = {to: {to: 1.0} for to in range(4)}, [[0.25, 0.25], [0.25, 0.25]]
    colors = {to: {to: 1.0} for to in range(3)}
    encoder, decoder = vae.encoder, vae.decoder
    wire(encoder.conv_in, colors)
    wire(encoder.down_blocks[0].downsamplers[0].conv, colors, mean)
    wire(encoder.down_blocks[1].resnets[0].conv_shortcut, colors)
    wire(encoder.down_blocks[1].downsamplers[0].conv, colors, mean)
    slope = [[0.5, 0.0], [0.0, -0.5]]
    wire(encoder.down_blocks[1].downsamplers[0].conv, {3: dict.fromkeys(range(3), 1.0)}, slope)
    signs(encoder.down_blocks[2].resnets[0].conv_shortcut, 4, 8.0)  # 32 channels a group: their deviation is about 2
    wire(encoder.conv_out, {to: {to: 2.0, to + 4: -2.0} for to in range(4)})
    wire(encoder.conv_out, {to: {} for to in range(4, 8)}, bias=-6.0)  # hardly any noise
    wire(vae.quant_conv, {to: {to: 1.0} for to in range(8)})
    wire(vae.post_quant_conv, same)
    wire(decoder.conv_in, same)
    wire(decoder.up_blocks[0].upsamplers[0].conv, same)
    wire(decoder.up_blocks[1].resnets[0].conv_shortcut, same)
    wire(decoder.up_blocks[1].upsamplers[0].conv, same)
    signs(decoder.up_blocks[2].resnets[0].conv_shortcut, 3, 4.0)  # 8 channels a group: again about 2
    wire(decoder.conv_out, {to: {to: 2.0, to + 3: -2.0} for to in range(3)})


def pipeline(parts: dict[str, Any]) -> Any:
    """The components of `build` as one pipeline."""
    return _diffusers().StableDiffusionInpaintPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _diffusers() -> Any:
    """The package; its classes are made when asked for, which type checkers cannot follow."""
    return importlib.import_module("diffusers")
