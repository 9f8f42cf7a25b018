"""The judges: measured scores, an LLM's verdict against a written rubric, and whether each hop is needed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from embed_pipeline.llm.answers import InvalidAnswer, exactly
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.prompts import delimit, plain_label
from embed_pipeline.settings import Settings
from embed_pipeline.text.injections import remove_instructions
from embed_pipeline.text.words import content_words, words

_GOOD_COSINE = 0.7
_SHORT_QUESTION_WORDS = 6
_SHORT_STYLES = ("keywords", "web_query", "title")
_RARE_IDF = 2.5
_REASON_CHARACTERS = 300
LEAST_JUDGED = 10
"""Pairs of a batch from which on the judge is tried on planted bad ones too."""
PLANTED_OF_A_KIND = 3
_COPIED_PROMPT = "What would a person who has not seen the documents ask of a search engine?"


@dataclass(frozen=True)
class Judgement:
    """Scores on 1-10 in the order of :data:`~embed_pipeline.enumerations.CRITERIA`, each with its reason."""

    scores: tuple[float, float, float, float]
    justifications: tuple[str, str, str, str]

    @property
    def overall(self) -> float:
        """Mean of the four scores."""
        return sum(self.scores) / len(self.scores)


def judge_by_measure(
    question: str,
    *,
    rank: int,
    bound_rank: int,
    answer_cosine: float,
    answer_support: float,
    grounding: float,
    overlap: float,
    problem: str | None,
    idf: Mapping[str, float],
    style: str = "question",
) -> Judgement:
    """Score one pair.

    Args:
        question: the question.
        rank: round-trip rank of its sources.
        bound_rank: ``synthesis.max_round_trip_rank``.
        answer_cosine: cosine of question and answer under the base model.
        answer_support: share of the question's content words, by rarity, that the answer and its heading say. It makes
            half of the accuracy: either measure alone rejects more good pairs and keeps more bad ones.
        grounding: share of the answer's content words in the sources.
        overlap: share of the question's content words in the sources.
        problem: what is wrong with the question's form, or None.
        idf: inverse document frequency of the corpus's content words.
        style: how the question is asked; keywords, web queries and titles may be short.
    """
    relevance = max(1.0, 10 - 4 * math.log(rank) / math.log(max(bound_rank, 2)))
    accuracy = 1 + 9 * (min(1.0, max(0.0, answer_cosine) / _GOOD_COSINE) + answer_support) / 2
    support = 1 + 9 * (grounding + overlap) / 2
    clarity, why = _clarity(question, problem, idf, style)
    return Judgement(
        tuple(round(score, 2) for score in (relevance, accuracy, support, clarity)),  # type: ignore[arg-type]  # four
        (
            f"the question finds its source at rank {rank}",
            f"cosine of question and answer {answer_cosine:.2f}, {answer_support:.0%} of the question in the answer",
            f"{grounding:.0%} of the answer's and {overlap:.0%} of the question's content words stand in the source",
            why,
        ),
    )


def _clarity(question: str, problem: str | None, idf: Mapping[str, float], style: str) -> tuple[float, str]:
    if problem is not None:
        return 1.0, f"form: {problem}"
    short = style not in _SHORT_STYLES and len(words(question)) < _SHORT_QUESTION_WORDS
    plain = all(idf.get(word, 0.0) < _RARE_IDF for word in content_words(question))
    faults = [fault for fault, found in (("short", short), ("names nothing specific", plain)) if found]
    return 10.0 - 3 * len(faults), "; ".join(faults) or "well formed, names its subject"


class Criterion(BaseModel):
    """Why, and then the score: a reason that comes after it cannot inform it.

    Not coerced: "9/10", 11, NaN or a missing value is no verdict.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    justification: Annotated[str, Field(min_length=1, json_schema_extra={"maxLength": _REASON_CHARACTERS})]
    score: Annotated[float, Field(ge=1, le=10, json_schema_extra={"enum": [half / 2 for half in range(2, 21)]})]


class JudgeAnswer(BaseModel):
    """The whole verdict."""

    model_config = ConfigDict(extra="forbid")
    relevance: Criterion
    accuracy: Criterion
    context_support: Criterion
    clarity: Criterion

    def verdict(self) -> Judgement:
        """The scores in table order."""
        parts = (self.relevance, self.accuracy, self.context_support, self.clarity)
        return Judgement(
            (parts[0].score, parts[1].score, parts[2].score, parts[3].score),
            (parts[0].justification, parts[1].justification, parts[2].justification, parts[3].justification),
        )


@dataclass(frozen=True)
class NoVerdict:
    """The judge gave no usable answer for a pair."""

    qa_id: str
    reason: str
    detail: str
    raw: str


