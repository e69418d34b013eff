"""A direction for a way of moving: what words add to an instruction, mean over pictures.

The vector of a layer is the mean difference of the residual stream leaving that block, between "reach the red block
slowly" and "reach the red block" before the same picture: at the prompt's last token, or over all tokens after which
the policy chooses a number of its action. It is PvP's and CAA's mean difference, learned on a policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.images import open_image
from vlmsteer.methods.caa import stability
from vlmsteer.methods.method import checked_layers, layer_at
from vlmsteer.openvla.actions import act
from vlmsteer.recipe import Recipe
from vlmsteer.running import Mean
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

VERSION = 1
READ = {"last": "the prompt's last token", "action": "every token after which an action token is chosen, and its mean"}


def learn(
    session: Session,
    images: Sequence[Image.Image | str],
    plain: Sequence[str],
    changed: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    read: str = "last",
    unnorm_key: str | None = None,
    batch_size: int = 16,
) -> Recipe:
    """The changed instructions minus the plain ones, added at the prompt's last token and every action token.

    Args:
        images: what the robot sees.
        plain, changed: for each image an instruction without and with the words; without may also be with the
            opposite ones, so that what any longer sentence would change drops out.
        layers: where to read and write; by default two, half-way up.
        read: a name from `READ`. With "action" each instruction is followed by the policy's own action tokens.
        unnorm_key: the data set that says how many numbers an action has.

    Raises:
        InputError: if there are fewer than two pairs, the lists differ in length, or `read` is unknown.
    """
    if len(images) < 2 or not len(images) == len(plain) == len(changed):
        raise InputError(
            "A direction needs two or more images with two instructions each, not "
            f"{len(images)}, {len(plain)} and {len(changed)}."
        )
    if read not in READ:
        raise InputError(f"States are read at last or action, not {read!r}{did_you_mean(read, READ)}.")
    middle = layer_at(session, 0.5)
    chosen = checked_layers(session, layers or [max(0, middle - 1), middle])
    sites = [Site("text", layer, "block_out") for layer in chosen]
    halves, data = (Mean(), Mean()), hashlib.sha256("\n".join([*plain, *changed]).encode())
    pairs = max(1, batch_size // 2)
    for first in range(0, len(images), pairs):
        rows = slice(first, first + pairs)
        opened = [open_image(image) for image in images[rows]]
        for image in opened:
            data.update(image.tobytes())
        shown, asked = [*opened, *opened], [*changed[rows], *plain[rows]]
        with session.read(sites, "last", "both") as states:
            if read == "last":
                session.run(shown, asked)
            else:
                act(session, shown, asked, unnorm_key=unnorm_key, batch_size=len(asked))
        means = [torch.stack([tokens.float().mean(0) for tokens in states.rows(site)]).cpu() for site in sites]
        with_words, without = torch.stack(means, 1).chunk(2)
        odd = torch.arange(first, first + len(opened)) % 2 == 1
        halves[0].update((with_words - without)[~odd])
        halves[1].update((with_words - without)[odd])
    mean = (halves[0] + halves[1]).mean.float()
    about = {
        "method": "paired_instructions", "version": VERSION, "pairs": len(images), "data": data.hexdigest()[:16],
        "options": {"layers": chosen, "read": read}, "prompts": {"changed": changed[0], "plain": plain[0]},
        "stability": stability(halves, chosen),
    }  # fmt: skip
    vectors = dict(zip(chosen, mean, strict=True))
    return Recipe.of(Vectors("text", "block_out", vectors, session.fingerprint, about))
