from __future__ import annotations

from math import log2

import pytest

from embed_pipeline.evaluation.ranking import score_rankings


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


def test_the_order_given_is_kept_whatever_the_ids_are_called() -> None:
    for rankings in ({"a": ["zz", "aa"]}, {"a": ["aa", "zz"]}):
        first = rankings["a"][0]
        assert score_rankings(rankings, {"a": {first: 1}}, (1,)).column("MRR", 1).tolist() == [1.0]


def test_an_empty_ranking_scores_zero_and_an_unjudged_query_is_refused() -> None:
    assert score_rankings({"a": []}, {"a": {"r": 1}}, (10,)).values.sum() == 0
    with pytest.raises(ValueError, match="'b' has no judgement"):
        score_rankings({"b": ["x"]}, {"a": {"r": 1}}, (10,))
