"""What a run will cost, before it: calls, tokens, price and time, stage by stage.

The stages' own code runs against the response store alone (:mod:`embed_pipeline.llm.rehearsal`): what is stored costs
nothing and its answers lead to the later requests, what is not stored is a call to come. Pairs that such calls will
write are judged in the estimate at the size of the prompts around them. Tokens, calls that are repeated and time follow
the stored calls to the same model and endpoint (:mod:`embed_pipeline.llm.rates`); a few of the run's own calls are made
first, to have some. Where there are none, tokens are counted at four characters each and the rest is a guess.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from embed_pipeline.corpus.batches import copy_batches, cut_batches, load_batches
from embed_pipeline.corpus.documents import clean_documents, read_documents
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.proven import open_base_encoder
from embed_pipeline.llm.budget import BudgetExhausted, price
from embed_pipeline.llm.client import open_client
from embed_pipeline.llm.gathering import run_interruptibly
from embed_pipeline.llm.prompts import JUDGE_PROMPTS, read_prompt
from embed_pipeline.llm.rehearsal import NOT_ASKED, ExpectedCall, Rehearsal, open_rehearsal
from embed_pipeline.llm.responses import CHARACTERS_PER_TOKEN
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import artifact_frame, ask_artifacts, extract_artifacts, plan_windows
from embed_pipeline.synthesis.completion_generator import complete_questions
from embed_pipeline.synthesis.coverage import mark_asked
from embed_pipeline.synthesis.generate import plan_tasks
from embed_pipeline.synthesis.judge import (
    LEAST_JUDGED,
    PLANTED_OF_A_KIND,
    JudgeAnswer,
    NeedsAnswer,
    ask_hops_needed,
    ask_judge,
    plant_bad_pairs,
)
from embed_pipeline.synthesis.pairs import Generated, Pair, pair_row
from embed_pipeline.synthesis.plan import QuestionTask, askable_sources
from embed_pipeline.synthesis.structured_generator import ask_questions, plan_calls
from embed_pipeline.synthesis.trial import NAMES, TRIAL_PAIRS, choose_path, known_choice, sample_questions, sample_tasks
from embed_pipeline.text.passages import with_titles

logger = logging.getLogger(__name__)
ARTIFACTS_TOKENS = 350
"""Completion tokens of one artifact pass, of one pair, of one verdict and of one segment's word on a hop."""
PAIR_TOKENS = 130
PAIR_CHARACTERS = 400
VERDICT_TOKENS = 150
NEED_TOKENS = 40
EMBEDDED_QUESTION_TOKENS = 14
_LIMITS = (1_000, 5_000, 20_000, 50_000, 200_000)
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
        askable: segments that they could be asked of, without ``synthesis.max_questions``.
        questions: questions to be asked for.
        stages: stage by stage.
        caps: the hard caps that will stop the run, in words.
    """

    segments: int
    askable: int
    questions: int
    stages: tuple[StageEstimate, ...]
    caps: tuple[str, ...]

    @property
    def curve(self) -> dict[str, StageEstimate]:
        """The total under other values of ``synthesis.max_questions``, in proportion to the questions.

        Empty where most of the answers are stored: what is left to pay does not grow in proportion.
        """
        total = self.total
        if not self.questions or total.cached > total.calls:
            return {}
        whole = self.questions * self.askable / self.segments
        shares = {f"{limit}": limit / self.questions for limit in _LIMITS if limit < whole}
        if self.askable > self.segments:
            shares["all"] = self.askable / self.segments
        return {
            limit: StageEstimate(
                limit,
                round(total.calls * share),
                total.cached,
                round(total.prompt_tokens * share),
                round(total.completion_tokens * share),
                round(total.cost * share, 6),
                round(total.seconds * share, 1),
            )
            for limit, share in shares.items()
        }

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
    *,
    ask: bool = False,
) -> Estimate:
    """Predict the cost of artifacts, questions and judging over some batches.

    Args:
        segments: frame of :data:`tables.SEGMENTS` for each batch, from :func:`mark_asked` where not all segments are
            asked about.
        titles: document id to title.
        settings: the product's settings.
        load_encoder: gives the base encoder, called only where multi-hop questions are wanted.
        ask: make a few of the run's own calls first, to measure the endpoint; the run finds their answers in the
            response store. Else nothing is sent and nothing written.

    Raises:
        ResponseStoreError: the response store cannot be used.
        EmbeddedModelError: the embedded model's file is missing.
        EndpointError, TooManyFailures: from the client, where it asks.
    """
    to_try = [frame for _, frame in sorted(segments.items()) if frame.height]
    if ask and to_try and not settings.llm.batch:
        try:
            settings = choose_path(to_try[-1], titles, settings).applied(settings)
            run_interruptibly(_ask_a_few(to_try[-1], titles, settings))
        except BudgetExhausted:
            logger.warning("a cap on the language model ended the first calls; fewer of them stand behind the estimate")
    return asyncio.run(_estimate(segments, titles, settings, load_encoder))


async def _ask_a_few(segments: pl.DataFrame, titles: Mapping[str, str], settings: Settings) -> None:
    """Make a few of a batch's calls, of each kind one alone and some at once."""
    async with open_client(settings.llm, settings.paths.responses) as client:
        if settings.structured:
            _, found = await sample_questions(segments, titles, settings, client)
        else:
            sources = askable_sources(segments, titles, artifact_frame([]), settings)
            tasks = sample_tasks(sources, settings)
            first = await complete_questions(tasks[:1], settings, client)
            others = await complete_questions(tasks[1:], settings, client)
            found = Generated(first.pairs + others.pairs)
        if settings.asks_judge:
            texts = dict(segments.select("segment_id", "text").iter_rows())
            rows = _pair_rows(found.pairs, segments)[:TRIAL_PAIRS]
            for part in (rows[:1], rows[1:]):
                await ask_judge(part, texts, settings, client)


