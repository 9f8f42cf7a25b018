"""Pairs of a batch to scores: one verdict each, with the measured signals beside it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.llm.budget import Usage
from embed_pipeline.llm.client import open_client
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.judge import NoVerdict, ask_judge
from embed_pipeline.synthesis.measured_judge import Verdict, judge_by_measure
from embed_pipeline.synthesis.pairs import Reject, reject_rows
from embed_pipeline.synthesis.prompts import JUDGE_PROMPTS, prompt_version
from embed_pipeline.synthesis.signals import measure_round_trip
from embed_pipeline.synthesis.words import form_problem, inverse_document_frequency, overlap

MEASURED = "measured"


@dataclass(frozen=True)
class Scoring:
    """Scores of a batch, judgements that were none, and what they cost."""

    scores: pl.DataFrame
    rejects: pl.DataFrame
    usage: Usage


@dataclass(frozen=True)
class _Signals:
    ranks: list[int]
    answer_cosines: list[float]
    groundings: list[float]
    overlaps: list[float]
    problems: list[str | None]


def score_pairs(
    batch: str, pairs: pl.DataFrame, segments: pl.DataFrame, settings: Settings, encoder: Encoder
) -> Scoring:
    """Judge every pair: by the judge model at an endpoint, by measure for the embedded model.

    Args:
        batch: name of the batch.
        pairs: frame of :data:`tables.QA_PAIRS`.
        segments: frame of :data:`tables.SEGMENTS` of the same batch.
        settings: the product's settings.
        encoder: the base model.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """
    if pairs.is_empty():
        return Scoring(tables.QA_SCORES.empty(), tables.REJECTED_PAIRS.empty(), Usage())
    texts = dict(segments.select("segment_id", "text").iter_rows())
    signals = _measure(pairs, texts, encoder)
    usage = Usage()
    if settings.llm.embedded:
        judge = MEASURED
        verdicts: list[Verdict | NoVerdict] = list(_measured_verdicts(pairs, texts, signals, settings))
    else:
        judge = settings.llm.judge_model or settings.llm.model
        verdicts, usage = asyncio.run(_asked_verdicts(pairs, texts, settings))
    rows = []
    rejects = []
    for index, (pair, verdict) in enumerate(zip(pairs.iter_rows(named=True), verdicts, strict=True)):
        if isinstance(verdict, NoVerdict):
            detail = f"{verdict.reason}: {verdict.detail}"
            rejects.append(Reject(tuple(pair["segment_ids"]), "no_verdict", detail, verdict.raw))
            continue
        rows.append(
            {
                "qa_id": pair["qa_id"],
                "batch": batch,
                **dict(zip(tables.CRITERIA, verdict.scores, strict=True)),
                **{f"{n}_justification": j for n, j in zip(tables.CRITERIA, verdict.justifications, strict=True)},
                "overall": round(verdict.overall, 4),
                "judge": judge,
                "round_trip_rank": signals.ranks[index],
                "grounding": signals.groundings[index],
                "lexical_overlap": signals.overlaps[index],
                "well_formed": signals.problems[index] is None,
            }
        )
    made_by = {"generator": judge, "prompt_version": prompt_version(*JUDGE_PROMPTS)}
    return Scoring(
        tables.QA_SCORES.frame(rows), tables.REJECTED_PAIRS.frame(reject_rows(rejects, batch, made_by)), usage
    )


def _measure(pairs: pl.DataFrame, texts: dict[str, str], encoder: Encoder) -> _Signals:
    questions = pairs["question"].to_list()
    sources = pairs["segment_ids"].to_list()
    trip = measure_round_trip(questions, sources, texts, encoder)
    answers = encoder.encode(pairs["answer"].to_list(), "passage", label="Encoding answers")
    joined = ["\n".join(texts[key] for key in keys) for keys in sources]
    return _Signals(
        ranks=trip.ranks,
        answer_cosines=[float(c) for c in np.einsum("ij,ij->i", trip.question_vectors, answers)],
        groundings=[overlap(a, text) for a, text in zip(pairs["answer"], joined, strict=True)],
        overlaps=[overlap(q, text) for q, text in zip(questions, joined, strict=True)],
        problems=[form_problem(question) for question in questions],
    )


def _measured_verdicts(
    pairs: pl.DataFrame, texts: dict[str, str], signals: _Signals, settings: Settings
) -> list[Verdict]:
    idf = inverse_document_frequency(texts.values())
    return [
        judge_by_measure(
            question,
            rank=signals.ranks[index],
            bound_rank=settings.synthesis.max_round_trip_rank,
            answer_cosine=signals.answer_cosines[index],
            grounding=signals.groundings[index],
            overlap=signals.overlaps[index],
            problem=signals.problems[index],
            idf=idf,
        )
        for index, question in enumerate(pairs["question"])
    ]


async def _asked_verdicts(
    pairs: pl.DataFrame, texts: dict[str, str], settings: Settings
) -> tuple[list[Verdict | NoVerdict], Usage]:
    async with open_client(settings.llm, settings.paths.store / "responses.sqlite") as client:
        return await ask_judge(pairs.to_dicts(), texts, settings, client), client.usage
