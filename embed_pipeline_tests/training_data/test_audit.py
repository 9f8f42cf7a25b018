"""The audit's figures, and the checks that forbid training on wrong negatives."""

from __future__ import annotations

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.training_data.audit import (
    HARDEST_COLUMNS,
    audit_negatives,
    estimate_false_negatives,
    full_share,
    negatives_failures,
)
from embed_pipeline_tests.training_data import material
from embed_pipeline_tests.training_data.material import prose, settings
from embed_pipeline_tests.training_data.mined import mined


def corpus(count: int = 10) -> pl.DataFrame:
    frame = material.corpus({f"s{i}": [prose(i)] for i in range(count)})
    return frame.with_columns(segment_id=pl.col("path"))


def test_sound_negatives_have_no_failures():
    assert negatives_failures(mined({}), corpus(), settings()) == []
    assert negatives_failures(tables.HARD_NEGATIVES.empty(), corpus(), settings()) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"negative_similarities": [0.77, 0.5]}, "a negative above the ceiling"),
        ({"negative_similarities": [0.77, 0.5], "ceiling": 0.9}, "a negative above the ceiling"),
        ({"negative_segment_ids": ["s0", "s9"]}, "a positive among the negatives"),
        ({"negative_segment_ids": ["s9", "s9"]}, "repeated negatives"),
        ({"negative_segment_ids": ["s7", "s8", "s9"], "negative_similarities": [0.5] * 3}, "more than num_negatives"),
        ({"negative_segment_ids": ["s9"]}, "negatives without a similarity"),
        ({"negative_segment_ids": ["s9", "x"]}, "a segment that is not in the corpus"),
        ({"positive_segment_ids": ["x"]}, "a segment that is not in the corpus"),
        ({"positive_similarities": [-0.5], "negative_similarities": [-0.51, -0.6]}, "a negative above the ceiling"),
    ],
)
def test_each_broken_rule_is_named(row, problem):
    failures = negatives_failures(mined(row, {"qa_id": "b", "question": "other"}), corpus(), settings())
    assert len(failures) == 1
    assert failures[0].startswith("1 question has")
    assert problem in failures[0]
    assert failures[0].endswith("first 'a'")


@pytest.mark.parametrize("text", [prose(0), prose(0) + " with more words"])
def test_a_duplicate_of_a_positive_is_a_failure(text):
    copied = corpus().with_columns(text=pl.when(pl.col("path") == "s9").then(pl.lit(text)).otherwise("text"))
    assert "a positive's duplicate" in negatives_failures(mined({}), copied, settings())[0]


def test_a_positive_of_the_same_question_elsewhere_is_a_failure():
    rows = mined({}, {"qa_id": "b", "question": "What is it?", "positive_segment_ids": ["s9"]})
    failures = negatives_failures(rows, corpus(), settings())
    assert failures == ["2 questions have a positive among the negatives, first 'a'"]


def test_the_share_of_questions_with_all_their_negatives():
    rows = mined(
        {}, *({"qa_id": f"x{i}", "negative_segment_ids": ["s8"], "negative_similarities": [0.5]} for i in range(3))
    )
    assert full_share(rows, settings().training_data.num_negatives) == 0.25
    assert full_share(tables.HARD_NEGATIVES.empty(), 1) == 1


@pytest.mark.slow
def test_figures():
    rows = mined({}, {"qa_id": "b", "origin": "title", "negative_segment_ids": [], "negative_similarities": []})
    audit = audit_negatives(rows, corpus(), settings())
    assert audit.origins == {"generated": 1, "title": 1}
    assert (audit.examples, audit.negatives, audit.full_share) == (2, 2, 0.5)
    assert audit.ratios == pytest.approx([0.875, 0.625])
    assert audit.mean_ratio == pytest.approx(0.75)


def test_the_hardest_come_first():
    marked = corpus().with_columns(text=pl.when(pl.col("path") == "s8").then(pl.lit("a | b\n<i>")).otherwise("text"))
    rows = mined({"negative_similarities": [0.3, 0.2]}, {"qa_id": "b", "question": "the harder"})
    hardest = audit_negatives(rows, marked, settings()).hardest
    assert [len(row) for row in hardest] == [len(HARDEST_COLUMNS)] * 2
    assert hardest[0][:2] == ("the harder", "generated")
    assert "a | b\n<i>" in hardest[0]
    assert hardest[0][-1] == "0.800 / 0.700"


def test_a_negative_that_words_and_vectors_point_to_is_suspected():
    texts = {f"s{i}": prose(i) for i in range(10)} | {"s8": "the yield statement of python", "s0": "a yield"}
    asked = {"question": "python yield statement", "positive_similarities": [0.7], "negative_similarities": [0.65, 0.5]}
    (suspected,) = mined(asked).to_dicts()
    (far,) = mined(asked | {"negative_similarities": [0.5, 0.4]}).to_dicts()
    (unlike,) = mined(asked | {"negative_segment_ids": ["s7", "s8"]}).to_dicts()
    found = estimate_false_negatives([suspected, far, unlike], texts, seed=1)
    assert (found.sampled, found.suspected) == (3, 1)
    nearer = {f"n{i}": "python yield statement" for i in range(2)} | {
        "n2": "statement yield python",
        "n3": "yield python statement",
    }
    assert estimate_false_negatives([suspected], texts | nearer, seed=1).suspected == 0
    assert found.low < found.rate < found.high
    assert estimate_false_negatives([], texts, seed=1).rate is None
    assert estimate_false_negatives([far] * 5, texts, seed=1, sampled=2).sampled == 2
