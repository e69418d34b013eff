"""The nouns of a description, as AMBER's program finds them with NLTK, without NLTK.

The program tags tokens with NLTK's averaged perceptron and takes the WordNet lemma of whatever is tagged NN. Tokens and
lemmas are those here; the tagger's weights come with no package of ours, so rules stand in for it: closed classes, what
WordNet knows a word as, endings, and the neighbors of words that are nouns or verbs.
"""

from __future__ import annotations

import re

from vlmsteer.bench.treebank import tokens
from vlmsteer.bench.wordnet import known, lemma


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CLASSES = {
    "determiner": "a an the this these those each every another any both all some no several many few more most such "
    "his her its their my your our whose one two three four five six seven eight nine ten eleven twelve",
    "pronoun": "i he she it they we you who which",
    "object": "him them me us himself herself itself themselves that what there",
    "modal": "will would could should may might must shall cannot",
    "be": "is are was were be been being am 's 're",
    "do": "do does did let lets help helps n't not",
    "preposition": "in on at of by with from into onto over under above below behind beside besides between among "
    "amongst amid near around across through along against toward towards inside outside within without about for "
    "during beneath underneath beyond upon off up down out as like than per via if while because although though "
    "when where since until whether so how why to",
    "conjunction": "and or but nor plus , ; :",
    "adverb": "also very too then here just still even only together nearby away apart almost quite rather perhaps "
    "maybe not never always often sometimes well again now ahead everywhere somewhere alone else ago yet once",
    "adjective": "next large small big little tiny huge tall short long wide narrow high low old young new modern "
    "red blue green yellow white black brown gray grey pink purple beige silver golden dark bright pale colorful "
    "hot cold warm cool wet dry clear cloudy sunny blurry empty full open closed wooden metal plastic brick grassy "
    "sandy rocky snowy leafy thick thin deep soft hard round square rectangular other same different similar main "
    "good great nice beautiful happy sad calm quiet busy clean dirty fresh ripe raw sweet heavy visible present "
    "adult male female human real fake close far left right upper lower second third last own lush dense overall "
    "natural traditional rural urban outdoor indoor wild loose single double various certain lone vibrant serene "
    "cozy picturesque scenic simple elegant vintage gentle majestic lovely friendly distant possible likely able "
    "ready available sure bare steep flat smooth rough sharp shiny rusty dusty striped modest casual formal",
    "verb": "have has had having wear wears holds stand stands sit sits lie lies walks runs rides "
    "seem seems appear appears show shows feature features depict depicts capture captures contain contains "
    "include includes suggest suggests indicate indicates add adds create creates make makes give gives take takes "
    "get gets go goes come comes looks see seen saw held wore stood sat lay laid worn made given taken gone ran "
    "flies eat eats enjoy enjoys stretches covers surround surrounds hangs hung fill fills "
    "rests lean leans carry carries wait waits swim swims jumps plays talks smiles "
    "consist consists dominate dominates overlook overlooks contribute contributes provide provides serve serves "
    "lead leads extend extends reflect reflects used",
}
_CLASS = {word: name for name, words in _CLASSES.items() for word in words.split()}
# nouns that are verbs too: what they are is told by their neighbors
_NOUN_OR_VERB = _words(
    "bar bear board box bow brush cage cash cook cover cup cushion drain drink duck fence file fish flag floor flower "
    "fork goal grill ground hang hold hose house ice juice kite leave light line lock lounge man mask milk mirror "
    "mouse net note pack pad paddle pan paper park peach phone pig pipe place plane plant plate plug pole pot rack "
    "rail range ring rock rope rug saddle sand sauce scoop screen shell ship shore shovel sign signal sink skate ski "
    "sled snack snow snowboard soap sound sponge spray stage star stone string support surface surfboard switch table "
    "tank tap tape telephone tie tire tissue towel toy track train tree wall warp watch water wire worm walk run ride "
    "jump play look rest stretch cover smile fly talk swing step sail shop cross face point turn"
)
_RATHER_VERB = _words("leave lounge watch skate ski drink cook sink hang hold walk run ride jump look")
_COLORS = _words("orange light cream peach gold rose")  # an adjective before another word of that kind
_ING_NOUNS = _words(
    "building ceiling painting drawing railing awning clothing string ring king wing thing something anything "
    "everything nothing spring swing evening morning setting lighting seating topping frosting icing wedding meeting "
    "housing clearing crossing carving covering coating flooring landing marking opening sibling duckling"
)
_PLAIN = _words(
    "hundred sunbed flowerbed waterbed bobsled watershed moped family butterfly dragonfly firefly belly jelly lily "
    "assembly ally vegetable detective locomotive archive motive handful couscous"
)
_ADJECTIVE_ENDING = re.compile(
    r"[\w-]{3,}(-like|-style|-shaped|ous|ful|less|ical|ible|ive|[lrt]able|(red|blu|whit|yellow|green|brown|gray)ish)$"
)
_KINDS = {"v": "verb", "a": "adjective", "r": "adverb"}
_AFTER_NOUNS = frozenset(["next", "close", "visible", "near", "far", "left", "present", "available", "full"])
_SINGULAR_S = re.compile(r"(ss|us|is|\btennis|\bsports)$")
_PLURALS = _words("people men women children geese mice sheep fish deer")
_NO_VERB_AFTER_TO = _words(
    "next close adjacent due attached connected similar belonging leading according opposite parallel near back "
    "tied leads closer nearest"
)


