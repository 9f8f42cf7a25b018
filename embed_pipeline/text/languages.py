"""Languages: which one a text is in, and its words as a lexical index holds them.

Detection by py3langid, stems by Snowball, stop words as bm25s lists them. Scripts that write no spaces between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) are indexed by pairs of neighbouring characters, as Lucene does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    # An endpoint reads languages but loads no dataframes.
    import polars as pl

ENGLISH = "en"
AUTO = "auto"
"""In place of a language: that which is detected."""
WITHOUT_QUESTION_MARK = frozenset({"th", "lo", "km", "my"})
"""Languages that mark a question by a word alone."""
_SAMPLED_TEXTS = 200
_READ_CHARACTERS = 4000
# Below it the detector goes by chance.
_LEAST_LETTERS = 40
_LEAST_CHARACTERS = 400
# A letter of another script tells more than a Latin one.
_TELLING = 5
_LATIN = regex.compile(r"\p{Latin}")
_OTHER_LETTER = regex.compile(r"[\p{L}--\p{Latin}]", regex.V1)
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TERM = regex.compile(rf"[{_UNSPACED}ー]+|[\p{{L}}\p{{M}}\p{{N}}_--[{_UNSPACED}]]+", regex.V1)
_UNSPACED_RUN = regex.compile(rf"[{_UNSPACED}ー]+")
_STEMMERS = MappingProxyType(
    {
        "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "es": "spanish",
        "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish", "fr": "french", "ga": "irish",
        "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "it": "italian", "lt": "lithuanian",
        "ne": "nepali", "nl": "dutch", "no": "norwegian", "pl": "polish", "pt": "portuguese", "ro": "romanian",
        "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil", "tr": "turkish", "yi": "yiddish",
    }
)  # fmt: skip


def detect_language(text: str) -> str:
    """ISO 639-1 code of the language that a text is in; English where it has too few letters to tell."""
    import py3langid

    beginning = text[:_READ_CHARACTERS]
    latin, others = len(_LATIN.findall(beginning)), len(_OTHER_LETTER.findall(beginning))
    if latin + _TELLING * others < _LEAST_LETTERS:
        return ENGLISH
    found, _ = py3langid.classify(beginning)
    return ENGLISH if found == "zxx" else str(found)


def dominant_language(texts: Sequence[str] | pl.Series) -> str:
    """The language that most characters are in, over a sample of 200 texts; short ones are read together."""
    characters: Counter[str] = Counter()
    together = ""
    for text in texts[:: max(1, len(texts) // _SAMPLED_TEXTS)]:
        together = f"{together}\n{text}"
        if len(together) >= _LEAST_CHARACTERS:
            characters[detect_language(together)] += len(together)
            together = ""
    characters[detect_language(together)] += len(together)
    return characters.most_common(1)[0][0]


def index_terms(texts: Iterable[str], language: str) -> list[list[str]]:
    """The words of each text as a lexical index holds them: lower case, without stop words, stemmed.

    Args:
        texts: any number.
        language: ISO 639-1 code; where no stemmer or stop words are known for it, words stay as they are.
    """
    if language == ENGLISH:
        import bm25s

        return list(bm25s.tokenize(list(texts), stopwords=ENGLISH, return_ids=False, show_progress=False))
    stop_words, stem = _stop_words(language), _stemmer(language)
    return [[stem(term) for term in terms(text) if term not in stop_words] for text in texts]


def terms(text: str) -> list[str]:
    """The words of a text in lower case, stop words included; of scripts without spaces pairs of characters."""
    found: list[str] = []
    for term in _TERM.findall(text.casefold()):
        if _UNSPACED_RUN.match(term) and len(term) > 1:
            found += [term[place : place + 2] for place in range(len(term) - 1)]
        else:
            found.append(term)
    return found


def is_unspaced(text: str) -> bool:
    """True where most letters are of a script that writes no spaces between words."""
    return 2 * sum(map(len, _UNSPACED_RUN.findall(text))) > len(_LATIN.findall(text)) + len(_OTHER_LETTER.findall(text))


@cache
def _stop_words(language: str) -> frozenset[str]:
    from bm25s.tokenization import Tokenizer

    try:
        return frozenset(Tokenizer(stopwords=language).stopwords)
    except ValueError:
        return frozenset()


@cache
def _stemmer(language: str) -> Callable[[str], str]:
    import snowballstemmer

    name = _STEMMERS.get(language)
    if name not in snowballstemmer.algorithms():
        return str
    stem: Callable[[str], str] = snowballstemmer.stemmer(name).stemWord
    return stem
