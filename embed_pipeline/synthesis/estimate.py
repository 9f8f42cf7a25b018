"""What a run will cost, before it: calls, tokens, price and time, stage by stage.

The stages' own code runs against the response store alone (:mod:`embed_pipeline.llm.rehearsal`): what is stored costs
nothing and its answers lead to the later requests, what is not stored is a call to come. Pairs that such calls will
write are judged in the estimate at the size of the prompts around them. Tokens are counted at four characters each.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from embed_pipeline.corpus.batches import copy_batches, cut_batches, load_batches
from embed_pipeline.corpus.documents import clean_documents, read_documents
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.llm.embedded import SLOTS, lay_out, model_file
from embed_pipeline.llm.prompts import JUDGE_PROMPTS, read_prompt
from embed_pipeline.llm.rehearsal import NOT_ASKED, Rehearsal, open_rehearsal
from embed_pipeline.llm.responses import CHARACTERS_PER_TOKEN
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import artifact_frame, ask_artifacts, extract_artifacts
from embed_pipeline.synthesis.completion_generator import complete_questions
from embed_pipeline.synthesis.generate import plan_tasks
from embed_pipeline.synthesis.judge import (
    LEAST_JUDGED,
    PLANTED_OF_A_KIND,
    ask_hops_needed,
    ask_judge,
    plant_bad_pairs,
)
from embed_pipeline.synthesis.pairs import Generated, pair_row
from embed_pipeline.synthesis.plan import QuestionTask, askable_sources
from embed_pipeline.synthesis.structured_generator import ask_questions
from embed_pipeline.text.passages import with_titles

ARTIFACTS_TOKENS = 350
"""Completion tokens of one artifact pass, of one pair, of one verdict and of one segment's word on a hop."""
PAIR_TOKENS = 130
VERDICT_TOKENS = 150
NEED_TOKENS = 40
EMBEDDED_QUESTION_TOKENS = 14
# Of one call at an endpoint.
_SECONDS_PER_CALL = 5.0
EMBEDDED_PROMPT_RATE = 280
"""Tokens per second and server that the packaged model reads, and that it writes (measured on a 2-core machine)."""
EMBEDDED_WRITING_RATE = 75


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will cost.

    Attributes:
        stage: artifacts, questions or judging.
        calls: calls to come.
        cached: requests that the response store answers.
        prompt_tokens: tokens of those calls.
        completion_tokens: tokens of their answers.
        cost: in the currency of the prices.
        seconds: how long it will take.
    """

    stage: str
    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        segments: segments that questions are asked of.
        questions: questions to be asked for.
        stages: stage by stage.
        caps: the hard caps that will stop the run, in words.
    """

    segments: int
    questions: int
    stages: tuple[StageEstimate, ...]
    caps: tuple[str, ...]

    @property
    def total(self) -> StageEstimate:
        """The sums over the stages."""
        sums = {
            name: sum(getattr(s, name) for s in self.stages)
            for name in StageEstimate.__annotations__
            if name != "stage"
        }
        return StageEstimate("total", **sums)


def estimate(
    segments: Mapping[str, pl.DataFrame],
    titles: Mapping[str, str],
    settings: Settings,
    load_encoder: Callable[[], Encoder],
) -> Estimate:
    """Predict the cost of artifacts, questions and judging over some batches; nothing is sent and nothing written.

    Args:
        segments: frame of :data:`tables.SEGMENTS` for each batch, with titles where ``embedding.context`` needs them.
        titles: document id to title.
        settings: the product's settings.
        load_encoder: gives the base encoder, called only where multi-hop questions are wanted.

    Raises:
        ResponseStoreError: the response store cannot be used.
        EmbeddedModelError: the embedded model's file is missing.
    """
    return asyncio.run(_estimate(segments, titles, settings, load_encoder))


