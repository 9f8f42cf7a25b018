"""Scored pairs of all batches to the accepted set: thresholds, round trip over the whole corpus, no question twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.enumerations import CRITERIA, GENERATED
from embed_pipeline.reviews import ReviewVerdict, apply_edits
from embed_pipeline.settings import Settings, Synthesis
from embed_pipeline.synthesis.score import measure_round_trip
from embed_pipeline.text.passages import passages_by_id

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
    *,
    reviewed: Mapping[str, ReviewVerdict] = MappingProxyType({}),
) -> Selection:
    """Decide on every pair whose source segments are all in the present corpus.

    The first rule that a pair fails is its reason: a score under its threshold (where both judges spoke, either's), a
    hop that is not needed, a round-trip rank over the corpus above ``max_round_trip_rank``, or a better-scored pair
    that asks the same. Where people decided, that holds instead of every rule, and the words are those that they gave
    the pair.

    Args:
        pairs: frame of :data:`tables.QA_PAIRS` for each batch.
        scores: frame of :data:`tables.QA_SCORES` for each batch.
        corpus: frame of :data:`tables.CORPUS`.
        settings: the product's settings.
        encoder: the base model.
        reviewed: pair to what people said of it.
    """
    everything = pl.concat([pairs[b] for b in sorted(pairs)]) if pairs else tables.QA_PAIRS.empty()
    verdicts = pl.concat([scores[b] for b in sorted(scores)]) if scores else tables.QA_SCORES.empty()
    joined = (
        everything.join(verdicts, on=["qa_id", "batch"], how="inner")
        .unique("qa_id", keep="last", maintain_order=True)
        .filter(pl.col("segment_ids").list.eval(pl.element().is_in(corpus["segment_id"].to_list())).list.all())
        .sort("qa_id")
    )
    if joined.is_empty():
        return Selection(tables.QA_DATASET.empty(), tables.QA_DECISIONS.empty())
    joined = apply_edits(joined, reviewed)
    texts = dict(corpus.select("segment_id", "text").iter_rows())
    context = settings.embedding.context
    passages = None if context == "none" else passages_by_id(corpus, context)
    trip = measure_round_trip(
        joined["question"].to_list(),
        joined["segment_ids"].to_list(),
        texts,
        encoder,
        passages=passages,
        language=settings.corpus.language,
    )
    said = [reviewed.get(qa_id, ReviewVerdict()) for qa_id in joined["qa_id"]]
    failures = [
        _failure(row, rank, settings.synthesis) if verdict.accepted is None else _refusal(verdict)
        for row, rank, verdict in zip(joined.iter_rows(named=True), trip.ranks, said, strict=True)
    ]
    passed = [index for index, failure in enumerate(failures) if failure is None]
    vouched = {index: verdict.reviewer for index, verdict in enumerate(said) if verdict.accepted}
    closest = settings.synthesis.near_duplicate_similarity
    twins = _find_duplicates(joined, trip.question_vectors, passed, closest, vouched)
    decisions = _decisions(joined, trip.ranks, failures, twins, vouched)
    nothing = pl.lit(None, pl.String)
    ranked = joined.with_columns(
        pl.Series("round_trip_rank", trip.ranks, dtype=pl.Int64),
        origin=pl.lit(GENERATED),
        label_set=nothing,
        side=nothing,
    )
    accepted = ranked.filter(decisions["accepted"]).select(tables.QA_DATASET.schema.names())
    return Selection(tables.validate(accepted, tables.QA_DATASET), decisions)


def _refusal(verdict: ReviewVerdict) -> tuple[str, str] | None:
    """What a person decided, in place of the rules."""
    return None if verdict.accepted else ("reviewer", f"rejected by {verdict.reviewer}")


def _failure(row: Mapping[str, Any], rank: int, synthesis: Synthesis) -> tuple[str, str] | None:
    """The first rule that a pair fails, as (reason, detail)."""
    for name in (*CRITERIA, "overall"):
        bound = getattr(synthesis, f"min_{name}")
        for said, score in (("", row[name]), ("measured ", row[f"measured_{name}"])):
            if score is not None and score < bound:
                return name, f"{said}{score:g}, bound {bound:g}"
    if not row["hops_needed"]:
        return "hop_not_needed", f"one of {row['hop_count']} hops is not, says {row['judge']}; need {row['hop_need']:g}"
    if rank > synthesis.max_round_trip_rank:
        return "round_trip_rank", f"{rank}, bound {synthesis.max_round_trip_rank}"
    return None


def _decisions(
    joined: pl.DataFrame,
    ranks: list[int],
    failures: list[tuple[str, str] | None],
    twins: Mapping[int, _Duplicate],
    vouched: Mapping[int, str],
) -> pl.DataFrame:
    rows = []
    for index, row in enumerate(joined.iter_rows(named=True)):
        twin = twins.get(index)
        by = f"by {vouched[index]}" if index in vouched else ""
        reason, detail = failures[index] or (("duplicate", twin.detail) if twin else (ACCEPTED, by))
        rows.append(
            {
                "qa_id": row["qa_id"],
                "batch": row["batch"],
                "question": row["question"],
                "accepted": reason == ACCEPTED,
                "reason": reason,
                "detail": detail,
                "overall": row["overall"],
                "round_trip_rank": ranks[index],
                "duplicate_of": joined["qa_id"][twin.kept] if twin else None,
            }
        )
    return tables.QA_DECISIONS.frame(rows)


@dataclass(frozen=True)
class _Duplicate:
    """The row of the better pair, and how close it is."""

    kept: int
    detail: str


def _find_duplicates(
    pairs: pl.DataFrame,
    vectors: NDArray[np.float32],
    passed: list[int],
    similarity: float,
    vouched: Collection[int],
) -> dict[int, _Duplicate]:
    """Rows of the questions that a better pair asks in the same or nearly the same words.

    The better pair has the higher score, or among equals the first id. Those that people accepted come before all
    others, and all of them stay.
    """
    overall = pairs["overall"]
    asked = [" ".join(question.lower().split()) for question in pairs["question"]]
    kept: list[int] = []
    kept_vectors = np.empty((len(passed), vectors.shape[1]), np.float32)
    exact: dict[str, int] = {}
    twins: dict[int, _Duplicate] = {}
    for index in sorted(passed, key=lambda index: (index not in vouched, -overall[index], index)):
        if asked[index] in exact and index not in vouched:
            twins[index] = _Duplicate(exact[asked[index]], "the same words")
            continue
        if kept and index not in vouched:
            closeness = kept_vectors[: len(kept)] @ vectors[index]
            nearest = int(closeness.argmax())
            if closeness[nearest] > similarity:
                twins[index] = _Duplicate(kept[nearest], f"similarity {closeness[nearest]:.4f}, bound {similarity:g}")
                continue
        kept_vectors[len(kept)] = vectors[index]
        exact.setdefault(asked[index], index)
        kept.append(index)
    return twins
