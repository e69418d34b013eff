"""VISTA, The Hidden Life of Tokens (Li et al., ICML 2025, arXiv 2502.03628): push towards what the image adds.

For each question the prompt is read with and without its image; what the image adds to the last token's residual stream
is that question's vector. Every MLP output is turned towards it without changing its length, more where it points the
other way. Self-logits augmentation mixes in what the layers before the last would say. Nothing is learned.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmsteer.errors import InputError
from vlmsteer.examples import Example
from vlmsteer.methods.method import Method
from vlmsteer.recipe import Edit, Recipe, Rule
from vlmsteer.session import Session
from vlmsteer.vectors import PerQuestion

VERSION = 1
FIRST, LAST = 25 / 32, 31 / 32  # layers 25 to 30 of 32, as shares of the depth


def learn(
    session: Session,
    examples: Sequence[Example] = (),
    *,
    push: float = 0.1,
    share: float = 0.3,
    layers: Sequence[int] | None = None,
    first: float = FIRST,
    last: float = LAST,
    normed: bool = False,
) -> Recipe:
    """The recipe for a model; it needs no examples.

    Args:
        push: strength of the vectors; the paper has 0.17 for captions, 0.01 for yes/no questions. 0 leaves them out.
        share: of the logits that come from earlier layers, 0.3 in the paper. 0 leaves that out.
        layers: which text layers are pushed, by default all.
        first, last: the earlier layers, as shares of the depth (last not included).
        normed: whether the final norm is applied to their states; the authors' code does not.

    Raises:
        InputError: if nothing is left to do, or the layers' range is empty.
    """
    depth = session.layers()
    read = between(first, last, depth)
    if share and not read:
        raise InputError(f"No layer lies between {first:g} and {last:g} of this model's {depth} layers.")
    if not push and not share:
        raise InputError("VISTA with push 0 and share 0 changes nothing; give one of them.")
    about = {
        "method": METHOD.name, "version": VERSION, "examples": 0,
        "options": {"push": push, "share": share, "layers": layers and list(layers), "read": read, "normed": normed},
    }  # fmt: skip
    chosen = tuple(range(depth)) if layers is None else tuple(layers)
    vectors = PerQuestion("text", "mlp_out", chosen, model=session.fingerprint, about=about)
    edits = (Edit(vectors, "add_opposed_keep_norm", push, "all"),) if push else ()
    rules = (Rule("self_logits", {"layers": read, "share": share, "normed": normed}),) if share else ()
    return Recipe(edits, session.fingerprint, about, rules)


def between(first: float, last: float, depth: int) -> list[int]:
    """The layers from one share of the depth up to another; the last layer only if that is 1. One at least, if any."""
    stop = max(int(last * depth + 1e-9), 1)
    return list(range(min(round(first * depth), stop - 1), stop)) if 0 <= first < last <= 1 else []


METHOD = Method(
    name="vista",
    title="VISTA, visual information steering",
    paper="Li et al., ICML 2025, arXiv 2502.03628",
    needs="nothing",
    learn=learn,
    strengths=(0.5, 1.0, 1.7),
    variants=({"push": 0.0, "first": 0.75, "last": 1.0, "normed": True}, {"share": 0.0}),
    notes="one strength does not fit captions and yes/no questions, as its author says; each costs two more prompts",
)
