"""A batch's segments to question-answer pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.llm.budget import Usage
from embed_pipeline.llm.client import open_client
from embed_pipeline.llm.gathering import run_interruptibly
from embed_pipeline.llm.prompts import COMPLETION_PROMPTS, STRUCTURED_PROMPTS, prompt_version
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.completion_generator import complete_questions
from embed_pipeline.synthesis.coverage import segment_vectors
from embed_pipeline.synthesis.pairs import Generated, pair_row, reject_rows
from embed_pipeline.synthesis.plan import (
    QuestionTask,
    Source,
    askable_sources,
    multi_hop_count,
    plan_multi_hop,
    plan_single_hop,
)
from embed_pipeline.synthesis.structured_generator import ask_questions


@dataclass(frozen=True)
class Generation:
    """Pairs and rejects of a batch, and what they cost."""

    pairs: pl.DataFrame
    rejects: pl.DataFrame
    usage: Usage


def generate_pairs(  # noqa: PLR0917 - what the asset loads, in its order
    batch: str,
    segments: pl.DataFrame,
    artifacts: pl.DataFrame,
    titles: dict[str, str],
    settings: Settings,
    load_encoder: Callable[[], Encoder],
) -> Generation:
    """Write questions about every segment that is long enough and to be asked about, and about groups of neighbours.

    Args:
        batch: name of the batch.
        segments: frame of :data:`tables.SEGMENTS`, with titles where ``embedding.context`` needs them, from
            :func:`mark_asked` where not all are asked about.
        artifacts: frame of :data:`tables.DOCUMENT_ARTIFACTS`.
        titles: document id to title.
        settings: the product's settings.
        load_encoder: gives the base encoder, called only where multi-hop questions are wanted.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures, EmbeddedModelError: from the client.
    """
    sources = askable_sources(segments, titles, artifacts, settings)
    tasks = plan_tasks(sources, segments, settings, load_encoder)

    async def run() -> tuple[Generated, str, Usage]:
        async with open_client(settings.llm, settings.paths.responses) as client:
            if settings.structured:
                found = await ask_questions(tasks, settings, client)
            else:
                found = await complete_questions(tasks, settings, client)
            return found, client.generator, client.usage

    found, generator, usage = run_interruptibly(run()) if tasks else (Generated(), settings.llm.model, Usage())
    version = prompt_version(*(STRUCTURED_PROMPTS if settings.structured else COMPLETION_PROMPTS))
    return _frames(batch, found, sources, {"generator": generator, "prompt_version": version}, usage)


def plan_tasks(
    sources: list[Source], segments: pl.DataFrame, settings: Settings, load_encoder: Callable[[], Encoder]
) -> list[QuestionTask]:
    """What to ask: about every source that is to be asked about, and about paths of neighbours.

    Args:
        sources: from :func:`askable_sources`.
        segments: the frame that they come from.
        settings: counts and shares.
        load_encoder: gives the base encoder, called only where multi-hop questions are wanted.
    """
    tasks = plan_single_hop(sources, settings)
    wanted = multi_hop_count(tasks, settings.synthesis)
    if not wanted or len(sources) == 1:
        return tasks
    vectors = segment_vectors([source.segment_id for source in sources], segments, settings, load_encoder)
    return tasks + plan_multi_hop(sources, vectors, wanted, settings)


def _frames(batch: str, found: Generated, sources: list[Source], made_by: dict[str, str], usage: Usage) -> Generation:
    known = {source.segment_id: source.document_id for source in sources}
    rows = {row["qa_id"]: row for row in (pair_row(pair, batch, known, made_by) for pair in found.pairs)}
    pairs = tables.QA_PAIRS.frame(sorted(rows.values(), key=lambda row: str(row["qa_id"])))
    rejects = tables.REJECTED_PAIRS.frame(reject_rows(found.rejects, batch, made_by))
    return Generation(pairs, rejects.sort("segment_ids", "reason", "raw"), usage)
