"""What is measured of a run whose states were patched, as one number of its next-token distribution.

A word stands for the first tokens of all its spellings together (`beliefs.first_tokens`). Zhang and Nanda (2024, arXiv
2309.16042) recommend the logit difference: probabilities hide what works against the answer, and saturate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.lens.beliefs import first_tokens
from vlmsteer.session import Session

METRICS = {
    "logit_difference": "the clean answer's logit less the corrupted answer's",
    "probability": "the clean answer's probability",
    "log_probability": "the logarithm of the clean answer's probability, in nats",
    "kl": "how far the distribution is from the clean run's, KL(clean | patched) in nats",
}


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric with what it needs; call it on logits.

    Attributes:
        name: from `METRICS`.
        clean, corrupted: token ids of the two answers.
        reference: (vocabulary,) logits of the clean run.
    """

    name: str
    clean: Sequence[int]
    corrupted: Sequence[int]
    reference: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """(rows,) of logits (rows, vocabulary), with their gradients."""
        logits = logits.float()
        if self.name == "logit_difference":
            right, wrong = (logits[:, list(ids)].logsumexp(1) for ids in (self.clean, self.corrupted))
            return right - wrong
        known = logits.log_softmax(-1)
        if self.name == "kl":
            reference = self.reference.float().log_softmax(-1).to(known.device)
            return (reference.exp() * (reference - known)).sum(-1)
        log_probability = known[:, list(self.clean)].logsumexp(1)
        return log_probability.exp() if self.name == "probability" else log_probability


def metric(session: Session, name: str, clean_answer: str, corrupted_answer: str, reference: Tensor) -> Metric:
    """The metric of this name for two answers.

    Raises:
        InputError: if there is no such metric, an answer is empty, or both begin with the same token.
    """
    if name not in METRICS:
        raise InputError(f"There is no metric {name!r}{did_you_mean(name, METRICS)}")
    if clean_answer.strip().lower() == corrupted_answer.strip().lower():
        raise InputError(f"The clean and the corrupted answer are both {clean_answer!r}; give two that differ.")
    ids = first_tokens(session, [clean_answer, corrupted_answer])
    return Metric(name, ids[clean_answer], ids[corrupted_answer], reference.detach())
