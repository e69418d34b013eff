"""MATS for contrastive encoders, which cannot be asked: the picture is nearer to one of two statements.

As in the authors' audit (thubZ09/mats-spatial-reasoning@d977dd9, src/mats/auditor.py) a statement is held against its
inversion, so that both answers of a pair follow from one comparison and SCS is 1 by construction; what says something
is the accuracy of the strict scorer, which is the SCS they print for CLIP. Held against its own denial ("is not left
of") each statement is judged by itself, and SCS can fall.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.inversion import deny
from vlmsteer.errors import InputError, did_you_mean
from vlmsteer_counterfacts.clip import TINY, Scorer, load_scorer

AGAINST = ("inversion", "denial")


def answers(items: Sequence[Item], model: Scorer | str = TINY, against: str = "inversion") -> list[Answer]:
    """TRUE where the picture is nearer to the statement, or as near, FALSE where it is nearer to the other one.

    Args:
        items: of `mats.load`.
        model: a contrastive model, or its name for `vlmsteer_counterfacts.clip.load_scorer`.
        against: what statements of a pair are held against: their "inversion" or their "denial". Absurd ones, which
            have no counterpart of their own, are always held against their denial.

    Returns:
        One answer an item, which every scorer of MATS reads.

    Raises:
        InputError: if the items are not statements of MATS, `against` is unknown, an image cannot be read, or a
            statement is too long for the model.
    """
    if against not in AGAINST:
        raise InputError(f"Statements are not held against {against!r}{did_you_mean(against, AGAINST)}.")
    wrong = next((item for item in items if item.image is None or "statement" not in item.gold), None)
    if wrong is not None:
        raise InputError(f"The item {wrong.id!r} is no statement about an image; load the items with mats.load.")
    scorer = load_scorer(model) if isinstance(model, str) else model
    pairs = [(item.gold["statement"], _other(item, against)) for item in items]
    images = {image: n for n, image in enumerate(dict.fromkeys(str(item.image) for item in items))}
    texts = {text: n for n, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    nearness = scorer(list(images), list(texts))
    found = []
    for item, (statement, other) in zip(items, pairs, strict=True):
        row = nearness[images[str(item.image)]]
        found.append(Answer("TRUE" if row[texts[statement]] >= row[texts[other]] else "FALSE"))
    return found


def _other(item: Item, against: str) -> str:
    return (
        item.gold["inverse"]
        if against == "inversion" and item.gold["part"] != "absurd"
        else deny(item.gold["statement"])
    )
