"""Near-duplicate texts: by shared word 5-grams, and for questions by shared words.

Documents are compared by containment (Broder 1997): the share of the shorter one's distinct word 5-grams that stand
in the other, which also finds a page quoted whole in a longer one. Candidates come from an inverted index over a
sample of each text's 5-grams; each is then checked exactly. Time grows with the number of words, memory with the
number of documents, so 100,000 documents need no quadratic step.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.progress import Bar, progress
from embed_pipeline.synthesis.words import content_words, words
from embed_pipeline.training_data.groups import DisjointSets

Hashes = NDArray[np.uint64]

_WORDS_PER_SHINGLE = 5
_PROBES = 32
# Of a 5-gram that very many texts share, this many neighbours are looked at: copies of one template chain together.
_WINDOW = 64
_CACHED_HASHES = 16_000_000
_VOCABULARY_LIMIT = 2_000_000
_KEPT_PASSAGES = 1_000
# A product of a threshold and a count is off its true value by less.
_EPSILON = 1e-9
_WORD = re.compile(r"\w+")


class Shingler:
    """Texts to the sorted hashes of their distinct word 5-grams (lower case, punctuation left out)."""

    def __init__(self) -> None:
        self._vocabulary: dict[str, int] = {}

    def hashes(self, text: str) -> Hashes:
        """Distinct 5-grams of ``text``; of a shorter text, the whole of it as one; none where it has no word."""
        found = _WORD.findall(text.lower())
        if not found:
            return np.empty(0, np.uint64)
        if len(self._vocabulary) > _VOCABULARY_LIMIT:
            self._vocabulary.clear()
        numbers = np.array([self._number(word) for word in found], dtype=np.uint64)
        width = min(_WORDS_PER_SHINGLE, len(numbers))
        rolled = np.full(len(numbers) - width + 1, width, np.uint64)
        for offset in range(width):
            rolled = rolled * np.uint64(0x9E3779B97F4A7C15) + numbers[offset : offset + len(rolled)]
        return np.unique(_mix(rolled))

    def _number(self, word: str) -> int:
        number = self._vocabulary.get(word)
        if number is None:
            number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            self._vocabulary[word] = number
        return number


def containment(one: Hashes, other: Hashes) -> float:
    """Share of the smaller set that stands in the larger; 0 where one is empty."""
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    if not len(small):
        return 0.0
    places = np.searchsorted(large, small)
    found = large[np.minimum(places, len(large) - 1)] == small
    return float(found.mean())


class Passages:
    """Tells near-duplicate passages from others, by the same measure; the word 5-grams of recent ones are kept."""

    def __init__(self, threshold: float) -> None:
        """Take ``threshold``: the share of the shorter one's 5-grams that must stand in the other."""
        self._threshold = threshold
        self._kept: dict[str, frozenset[tuple[str, ...]]] = {}

    def alike(self, one: str, other: str) -> bool:
        """True where the texts are equal or near-duplicates."""
        if one == other:
            return True
        small, large = sorted((self._shingles(one), self._shingles(other)), key=len)
        return bool(small) and len(small & large) >= self._threshold * len(small) - _EPSILON

    def _shingles(self, text: str) -> frozenset[tuple[str, ...]]:
        kept = self._kept.get(text)
        if kept is None:
            found = _WORD.findall(text.lower())
            width = min(_WORDS_PER_SHINGLE, len(found))
            # Tuples of words: for a passage or two, quicker than hashes.
            kept = frozenset(zip(*(found[offset:] for offset in range(width)), strict=False))
            if len(self._kept) >= _KEPT_PASSAGES:
                self._kept.clear()
            self._kept[text] = kept
        return kept


