"""ActAdd, activation addition (Turner et al., 2023, arXiv 2308.10248).

The difference between what two short texts leave in the residual stream, token by token, is added where the answer's
prompt is read, to as many tokens from its front. The texts are read bare, without an image or a chat format, so the
front of a chat prompt gets it whatever stands there: in LLaVA its first words and then image tokens, in InstructBLIP
image tokens. `where="question"` adds it to the first tokens of the question instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.examples import Example
from vlmsteer.hooks import Run
from vlmsteer.methods.method import Method, checked_layers
from vlmsteer.prompts import Encoded
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.session import Session
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

NAME, VERSION = "actadd", 1
DEPTH = 6 / 48  # the paper's layer 6 of GPT-2-XL


def learn(
    session: Session,
    examples: Sequence[Example] = (),
    *,
    plus: str = "truthful",
    minus: str = "imagined",
    layers: Sequence[int] | None = None,
    coefficient: float = 5.0,
    where: str = "front",
) -> Recipe:
    """The states of `plus` minus those of `minus`; no examples are used.

    Args:
        plus, minus: short texts; the one with fewer tokens is filled up with spaces.
        layers: where to read and write (`block_in`), by default one, 6/48 of the way up.
        coefficient: the paper's c.
        where: "front", the prompt's first tokens, or "question", the question's first tokens, in models that spend as
            many tokens on every image.

    Raises:
        InputError: if a text is empty, or both are the same.
    """
    if where not in ("front", "question"):
        raise RecipeError(f"ActAdd adds at the 'front' or at the 'question', not at {where!r}.")
    tower = session.family.reads_prompt
    chosen = checked_layers(session, layers) if layers else [int(DEPTH * session.layers(tower))]
    states = text_states(session, plus, minus, [Site(tower, layer, "block_in") for layer in chosen])
    difference = {layer: states[0, i] - states[1, i] for i, layer in enumerate(chosen)}
    if not any(bool(vector.any()) for vector in difference.values()):
        raise InputError(f"{plus!r} and {minus!r} are the same text to this model; give two that differ.")
    start = _question_start(session) if where == "question" else 0
    about = {
        "method": NAME, "version": VERSION, "examples": 0,
        "options": {"plus": plus, "minus": minus, "layers": chosen, "coefficient": coefficient, "where": where},
        "first_token": start, "tokens": states.shape[2],
    }  # fmt: skip
    vectors = Vectors(tower, "block_in", difference, session.fingerprint, about)
    places = tuple(range(start, start + states.shape[2]))
    return Recipe((Edit(vectors, "add", coefficient, places, "prefill"),), session.fingerprint, about)


def text_states(session: Session, plus: str, minus: str, sites: Sequence[Site]) -> Tensor:
    """(2, sites, tokens, width) states of two bare texts, made equally long by spaces at the end of the shorter."""
    ids = [_ids(session, text) for text in (plus, minus)]
    space = session.tokenizer(" ", add_special_tokens=False).input_ids or [session.tokenizer.pad_token_id]
    length, rows = max(map(len, ids)), []
    bare = session.encoder.encode([None], [plus]).rows[0]._replace(prefix=0, asked={})
    for tokens in ids:
        filled = torch.tensor(tokens + [space[-1]] * (length - len(tokens)))
        places = session.family.positions(session.model.config, filled, None)
        rows.append(bare._replace(ids=filled, question=torch.ones(length, dtype=torch.bool), positions=places))
    encoder = session.encoder
    encoded = Encoded(rows, [], [-1, -1], session.tokenizer.pad_token_id, encoder.image_token, encoder.start)
    layout = encoded.whole(session.device)
    with session.read(list(sites), positions="all") as states:
        session.forward(layout, Run(prompt=layout.prompt), None)
    return torch.stack([torch.stack(states.rows(site)).float().cpu() for site in sites], 1)


def _ids(session: Session, text: str) -> list[int]:
    """A text's tokens with what the tokenizer puts before a text, without what it puts after one."""
    if not text.strip():
        raise InputError("ActAdd needs two texts that are not empty.")
    ids = session.tokenizer(text).input_ids
    return ids[:-1] if ids[-1] == session.tokenizer.eos_token_id else ids


def _question_start(session: Session) -> int:
    starts = set()
    for size in ((224, 224), (448, 224)):
        row = session.encoder.encode([Image.new("RGB", size)], ["What is this?"]).rows[0]
        starts.add(int(row.question.nonzero()[0]))
    if len(starts) > 1:
        raise InputError("This model spends more tokens on a larger image, so questions begin anywhere; use 'front'.")
    return starts.pop()


METHOD = Method(
    name=NAME,
    title="ActAdd, activation addition",
    paper="Turner et al., 2023, arXiv 2308.10248",
    needs="nothing",
    learn=learn,
    strengths=(0.2, 1.0, 2.0),
    notes="Two texts take the place of examples. The front of a chat prompt is not the question: see where=question.",
)
