"""A drawn scene's questions and truths as the texts of POPE's, CHAIR's, AMBER's and MATS' files.

What is absent and asked about stands beside the shown objects most often (POPE's "adversarial", AMBER's "hallu"): that
is what models make up. Li et al., EMNLP 2023, arXiv 2305.10355; Rohrbach et al., EMNLP 2018, arXiv 1809.02156;
Wang et al., 2023, arXiv 2311.07397; Thube, 2025, arXiv 2509.22674.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vlmsteer.training import questions
from vlmsteer.training.mix import group, missing_companions
from vlmsteer_counterfacts.draw import Scene
from vlmsteer_counterfacts.facts import article, facts
from vlmsteer_counterfacts.palette import COLORS

ASKED = 3  # objects that are there and that are not, a scene: POPE's six questions
WORLD = 2000  # scenes by whose contents "popular" and "co-occurring" are decided
RELATIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
NOUNS = {  # the one word that stands for a name where words are looked up one at a time
    "fire truck": "truck", "school bus": "bus", "stop sign": "sign", "traffic cone": "cone", "top hat": "hat",
    "grapes": "grape", "jeans": "jean",
}  # fmt: skip
# In CHAIR's list besides: "stop sign" is there in one piece, and one published way cuts every final s.
WORDS = {name: (noun, f"{noun}s") for name, noun in NOUNS.items() if name not in ("stop sign", "school bus")}
WORDS |= {"school bus": ("bus", "buses", "bu"), "cactus": ("cactu",)}


@dataclass(frozen=True)
class Shown:
    """One scene with its image file's name and content, and its objects from left to right."""

    file: str
    scene: Scene
    objects: tuple[str, ...]
    picture: bytes


@cache
def _world() -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """All objects, the most frequent first; and for each the others, those most often beside it first."""
    rng = random.Random("files/world")
    often: Counter[str] = Counter()
    beside: dict[str, Counter[str]] = {name: Counter() for name in facts()}
    for _ in range(WORLD):
        names = group(rng)
        often.update(names)
        for name in names:
            beside[name].update(names)

    def ranked(counts: Counter[str]) -> tuple[str, ...]:
        return tuple(sorted(facts(), key=lambda name: (-counts[name], name)))

    return ranked(often), {name: ranked(counts) for name, counts in beside.items()}


def pope(shown: Sequence[Shown], rng: random.Random) -> dict[str, str]:
    """Texts by file name: the three splits, which have their "yes" questions in common."""
    rows: dict[str, list[dict[str, Any]]] = {"random": [], "popular": [], "adversarial": []}
    often, beside = _world()
    for one in shown:
        there = rng.sample(one.objects, ASKED)
        absent = [name for name in facts() if name not in one.objects]
        chosen = {
            "random": rng.sample(absent, ASKED),
            "popular": [name for name in often if name in absent][:ASKED],
            "adversarial": _co_occurring(there, absent, beside),
        }
        for kind, listed in rows.items():
            for pair in zip(there, chosen[kind], strict=True):
                for name, label in zip(pair, ("yes", "no"), strict=True):
                    text = f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the image?"
                    row = {"question_id": len(listed) + 1, "image": one.file, "text": text, "label": label}
                    listed.append(row)
    return {f"coco_pope_{kind}.json": _lines(listed) for kind, listed in rows.items()}


def _co_occurring(there: Sequence[str], absent: Sequence[str], beside: Mapping[str, Sequence[str]]) -> list[str]:
    """For each object the absent one that stands beside it most often, each only once."""
    found: list[str] = []
    for name in there:
        found.append(next(other for other in beside[name] if other in absent and other not in found))
    return found


def chair(shown: Sequence[Shown], rng: random.Random) -> dict[str, str]:
    """Texts by file name: each image's objects, the words that name them, and the list of images."""
    words = [", ".join(dict.fromkeys((name, fact.plural, *WORDS.get(name, ())))) for name, fact in facts().items()]
    return {
        "chair_ground_truth.json": _array({one.file: list(one.objects) for one in shown}),
        "synonyms.txt": "".join(f"{line}\n" for line in words),
        "images.jsonl": _lines([{"image_id": one.file, "image": one.file} for one in shown]),
    }


