"""Questions from a small model that does not follow instructions: few-shot completion, one line, several candidates.

A model of a hundred million parameters continues a pattern well and follows instructions badly. So it only writes the
question. What kind of question is steered by the words that it begins with ("How do I", "What happens"); a keyword
query is the question less its function words; the answer is the sentence of the source that supports the question; the
other fields are read off its form. What does not look like a question about its source is turned away at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.prompts import COMPLETION_PROMPTS, fill_prompt, shared_beginning
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.pairs import Generated, Hop, Pair, Reject, find_problem, form_problem
from embed_pipeline.synthesis.plan import QuestionSpec, QuestionTask, Source, work_order
from embed_pipeline.text.words import (
    content_words,
    inverse_document_frequency,
    keywords,
    readable,
    supporting_sentence,
    unsupported_terms,
)

_SINGLE_HOP, _MULTI_HOP = COMPLETION_PROMPTS
_PASSAGE_CHARACTERS = 900
_HOP_CHARACTERS = 420
_MAX_TOKENS = 40
_TEMPERATURE_STEP = 0.2
_OPENINGS = {
    "procedural": ("How do I", "How do you", "How can I"),
    "causal": ("What happens when", "What happens if", "Why"),
    "inferential": ("Can", "Is it possible to", "Does"),
    "relational": ("How does", "How is"),
    "temporal": ("When should", "When is"),
}
_JOINING = (
    "What is the difference between {first} and {last}",
    "How does {first} affect {last}",
    "How do {first} and {last} work together",
)
_JOINING_MANY = ("How do {first} and {last} differ", "How do {first} and {last} work together")
_SPACED_MARK = re.compile(r"\s+([?.,])")
_REASONING = (
    ("procedural", ("how do i", "how do you", "how can", "how to", "how should")),
    ("causal", ("why", "what causes", "what happens", "what makes")),
    ("temporal", ("when", "how long", "how often", "in what order", "since which")),
    ("relational", ("what is the difference", "how do", "how is", "which of", "what is the relationship")),
    ("inferential", ("can", "does", "is", "are", "do", "will", "should", "would", "could", "if")),
)
_MOST_WORDS = 5
_MOST_CHARACTERS = 60


async def complete_questions(tasks: list[QuestionTask], settings: Settings, client: LLMClient) -> Generated:
    """Ask every task once for each of its specs, at rising temperature.

    The specs of one task run one after another, so that the server processes its passage once.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """
    idf = inverse_document_frequency(source.text for task in tasks for source in task.sources)
    accepted = [0, 0]

    async def ask(task: QuestionTask) -> Generated:
        found = Generated()
        if len(task.sources) > 1 and not all(subjects_of(task.sources, task.seed)):
            ids = tuple(source.segment_id for source in task.sources)
            found.rejects.append(Reject(ids, "no_subjects", "no heading or artifact tells the sources apart", ""))
            return found
        for number, spec in enumerate(task.specs):
            opening = _opening(task, spec, task.seed + number)
            try:
                answer = await client.complete(
                    *_parts(task.sources),
                    f"Question: {opening}".rstrip(),
                    stop=["\n"],
                    max_tokens=_MAX_TOKENS,
                    temperature=settings.synthesis.sampling_temperature + _TEMPERATURE_STEP * number,
                    seed=task.seed + number,
                )
            except InvalidAnswer as error:
                ids = tuple(source.segment_id for source in task.sources)
                found.rejects.append(Reject(ids, error.reason, str(error), error.raw))
                continue
            _sort(opening, answer.text, task, spec, found, idf, settings.corpus.language)
        accepted[0] += len(found.pairs)
        accepted[1] += len(task.specs)
        return found

    def note() -> str:
        return f"{accepted[0] / max(1, accepted[1]):.0%} well formed"

    # Multi-hop prompts share another beginning, which each server processes once.
    ordered = sorted(work_order(tasks, settings.seed), key=lambda task: len(task.sources) > 1)
    results = await client.gather(ordered, ask, label="Writing questions", unit="segments", note=note)
    return Generated(
        [pair for result in results for pair in result.pairs],
        [reject for result in results for reject in result.rejects],
    )


def _opening(task: QuestionTask, spec: QuestionSpec, seed: int) -> str:
    """The words that a question of the requested kind begins with; empty where any beginning will do.

    Without them the model asks about only one of several passages, so a multi-hop question begins with the subjects of
    all of them.
    """
    if len(task.sources) == 1:
        choices = _OPENINGS.get(spec.reasoning_type, ("",))
        return choices[seed % len(choices)]
    *first, last = subjects_of(task.sources, task.seed)
    joining = _JOINING if len(first) == 1 else _JOINING_MANY
    return joining[seed % len(joining)].format(first=", ".join(first), last=last)


def _parts(sources: tuple[Source, ...]) -> tuple[str, str]:
    """The prompt up to the question, in two parts: what all prompts share, and the rest."""
    if len(sources) == 1:
        name = _SINGLE_HOP
        passage = readable(sources[0].text, _PASSAGE_CHARACTERS)
        prompt = fill_prompt(name, title=sources[0].title, passage=passage)
    else:
        name = _MULTI_HOP
        lines = [
            f"Passage {chr(ord('A') + index)} ({source.title}): {readable(source.text, _HOP_CHARACTERS)}"
            for index, source in enumerate(sources)
        ]
        prompt = fill_prompt(name, passages="\n".join(lines))
    shared = shared_beginning(name)
    return shared, prompt.removeprefix(shared).removesuffix("Question:")


def _sort(  # noqa: PLR0917 - a candidate and its context
    opening: str,
    text: str,
    task: QuestionTask,
    spec: QuestionSpec,
    found: Generated,
    idf: Mapping[str, float],
    language: str,
) -> None:
    """Put a candidate among the pairs or the rejects of ``found``."""
    question = _SPACED_MARK.sub(r"\1", " ".join(f"{opening} {text}".split()))
    # What a multi-hop question begins with holds its subjects.
    short = keywords(text if len(task.sources) == 1 else question)
    pair = _pair(question, short if spec.style == "keywords" else "", task.sources, idf, language)
    ids = tuple(source.segment_id for source in task.sources)
    known = {source.segment_id: source.document_id for source in task.sources}
    problem = _problem(question, task.sources, found, language) or find_problem(pair, known, len(task.sources))
    if problem is None:
        found.pairs.append(pair)
    else:
        found.rejects.append(Reject(ids, *problem, f"{opening} {text}"))


def _problem(question: str, sources: tuple[Source, ...], found: Generated, language: str) -> tuple[str, str] | None:
    """The first thing wrong with a question as (reason, detail); None where nothing is."""
    form = form_problem(question, language=language)
    if form is not None:
        return form, "form of the question"
    if any(question.lower() == pair.question.lower() for pair in found.pairs):
        return "repeated", "an earlier candidate for the same segment asks the same"
    invented = unsupported_terms(question, "\n".join(f"{source.title}\n{source.text}" for source in sources))
    if invented:
        return "unsupported_term", ", ".join(invented)
    asked = set(content_words(question))
    # The outer headings do not anchor a question in one of several sources: those may share them.
    said = [f"{source.heading if len(sources) > 1 else source.title} {source.text}" for source in sources]
    missing = [s.title for s, text in zip(sources, said, strict=True) if not asked & set(content_words(text))]
    return ("source_not_asked_about", ", ".join(missing)) if missing else None


def _pair(question: str, short: str, sources: tuple[Source, ...], idf: Mapping[str, float], language: str) -> Pair:
    """The pair that a question makes; ``short``: its keywords, used in its place where they make a query."""
    summaries = [supporting_sentence(question, source.text, idf) for source in sources]
    hops = tuple(Hop((source.segment_id,), summary) for source, summary in zip(sources, summaries, strict=True))
    reasoning = reasoning_of(question) if len(sources) == 1 else "relational"
    complexity = min(5, len(sources) + (reasoning not in {"factual", "temporal"}))
    kind = "multi_hop" if len(sources) > 1 else ("structural" if reasoning == "procedural" else "contextual")
    style = "keywords" if form_problem(short, "keywords", language) is None else "question"
    said = short if style == "keywords" else question
    return Pair(said, " ".join(summaries), kind, reasoning, complexity, hops, style)


def reasoning_of(question: str) -> str:
    """Reasoning type that the opening words of a single-hop question show; ``factual`` where none do."""
    lowered = question.lower()
    return next((kind for kind, openings in _REASONING if lowered.startswith(openings)), "factual")


def subjects_of(sources: Sequence[Source], seed: int) -> list[str]:
    """A name for each source, its heading or an artifact, with a word that the others do not say; empty for none.

    Args:
        sources: at least two.
        seed: chooses among the names.
    """
    names: list[str] = []
    for place, source in enumerate(sources):
        others = [other for number, other in enumerate(sources) if number != place]
        elsewhere = set(content_words(" ".join(f"{other.title} {other.text}" for other in others)))
        named = (readable(candidate, _MOST_CHARACTERS) for candidate in (source.heading, *source.artifacts))
        fitting = [name for name in dict.fromkeys(named) if _subject_fits(name, elsewhere) and name not in names]
        names.append(fitting[seed % len(fitting)] if fitting else "")
    return names


def _subject_fits(name: str, elsewhere: set[str]) -> bool:
    """True for a short name with a word that occurs in no other source."""
    return len(name.split()) <= _MOST_WORDS and bool(set(content_words(name)) - elsewhere)
