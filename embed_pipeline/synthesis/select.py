"""Scored pairs of all batches to the accepted set: thresholds, round trip over the whole corpus, no question twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings, Synthesis
from embed_pipeline.synthesis.signals import measure_round_trip

ACCEPTED = "accepted"


@dataclass(frozen=True)
class Selection:
    """The accepted pairs, and a decision for every scored pair."""

    dataset: pl.DataFrame
    decisions: pl.DataFrame


def select_pairs(
    pairs: Mapping[str, pl.DataFrame],
    scores: Mapping[str, pl.DataFrame],
    corpus: pl.DataFrame,
    settings: Settings,
    encoder: Encoder,
) -> Selection:
    """Decide on every pair whose source segments are all in the present corpus.

    The first rule that a pair fails is its reason: a score under its threshold, a round-trip rank over the
    corpus above ``max_round_trip_rank``, or a better-scored pair that asks the same.

    Args:
        pairs: frame of :data:`tables.QA_PAIRS` for each batch.
        scores: frame of :data:`tables.QA_SCORES` for each batch.
        corpus: frame of :data:`tables.CORPUS`.
        settings: the product's settings.
        encoder: the base model.
    """
    present = set(corpus["segment_id"])
    everything = pl.concat([pairs[b] for b in sorted(pairs)]) if pairs else tables.QA_PAIRS.empty()
    verdicts = pl.concat([scores[b] for b in sorted(scores)]) if scores else tables.QA_SCORES.empty()
    joined = (
        everything.join(verdicts, on=["qa_id", "batch"], how="inner")
        .unique("qa_id", keep="last", maintain_order=True)
        .filter(pl.col("segment_ids").list.eval(pl.element().is_in(list(present))).list.all())
        .sort("qa_id")
    )
    if joined.is_empty():
        return Selection(tables.QA_DATASET.empty(), tables.QA_DECISIONS.empty())
    texts = dict(corpus.select("segment_id", "text").iter_rows())
    trip = measure_round_trip(joined["question"].to_list(), joined["segment_ids"].to_list(), texts, encoder)
    reasons = [_threshold_failed(row, settings.synthesis) for row in joined.iter_rows(named=True)]
    for index, rank in enumerate(trip.ranks):
        if reasons[index] is None and rank > settings.synthesis.max_round_trip_rank:
            reasons[index] = "round_trip_rank"
    overall = joined["overall"].to_list()
    twins = _find_twins(joined, trip.question_vectors, reasons, settings.synthesis.near_duplicate_similarity)
    decisions = tables.QA_DECISIONS.frame(
        [
            {
                "qa_id": row["qa_id"],
                "batch": row["batch"],
                "question": row["question"],
                "accepted": reasons[index] is None and index not in twins,
                "reason": reasons[index] or ("duplicate" if index in twins else ACCEPTED),
                "overall": overall[index],
                "round_trip_rank": trip.ranks[index],
                "duplicate_of": joined["qa_id"][twins[index]] if index in twins else None,
            }
            for index, row in enumerate(joined.iter_rows(named=True))
        ]
    )
    ranked = joined.with_columns(pl.Series("round_trip_rank", trip.ranks, dtype=pl.Int64))
    accepted = ranked.filter(decisions["accepted"]).select(tables.QA_DATASET.schema.names())
    return Selection(tables.validate(accepted, tables.QA_DATASET), decisions)


def _threshold_failed(row: Mapping[str, float], synthesis: Synthesis) -> str | None:
    bounds = {name: getattr(synthesis, f"min_{name}") for name in (*tables.CRITERIA, "overall")}
    return next((name for name, bound in bounds.items() if row[name] < bound), None)


def _find_twins(
    pairs: pl.DataFrame, vectors: np.ndarray, reasons: list[str | None], similarity: float
) -> dict[int, int]:
    """Row of each near-duplicate question to the row of the better pair that stays (first by id among equals)."""
    order = sorted(
        (index for index, reason in enumerate(reasons) if reason is None),
        key=lambda index: (-pairs["overall"][index], index),
    )
    kept: list[int] = []
    exact: dict[str, int] = {}
    twins: dict[int, int] = {}
    for index in order:
        asked = " ".join(pairs["question"][index].lower().split())
        if asked in exact:
            twins[index] = exact[asked]
            continue
        if kept:
            closeness = vectors[kept] @ vectors[index]
            nearest = int(closeness.argmax())
            if closeness[nearest] > similarity:
                twins[index] = kept[nearest]
                continue
        exact[asked] = index
        kept.append(index)
    return twins
