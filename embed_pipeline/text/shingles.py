"""Word 5-grams of documents, and which documents share many of them.

Candidates come from an inverted index over a sample of each text's 5-grams (Broder 1997); each is then checked exactly.
Time grows with the number of words, memory with the number of documents, so 100,000 documents need no quadratic step.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.progress import Bar, progress

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
_WORDS_PER_SHINGLE = 5
_PROBES = 32
KEPT_HASHES = 16_000_000
_VOCABULARY_LIMIT = 2_000_000
_WORD = re.compile(r"\w+")

# Neighbours compared per 5-gram, however many texts share it: copies of one template are joined in a chain.
_WINDOW = 64


class Texts(Protocol):
    """What is asked for texts one at a time: a sequence, a series, or what reads them from storage."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> str:
        """One of them."""
        ...


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
    """Share of the smaller set that occurs in the larger; 0 where one is empty."""
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    if not len(small):
        return 0.0
    places = np.searchsorted(large, small)
    found = large[np.minimum(places, len(large) - 1)] == small
    return float(found.mean())


def resemblance(one: Hashes, other: Hashes) -> float:
    """Share of the larger set that occurs in the smaller; 0 where one is empty."""
    small, large = sorted((len(one), len(other)))
    return containment(one, other) * small / large if small else 0.0


class HashedTexts:
    """The hashes of each text, from a bounded cache, else computed again."""

    def __init__(self, texts: Texts, room: int = KEPT_HASHES) -> None:
        """Take ``texts``, and ``room``: how many hashes are kept."""
        self._texts = texts
        self._shingler = Shingler()
        self._cache: dict[int, Hashes] = {}
        self._cache_room = room

    def __len__(self) -> int:
        return len(self._texts)

    def hashes(self, index: int, bar: Bar | None = None) -> Hashes:
        """The hashes of one text; ``bar`` counts it."""
        if bar is not None:
            bar.advance()
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        hashes = self._shingler.hashes(self._texts[index])
        if len(hashes) <= self._cache_room:
            self._cache_room -= len(hashes)
            self._cache[index] = hashes
        return hashes


def neighbours(holders: Places, index: int) -> Places:
    """The other texts of a run; of a long run, those that follow ``index`` in it, round the end."""
    if len(holders) <= _WINDOW:
        others: Places = holders[holders != index]
        return others
    start = int(np.searchsorted(holders, index)) + 1
    following: Places = np.take(holders, np.arange(start, start + _WINDOW), mode="wrap")
    return following


def predecessors(holders: Places, index: int) -> Places:
    """The texts of a run that come before ``index``; of a long run, the last ones."""
    end = int(np.searchsorted(holders, index))
    before: Places = holders[max(0, end - _WINDOW) : end]
    return before


def candidates(
    source: HashedTexts, threshold: float, near: Callable[[Places, int], Places] = neighbours
) -> Iterator[tuple[int, Places]]:
    """Each text with those that may share ``threshold`` of its 5-grams, as far as ``near`` looks; both by position.

    A pair just at a threshold of 0.6 is missed with a probability under 0.1 %, more similar ones practically never.
    """
    with progress("Comparing documents", 3 * len(source), "step") as bar:
        probes = [source.hashes(index, bar)[:_PROBES] for index in range(len(source))]
        known, postings, offsets = _postings(source, probes, bar)
        for index, own in enumerate(probes):
            bar.advance()
            if not len(own):
                continue
            places = np.searchsorted(known, own)
            runs = [near(postings[offsets[place] : offsets[place + 1]], index) for place in places]
            others, hits = np.unique(np.concatenate(runs), return_counts=True)
            yield index, others[hits >= max(1, int(np.ceil(len(own) * threshold / 2)))]


def find_copies(texts: Texts, threshold: float) -> dict[int, tuple[int, float]]:
    """Position of each text that nearly repeats an earlier one, to that one's position and their resemblance.

    A copy is no other text's original: the texts that remain share less than ``threshold`` with each other.

    Args:
        texts: those to keep come first.
        threshold: share of the longer one's 5-grams that must occur in the other, above 0.
    """
    source = HashedTexts(texts)
    copies: dict[int, tuple[int, float]] = {}
    for index, others in candidates(source, threshold, predecessors):
        originals = sorted({copies[other][0] if other in copies else other for other in others.tolist()})
        alike = [(resemblance(source.hashes(index), source.hashes(original)), -original) for original in originals]
        if alike and max(alike)[0] >= threshold:
            share, original = max(alike)
            copies[index] = (-original, share)
    return copies


def _mix(values: Hashes) -> Hashes:
    """Spread hashes evenly over 64 bits (the finaliser of SplitMix64), so that the smallest are a fair sample."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


def _postings(
    source: HashedTexts, probes: list[Hashes], bar: Bar
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