def _pair_rows(pairs: Sequence[Pair], segments: pl.DataFrame) -> list[dict[str, Any]]:
    """Pairs as rows of :data:`tables.QA_PAIRS`, each once, sorted by id."""
    known = dict(segments.select("segment_id", "document_id").iter_rows())
    made_by = {"generator": "", "prompt_version": ""}
    rows = {str(row["qa_id"]): row for row in (pair_row(pair, "", known, made_by) for pair in pairs)}
    return [rows[key] for key in sorted(rows)]


def estimate_folder(settings: Settings, encoder: Encoder, *, ask: bool = False) -> Estimate:
    """Predict the cost of the next run over the documents folder as it is, batches made before and to come.

    The folder is read and cut as a run would do it, in a temporary place.

    Args:
        settings: the product's settings.
        encoder: the base model, which counts tokens.
        ask: as :func:`estimate` has it.

    Raises:
        CorpusError: the folder is missing or holds no readable file.
        ResponseStoreError: the response store cannot be used.
        EmbeddedModelError: the embedded model's file is missing.
        EndpointError, TooManyFailures: from the client, where it asks.
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
            titled = with_titles(cut, documents)
            of_batch = partial(open_base_encoder, settings, titled)
            segments[batch.name] = mark_asked(batch.name, titled, batch.share, settings, of_batch)
    # The run finds the vectors in the store.
    of_all = cache(partial(open_base_encoder, settings, pl.concat(segments.values())))
    return estimate(segments, titles, settings, of_all, ask=ask)


class _Stage:
    """The calls of one stage that are to come, batch after batch."""

    def __init__(self, name: str, settings: Settings, client: Rehearsal, *, judging: bool = False) -> None:
        self._name = name
        self._settings = settings
        self._client = client
        self._rates = client.rates(settings.llm.judge_model if judging else None)
        self._cached = 0
        self._tokens = [0.0, 0.0]
        self._calls = 0.0
        self._seconds = 0.0

    def take(self, cached_before: int, tokens_each: float, pairs_each: float = 1) -> None:
        """Add what the client would have sent since the last time.

        Args:
            cached_before: answers that it had from the store by then.
            tokens_each: completion tokens of an answer, or of each pair in it, where no stored call shows them.
            pairs_each: pairs in an answer.
        """
        self._cached += self._client.usage.cached - cached_before
        self.add(self._client.calls, tokens_each, pairs_each)
        self._client.calls.clear()

    def add(self, calls: Sequence[ExpectedCall], tokens_each: float, pairs_each: float = 1) -> None:
        """Add calls of one kind that run at once."""
        if not calls:
            return
        rates, kind = self._rates, calls[0].kind
        repeats = rates.repeats.get(kind, 1.0) if rates else 1.0
        shares = rates.tokens_per_character if rates else {}
        sent = sum(
            call.characters * shares[kind]
            if kind in shares
            else (call.characters + call.schema_characters) / CHARACTERS_PER_TOKEN
            for call in calls
        )
        written = (rates.completion_tokens.get(kind, tokens_each) if rates else tokens_each) * pairs_each
        count = repeats * len(calls)
        self._calls += count
        self._tokens[0] += sent * repeats
        self._tokens[1] += written * count
        self._seconds += self._duration(calls, written, round(count))

    def _duration(self, calls: Sequence[ExpectedCall], written: float, count: int) -> float:
        llm = self._settings.llm
        if llm.batch:
            return self._client.batch_seconds()
        if self._rates is not None:
            return self._rates.duration([written] * max(count, 1), self._client.concurrency)
        if llm.embedded:
            fresh = sum(call.fresh_characters for call in calls) / CHARACTERS_PER_TOKEN
            seconds = fresh / EMBEDDED_PROMPT_RATE + count * written / EMBEDDED_WRITING_RATE
            return seconds / self._client.concurrency
        return math.ceil(count / self._client.concurrency) * _SECONDS_PER_CALL

    def estimate(self) -> StageEstimate:
        """The sums so far."""
        llm = self._settings.llm
        sent, written = map(round, self._tokens)
        cost = 0.0 if llm.embedded else price(llm, sent, written, batch=llm.batch)
        return StageEstimate(
            self._name, round(self._calls), self._cached, sent, written, round(cost, 6), round(self._seconds, 1)
        )


async def _estimate(
    segments: Mapping[str, pl.DataFrame],
    titles: Mapping[str, str],
    settings: Settings,
    load_encoder: Callable[[], Encoder],
) -> Estimate:
    asked_of = askable = questions = 0
    async with open_rehearsal(settings.llm, settings.paths.responses) as client:
        for name in NAMES:
            choice = known_choice(name, settings, client.store)
            settings = choice.applied(settings) if choice else settings
        artifacts_stage, questions_stage = (_Stage(name, settings, client) for name in ("artifacts", "questions"))
        judging_stage = _Stage("judging", settings, client, judging=True)
        for batch, frame in sorted(segments.items()):
            artifacts = await _rehearse_artifacts(batch, frame, settings, client, artifacts_stage)
            sources = askable_sources(frame, titles, artifacts, settings)
            tasks = plan_tasks(sources, frame, settings, load_encoder) if sources else []
            asked_of += sum(source.asked for source in sources)
            askable += len(sources)
            questions += sum(len(task.specs) for task in tasks)
            found = await _rehearse_questions(tasks, settings, client, questions_stage)
            if settings.asks_judge:
                await _rehearse_judging(frame, tasks, found, settings, client, judging_stage)
        stages = tuple(stage.estimate() for stage in (artifacts_stage, questions_stage, judging_stage))
    return Estimate(asked_of, askable, questions, stages, _caps(stages, settings))


async def _rehearse_artifacts(
    batch: str, segments: pl.DataFrame, settings: Settings, client: Rehearsal, stage: _Stage
) -> pl.DataFrame:
    if not settings.structured:
        return extract_artifacts(batch, segments, settings).artifacts
    before = client.usage.cached
    rows = await ask_artifacts(batch, plan_windows(segments), settings, client, Counter())
    stage.take(before, ARTIFACTS_TOKENS)
    return artifact_frame(rows)


async def _rehearse_questions(
    tasks: list[QuestionTask], settings: Settings, client: Rehearsal, stage: _Stage
) -> Generated:
    before = client.usage.cached
    if not settings.structured:
        found = await complete_questions(tasks, settings, client)
        stage.take(before, EMBEDDED_QUESTION_TOKENS)
        return found
    found = await ask_questions(tasks, settings, client)
    stage.take(before, PAIR_TOKENS, _coming(tasks, found) / max(1, len(client.calls)))
    return found


async def _rehearse_judging(  # noqa: PLR0917 - a batch and its context
    segments: pl.DataFrame,
    tasks: list[QuestionTask],
    found: Generated,
    settings: Settings,
    client: Rehearsal,
    stage: _Stage,
) -> None:
    texts = dict(segments.select("segment_id", "text").iter_rows())
    pairs = _pair_rows(found.pairs, segments)
    asked, coming = sum(len(task.specs) for task in tasks), _coming(tasks, found)
    # Of pairs that are not written yet, as large a share is valid as of the others.
    share = coming / max(1, asked) * (len(pairs) / (asked - coming) if asked > coming else 1.0)
    expected = round(asked * share)
    planted = [] if expected else plant_bad_pairs(pairs)
    tries = 3 * PLANTED_OF_A_KIND if expected and expected + len(pairs) >= LEAST_JUDGED else 0
    before = client.usage.cached
    await ask_judge([*pairs, *planted], texts, settings, client)
    stage.take(before, VERDICT_TOKENS)
    text = sum(len(source.text) * len(task.specs) for task in tasks for source in task.sources) / max(1, asked)
    rubric, hops = (len(read_prompt(name)) + round(text) + PAIR_CHARACTERS for name in JUDGE_PROMPTS)
    stage.add([ExpectedCall(JudgeAnswer.__name__, rubric)] * expected, VERDICT_TOKENS)
    stage.add([ExpectedCall(JudgeAnswer.__name__, rubric)] * tries, VERDICT_TOKENS)
    if not settings.synthesis.check_hops:
        return
    joined = [row for row in pairs if row["hop_count"] > 1]
    before = client.usage.cached
    await ask_hops_needed(joined, texts, settings, client)
    stage.take(before, NEED_TOKENS * settings.synthesis.max_hops)
    multi = sum(len(task.specs) for task in tasks if len(task.sources) > 1)
    stage.add([ExpectedCall(NeedsAnswer.__name__, hops)] * round(multi * share), NEED_TOKENS * 2)


def _coming(tasks: list[QuestionTask], found: Generated) -> int:
    """Questions whose calls are to come."""
    unasked = Counter(tuple(sorted(reject.segment_ids)) for reject in found.rejects if reject.reason == NOT_ASKED)
    specs = sum(len(call.requests) for call in plan_calls(tasks) if tuple(sorted(call.segment_ids)) in unasked)
    # One reject a question, or one a call.
    return max(specs, sum(unasked.values()))


def _caps(stages: tuple[StageEstimate, ...], settings: Settings) -> tuple[str, ...]:
    """The caps that will end the run, each with the stage in which it is reached."""
    llm = settings.llm
    reached = []
    for name, cap, values in (
        ("max_calls", llm.max_calls, [stage.calls for stage in stages]),
        ("max_total_tokens", llm.max_total_tokens, [s.prompt_tokens + s.completion_tokens for s in stages]),
        ("max_cost", llm.max_cost, [stage.cost for stage in stages]),
    ):
        sums = list(itertools.accumulate(values))
        if cap is not None and sums[-1] >= cap:
            stage = next(stage for stage, used in zip(stages, sums, strict=True) if used >= cap)
            reached.append(f"{stage.stage}: llm.{name} is {cap:g}, about {sums[-1]:.6g} are expected in all")
    return tuple(reached)
