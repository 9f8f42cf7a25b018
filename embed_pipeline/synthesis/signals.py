"""Measured signals of a pair: does the question find its own sources, and do the sources carry the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.search import BM25, Hits, search

SEARCH_DEPTH = 100
"""Ranks looked at; a source that is not among them has rank ``SEARCH_DEPTH + 1``."""


@dataclass(frozen=True)
class RoundTrip:
    """Searches the questions over a set of segments, by the base model and by BM25.

    Attributes:
        ranks: for each question, the worst over its sources of the better of both ranks, from 1.
        dense_ranks: the worst rank of its sources under the base model.
        bm25_ranks: the same under BM25.
        question_vectors: unit vectors, shape (questions, d).
    """

    ranks: list[int]
    dense_ranks: list[int]
    bm25_ranks: list[int]
    question_vectors: np.ndarray


def measure_round_trip(
    questions: Sequence[str],
    sources: Sequence[Sequence[str]],
    segments: dict[str, str],
    encoder: Encoder,
) -> RoundTrip:
    """Search every question over the distinct texts of ``segments``.

    Args:
        questions: the questions.
        sources: for each question, the segment ids that it was written from; all must be in ``segments``.
        segments: segment id to text; ids of the same text share their rank.
        encoder: the base model.
    """
    texts = list(dict.fromkeys(segments[key] for key in sorted(segments)))
    place = {text: index for index, text in enumerate(texts)}
    vectors = encoder.encode(questions, "query", label="Encoding questions")
    corpus = encoder.encode(texts, "passage", label="Encoding segments")
    depth = min(SEARCH_DEPTH, len(texts))
    dense = _ranks(search(vectors, corpus, depth))
    lexical = _ranks(BM25(texts).search(questions, depth))
    missing = SEARCH_DEPTH + 1
    trip = RoundTrip([], [], [], vectors)
    for row, ids in enumerate(sources):
        places = [place[segments[key]] for key in ids]
        by_model = [dense[row].get(p, missing) for p in places]
        by_words = [lexical[row].get(p, missing) for p in places]
        trip.dense_ranks.append(max(by_model))
        trip.bm25_ranks.append(max(by_words))
        trip.ranks.append(max(map(min, by_model, by_words)))
    return trip


def _ranks(hits: Hits) -> list[dict[int, int]]:
    return [{int(i): rank for rank, i in enumerate(row, start=1) if i >= 0} for row in hits.indices]
