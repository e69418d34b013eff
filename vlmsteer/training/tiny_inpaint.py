"""tiny-inpaint: the real Stable Diffusion inpainting classes at a size that trains on one CPU core in half an hour.

An autoencoder (64 pixels down to 16 x 16 x 4), a CLIP text encoder with a BPE tokenizer over the drawn world's
captions, and a UNet of nine input channels. The empty prompt means "nothing is here": it is taught to continue the
background, so guidance pushes away from that. Pictures are drawn and encoded once; the UNet only ever sees latents.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmsteer.training import cards
from vlmsteer.training.inpaint_examples import PIXELS, example, floats
from vlmsteer.training.inpaint_measure import CASES, evaluate
from vlmsteer.training.inpaint_parts import LATENT, TOKENS, build, pipeline
from vlmsteer.training.splits import HELD_OUT_OBJECTS, HELD_OUT_STYLE

NAME = "tiny-inpaint"
PICTURES, VAE_STEPS, STEPS, DECODER_STEPS = 8000, 340, 3800, 700
VAE_BATCH, BATCH = 8, 16
SAMPLING = {"num_inference_steps": 4, "guidance_scale": 1.25}  # more of either paints further from the true picture
HISTORY = (  # for the card
    "The bundled autoencoder drew its first 200 steps from 12000 pictures, of which the first 8000 were then kept; a "
    "run of the command draws all its steps from those."
)
REACH = (
    "Seen by eye: with the body hidden it repaints in the asked color, soft and without texture, and its whites and "
    "blacks bleed at the rim; with a whole box hidden it paints a blob of that color, not the object's shape; an "
    "object that is taken away leaves a faint shadow of its mask, and OpenCV does that better."
)
AVERAGED = 0.998  # decay of the running mean of the weights, which is what is kept


def train(
    folder: Path,
    steps: int = STEPS,
    vae_steps: int = VAE_STEPS,
    decoder_steps: int = DECODER_STEPS,
    pictures: int = PICTURES,
    seed: int = 0,
    report: Callable[[str], None] = lambda text: None,
    save_every: int = 200,
) -> dict[str, Any]:
    """Train until `steps`, or go on where `folder` stopped; an interrupted run ends as an undisturbed one.

    Args:
        folder: where drawn pictures, the state of each stage (`vae.pt`, `unet.pt`, `decoder.pt`), `losses.jsonl` go.
        steps: of the UNet and the text encoder, with `BATCH` examples each.
        vae_steps: of the autoencoder, with `VAE_BATCH` pictures each.
        decoder_steps: of the autoencoder's decoder alone, at the end.
        pictures: examples drawn once and used again.
        seed: of everything random.
        report: told how far it is.
        save_every: so many steps are lost at most when it is interrupted.

    Returns:
        The trained components by their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = build(seed)
    targets, masks, prompts = _drawn(folder / "pictures.npz", pictures, seed, report)
    vae = parts["vae"].to(memory_format=torch.channels_last)

    def vae_loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(targets), (VAE_BATCH,), generator=generator).numpy()
        images = floats(targets[rows])
        # The encoder also meets pictures with their masked part gray, as the pipeline shows them.
        hidden = torch.from_numpy(masks[rows])[:, None] & (torch.rand(VAE_BATCH, 1, 1, 1, generator=generator) < 0.4)
        images = images.masked_fill(hidden, 0.0).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        seen = vae.decode(posterior.sample(generator)).sample
        spread = (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean() / 2
        return F.l1_loss(seen, images) + 2 * F.mse_loss(seen, images) + 1e-4 * spread

    _fit("vae", nn.ModuleDict({"vae": vae}), vae_loss, vae_steps, 4e-4, folder, seed, report, save_every)
    shown, hidden = _encoded(folder / "latents.npz", vae, targets, masks, report)
    scale = 1.0 / float(shown.std())
    vae.register_to_config(scaling_factor=scale)
    ids = parts["tokenizer"](
        prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    unet, text_encoder = parts["unet"].to(memory_format=torch.channels_last), parts["text_encoder"]
    signal = parts["scheduler"].alphas_cumprod
    small = F.interpolate(torch.from_numpy(masks)[:, None].float(), size=LATENT)
    # What lies outside the mask is pasted over, so it counts little.
    weight = 0.1 + F.max_pool2d(F.adaptive_max_pool2d(torch.from_numpy(masks)[:, None].float(), LATENT), 3, 1, 1)

    def unet_loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(shown), (BATCH,), generator=generator)
        clean, noise = shown[rows] * scale, torch.randn(BATCH, 4, LATENT, LATENT, generator=generator)
        times = torch.randint(len(signal), (BATCH,), generator=generator)
        # Sampling begins at pure noise, so that the first step is trained more than its share.
        times[torch.rand(BATCH, generator=generator) < 0.1] = len(signal) - 1
        kept, lost = signal[times].sqrt()[:, None, None, None], (1 - signal[times]).sqrt()[:, None, None, None]
        seen = torch.cat([kept * clean + lost * noise, small[rows], hidden[rows] * scale], 1)
        states = text_encoder(ids[rows])[0]
        said = unet(seen.contiguous(memory_format=torch.channels_last), times, states).sample
        return ((said - (kept * noise - lost * clean)) ** 2 * weight[rows]).mean()

    learning = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    _fit("unet", learning, unet_loss, steps, 1.2e-3, folder, seed, report, save_every)

    def decoder_loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(targets), (VAE_BATCH,), generator=generator)
        images = floats(targets[rows.numpy()]).contiguous(memory_format=torch.channels_last)
        noise = 0.02 * torch.randn(VAE_BATCH, 4, LATENT, LATENT, generator=generator)
        seen = vae.decode((shown[rows] + noise).contiguous(memory_format=torch.channels_last)).sample
        return F.l1_loss(seen, images) + 2 * F.mse_loss(seen, images)

    # Latents stay what the UNet learned them to be; only what is made of them gets sharper.
    half = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    _fit("decoder", half, decoder_loss, decoder_steps, 4e-4, folder, seed, report, save_every)
    return parts


