"""Questions from an instruction-following model at an OpenAI-compatible endpoint, as validated JSON.

Segments carry short labels (S1, S2, ...) in the prompt: models copy those faithfully, and hashes not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.errors import InvalidAnswer
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.pairs import Generated, Hop, Pair, Reject, find_problem
from embed_pipeline.synthesis.plan import Source, Task
from embed_pipeline.synthesis.prompts import delimit, fill_prompt

SEGMENTS_PER_CALL = 6
_ARTIFACTS_SHOWN = 20


class HopAnswer(BaseModel):
    """One hop as the model states it."""

    model_config = ConfigDict(extra="forbid")
    segments: list[str]
    summary: str


class PairAnswer(BaseModel):
    """One pair as the model states it."""

    model_config = ConfigDict(extra="forbid")
    question: str
    answer: str
    query_type: Literal["multi_hop", "structural", "contextual"]
    reasoning_type: Literal["factual", "relational", "inferential", "temporal", "procedural", "causal", "visual"]
    complexity: int
    hops: list[HopAnswer]


class PairsAnswer(BaseModel):
    """The whole answer to one call."""

    model_config = ConfigDict(extra="forbid")
    pairs: list[PairAnswer]


async def ask_questions(
    tasks: list[Task], artifacts: Mapping[str, list[str]], settings: Settings, client: LLMClient
) -> Generated:
    """Ask for the questions of all tasks: single-hop ones several segments of a document to a call.

    Args:
        tasks: what to ask.
        artifacts: document id to the texts of its artifacts.
        settings: counts, hops and complexity.
        client: the endpoint.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """
    calls = _single_hop_calls(tasks) + [task for task in tasks if len(task.sources) > 1]

    async def ask(task: Task) -> Generated:
        ids = tuple(source.segment_id for source in task.sources)
        labels = {f"S{number}": source for number, source in enumerate(task.sources, start=1)}
        messages = _messages(task, labels, artifacts, settings)
        try:
            answer = await client.structured(
                messages, PairsAnswer, temperature=settings.synthesis.temperature, seed=task.seed
            )
        except InvalidAnswer as error:
            return Generated([], [Reject(ids, error.reason, str(error), error.raw)])
        return _sort(answer.value, labels, settings.synthesis.max_hops)

    results = await client.gather(calls, ask, label="Writing questions", unit="calls")
    return Generated(
        [pair for result in results for pair in result.pairs],
        [reject for result in results for reject in result.rejects],
    )


@dataclass(frozen=True)
class _Window(Task):
    """Neighbouring segments of one document that share a call, each to be asked about on its own."""


def _single_hop_calls(tasks: list[Task]) -> list[Task]:
    by_document: dict[str, list[Task]] = {}
    for task in tasks:
        if len(task.sources) == 1:
            by_document.setdefault(task.sources[0].document_id, []).append(task)
    windows: list[Task] = []
    for members in by_document.values():
        for start in range(0, len(members), SEGMENTS_PER_CALL):
            window = members[start : start + SEGMENTS_PER_CALL]
            windows.append(_Window(tuple(task.sources[0] for task in window), window[0].seed))
    return windows


def _messages(
    task: Task, labels: Mapping[str, Source], artifacts: Mapping[str, list[str]], settings: Settings
) -> list[dict[str, str]]:
    synthesis = settings.synthesis
    apart = isinstance(task, _Window)
    shown = [text for source in task.sources for text in artifacts.get(source.document_id, [])]
    system = fill_prompt(
        "questions.md",
        count=len(task.sources) * synthesis.questions_per_segment if apart else 1,
        min_complexity=synthesis.min_complexity,
        max_complexity=synthesis.max_complexity,
        hop_rule=(
            f"Every question has exactly one hop on one segment; {synthesis.questions_per_segment} for each segment."
            if apart
            else f"The question has exactly {len(task.sources)} hops, one for each segment, all of them needed."
        ),
        artifacts=json.dumps(list(dict.fromkeys(shown))[:_ARTIFACTS_SHOWN], ensure_ascii=False),
    )
    texts = {label: f"({source.title})\n{source.text}" for label, source in labels.items()}
    return [{"role": "system", "content": system}, {"role": "user", "content": delimit(texts)}]


def _sort(answer: PairsAnswer, labels: Mapping[str, Source], max_hops: int) -> Generated:
    found = Generated()
    known = {source.segment_id: source.document_id for source in labels.values()}
    for item in answer.pairs:
        hops = tuple(
            Hop(tuple(labels[label].segment_id if label in labels else label for label in hop.segments), hop.summary)
            for hop in item.hops
        )
        pair = Pair(item.question, item.answer, item.query_type, item.reasoning_type, item.complexity, hops)
        problem = find_problem(pair, known, max_hops)
        if problem is None:
            found.pairs.append(pair)
        else:
            found.rejects.append(Reject(tuple(known), *problem, item.model_dump_json()))
    return found
