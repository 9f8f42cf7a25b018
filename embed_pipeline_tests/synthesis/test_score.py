"""Scores of a batch, and the round trip that they rest on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Embedding, Settings
from embed_pipeline.synthesis import score
from embed_pipeline.synthesis.score import SEARCH_DEPTH, measure_round_trip, score_pairs
from embed_pipeline_tests.stub_endpoint import stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]
PAIRS = material.pairs(
    material.pair_row("q1", "What does a red lamp on the pump mean?", "s2"),
    material.pair_row("q2", "Does a red lamp of the pump add two percent to the invoice?", "s2", "s5"),
    material.pair_row("q3", "pump filter technician", "s3", style="keywords"),
)


def test_the_measured_judge_speaks_for_the_embedded_model(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.model_validate({"paths": {"store": tmp_path}})
    scoring = score_pairs("b1", PAIRS, material.segments(), settings, encoder)
    assert scoring.rejects.is_empty()
    assert scoring.usage.calls == 0
    assert scoring.scores["judge"].to_list() == ["measured"] * 3
    assert scoring.scores["bm25_rank"].to_list() == [1, 2, 1]
    assert scoring.scores["well_formed"].to_list() == [True] * 3
    assert scoring.scores["hop_need"].to_list()[::2] == [1, 1]
    assert scoring.scores["hops_needed"].to_list() == [True] * 3
    assert scoring.scores["grounding"].min() == 1
    monkeypatch.setattr(score, "LEAST_HOP_NEED", 0.9)
    needed = score_pairs("b1", PAIRS, material.segments(), settings, encoder).scores["hops_needed"]
    assert needed.to_list() == [True, False, True]


def test_the_judge_model_speaks_at_an_endpoint_with_the_signals_beside(
    encoder: Encoder, make_settings: MakeSettings
) -> None:
    with stub_endpoint(material.respond) as stub:
        settings = make_settings(stub.base_url, llm={"judge_model": "strict"})
        scoring = score_pairs("b1", PAIRS, material.segments(), settings, encoder)
    assert scoring.scores["judge"].unique().to_list() == ["strict"]
    assert scoring.scores["overall"].to_list() == [8.5] * 3
    assert scoring.scores["relevance_justification"][0] == "It stands there."
    assert scoring.usage.calls == len(stub.requests) == 4, "three verdicts, and the hops of the multi-hop pair"
    assert scoring.scores["bm25_rank"].to_list() == [1, 2, 1]


def test_hops_are_measured_where_the_judge_is_not_to_be_asked(
    encoder: Encoder, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "LEAST_HOP_NEED", 0.9)
    with stub_endpoint(material.respond) as stub:
        settings = make_settings(stub.base_url, check_hops=False)
        scoring = score_pairs("b1", PAIRS, material.segments(), settings, encoder)
    assert len(stub.requests) == 3
    assert scoring.scores["hops_needed"].to_list() == [True, False, True]


@pytest.mark.parametrize("score", ["9/10", 11, float("nan"), None])
def test_a_judgement_that_is_none_is_rejected_with_its_raw_text(
    encoder: Encoder, make_settings: MakeSettings, score: object
) -> None:
    def respond(request: dict[str, Any]) -> str:
        said = request["messages"][1]["content"]
        return material.judge_pair(score) if "technician" in said else material.respond(request)

    with stub_endpoint(respond) as stub:
        scoring = score_pairs("b1", PAIRS, material.segments(), make_settings(stub.base_url), encoder)
    assert scoring.scores["qa_id"].to_list() == ["q1", "q2"]
    (reject,) = scoring.rejects.iter_rows(named=True)
    assert (reject["reason"], reject["segment_ids"]) == ("no_verdict", ["s3"])
    assert reject["detail"].startswith("q3: invalid_answer: ")
    assert reject["raw"] == material.judge_pair(score)


def test_an_unusable_word_on_the_hops_rejects_the_pair(encoder: Encoder, make_settings: MakeSettings) -> None:
    def respond(request: dict[str, Any]) -> str:
        checks = request["messages"][0]["content"].startswith("You check")
        return '{"segments": []}' if checks else material.respond(request)

    with stub_endpoint(respond) as stub:
        scoring = score_pairs("b1", PAIRS, material.segments(), make_settings(stub.base_url), encoder)
    assert scoring.scores["qa_id"].to_list() == ["q1", "q3"]
    assert scoring.rejects["detail"][0].startswith("q2: ")


def test_no_pairs_are_no_scores(encoder: Encoder, make_settings: MakeSettings) -> None:
    scoring = score_pairs("b1", tables.QA_PAIRS.empty(), material.segments(), make_settings(), encoder)
    assert scoring.scores.is_empty()
    assert scoring.rejects.is_empty()


class _Fixed:
    """An encoder whose vectors are given: a query is close to the passage of the same first letter."""

    def encode(self, texts: list[str], kind: str, label: str | None = None) -> np.ndarray:
        vectors = np.eye(26, dtype=np.float32)
        return vectors[[ord(text[0].lower()) - ord("a") for text in texts]]


TEXTS = {"x1": "a pump", "x2": "b lamp", "x3": "c valve", "x4": "b lamp"}


def test_a_rank_is_the_better_of_both_searches_for_the_worst_source() -> None:
    questions = ["a lamp?", "c nothing?", "b valve?"]
    trip = measure_round_trip(questions, [["x1", "x2"], ["x3"], ["x3", "x4"]], TEXTS, _Fixed())
    assert trip.dense_ranks == [2, 1, 3]
    assert trip.bm25_ranks == [SEARCH_DEPTH + 1, SEARCH_DEPTH + 1, SEARCH_DEPTH + 1]
    assert trip.ranks == [1, 1, 1]


@pytest.mark.slow
def test_segments_of_the_same_text_share_their_rank(encoder: Encoder) -> None:
    texts = {**material.TEXTS, "copy": material.TEXTS["s2"]}
    trip = measure_round_trip(["What does a red lamp on the pump mean?"] * 2, [["s2"], ["copy"]], texts, encoder)
    assert trip.ranks[0] == trip.ranks[1] == 1
    assert trip.bm25_ranks == [1, 1]
    assert trip.question_vectors.shape == (2, encoder.dimensions)


def test_what_is_searched_is_the_passage_and_copies_share_their_rank() -> None:
    passages = {"x1": "a pump", "x2": "b lamp", "x3": "c valve", "x4": "d lamp, of another title"}
    trip = measure_round_trip(["d lamp?", "b lamp?"], [["x2"], ["x4"]], TEXTS, _Fixed(), passages=passages)
    assert trip.dense_ranks == [1, 1]
    alone = {**TEXTS, "x4": "another lamp"}
    assert measure_round_trip(["d lamp?"], [["x2"]], alone, _Fixed(), passages=passages).dense_ranks[0] > 1


@pytest.mark.parametrize("context", ["title", "path"])
def test_pairs_are_searched_in_passages_with_their_context(
    encoder: Encoder, make_settings: MakeSettings, context: str
) -> None:
    segments = material.segments().with_columns(title=pl.lit("Pumps"), heading_path=pl.lit("Care"))
    settings = make_settings(judge="measured").model_copy(update={"embedding": Embedding(context=context)})
    seen: list[str] = []

    class _Seeing:
        def encode(self, texts: list[str], kind: str, label: str | None = None) -> np.ndarray:
            seen.extend(texts if label == "Encoding segments" else ())
            return encoder.encode(texts, kind)

    score_pairs("b1", PAIRS, segments, settings, _Seeing())
    head = {"title": "Pumps", "path": "Pumps > Care"}[context]
    assert sorted(seen) == sorted(f"{head}\n\n{text}" for text in material.TEXTS.values())
