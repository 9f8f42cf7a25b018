"""Mined questions to training examples: one for each positive."""

from __future__ import annotations

import hashlib

import polars as pl

from embed_pipeline import tables


def unroll(hard_negatives: pl.DataFrame) -> pl.DataFrame:
    """A question with n positives becomes n examples, all with the same negatives; siblings share its qa_id.

    Unrolling comes after mining, so that the ceiling is that of the question's least similar positive and no
    sibling's positive is anyone's negative.

    Args:
        hard_negatives: frame of :data:`tables.HARD_NEGATIVES`.

    Returns:
        Frame of :data:`tables.TRAINING_EXAMPLES`, sorted by qa_id, positives in the question's order.
    """
    rows: list[dict[str, object]] = [
        {
            "example_id": hashlib.sha256(f"{row['qa_id']}\0{positive}".encode()).hexdigest()[:16],
            "qa_id": row["qa_id"],
            "origin": row["origin"],
            "question": row["question"],
            "positive_segment_id": positive,
            "negative_segment_ids": row["negative_segment_ids"],
            "positive_similarity": similarity,
            "negative_similarities": row["negative_similarities"],
        }
        for row in hard_negatives.sort("qa_id").iter_rows(named=True)
        for positive, similarity in zip(row["positive_segment_ids"], row["positive_similarities"], strict=True)
    ]
    return tables.TRAINING_EXAMPLES.frame(rows)
