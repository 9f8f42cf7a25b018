"""Pairs of a batch to scores: the measured signals of each pair, and one judgement."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.search import BM25, Hits, search
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.budget import Usage
from embed_pipeline.llm.client import generator_name, open_client
from embed_pipeline.llm.gathering import run_interruptibly
from embed_pipeline.llm.prompts import JUDGE_PROMPTS, prompt_version
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.judge import (
    Judgement,
    NoVerdict,
    ask_hops_needed,
    ask_judge,
    hop_need,
    judge_by_measure,
    plant_bad_pairs,
)
from embed_pipeline.synthesis.pairs import Reject, form_problem, reject_rows
from embed_pipeline.text.languages import AUTO
from embed_pipeline.text.passages import passages_by_id
from embed_pipeline.text.words import inverse_document_frequency, overlap, support

MEASURED = "measured"
PLANTED = "planted"
"""Reason of the rows of ``rejected_judgements`` that say what the judge made of planted bad pairs."""
LEAST_HOP_NEED = 0.15
"""Where the judge is not asked: the share of its question's rare words that each hop of a pair must hold alone."""
SEARCH_DEPTH = 100
"""Ranks looked at; a source that is not among them has rank ``SEARCH_DEPTH + 1``."""


@dataclass(frozen=True)
class Scoring:
    """Scores of a batch, judgements that were none, and what they cost."""

    scores: pl.DataFrame
    rejects: pl.DataFrame
    usage: Usage


@dataclass(frozen=True)
class _Signals:
    """What is measured of every pair, a list each in the order of the pairs."""

    dense_ranks: list[int]
    bm25_ranks: list[int]
    ranks: list[int]
    answer_cosines: list[float]
    answer_supports: list[float]
    groundings: list[float]
    overlaps: list[float]
    problems: list[str | None]
    hop_needs: list[float]
    idf: Mapping[str, float]


def score_pairs(
    batch: str, pairs: pl.DataFrame, segments: pl.DataFrame, settings: Settings, encoder: Encoder
) -> Scoring:
    """Judge every pair: by the judge model, by measure or by both, as ``synthesis.judge`` says.

    Args:
        batch: name of the batch.
        pairs: frame of :data:`tables.QA_PAIRS`.
        segments: frame of :data:`tables.SEGMENTS` of the same batch, with titles where
            ``embedding.context`` needs them.
        settings: the product's settings.
        encoder: the base model.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """
    if pairs.is_empty():
        return Scoring(tables.QA_SCORES.empty(), tables.REJECTED_PAIRS.empty(), Usage())
    texts = dict(segments.select("segment_id", "text").iter_rows())
    headings = segments["heading_path"].str.split(" > ").list.last()
    titled = {key: f"{heading}\n{texts[key]}" for key, heading in zip(segments["segment_id"], headings, strict=True)}
    passages = passages_by_id(segments, settings.embedding.context)
    trip = measure_round_trip(
        pairs["question"].to_list(),
        pairs["segment_ids"].to_list(),
        texts,
        encoder,
        passages=passages,
        language=settings.corpus.language,
    )
    signals = _measure(pairs, texts, titled, trip, encoder, language=settings.corpus.language)
    verdicts: list[Judgement | NoVerdict]
    asked: dict[str, bool | InvalidAnswer] = {}
    rejects: list[Reject] = []
    measured = _measured_verdicts(pairs, signals, settings)
    second = measured if settings.synthesis.judge == "both" else [None] * len(measured)
    if not settings.asks_judge:
        judge, usage = MEASURED, Usage()
        verdicts = list(measured)
    else:
        judge = settings.llm.judge_model or generator_name(settings.llm)
        verdicts, asked, rejects, usage = run_interruptibly(_asked_verdicts(pairs, texts, settings))
    rows = []
    for index, pair in enumerate(pairs.iter_rows(named=True)):
        verdict = verdicts[index]
        hops_needed = asked.get(pair["qa_id"], signals.hop_needs[index] >= LEAST_HOP_NEED)
        if isinstance(verdict, NoVerdict):
            rejects.append(_reject(pair, verdict.reason, verdict.detail, verdict.raw))
        elif isinstance(hops_needed, InvalidAnswer):
            rejects.append(_reject(pair, hops_needed.reason, str(hops_needed), hops_needed.raw))
        else:
            signs = _signs(signals, index)
            rows.append({"qa_id": pair["qa_id"], "batch": batch, **_scores(verdict), "judge": judge,
                         **_measured_scores(second[index]), **signs, "hops_needed": hops_needed})  # fmt: skip
    made_by = {"generator": judge, "prompt_version": prompt_version(*JUDGE_PROMPTS)}
    rejected = tables.REJECTED_PAIRS.frame(reject_rows(rejects, batch, made_by))
    return Scoring(tables.QA_SCORES.frame(rows), rejected, usage)


