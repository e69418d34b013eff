"""CAA, contrastive activation addition (Panickssery et al., ACL 2024, arXiv 2312.06681).

The vector of a layer is the mean, over questions with a right and a wrong answer, of the residual stream at the answer
token under the right minus under the wrong answer. It is added after the same block to every token from the last one of
the prompt on. The paper's answers are the letters of a choice; here they are yes and no, or two captions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vlmsteer.errors import RecipeError, did_you_mean
from vlmsteer.examples import Example, digest
from vlmsteer.methods.method import Method, checked_layers, enough, layer_at
from vlmsteer.reading import batches
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.running import Mean
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

NAME, VERSION = "caa", 1
DEPTH = 13 / 32  # the paper's layer 13 of Llama-2-7B
TOKENS: dict[str, Callable[[Tensor], Tensor]] = {  # of the prompt's last token and the answer's, (1 + tokens, width)
    "first": lambda states: states[1],
    "last": lambda states: states[-1],
    "mean": lambda states: states[1:].mean(0),
}


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    token: str = "auto",
    batch_size: int = 16,
) -> Recipe:
    """Right minus wrong answers, added with multiplier 1.

    Args:
        layers: where to read and write; by default one, 13/32 of the way up.
        token: the answer token that is read, "first", "last" or "mean"; "auto" is the first of a yes/no answer and the
            last of a caption.
    """
    enough(examples, "CAA")
    chosen = checked_layers(session, layers) if layers else [layer_at(session, DEPTH)]
    if token != "auto" and token not in TOKENS:
        raise RecipeError(f"There is no answer token {token!r}{did_you_mean(token, ['auto', *TOKENS])}")
    halves = Mean(), Mean()
    for part in (True, False):
        asked = [one for one in examples if (one.kind == "presence") == part]
        name = ("first" if part else "last") if token == "auto" else token
        for batch, states in answer_states(session, asked, chosen, TOKENS[name], batch_size=batch_size):
            into_halves(halves, states[:, 0] - states[:, 1], batch)
    mean = (halves[0] + halves[1]).mean.float()
    about = {
        "method": NAME, "version": VERSION, "examples": len(examples), "data": digest(examples),
        "options": {"layers": chosen, "token": token}, "stability": stability(halves, chosen),
        "right_answers": {answer: n for answer, n in Counter(one.right for one in examples).items() if n > 1},
    }  # fmt: skip
    vectors = Vectors("text", "block_out", dict(zip(chosen, mean, strict=True)), session.fingerprint, about)
    return Recipe((Edit(vectors, "add", 1.0, "last"),), session.fingerprint, about)


def answer_states(
    session: Session,
    examples: Sequence[Example],
    layers: Sequence[int],
    token: Callable[[Tensor], Tensor],
    recipe: Recipe | None = None,
    batch_size: int = 16,
    point: str = "block_out",
) -> Iterator[tuple[Sequence[Example], Tensor]]:
    """States under right and wrong answers: some examples, and (examples, 2, layers, ...) float32 on the CPU.

    Args:
        token: makes of one row's (1 + tokens, width) states, the prompt's last token before the answer's tokens, what
            is kept of them.
        recipe: acts while reading.
    """
    sites = [Site("text", layer, point) for layer in layers]
    asked = [(one, answer) for one in examples for answer in (one.right, one.wrong)]
    images, questions = [one.image for one, _ in asked], [one.question for one, _ in asked]
    answers = [answer for _, answer in asked]
    for rows, states in batches(
        session, sites, images, questions, answers, "last", recipe=recipe, batch_size=max(2, batch_size // 2 * 2)
    ):
        kept = [torch.stack([token(row.float()) for row in states.rows(site)]).cpu() for site in sites]
        yield examples[rows.start // 2 : rows.stop // 2], torch.stack(kept, 1).unflatten(0, (-1, 2))


def into_halves(halves: tuple[Mean, Mean], rows: Tensor, examples: Sequence[Example]) -> None:
    """Half of the groups into each mean, so that how well the two agree says how stable the mean of all is."""
    odd = torch.tensor([hashlib.sha256(one.group.encode()).digest()[0] % 2 == 1 for one in examples])
    halves[0].update(rows[~odd])
    halves[1].update(rows[odd])


def stability(halves: tuple[Mean, Mean], layers: Sequence[int]) -> dict[str, float]:
    """The cosine between the (layers, width) means of two halves of the data, by layer; empty if one half is."""
    if not (halves[0].weight and halves[1].weight):
        return {}
    cosines = torch.cosine_similarity(halves[0].mean, halves[1].mean, dim=-1)
    return {str(layer): round(float(cosine), 4) for layer, cosine in zip(layers, cosines, strict=True)}


METHOD = Method(
    name=NAME,
    title="CAA, contrastive activation addition",
    paper="Panickssery et al., ACL 2024, arXiv 2312.06681",
    needs="presence",
    learn=learn,
    strengths=(0.5, 1.0, 2.0),
    notes="Yes and no take the place of the letters A and B; captions work too. As many questions should be answered "
    "by yes as by no, else the vector is a liking for one of them. Vectors are not normed over behaviors.",
)
