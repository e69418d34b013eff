"""English words as CHAIR's references see them: tokens, sentences, singular and base forms, tags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmsteer.bench.singular import singularize
from vlmsteer.bench.tagger import lemmas, tags
from vlmsteer.bench.treebank import sentences, tokens
from vlmsteer.bench.wordnet import TABLE, known, lemma, write_table
from vlmsteer.errors import InputError

SHARED = Path(__file__).parents[1] / ".." / "shared" / "golden"
DEBIAN = Path("/usr/share/wordnet")


def test_golden_words() -> None:
    path = SHARED / "chair_singularize.json"
    if not path.exists():
        pytest.skip("the reference scorers' recorded cases are not here")
    rows = json.loads(path.read_text())
    expected = [(row["word"], row["pattern_singularize"], row["wordnet_noun"], row["wordnet_verb"]) for row in rows]
    assert [(word, singularize(word), lemma(word), lemma(word, "v")) for word, *_ in expected] == expected


@pytest.mark.parametrize(
    ("word", "single"),
    [
        ("glasses", "glass"),  # (ss)es
        ("tennis", "tenni"),
        ("potatoes", "potato"),
        ("leaves", "leaf"),
        ("wolves", "wolf"),
        ("bookshelves", "bookshelve"),  # "helves" is the plural of "helve"
        ("mice", "mouse"),
        ("women", "woman"),
        ("four", "fmy"),  # "our" is the plural of "my", and ends many words
        ("mothers-in-law", "mother-in-law"),
        ("dogs'", "dog's"),
        ("is", "is"),  # the end of "debris"
        ("has", "ha"),
        ("media", "medium"),
        ("bases", "basis"),
        ("movies", "movie"),
        ("BUSES", "BUS"),
        ("", ""),
        ("'" * 5000, "'s" * 5000),
    ],
)
def test_singular(word: str, single: str) -> None:
    assert singularize(word) == single


@pytest.mark.parametrize(
    ("word", "pos", "base"),
    [
        ("knives", "n", "knife"),
        ("women", "n", "woman"),  # an exception
        ("men", "n", "men"),  # WordNet has "men" too, which is no longer than "man"
        ("as", "n", "a"),
        ("seated", "v", "seat"),
        ("skiing", "v", "ski"),
        ("larger", "a", "large"),
        ("best", "r", "best"),  # an exception, "well", is no shorter
        ("qwxzs", "n", "qwxzs"),
    ],
)
def test_base_forms(word: str, pos: str, base: str) -> None:
    assert lemma(word, pos) == base


def test_base_forms_are_words() -> None:
    assert known("bus", "n") and not known("buses", "n") and not known("bus", "a")


def test_table_is_made_from_wordnets_own_files(tmp_path: Path) -> None:
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"index.{name}").write_text("  1 Notice of the maker\nfoo n 1 0\nfoo_bar n 1 0\n")
        (tmp_path / f"{name}.exc").write_text("foos foo\n")
    write_table(tmp_path, tmp_path / "table")
    write_table(tmp_path, tmp_path / "again")
    assert (tmp_path / "table").read_bytes() == (tmp_path / "again").read_bytes()
    (tmp_path / "noun.exc").unlink()
    with pytest.raises(InputError, match="dict folder"):
        write_table(tmp_path, tmp_path / "table")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="WordNet's own files are not installed (Debian: wordnet-base)")
def test_bundled_table_is_wordnet_3_0(tmp_path: Path) -> None:
    write_table(DEBIAN, tmp_path / "table")
    assert (tmp_path / "table").read_bytes() == TABLE.read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog. a cat.", "a dog . a cat ."),
        ('he said "hello, dog."', "he said `` hello , dog . ''"),
        ("it isn't the dogs' bowl", "it is n't the dogs ' bowl"),
        ("a 3,000 kg truck at 3:30", "a 3,000 kg truck at 3:30"),
        ("wait... a dog?! (brown)", "wait ... a dog ? ! ( brown )"),
        ("dr. smith has cats etc. and dogs.", "dr. smith has cats etc . and dogs ."),
        ("the u.s. flag. a pole", "the u.s. flag . a pole"),
        ("1. a dog 2. a cat", "1. a dog 2. a cat"),
        ("you cannot, gonna go", "you can not , gon na go"),
        ("black-and-white cat", "black-and-white cat"),
        ("a dog--brown", "a dog -- brown"),
        ("*bold* [x] a&b", "* bold * [ x ] a & b"),
        ("", ""),
        (" \n ", ""),
        ("...", "..."),
    ],
)
def test_tokens(text: str, expected: str) -> None:
    assert tokens(text) == expected.split()


def test_sentences_keep_their_closing_quotes() -> None:
    assert sentences('(A dog.) "A cat." The end') == ["(A dog.)", '"A cat."', "The end"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("the children are sitting on benches", "the child be sit on bench"),
        ("a parking lot with parked cars", "a parking lot with parked car"),
        ("two people seated at a table , eating pizza", "two people seat at a table , eat pizza"),
        ("the man is skateboarding", "the man be skateboard"),
        ("a skiing trip", "a skiing trip"),
        ("several potted plants and a building", "several potted plant and a building"),
        ("the horse is tied to a larger tree", "the horse be tie to a large tree"),
        ("a pair of scissors", "a pair of scissors"),
        ("on the left side", "on the left side"),
        ("a cup was left there", "a cup be leave there"),
        ("a hair drier hangs on a drier towel", "a hair drier hang on a dry towel"),
    ],
)
def test_base_forms_in_a_caption(caption: str, expected: str) -> None:
    assert lemmas(caption.split()) == expected.split()


@pytest.mark.parametrize(
    "text",
    ["", "'", "....", "ing ed s", "\u2028 é ß İ 漢字 🐶", "-" * 100_000, "s" * 20_000, "a." * 50_000, "." * 100_000]
    + ["[a" * 10_000, "a dr." + " " * 100_000 + "x", "a dog, " * 5_000, "'\"" * 10_000],  # in time linear in the length
)
def test_any_text_has_words(text: str) -> None:
    found = tokens(text.lower())
    assert len(lemmas(found)) == len(tags(found)) == len(found)
    assert all(isinstance(singularize(token), str) for token in found)