def _reject(pair: Mapping[str, Any], reason: str, detail: str, raw: str) -> Reject:
    return Reject(tuple(pair["segment_ids"]), "no_verdict", f"{pair['qa_id']}: {reason}: {detail}", raw)


def _scores(verdict: Judgement) -> dict[str, Any]:
    return {
        **dict(zip(CRITERIA, verdict.scores, strict=True)),
        **{f"{n}_justification": j for n, j in zip(CRITERIA, verdict.justifications, strict=True)},
        "overall": round(verdict.overall, 4),
    }


def _measured_scores(verdict: Judgement | None) -> dict[str, float | None]:
    """What is measured next to the judge's scores; nulls where only one of them speaks."""
    scores = (None,) * (len(CRITERIA) + 1) if verdict is None else (*verdict.scores, round(verdict.overall, 4))
    return {f"measured_{name}": score for name, score in zip((*CRITERIA, "overall"), scores, strict=True)}


def _signs(signals: _Signals, index: int) -> dict[str, Any]:
    return {
        "dense_rank": signals.dense_ranks[index],
        "bm25_rank": signals.bm25_ranks[index],
        "round_trip_rank": signals.ranks[index],
        "grounding": signals.groundings[index],
        "lexical_overlap": signals.overlaps[index],
        "well_formed": signals.problems[index] is None,
        "hop_need": round(signals.hop_needs[index], 4),
    }


def _measure(
    pairs: pl.DataFrame,
    texts: dict[str, str],
    titled: dict[str, str],
    trip: RoundTrip,
    encoder: Encoder,
    *,
    language: str,
) -> _Signals:
    questions = pairs["question"].to_list()
    sources = pairs["segment_ids"].to_list()
    answers = encoder.encode(pairs["answer"].to_list(), "passage", label="Encoding answers")
    joined = ["\n".join(texts[key] for key in keys) for keys in sources]
    idf = inverse_document_frequency(texts.values())
    # The first line of a titled text is its heading.
    under = [" ".join(titled[key].partition("\n")[0] for key in keys) for keys in sources]
    return _Signals(
        dense_ranks=trip.dense_ranks,
        bm25_ranks=trip.bm25_ranks,
        ranks=trip.ranks,
        answer_cosines=[float(c) for c in np.einsum("ij,ij->i", trip.question_vectors, answers)],
        answer_supports=[
            support(question, f"{heading} {answer}", idf)
            for question, heading, answer in zip(questions, under, pairs["answer"], strict=True)
        ],
        groundings=[overlap(a, text) for a, text in zip(pairs["answer"], joined, strict=True)],
        overlaps=[overlap(q, text) for q, text in zip(questions, joined, strict=True)],
        problems=[form_problem(q, style, language) for q, style in pairs.select("question", "style").iter_rows()],
        hop_needs=[hop_need(pair, titled, idf) for pair in pairs.iter_rows(named=True)],
        idf=idf,
    )


def _measured_verdicts(pairs: pl.DataFrame, signals: _Signals, settings: Settings) -> list[Judgement]:
    return [
        judge_by_measure(
            question,
            rank=signals.ranks[index],
            bound_rank=settings.synthesis.max_round_trip_rank,
            answer_cosine=signals.answer_cosines[index],
            answer_support=signals.answer_supports[index],
            grounding=signals.groundings[index],
            overlap=signals.overlaps[index],
            problem=signals.problems[index],
            idf=signals.idf,
            style=style,
        )
        for index, (question, style) in enumerate(pairs.select("question", "style").iter_rows())
    ]


