"""What color a model remembers an object to have: asked without a picture, before anybody paints one.

Pixels versus priors takes the colors that a model finds least likely as counterfactual targets; where the model and the
table of facts disagree, a pair built on the table would not test that model's memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmsteer.bench.visual_counterfact import color_question
from vlmsteer.lens.beliefs import first_tokens
from vlmsteer.session import Session
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.palette import COLORS

TARGETS = 5


@dataclass(frozen=True)
class ColorPrior:
    """A model's probabilities of the eleven basic colors, most likely first; they need not add up to one.

    `table` is the color in the table of facts, if it has the object, `targets` the five least likely colors.
    """

    object: str
    probabilities: dict[str, float]
    table: str | None
    targets: list[str]

    @property
    def says(self) -> str:
        """How model and table agree, in a sentence."""
        first = next(iter(self.probabilities))
        if self.table is None:
            return f"The table of facts does not know {self.object!r}; the model says {first}."
        if self.table == first:
            return f"The table of facts says {first} too."
        return f"They disagree: the table of facts says {self.table}, the model {first}."


def color_prior(session: Session, name: str) -> ColorPrior:
    """Ask a model, without a picture, what color most of these objects are.

    The probability of a color is that of the tokens that begin its name, after "What color are most ...?".
    """
    known = facts().get(name)
    question = color_question(name, known.plural if known else None, "most")
    begin = first_tokens(session, list(COLORS))
    shares = session.logits([None], [question])[0].float().softmax(-1)
    found = {color: float(shares[ids].sum()) for color, ids in begin.items()}
    ranked = dict(sorted(found.items(), key=lambda entry: -entry[1]))
    usual = known.color if known else None
    targets = [color for color in reversed(ranked) if color != usual][:TARGETS]
    return ColorPrior(name, ranked, usual, targets)
