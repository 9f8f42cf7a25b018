"""Questions from a small model without instruction sense: few-shot completion, one line, several candidates.

A model of a hundred million parameters continues a pattern well and follows instructions badly. So it only
writes the question; the answer is the sentence of the source that supports it, the other fields are read off
the question's form, and what does not look like a question about its source is turned away at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from embed_pipeline.llm.client import LLMClient
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.pairs import Generated, Hop, Pair, Reject
from embed_pipeline.synthesis.plan import Source, Task
from embed_pipeline.synthesis.prompts import COMPLETION_PROMPTS, fill_prompt, shared_beginning
from embed_pipeline.synthesis.words import (
    content_words,
    form_problem,
    inverse_document_frequency,
    supporting_sentence,
    unsupported_terms,
)

_SINGLE_HOP, _MULTI_HOP = COMPLETION_PROMPTS
_PASSAGE_CHARACTERS = 900
_HOP_CHARACTERS = 420
_MAX_TOKENS = 40
_TEMPERATURE_STEP = 0.25

_REASONING = (
    ("procedural", ("how do", "how can", "how to", "how should", "how would", "how is", "how are")),
    ("causal", ("why", "what causes", "what happens", "what makes")),
    ("temporal", ("when", "how long", "how often", "in what order", "since which")),
    ("relational", ("what is the difference", "how does", "which of", "what is the relationship")),
    ("inferential", ("can", "does", "is", "are", "do", "will", "should", "would", "could", "if")),
)


async def complete_questions(tasks: list[Task], settings: Settings, client: LLMClient) -> Generated:
    """Ask every task ``synthesis.questions_per_segment`` times at rising temperature; multi-hop tasks once.

    Candidates of one task run one after another, so that the server answers all but the first from its cache
    of the prompt.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """
    idf = inverse_document_frequency(source.text for task in tasks for source in task.sources)

    async def ask(task: Task) -> Generated:
        found = Generated()
        seen: set[str] = set()
        name, prompt = _prompt(task.sources)
        count = settings.synthesis.questions_per_segment if len(task.sources) == 1 else 1
        for candidate in range(count):
            answer = await client.complete(
                prompt,
                shared=shared_beginning(name),
                stop=["\n"],
                max_tokens=_MAX_TOKENS,
                temperature=settings.synthesis.temperature + _TEMPERATURE_STEP * candidate,
                seed=task.seed + candidate,
            )
            _sort(answer.text, task, found, seen, idf)
        return found

    results = await client.gather(tasks, ask, label="Writing questions", unit="segments")
    return Generated(
        [pair for result in results for pair in result.pairs],
        [reject for result in results for reject in result.rejects],
    )


def _prompt(sources: tuple[Source, ...]) -> tuple[str, str]:
    """The prompt's file, and the prompt."""
    if len(sources) == 1:
        passage = _shorten(sources[0].text, _PASSAGE_CHARACTERS)
        return _SINGLE_HOP, fill_prompt(_SINGLE_HOP, title=sources[0].title, passage=passage)
    lines = [
        f"Passage {chr(ord('A') + index)} ({source.title}): {_shorten(source.text, _HOP_CHARACTERS)}"
        for index, source in enumerate(sources)
    ]
    return _MULTI_HOP, fill_prompt(_MULTI_HOP, passages="\n".join(lines))


def _shorten(text: str, characters: int) -> str:
    """One line of at most ``characters``, cut at a word."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[:characters].rsplit(" ", 1)[0]


def _sort(text: str, task: Task, found: Generated, seen: set[str], idf: Mapping[str, float]) -> None:
    """Put a candidate among the pairs or the rejects of ``found``."""
    question = " ".join(text.split())
    ids = tuple(source.segment_id for source in task.sources)
    source_text = "\n".join(f"{source.title}\n{source.text}" for source in task.sources)
    problem = form_problem(question)
    invented = unsupported_terms(question, source_text)
    if problem is None and question.lower() in seen:
        problem, detail = "repeated", "an earlier candidate for the same segment asks the same"
    elif problem is None and invented:
        problem, detail = "unsupported_term", ", ".join(invented)
    elif problem is None and (missing := _unanchored(question, task.sources)):
        problem, detail = "source_not_asked_about", missing
    else:
        detail = "form of the question"
    seen.add(question.lower())
    if problem is not None:
        found.rejects.append(Reject(ids, problem, detail, text))
        return
    found.pairs.append(_pair(question, task.sources, idf))


def _unanchored(question: str, sources: tuple[Source, ...]) -> str:
    """Titles of the sources that share no content word with the question; empty where all do."""
    asked = set(content_words(question))
    return ", ".join(s.title for s in sources if not asked & set(content_words(f"{s.title} {s.text}")))


def _pair(question: str, sources: tuple[Source, ...], idf: Mapping[str, float]) -> Pair:
    summaries = [supporting_sentence(question, source.text, idf) for source in sources]
    hops = tuple(Hop((source.segment_id,), summary) for source, summary in zip(sources, summaries, strict=True))
    reasoning = reasoning_of(question) if len(sources) == 1 else "relational"
    complexity = min(5, len(sources) + (reasoning not in {"factual", "temporal"}))
    kind = "multi_hop" if len(sources) > 1 else ("structural" if reasoning == "procedural" else "contextual")
    return Pair(question, " ".join(summaries), kind, reasoning, complexity, hops)


def reasoning_of(question: str) -> str:
    """Reasoning type that the opening words of a single-hop question show; ``factual`` where none do."""
    lowered = question.lower()
    return next((kind for kind, openings in _REASONING if lowered.startswith(openings)), "factual")
