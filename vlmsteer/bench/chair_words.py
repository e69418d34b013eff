"""Which objects a caption mentions, in the ways of CHAIR's published scorers and in a strict one.

CHAIR (Rohrbach et al., EMNLP 2018, arXiv 1809.02156) looks each word up in a list of words for COCO's 80 objects; what
is found depends on how words are made singular. The original and Maxlinn's copy use pattern's rules, OPERA, PAI and
VISTA WordNet's. `data/chair_objects.tsv` has the facts of the published list (LisaAnne/Hallucination,
data/synonyms.txt, BSD-2-Clause), with the two words that a space in front of them keeps its scorers from finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

from vlmsteer.bench.singular import singularize
from vlmsteer.bench.tagger import lemmas
from vlmsteer.bench.treebank import tokens
from vlmsteer.errors import InputError


def _words(text: str, by: str | None = None) -> list[str]:
    return text.split(by)


TABLE = Path(__file__).parent / "data" / "chair_objects.tsv"
WAYS = ("pattern", "wordnet", "vista", "strict")

_DOUBLES = _words(
    "motor bike,motor cycle,air plane,traffic light,street light,traffic signal,stop light,fire hydrant,stop "
    "sign,parking meter,suit case,sports ball,baseball bat,baseball glove,tennis racket,wine glass,hot "
    "dog,cell phone,mobile phone,teddy bear,hair drier,potted plant,laptop computer,stove top oven,home "
    "plate,train track",
    ",",
)
_ANIMALS = _words("bird cat dog horse sheep cow elephant bear zebra giraffe animal cub")
DOUBLES = (
    {double: double for double in _DOUBLES}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
    | {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
)
IRREGULAR = {
    "man": "men",
    "child": "children",
    "person": "people",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "ox": "oxen",
}


@dataclass(frozen=True)
class Vocabulary:
    """The words that mention an object.

    Attributes:
        rows: for each object its name, then its synonyms.
        doubles: what two words in a row stand for.
        coco: whether its objects are COCO's, to which a rule about toilets and their seats belongs.
    """

    rows: tuple[tuple[str, ...], ...]
    doubles: Mapping[str, str]
    coco: bool = False

    @cached_property
    def nodes(self) -> dict[str, str]:
        """Name of the object by word; of a word that stands in two rows the later one's."""
        return {word: row[0] for row in self.rows for word in row}

    @cached_property
    def forms(self) -> dict[str, str]:
        """For the strict way: the word of the list, or what a double word stands for, by its lower-case forms."""
        clean = {word.strip().lower(): word for word in self.nodes}
        known = clean | {double: clean.get(word, word) for double, word in self.doubles.items() if double not in clean}
        return {plural: word for form, word in known.items() for plural in plurals(form)} | known

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the longest of `forms` at a place (group 1), or else one word or mark."""
        longest = sorted(self.forms, key=len, reverse=True)
        one = "|".join(re.escape(form).replace(r"\ ", "[ -]") for form in longest)
        return re.compile(rf"(?<!\w)({one})(?!\w)|\w+|[^\w\s]")


@dataclass(frozen=True)
class Mentions:
    """What a caption mentions, in order and with repetitions.

    Attributes:
        words, nodes: the words of the list, and the objects they stand for.
        positions: where they stand, counted as the scorer does: in tokens (pattern, wordnet) or in `tokens` here,
            after two words have become one (vista, strict). The references count wrongly after a dropped "seat".
        tokens: the caption's singular tokens, double words as one.
    """

    words: list[str]
    nodes: list[str]
    positions: list[int]
    tokens: list[str]


@cache
def coco() -> Vocabulary:
    """COCO's 80 objects and the words for them."""
    rows: list[tuple[str, ...]] = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, known, spaced = f"{line}\t\t".split("\t")[:3]
            words = [*filter(None, known.split(", ")), *(f" {word}" for word in spaced.split(", ") if word)]
            rows.append((name, *words))
    return Vocabulary(tuple(rows), DOUBLES, coco=True)


