"""AMBER (Wang et al., arXiv 2311.07397): what a description makes up, and yes/no questions about the same images.

A description is judged by its nouns against the annotated objects of its image, a yes/no answer by being exactly "Yes"
or "No". The published program starts its counters at 0.001, rounds in between and takes "No" as the positive class;
`official` does all that, `strict` none of it. The AMBER score, (100 - CHAIR + F1) / 2, needs both kinds of items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsteer.bench.amber_scores import PROGRAM, TYPES, scorer
from vlmsteer.bench.benchmark import Benchmark, Item
from vlmsteer.bench.files import Files, field, read_json, read_rows
from vlmsteer.errors import InputError, did_you_mean

PROMPTS = {  # name -> (description, yes/no question)
    "original": ("{query}", "{query}"),
    "lmms": ("Describe this image", "{query}"),
    "vlmevalkit": ("{query}", "{query}\nPlease answer yes or no."),
}
KINDS = {  # kind of items -> what its file is called, and the kinds it falls into where that file is not there
    "all": ("all", ("generative", "discriminative")),
    "generative": ("generative", ()),
    "discriminative": ("discriminative", ("existence", "attribute", "relation")),
    "existence": ("discriminative-existence", ()),
    "attribute": ("discriminative-attribute", ()),
    "relation": ("discriminative-relation", ()),
}
YES_NO_TOKENS = 10


@dataclass(frozen=True)
class _Words:
    relation: dict[str, list[str]]
    vocabulary: list[str]
    safe: list[str]


def load(files: Files, *, kind: str = "all", prompt: str = "original") -> list[Item]:
    """AMBER's items: descriptions and yes/no questions of one image share its group.

    Args:
        files: the repository's `data` folder, or its files in one folder: `annotations.json`, for descriptions
            `relation.json` and `safe_words.txt`, and the `query_*.json` of the kind, alone or in `query`.
        kind: one of `KINDS`.
        prompt: one of `PROMPTS`.

    Raises:
        InputError: if a name is unknown, a file is missing, or a row does not fit its annotation.
    """
    for name, given, known in (("prompt", prompt, PROMPTS), ("kind of items", kind, KINDS)):
        if given not in known:
            raise InputError(f"AMBER has no {name} {given!r}{did_you_mean(given, known)}.")
    annotations = read_rows(files.find("annotations.json", "data/annotations.json"))
    words = _word_files(files) if kind in ("all", "generative") else _Words({}, [], [])
    items = []
    for path in _query_files(files, kind):
        for number, row in enumerate(read_rows(path), 1):
            where = f"Row {number} of {str(path)!r}"
            found = _annotation(annotations, field(row, "id", where, int), where)
            image, query = field(row, "image", where), field(row, "query", where)
            describe = found["type"] == "generative"
            if kind != "all" and describe != (kind == "generative"):
                raise InputError(f"{where} is of type {found['type']!r} in annotations.json, which is not {kind}.")
            items.append(
                Item(
                    id=str(row["id"]),
                    image=files.image(image, "image", "images"),
                    prompt=PROMPTS[prompt][not describe].format(query=query),
                    group=image,
                    gold=_description_gold(found, words) if describe else _question_gold(found, where),
                    max_new_tokens=None if describe else YES_NO_TOKENS,
                )
            )
    return items


def load_generative(files: Files, *, prompt: str = "original") -> list[Item]:
    """The descriptions only; see `load`."""
    return load(files, kind="generative", prompt=prompt)


def load_discriminative(files: Files, *, kind: str = "discriminative", prompt: str = "original") -> list[Item]:
    """The yes/no questions only, all or those of one kind: "existence", "attribute", "relation"; see `load`."""
    if kind in ("all", "generative"):
        raise InputError(f"amber-d has no items of the kind {kind!r}; take the benchmark 'amber' for these.")
    return load(files, kind=kind, prompt=prompt)


def _query_files(files: Files, kind: str) -> list[Path]:
    stem, parts = KINDS[kind]
    names = [f"{folder}query_{stem}.json" for folder in ("", "query/", "data/query/")]
    if parts and not any(files.has(name) for name in names):
        return [path for part in parts for path in _query_files(files, part)]
    return [files.find(*names)]


def _annotation(annotations: Sequence[Mapping[str, Any]], number: int, where: str) -> Mapping[str, Any]:
    found = annotations[number - 1] if 0 < number <= len(annotations) else {}
    if found.get("id") != number:
        raise InputError(f"{where} has the id {number}, which annotations.json does not have in that place.")
    if found.get("type") != "generative" and found.get("type") not in TYPES:
        raise InputError(f"Row {number} of annotations.json has the type {found.get('type')!r}; possible: {[*TYPES]}.")
    return found


def _description_gold(found: Mapping[str, Any], words: _Words) -> dict[str, Any]:
    where = f"Row {found['id']} of annotations.json"
    named = {name: field(found, name, where, list) for name in ("truth", "hallu")}
    both = [word for one in named.values() for word in one]
    if not all(isinstance(word, str) for word in both):
        raise InputError(f"{where} has something other than words in 'truth' or 'hallu'.")
    association = {word: words.relation[word] for word in both if word in words.relation}
    lists = {"association": association, "vocabulary": words.vocabulary, "safe": words.safe}
    return {"type": "generative", **named, **lists}


def _question_gold(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    truth = found.get("truth")
    if truth not in ("yes", "no"):
        raise InputError(f"{where}: annotations.json says {truth!r} in 'truth', which should be 'yes' or 'no'.")
    return {"type": found["type"], "truth": truth}


def _word_files(files: Files) -> _Words:
    path = files.find("relation.json", "data/relation.json")
    relation = read_json(path)
    lists = isinstance(relation, dict) and all(isinstance(words, list) for words in relation.values())
    if not lists or not all(isinstance(one, str) for words in relation.values() for one in words):
        raise InputError(f"{str(path)!r} should map each word to a list of words.")
    path = files.find("safe_words.txt", "data/safe_words.txt")
    try:
        safe = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    vocabulary = list(dict.fromkeys(one for word, others in relation.items() for one in (word, *others)))
    return _Words(relation, vocabulary, [word for word in safe if word])


NOTES = (
    "The original program counts only exactly 'Yes' and 'No' ('Yes.' is wrong), takes 'No' as the positive class of "
    "precision, recall and F1, and starts counters at 0.001, so that a perfect image prints Hal 0.1. Its similarities "
    "need spaCy's en_core_web_lg and its nouns NLTK's tagger: `official` uses both where they are installed, else "
    "refuses. `nosim`, the default, takes associated words only and finds nouns by rules: what is similar to an "
    "annotated object without being associated with it counts as made up, so its numbers are not published ones."
)


def _benchmark(name: str, title: str, loader: Callable[..., list[Item]], scorers: str, *parts: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        source=f"Wang et al., arXiv 2311.07397; {PROGRAM.split()[0]}",
        load=loader,
        scorers=tuple(scorer(one, parts) for one in scorers.split()),
        max_new_tokens=512 if "generative" in parts else YES_NO_TOKENS,
        yes_no="discriminative" in parts,
        notes=NOTES,
    )


AMBER_G = _benchmark("amber-g", "AMBER, generative", load_generative, "nosim official lmms strict", "generative")
AMBER_D = _benchmark("amber-d", "AMBER, discriminative", load_discriminative, "official lmms strict", "discriminative")
BENCHMARK = _benchmark("amber", "AMBER", load, "nosim official lmms strict", "generative", "discriminative")
