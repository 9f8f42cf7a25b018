"""Questions from an instruction-following model at an OpenAI-compatible endpoint, as validated JSON.

Segments carry short labels (S1, S2, ...) in the prompt, which models copy faithfully, as they do not copy hashes. What
is asked of each question is a numbered request, so that what came can be compared with what was asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator

from embed_pipeline.enumerations import QueryType, ReasoningType, Style
from embed_pipeline.llm.answers import InvalidAnswer, exactly, explain_problem, parse_answer, some_of
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.prompts import delimit, plain_label, read_prompt
from embed_pipeline.settings import Settings, Synthesis
from embed_pipeline.synthesis.example_queries import ExampleQueries, ShownQueries
from embed_pipeline.synthesis.pairs import Generated, Hop, Pair, Reject, find_problem, form_problem, subject_words
from embed_pipeline.synthesis.plan import QuestionSpec, QuestionTask, Source, work_order
from embed_pipeline.text.languages import AUTO, detect_language
from embed_pipeline.text.words import names_code, words

PAIRS_PER_CALL = 8
"""More in one answer would be cut at the usual length limit, and are written worse."""
_ARTIFACTS_SHOWN = 6
_QUESTION_CHARACTERS = 300
"""Bounds in the schema, so that a model cannot ramble; what validation lets pass is wider."""
_ANSWER_CHARACTERS = 1500
_SUMMARY_CHARACTERS = 400
_COPIED_WORDS = 4
_COPIED_SHARE = 0.5
_FORMS_REFUSED = frozenset({"instruction", "refers_to_text", "asks_the_model"})


class HopAnswer(BaseModel):
    """One hop as the model states it."""

    model_config = ConfigDict(extra="forbid")
    segments: list[str]
    summary: str

    @property
    def labels(self) -> list[str]:
        """The segments' labels as they were given."""
        return [plain_label(label) for label in self.segments]


class PairAnswer(BaseModel):
    """One pair as the model states it."""

    model_config = ConfigDict(extra="forbid")
    request: int
    question: str
    answer: str
    query_type: QueryType
    reasoning_type: ReasoningType
    style: Style
    complexity: int
    hops: list[HopAnswer]


