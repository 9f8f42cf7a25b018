"""The weight of BM25 is chosen on dev questions, and what to deploy is said by intervals."""

from __future__ import annotations

import numpy as np
import pytest

from embed_pipeline.embedding.search import BM25
from embed_pipeline.enumerations import HYBRIDS, SYSTEMS
from embed_pipeline.evaluation.adoption import advise
from embed_pipeline.evaluation.fusion import UNTUNED_WEIGHT, choose_weights, fusion_rows, measure_fusions
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.evaluation.ranking import FUSIONS, Collection, QueryScores, SetResult, rank_fusions
from embed_pipeline.settings import Settings
from embed_pipeline.tables import FUSION_WEIGHTS, validate

SETTINGS = Settings.model_validate({"evaluation": {"bootstrap_samples": 200}})


def curves(best: float, *, drop: float, noise: float = 0.0) -> dict[tuple[str, str], np.ndarray]:
    """A hundred questions' nDCG@10, highest at the dense weight ``best`` and lower by ``drop`` a step of 0.05."""
    generator = np.random.default_rng(3)
    scores = {}
    for hybrid in HYBRIDS:
        for fusion, weight in FUSIONS.items():
            away = abs(best - (0.5 if weight is None else weight)) / 0.05
            scores[hybrid, fusion] = 0.8 - drop * away + noise * generator.standard_normal(100)
    return scores


def test_the_peak_is_chosen_where_it_is_clear() -> None:
    assert choose_weights(curves(0.35, drop=0.01), SETTINGS) == (0.35, 0.35)


def test_of_weights_that_cannot_be_told_apart_the_most_dense_is_chosen() -> None:
    base, tuned = choose_weights(curves(0.35, drop=0.001, noise=0.1), SETTINGS)
    assert min(base, tuned) > 0.35


def test_a_number_is_taken_as_it_is_and_without_dev_questions_there_is_a_default() -> None:
    fixed = Settings.model_validate({"evaluation": {"hybrid_dense_weight": 0.2}})
    assert choose_weights(curves(0.9, drop=0.01), fixed) == (0.2, 0.2)
    assert choose_weights(None, SETTINGS) == (UNTUNED_WEIGHT, UNTUNED_WEIGHT)


TEXTS = ("red apple", "green pear", "red cherry", "blue plum")
VECTORS = np.asarray([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]], dtype=np.float32)


def test_fusions_go_from_the_model_alone_to_bm25_alone() -> None:
    collection = Collection(tuple("abcd"), TEXTS, tuple("wxyz"), VECTORS, VECTORS[::-1].copy(), BM25(TEXTS))
    query_set = QuerySet("dev", {"q": "red"}, {"q": {"a": 1}})
    query = np.asarray([[0.0, 1.0]], dtype=np.float32)
    found = {key: rankings["q"] for key, rankings in rank_fusions(query_set, collection, query, query, depth=4).items()}
    assert found["hybrid_base", "1.00"] == ["c", "b", "d", "a"]
    assert found["hybrid_tuned", "1.00"] == ["b", "c", "a", "d"]
    assert set(found["hybrid_base", "0.00"][:2]) == {"a", "c"}
    # By ranks: c is first and second, b is second of one, a fourth and first, d third of one.
    assert found["hybrid_base", "RRF"] == ["c", "a", "b", "d"]
    scores = measure_fusions(query_set, collection, query, query, SETTINGS)
    rows = FUSION_WEIGHTS.frame(fusion_rows("dev", scores, (0.5, 0.0)))
    validate(rows, FUSION_WEIGHTS)
    chosen = rows.filter("chosen").select("system", "dense_weight").rows()
    assert chosen == [("hybrid_base", 0.5), ("hybrid_tuned", 0.0)]


def test_a_weight_that_is_set_between_the_steps_is_measured_too() -> None:
    collection = Collection(tuple("abcd"), TEXTS, tuple("wxyz"), VECTORS, VECTORS[::-1].copy(), BM25(TEXTS))
    query_set = QuerySet("dev", {"q": "red"}, {"q": {"a": 1}})
    fixed = Settings.model_validate({"evaluation": {"hybrid_dense_weight": 0.333}})
    query = np.asarray([[0.0, 1.0]], dtype=np.float32)
    scores = measure_fusions(query_set, collection, query, query, fixed)
    rows = FUSION_WEIGHTS.frame(fusion_rows("dev", scores, choose_weights(scores, fixed)))
    assert rows.filter("chosen")["dense_weight"].to_list() == [0.333, 0.333]


def results(name: str, **gains: float) -> SetResult:
    """Two hundred questions; each system's nDCG@10 is the base's and its gain, give or take a little."""
    generator = np.random.default_rng(5)
    base = generator.uniform(0.2, 0.6, 200)
    scores = {}
    for system in SYSTEMS:
        noise = generator.normal(0, 0.05, 200)
        values = base + gains.get(system, 0) + noise - noise.mean()
        scores[system] = QueryScores((("nDCG", 10),), values[:, None])
    return SetResult(QuerySet(name, {"q": "x"}, {"q": {"a": 1}}), {}, scores, {})


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ({}, "keep the base"),
        ({"tuned": 0.1, "hybrid_base": 0.02, "hybrid_tuned": 0.1}, "deploy tuned"),
        ({"tuned": 0.1, "hybrid_base": 0.1, "hybrid_tuned": 0.1}, "deploy BM25 + base"),
        ({"tuned": 0.1, "hybrid_base": 0.1, "hybrid_tuned": 0.2}, "deploy BM25 + tuned"),
        ({"tuned": -0.1, "hybrid_base": -0.1, "hybrid_tuned": -0.1}, "keep the base"),
    ],
)
def test_the_least_work_that_nothing_beats_is_advised(gains: dict[str, float], says: str) -> None:
    (sentence,) = advise([results("people", **gains), results("generated", tuned=0.3)], SETTINGS)
    assert sentence.startswith(f"people: {says}, nDCG@10 0.")
    assert "BM25 + tuned against BM25 + base: " in sentence


def test_generated_questions_advise_where_there_are_no_others() -> None:
    (sentence,) = advise([results("generated", tuned=0.3)], SETTINGS)
    assert sentence.startswith("generated: deploy tuned")
