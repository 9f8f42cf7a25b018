"""Near-duplicate texts: by shared word 5-grams, and for questions by shared words.

Documents are compared by containment (Broder 1997): the share of the shorter one's distinct word 5-grams that occur in
the other, which also finds a page quoted whole in a longer one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from embed_pipeline.text.shingles import HashedTexts, Texts, candidates, containment
from embed_pipeline.text.words import content_words, words

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet

_WORDS_PER_SHINGLE = 5
_CACHED_PASSAGES = 1_000
# Above the rounding error of a threshold times a count.
_EPSILON = 1e-9
_WORD = re.compile(r"\w+")


class NearDuplicatePassages:
    """Compares passages by the same measure, with a cache of the word 5-grams of recent ones."""

    def __init__(self, threshold: float) -> None:
        """Take ``threshold``: the share of the shorter one's 5-grams that must occur in the other."""
        self._threshold = threshold
        self._cache: dict[str, frozenset[int]] = {}

    def alike(self, one: str, other: str) -> bool:
        """True where the texts are equal or near-duplicates."""
        if one == other:
            return True
        small, large = sorted((self._shingles(one), self._shingles(other)), key=len)
        return bool(small) and len(small & large) >= self._threshold * len(small) - _EPSILON

    def _shingles(self, text: str) -> frozenset[int]:
        shingles = self._cache.get(text)
        if shingles is None:
            found = _WORD.findall(text.lower())
            width = min(_WORDS_PER_SHINGLE, len(found))
            # For a passage or two faster than arrays; numbers, unlike tuples, cost the garbage collector nothing.
            shingles = frozenset(map(hash, zip(*(found[offset:] for offset in range(width)), strict=False)))
            if len(self._cache) >= _CACHED_PASSAGES:
                self._cache.clear()
            self._cache[text] = shingles
        return shingles


def join_near_duplicates(texts: Texts, threshold: float, sets: DisjointSet) -> None:
    """Join in ``sets`` the positions of texts whose containment is ``threshold`` or more.

    Args:
        texts: documents.
        threshold: share of the shorter one's 5-grams, above 0.
        sets: the positions of the texts.
    """
    source = HashedTexts(texts)
    for index, others in candidates(source, threshold):
        for other in others.tolist():
            apart = not sets.connected(index, other)
            if apart and containment(source.hashes(index), source.hashes(other)) >= threshold:
                sets.merge(index, other)


def normalise_question(question: str) -> str:
    """The lower-case words of a question; two questions with equal ones ask the same in the same words."""
    return " ".join(_WORD.findall(question.lower()))


def near_duplicate_questions(questions: Sequence[str], others: Sequence[str], threshold: float) -> dict[int, int]:
    """Position of each question to the first of ``others`` that asks nearly the same.

    Nearly the same: equal words in equal order, or a Jaccard similarity of the sets of content-word stems of
    ``threshold`` or more. Pairs are found by prefix filtering (Chaudhuri, Ganti and Kaushik 2006), so that only
    questions that share a rare word are compared.
    """
    mine, theirs = [_terms(question) for question in questions], [_terms(question) for question in others]
    exact: dict[str, int] = {}
    for index, question in enumerate(others):
        exact.setdefault(normalise_question(question), index)
    frequency = Counter(term for terms in (*mine, *theirs) for term in terms)
    index_of: defaultdict[str, list[int]] = defaultdict(list)
    for number, terms in enumerate(theirs):
        for term in _prefix(terms, frequency, threshold):
            index_of[term].append(number)
    duplicates: dict[int, int] = {}
    for number, terms in enumerate(mine):
        same = exact.get(normalise_question(questions[number]))
        found = {other for term in _prefix(terms, frequency, threshold) for other in index_of.get(term, ())}
        near = [o for o in found if len(terms & theirs[o]) >= threshold * len(terms | theirs[o]) - _EPSILON]
        if same is not None or near:
            duplicates[number] = min([*near, *([same] if same is not None else [])])
    return duplicates


def _terms(question: str) -> frozenset[str]:
    """Content-word stems, and single characters such as the digits of a version."""
    single = [word for word in words(question) if len(word) == 1 and word not in {"a", "i"}]
    return frozenset([*content_words(question), *single])


def _prefix(terms: frozenset[str], frequency: Counter[str], threshold: float) -> list[str]:
    """The rarest terms: of two sets of at least this similarity, these share one."""
    ordered = sorted(terms, key=lambda term: (frequency[term], term))
    return ordered[: len(ordered) - int(np.ceil(threshold * len(ordered) - _EPSILON)) + 1] if ordered else []
