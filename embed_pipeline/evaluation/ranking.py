"""Rankings of every system for a query set, and their metrics through ir-measures.

The systems are base, tuned, BM25, and BM25's hybrids with both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.search import BM25, hybrid_scores, mix_standardized, standardized, top_indices
from embed_pipeline.enumerations import ALL_RECALL, HYBRIDS, METRICS, RECIPROCAL_RANKS
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.progress import progress

Floats = NDArray[np.float32]
Key = TypeVar("Key", bound=Hashable)
_BLOCK_BYTES = 64 * 1024 * 1024

RANK_CONSTANT = 60
_FUSED_RANKS = 1000
FUSIONS: Mapping[str, float | None] = {
    **{f"{share / 100:.2f}": share / 100 for share in range(100, -1, -5)},
    RECIPROCAL_RANKS: None,
}
"""How BM25 is fused with a dense model: name to dense weight, the most dense first; None: by reciprocal ranks."""


@dataclass(frozen=True)
class Collection:
    """What is searched, and its vectors under both models.

    Attributes:
        ids: passage ids.
        texts: passage texts, in the order of ``ids``.
        documents: path of the document that each passage belongs to.
        base: unit vectors under the base model, float32 (passages, d).
        tuned: unit vectors under the tuned model, float32 (passages, d').
        bm25: the lexical index.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    documents: tuple[str, ...]
    base: Floats
    tuned: Floats
    bm25: BM25


@dataclass
class Ranked:
    """One system's answers to a query set.

    Attributes:
        rankings: query id to item ids, best first; items are segments or documents as the set's unit says.
        first: query id to the passage ranked first; ``""`` where a lexical system finds none.
        first_scores: query id to that passage's score.
    """

    rankings: dict[str, list[str]] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    first_scores: dict[str, float] = field(default_factory=dict)


def rank_set(
    query_set: QuerySet,
    collection: Collection,
    base: Floats,
    tuned: Floats,
    *,
    depth: int,
    dense_weights: tuple[float, float],
) -> dict[str, Ranked]:
    """Rank the collection for every query under every system.

    Scores of all passages are computed, block by block of queries, so that a document's best passage and the
    hybrid's normalisation are exact.

    Args:
        query_set: the queries, in the order of ``query_set.ids``.
        collection: what is searched.
        base: the queries under the base model, float32 (queries, d), unit rows.
        tuned: the queries under the tuned model, float32 (queries, d'), unit rows.
        depth: length of each ranking.
        dense_weights: share of the dense z-score in the hybrid with the base and in that with the tuned model.
    """

    def fuse(dense: tuple[Floats, Floats], lexical: Floats) -> dict[str, Floats]:
        fused = (hybrid_scores(row, lexical, weight) for row, weight in zip(dense, dense_weights, strict=True))
        return {"base": dense[0], "tuned": dense[1], "bm25": lexical, **dict(zip(HYBRIDS, fused, strict=True))}

    return _rank_rows(query_set, collection, (base, tuned), fuse, depth=depth, label=f"Ranking {query_set.name}")


def rank_fusions(
    query_set: QuerySet,
    collection: Collection,
    base: Floats,
    tuned: Floats,
    *,
    depth: int,
    fusions: Mapping[str, float | None] = FUSIONS,
) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Rank the collection for every query by each fusion of BM25 with the base and with the tuned model.

    Args:
        query_set: the queries, in the order of ``query_set.ids``.
        collection: what is searched.
        base: the queries under the base model, float32 (queries, d), unit rows.
        tuned: the queries under the tuned model, float32 (queries, d'), unit rows.
        depth: length of each ranking.
        fusions: name of each fusion to its dense weight; None: by reciprocal ranks.

    Returns:
        (hybrid, name of the fusion) to query id to item ids, best first.
    """

    def fuse(dense: tuple[Floats, Floats], lexical: Floats) -> dict[tuple[str, str], Floats]:
        words, fused = standardized(lexical), {}
        for hybrid, row in zip(HYBRIDS, dense, strict=True):
            meaning = standardized(row)
            for fusion, weight in fusions.items():
                mixed = _reciprocal_ranks(row, lexical) if weight is None else mix_standardized(meaning, words, weight)
                fused[hybrid, fusion] = mixed
        return fused

    label = f"Ranking {query_set.name} by every fusion"
    ranked = _rank_rows(query_set, collection, (base, tuned), fuse, depth=depth, label=label)
    return {key: found.rankings for key, found in ranked.items()}


def _rank_rows(
    query_set: QuerySet,
    collection: Collection,
    queries: tuple[Floats, Floats],
    fuse: Callable[[tuple[Floats, Floats], Floats], Mapping[Key, Floats]],
    *,
    depth: int,
    label: str,
) -> dict[Key, Ranked]:
    """Rank the collection by every row of scores that ``fuse`` makes of a query's scores under each model and BM25."""
    ranker = _UnitRanker(query_set, collection.ids, collection.documents)
    ranked: defaultdict[Key, Ranked] = defaultdict(Ranked)
    with progress(label, len(query_set), "query") as bar:
        for query, dense, lexical in _score_rows(query_set, collection, *queries):
            for key, scores in fuse(dense, lexical).items():
                ranker.rank(ranked[key], query, scores, depth, lexical=key == "bm25")
            bar.advance()
    return dict(ranked)


def rank_by_model(
    query_set: QuerySet, ids: Sequence[str], documents: Sequence[str], passages: Floats, queries: Floats, *, depth: int
) -> dict[str, list[str]]:
    """One model's rankings: query id to item ids, best first.

    Args:
        query_set: the queries, in the order of ``query_set.ids``.
        ids: passage ids.
        documents: path of the document that each passage belongs to.
        passages: unit vectors of the passages, float32 (passages, d).
        queries: unit vectors of the queries, float32 (queries, d).
        depth: length of each ranking.
    """
    ranker, ranked = _UnitRanker(query_set, ids, documents), Ranked()
    size = max(1, _BLOCK_BYTES // (4 * len(ids)))
    for start in range(0, len(queries), size):
        block = queries[start : start + size] @ passages.T
        for query, scores in zip(query_set.ids[start : start + size], block, strict=True):
            ranker.rank(ranked, query, scores, depth, lexical=False)
    return ranked.rankings


def _reciprocal_ranks(dense: Floats, lexical: Floats) -> Floats:
    """Sum of the reciprocal ranks of each passage in two rankings (Cormack and others 2009), each 1,000 deep."""
    fused = np.zeros_like(dense)
    for scores in (dense, lexical):
        best = top_indices(scores, min(_FUSED_RANKS, len(scores)))
        best = best[scores[best] > 0] if scores is lexical else best
        fused[best] += 1 / (RANK_CONSTANT + np.arange(1, len(best) + 1, dtype=np.float32))
    return fused


def _score_rows(
    query_set: QuerySet, collection: Collection, base: Floats, tuned: Floats
) -> Iterator[tuple[str, tuple[Floats, Floats], Floats]]:
    """Query id and its scores of all passages, float32 (passages,): under base and tuned model, and under BM25."""
    size = max(1, _BLOCK_BYTES // (4 * len(collection.ids)))
    ids = query_set.ids
    for start in range(0, len(ids), size):
        base_block = base[start : start + size] @ collection.base.T
        tuned_block = tuned[start : start + size] @ collection.tuned.T
        for row, query in enumerate(ids[start : start + size]):
            lexical = collection.bm25.scores(query_set.queries[query])
            yield query, (base_block[row], tuned_block[row]), lexical


class _UnitRanker:
    """Turns passage scores into rankings of segments or of documents, as the query set asks."""

    def __init__(self, query_set: QuerySet, ids: Sequence[str], documents: Sequence[str]) -> None:
        self._ids = ids
        self._by_document = query_set.unit == "document"
        places = {passage: place for place, passage in enumerate(ids)} if query_set.itself else {}
        self._itself = {query: places[passage] for query, passage in query_set.itself.items()}
        if self._by_document:
            names, self._document_of = np.unique(np.asarray(documents, dtype=object), return_inverse=True)
            self._names: list[str] = [str(name) for name in names]
            self._order = np.argsort(self._document_of, kind="stable")
            self._starts = np.searchsorted(self._document_of[self._order], np.arange(len(names)))

    def rank(self, ranked: Ranked, query: str, scores: Floats, depth: int, *, lexical: bool) -> None:
        """Add a query's ranking; a lexical system's passages of score 0 share no word and are no hits."""
        names = self._names if self._by_document else self._ids
        if query in self._itself:
            scores = scores.copy()
            scores[self._itself[query]] = -np.inf
        values = np.maximum.reduceat(scores[self._order], self._starts) if self._by_document else scores
        best = top_indices(values, min(depth, len(values)))
        best = best[values[best] > (0 if lexical else -np.inf)]
        ranked.rankings[query] = [names[place] for place in best]
        first = int(scores.argmax())
        ranked.first[query] = self._ids[first] if len(best) else ""
        ranked.first_scores[query] = float(scores[first])


@dataclass(frozen=True)
class QueryScores:
    """Metrics query by query.

    Attributes:
        columns: metric name and cut-off of each column.
        values: float64 (queries, columns), 0 to 1, rows in the order of the rankings; NaN: not measured.
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
    # trec_eval orders equal scores by id; scores made of ranks keep the given order.
    run = {query: {item: float(-rank) for rank, item in enumerate(items)} for query, items in rankings.items()}
    judged = {query: dict(qrels[query]) for query in rankings}
    for metric in ir_measures.iter_calc(list(measures), judged, run):
        values[rows[metric.query_id], measures[metric.measure]] = metric.value
    return QueryScores(columns, values)


def all_recall(rankings: Mapping[str, Sequence[str]], query_set: QuerySet, cutoffs: Sequence[int]) -> QueryScores:
    """Whether everything that a query needs is in the first k: All-Recall@k (Gutiérrez and others 2024, AR@k).

    A query needs its items of the highest grade, copies of one text counted once: the segments of all hops, or all
    documents that are judged best. Its mean is the share of queries for which a reader finds all of them.

    Args:
        rankings: query id to item ids, best first, at least ``max(cutoffs)`` of them where there are as many.
        query_set: the judgements, and the copies among them.
        cutoffs: values of k; 1 is left out, because no single item is all of several.

    Returns:
        1 or 0 for each query that needs two items or more; NaN for the others.
    """
    columns = tuple((ALL_RECALL, k) for k in cutoffs if k > 1)
    values = np.full((len(rankings), len(columns)), np.nan)
    for row, (query, items) in enumerate(rankings.items()):
        grades = query_set.qrels[query]
        needed = {query_set.copies.get(item, item) for item in grades if grades[item] == max(grades.values())}
        if len(needed) > 1:
            found = [query_set.copies.get(item, item) for item in items]
            values[row] = [needed <= set(found[:k]) for _, k in columns]
    return QueryScores(columns, values)


@dataclass(frozen=True)
class SetResult:
    """One query set, ranked and scored by every system.

    Attributes:
        query_set: the queries.
        ranked: the rankings of each system.
        scores: nDCG, Recall, Precision, MAP and MRR of each system.
        all_recall: All-Recall of each system; NaN for the same queries under each.
    """

    query_set: QuerySet
    ranked: dict[str, Ranked]
    scores: dict[str, QueryScores]
    all_recall: dict[str, QueryScores]

    @property
    def several(self) -> NDArray[np.int64]:
        """Rows of the queries that need two items or more."""
        return np.flatnonzero(~np.isnan(self.all_recall["base"].column(ALL_RECALL, 10)))
