"""PAI's contrast (Liu, Zheng and Chen, "Paying more attention to image", ECCV 2024, arXiv 2407.21771).

Of the paper's two parts only the second: at each step a tenth of what the model would say without any image is taken
away, as in classifier-free guidance. The first, larger attention to image tokens inside the layers, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmsteer.decoding import contrast
from vlmsteer.errors import InputError
from vlmsteer.examples import Example
from vlmsteer.methods.method import Method
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.session import Session

NAME, VERSION = "pai", 1


def rule(gamma: float = 1.1, plausible: float = 0.0) -> Rule:
    """gamma l - (gamma - 1) l'."""
    made = Rule("contrast", {"against": "no_image", "amount": gamma - 1, "plausible": plausible})
    contrast.check(made)
    return made


def learn(session: Session, examples: Sequence[Example] = (), *, gamma: float = 1.1, plausible: float = 0.0) -> Recipe:
    """The rule, with the paper's number.

    Args:
        examples: not used.
        gamma: 1 changes nothing.
        plausible: leave out tokens of less than this share of the likeliest one's probability; the paper does not.

    Raises:
        InputError: if gamma is below 1, which would contrast the other way round.
    """
    if gamma < 1:
        raise InputError(f"PAI's gamma is 1 or more, not {gamma!r}.")
    about = {
        "method": NAME, "version": VERSION, "examples": 0, "options": {"gamma": gamma, "plausible": plausible}
    }  # fmt: skip
    return Recipe((), {}, about, (rule(gamma, plausible),))


METHOD = Method(
    name=NAME,
    title="PAI's contrast with no image",
    paper="Liu, Zheng and Chen, ECCV 2024, arXiv 2407.21771",
    needs="nothing",
    learn=learn,
    strengths=(1.0, 3.0, 10.0),
    notes="Only the part that contrasts logits; the paper also raises attention to image tokens. Strength s means "
    "gamma = 1 + 0.1 s.",
)
