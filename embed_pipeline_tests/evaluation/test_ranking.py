from __future__ import annotations

import numpy as np

from embed_pipeline.embedding.search import BM25
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.evaluation.ranking import Collection, rank_set

BASE = np.asarray([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]], dtype=np.float32)
TEXTS = ("red apple", "green pear", "red cherry", "blue plum")


def collection() -> Collection:
    return Collection(("a", "b", "c", "d"), TEXTS, ("one", "two", "one", "two"), BASE, BASE[::-1].copy(), BM25(TEXTS))


def ranked(unit: str, weight: float = 0.65, depth: int = 10) -> dict[str, list[str]]:
    query_set = QuerySet("x", {"q": "cherry"}, {"q": {"c": 1}}, unit)  # type: ignore[arg-type]  # parametrised
    query = np.asarray([[0.0, 1.0]], dtype=np.float32)
    systems = rank_set(query_set, collection(), query, query, depth=depth, dense_weight=weight)
    return {system: found.rankings["q"] for system, found in systems.items()}


def test_segments_are_ranked_by_each_system() -> None:
    found = ranked("segment")
    assert found["base"] == ["c", "b", "d", "a"]
    assert found["tuned"] == ["b", "c", "a", "d"]
    assert found["bm25"] == ["c"]
    assert found["hybrid"][0] == "c"
    assert ranked("segment", weight=1.0)["hybrid"] == found["base"]
    assert ranked("segment", depth=2)["base"] == ["c", "b"]


def test_a_document_scores_as_its_best_segment() -> None:
    found = ranked("document")
    assert found["base"] == ["one", "two"]
    assert found["tuned"] == ["two", "one"]
    assert found["bm25"] == ["one"]
