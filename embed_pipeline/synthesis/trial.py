"""How a model is asked, and who judges: chosen by a short trial on the run's own first requests.

``synthesis.path = auto`` and ``synthesis.judge = auto`` are decided once for a model, its prompts and the settings that
decide the pairs. The first batch that is asked about decides, the response store keeps the decision, and all batches
follow it. What the trial asks is what the run asks anyway, so its answers are paid for once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import polars as pl

from embed_pipeline.llm.answers import ITEM_REASONS
from embed_pipeline.llm.client import LLMClient, open_client
from embed_pipeline.llm.gathering import run_interruptibly
from embed_pipeline.llm.prompts import (
    ARTIFACT_PROMPTS,
    COMPLETION_PROMPTS,
    JUDGE_PROMPTS,
    STRUCTURED_PROMPTS,
    prompt_version,
)
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.llm.transport import EndpointError
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import Window, artifact_frame, ask_artifacts, plan_windows
from embed_pipeline.synthesis.completion_generator import complete_questions
from embed_pipeline.synthesis.judge import Judgement, NoVerdict, ask_judge, plant_bad_pairs
from embed_pipeline.synthesis.pairs import Generated
from embed_pipeline.synthesis.plan import QuestionTask, Source, askable_sources, plan_single_hop, work_order
from embed_pipeline.synthesis.structured_generator import PromptCall, ask_calls, plan_calls

logger = logging.getLogger(__name__)
Name = Literal["path", "judge"]
NAMES: tuple[Name, ...] = get_args(Name)
TRIAL_QUESTIONS = 12
TRIAL_PAIRS = 6
LEAST_EVIDENCE = 4
"""Questions or verdicts under which nothing is concluded: the next batch decides."""
GOOD_SHARE = 0.7
"""Share of distinct valid questions, or of valid verdicts, with which a model is asked for JSON."""
LEAST_SPREAD = 0.25
"""Standard deviation of the overall scores below which a judge tells nothing apart."""
LEAST_MARGIN = 1.0
"""How much less planted bad pairs must score, overall, with a judge that is asked."""
_TRYING = "Trying questions by schema"
_PROMPTS: Mapping[Name, tuple[str, ...]] = MappingProxyType(
    {"path": (*ARTIFACT_PROMPTS, *STRUCTURED_PROMPTS, *COMPLETION_PROMPTS), "judge": JUDGE_PROMPTS}
)
_DECIDED: Mapping[Name, str] = MappingProxyType({"path": "qa_pairs", "judge": "qa_scores"})


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        name: the setting of the group ``synthesis``.
        value: the value that it stands for.
        reason: why, in words.
        figures: what the trial measured.
    """

    name: Name
    value: str
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def applied(self, settings: Settings) -> Settings:
        """The settings with the choice in place of ``auto``."""
        synthesis = settings.synthesis.model_copy(update={self.name: self.value})
        return settings.model_copy(update={"synthesis": synthesis})

    def facts(self) -> dict[str, Any]:
        """Metadata of the asset that is made so."""
        return {self.name: self.value, f"{self.name}_because": self.reason, **self.figures}


@dataclass(frozen=True)
class _Outcome:
    """What came of some questions.

    Attributes:
        asked: questions whose outcome says something about the model.
        valid: those that keep the rules.
        distinct: different ones among these.
        fault: the commonest reason of the others.
    """

    asked: int
    valid: int
    distinct: int
    fault: str

    @property
    def share(self) -> float:
        return self.distinct / max(1, self.asked)

    def __str__(self) -> str:
        fault = f", the others mostly {self.fault}" if self.fault else ""
        return f"{self.valid} of {self.asked} questions valid, {self.distinct} distinct{fault}"

    def figures(self, name: str) -> dict[str, float]:
        return {f"{name}_{key}": getattr(self, key) for key in ("asked", "valid", "distinct")}


def choose_path(segments: pl.DataFrame, titles: Mapping[str, str], settings: Settings) -> Choice:
    """Decide whether the model completes texts or is asked for JSON by schema.

    Args:
        segments: frame of :data:`tables.SEGMENTS` of the batch.
        titles: document id to title.
        settings: the product's settings; only where ``synthesis.path`` is auto may there be a trial.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures, EmbeddedModelError, AnswersCut: from the client.
    """
    return _choose("path", settings, lambda: _try_paths(segments, titles, settings))


