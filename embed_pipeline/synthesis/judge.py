"""The judge that is asked: a model scores one pair per call against a written rubric."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.errors import InvalidAnswer
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.injection import remove_instructions
from embed_pipeline.synthesis.measured_judge import Verdict
from embed_pipeline.synthesis.prompts import delimit, read_prompt


class Criterion(BaseModel):
    """A score and why. Not coerced: "9/10", 11, NaN or a missing value is no verdict."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    score: Annotated[float, Field(ge=1, le=10)]
    justification: Annotated[str, Field(min_length=1)]


class JudgeAnswer(BaseModel):
    """The whole verdict."""

    model_config = ConfigDict(extra="forbid")
    relevance: Criterion
    accuracy: Criterion
    context_support: Criterion
    clarity: Criterion

    def verdict(self) -> Verdict:
        """The scores in table order."""
        parts = (self.relevance, self.accuracy, self.context_support, self.clarity)
        return Verdict(
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


async def ask_judge(
    pairs: Sequence[Mapping[str, Any]], segments: Mapping[str, str], settings: Settings, client: LLMClient
) -> list[Verdict | NoVerdict]:
    """Have every pair judged, in order.

    Args:
        pairs: rows of :data:`tables.QA_PAIRS`.
        segments: segment id to text.
        settings: the judge's name and the seed.
        client: the endpoint.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """

    async def ask(pair: Mapping[str, Any]) -> Verdict | NoVerdict:
        texts = {f"S{n}": remove_instructions(segments[key]) for n, key in enumerate(pair["segment_ids"], start=1)}
        stated = json.dumps({"question": pair["question"], "answer": pair["answer"]}, ensure_ascii=False)
        messages = [
            {"role": "system", "content": read_prompt("judge.md")},
            {"role": "user", "content": f"{delimit(texts)}\n\nPair: {stated}"},
        ]
        try:
            answer = await client.structured(
                messages, JudgeAnswer, temperature=0.0, seed=settings.seed, model=settings.llm.judge_model
            )
        except InvalidAnswer as error:
            return NoVerdict(pair["qa_id"], error.reason, str(error), error.raw)
        return answer.value.verdict()

    return await client.gather(pairs, ask, label="Judging pairs", unit="pairs")
