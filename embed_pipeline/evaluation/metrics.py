"""Retrieval metrics of every query, through ir-measures (MacAvaney et al. 2022), which runs trec_eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.enumerations import METRICS


@dataclass(frozen=True)
class QueryScores:
    """Metrics query by query.

    Attributes:
        columns: metric name and cut-off of each column.
        values: float64 (queries, columns), 0 to 1, rows in the order of the rankings.
    """

    columns: tuple[tuple[str, int], ...]
    values: NDArray[np.float64]

    def column(self, metric: str, k: int) -> NDArray[np.float64]:
        """One metric, float64 (queries,)."""
        return self.values[:, self.columns.index((metric, k))]


def score_rankings(
    rankings: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]], cutoffs: Sequence[int]
) -> QueryScores:
    """nDCG, Recall, Precision, MAP and MRR at each cut-off for each ranking: MAP and MRR of AP@k and RR@k.

    Args:
        rankings: query id to item ids, best first, at least ``max(cutoffs)`` of them where there are as many.
        qrels: query id to item id to grade; every query of ``rankings`` must be judged.
        cutoffs: values of k.

    Raises:
        ValueError: naming a query that has no judgement.
    """
    import ir_measures

    unjudged = [query for query in rankings if not qrels.get(query)]
    if unjudged:
        message = f"query {unjudged[0]!r} has no judgement ({len(unjudged)} such queries)"
        raise ValueError(message)
    makers = dict(
        zip(METRICS, (ir_measures.nDCG, ir_measures.R, ir_measures.P, ir_measures.AP, ir_measures.RR), strict=True)
    )
    columns = tuple((metric, k) for metric in METRICS for k in cutoffs)
    measures = {makers[metric] @ k: place for place, (metric, k) in enumerate(columns)}
    rows = {query: row for row, query in enumerate(rankings)}
    values = np.zeros((len(rows), len(columns)), dtype=np.float64)
    # trec_eval breaks equal scores by id; scores made of ranks keep the order that was given.
    run = {query: {item: float(-rank) for rank, item in enumerate(items)} for query, items in rankings.items()}
    judged = {query: dict(qrels[query]) for query in rankings}
    for metric in ir_measures.iter_calc(list(measures), judged, run):
        values[rows[metric.query_id], measures[metric.measure]] = metric.value
    return QueryScores(columns, values)
