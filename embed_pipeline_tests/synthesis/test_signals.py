from __future__ import annotations

import numpy as np

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.synthesis.score import SEARCH_DEPTH, measure_round_trip
from embed_pipeline_tests.synthesis import material


class _Fixed:
    """An encoder whose vectors are given: a query is close to the passage of the same first letter."""

    def encode(self, texts: list[str], kind: str, label: str | None = None) -> np.ndarray:
        vectors = np.eye(26, dtype=np.float32)
        return vectors[[ord(text[0].lower()) - ord("a") for text in texts]]


TEXTS = {"x1": "a pump", "x2": "b lamp", "x3": "c valve", "x4": "b lamp"}


def test_a_rank_is_the_better_of_both_searches_for_the_worst_source() -> None:
    questions = ["a lamp?", "c nothing?", "b valve?"]
    trip = measure_round_trip(questions, [["x1", "x2"], ["x3"], ["x3", "x4"]], TEXTS, _Fixed())
    assert trip.dense_ranks == [2, 1, 3]
    assert trip.bm25_ranks == [SEARCH_DEPTH + 1, SEARCH_DEPTH + 1, SEARCH_DEPTH + 1]
    assert trip.ranks == [1, 1, 1]


def test_segments_of_the_same_text_share_their_rank(encoder: Encoder) -> None:
    texts = {**material.TEXTS, "copy": material.TEXTS["s2"]}
    trip = measure_round_trip(["What does a red lamp on the pump mean?"] * 2, [["s2"], ["copy"]], texts, encoder)
    assert trip.ranks[0] == trip.ranks[1] == 1
    assert trip.bm25_ranks == [1, 1]
    assert trip.question_vectors.shape == (2, encoder.dimensions)
