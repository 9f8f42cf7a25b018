from __future__ import annotations

from typing import Any

import pytest

from embed_pipeline.synthesis.judge import Judgement, judge_by_measure

GOOD: dict[str, Any] = {
    "rank": 1, "bound_rank": 20, "answer_cosine": 0.8, "grounding": 1.0, "overlap": 1.0, "problem": None,
    "idf": {"lamp": 4.0},
}  # fmt: skip
QUESTION = "What does a red lamp on the pump mean?"


def _judge(question: str = QUESTION, **changes: Any) -> Judgement:
    return judge_by_measure(question, **GOOD | changes)


def test_a_pair_that_measures_well_has_ten_everywhere() -> None:
    assert _judge().scores == (10, 10, 10, 10)
    assert _judge().overall == 10


@pytest.mark.parametrize(("rank", "score"), [(1, 10), (20, 6), (21, 5.93), (101, 3.84)])
def test_relevance_falls_with_the_rank_and_is_six_at_the_bound(rank: int, score: float) -> None:
    verdict = _judge(rank=rank)
    assert verdict.scores[0] == pytest.approx(score, abs=0.01)
    assert f"rank {rank}" in verdict.justifications[0]


@pytest.mark.parametrize(("cosine", "score"), [(0.7, 10), (0.39, 6.01), (0.0, 1), (-0.5, 1)])
def test_accuracy_follows_the_cosine_of_question_and_answer(cosine: float, score: float) -> None:
    assert _judge(answer_cosine=cosine).scores[1] == pytest.approx(score, abs=0.01)


def test_support_is_the_mean_of_both_shares() -> None:
    assert _judge(grounding=1.0, overlap=0.5).scores[2] == pytest.approx(7.75)
    assert _judge(grounding=0.0, overlap=0.0).scores[2] == 1


def test_clarity_is_form_length_and_a_specific_word() -> None:
    assert _judge(problem="refers_to_text").scores[3] == 1
    assert _judge("What is the lamp?").scores[3] == 7
    assert _judge("What does the usual thing do for it?").scores[3] == 7
    assert _judge("What is the thing?").scores[3] == 4
    assert _judge("red lamp", style="keywords").scores[3] == 10
    assert _judge("What is the thing?").justifications[3] == "short; names nothing specific"


def test_any_rank_of_a_bound_of_one_is_scored() -> None:
    assert _judge(rank=1, bound_rank=1).scores[0] == 10
    assert _judge(rank=101, bound_rank=1).scores[0] == 1
