"""How much of BM25 a corpus wants: each fusion with a dense model is measured, and a weight is chosen on dev questions.

Generated questions repeat more of their passage's words than people's do, which favours BM25. The weight chosen is
therefore the most dense one that is within a standard error of the best (Breiman and others 1984), and where people's
questions are at hand, the same curve over them shows what the choice costs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.enumerations import HYBRIDS, RECIPROCAL_RANKS
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.evaluation.ranking import FUSIONS, Collection, rank_fusions, score_rankings
from embed_pipeline.settings import Settings

logger = logging.getLogger(__name__)
Floats = NDArray[np.float32]
Scores = Mapping[tuple[str, str], NDArray[np.float64]]
"""(hybrid, fusion) to nDCG@10 of every query, float64 (queries,)."""

UNTUNED_WEIGHT = 0.65
"""Dense weight without dev questions to choose it on."""
_MOST_QUERIES = 500


def measure_fusions(
    query_set: QuerySet, collection: Collection, base: Floats, tuned: Floats, settings: Settings
) -> Scores:
    """nDCG@10 of every fusion of BM25 with both models, on at most 500 of the queries, a seeded sample.

    Args:
        query_set: the queries, in the order of ``query_set.ids``.
        collection: what is searched.
        base: the queries under the base model, float32 (queries, d), unit rows.
        tuned: the queries under the tuned model, float32 (queries, d'), unit rows.
        settings: the seed.
    """
    ids = query_set.ids
    rows = np.sort(np.random.default_rng(settings.seed).permutation(len(ids))[:_MOST_QUERIES])
    queries = {ids[row]: query_set.queries[ids[row]] for row in rows}
    qrels = {query: query_set.qrels[query] for query in queries}
    sampled = QuerySet(query_set.name, queries, qrels, query_set.unit)
    fusions = dict(FUSIONS)
    wanted = settings.evaluation.hybrid_dense_weight
    if wanted != "auto" and wanted not in FUSIONS.values():
        fusions[repr(wanted)] = wanted
    ranked = rank_fusions(sampled, collection, base[rows], tuned[rows], depth=10, fusions=fusions)
    return {key: score_rankings(rankings, qrels, (10,)).column("nDCG", 10) for key, rankings in ranked.items()}


def choose_weights(dev: Scores | None, settings: Settings) -> tuple[float, float]:
    """The dense weights of the hybrids with the base and with the tuned model.

    Args:
        dev: every fusion on the dev questions; None: there are none.
        settings: ``evaluation.hybrid_dense_weight``, which is taken as it is where it is a number.
    """
    wanted = settings.evaluation.hybrid_dense_weight
    if wanted != "auto":
        return wanted, wanted
    if dev is None:
        logger.info("hybrid: no dev questions to choose its weight on; the dense weight is %s", UNTUNED_WEIGHT)
        return UNTUNED_WEIGHT, UNTUNED_WEIGHT
    base, tuned = (_most_dense_of_the_best(dev, hybrid) for hybrid in HYBRIDS)
    return base, tuned


def _most_dense_of_the_best(scores: Scores, hybrid: str) -> float:
    weighted = {weight: scores[hybrid, fusion] for fusion, weight in FUSIONS.items() if weight is not None}
    best = max(weighted.values(), key=np.mean)
    for weight, values in weighted.items():
        lost = best - values
        spread = float(lost.std(ddof=1)) if len(lost) > 1 else 0.0
        if lost.mean() <= spread / np.sqrt(len(lost)):
            return weight
    return max(weighted, key=lambda weight: weighted[weight].mean())


def fusion_rows(query_set: str, scores: Scores, weights: tuple[float, float]) -> list[dict[str, object]]:
    """Rows of table ``fusion_weights`` for one query set.

    Args:
        query_set: its name.
        scores: every fusion on it.
        weights: the weights chosen, as :func:`choose_weights` returns them.
    """
    chosen = dict(zip(HYBRIDS, weights, strict=True))
    return [
        {
            "query_set": query_set,
            "system": hybrid,
            "fusion": fusion,
            "dense_weight": weight,
            "queries": len(values),
            "ndcg_10": float(values.mean()),
            "chosen": weight == chosen[hybrid],
        }
        for (hybrid, fusion), values in scores.items()
        for weight in [None if fusion == RECIPROCAL_RANKS else float(fusion)]
    ]
