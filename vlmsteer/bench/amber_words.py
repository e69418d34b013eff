"""What the words of a description say about an image whose objects AMBER has annotated.

A noun of the benchmark's vocabulary is right if it is an object of the image, associated with one, or, for the
published program, similar to one by spaCy's word vectors; else it is made up, and counted again if it is an object that
people and models would expect there (cognition). `published_nouns` and `published_similarity` are the program's own
means, where someone has installed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from vlmsteer.bench.amber_nouns import noun_tokens, singulars
from vlmsteer.errors import InputError

Nouns = Callable[[str], list[str]]
Similarity = Callable[[str, str], float]

COUNTS = ("images", "clean", "mentions", "invented", "truths", "covered", "targets", "hit")
SIMILAR = 0.8


def judge(found: Sequence[str], gold: Mapping[str, Any], similarity: Similarity | None = None) -> dict[str, float]:
    """What the published program counts of a description's nouns.

    An object that `relation.json` does not list, where the program dies, has no associated words, as in lmms-eval.

    Args:
        found: lemmas of its nouns, all of them.
        gold: of a description's item.
        similarity: of two words; None if only equal words are alike.
    """
    truths, targets = (_associated(gold[name], gold["association"]) + _own(gold[name]) for name in ("truth", "hallu"))
    vocabulary, safe = set(gold["vocabulary"]), set(gold["safe"])
    mentions = [noun for noun in found if noun in vocabulary]
    covered: set[int] = set()
    hit: set[int] = set()
    invented = 0
    for noun in mentions:
        if noun in safe:
            continue
        place = _first(truths, lambda word, noun=noun: word == noun)
        if place is not None:
            covered.add(place)
            continue
        alike = [_first(targets, lambda word, noun=noun: word == noun)]
        if similarity is not None:
            alike.append(_first(targets, lambda word, noun=noun: similarity(noun, word) > SIMILAR))
            place = _first(truths, lambda word, noun=noun: similarity(noun, word) > SIMILAR)
        hit.update(one for one in alike if one is not None)
        covered.update(() if place is None else (place,))
        invented += place is None
    return _counted(len(mentions), invented, len(gold["truth"]), len(covered), len(gold["hallu"]), len(hit))


def judge_strictly(text: str, gold: Mapping[str, Any]) -> dict[str, float]:
    """What we count of a description: case is ignored, plurals that WordNet's lemmas lose are kept ("men", "vases").

    An object counts once however often it is listed, and is covered by its own name before another's associated word;
    safe words are neither right nor wrong.
    """
    vocabulary = {word.lower() for word in gold["vocabulary"]}
    association = {word.lower(): [one.lower() for one in others] for word, others in gold["association"].items()}
    own = {name: list(dict.fromkeys(word.lower() for word in gold[name])) for name in ("truth", "hallu")}
    named = {name: dict(_associated(words, association)[::-1] + _own(words)) for name, words in own.items()}
    safe = {word.lower() for word in gold["safe"]}
    covered: set[int] = set()
    hit: set[int] = set()
    mentions = invented = 0
    for token in noun_tokens(text.lower()):
        noun = next((one for one in singulars(token) if one in vocabulary), None)
        if noun is None or (noun in safe and noun not in named["truth"]):
            continue
        mentions += 1
        if noun in named["truth"]:
            covered.add(named["truth"][noun])
        else:
            invented += 1
            hit.update({named["hallu"][noun]} if noun in named["hallu"] else ())
    return _counted(mentions, invented, len(own["truth"]), len(covered), len(own["hallu"]), len(hit))


@cache
def published_nouns() -> Nouns:
    """The program's own nouns: NLTK's tokenizer, tagger and WordNet.

    Raises:
        InputError: if NLTK or one of its data packages is missing.
    """
    try:
        import nltk  # pyright: ignore[reportMissingImports]

        lemmatizer = nltk.stem.WordNetLemmatizer()

        def found(text: str) -> list[str]:
            tagged = nltk.pos_tag(nltk.word_tokenize(text))
            return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]

        found("A dog.")
    except (ImportError, LookupError) as error:
        raise InputError(
            "AMBER's own program needs NLTK and its data (pip install nltk; python -m nltk.downloader punkt punkt_tab "
            "averaged_perceptron_tagger averaged_perceptron_tagger_eng wordnet), which are not here; the "
            "scorer 'nosim' does without."
        ) from error
    return found


@cache
def published_similarity(*models: str) -> Similarity:
    """The similarity of two words by the first of some spaCy models that is installed.

    Raises:
        InputError: if spaCy or all of the models are missing.
    """
    try:
        import spacy  # pyright: ignore[reportMissingImports]

        model = next((name for name in models if spacy.util.is_package(name)), None)
    except ImportError:
        model = None
    if model is None:
        raise InputError(
            f"AMBER's own program compares words by spaCy's {' or '.join(models)}, which is not installed (pip install "
            f"spacy; python -m spacy download {models[0]}); the scorer 'nosim' does without."
        )
    document = cache(spacy.load(model))
    return cache(lambda one, other: float(document(one).similarity(document(other))))


def _counted(mentions: int, invented: int, truths: int, covered: int, targets: int, hit: int) -> dict[str, float]:
    values = (1, invented == 0, mentions, invented, truths, covered, targets, hit)
    return dict(zip(COUNTS, map(float, values), strict=True))


def _associated(words: Sequence[str], association: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    return [(one, place) for place, word in enumerate(words) for one in association.get(word, ())]


def _own(words: Sequence[str]) -> list[tuple[str, int]]:
    return [(word, place) for place, word in enumerate(words)]


def _first(pairs: Sequence[tuple[str, int]], fits: Callable[[str], bool]) -> int | None:
    return next((place for word, place in pairs if fits(word)), None)