def plant_bad_pairs(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs that a judge must reject, made from good ones: a few of each kind, named in ``planted``.

    ``wrong_answer`` has the answer of another pair, ``other_segment`` the segments of another pair, and
    ``copied_prompt`` asks for what the generator was told. With few pairs there are none.

    Args:
        pairs: rows of :data:`tables.QA_PAIRS`.
    """
    if len(pairs) < LEAST_JUDGED:
        return []
    step = len(pairs) // PLANTED_OF_A_KIND
    planted: list[dict[str, Any]] = []
    for pair in [pairs[number * step] for number in range(PLANTED_OF_A_KIND)]:
        others = [other for other in pairs if not set(other["document_ids"]) & set(pair["document_ids"])]
        others = others or [other for other in pairs if not set(other["segment_ids"]) & set(pair["segment_ids"])]
        if others:
            other = others[len(planted) % len(others)]
            planted.append({**pair, "planted": "wrong_answer", "answer": other["answer"]})
            shown = {"segment_ids": other["segment_ids"], "source_ids": pair["segment_ids"]}
            planted.append({**pair, "planted": "other_segment", **shown})
        planted.append({**pair, "planted": "copied_prompt", "question": _COPIED_PROMPT})
    return planted


async def ask_judge(
    pairs: Sequence[Mapping[str, Any]],
    segments: Mapping[str, str],
    settings: Settings,
    client: LLMClient,
    *,
    label: str = "Judging pairs",
) -> list[Judgement | NoVerdict]:
    """Have every pair judged, in order.

    Args:
        pairs: rows of :data:`tables.QA_PAIRS`.
        segments: segment id to text.
        settings: the judge's name and the seed.
        client: the endpoint.
        label: what the progress shows.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """

    async def ask(pair: Mapping[str, Any]) -> Judgement | NoVerdict:
        texts = _labelled(pair, segments)
        try:
            answer = await client.judge(
                "judge.md", _stated(pair, texts), JudgeAnswer, seed=settings.seed, about=f"pair {pair['qa_id']}"
            )
        except InvalidAnswer as error:
            return NoVerdict(pair["qa_id"], error.reason, str(error), error.raw)
        return answer.value.verdict()

    return await client.gather(pairs, ask, label=label, unit="pair")


def _labelled(pair: Mapping[str, Any], segments: Mapping[str, str]) -> dict[str, str]:
    """Label to text of a pair's segments, as the judge is shown them."""
    return {f"S{number}": remove_instructions(segments[key]) for number, key in enumerate(pair["segment_ids"], start=1)}


def _stated(pair: Mapping[str, Any], texts: dict[str, str]) -> str:
    """A pair with its segments, as the judge is asked about it."""
    stated = json.dumps({"question": pair["question"], "answer": pair["answer"]}, ensure_ascii=False)
    return f"{delimit(texts)}\n\nPair: {stated}"


class SegmentNeed(BaseModel):
    """What the judge says of one segment."""

    model_config = ConfigDict(extra="forbid", strict=True)
    segment: str
    reason: Annotated[str, Field(json_schema_extra={"maxLength": _REASON_CHARACTERS})]
    needed: bool


class NeedsAnswer(BaseModel):
    """What the judge says of all segments of a pair."""

    model_config = ConfigDict(extra="forbid")
    segments: list[SegmentNeed]


def hop_need(pair: Mapping[str, Any], segments: Mapping[str, str], idf: Mapping[str, float]) -> float:
    """How much of a question depends on each hop alone: the minimum over its hops; 1 for a single hop.

    For each hop, the share of the question's content words, weighted by rarity, that occur in that hop's segments and
    in no other hop's. Where it is 0 for a hop, nothing in the question asks for what only that hop says.

    Args:
        pair: row of :data:`tables.QA_PAIRS`.
        segments: segment id to heading and text.
        idf: inverse document frequency of content words.
    """
    if len(pair["hops"]) == 1:
        return 1.0
    wanted = set(content_words(pair["question"]))
    held = [set(content_words(" ".join(segments[key] for key in hop["segment_ids"]))) for hop in pair["hops"]]
    weights = {word: idf.get(word, 1.0) for word in wanted if any(word in words for words in held)}
    total = sum(weights.values())
    if not total:
        return 0.0
    alone = [
        words - set().union(*(other for place, other in enumerate(held) if place != own))
        for own, words in enumerate(held)
    ]
    return min(sum(weights.get(word, 0.0) for word in wanted & words) for words in alone) / total


async def ask_hops_needed(
    pairs: Sequence[Mapping[str, Any]], segments: Mapping[str, str], settings: Settings, client: LLMClient
) -> list[bool | InvalidAnswer]:
    """Ask the judge of every pair whether each of its segments is needed.

    Returns:
        For each pair: True where all are; the error where there is no usable answer.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """

    async def ask(pair: Mapping[str, Any]) -> bool | InvalidAnswer:
        texts = _labelled(pair, segments)
        labels = list(texts)
        known: dict[str, dict[str, Any]] = {
            "NeedsAnswer.segments": exactly(len(labels)),
            "SegmentNeed.segment": {"enum": labels},
        }
        try:
            got = await client.judge(
                "hops.md",
                _stated(pair, texts),
                NeedsAnswer,
                seed=settings.seed,
                known=known,
                about=f"pair {pair['qa_id']}",
            )
        except InvalidAnswer as error:
            return error
        said = {plain_label(entry.segment): entry.needed for entry in got.value.segments}
        if sorted(said) != sorted(labels):
            return InvalidAnswer("invalid_answer", f"it speaks of {sorted(said)}, asked of {labels}", got.raw)
        return all(said.values())

    return await client.gather(pairs, ask, label="Checking hops", unit="pair")