def nouns(text: str) -> list[str]:
    """The lemmas of a text's nouns in order, every repeat; a word with a capital stays as it is ("Dogs").

    Exact where the tagger has no choice; an approximation for words that are nouns or verbs ("watch", "lines"), or
    nouns or colors ("orange").
    """
    return [lemma(word) for word in noun_tokens(text)]


def noun_tokens(text: str) -> list[str]:
    """The tokens of a text that are nouns, as they are written."""
    written = tokens(text)
    words = [token.lower() for token in written]
    kinds: list[str] = []
    for place, token in enumerate(written):
        after = words[place + 1] if place + 1 < len(words) else "."
        kinds.append(_kind(words[place], token, words[:place], kinds, after))
    return [token for token, kind in zip(written, kinds, strict=True) if kind == "noun"]


def singulars(word: str) -> list[str]:
    """What a lower-case noun may be the plural of, itself first, with the plurals that WordNet's lemmas lose."""
    found = [word]
    if word.endswith("men"):
        found.append(word[:-3] + "man")
    if word.endswith("s"):
        found += [word[:-1], word[:-2]] if word.endswith("es") else [word[:-1]]
    return [*found, lemma(word)]


def _kind(word: str, token: str, before: list[str], kinds: list[str], after: str) -> str:
    if not re.search("[a-z]", word):
        return "determiner" if re.search(r"\d", word) else "mark"
    previous, last = (kinds[-1], before[-1]) if kinds else ("start", "")
    if token[0].isupper() and last and last not in ".?!" and word not in _CLASS:
        return "noun"
    if word == "can":
        compound = previous == "noun" and not _plural(last) and after not in ("be", "have")
        compound = compound and _fixed(after) not in ("verb", "adverb", "do")
        return "noun" if compound or previous in ("determiner", "adjective") else "modal"
    if word in _COLORS:
        described = _fixed(after) in ("adjective", "") and after not in _AFTER_NOUNS
        return "adjective" if described or previous == "be" else "noun"
    if word in _ING_NOUNS:
        return "verb" if _fixed(after) == "determiner" and previous in ("be", "noun") else "noun"
    alone = _fixed(word)
    if alone or not known(lemma(word, "v"), "v"):
        return alone or "noun"
    return "verb" if _is_verb(word, before, previous, _fixed(after)) else "noun"


def _fixed(word: str) -> str:
    """What a word is whatever stands beside it; "" where it is a noun or nothing is known."""
    if word in _CLASS:
        return _CLASS[word]
    if not word[:1].isalpha():
        return "determiner" if word[:1].isdigit() else "mark"
    if word in _PLAIN or word in _ING_NOUNS or word in _NOUN_OR_VERB:
        return ""
    if len(word) > 4 and (word.endswith("ing") or (word.endswith("ed") and not word.endswith("eed"))):
        return "verb"
    if len(word) > 4 and word.endswith("ly"):
        return "adverb"
    if _ADJECTIVE_ENDING.search(word):
        return "adjective"
    if known(lemma(word), "n"):
        return ""
    return next((kind for pos, kind in _KINDS.items() if known(lemma(word, pos), pos)), "")


def _is_verb(word: str, before: list[str], previous: str, after: str) -> bool:
    """Whether a word that may be either is a verb here."""
    last = before[-1] if before else ""
    bare = word == lemma(word, "v")
    if last == "to":
        return bare and not (len(before) > 1 and before[-2] in _NO_VERB_AFTER_TO)
    if previous in ("modal", "do", "pronoun"):
        return True
    if last == "that":
        return not bare
    if previous == "noun" and bare:
        objects = after in ("determiner", "preposition", "adverb", "mark", "object")
        return word in _NOUN_OR_VERB and _plural(last) and objects
    if previous == "noun":
        rather = lemma(word, "v") in _RATHER_VERB and after in ("preposition", "adverb", "")
        return not _plural(last) and (after in ("determiner", "object") or rather)
    return word == "leave" and previous not in ("determiner", "adjective")


def _plural(word: str) -> bool:
    return word in _PLURALS or (word.endswith("s") and not _SINGULAR_S.search(word))
