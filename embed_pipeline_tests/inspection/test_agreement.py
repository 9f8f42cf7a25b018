"""Judge and reviewers: shares with intervals, and what other thresholds would do."""

from __future__ import annotations

import pytest

from embed_pipeline import tables
from embed_pipeline.inspection.agreement import (
    Share,
    agreement_failures,
    judged_pairs,
    measure_agreement,
    threshold_curves,
)
from embed_pipeline.reviews import fold_reviews, review_row
from embed_pipeline.settings import Gates, Synthesis
from embed_pipeline_tests.inspection.material import filled
from embed_pipeline_tests.synthesis import material

SYNTHESIS = Synthesis()
# Clarity of ten pairs; the threshold is 6, so that six of them pass.
CLARITY = [9, 9, 8, 8, 7, 7, 5, 5, 4, 4]


def judged(reviews):
    scores = tables.QA_SCORES.frame([material.score_row(f"q{n}", clarity=float(c)) for n, c in enumerate(CLARITY)])
    ranks = [{"qa_id": f"q{n}", "overall": 9.0, "round_trip_rank": 1 + 60 * (n == 0)} for n in range(len(CLARITY))]
    return judged_pairs(scores, filled(tables.QA_DECISIONS, *ranks), fold_reviews(reviews), SYNTHESIS)


def said(**actions):
    rows = [review_row(key, action, "Eva") for key, action in actions.items()]
    return tables.QA_REVIEWS.frame(rows)


def test_thresholds_are_held_against_people():
    reviews = said(q1="accept", q2="accept", q3="reject", q6="reject", q7="accept", q8="reject", q9="withdraw")
    found = measure_agreement(judged(reviews), reviews)
    assert (found.agree.count, found.agree.total) == (4, 6)
    assert (found.too_kind.count, found.too_kind.total) == (1, 3)
    assert (found.too_strict.count, found.too_strict.total) == (1, 3)
    assert found.kappa == pytest.approx(1 / 3)
    low, high = found.agree.interval
    assert low < 4 / 6 < high
    assert found.between.total == 0


def test_edited_pairs_say_nothing_of_the_judge_and_reviewers_are_compared():
    rows = [
        review_row("q1", "edit", "Eva", question="In other words?"),
        review_row("q2", "accept", "Eva"),
        review_row("q2", "accept", "Ivo"),
        review_row("q3", "accept", "Eva"),
        review_row("q3", "reject", "Ivo"),
    ]
    reviews = tables.QA_REVIEWS.frame(rows)
    found = measure_agreement(judged(reviews), reviews)
    assert found.agree.total == 2
    assert (found.between.count, found.between.total) == (1, 2)


def test_no_reviews_are_no_figures():
    found = measure_agreement(judged(None), tables.QA_REVIEWS.empty())
    assert (found.agree.value, found.kappa, found.agree.interval) == (None, None, (0.0, 1.0))
    failures, figures = agreement_failures(found, Gates())
    assert failures == []
    assert {name for name, value in figures.items() if value is not None} == {"reviewed_pairs", "min_judge_agreement"}


def test_a_bound_is_moved_alone():
    reviews = said(q1="accept", q6="accept", q8="reject")
    curves = {curve.setting: curve for curve in threshold_curves(judged(reviews), SYNTHESIS)}
    clarity = {point.bound: point for point in curves["synthesis.min_clarity"].points}
    # The first is turned away by its rank, whatever its clarity.
    assert [clarity[bound].accepted.count for bound in (1, 4.5, 6, 8.5, 10)] == [9, 7, 5, 1, 0]
    assert [clarity[bound].agree.count for bound in (1, 5, 6, 10)] == [2, 3, 2, 1]
    assert (clarity[1].good.count, clarity[1].good.total, clarity[10].good.value) == (2, 3, None)
    ranks = {point.bound: point for point in curves["synthesis.max_round_trip_rank"].points}
    assert (ranks[50].accepted.count, ranks[100].accepted.count) == (5, 6)
    assert curves["synthesis.min_clarity"].now == SYNTHESIS.min_clarity


@pytest.mark.parametrize(("agree", "total", "fails"), [(1, 2, False), (3, 20, True), (15, 20, False), (0, 0, False)])
def test_the_check_fails_only_where_it_is_sure(agree, total, fails):
    reviews = said(q1="accept")
    found = measure_agreement(judged(reviews), reviews)
    found = type(found)(Share(agree, total), found.too_kind, found.too_strict, found.between)
    failures, figures = agreement_failures(found, Gates())
    assert bool(failures) == fails
    assert figures["reviewed_pairs"] == total
    assert ("agreement_low" in figures) == bool(total)
