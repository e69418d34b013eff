"""English text as sentences and tokens, as NLTK's word_tokenize makes them.

Tokens follow the Penn Treebank's conventions (Marcus et al., Computational Linguistics 1993; the rules are those of
nltk/tokenize/destructive.py, Apache-2.0, NLTK 3.8.1). Sentences end as in Punkt (Kiss & Strunk, Computational
Linguistics 2006), whose trained parameters are not here: abbreviations are a short list, and what follows an
abbreviation or "..." starts a sentence only if it is one of a few capitalized words. In lower-case text, which CHAIR
reads, that is exact but for rarer abbreviations.
"""

from __future__ import annotations

import re
from itertools import zip_longest


def _words(text: str) -> list[str]:
    return text.split()


ABBREVIATIONS = frozenset(
    _words(
        "a.m adm ala apr ariz aug ave bros calif capt cie co col colo conn corp cos ct dec del dept dr e.g feb "
        "fla fri ft ga gen gov hon i.e ill inc jan jr kan ky lt ltd maj mass md messrs mich minn mo mr mrs ms mt "
        "n.c n.j n.y nev nov oct okla ont ore p.m pa ph.d prof pvt rep reps rev s.a s.c sen sens sept sgt sr st "
        "ste sw tenn tex tues u.k u.n u.s va vs vt w.va wash wed wis yr"
    )
)
STARTERS = frozenset(_words("the a an in it he she they there this these those that but however some another one two"))
_MARK = r"[?!)\";}\]*:@'({\[]"  # what no word contains
_DOTS = r"-{2,}|\.{2,}|(?:\.\s){2,}\."
_RUN = re.compile(r"\S+")
_INNER_END = re.compile(rf"[.?!](?={_MARK})")
_WORD = re.compile(rf"{_DOTS}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_MARK}|{_DOTS}|,(?=$|\s|{_MARK}|{_DOTS}))|\S")
_CLOSING = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|$)", re.MULTILINE)
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*\.")

_STEPS = [
    # Quotes that open.
    (r"([«“‘„]|[`]+)", r" \1 "),
    (r"^\"", "``"),
    (r"(``)", r" \1 "),
    (r"([ \(\[{<])(\"|\'{2})", r"\1 `` "),
    (r"(?i)(\')(?!re|ve|ll|m|t|s|d|n)(\w)\b", r"\1 \2"),
    # Punctuation; a period only at the end.
    (r"([^\.])(\.)([\]\)}>\"\'»”’ ]*+)\s*$", r"\1 \2 \3 "),
    (r"([:,])([^\d])", r" \1 \2"),
    (r"([:,])$", r" \1 "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&]", r" \g<0> "),
    (r"([^\.])(\.)([\]\)}>\"\']*)\s*$", r"\1 \2\3 "),
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[*]", r" \g<0> "),
    (r"[\]\[\(\)\{\}\<\>]", r" \g<0> "),
    (r"--", " -- "),
    (r"\A|\Z", " "),
    # Quotes that close, and what is short for another word.
    (r"([»”’])", r" \1 "),
    (r"''", " '' "),
    (r'"', " '' "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    (r"(?i)\b(can)(not)\b", r" \1 \2 "),
    (r"(?i)\b(d)('ye)\b", r" \1 \2 "),
    (r"(?i)\b(gim)(me)\b", r" \1 \2 "),
    (r"(?i)\b(gon)(na)\b", r" \1 \2 "),
    (r"(?i)\b(got)(ta)\b", r" \1 \2 "),
    (r"(?i)\b(lem)(me)\b", r" \1 \2 "),
    (r"(?i)\b(more)('n)\b", r" \1 \2 "),
    (r"(?i)\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r"(?i) ('t)(is)\b", r" \1 \2 "),
    (r"(?i) ('t)(was)\b", r" \1 \2 "),
]
STEPS = [(re.compile(pattern), other) for pattern, other in _STEPS]


def tokens(text: str) -> list[str]:
    """The tokens of a text of any number of sentences, as `nltk.word_tokenize(text)`.

    Example:
        >>> tokens("the driver's cat. a dog isn't here.")
        ['the', 'driver', "'s", 'cat', '.', 'a', 'dog', 'is', "n't", 'here', '.']
    """
    return [token for sentence in sentences(text) for token in _split(sentence)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, as `nltk.sent_tokenize(text)`; empty ones are left out.

    Example:
        >>> sentences("Dr. Who has a dog. It is red.")
        ['Dr. Who has a dog.', 'It is red.']
    """
    found, start = [], 0
    runs = list(_RUN.finditer(text))
    for run, after in zip_longest(runs, runs[1:]):
        # Of the marks in a run that may end a sentence the last one counts, and what follows it.
        if after is not None and run[0][-1] in ".?!":
            stop, following, context = run.end(), after.start(), f"{run[0]} {after[0]}"
        else:
            inner = [end.end() for end in _INNER_END.finditer(run[0])]
            if not inner:
                continue
            stop = following = run.start() + inner[-1]
            context = run[0][: inner[-1] + 1]
        words = _WORD.findall(context)
        if stop <= start or not any(map(_ends, words, words[1:])):
            continue
        closing = _CLOSING.match(text, following)  # quotes and brackets that close belong to the sentence before
        if closing:
            stop, following = following + len(closing[0].rstrip()), closing.end()
        found.append(text[start:stop])
        start = following
    return [sentence.strip() for sentence in [*found, text[start:]] if sentence.strip()]


def _ends(word: str, after: str) -> bool:
    """Whether a word, its marks included, ends its sentence when `after` follows."""
    if word in ("?", "!"):
        return True
    if not word.endswith("."):
        return False
    bare = word[:-1].lower()
    initial = len(bare) == 1 and bare.isalpha()
    if word.startswith("..") or bare in ABBREVIATIONS or bare.rsplit("-", 1)[-1] in ABBREVIATIONS:
        return after[0].isupper() and after.lower() in STARTERS
    if initial or _NUMBER.fullmatch(word):  # "2." and "j." before a lower-case word
        return not (after[0].islower() or after in tuple(";:,.!?"))
    return True


def _split(sentence: str) -> list[str]:
    for pattern, other in STEPS:
        sentence = pattern.sub(other, sentence)
    return sentence.split()
