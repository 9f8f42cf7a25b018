"""Does a multi-hop question need each of its hops: measured for every pair, and asked of the judge at an endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.errors import InvalidAnswer
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.injection import remove_instructions
from embed_pipeline.synthesis.prompts import delimit, read_prompt
from embed_pipeline.synthesis.words import content_words


class SegmentNeed(BaseModel):
    """What the judge says of one segment."""

    model_config = ConfigDict(extra="forbid", strict=True)
    segment: str
    needed: bool
    reason: str


class NeedsAnswer(BaseModel):
    """What the judge says of all segments of a pair."""

    model_config = ConfigDict(extra="forbid")
    segments: list[SegmentNeed]


def hop_need(pair: Mapping[str, Any], segments: Mapping[str, str], idf: Mapping[str, float]) -> float:
    """How much of a question hangs on each hop alone: the least over its hops; 1 for a single hop.

    For each hop, the share of the question's content words, weighted by rarity, that stand in that hop's segments and
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
        labels = [f"S{number}" for number in range(1, len(pair["segment_ids"]) + 1)]
        texts = [remove_instructions(segments[key]) for key in pair["segment_ids"]]
        stated = json.dumps({"question": pair["question"], "answer": pair["answer"]}, ensure_ascii=False)
        messages = [
            {"role": "system", "content": read_prompt("hops.md")},
            {"role": "user", "content": f"{delimit(dict(zip(labels, texts, strict=True)))}\n\nPair: {stated}"},
        ]
        model = settings.llm.judge_model
        try:
            got = await client.structured(messages, NeedsAnswer, temperature=0.0, seed=settings.seed, model=model)
        except InvalidAnswer as error:
            return error
        said = {entry.segment: entry.needed for entry in got.value.segments}
        if sorted(said) != sorted(labels):
            return InvalidAnswer("invalid_answer", f"it speaks of {sorted(said)}, asked of {labels}", got.raw)
        return all(said.values())

    return await client.gather(pairs, ask, label="Checking hops", unit="pairs")
