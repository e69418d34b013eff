"""Persona vectors (Chen, Arditi, Sleight, Evans and Lindsey, 2025, arXiv 2507.21509), here for being untruthful.

The vector of a layer is the mean difference between answers without and with the trait, each the mean over its tokens;
no sparse autoencoder takes part. The layer is the one that tells answers of held-out groups apart best. Steering adds
it at every token that says something; before an answer, the state of the prompt's last token along it foretells the
trait.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmsteer.examples import Example, digest, split_groups
from vlmsteer.methods.caa import TOKENS, answer_states, into_halves, stability
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.running import Mean
from vlmsteer.session import Session
from vlmsteer.vectors import Vectors

NAME, VERSION = "persona", 1


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    held_out: float = 0.3,
    batch_size: int = 16,
) -> Recipe:
    """Right minus wrong answers, from all groups but the held-out ones, added at the layer chosen on these.

    Args:
        layers: where the best is looked for, by default everywhere.
        held_out: the share of groups to choose the layer on.

    Raises:
        InputError: if there are fewer than two groups.
    """
    enough(examples, "Persona vectors")
    offered = checked_layers(session, layers)
    held, rest = split_groups(examples, held_out)
    halves = Mean(), Mean()
    for batch, states in answer_states(session, rest, offered, TOKENS["mean"], batch_size=batch_size):
        into_halves(halves, states[:, 0] - states[:, 1], batch)
    mean = (halves[0] + halves[1]).mean.float()  # (layers, width)
    unit = torch.nn.functional.normalize(mean, dim=-1)
    said, before = [], []
    for _, states in answer_states(session, held, offered, _answer_and_prompt, batch_size=batch_size):
        along = (states * unit[:, None]).sum(-1)  # (examples, right and wrong, layers, answer and prompt)
        said.append(along[..., 0])
        before.append(along[:, 0, :, 1])
    projections = torch.cat(said)
    apart = separation(projections[:, 0], projections[:, 1])
    best = int(apart.argmax())
    about = {
        "method": NAME, "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {"layers": offered, "held_out": held_out}, "layer": offered[best],
        "separation": {str(layer): round(float(value), 4) for layer, value in zip(offered, apart, strict=True)},
        "auroc": _auroc(projections[:, 0, best], projections[:, 1, best]),
        "monitor": _monitor(session, held, torch.cat(before)[:, best], batch_size),
        "held_out": len(held), "stability": stability(halves, offered),
    }  # fmt: skip
    vectors = Vectors("text", "block_out", {offered[best]: mean[best]}, session.fingerprint, about)
    return Recipe((Edit(vectors, "add", 1.0, "last"),), session.fingerprint, about)


def separation(right: Tensor, wrong: Tensor) -> Tensor:
    """How many standard deviations lie between the means of two groups of (n, layers) projections: (layers,)."""
    spread = ((right.var(0, unbiased=False) + wrong.var(0, unbiased=False)) / 2).sqrt()
    return (right.mean(0) - wrong.mean(0)) / spread.clamp_min(1e-12)


def _answer_and_prompt(states: Tensor) -> Tensor:
    return torch.stack([states[1:].mean(0), states[0]])


def _monitor(session: Session, held: Sequence[Example], projections: Tensor, batch_size: int) -> float | None:
    """AUROC of the prompt's projection for which answer the model then finds likelier a token; None if always one."""
    images, questions = [one.image for one in held], [one.question for one in held]
    right, wrong = (
        torch.stack([row.mean() for row in session.score(images, questions, answers, batch_size=batch_size)]).cpu()
        for answers in ([one.right for one in held], [one.wrong for one in held])
    )
    return _auroc(projections[right >= wrong], projections[right < wrong])


def _auroc(positives: Tensor, negatives: Tensor) -> float | None:
    from vlmsteer.samples import area

    if not len(positives) or not len(negatives):
        return None
    return round(float(area(positives, negatives)), 4)


METHOD = Method(
    name=NAME,
    title="Persona vectors, without a sparse autoencoder",
    paper="Chen et al., 2025, arXiv 2507.21509",
    needs="captions",
    learn=learn,
    strengths=(0.5, 1.0, 2.0),
    notes="Given right and wrong answers take the place of a system prompt that asks for the trait and a judge of it. "
    "The vector points to the truth: it is added where the paper subtracts the trait. Beginning with the prompt's last "
    "token, as the authors' code does, else the first answer token could not change.",
)
