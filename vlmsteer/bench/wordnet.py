"""Base forms of English words by WordNet's own morphology, as NLTK's WordNetLemmatizer gives them.

The rules are those of morphy (Fellbaum (ed.), WordNet, MIT Press 1998; morphy(7WN)): exceptions first, then suffixes,
and only forms that the dictionary holds. Of several forms the shortest is taken, as in NLTK. The dictionary comes
along: `data/wordnet.txt.gz` holds the single words and exceptions of WordNet 3.0, copyright 2006 by Princeton
University, under the WordNet 3.0 license, which stands in full at the top of the file (`zcat` shows it). So nothing
needs to be installed.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

from vlmsteer.errors import InputError

TABLE = Path(__file__).parent / "data" / "wordnet.txt.gz"
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
ENDINGS = {  # tried in this order
    "n": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "v": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}


@dataclass(frozen=True)
class _Part:
    words: set[str] = field(default_factory=set)
    exceptions: dict[str, list[str]] = field(default_factory=dict)


@lru_cache(maxsize=1 << 16)
def lemma(word: str, pos: str = "n") -> str:
    """The base form of a lower-case word, the word itself if WordNet has none.

    Args:
        pos: "n" noun, "v" verb, "a" adjective, "r" adverb.

    Example:
        >>> lemma("buses"), lemma("men"), lemma("vases"), lemma("parking", "v")
        ('bus', 'men', 'vas', 'park')
    """
    return min(_forms(word, pos), key=len, default=word)


def known(word: str, pos: str) -> bool:
    """Whether WordNet has a word, in this form, as a noun "n", verb "v", adjective "a" or adverb "r"."""
    return word in _parts()[pos].words


def write_table(folder: str | Path, path: str | Path) -> None:
    """Make the table from WordNet's own files; from WordNet 3.0 it is the bundled one, byte for byte.

    Args:
        folder: WordNet's `dict` folder, with `index.noun`, `noun.exc` and so on.
        path: the file to write.

    Raises:
        InputError: if a file is missing.
    """
    source, lines = Path(folder), []
    try:
        index = {pos: (source / f"index.{name}").read_text(encoding="utf-8") for pos, name in FILES.items()}
        exceptions = {pos: (source / f"{name}.exc").read_text(encoding="utf-8") for pos, name in FILES.items()}
    except OSError as error:
        raise InputError(f"{str(folder)!r} is not WordNet's dict folder: {error}.") from error
    notice = [line for line in index["n"].splitlines() if line.startswith("  ")]
    lines += ["# " + line.strip().partition(" ")[2].strip() for line in notice]  # without their line numbers
    for pos in FILES:
        irregular = [line for line in exceptions[pos].splitlines() if line and "_" not in line.split()[0]]
        bases = {base for line in irregular for base in line.split()[1:]}
        entries = {line.split(" ", 1)[0] for line in index[pos].splitlines() if not line.startswith(" ")}
        lines.append(f"[{pos}]")
        lines += sorted(word for word in entries if "_" not in word or word in bases)
        lines += irregular
    Path(path).write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), 9, mtime=0))


@cache
def _parts() -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    pos = ""
    for line in gzip.decompress(TABLE.read_bytes()).decode().splitlines():
        if line.startswith("#"):
            continue
        if line.startswith("["):
            pos = line[1]
            parts[pos] = _Part()
            continue
        word, *bases = line.split()
        if bases:
            parts[pos].exceptions[word] = bases
        else:
            parts[pos].words.add(word)
    return parts


def _forms(word: str, pos: str) -> list[str]:
    part = _parts()[pos]
    if word in part.exceptions:
        return [form for form in [word, *part.exceptions[word]] if form in part.words]
    forms, found = [word], [word] if word in part.words else []
    while True:
        forms = [form[: -len(old)] + new for form in forms for old, new in ENDINGS[pos] if form.endswith(old)]
        found += [form for form in forms if form in part.words]
        if found or not forms:
            return found
