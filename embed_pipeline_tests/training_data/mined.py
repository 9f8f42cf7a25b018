"""Rows of hard negatives, made by hand."""

from __future__ import annotations

import polars as pl

from embed_pipeline import tables


def mined(*rows: dict[str, object]) -> pl.DataFrame:
    """Rows of ``hard_negatives``, each with what it says and usual values for the rest."""
    usual: dict[str, object] = {
        "qa_id": "a",
        "origin": "generated",
        "question": "what is it",
        "positive_segment_ids": ["s0"],
        "positive_similarities": [0.8],
        "ceiling": 0.76,
        "negative_segment_ids": ["s8", "s9"],
        "negative_similarities": [0.7, 0.5],
        "labelled_negatives": 0,
        "above_ceiling": 0,
        "answering_segment_ids": [],
        "cross_check": "",
    }
    return tables.HARD_NEGATIVES.frame([usual | row for row in rows])
