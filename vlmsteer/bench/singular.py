"""English nouns made singular by the rules that the original CHAIR used, mistakes and all ("bus" becomes "bu").

`singularize` gives what `pattern.en.singularize` of CLiPS pattern gives (De Smedt & Daelemans, JMLR 13, 2012;
clips/pattern, pattern/text/en/inflect.py), a package that can no longer be installed. The tables below are its data,
copyright (c) 2010 University of Antwerp (BSD 3-clause) and, for the suffix rules, (c) 2006 Bermi Ferrer Martinez (MIT);
the code is ours.
"""

from __future__ import annotations

import re
from functools import lru_cache


def _words(text: str) -> list[str]:
    return text.split()


# Words after which a hyphen ends the noun: "mothers-in-law".
PREPOSITIONS = frozenset(
    _words(
        "about above across after among around at athwart before behind below beneath beside besides between "
        "betwixt beyond but by during except for from in into near of off on onto out over since till to under "
        "until unto upon with"
    )
)
# A word that ends one of these stays as it is: "scissors", but also "is", the end of "debris".
UNINFLECTED = tuple(
    _words(
        "bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes "
        "djinn eland elk flounder gallows georgia graffiti headquarters herpes high-jinks homework innings "
        "jackanapes mackerel measles mews mumps news pincers pliers proceedings rabies salmon scissors series "
        "shears species swine swiss trout tuna whiting wildebeest advice bread butter cheese electricity "
        "equipment fruit furniture garbage gravel happiness information ketchup knowledge love luggage "
        "mathematics mayonnaise meat mustard progress research rice sand software understanding water"
    )
)
# A plural that ends in one of these stays plural: the original returns the word itself ("cookies").
ENDING_IES = tuple(
    f"{word}s"
    for word in _words(
        "alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie hankie "
        "hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie pixie quickie "
        "reverie rookie softie sortie stoolie sweetie techie toughie valkyrie veggie weenie yuppie zombie"
    )
)
IRREGULAR = {
    "atlantes": "atlas",
    "atlases": "atlas",
    "axes": "axe",
    "beeves": "beef",
    "brethren": "brother",
    "children": "child",
    "corpora": "corpus",
    "corpuses": "corpus",
    "ephemerides": "ephemeris",
    "feet": "foot",
    "ganglia": "ganglion",
    "geese": "goose",
    "genera": "genus",
    "genii": "genie",
    "graffiti": "graffito",
    "helves": "helve",
    "kine": "cow",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "mongooses": "mongoose",
    "monies": "money",
    "moves": "move",
    "mythoi": "mythos",
    "numena": "numen",
    "occipita": "occiput",
    "octopodes": "octopus",
    "opera": "opus",
    "opuses": "opus",
    "our": "my",
    "oxen": "ox",
    "penes": "penis",
    "penises": "penis",
    "people": "person",
    "sexes": "sex",
    "soliloquies": "soliloquy",
    "teeth": "tooth",
    "testes": "testis",
    "trilbys": "trilby",
    "turves": "turf",
    "zoa": "zoon",
}
# The first rule that fits is used; all ignore case but those marked (?-i:).
_RULES = [
    (r"(.)ae$", r"\1a"),
    (r"(.)itis$", r"\1itis"),
    (r"(.)eaux$", r"\1eau"),
    (r"(quiz)zes$", r"\1"),
    (r"(matr)ices$", r"\1ix"),
    (r"(ap|vert|ind)ices$", r"\1ex"),
    (r"^(ox)en", r"\1"),
    (r"(alias|status)es$", r"\1"),
    (r"([octop|vir])i$", r"\1us"),
    (r"(cris|ax|test)es$", r"\1is"),
    (r"(shoe)s$", r"\1"),
    (r"(o)es$", r"\1"),
    (r"(bus)es$", r"\1"),
    (r"([m|l])ice$", r"\1ouse"),
    (r"(x|ch|ss|sh)es$", r"\1"),
    (r"(m)ovies$", r"\1ovie"),
    (r"(.)ombies$", r"\1ombie"),
    (r"(s)eries$", r"\1eries"),
    (r"([^aeiouy]|qu)ies$", r"\1y"),
    (r"(?-i:([aeo]l)ves$)", r"\1f"),
    (r"(?-i:([^d]ea)ves$)", r"\1f"),
    (r"(?-i:arves$)", "arf"),
    (r"(?-i:erves$)", "erve"),
    (r"(?-i:([nlw]i)ves$)", r"\1fe"),
    (r"([lr])ves$", r"\1f"),
    (r"(?-i:([aeo])ves$)", r"\1ve"),
    (r"(sive)s$", r"\1"),
    (r"(tive)s$", r"\1"),
    (r"(hive)s$", r"\1"),
    (r"([^f])ves$", r"\1fe"),
    (r"(^analy)ses$", r"\1sis"),
    (r"((a)naly|(b)a|(d)iagno|(p)arenthe|(p)rogno|(s)ynop|(t)he)ses$", r"\1\2sis"),
    (r"(.)opses$", r"\1opsis"),
    (r"(.)yses$", r"\1ysis"),
    (r"(h|d|r|o|n|b|cl|p)oses$", r"\1ose"),
    (r"(fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose$", r"\1ose"),
    (r"(.)oses$", r"\1osis"),
    (r"([ti])a$", r"\1um"),
    (r"(n)ews$", r"\1ews"),
    (r"s$", ""),
]
RULES = [(re.compile(ending, re.IGNORECASE), other) for ending, other in _RULES]


@lru_cache(maxsize=1 << 16)
def singularize(word: str) -> str:
    """The singular of a word, as `pattern.en.singularize(word)`; any text gives some text.

    Example:
        >>> singularize("buses"), singularize("bus"), singularize("people"), singularize("cookies")
        ('bus', 'bu', 'person', 'cookies')
    """
    first, *rest = word.split("-")
    if rest and rest[0] in PREPOSITIONS:
        return "-".join([singularize(first), *rest])
    bare = word.rstrip("'")
    if bare != word:
        return singularize(bare) + "'s" * (len(word) - len(bare))
    low = word.lower()
    if any(known.endswith(low) for known in UNINFLECTED):
        return word
    if low.endswith(ENDING_IES):
        return low
    for plural, single in IRREGULAR.items():
        if low.endswith(plural):
            return re.sub(plural + "$", single, word, flags=re.IGNORECASE)
    for ending, other in RULES:
        if ending.search(word):
            return ending.sub(other, word)
    return word