def estimate_folder(settings: Settings, encoder: Encoder) -> Estimate:
    """Predict the cost of the next run over the documents folder as it is, batches made before and to come.

    The folder is read and cut as a run would do it, in a temporary place; nothing of the store is changed.

    Raises:
        CorpusError: the folder is missing or holds no readable file.
        ResponseStoreError: the response store cannot be used.
        EmbeddedModelError: the embedded model's file is missing.
    """
    segments: dict[str, pl.DataFrame] = {}
    titles: dict[str, str] = {}
    with TemporaryDirectory() as temporary:
        paths = settings.paths.model_copy(update={"store": Path(temporary), "assets": None})
        aside = settings.model_copy(update={"paths": paths})
        copy_batches(settings.paths, paths)
        cut_batches(aside)
        for batch in load_batches(paths.store):
            documents, _ = clean_documents(read_documents(batch, aside)[0], batch, aside)
            titles.update(documents.select("document_id", "title").iter_rows())
            cut = split_segments(
                documents,
                settings.corpus,
                encoder.count_tokens,
                max_tokens=encoder.passage_tokens,
                context=settings.embedding.context,
            )
            cut = with_titles(cut, documents)
            segments[batch.name] = cut if settings.training_data.generates else cut.clear()
    return estimate(segments, titles, settings, lambda: encoder)


@dataclass
class _Tally:
    """Running sums of one stage."""

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    fresh_tokens: int = 0
    completion_tokens: int = 0

    def take(self, client: Rehearsal, cached_before: int, tokens_each: float) -> None:
        """Add what a client would have sent since the last time, each answer of so many tokens."""
        self.calls += len(client.calls)
        self.prompt_tokens += sum(call.prompt_tokens for call in client.calls)
        self.fresh_tokens += sum(call.fresh_tokens for call in client.calls)
        self.completion_tokens += round(tokens_each * len(client.calls))
        self.cached += client.usage.cached - cached_before
        client.calls.clear()


async def _estimate(
    segments: Mapping[str, pl.DataFrame],
    titles: Mapping[str, str],
    settings: Settings,
    load_encoder: Callable[[], Encoder],
) -> Estimate:
    tallies = {stage: _Tally() for stage in ("artifacts", "questions", "judging")}
    asked_of = questions = 0
    async with open_rehearsal(settings.llm, settings.paths.responses) as client:
        for batch, frame in sorted(segments.items()):
            artifacts = await _rehearse_artifacts(batch, frame, settings, client, tallies["artifacts"])
            sources = askable_sources(frame, titles, artifacts, settings)
            tasks = plan_tasks(sources, frame, settings, load_encoder) if sources else []
            asked_of += len(sources)
            questions += sum(len(task.specs) for task in tasks)
            found = await _rehearse_questions(tasks, settings, client, tallies["questions"])
            if settings.asks_judge:
                await _rehearse_judging(batch, frame, tasks, found, settings, client, tallies["judging"])
    stages = tuple(_priced(stage, tally, settings) for stage, tally in tallies.items())
    return Estimate(asked_of, questions, stages, _caps(stages, settings))


async def _rehearse_artifacts(
    batch: str, segments: pl.DataFrame, settings: Settings, client: Rehearsal, tally: _Tally
) -> pl.DataFrame:
    if not settings.structured:
        return extract_artifacts(batch, segments, settings).artifacts
    before = client.usage.cached
    rows = await ask_artifacts(batch, segments, settings, client, Counter())
    tally.take(client, before, ARTIFACTS_TOKENS)
    return artifact_frame(rows)


async def _rehearse_questions(
    tasks: list[QuestionTask], settings: Settings, client: Rehearsal, tally: _Tally
) -> Generated:
    before = client.usage.cached
    if not settings.structured:
        found = await complete_questions(tasks, settings, client)
        tally.take(client, before, EMBEDDED_QUESTION_TOKENS)
        return found
    found = await ask_questions(tasks, settings, client)
    coming = _coming(tasks, found)
    tally.take(client, before, PAIR_TOKENS * coming / max(1, len(client.calls)))
    return found