def choose_judge(pairs: pl.DataFrame, segments: pl.DataFrame, settings: Settings) -> Choice:
    """Decide whether a model is asked for its verdicts or the pairs are measured.

    Args:
        pairs: frame of :data:`tables.QA_PAIRS` of the batch.
        segments: frame of :data:`tables.SEGMENTS` of the batch.
        settings: the product's settings; only where ``synthesis.judge`` is auto may there be a trial.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures, EmbeddedModelError, AnswersCut: from the client.
    """
    return _choose("judge", settings, lambda: _try_judge(pairs, segments, settings))


def known_choice(name: Name, settings: Settings, store: ResponseStore) -> Choice | None:
    """What is chosen without a trial: by the setting, by what the model is, or by an earlier trial; else None."""
    value = getattr(settings.synthesis, name)
    if value != "auto":
        return Choice(name, value, "it is set")
    if settings.llm.embedded and settings.llm.gguf_path is None:
        return _usual(name, settings, "the packaged model completes texts and is no judge")
    stored = store.decision(_key(name, settings))
    if stored is not None:
        return Choice(name, **json.loads(stored))
    return _usual(name, settings, "nothing is tried with llm.batch") if settings.llm.batch else None


def _usual(name: Name, settings: Settings, reason: str) -> Choice:
    """The choice by whether there is an endpoint."""
    values = ("completion", "structured") if name == "path" else ("measured", "asked")
    return Choice(name, values[not settings.llm.embedded], reason)


def _key(name: Name, settings: Settings) -> str:
    parts = (name, settings.digest(_DECIDED[name]), prompt_version(*_PROMPTS[name]))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _choose(name: Name, settings: Settings, trial: Callable[[], Coroutine[Any, Any, Choice | None]]) -> Choice:
    with ResponseStore(settings.paths.responses) as store:
        choice = known_choice(name, settings, store)
        if choice is None:
            choice = run_interruptibly(trial())
            if choice is None:
                choice = _usual(name, settings, "there is too little to try it on")
            else:
                said = {"value": choice.value, "reason": choice.reason, "figures": dict(choice.figures)}
                choice = Choice(name, **json.loads(store.decide(_key(name, settings), json.dumps(said))))
    if getattr(settings.synthesis, name) == "auto":
        logger.info("synthesis.%s: %s (%s)", name, choice.value, choice.reason)
    return choice


async def _try_paths(segments: pl.DataFrame, titles: Mapping[str, str], settings: Settings) -> Choice | None:
    async with open_client(settings.llm, settings.paths.responses) as client:
        calls, found = await sample_questions(segments, titles, settings, client)
    lost = {tuple(sorted(reject.segment_ids)) for reject in found.rejects if reject.reason in ITEM_REASONS}
    told = [call for call in calls if tuple(sorted(call.segment_ids)) not in lost]
    by_schema = _outcome(sum(len(call.requests) for call in told), found)
    if by_schema.asked < LEAST_EVIDENCE:
        return None
    figures = by_schema.figures("structured")
    if by_schema.share >= GOOD_SHARE:
        return Choice("path", "structured", str(by_schema), figures)
    wanted = {segment for call in calls for segment in call.segment_ids}
    sources = askable_sources(segments, titles, artifact_frame([]), settings)
    tasks = [task for task in plan_single_hop(sources, settings) if task.sources[0].segment_id in wanted]
    completed = await _try_completion(tasks, settings)
    figures |= completed.figures("completion")
    reason = f"by schema {by_schema}; by completion {completed}"
    return Choice("path", "completion" if completed.share > by_schema.share else "structured", reason, figures)


