"""The measures of a generated set and their worst examples."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.settings import Gates, Synthesis
from embed_pipeline.synthesis import quality as checks
from embed_pipeline_tests.synthesis import material


def _dataset(*rows: dict[str, Any]) -> pl.DataFrame:
    more = {"origin": "generated", "label_set": None, "side": None, "overall": 9.0, "round_trip_rank": 1}
    names = tables.QA_DATASET.schema.names()
    return tables.QA_DATASET.frame([{name: (row | more)[name] for name in names} for row in rows])


def _decision(qa_id: str, reason: str = "accepted", **changes: Any) -> dict[str, Any]:
    row = {"qa_id": qa_id, "batch": "b1", "question": f"Question {qa_id}?", "accepted": reason == "accepted"}
    row |= {"reason": reason, "detail": "", "overall": 9.0, "round_trip_rank": 1, "duplicate_of": None}
    return {**row, **changes}


def _decisions(*rows: dict[str, Any]) -> pl.DataFrame:
    return tables.QA_DECISIONS.frame(list(rows))


ONE = material.pair_row("q1", "What does a red lamp mean?", "s2")
TWO = material.pair_row("q2", "Does a red lamp add to the fee?", "s2", "s5")


def test_accepted_pairs_are_counted_with_the_reasons_of_the_others() -> None:
    decisions = _decisions(
        _decision("q1"), *(_decision(f"c{n}", "clarity") for n in range(3)), _decision("r", "overall")
    )
    check = checks.accepted_pairs(_dataset(ONE), decisions, Gates(min_accepted_pairs=2))
    assert (check.value, check.bound, check.passed) == (1, 2, False)
    assert check.worst.rows() == [("clarity", 3), ("overall", 1)]
    assert checks.accepted_pairs(_dataset(ONE), decisions, Gates(min_accepted_pairs=1)).passed


def test_yield_is_a_mean_over_all_documents_and_shows_the_poorest() -> None:
    corpus = material.corpus({**material.TEXTS, "x": "Another document."})
    check = checks.yield_per_document(_dataset(ONE, TWO), corpus, Gates())
    assert check.value == pytest.approx(2 / 3)
    assert not check.passed
    assert check.worst.rows() == [("d9.md", 0, 1), ("d2.md", 1, 2), ("d1.md", 2, 3)]


def test_acceptance_shows_the_best_that_were_turned_down() -> None:
    decisions = _decisions(
        _decision("q1"),
        _decision("q2", "clarity", overall=6.0, detail="5, bound 6"),
        _decision("q3", "round_trip_rank", overall=8.0),
    )
    check = checks.acceptance_rate(decisions, Gates(min_acceptance_rate=0.5))
    assert check.value == pytest.approx(1 / 3)
    assert not check.passed
    assert check.worst["qa_id"].to_list() == ["q3", "q2"]
    assert checks.acceptance_rate(_decisions(), Gates()).value == 0


def test_the_mix_is_held_against_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "STRUCTURAL_SHARE", 0.0)
    synthesis = Synthesis(multi_hop_share=1.0, max_hops=2, reasoning_types={"factual": 1})
    as_asked = checks.asked_mix(_dataset(ONE, TWO), synthesis, Gates())
    assert (as_asked.value, as_asked.passed) == (0, True)
    missing = checks.asked_mix(_dataset(ONE), synthesis, Gates())
    assert (missing.value, missing.passed) == (0.5, False)
    assert set(missing.worst.filter(pl.col("off") == 0.5)["value"]) == {"multi_hop", "contextual", "1", "2"}
    unasked = checks.asked_mix(_dataset({**ONE, "reasoning_type": "causal"}, TWO), synthesis, Gates())
    assert unasked.worst.row(0)[:4] == ("reasoning_type", "causal", 0.0, 0.5)
    assert not checks.asked_mix(_dataset(), synthesis, Gates()).passed


def test_the_poorest_criterion_is_named_by_its_examples() -> None:
    scores = tables.QA_SCORES.frame(
        [material.score_row("q1", clarity=2.0, clarity_justification="vague"), material.score_row("q2", clarity=6.0)]
    )
    check = checks.mean_scores(scores, material.pairs(ONE, TWO), Gates())
    assert (check.value, check.passed) == (4.0, False)
    assert check.worst.row(0) == ("q1", 2.0, "vague", ONE["question"])


def test_duplicates_stand_beside_what_was_kept() -> None:
    decisions = _decisions(
        _decision("q1"),
        _decision("q2", "duplicate", duplicate_of="q1", detail="the same words"),
        _decision("q3", "clarity"),
    )
    check = checks.duplicate_rate(decisions, Gates(max_duplicate_rate=0.4))
    assert (check.value, check.passed) == (0.5, False)
    assert check.worst.rows() == [("q2", "Question q2?", "Question q1?", "the same words")]


def test_coverage_counts_segments_with_a_question() -> None:
    check = checks.segment_coverage(_dataset(ONE, TWO), material.corpus(), Gates(min_segment_coverage=0.5))
    assert (check.value, check.passed) == (0.4, False)
    assert check.worst.rows() == [("d1.md", 2), ("d2.md", 1)]
    assert checks.segment_coverage(_dataset(), material.corpus(), Gates()).value == 0


def test_round_trip_is_a_share_at_ten() -> None:
    decisions = _decisions(*(_decision(f"q{rank}", round_trip_rank=rank) for rank in (1, 10, 11, 101)))
    check = checks.round_trip_rate(decisions, Gates(min_round_trip_rate=0.6))
    assert (check.value, check.passed) == (0.5, False)
    assert check.worst["qa_id"].to_list()[:2] == ["q101", "q11"]


def test_ten_examples_are_enough() -> None:
    decisions = _decisions(*(_decision(f"q{n:02}", "clarity") for n in range(30)))
    assert checks.acceptance_rate(decisions, Gates()).worst.height == 10
