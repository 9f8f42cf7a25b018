"""Unrolling: one example for each positive, siblings with the same negatives."""

from __future__ import annotations

from embed_pipeline import tables
from embed_pipeline.training_data.negatives import unroll
from embed_pipeline_tests.training_data.mined import mined


def test_a_question_becomes_one_example_for_each_positive():
    frame = mined(
        {"qa_id": "b", "positive_segment_ids": ["s2", "s1"], "positive_similarities": [0.7, 0.6]},
        {"qa_id": "a", "positive_segment_ids": ["s3"], "positive_similarities": [0.9]},
    )
    rows = unroll(frame).to_dicts()
    assert [(row["qa_id"], row["positive_segment_id"], row["positive_similarity"]) for row in rows] == [
        ("a", "s3", 0.9),
        ("b", "s2", 0.7),
        ("b", "s1", 0.6),
    ]
    assert rows[1]["negative_segment_ids"] == rows[2]["negative_segment_ids"] == ["s8", "s9"]
    assert len({row["example_id"] for row in rows}) == 3
    assert unroll(frame).equals(unroll(frame.reverse()))


def test_no_questions_no_examples():
    assert unroll(tables.HARD_NEGATIVES.empty()).equals(tables.TRAINING_EXAMPLES.empty())
