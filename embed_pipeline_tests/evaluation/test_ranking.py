"""Rankings of every system, and their metrics, computed by hand."""

from __future__ import annotations

from math import log2, nan

import numpy as np
import pytest

from embed_pipeline.embedding.search import BM25
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.evaluation.ranking import Collection, all_recall, rank_set, score_rankings

BASE = np.asarray([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]], dtype=np.float32)
TEXTS = ("red apple", "green pear", "red cherry", "blue plum")


def collection() -> Collection:
    return Collection(("a", "b", "c", "d"), TEXTS, ("one", "two", "one", "two"), BASE, BASE[::-1].copy(), BM25(TEXTS))


def ranked(unit: str, weight: float = 0.65, depth: int = 10) -> dict[str, list[str]]:
    query_set = QuerySet("x", {"q": "cherry"}, {"q": {"c": 1}}, unit)  # type: ignore[arg-type]  # parametrised
    query = np.asarray([[0.0, 1.0]], dtype=np.float32)
    systems = rank_set(query_set, collection(), query, query, depth=depth, dense_weights=(weight, 0.0))
    return {system: found.rankings["q"] for system, found in systems.items()}


def test_segments_are_ranked_by_each_system() -> None:
    found = ranked("segment")
    assert found["base"] == ["c", "b", "d", "a"]
    assert found["tuned"] == ["b", "c", "a", "d"]
    assert found["bm25"] == ["c"]
    assert found["hybrid_base"][0] == "c"
    assert found["hybrid_tuned"][0] == "c"
    assert ranked("segment", weight=1.0)["hybrid_base"] == found["base"]
    assert ranked("segment", depth=2)["base"] == ["c", "b"]


def test_a_document_scores_as_its_best_segment() -> None:
    found = ranked("document")
    assert found["base"] == ["one", "two"]
    assert found["tuned"] == ["two", "one"]
    assert found["bm25"] == ["one"]


def test_metrics_equal_values_computed_by_hand() -> None:
    rankings = {"a": ["x", "r1", "y", "r2"], "b": ["r3"], "c": ["x", "y"]}
    qrels = {"a": {"r1": 1, "r2": 1, "r9": 1}, "b": {"r3": 1}, "c": {"r4": 1}}
    scores = score_rankings(rankings, qrels, (1, 2, 10))
    ideal = 1 + 1 / log2(3) + 1 / 2
    expected = {
        ("nDCG", 10): [(1 / log2(3) + 1 / log2(5)) / ideal, 1, 0],
        ("nDCG", 2): [(1 / log2(3)) / (1 + 1 / log2(3)), 1, 0],
        ("Recall", 1): [0, 1, 0],
        ("Recall", 2): [1 / 3, 1, 0],
        ("Recall", 10): [2 / 3, 1, 0],
        ("Precision", 2): [1 / 2, 1 / 2, 0],
        ("Precision", 10): [2 / 10, 1 / 10, 0],
        ("MAP", 2): [1 / 2 / 3, 1, 0],
        ("MAP", 10): [(1 / 2 + 2 / 4) / 3, 1, 0],
        ("MRR", 1): [0, 1, 0],
        ("MRR", 10): [1 / 2, 1, 0],
    }
    for (metric, k), values in expected.items():
        assert scores.column(metric, k).tolist() == pytest.approx(values, abs=1e-9), (metric, k)
    assert scores.values.shape == (3, 15)


def test_all_recall_is_one_where_everything_that_a_query_needs_is_found() -> None:
    qrels = {
        "both": {"r1": 1, "r2": 1},
        "one": {"r1": 1},
        "graded": {"r1": 2, "r2": 2, "r3": 1},
        "best": {"r1": 2, "r2": 1},
        "copied": {"r1": 1, "r1b": 1, "r2": 1},
        "copy": {"r1": 1, "r1b": 1},
    }
    query_set = QuerySet("x", dict.fromkeys(qrels, "?"), qrels, copies={"r1": "r1", "r1b": "r1"})
    rankings = {
        "both": ["r1", "x", "r2"],
        "one": ["r1"],
        "graded": ["r2", "r1"],
        "best": ["r1", "r2"],
        "copied": ["r1b", "r2"],
        "copy": ["r1", "r1b"],
    }
    scores = all_recall(rankings, query_set, (1, 2, 10))
    assert scores.columns == (("AllRecall", 2), ("AllRecall", 10))
    expected = {"both": [0, 1], "graded": [1, 1], "copied": [1, 1]}
    by_query = [expected.get(query, [nan, nan]) for query in rankings]
    assert scores.values == pytest.approx(np.asarray(by_query), nan_ok=True)


def test_the_order_given_is_kept_whatever_the_ids_are_called() -> None:
    for rankings in ({"a": ["zz", "aa"]}, {"a": ["aa", "zz"]}):
        first = rankings["a"][0]
        assert score_rankings(rankings, {"a": {first: 1}}, (1,)).column("MRR", 1).tolist() == [1.0]


def test_an_empty_ranking_scores_zero_and_an_unjudged_query_is_refused() -> None:
    assert score_rankings({"a": []}, {"a": {"r": 1}}, (10,)).values.sum() == 0
    with pytest.raises(ValueError, match="'b' has no judgement"):
        score_rankings({"b": ["x"]}, {"a": {"r": 1}}, (10,))
