"""Which pairs are accepted, and why the others are not."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.reviews import ReviewVerdict
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.select import Selection, select_pairs
from embed_pipeline_tests.synthesis import material

LAMP = "What does a red lamp on the pump mean?"


def _select(
    encoder: Encoder,
    pairs: list[dict[str, Any]],
    scores: list[dict[str, Any]],
    corpus: pl.DataFrame | None = None,
    reviewed: dict[str, ReviewVerdict] | None = None,
    **synthesis: Any,
) -> Selection:
    batches = sorted({row["batch"] for row in pairs})
    by_batch = {batch: material.pairs(*(row for row in pairs if row["batch"] == batch)) for batch in batches}
    scored = {batch: tables.QA_SCORES.frame([row for row in scores if row["batch"] == batch]) for batch in batches}
    settings = Settings.model_validate({"synthesis": {"near_duplicate_similarity": 0.999, **synthesis}})
    whole = material.corpus() if corpus is None else corpus
    return select_pairs(by_batch, scored, whole, settings, encoder, reviewed=reviewed or {})


def _reasons(selection: Selection) -> dict[str, str]:
    return dict(selection.decisions.select("qa_id", "reason").iter_rows())


def test_good_pairs_are_accepted_with_the_rank_over_the_whole_corpus(encoder: Encoder) -> None:
    rows = [material.pair_row("q1", LAMP, "s2"), material.pair_row("q2", "When are invoices sent each month?", "s4")]
    selection = _select(encoder, rows, [material.score_row("q1", round_trip_rank=55), material.score_row("q2")])
    assert selection.dataset["qa_id"].to_list() == ["q1", "q2"]
    assert selection.dataset["round_trip_rank"].to_list() == [1, 1]
    assert _reasons(selection) == {"q1": "accepted", "q2": "accepted"}
    assert selection.decisions["detail"].to_list() == ["", ""]


@pytest.mark.parametrize("criterion", [*CRITERIA, "overall"])
def test_each_threshold_turns_away_and_says_by_how_much(encoder: Encoder, criterion: str) -> None:
    selection = _select(encoder, [material.pair_row("q1", LAMP, "s2")], [material.score_row("q1", **{criterion: 5.5})])
    assert selection.dataset.is_empty()
    bound = 7 if criterion == "overall" else 6
    assert selection.decisions.select("reason", "detail").row(0) == (criterion, f"5.5, bound {bound}")


def test_a_question_that_does_not_find_its_source_is_turned_away(encoder: Encoder) -> None:
    corpus = material.corpus({**material.TEXTS, **{f"x{n}": f"red lamp pump mean {n}" for n in range(8)}})
    selection = _select(
        encoder, [material.pair_row("q1", "red lamp pump mean", "s4")], [material.score_row("q1")], corpus,
        max_round_trip_rank=3,
    )  # fmt: skip
    assert _reasons(selection) == {"q1": "round_trip_rank"}
    assert selection.decisions["detail"][0].endswith(", bound 3")


def test_a_pair_with_a_hop_that_is_not_needed_is_turned_away(encoder: Encoder) -> None:
    rows = [material.pair_row("q1", "Does a red lamp of the pump add to the fee?", "s2", "s5")]
    selection = _select(encoder, rows, [material.score_row("q1", hops_needed=False, hop_need=0.1)])
    assert _reasons(selection) == {"q1": "hop_not_needed"}


def test_of_the_same_question_the_better_scored_stays_across_batches(encoder: Encoder) -> None:
    rows = [
        material.pair_row("q1", LAMP, "s2"),
        material.pair_row("q2", "what does a RED lamp on  the pump mean?", "s3", batch="b2"),
        material.pair_row("q3", "When are invoices sent each month?", "s4"),
    ]
    scores = [material.score_row("q1", overall=8.0), material.score_row("q2", batch="b2"), material.score_row("q3")]
    selection = _select(encoder, rows, scores)
    assert selection.dataset["qa_id"].to_list() == ["q2", "q3"]
    loser = selection.decisions.filter(qa_id="q1").row(0, named=True)
    assert (loser["reason"], loser["duplicate_of"], loser["detail"]) == ("duplicate", "q2", "the same words")


def test_near_duplicates_are_one_question_and_chains_do_not_swallow_the_rest(encoder: Encoder) -> None:
    rows = [
        material.pair_row("q1", LAMP, "s2"),
        material.pair_row("q2", LAMP.replace("mean?", "mean ?"), "s2"),
        material.pair_row("q3", "When are invoices sent each month?", "s4"),
    ]
    selection = _select(encoder, rows, [material.score_row(f"q{n}") for n in (1, 2, 3)], near_duplicate_similarity=0.98)
    assert _reasons(selection)["q2"] == "duplicate"
    assert selection.decisions.filter(qa_id="q2")["detail"][0].startswith("similarity ")
    assert selection.dataset["qa_id"].to_list() == ["q1", "q3"]


def test_a_pair_turned_away_hides_no_duplicate(encoder: Encoder) -> None:
    rows = [material.pair_row("q1", LAMP, "s2"), material.pair_row("q2", LAMP.upper(), "s3")]
    selection = _select(encoder, rows, [material.score_row("q1", clarity=2.0), material.score_row("q2")])
    assert _reasons(selection) == {"q1": "clarity", "q2": "accepted"}


def test_pairs_of_segments_that_are_gone_drop_out(encoder: Encoder) -> None:
    rows = [material.pair_row("q1", LAMP, "s2"), material.pair_row("q2", "Is the red lamp on an invoice?", "s2", "s4")]
    corpus = material.corpus().filter(pl.col("segment_id") != "s4")
    selection = _select(encoder, rows, [material.score_row("q1"), material.score_row("q2")], corpus)
    assert selection.decisions["qa_id"].to_list() == ["q1"]


def test_pairs_without_a_score_and_none_at_all_give_empty_tables(encoder: Encoder) -> None:
    selection = _select(encoder, [material.pair_row("q1", LAMP, "s2")], [])
    assert selection.dataset.is_empty()
    empty = select_pairs({}, {}, material.corpus(), Settings(), encoder)
    assert empty.decisions.is_empty()


def test_the_order_of_the_rows_changes_nothing(encoder: Encoder) -> None:
    rows = [material.pair_row(f"q{n}", f"What does lamp {n} on the pump mean?", "s2") for n in range(6)]
    scores = [material.score_row(f"q{n}") for n in range(6)]
    forward = _select(encoder, rows, scores, near_duplicate_similarity=0.9)
    backward = _select(encoder, rows[::-1], scores[::-1], near_duplicate_similarity=0.9)
    assert forward.dataset.equals(backward.dataset)
    assert forward.decisions.equals(backward.decisions)


def test_what_people_decided_holds_instead_of_every_rule(encoder: Encoder) -> None:
    rows = [
        material.pair_row("q1", LAMP, "s2"),
        material.pair_row("q2", "Who changes the filter?", "s3"),
        material.pair_row("q3", LAMP, "s3"),
        material.pair_row("q4", "When are invoices sent each month?", "s4"),
    ]
    scores = [
        material.score_row("q1"), material.score_row("q2", clarity=1.0), material.score_row("q3", overall=1.0),
        material.score_row("q4", relevance=1.0),
    ]  # fmt: skip
    reviewed = {
        "q1": ReviewVerdict(accepted=False, reviewer="Eva"),
        "q2": ReviewVerdict(accepted=True, question="Who comes to change it?", reviewer="Ivo"),
        "q3": ReviewVerdict(accepted=True, reviewer="Eva"),
        "q4": ReviewVerdict(positives=frozenset({"s1"}), reviewer="Eva"),
    }
    selection = _select(encoder, rows, scores, reviewed=reviewed)
    told = {row["qa_id"]: (row["accepted"], row["reason"], row["detail"]) for row in selection.decisions.to_dicts()}
    assert told == {
        "q1": (False, "reviewer", "rejected by Eva"),
        "q2": (True, "accepted", "by Ivo"),
        "q3": (True, "accepted", "by Eva"),
        "q4": (False, "relevance", "1, bound 6"),
    }
    asked = dict(selection.dataset.select("qa_id", "question").iter_rows())
    assert asked == {"q2": "Who comes to change it?", "q3": LAMP}


def test_a_pair_that_people_accept_comes_before_its_better_scored_copies(encoder: Encoder) -> None:
    rows = [material.pair_row(f"q{n}", LAMP, f"s{n}") for n in (1, 2, 3)]
    scores = [material.score_row(f"q{n}", overall=7.0 + n / 2) for n in (1, 2, 3)]
    reviewed = {name: ReviewVerdict(accepted=True, reviewer="Eva") for name in ("q1", "q2")}
    selection = _select(encoder, rows, scores, reviewed=reviewed)
    assert _reasons(selection) == {"q1": "accepted", "q2": "accepted", "q3": "duplicate"}