def amber(shown: Sequence[Shown], rng: random.Random) -> dict[str, str]:
    """Texts by file name: an id is 1 + its place in annotations.json; of an image one description is asked for, a color
    and a number (yes and no), what is missing (always no) and where something stands (yes and no). What AMBER asks with
    "Is the ...?" begins with "Is there ...?", which the bundled models answer with yes or no.
    """
    asked: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
        "generative": [], "discriminative-attribute": [], "discriminative-existence": [], "discriminative-relation": [],
    }  # fmt: skip
    _, beside = _world()
    for one in shown:

        def ask(part: str, kind: str, query: str, file: str = one.file, **truth: Any) -> None:
            asked[part].append((file, query, {"type": kind, **truth}))

        absent = [name for name in facts() if name not in one.objects]
        missing = list(dict.fromkeys(missing_companions(list(one.objects))))[:ASKED]
        others = _co_occurring(one.objects[: ASKED - len(missing)], [n for n in absent if n not in missing], beside)
        ask("generative", "generative", "Describe this image.", truth=list(one.objects), hallu=missing + others)
        name = rng.choice(one.objects)
        colors = facts()[name].color, rng.choice([color for color in COLORS if color != facts()[name].color])
        for color, truth in zip(colors, ("yes", "no"), strict=True):
            query = f"Is there {article(f'{color} {name}')} in this image?"
            ask("discriminative-attribute", "discriminative-attribute-state", query, truth=truth)
        name = rng.choice(one.objects)
        for query, truth in ((f"Is there one {name}", "yes"), (f"Are there two {facts()[name].plural}", "no")):
            kind = "discriminative-attribute-number"
            ask("discriminative-attribute", kind, f"{query} in this image?", truth=truth)
        for name in missing + others:
            query = f"Is there a {name} in this image?"  # as published: "a umbrella"
            ask("discriminative-existence", "discriminative-hallucination", query, truth="no")
        first, second, relation = _related(one.scene, rng)
        for stated, kind, truth in (
            (relation, "discriminative-relation", "yes"),
            (questions.RELATIONS[relation], "relation", "no"),
        ):
            query = f"Is there {article(first)} {stated} the {second} in this image?"
            ask("discriminative-relation", kind, query, truth=truth)
    numbered = [(part, row) for part, rows in asked.items() for row in rows]
    queries = [
        (part, {"id": number, "image": file, "query": query})
        for number, (part, (file, query, _)) in enumerate(numbered, 1)
    ]
    parts = ("all", "discriminative", *asked)
    files = {
        f"query_{part}.json": _array([row for own, row in queries if part == "all" or own.startswith(part)])
        for part in parts
    }
    truths = [{"id": number, **truth} for number, (_, (_, _, truth)) in enumerate(numbered, 1)]
    return files | {
        "annotations.json": _array(truths),
        "relation.json": _array({name: [NOUNS[name]] if name in NOUNS else [] for name in facts()}),
        "safe_words.txt": "image\npicture\nobject",
        "metrics.txt": _start_values(),
    }


def _start_values() -> str:
    """The counters that AMBER's script begins with."""
    counters = ["chair", "safe_cover", "hallu_cover", "non_hallu"]
    for kind in ("", "as_", "an_", "aa_", "asso_", "ha_"):
        counters += [f"{kind}qa_correct", f"{kind}qa_no", f"{kind}qa_ans_no"]
    return "\n".join(f"{name}_num=0.001\n{name}_score=0" for name in counters)


def mats(shown: Sequence[Shown], rng: random.Random) -> dict[str, str]:
    """Texts by file name: a true statement an image, the same turned round, and both in one row for patching."""
    rows: dict[str, list[dict[str, Any]]] = {"vsr": [], "absurd": [], "patching": []}
    for number, one in enumerate(shown):
        first, second, relation = _related(one.scene, rng, tuple(RELATIONS)[number % len(RELATIONS)])
        other = questions.RELATIONS[relation]
        true, false = (
            questions.phrase("The {o} {is} {stated} the {y}.", facts()[first], y=second, stated=stated)
            for stated in (relation, other)
        )
        said = {"original_statement": true, "original_relation": RELATIONS[relation]}
        turned = {"absurd_text": false, "inverted_relation": RELATIONS[other], "has_donor_target_pair": True}
        for split, name, statement, stated, metadata in (
            ("vsr", f"vsr_{Path(one.file).stem}", true, relation, {}),
            ("absurd", f"absurd_{number:04d}", false, other, {"category": "spatial", "is_absurd": True, **said}),
            ("patching", f"patch_{number:04d}", true, relation, turned),
        ):
            row = {"example_id": name, "image": one.file, "statement": statement, "relation": RELATIONS[stated]}
            row |= {"is_true": split != "absurd", "objects": [first, second], "split": split}
            rows[split].append(row | {"metadata": json.dumps(metadata)})
    return {f"{split}.json": _array(listed, 2) for split, listed in rows.items()}


def _related(scene: Scene, rng: random.Random, wanted: str = "") -> tuple[str, str, str]:
    """Two objects that stand clearly apart, and where the first is, seen from the second; as wanted if any two do.

    If none are clearly apart, the two whose centers are farthest apart sideways.
    """
    found = [
        (first.object, second.object, relation)
        for first in scene.items
        for second in scene.items
        if first is not second
        for relation in questions.relations(first, second)
    ]
    items = sorted(scene.items, key=lambda item: item.center[0])
    fitting = [one for one in found if one[2] == wanted]
    return rng.choice(fitting or found or [(items[0].object, items[-1].object, "left of")])


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _array(value: Any, indent: int = 4) -> str:
    return json.dumps(value, indent=indent)