def join_near_duplicates(texts: Sequence[str], threshold: float, sets: DisjointSets) -> None:
    """Join in ``sets`` the positions of texts whose containment is ``threshold`` or more.

    The probability that a pair just at the threshold of 0.6 is not looked at is under 0.1 %; more alike ones are
    never missed in practice.

    Args:
        texts: documents.
        threshold: share of the shorter one's 5-grams, above 0.
        sets: one element for each text.
    """
    source = _HashedTexts(texts)
    with progress("Comparing documents", 3 * len(texts), "steps") as bar:
        probes = [source.hashes(index, bar)[:_PROBES] for index in range(len(texts))]
        known, postings, offsets = _postings(source, probes, bar)
        for index, own in enumerate(probes):
            bar.advance()
            if not len(own):
                continue
            places = np.searchsorted(known, own)
            near = [_neighbours(postings[offsets[place] : offsets[place + 1]], index) for place in places]
            others, hits = np.unique(np.concatenate(near), return_counts=True)
            least = max(1, int(np.ceil(len(own) * threshold / 2)))
            for other in others[hits >= least]:
                apart = sets.find(index) != sets.find(int(other))
                if apart and containment(source.hashes(index), source.hashes(int(other))) >= threshold:
                    sets.join(index, int(other))


def normalise_question(question: str) -> str:
    """Lower-case words alone: what makes two questions the same in the same words."""
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
    twins: dict[int, int] = {}
    for number, terms in enumerate(mine):
        same = exact.get(normalise_question(questions[number]))
        found = {other for term in _prefix(terms, frequency, threshold) for other in index_of.get(term, ())}
        near = [o for o in found if len(terms & theirs[o]) >= threshold * len(terms | theirs[o]) - _EPSILON]
        if same is not None or near:
            twins[number] = min([*near, *([same] if same is not None else [])])
    return twins


def _mix(values: Hashes) -> Hashes:
    """Spread hashes evenly over 64 bits (the finaliser of SplitMix64), so that the smallest are a fair sample."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


class _HashedTexts:
    """The hashes of each text, kept while there is room and computed again beyond."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._shingler = Shingler()
        self._kept: dict[int, Hashes] = {}
        self._room = _CACHED_HASHES

    def __len__(self) -> int:
        return len(self._texts)

    def hashes(self, index: int, bar: Bar | None = None) -> Hashes:
        """Those of one text; ``bar`` counts it."""
        if bar is not None:
            bar.advance()
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        hashes = self._shingler.hashes(self._texts[index])
        if len(hashes) <= self._room:
            self._room -= len(hashes)
            self._kept[index] = hashes
        return hashes


def _postings(
    source: _HashedTexts, probes: list[Hashes], bar: Bar
) -> tuple[Hashes, NDArray[np.int64], NDArray[np.int64]]:
    """The distinct probes, and for each the texts that hold it: a run of the postings, texts in order."""
    known = np.unique(np.concatenate(probes)) if probes else np.empty(0, np.uint64)
    places, holders = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for index in range(len(source)):
        own = source.hashes(index, bar)
        if len(own):
            at = np.searchsorted(known, own)
            held = at[known[np.minimum(at, len(known) - 1)] == own]
            places.append(held)
            holders.append(np.full(len(held), index, np.int64))
    place = np.concatenate(places)
    order = np.argsort(place, kind="stable")
    offsets = np.searchsorted(place[order], np.arange(len(known) + 1))
    return known, np.concatenate(holders)[order], offsets


def _neighbours(holders: NDArray[np.int64], index: int) -> NDArray[np.int64]:
    """The other texts of a run; of a long run, those that follow ``index`` in it, round the end."""
    if len(holders) <= _WINDOW:
        others: NDArray[np.int64] = holders[holders != index]
        return others
    start = int(np.searchsorted(holders, index)) + 1
    following: NDArray[np.int64] = np.take(holders, np.arange(start, start + _WINDOW), mode="wrap")
    return following


def _terms(question: str) -> frozenset[str]:
    """Content-word stems, and single characters such as the digits of a version."""
    single = [word for word in words(question) if len(word) == 1 and word not in {"a", "i"}]
    return frozenset([*content_words(question), *single])


def _prefix(terms: frozenset[str], frequency: Counter[str], threshold: float) -> list[str]:
    """The rarest terms: two sets of at least this similarity share one of theirs."""
    ordered = sorted(terms, key=lambda term: (frequency[term], term))
    return ordered[: len(ordered) - int(np.ceil(threshold * len(ordered) - _EPSILON)) + 1] if ordered else []