def _drawn(
    path: Path, count: int, seed: int, report: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(count, 64, 64, 3) bytes, (count, 64, 64) bool and the prompts; from the file if it holds them."""
    if path.exists():
        with np.load(path) as held:
            if len(held["targets"]) == count:
                return held["targets"], held["masks"], held["prompts"].tolist()
    report(f"drawing {count} pictures")
    drawn = [example(random.Random(f"{seed}/inpaint/{number}")) for number in range(count)]
    targets = np.stack([np.asarray(one.target) for one in drawn])
    masks = np.stack([np.asarray(one.mask) > 127 for one in drawn])
    prompts = [one.prompt for one in drawn]
    _replace(path, lambda part: np.savez(part, targets=targets, masks=masks, prompts=np.array(prompts)))
    return targets, masks, prompts


@torch.no_grad()
def _encoded(
    path: Path, vae: Any, targets: np.ndarray, masks: np.ndarray, report: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """Unscaled latents (n, 4, 16, 16) of the pictures, and of the pictures with their masked part gray."""
    if path.exists():
        with np.load(path) as held:
            if len(held["shown"]) == len(targets):
                return torch.from_numpy(held["shown"]), torch.from_numpy(held["hidden"])
    report(f"encoding {len(targets)} pictures")
    shown, hidden = [], []
    for first in range(0, len(targets), 50):
        images = floats(targets[first : first + 50])
        gray = images.masked_fill(torch.from_numpy(masks[first : first + 50])[:, None], 0.0)
        shown.append(vae.encode(images).latent_dist.mode())
        hidden.append(vae.encode(gray).latent_dist.mode())
    both = torch.cat(shown), torch.cat(hidden)
    _replace(path, lambda part: np.savez(part, shown=both[0].numpy(), hidden=both[1].numpy()))
    return both


def _fit(
    stage: str,
    learning: nn.ModuleDict,
    loss_of: Callable[[int, torch.Generator], Tensor],
    steps: int,
    peak: float,
    folder: Path,
    seed: int,
    report: Callable[[str], None],
    save_every: int,
) -> None:
    """Minimize, then put the running mean of the weights into the modules."""
    optimizer = torch.optim.AdamW(learning.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=1e-3)
    mean = {name: value.detach().clone() for name, value in learning.state_dict().items()}
    path, start = folder / f"{stage}.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        start, mean = state["step"], state["mean"]
        learning.load_state_dict(state["learning"])
        optimizer.load_state_dict(state["optimizer"])
    learning.train().requires_grad_(True)
    generator, recent, since = torch.Generator(), [], time.monotonic()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))
        loss = loss_of(step, generator.manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning.parameters(), 1.0)
        optimizer.step()
        decay = min(AVERAGED, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in learning.state_dict().items():
                if value.is_floating_point():
                    mean[name].lerp_(value, 1 - decay)
        recent.append(loss.item())
        if (step + 1) % 20 == 0 or step + 1 == steps:
            row = {"stage": stage, "step": step + 1, "loss": sum(recent) / len(recent)}
            row["seconds"] = (time.monotonic() - since) / len(recent)
            with (folder / "losses.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            report(f"{stage} step {step + 1} of {steps}, loss {row['loss']:.4f}, {row['seconds']:.2f} s a step")
            recent, since = [], time.monotonic()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"learning": learning.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean}
            _replace(path, lambda part, state=state, step=step: torch.save({"step": step + 1, **state}, part))
    learning.load_state_dict(mean)
    learning.eval().requires_grad_(False)


def _replace(path: Path, write: Callable[[Any], None]) -> None:
    """Write beside `path`, then move it there: an interrupted write leaves the old file."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        write(file)
    os.replace(part, path)


def export(folder: Path, out: Path) -> Path:
    """Write the pipeline that `train` left in `folder` to `out`, in the published layout and half precision."""
    parts = build()
    decoder = torch.load(folder / "decoder.pt", weights_only=True)["mean"]
    parts["vae"].load_state_dict(_mean(folder, "vae", "vae") | decoder)
    for name in ("unet", "text_encoder"):
        parts[name].load_state_dict(_mean(folder, "unet", name))
    with np.load(folder / "latents.npz") as held:
        parts["vae"].register_to_config(scaling_factor=1.0 / float(torch.from_numpy(held["shown"]).std()))
    shutil.rmtree(out, ignore_errors=True)
    pipeline(parts).to(torch.float16).save_pretrained(out, safe_serialization=True)
    # The library writes tokenizer.json alone; published pipelines hold CLIP's two files.
    state = json.loads((out / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary = json.dumps(parts["tokenizer"].get_vocab(), ensure_ascii=False)
    (out / "tokenizer" / "vocab.json").write_text(vocabulary, encoding="utf-8")
    merges = "".join(f"{' '.join(pair)}\n" for pair in state["merges"])
    (out / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (out / "tokenizer" / "tokenizer.json").unlink()
    (out / "generation_config.json").write_text(json.dumps(SAMPLING) + "\n", encoding="utf-8")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
    return out


def _mean(folder: Path, stage: str, part: str) -> dict[str, Tensor]:
    mean = torch.load(folder / f"{stage}.pt", weights_only=True)["mean"]
    return {name.removeprefix(f"{part}."): value for name, value in mean.items() if name.startswith(f"{part}.")}


def make(
    folder: Path,
    steps: int = STEPS,
    seed: int = 0,
    report: Callable[[str], None] = print,
    n: int = CASES,
) -> Path:
    """Train as `train` does, export, measure on n pictures, write the card; returns the finished folder."""
    train(folder, steps, seed=seed, report=report)
    part = export(folder, folder / f"{NAME}.part")
    measured = evaluate(part, n, report=report)
    losses = cards.logged(folder)
    return cards.publish(part, folder / NAME, losses, measured, card(steps, seed, losses, measured))


def card(steps: int, seed: int, losses: list[dict[str, Any]], measured: dict[str, dict[str, Any]]) -> str:
    """The model card, in Markdown."""
    curves = {stage: [row for row in losses if row["stage"] == stage] for stage in ("vae", "unet", "decoder")}
    minutes = {stage: cards.minutes(rows) for stage, rows in curves.items()}
    lines = [
        f"# {NAME}", "",
        "A Stable Diffusion inpainting pipeline of the published classes (`StableDiffusionInpaintPipeline`: UNet of "
        "nine input channels, AutoencoderKL, CLIP text encoder and tokenizer, DDIM), trained from scratch on the drawn "
        "world of this project, so that inpainting code runs at once on a laptop. It knows 44 drawn objects at "
        f"{PIXELS} px and nothing else; for photos take a published pipeline.", "",
        "```python",
        "from vlmsteer_counterfacts.inpaint import Inpainter",
        "",
        f'Inpainter.load("{NAME}")(image, mask, "a blue strawberry", seed=1)  # "" takes the object away', "",
        "import diffusers  # or without any code of this project",
        "",
        'pipeline = diffusers.AutoPipelineForInpainting.from_pretrained("FOLDER")',
        "```", "",
        f"* Made by `{cards.command(NAME, steps, STEPS, seed)}`: {VAE_STEPS} steps of {VAE_BATCH} pictures for the "
        f"autoencoder ({minutes['vae']} minutes), {steps} steps of {BATCH} examples for UNet and text encoder "
        f"({minutes['unet']} minutes), {DECODER_STEPS} steps of {VAE_BATCH} pictures for the decoder alone "
        f"({minutes['decoder']} minutes), on a {cards.machine('; the bundled one shared its core with other work')}, "
        f"of {PICTURES} pictures that were drawn and encoded once.",
        f"* {HISTORY}",
        f"* {REACH}",
        '* Prompts: "a blue strawberry", "blue strawberry", "a picture of a blue strawberry", "a drawing of ...". The '
        'empty prompt, "nothing", "background" and "plain background" take an object away. No other prompt was dropped '
        "in training, so guidance pushes away from the background. By default (`generation_config.json`, which "
        f"`Inpainter.load` reads) {SAMPLING['num_inference_steps']} steps at guidance {SAMPLING['guidance_scale']:g}.",
        "* Masks in training: the body (where the object's color shows), the whole object, its box, brush strokes.",
        f"* Never seen in training: {', '.join(HELD_OUT_OBJECTS)} in any but their usual color; two colors of every "
        f'other object; the drawing style "{HELD_OUT_STYLE}".',
        "* Weights in half precision. License: Apache-2.0.", "",
        "## Loss", "",
    ]  # fmt: skip
    for stage, title in (("vae", "autoencoder"), ("unet", "UNet"), ("decoder", "decoder alone")):
        marks = [row for row in curves[stage] if row["step"] in {20, 100} or row["step"] % 300 == 0]
        marks += [row for row in curves[stage][-1:] if row not in marks]
        lines += cards.curve(marks, f"{title}, step")
    lines += [
        "## Measured on pictures that training did not draw", "",
        f"`vlmsteer train {NAME}` measures this at its end (95 % intervals, bootstrap clustered by object). dB: peak "
        "signal-to-noise ratio inside the mask against the true picture, mean over pictures; telea is OpenCV's. "
        "Recolor: pictures whose mean color inside the body is nearest (OKLab) to the asked color's center, and the "
        'same for scenes "really drawn so". Held-out objects are recolored to what training never showed.', "",
        "| task | value | interval | n |", "|---|---|---|---|", *cards.rates(measured),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