async def _asked_verdicts(
    pairs: pl.DataFrame, texts: dict[str, str], settings: Settings
) -> tuple[list[Judgement | NoVerdict], dict[str, bool | InvalidAnswer], list[Reject], Usage]:
    rows = pairs.to_dicts()
    planted = plant_bad_pairs(rows)
    async with open_client(settings.llm, settings.paths.responses) as client:
        verdicts = await ask_judge(rows, texts, settings, client)
        joined = [row for row in rows if row["hop_count"] > 1] if settings.synthesis.check_hops else []
        needed = await ask_hops_needed(joined, texts, settings, client)
        found = await ask_judge(planted, texts, settings, client, label="Judging planted bad pairs")
        tried = [_planted(*both) for both in zip(planted, found, strict=True)]
        return verdicts, dict(zip((row["qa_id"] for row in joined), needed, strict=True)), tried, client.usage


def _planted(pair: Mapping[str, Any], verdict: Judgement | NoVerdict) -> Reject:
    """What the judge made of a planted bad pair, as a row that the check of the judge reads."""
    overall = None if isinstance(verdict, NoVerdict) else round(verdict.overall, 4)
    raw = json.dumps({"kind": pair["planted"], "overall": overall, "question": pair["question"]}, ensure_ascii=False)
    # Both, so that the row goes with either document that is forgotten.
    segments = dict.fromkeys([*pair.get("source_ids", ()), *pair["segment_ids"]])
    return Reject(tuple(segments), PLANTED, f"{pair['qa_id']} as {pair['planted']}", raw)


@dataclass(frozen=True)
class RoundTrip:
    """Searches the questions over a set of segments, by the base model and by BM25.

    Attributes:
        ranks: for each question, the worst over its sources of the better of both ranks, from 1.
        dense_ranks: the worst rank of its sources under the base model.
        bm25_ranks: the same under BM25.
        question_vectors: unit vectors, shape (questions, d).
    """

    ranks: list[int]
    dense_ranks: list[int]
    bm25_ranks: list[int]
    question_vectors: np.ndarray


def measure_round_trip(
    questions: Sequence[str],
    sources: Sequence[Sequence[str]],
    segments: Mapping[str, str],
    encoder: Encoder,
    *,
    passages: Mapping[str, str] | None = None,
    language: str = AUTO,
) -> RoundTrip:
    """Search every question over the distinct passages of ``segments``.

    Args:
        questions: the questions.
        sources: for each question, the segment ids that it was written from; all must be in ``segments``.
        segments: segment id to text; ids of the same text share their rank.
        encoder: the base model.
        passages: segment id to the text that is searched; None: the segments' own texts.
        language: ``corpus.language``.
    """
    searched = segments if passages is None else passages
    texts = list(dict.fromkeys(searched[key] for key in sorted(segments)))
    read = {segments[key] for ids in sources for key in ids}
    keys = [key for key, text in segments.items() if text in read]
    wanted = {searched[key] for key in keys}
    number = {text: index for index, text in enumerate(texts) if text in wanted}
    places: defaultdict[str, set[int]] = defaultdict(set)
    for key in keys:
        places[segments[key]].add(number[searched[key]])
    vectors = encoder.encode(questions, "query", label="Encoding questions")
    depth = min(SEARCH_DEPTH, len(texts))
    # The passages' vectors are gone before their words are indexed.
    dense = _ranks(search(vectors, encoder.encode(texts, "passage", label="Encoding segments"), depth))
    lexical = _ranks(BM25(texts, language, questions).search(questions, depth))
    missing = SEARCH_DEPTH + 1
    trip = RoundTrip([], [], [], vectors)
    for row, ids in enumerate(sources):
        copies = [places[segments[key]] for key in ids]
        by_model = [min(dense[row].get(place, missing) for place in same) for same in copies]
        by_words = [min(lexical[row].get(place, missing) for place in same) for same in copies]
        trip.dense_ranks.append(max(by_model))
        trip.bm25_ranks.append(max(by_words))
        trip.ranks.append(max(map(min, by_model, by_words)))
    return trip


def _ranks(hits: Hits) -> list[dict[int, int]]:
    return [{int(i): rank for rank, i in enumerate(row, start=1) if i >= 0} for row in hits.indices]
