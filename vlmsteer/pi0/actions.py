"""pi0 as a function from images and instructions to chunks of actions, steered or not.

Actions begin as noise at time 1 and follow the velocity that the action expert gives, in even Euler steps, to time 0
(arXiv 2410.24164, section IV). The prompt is read once; each step runs the expert alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError, ModelError
from vlmsteer.openvla.actions import each
from vlmsteer.prompts import Layout
from vlmsteer.recipe import Recipe

if TYPE_CHECKING:
    from vlmsteer.session import Session


def act(
    session: Session,
    images: Sequence[Image.Image | str],
    instructions: Sequence[str],
    recipe: Recipe | Sequence[Recipe | None] | None = None,
    states: Any = None,
    seed: int | Sequence[int] = 0,
    steps: int | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """A chunk of actions for each image and instruction: (rows, chunk, numbers) float64.

    They are in the units of the data if the checkpoint says what these are (`actions_mean`, `actions_std` of
    processor_config.json), else normalized, with all the numbers that the model has room for.

    Args:
        session: a loaded pi0.
        images: what the robot's camera shows.
        instructions: what it should do ("pick up the red block").
        recipe: one for all rows, or one (or None) for each.
        states: (rows, numbers) of the robot, in the units of the data; by default the mean of the data.
        seed: of the noise that actions begin as, which is the same in all rows; or one for each row.
        steps: of the flow, by default as many as the configuration says (10 in the paper).
        batch_size: how many rows are run at once.

    Raises:
        InputError: if the rows do not match, a row has no image, a state or a seed cannot be used, or there is no step.
        RecipeError: if a recipe has rules, which choose words.
        ModelError: if the model has no flow head, or gives velocities that are not numbers.
    """
    config: Any = session.model.config
    if not hasattr(config, "num_inference_steps"):
        raise ModelError(f"{session.name!r} is a {session.family.name}, not a policy with a flow head.")
    recipes = each(images, instructions, recipe)
    steps = config.num_inference_steps if steps is None else steps
    if type(steps) is not int or steps < 1:
        raise InputError(f"The flow takes a whole number of steps, one or more, not {steps!r}.")
    if batch_size < 1:
        raise InputError(f"A batch has one row or more; batch_size is {batch_size}.")
    dtype = session.model.action_out_proj.weight.dtype
    state = _states(session, states, len(images)).to(dtype)
    noise = _noise(seed, len(images), (config.chunk_size, config.max_action_dim)).to(dtype)
    parts = []
    for first in range(0, len(images), batch_size):
        rows = slice(first, first + batch_size)
        part = recipe if recipe is None or isinstance(recipe, Recipe) else recipes[rows]
        parts.append(_flow(session, images[rows], instructions[rows], part, state[rows], noise[rows], steps))
        wrong = (~parts[-1].isfinite().flatten(1).all(1)).nonzero()
        if len(wrong):
            raise ModelError(
                f"The policy gives no action in row {first + int(wrong[0])}: its velocities are not numbers. Weaken "
                "the recipe, or load the model in bfloat16 or float32."
            )
    return session.processor.unnormalized(torch.cat(parts).double().numpy())


def _flow(
    session: Session,
    images: Sequence[Image.Image | str],
    instructions: Sequence[str],
    recipes: Recipe | Sequence[Recipe | None] | None,
    state: Tensor,
    noise: Tensor,
    steps: int,
) -> Tensor:
    """(rows, chunk, numbers) on the CPU: the noise carried along the velocity to time 0."""
    encoded = session.encoder.encode(images, instructions)
    encoded.rows = [
        row._replace(asked={"state": own, "noise": start})
        for row, own, start in zip(encoded.rows, state, noise, strict=True)
    ]
    state, actions = state.to(session.device), noise.to(session.device)
    with session.opened(images, instructions, recipes, encoded) as stream:
        velocity = stream.logits
        for step in range(1, steps + 1):
            actions = actions - velocity.view_as(actions) / steps
            if step == steps:
                break
            inputs = {"attention_mask": stream.mask, "state": state, "noise": actions}
            inputs["timestep"] = torch.full((len(actions),), 1 - step / steps, device=session.device)
            layout = Layout(inputs, stream.position, stream.run.prompt)  # pyright: ignore[reportArgumentType]
            velocity = session.forward(layout, stream.run, stream.cache).logits.to(session.device)
    return actions.cpu()


def _states(session: Session, states: Any, rows: int) -> Tensor:
    """(rows, numbers the model has room for), normalized, and zeros behind the robot's own."""
    room = session.model.config.max_state_dim
    if states is None:
        return torch.zeros(rows, room)
    try:
        given = np.asarray(states, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("States are numbers, a row of as many for each image.") from error
    if given.ndim != 2 or len(given) != rows or not 0 < given.shape[1] <= room or not np.isfinite(given).all():
        raise InputError(
            f"States are finite numbers of shape ({rows}, 1 to {room}), a row for each image, not {given.shape}."
        )
    own = torch.from_numpy(session.processor.normalized(given)).float()
    return torch.nn.functional.pad(own, (0, room - own.shape[1]))


def _noise(seed: Any, rows: int, shape: tuple[int, int]) -> Tensor:
    """(rows, chunk, numbers): each row's from its own seed, so that it does not depend on the other rows."""
    seeds = list(seed) if isinstance(seed, list | tuple) else [seed] * rows
    if len(seeds) != rows or not all(type(one) is int and 0 <= one < 2**63 for one in seeds):
        raise InputError(
            f"A seed is a whole number from 0 on, one for all or a list of one for each of {rows} rows, not {seed!r}."
        )
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(one)) for one in seeds])
