"""Which words of an English caption are verbs, adjectives or adverbs: all that WordNet's base forms depend on.

The WordNet variants of CHAIR tag with NLTK's averaged perceptron, whose trained weights are not here. These rules stand
in for it: closed classes by list, other words by what WordNet knows them as and by their neighbors. Base forms depend
on the tag only for words in -ing, -ed, -s, -er, -est and irregular verbs, so that is where the rules look; elsewhere,
and wherever noun and verb have one base form, they cannot differ from the original.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmsteer.bench.wordnet import known, lemma


def _words(text: str) -> list[str]:
    return text.split()


AUXILIARIES = frozenset(
    _words("is are was were be been being am 's 're 'm has have had having 've does do did doing done gets get got")
)
BE = frozenset(_words("is are was were be been being am 's 're 'm isn't aren't not also"))
DETERMINERS = frozenset(
    _words(
        "a an the this that these those his her its their my your our some any no every each another both few "
        "several many more most all other one two three four five six seven eight nine ten various multiple "
        "numerous 's"
    )
)
PREPOSITIONS = frozenset(
    _words(
        "of in on at by with near from for into onto over under behind beside between along around across through "
        "toward towards against among inside outside above below beneath to as about like next off up down out "
        "upon within without after before while when during until since than because if where"
    )
)
GERUND_AFTER = frozenset(_words("while when by without after before from for"))  # "while skiing"
FUNCTION = (
    DETERMINERS
    | PREPOSITIONS
    | AUXILIARIES
    | frozenset(
        _words(
            "and or but nor it he she they we you i him them us me there here who which what whose that then so very "
            "too not n't also just only together away back will would can could may might should must , . ; : ! ? ( ) "
            "'' `` -- - ..."
        )
    )
)
ADVERBS = frozenset(_words("not n't very too also just only together away here there then so well as"))
# In -ing, and things all the same.
THINGS = frozenset(
    _words(
        "building morning evening ceiling clothing painting railing wedding lighting setting something anything "
        "everything nothing during king ring spring string wing thing sibling duckling gosling earring offspring"
    )
)
BREAKS = frozenset(_words(". ; : ! ? , ( ) `` '' --"))


def lemmas(tokens: Sequence[str]) -> list[str]:
    """The base forms of a caption's lower-case tokens, each by its place in the caption.

    Example:
        >>> lemmas("the children are sitting near parked cars".split())
        ['the', 'child', 'be', 'sit', 'near', 'parked', 'car']
    """
    return [lemma(token, pos) for token, pos in zip(tokens, tags(tokens), strict=True)]


def tags(tokens: Sequence[str]) -> list[str]:
    """ "v" verb, "a" adjective, "r" adverb, "n" for nouns and everything else, as WordNetLemmatizer is asked."""
    found: list[str] = []
    for place, word in enumerate(tokens):
        before = tokens[place - 1] if place else "."
        after = tokens[place + 1] if place + 1 < len(tokens) else "."
        second = tokens[place - 2] if place > 1 else "."
        found.append(_tag(word, before, after, second, found[-1] if found else "n"))
    return found


def _tag(word: str, before: str, after: str, second: str, last: str) -> str:
    if word in AUXILIARIES:
        return "v"
    if word in ("best", "better"):
        return "a" if _thing(after) or before in DETERMINERS else "r"
    if word in ADVERBS:
        return "n" if word == "as" and (before == "well" or after not in ("well", "if")) else "r"
    if word in FUNCTION or not word[:1].isalpha():
        return "n"
    base = lemma(word, "v")
    inflected = base != word and known(base, "v")
    modifies = before in DETERMINERS or (known(before, "a") and (second in DETERMINERS or last == "a"))
    if word.endswith("ing") and inflected:
        return _gerund(word, before, after, last, modifies)
    if word.endswith("ed") and inflected:
        return _participle(before, after, last, modifies)
    if inflected and word.endswith("s"):
        verb = not known(lemma(word, "n"), "n") and not modifies
        return "v" if verb else "n"
    if inflected:
        return _irregular(word, before, after, modifies)
    if word.endswith(("er", "est")) and lemma(word, "a") != word:
        thing = known(word, "n") and not _thing(after) and (modifies or not known(word, "a"))
        thing = thing or before == "hair"  # "a hair drier hangs"
        return "n" if thing else "a"
    return "n"


def _gerund(word: str, before: str, after: str, last: str, modifies: bool) -> str:
    if before in BE:
        return "v"
    if modifies or after == "by" or word in THINGS:  # newswire, which the original learned from, has "spending by"
        return "n"
    thing = known(word, "n") and _thing(after)
    if before in PREPOSITIONS:
        return "n" if thing and before not in GERUND_AFTER else "v"
    if before in ("and", "or"):
        return "n" if thing and last != "v" else "v"
    return "v"


def _participle(before: str, after: str, last: str, modifies: bool) -> str:
    if before in BE or before in AUXILIARIES:
        return "v"
    attributive = _thing(after) and (modifies or before in PREPOSITIONS or before in BREAKS or before in ("and", "or"))
    return "a" if attributive or (last == "v" and _thing(after)) else "v"


def _irregular(word: str, before: str, after: str, modifies: bool) -> str:
    if word == "left":  # "on the left", "left side"
        return "a" if modifies or _thing(after) or before in PREPOSITIONS else "v"
    if known(word, "n") or known(word, "a"):
        return "n" if modifies or before in PREPOSITIONS or before in ("and", "or") or before in BREAKS else "v"
    return "v"


def _thing(word: str) -> bool:
    return word not in FUNCTION and word[:1].isalpha() and not word.endswith("ly") and known(lemma(word, "n"), "n")