class PairsAnswer(BaseModel):
    """The whole answer to one call: one pair that is malformed does not spoil the others."""

    model_config = ConfigDict(extra="forbid")
    pairs: list[PairAnswer]
    _malformed: list[tuple[str, str]] = PrivateAttr(default_factory=list)

    @model_validator(mode="wrap")
    @classmethod
    def _one_by_one(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - JSON
        """Take the pairs that validate; an answer without any is refused as a whole.

        Raises:
            ValidationError: there is no valid pair, or no list of pairs.
        """
        items = value.get("pairs") if isinstance(value, dict) else None
        if not isinstance(items, list):
            return handler(value)
        kept, malformed = [], []
        for item in items:
            text = json.dumps(item, ensure_ascii=False)
            try:
                kept.append(parse_answer(text, PairAnswer).model_dump())
            except ValueError as error:
                malformed.append((text, explain_problem(error)))
        answer = handler({**value, "pairs": kept} if kept else value)
        answer._malformed = malformed  # noqa: SLF001 - of this class
        return answer

    @property
    def malformed(self) -> list[tuple[str, str]]:
        """The entries that are no pairs, as JSON, each with what is wrong with it."""
        return self._malformed


@dataclass(frozen=True)
class RequestedQuestion:
    """One question asked for: the labels of its segments, and what it should be like."""

    labels: tuple[str, ...]
    spec: QuestionSpec


@dataclass(frozen=True)
class PromptCall:
    """One call: labelled segments, numbered requests over them, a seed, and people's queries where there are some."""

    sources: Mapping[str, Source]
    requests: tuple[RequestedQuestion, ...]
    seed: int
    examples: ShownQueries | None = None

    @property
    def segment_ids(self) -> tuple[str, ...]:
        """The segments, in the order of their labels."""
        return tuple(source.segment_id for source in self.sources.values())

    @property
    def request_lines(self) -> list[str]:
        """The requests as the prompt states them."""
        return [
            f"{number}. on {', '.join(request.labels)}: {request.spec.query_type}, {request.spec.reasoning_type}, "
            f"style {request.spec.style}, complexity {request.spec.complexity}"
            for number, request in enumerate(self.requests, start=1)
        ]


def plan_calls(tasks: Sequence[QuestionTask]) -> list[PromptCall]:
    """Put the single-hop tasks of a document together, a few to a call; a multi-hop task is a call of its own."""
    by_document: dict[str, list[QuestionTask]] = {}
    for task in tasks:
        if len(task.sources) == 1:
            by_document.setdefault(task.sources[0].document_id, []).append(task)
    windows: list[list[QuestionTask]] = []
    for members in by_document.values():
        windows.append([])
        for task in members:
            if windows[-1] and sum(len(t.specs) for t in windows[-1]) + len(task.specs) > PAIRS_PER_CALL:
                windows.append([])
            windows[-1].append(task)
    windows += [[task] for task in tasks if len(task.sources) > 1]
    return [_call(window) for window in windows]


def _call(tasks: list[QuestionTask]) -> PromptCall:
    sources: dict[str, Source] = {}
    requests = []
    for task in tasks:
        labels = tuple(f"S{len(sources) + number}" for number in range(1, len(task.sources) + 1))
        sources.update(zip(labels, task.sources, strict=True))
        requests += [RequestedQuestion(labels, spec) for spec in task.specs]
    return PromptCall(sources, tuple(requests), tasks[0].seed)


def _halves(call: PromptCall) -> list[PromptCall]:
    """Two calls with half of the requests each, and the segments that these are on."""
    middle = len(call.requests) // 2
    halves = []
    for requests in (call.requests[:middle], call.requests[middle:]):
        labels = {label for request in requests for label in request.labels}
        sources = {label: source for label, source in call.sources.items() if label in labels}
        halves.append(replace(call, sources=sources, requests=requests))
    return halves


def messages_of(call: PromptCall) -> list[dict[str, Any]]:
    """The conversation that asks for a call's pairs."""
    texts = {label: f"({source.title})\n{source.text}" for label, source in call.sources.items()}
    named = {label: source.artifacts[:_ARTIFACTS_SHOWN] for label, source in call.sources.items() if source.artifacts}
    steer = f"\n\nWhat the segments are about: {json.dumps(named, ensure_ascii=False)}" if named else ""
    asked = "\n".join(call.request_lines)
    style = f"\n\n{call.examples.prompt}" if call.examples else ""
    return [
        {"role": "system", "content": read_prompt("questions.md") + style},
        {"role": "user", "content": f"{delimit(texts)}\n\nRequests:\n{asked}{steer}"},
    ]


def known_of(call: PromptCall, synthesis: Synthesis) -> dict[str, dict[str, Any]]:
    """What a call knows of its answer beforehand, for the schema."""
    hops = [len(request.labels) for request in call.requests]
    multi = max(hops) > 1
    return {
        "PairsAnswer.pairs": exactly(len(call.requests)),
        "PairAnswer.request": {"enum": list(range(1, len(call.requests) + 1))},
        "PairAnswer.question": {"minLength": 1, "maxLength": _QUESTION_CHARACTERS},
        "PairAnswer.answer": {"minLength": 1, "maxLength": _ANSWER_CHARACTERS},
        "PairAnswer.query_type": {"enum": ["multi_hop"] if multi else ["contextual", "structural"]},
        "PairAnswer.complexity": {"enum": list(range(synthesis.min_complexity, synthesis.max_complexity + 1))},
        "PairAnswer.hops": {"minItems": min(hops), "maxItems": max(hops)},
        "HopAnswer.segments": some_of(list(call.sources), most=1),
        "HopAnswer.summary": {"minLength": 1, "maxLength": _SUMMARY_CHARACTERS},
    }


def _about(call: PromptCall) -> str:
    """The documents and segments of a call, for messages."""
    documents = sorted({source.document_id for source in call.sources.values()})
    return f"document {' and '.join(documents)} (segments {', '.join(call.segment_ids)})"


async def ask_questions(tasks: list[QuestionTask], settings: Settings, client: LLMClient) -> Generated:
    """Ask for the questions of all tasks.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """
    return await ask_calls(work_order(plan_calls(tasks), settings.seed), settings, client)


async def ask_calls(
    calls: Sequence[PromptCall], settings: Settings, client: LLMClient, *, label: str = "Writing questions"
) -> Generated:
    """Make the calls; one that the model's context does not hold, or whose answer is cut, is made in halves.

    Args:
        calls: from :func:`plan_calls`.
        settings: sampling, hops and complexity, and people's queries.
        client: the endpoint.
        label: what the progress shows.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
        ExampleQueriesError: ``synthesis.example_queries`` cannot be read.
    """
    accepted = [0, 0]
    examples = ExampleQueries.of(settings)
    if examples:
        calls = [replace(call, examples=examples.shown(settings.seed)) for call in calls]

    async def ask(call: PromptCall) -> Generated:
        temperature = settings.synthesis.sampling_temperature
        try:
            answer = await client.structured(
                messages_of(call),
                PairsAnswer,
                temperature=temperature,
                seed=call.seed,
                known=known_of(call, settings.synthesis),
                about=_about(call),
            )
        except InvalidAnswer as error:
            if error.reason in {"prompt_too_long", "cut_at_length"} and len(call.requests) > 1:
                first, second = [await ask(half) for half in _halves(call)]
                return Generated(first.pairs + second.pairs, first.rejects + second.rejects)
            return Generated([], [Reject(call.segment_ids, error.reason, str(error), error.raw)])
        found = sort_answer(answer.value, call, settings.synthesis.max_hops, settings.corpus.language)
        accepted[0] += len(found.pairs)
        accepted[1] += len(call.requests)
        return found

    def note() -> str:
        return f"{accepted[0] / max(1, accepted[1]):.0%} valid"

    results = await client.gather(calls, ask, label=label, unit="call", note=note)
    return Generated(
        [pair for result in results for pair in result.pairs],
        [reject for result in results for reject in result.rejects],
    )


def sort_answer(answer: PairsAnswer, call: PromptCall, max_hops: int, language: str = AUTO) -> Generated:
    """Take the pairs that keep the rules; the others are rejects, and so is a request that got none."""
    found = Generated([], [Reject(call.segment_ids, "invalid_pair", problem, raw) for raw, problem in answer.malformed])
    unanswered = dict(enumerate(call.requests, start=1))
    for item in answer.pairs:
        request = unanswered.pop(item.request, None)
        labels = request.labels if request else tuple(call.sources)
        known = {call.sources[label].segment_id: call.sources[label].document_id for label in labels}
        pair = _pair(item, call)
        problem = _not_as_asked(item, request) or _form(pair, call, language) or find_problem(pair, known, max_hops)
        if problem is None:
            found.pairs.append(pair)
        else:
            found.rejects.append(Reject(tuple(known), *problem, item.model_dump_json()))
    for number, request in unanswered.items():
        ids = tuple(call.sources[label].segment_id for label in request.labels)
        detail = f"request {number} of {len(call.requests)} got no pair"
        found.rejects.append(Reject(ids, "not_written", detail, answer.model_dump_json()))
    return found


def _pair(item: PairAnswer, call: PromptCall) -> Pair:
    hops = tuple(
        Hop(tuple(call.sources[s].segment_id if s in call.sources else s for s in hop.labels), hop.summary)
        for hop in item.hops
    )
    kinds = (item.query_type, item.reasoning_type, item.complexity)
    return Pair(item.question, item.answer, *kinds, hops, item.style)


def _not_as_asked(item: PairAnswer, request: RequestedQuestion | None) -> tuple[str, str] | None:
    if request is None:
        return "not_asked", f"no request {item.request}, or it had its pair already"
    used = sorted({label for hop in item.hops for label in hop.labels})
    if used != sorted(request.labels):
        return "wrong_segments", f"asked on {', '.join(request.labels)}, written on {', '.join(used) or 'none'}"
    return None


def _form(pair: Pair, call: PromptCall, language: str) -> tuple[str, str] | None:
    """Forms that no language excuses; the others are left to the judge."""
    if copies_prompt(pair.question, call.request_lines):
        return "copies_prompt", "the question is a sentence of the prompt"
    if call.examples and call.examples.holds(pair.question):
        return "copies_prompt", "the question is one of synthesis.example_queries"
    language = detect_language(pair.question) if language == AUTO else language
    problem = form_problem(pair.question, pair.style, language)
    if problem in _FORMS_REFUSED:
        return problem, "form of the question"
    if pair.question.strip() and not names_code(pair.question) and not subject_words(pair.question, language):
        return "no_subject", "no word of the question says what it is about"
    return None


def copies_prompt(question: str, requests: Iterable[str] = ()) -> bool:
    """True where half of a question's runs of four words are runs of the prompt, its example and requests included."""
    runs, said = _runs(question), _prompt_runs().union(*map(_runs, requests))
    return bool(runs) and len(runs & said) >= _COPIED_SHARE * len(runs)


@cache
def _prompt_runs() -> frozenset[tuple[str, ...]]:
    return frozenset(_runs(read_prompt("questions.md")))


def _runs(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[start : start + _COPIED_WORDS]) for start in range(len(found) - _COPIED_WORDS + 1)}
