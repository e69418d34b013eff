"""What a model itself makes up, as examples to learn from: its greedy captions where they are wrong, whole or cut.

What a model really makes up differs from what someone writes in for it. But a right and a wrong caption also differ in
length and in the objects that they name. Cut captions do not: both are the model's own words about the same image, one
up to where it goes on with something that is not there, the other up to where it goes on truthfully or stops. So what
is read at their last token is what the model is about to do.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vlmsteer.bench.hallucination import BATCH, CAPTION_TOKENS, finder, placer
from vlmsteer.examples import Example
from vlmsteer.session import Session


def own_captions(
    session: Session,
    captions: Sequence[Example],
    max_new_tokens: int = CAPTION_TOKENS,
    vocabulary: Mapping[str, str] | None = None,
) -> list[Example]:
    """The examples that the model gets wrong, each with the model's own greedy caption as the wrong one.

    Wrong is a caption that names an object which the right one does not.

    Args:
        vocabulary: see `hallucination.score`.
    """
    find = finder(vocabulary)
    images, asked = [one.image for one in captions], [one.question for one in captions]
    told = session.ask_many(images, asked, None, max_new_tokens, BATCH)
    return [
        replace(one, wrong=caption)
        for one, caption in zip(captions, told, strict=True)
        if set(find(caption)) - set(find(one.right))
    ]


def cut_captions(
    examples: Sequence[Example], vocabulary: Mapping[str, str] | None = None, seed: int = 0
) -> list[Example]:
    """Each wrong caption twice, cut after the name of an object: `wrong` before an absent one is named, `right` not.

    What follows the right cut is a present object or none. Where there are several places of a kind, chance takes one.

    Args:
        examples: as `own_captions` gives them; those without a place of each kind are left out.
        vocabulary: see `hallucination.score`.
    """
    find = placer(vocabulary)
    made = []
    for one in examples:
        shown = {name for _, name in find(one.right)}
        told, named = " ".join(one.wrong.split()), find(one.wrong)
        ends = [end for end, _ in named]
        true = [*(name in shown for _, name in named[1:]), True][: len(ends)]
        places = [[end for end, follows in zip(ends, true, strict=True) if follows == kind] for kind in (True, False)]
        if all(places):
            rng = random.Random(f"{seed}/{one.group}")
            right, wrong = (told[: rng.choice(ends)] for ends in places)
            made.append(replace(one, right=right, wrong=wrong))
    return made
