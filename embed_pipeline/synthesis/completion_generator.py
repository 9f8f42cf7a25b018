"""Questions from a small model that does not follow instructions: few-shot completion, one line, several candidates.

A model of a hundred million parameters continues a pattern well and follows instructions badly. So it only writes the
question, and is shown no more than the sentence to ask about, with its headings. Its first words are given: an opening
that steers towards the wished kind, with a name that the sentence speaks of ("How does a wildcard pattern"), so that
the question stays with the sentence. Several sentences of a source are tried for each wish. Kept is the candidate of
the greatest worth: whose words its sentence says (support), and which the model finds likely once
it has read the sentence (log-probability). A keyword query is the question less its function words; the answer is the
sentence. What does not look like a question about its source, or is not supported, is rejected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.prompts import COMPLETION_PROMPTS, fill_prompt, shared_beginning
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.pairs import Generated, Hop, Pair, Reject, find_problem, form_problem
from embed_pipeline.synthesis.plan import QuestionSpec, QuestionTask, Source, work_order
from embed_pipeline.text.words import (
    content_words,
    inverse_document_frequency,
    is_plural,
    is_prose,
    keywords,
    name_of_heading,
    names_in,
    points_elsewhere,
    readable,
    sentences,
    support,
    unsupported_terms,
    words,
)

_SINGLE_HOP, _MULTI_HOP = COMPLETION_PROMPTS
FOCUSES = 3
"""Most sentences of a source that are tried for each wish."""
_FOCUS_CHARACTERS = 320
_MAX_TOKENS = 40
_TEMPERATURE_STEP = 0.2
_LEAST_SUPPORT = 0.55
_LEAST_WORTH = -0.2
_GOOD_WORTH = 0.15
"""A wish with such a candidate is not tried on further sentences."""
_LEAST_SAID = 5
"""Sentences of fewer different words that carry meaning are asked about last."""
_LEAST_ADDED = 2
"""So many words that carry meaning an answer says beyond its question."""
_LEAST_KEYWORDS = 3
_USUAL_LOG_PROBABILITY = -0.55
"""Taken where the endpoint tells none: then the bound on support alone decides."""
_OPENINGS: Mapping[str, tuple[str, ...]] = {
    "factual": ("What does", "What is", "What"),
    "procedural": ("How do I", "How do you", "How can I"),
    "causal": ("What happens if", "What happens when"),
    "inferential": ("Can", "Does", "Is"),
    "relational": ("How does", "How is", "What is the difference between"),
    "temporal": ("When is", "When does", "When should"),
    "multi_hop": ("How does", "What happens when"),
}
_NAMING_OPENINGS: Mapping[str, tuple[str, ...]] = {
    "factual": ("What {does} {name}", "What {be} {name}"),
    "procedural": ("How do I use {name}", "How can I use {name}"),
    "causal": ("What happens when {name}",),
    "inferential": ("Can {name}", "{Does} {name}"),
    "relational": ("How {does} {name}", "How {be} {name}"),
    "temporal": ("When {does} {name}", "When {be} {name}"),
}
_CONDITION = re.compile(
    r"\b(?:if|when|whenever|while|until|till|before|after|once|unless|during|since|whether|provided|as (?:soon|long) as"
    r"|except|upon|otherwise|in case|(?:first|last|each|every|any) time|at (?:the )?(?:start|end|time)|versions?"
    r"|years?|months?|weeks?|days?|hours?|minutes?|seconds?|daily|weekly|monthly|(?:1[5-9]|20)\d\d)\b",
    re.IGNORECASE,
)
"""Words by which a sentence says when; where there are none, a question that asks for that has no answer in it."""
_ASKS_WHEN = ("When", "What happens")
_ASKS_ALL = re.compile(
    r"what (?:is|are|does|do) (?:an? |the )?([^?]+?)(?: (?:do|mean|contain|represent))?\?", re.IGNORECASE
)
"""A question for all there is to say of a thing, which its sentence has to be about."""
_RELATES = re.compile(
    r"\b(?:of|for|in|on|to|with|from|by|at|as|when|if|that|which|between|not|return|happen)\b", re.IGNORECASE
)
_NAMING = {"called", "named", "termed", "means", "namely"}
_LEAD_WORDS = 3
"""So many words may stand before what a sentence is about."""
_PATH = " > "
_UNSPACED_END = re.compile(r"(?<=[。！？])")
_SPACED_MARK = re.compile(r"\s+([?.,])")
_REASONING = (
    ("procedural", ("how do i", "how do you", "how can", "how to", "how should")),
    ("causal", ("why", "what causes", "what happens", "what makes")),
    ("temporal", ("when", "how long", "how often", "in what order", "since which")),
    ("relational", ("what is the difference", "how do", "how is", "which of", "what is the relationship")),
    ("inferential", ("can", "does", "is", "are", "do", "will", "should", "would", "could", "if")),
)


@dataclass(frozen=True)
class _Focus:
    """What a question is asked about: a sentence of each source, and the one before it where that is short.

    Attributes:
        sentences: a sentence of each source.
        contexts: the sentence before each of them, or nothing.
        names: what the question may name: what a sentence of one source speaks of, and its source is about.
        heading: the source's heading, to be named where the sentence speaks of nothing; empty where it is no name.
    """

    sentences: tuple[str, ...]
    contexts: tuple[str, ...]
    names: tuple[str, ...] = ()
    heading: str = ""

    def can_answer(self, opening: str) -> bool:
        """Whether a sentence shown says a time or a condition, where a question that so begins asks for one."""
        shown = (*self.sentences, *self.contexts)
        return not opening.startswith(_ASKS_WHEN) or any(map(_CONDITION.search, shown))

    def is_about(self, name: str) -> bool:
        """Whether a sentence shown begins with a name or introduces it ("is called a ...")."""
        named, span = set(content_words(name)), len(words(name)) + _LEAD_WORDS
        for sentence in (*self.sentences, *self.contexts):
            said = words(sentence)
            starts = (0, *(place + 1 for place, word in enumerate(said) if word in _NAMING))
            if any(named.issubset(content_words(" ".join(said[start : start + span]))) for start in starts):
                return True
        return False

    def answers(self, question: str, idf: Mapping[str, float]) -> list[str]:
        """For each source the sentence, after the one before it where only both say what is asked."""
        both = [
            f"{context} {sentence}".strip() for context, sentence in zip(self.contexts, self.sentences, strict=True)
        ]
        return [
            whole if support(question, whole, idf) > support(question, sentence, idf) else sentence
            for whole, sentence in zip(both, self.sentences, strict=True)
        ]


@dataclass(frozen=True)
class _Candidate:
    """A question that the model wrote.

    Attributes:
        raw: opening and answer.
        pair: the pair that it makes.
        problem: why it cannot be used, as (reason, detail), or None.
        worth: support plus log-probability.
    """

    raw: str
    pair: Pair | None
    problem: tuple[str, str] | None
    worth: float = float("-inf")


async def complete_questions(tasks: list[QuestionTask], settings: Settings, client: LLMClient) -> Generated:
    """Ask every task for each of its specs about several sentences, and keep the best candidate of each spec.

    Sentences that say most come first; a spec with a good candidate is not asked again. What is asked about one
    sentence comes one after another, so that the server processes it once.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """
    sources = [source for task in tasks for source in task.sources]
    idf = inverse_document_frequency(source.text for source in sources)
    places = Counter(heading for heading, _ in {(source.heading.lower(), source.document_id) for source in sources})
    everywhere = frozenset(heading for heading, documents in places.items() if documents > 1)
    accepted = [0, 0]

    async def ask(task: QuestionTask) -> Generated:
        found = Generated()
        language = settings.corpus.language
        candidates: list[list[_Candidate]] = [[] for _ in task.specs]
        asked: Counter[tuple[int, str]] = Counter()
        for place, focus in enumerate(_focuses(task, idf, everywhere)):
            for number, spec in enumerate(task.specs):
                if any(
                    candidate.problem is None and candidate.worth >= _GOOD_WORTH for candidate in candidates[number]
                ):
                    continue
                seed = task.seed + number + len(task.specs) * place
                opening = _opening(task, spec, focus, task.seed + number + place)
                times = asked[place, opening]
                asked[place, opening] += 1
                try:
                    answer = await client.complete(
                        *_parts(task.sources, focus),
                        f"Question: {opening}".rstrip(),
                        stop=["\n"],
                        max_tokens=_MAX_TOKENS,
                        temperature=settings.synthesis.sampling_temperature + _TEMPERATURE_STEP * times,
                        seed=seed,
                    )
                except InvalidAnswer as error:
                    candidates[number].append(_Candidate(error.raw, None, (error.reason, str(error))))
                    continue
                told = answer.log_probability
                likely = _USUAL_LOG_PROBABILITY if told is None else told
                candidates[number].append(_candidate(opening, answer.text, task, spec, focus, idf, likely, language))
        for mine in candidates:
            _keep_best(mine, task, found)
        accepted[0] += len(found.pairs)
        accepted[1] += len(task.specs)
        return found

    def note() -> str:
        return f"{accepted[0] / max(1, accepted[1]):.0%} well formed"

    # Multi-hop prompts share another beginning, which each server processes once.
    ordered = sorted(work_order(tasks, settings.seed), key=lambda task: len(task.sources) > 1)
    results = await client.gather(ordered, ask, label="Writing questions", unit="segment", note=note)
    return Generated(
        [pair for result in results for pair in result.pairs],
        [reject for result in results for reject in result.rejects],
    )


def _focuses(task: QuestionTask, idf: Mapping[str, float], everywhere: frozenset[str]) -> list[_Focus]:
    """The sentences to ask about.

    Of one source those that speak of something it is about come first, and among equals those that say most; very short
    ones come last. Of several sources it is those that name what they share.

    Args:
        task: the task.
        idf: how much a word says.
        everywhere: headings of several documents, in lower case, which name nothing.
    """
    if len(task.sources) == 1:
        (source,) = task.sources
        heading = "" if source.heading.lower() in everywhere else name_of_heading(source.heading)
        text, titled = _spoken(source.text), set(content_words(source.title))

        def is_about(name: str) -> bool:
            """Whether the source is about what is named: its headings name it, or it comes back to it."""
            return titled.issuperset(content_words(name)) or text.count(_spoken(name)) > 1

        told = [
            _Focus((sentence,), (context,), tuple(filter(is_about, names_in(sentence))), heading)
            for context, sentence in _told(source)
        ]

        def order(focus: _Focus) -> tuple[bool, bool, float]:
            (sentence,) = focus.sentences
            return len(set(content_words(sentence))) < _LEAST_SAID, not focus.names, -_weight(sentence, idf)

        return sorted(told, key=order)[:FOCUSES]
    chosen = []
    for source in task.sources:
        naming = [both for both in _told(source) if _names(both[1], task.shared)]
        chosen.append(max(naming, key=lambda both: _weight(both[1], idf), default=None))
    known = [both for both in chosen if both is not None]
    if len(known) < len(task.sources):
        return []
    return [_Focus(tuple(sentence for _, sentence in known), tuple(context for context, _ in known))]


def _told(source: Source) -> list[tuple[str, str]]:
    """The distinct sentences of a source's prose that do not only say where to read.

    Each comes after the one before it where both are short.
    """
    found: dict[str, str] = {}
    before = ""
    pieces = (piece for sentence in sentences(source.text) for piece in _UNSPACED_END.split(sentence))
    for sentence in pieces:
        if is_prose(readable(sentence, _FOCUS_CHARACTERS)) and not points_elsewhere(sentence):
            found.setdefault(sentence, before if len(before) + len(sentence) < _FOCUS_CHARACTERS else "")
            before = sentence
        else:
            before = ""
    return [(context, sentence) for sentence, context in found.items()]


def _weight(sentence: str, idf: Mapping[str, float]) -> float:
    """How much a sentence says for its length, rare words counting more."""
    said = set(content_words(sentence))
    return float(sum(idf.get(word, 0.0) for word in said) / (len(said) + 8) ** 0.5)


def _names(sentence: str, names: Iterable[str]) -> bool:
    said = _spoken(sentence)
    return any(_spoken(name) in said for name in names)


def _spoken(text: str) -> str:
    """The content words of a text, spaced so that one text is found in another by whole words."""
    return f" {' '.join(content_words(text))} "


def _opening(task: QuestionTask, spec: QuestionSpec, focus: _Focus, seed: int) -> str:
    """The words that a question of the requested kind begins with; empty where any beginning will do."""
    kind = "multi_hop" if len(task.sources) > 1 else spec.reasoning_type
    if not any(map(focus.can_answer, _OPENINGS.get(kind, ("",)))):
        kind = "factual"
    # What a whole section is about makes the same factual question of each of its sentences.
    names = focus.names or ((focus.heading,) if focus.heading and kind != "factual" else ())
    is_named = bool(names) and kind in _NAMING_OPENINGS
    forms = _NAMING_OPENINGS[kind] if is_named else _OPENINGS.get(kind, ("",))
    forms = tuple(filter(focus.can_answer, forms))
    if not is_named:
        return forms[seed % len(forms)]
    name = names[seed % len(names)]
    does, be = ("do", "are") if is_plural(name) else ("does", "is")
    form = forms[seed // len(names) % len(forms)]
    return form.format(name=name, does=does, Does=does.capitalize(), be=be)


def _parts(sources: tuple[Source, ...], focus: _Focus) -> tuple[str, str]:
    """The prompt up to the question, in two parts: what all prompts share, and the rest."""
    shown = [
        readable(f"{context} {sentence}", _FOCUS_CHARACTERS)
        for context, sentence in zip(focus.contexts, focus.sentences, strict=True)
    ]
    if len(sources) == 1:
        name = _SINGLE_HOP
        prompt = fill_prompt(name, title=sources[0].title, passage=shown[0])
    else:
        name = _MULTI_HOP
        lines = [
            f"Text {chr(ord('A') + index)} ({source.title}): {text}"
            for index, (source, text) in enumerate(zip(sources, shown, strict=True))
        ]
        prompt = fill_prompt(name, passages="\n".join(lines))
    shared = shared_beginning(name)
    return shared, prompt.removeprefix(shared).removesuffix("Question:")


def _candidate(  # noqa: PLR0917 - a question and its context
    opening: str,
    text: str,
    task: QuestionTask,
    spec: QuestionSpec,
    focus: _Focus,
    idf: Mapping[str, float],
    likely: float,
    language: str,
) -> _Candidate:
    """What the model wrote, with what is wrong with it and what it is worth."""
    question = _SPACED_MARK.sub(r"\1", " ".join(f"{opening} {text}".split()))
    answers = focus.answers(question, idf)
    said = " ".join([*answers, *(source.heading for source in task.sources)])
    supported = support(question, said, idf)
    worth = supported + likely
    pair = _pair(question, _short(text, said) if spec.style == "keywords" else "", task.sources, answers, language)
    known = {source.segment_id: source.document_id for source in task.sources}
    problem = _problem(question, task.sources, language) or find_problem(pair, known, len(task.sources))
    asked = _ASKS_ALL.fullmatch(question)
    if problem is None and asked and not _RELATES.search(asked[1]) and not focus.is_about(asked[1]):
        problem = ("not_about", f"its sentence is not about {asked[1]}")
    added = len(set(content_words(pair.answer)) - set(content_words(question)))
    if problem is None and added < _LEAST_ADDED:
        problem = ("answer_adds_nothing", f"its sentence says {added} words more than the question")
    if problem is None and supported < _LEAST_SUPPORT:
        problem = ("unsupported", f"{supported:.2f} of its words by weight are in its sentence, bound {_LEAST_SUPPORT}")
    if problem is None and worth < _LEAST_WORTH:
        problem = ("unlikely", f"support {supported:.2f}, log-probability {likely:.2f}, together below {_LEAST_WORTH}")
    return _Candidate(f"{opening} {text}", pair, problem, worth)


def _keep_best(candidates: list[_Candidate], task: QuestionTask, found: Generated) -> None:
    """Put the best candidate of a spec among the pairs of ``found``, or why there is none among its rejects."""
    ids = tuple(source.segment_id for source in task.sources)
    asked = {pair.question.lower() for pair in found.pairs}
    problem, raw = ("nothing_to_ask", "no sentence of prose to ask about"), ""
    for candidate in sorted(candidates, key=lambda candidate: -candidate.worth):
        if candidate.pair is None or candidate.problem is not None:
            reason = candidate.problem or problem
        elif candidate.pair.question.lower() in asked:
            reason = ("repeated", "an earlier candidate for the same segment asks the same")
        else:
            found.pairs.append(candidate.pair)
            return
        if not raw:
            problem, raw = reason, candidate.raw
    found.rejects.append(Reject(ids, *problem, raw))


def _problem(question: str, sources: tuple[Source, ...], language: str) -> tuple[str, str] | None:
    """The first thing wrong with a question as (reason, detail); None where nothing is."""
    form = form_problem(question, language=language)
    if form is not None:
        return form, "form of the question"
    copied = [source.title for source in sources if _PATH in source.title and source.title.lower() in question.lower()]
    if copied:
        return "copies_headings", ", ".join(copied)
    invented = unsupported_terms(question, "\n".join(f"{source.title}\n{source.text}" for source in sources))
    if invented:
        return "unsupported_term", ", ".join(invented)
    asked = set(content_words(question))
    # The outer headings do not anchor a question in one of several sources: those may share them.
    said = [set(content_words(f"{s.heading if len(sources) > 1 else s.title} {s.text}")) for s in sources]
    missing = [
        source.title
        for place, source in enumerate(sources)
        if not asked & said[place].difference(*(other for number, other in enumerate(said) if number != place))
    ]
    return ("source_not_asked_about", ", ".join(missing)) if missing else None


def _short(text: str, said: str) -> str:
    """The keywords of a question that its sources say, each once."""
    known = set(content_words(said))
    found: dict[str, str] = {}
    for token in keywords(text).split():
        if known.issuperset(content_words(token)):
            found.setdefault(token.lower(), token)
    return " ".join(found.values())


def _pair(question: str, short: str, sources: tuple[Source, ...], answers: Sequence[str], language: str) -> Pair:
    """The pair that a question makes; ``short``: its keywords, used in its place where they make a query."""
    hops = tuple(Hop((source.segment_id,), answer) for source, answer in zip(sources, answers, strict=True))
    reasoning = reasoning_of(question) if len(sources) == 1 else "relational"
    complexity = min(5, len(sources) + (reasoning not in {"factual", "temporal"}))
    kind = "multi_hop" if len(sources) > 1 else ("structural" if reasoning == "procedural" else "contextual")
    is_short = len(short.split()) >= _LEAST_KEYWORDS and form_problem(short, "keywords", language) is None
    style = "keywords" if is_short else "question"
    asked = short if style == "keywords" else question
    return Pair(asked, " ".join(answers), kind, reasoning, complexity, hops, style)


def reasoning_of(question: str) -> str:
    """Reasoning type that the opening words of a single-hop question show; ``factual`` where none do."""
    lowered = question.lower()
    return next((kind for kind, openings in _REASONING if lowered.startswith(openings)), "factual")