async def _rehearse_judging(  # noqa: PLR0917 - a batch and its context
    batch: str,
    segments: pl.DataFrame,
    tasks: list[QuestionTask],
    found: Generated,
    settings: Settings,
    client: Rehearsal,
    tally: _Tally,
) -> None:
    before = client.usage.cached
    texts = dict(segments.select("segment_id", "text").iter_rows())
    known = dict(segments.select("segment_id", "document_id").iter_rows())
    made_by = {"generator": "", "prompt_version": ""}
    rows = {str(row["qa_id"]): row for row in (pair_row(pair, batch, known, made_by) for pair in found.pairs)}
    pairs = [rows[key] for key in sorted(rows)]
    coming = _coming(tasks, found)
    planted = [] if coming else plant_bad_pairs(pairs)
    await ask_judge([*pairs, *planted], texts, settings, client)
    tally.take(client, before, VERDICT_TOKENS)
    before = client.usage.cached
    joined = [row for row in rows.values() if row["hop_count"] > 1] if settings.synthesis.check_hops else []
    await ask_hops_needed(joined, texts, settings, client)
    tally.take(client, before, NEED_TOKENS * settings.synthesis.max_hops)
    # Verdicts on pairs that are not written yet.
    share = coming / max(1, sum(len(task.specs) for task in tasks))
    multi = sum(len(task.specs) for task in tasks if len(task.sources) > 1) if settings.synthesis.check_hops else 0
    text = sum(len(source.text) * len(task.specs) for task in tasks for source in task.sources)
    rubric, hops = (len(read_prompt(name)) for name in JUDGE_PROMPTS)
    size = round((text * share + coming * rubric + multi * share * hops) / CHARACTERS_PER_TOKEN)
    tries = 3 * PLANTED_OF_A_KIND if coming and coming + len(pairs) >= LEAST_JUDGED else 0
    tally.calls += coming + tries + round(multi * share)
    tally.prompt_tokens += round(size * (1 + tries / max(1, coming))) + (coming + tries) * PAIR_TOKENS
    tally.completion_tokens += (coming + tries) * VERDICT_TOKENS + round(multi * share * NEED_TOKENS * 2)


def _coming(tasks: list[QuestionTask], found: Generated) -> int:
    """Pairs that calls to come will write: all that are planned, less those whose outcome is stored."""
    known = sum(reject.reason != NOT_ASKED for reject in found.rejects) + len(found.pairs)
    return max(0, sum(len(task.specs) for task in tasks) - known) if _any_unasked(found) else 0


def _any_unasked(found: Generated) -> bool:
    return any(reject.reason == NOT_ASKED for reject in found.rejects)


def _priced(stage: str, tally: _Tally, settings: Settings) -> StageEstimate:
    llm = settings.llm
    if llm.embedded:
        layout = lay_out(SLOTS, llm.server_threads, model_file(llm).stat().st_size)
        seconds = tally.fresh_tokens / EMBEDDED_PROMPT_RATE + tally.completion_tokens / EMBEDDED_WRITING_RATE
        seconds /= layout.servers
        cost = 0.0
    else:
        seconds = tally.calls * _SECONDS_PER_CALL / min(llm.max_concurrency, max(1, tally.calls))
        cost = tally.prompt_tokens * llm.price_per_million_prompt_tokens / 1e6
        cost += tally.completion_tokens * llm.price_per_million_completion_tokens / 1e6
    counts = (tally.calls, tally.cached, tally.prompt_tokens, tally.completion_tokens)
    return StageEstimate(stage, *counts, round(cost, 6), round(seconds, 1))


def _caps(stages: tuple[StageEstimate, ...], settings: Settings) -> tuple[str, ...]:
    """The caps that a stage will reach: each counts for one run of one stage."""
    llm = settings.llm
    reached = []
    for stage in stages:
        tokens = stage.prompt_tokens + stage.completion_tokens
        for name, cap, value in (
            ("max_calls", llm.max_calls, stage.calls),
            ("max_total_tokens", llm.max_total_tokens, tokens),
            ("max_cost", llm.max_cost, stage.cost),
        ):
            if cap is not None and value >= cap:
                reached.append(f"{stage.stage}: llm.{name} is {cap:g}, about {value:.6g} are expected")
    return tuple(reached)
