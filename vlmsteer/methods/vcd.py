"""VCD, visual contrastive decoding (Leng et al., CVPR 2024, arXiv 2311.16922).

What the model would say of the same image drowned in noise comes from memory; a share of it is taken away, among the
tokens that the image itself makes plausible. Nothing is learned. The paper samples; any decoding can be used.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmsteer.decoding import contrast
from vlmsteer.examples import Example
from vlmsteer.methods.method import Method
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.session import Session

NAME, VERSION = "vcd", 1


def rule(amount: float = 1.0, plausible: float = 0.1, step: int = 500, seed: int = 0, against: str = "noise") -> Rule:
    """(1 + amount) l - amount l', for tokens with at least the share `plausible` of the likeliest one's probability."""
    made = Rule("contrast", {"against": against, "amount": amount, "plausible": plausible, "step": step, "seed": seed})
    contrast.check(made)
    return made


def learn(
    session: Session,
    examples: Sequence[Example] = (),
    *,
    amount: float = 1.0,
    plausible: float = 0.1,
    step: int = 500,
    seed: int = 0,
    against: str = "noise",
) -> Recipe:
    """The rule, with the paper's numbers.

    Args:
        examples: not used.
        amount: the paper's alpha.
        plausible: the paper's beta.
        step: of 1000 diffusion steps.
        against: "noise", or "blank", an image of the mean color.
    """
    made = rule(amount, plausible, step, seed, against)
    about = {"method": NAME, "version": VERSION, "examples": 0, "options": dict(made.settings)}
    return Recipe((), {}, about, (made,))


METHOD = Method(
    name=NAME,
    title="VCD, visual contrastive decoding",
    paper="Leng et al., CVPR 2024, arXiv 2311.16922",
    needs="nothing",
    learn=learn,
    strengths=(0.25, 0.5, 1.0),
    notes="Greedy by default, where the paper samples. Another recipe's edits act with the clean image only.",
)