@lru_cache(maxsize=16)
def vocabulary_of(rows: tuple[tuple[str, ...], ...]) -> Vocabulary:
    """The vocabulary of these objects, each with its synonyms.

    What two words in a row count as one is fixed for COCO's objects, as in the references, whatever words there are for
    them; for others it is what is listed.
    """
    if {row[0] for row in rows} != {row[0] for row in coco().rows}:
        return Vocabulary(rows, {word: word for row in rows for word in row if word.count(" ") == 1})
    found = Vocabulary(rows, DOUBLES, coco=True)
    return coco() if found.nodes == coco().nodes else found


def read_vocabulary(path: str | Path) -> Vocabulary:
    """A vocabulary from a file as the published one: an object a line, its name, then its synonyms, between ", ".

    Raises:
        InputError: if the file cannot be read, holds no word, or a line has a comma without a space after it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    rows: list[tuple[str, ...]] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = tuple(line.strip().split(", "))
        if any("," in word or not word.strip() for word in words) and line.strip():
            raise InputError(
                f"Line {number} of {str(path)!r} has an empty word or a comma inside one; write an object a line, its "
                f"name first, then its synonyms, with a comma and a space between."
            )
        if line.strip():
            rows.append(words)
    if not rows:
        raise InputError(f"{str(path)!r} holds no words; give one object a line, its name first, then its synonyms.")
    return vocabulary_of(tuple(rows))


def mentions(caption: str, way: str, vocabulary: Vocabulary | None = None) -> Mentions:
    """The objects that a caption mentions; a denied one counts ("no dog").

    Args:
        way: "pattern" (the original, Maxlinn), "wordnet" (OPERA), "vista" (PAI and VISTA: as "wordnet", with other
            positions), or "strict": whole words of the list in any case, singular or plural, of any number of words.
        vocabulary: COCO's if None.
    """
    vocabulary = vocabulary or coco()
    if way == "strict":
        return _strict(caption, vocabulary)
    words, starts = _merged(_singular(caption, way != "pattern"), vocabulary.doubles)
    merged = words
    if vocabulary.coco and "toilet" in words and "seat" in words:
        words = [word for word in words if word != "seat"]
    places = [place for place, word in enumerate(words) if word in vocabulary.nodes]
    found = [words[place] for place in places]
    positions = places if way == "vista" else [starts[place] for place in places]
    return Mentions(found, [vocabulary.nodes[word] for word in found], positions, merged)


def plurals(word: str) -> set[str]:
    """The plural forms that a noun may have, by its last word."""
    head, space, last = word.rpartition(" ")
    for single, plural in IRREGULAR.items():
        if last == single or (single == "man" and last.endswith(single) and last != "human"):
            return {head + space + last[: -len(single)] + plural}
    forms = {last + "s"}
    if last.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(last + "es")
    if re.search(r"[^aeiou]y$", last):
        forms.add(last[:-1] + "ies")
    if last.endswith("f"):
        forms.add(last[:-1] + "ves")
    if last.endswith("fe"):
        forms.add(last[:-2] + "ves")
    return {head + space + form for form in forms}


def _merged(single: Sequence[str], doubles: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Tokens, two that belong together as one, and where each begins."""
    words: list[str] = []
    starts: list[int] = []
    place = 0
    while place < len(single):
        starts.append(place)
        double = " ".join(single[place : place + 2])
        words.append(doubles.get(double, single[place]))
        place += 2 if double in doubles else 1
    return words, starts


@lru_cache(maxsize=1 << 14)
def _singular(caption: str, wordnet: bool) -> Sequence[str]:
    found = tokens(caption.lower())
    return tuple(lemmas(found) if wordnet else map(singularize, found))


def _strict(caption: str, vocabulary: Vocabulary) -> Mentions:
    found = Mentions([], [], [], [])
    for match in vocabulary.pattern.finditer(" ".join(caption.lower().split())):
        word = vocabulary.forms[match[1].replace("-", " ")] if match[1] else match[0]
        if match[1] and word in vocabulary.nodes:
            found.words.append(word.strip())
            found.nodes.append(vocabulary.nodes[word])
            found.positions.append(len(found.tokens))
        found.tokens.append(word.strip())
    return found
