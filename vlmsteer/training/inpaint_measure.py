"""How well an inpainting pipeline restores, recolors and removes drawn objects that training did not draw."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmsteer.bench.statistics import rate
from vlmsteer.training.inpaint_examples import PIXELS, caption, cases, floats, grow, object_mask
from vlmsteer_counterfacts.color import to_oklab
from vlmsteer_counterfacts.inpaint import Inpainter, fill
from vlmsteer_counterfacts.palette import COLORS

CASES = 200  # pictures to measure on


def evaluate(
    pipeline_folder: Path, n: int = CASES, seed: int = 1, report: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, Any]]:
    """Measure restoring, recoloring and removing, half on held-out objects; intervals are clustered by object.

    Restoring and removing are the PSNR inside the mask against the true picture (dB, the mean over pictures), beside
    what OpenCV's telea reaches and, for the body, what the autoencoder alone keeps. Recoloring is the share of pictures
    whose mean color inside the body mask is nearest (OKLab) to the center of the asked color, beside the share for the
    scene really drawn in that color.
    """
    inpainter = Inpainter.load(pipeline_folder)
    outcomes: dict[str, list[tuple[float, str]]] = {}
    for number, case in enumerate(cases(n, seed)):
        scene, item, drawn = case.scene, case.scene.items[0], case.scene.render(PIXELS)
        who = "held-out objects" if case.held_out else "trained objects"
        body, silhouette = grow(drawn.bodies[0], 1), grow(drawn.masks[0], 2)
        box = object_mask(drawn, 0, random.Random(number), "box")

        def log(task: str, value: float, who: str = who, name: str = item.object) -> None:
            outcomes.setdefault(f"{who}: {task}", []).append((value, name))

        now = caption(item.object, item.color)
        for shape, mask in (("body", body), ("box", box)):
            log(f"restore {shape}, dB", psnr(inpainter(drawn.image, mask, now, seed=number), drawn.image, mask))
            log(f"restore {shape}, telea, dB", psnr(fill(drawn.image, mask), drawn.image, mask))
        log("restore body, autoencoder alone, dB", psnr(_through(inpainter, drawn.image), drawn.image, body))
        own = grow(drawn.bodies[0], 0)
        made = inpainter(drawn.image, own, caption(item.object, case.color), seed=number)
        log("recolor", float(named(made, drawn.bodies[0]) == case.color))
        true = scene.recolor(0, case.color).render(PIXELS).image
        log("recolor, really drawn so", float(named(true, drawn.bodies[0]) == case.color))
        empty = scene.without(0).render(PIXELS).image
        log("remove, dB", psnr(inpainter(drawn.image, silhouette, "", seed=number), empty, silhouette))
        log("remove, telea, dB", psnr(fill(drawn.image, silhouette), empty, silhouette))
        if (number + 1) % 20 == 0:
            report(f"measured {number + 1} of {n}")
    return {
        task: rate([value for value, _ in rows], [name for _, name in rows]).as_dict()
        for task, rows in sorted(outcomes.items())
    }


def psnr(image: Image.Image, true: Image.Image, mask: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB over the pixels where the mask is not 0; at most 60."""
    inside = np.asarray(mask) > 0
    difference = (np.asarray(image, np.float64) - np.asarray(true, np.float64))[inside]
    return 10 * math.log10(255**2 / max(float((difference**2).mean()), 0.065))


def named(image: Image.Image, body: Image.Image) -> str:
    """The named color whose center is nearest to the mean color (OKLab) where the body mask is full."""
    inside = to_oklab(np.asarray(image))[np.asarray(body) == 255].mean(0)
    return min(COLORS, key=lambda color: math.dist(inside, _center(color)))


def _center(color: str) -> tuple[float, float, float]:
    lightness, chroma, hue = COLORS[color][:3]
    return lightness, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))


@torch.no_grad()
def _through(inpainter: Inpainter, image: Image.Image) -> Image.Image:
    vae = inpainter.pipeline.vae
    seen = vae.decode(vae.encode(floats(np.array(image)[None]).to(vae.device)).latent_dist.mode()).sample
    return Image.fromarray(((seen[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())