async def sample_questions(
    segments: pl.DataFrame, titles: Mapping[str, str], settings: Settings, client: LLMClient
) -> tuple[list[PromptCall], Generated]:
    """Ask for a few of the run's artifacts and questions, of as many documents as possible.

    Returns:
        The calls for questions, and what came of them.
    """
    opening: dict[str, Window] = {}
    for window in plan_windows(segments):
        opening.setdefault(window[0]["document_id"], window)
    every = askable_sources(segments, titles, artifact_frame([]), settings)
    askable = {source.segment_id for source in every if source.asked}
    windows, wanted = [], 0
    for window in work_order(list(opening.values()), settings.seed):
        held = sum(row["segment_id"] in askable for row in window)
        if held and wanted < TRIAL_QUESTIONS:
            windows.append(window)
            wanted += held * settings.synthesis.questions_per_segment
    batch = segments["batch"][0] if windows else ""
    # The first of each kind runs alone: what more at once bring shows the endpoint's capacity.
    rows = await ask_artifacts(batch, windows[:1], settings, client, Counter())
    rows += await ask_artifacts(batch, windows[1:], settings, client, Counter())
    sources = askable_sources(segments, titles, artifact_frame(rows), settings)
    shown = {row["segment_id"] for window in windows for row in window}
    planned = plan_calls(plan_single_hop(sources, settings))
    inside = work_order([call for call in planned if set(call.segment_ids) <= shown], settings.seed)
    # The first call of each document, then their second ones.
    seen: Counter[str] = Counter()
    ranked = []
    for call in inside:
        document = next(iter(call.sources.values())).document_id
        ranked.append((seen[document], call))
        seen[document] += 1
    calls: list[PromptCall] = []
    for _, call in sorted(ranked, key=lambda place: place[0]):
        if sum(len(chosen.requests) for chosen in calls) < TRIAL_QUESTIONS:
            calls.append(call)
    first, others = [await ask_calls(part, settings, client, label=_TRYING) for part in (calls[:1], calls[1:])]
    return calls, Generated(first.pairs + others.pairs, first.rejects + others.rejects)


def sample_tasks(sources: list[Source], settings: Settings) -> list[QuestionTask]:
    """A few of the run's single-hop tasks."""
    tasks: list[QuestionTask] = []
    for task in work_order(plan_single_hop(sources, settings), settings.seed):
        if sum(len(chosen.specs) for chosen in tasks) < TRIAL_QUESTIONS:
            tasks.append(task)
    return tasks


async def _try_completion(tasks: list[QuestionTask], settings: Settings) -> _Outcome:
    """The same segments by completion; an endpoint without that route has no outcome."""
    asked = sum(len(task.specs) for task in tasks)
    try:
        async with open_client(settings.llm, settings.paths.responses) as client:
            found = await complete_questions(tasks, settings, client)
    except EndpointError as error:
        logger.info("completions cannot be tried: %s", error)
        return _Outcome(asked, 0, 0, "refused")
    return _outcome(asked, found)


def _outcome(asked: int, found: Generated) -> _Outcome:
    """Count what came of so many questions."""
    distinct = {" ".join(pair.question.lower().split()) for pair in found.pairs}
    reasons = Counter(reject.reason for reject in found.rejects if reject.reason not in ITEM_REASONS)
    fault = reasons.most_common(1)[0][0] if reasons else ""
    return _Outcome(max(len(found.pairs), asked), len(found.pairs), len(distinct), fault)


async def _try_judge(pairs: pl.DataFrame, segments: pl.DataFrame, settings: Settings) -> Choice | None:
    rows = pairs.sort("qa_id").to_dicts()
    texts = dict(segments.select("segment_id", "text").iter_rows())
    planted = plant_bad_pairs(rows)
    spoiled = {pair["qa_id"] for pair in planted}
    chosen = sorted(work_order(rows, settings.seed), key=lambda row: row["qa_id"] not in spoiled)[:TRIAL_PAIRS]
    async with open_client(settings.llm, settings.paths.responses) as client:
        verdicts = await ask_judge([*chosen, *planted], texts, settings, client, label="Trying the judge")
    told = [verdict for verdict in verdicts if not _says_nothing(verdict)]
    good = [verdict.overall for verdict in verdicts[: len(chosen)] if isinstance(verdict, Judgement)]
    bad = [verdict.overall for verdict in verdicts[len(chosen) :] if isinstance(verdict, Judgement)]
    if len(told) < LEAST_EVIDENCE:
        return None
    valid = len(good) + len(bad)
    spread = statistics.pstdev([*good, *bad]) if valid else 0.0
    margin = statistics.fmean(good) - statistics.fmean(bad) if good and bad else None
    figures = {"judge_asked": len(told), "judge_valid": valid, "judge_spread": round(spread, 3)}
    said = [f"{valid} of {len(told)} verdicts valid", f"their overall scores spread by {spread:.2f}"]
    if margin is not None:
        figures["judge_margin"] = round(margin, 3)
        said.append(f"planted bad pairs score {margin:.2f} below the others")
    sound = valid >= GOOD_SHARE * len(told) and spread >= LEAST_SPREAD and (margin is None or margin >= LEAST_MARGIN)
    return Choice("judge", "asked" if sound else "measured", ", ".join(said), figures)


def _says_nothing(verdict: Judgement | NoVerdict) -> bool:
    return isinstance(verdict, NoVerdict) and verdict.reason in ITEM_REASONS
