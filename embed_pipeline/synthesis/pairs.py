"""A question-answer pair: its fields, the rules that it must keep, the form of its question, its stored rows."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from embed_pipeline.enumerations import QUERY_TYPES, REASONING_TYPES, STYLES
from embed_pipeline.text.injections import gives_instructions
from embed_pipeline.text.languages import (
    AUTO,
    ENGLISH,
    WITHOUT_QUESTION_MARK,
    detect_language,
    index_terms,
    is_unspaced,
    terms,
)
from embed_pipeline.text.words import content_words, names_code, words

MAX_QUESTION_CHARACTERS = 500
MAX_ANSWER_CHARACTERS = 4000
_ASKING_TEXT = (
    "what how why when where which who whom whose is are was were do does did can could should would will may must"
)
_ASKING_WORDS = frozenset(_ASKING_TEXT.split())
_LEADING_MARKS = _ASKING_WORDS.union(
    ("in", "for", "if", "under", "on", "at", "by", "to", "from", "with", "has", "have")
)
_CONTEXT_PHRASES = re.compile(
    r"\b(?:this|these|above|aforementioned|following)\b|"
    r"\b(?:the|given|first|last|next) (?:passage|text|code|document|example|section|paragraph|statement above|"
    r"sentence|expression above|table|author|question|answer|program|output)\b",
    re.IGNORECASE,
)
_CHAT_PHRASES = re.compile(
    r"\b(?:tell|help|show|give|explain to) me\b|\bplease\b|\bexplain (?:what|how|why)\b", re.IGNORECASE
)
# Latin, Chinese and Japanese, Arabic, Greek, Armenian, Ethiopic.
_QUESTION_MARKS = frozenset("?\uff1f\u061f\u037e;\u055e\u1367")
_LEAST_DISTINCT = 0.7
_BETWEEN = re.compile(r"\bbetween (.+?) and ([^?]+)", re.IGNORECASE)
_GENERIC = frozenset(
    content_words(
        "statement function method keyword object class type module operator option command field value parameter "
        "argument attribute expression clause form name item"
    )
)
_PAIRS_PER_WORD = 3  # pairs of characters, where no spaces are written
FULL_QUESTIONS = ("question", "boolean", "comparison")
"""Styles that have the form of a question."""
MIN_QUESTION_WORDS = 4
MIN_KEYWORDS = 2
MAX_QUESTION_WORDS = 40


@dataclass(frozen=True)
class Hop:
    """One step: the segments it needs and a summary of the context it takes from them."""

    segment_ids: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class Pair:
    """A pair as a generator proposes it, before :func:`find_problem` has checked it."""

    question: str
    answer: str
    query_type: str
    reasoning_type: str
    complexity: int
    hops: tuple[Hop, ...]
    style: str = "question"

    @property
    def segment_ids(self) -> list[str]:
        """The union over the hops, sorted."""
        return sorted({segment for hop in self.hops for segment in hop.segment_ids})


@dataclass(frozen=True)
class Reject:
    """A model's answer that is no valid pair."""

    segment_ids: tuple[str, ...]
    reason: str
    detail: str
    raw: str


@dataclass
class Generated:
    """The pairs and rejects of a batch."""

    pairs: list[Pair] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def find_problem(pair: Pair, known: Mapping[str, str], max_hops: int) -> tuple[str, str] | None:
    """The first rule that ``pair`` breaks, as (reason, detail); None where it keeps them all.

    Args:
        pair: the pair.
        known: segment id to document id of every segment that the generator was shown.
        max_hops: most hops allowed.
    """
    hops = len(pair.hops)
    unknown = [segment for segment in pair.segment_ids if segment not in known]
    multi = pair.query_type == "multi_hop"
    checks = (
        ("empty_question", not pair.question.strip(), "no question"),
        ("question_too_long", len(pair.question) > MAX_QUESTION_CHARACTERS, f"{len(pair.question)} characters"),
        ("empty_answer", not pair.answer.strip(), "no answer"),
        ("answer_too_long", len(pair.answer) > MAX_ANSWER_CHARACTERS, f"{len(pair.answer)} characters"),
        ("query_type", pair.query_type not in QUERY_TYPES, pair.query_type),
        ("reasoning_type", pair.reasoning_type not in REASONING_TYPES, pair.reasoning_type),
        ("style", pair.style not in STYLES, pair.style),
        ("complexity", not 1 <= pair.complexity <= 5, str(pair.complexity)),  # noqa: PLR2004 - the scale's ends
        ("hop_count", not 1 <= hops <= max_hops, f"{hops} hops, allowed 1 to {max_hops}"),
        ("hop_without_segment", any(not hop.segment_ids for hop in pair.hops), "a hop names no segment"),
        ("hop_without_summary", any(not hop.summary.strip() for hop in pair.hops), "a hop has no summary"),
        ("unknown_segment", bool(unknown), ", ".join(unknown)),
        ("multi_hop_mismatch", multi != (hops > 1), f"{pair.query_type} with {hops} hops"),
        ("repeated_hop", multi and len(pair.segment_ids) < hops, "two hops rest on the same segments"),
    )
    return next(((reason, detail) for reason, failed, detail in checks if failed), None)


def pair_row(pair: Pair, batch: str, known: Mapping[str, str], made_by: Mapping[str, str]) -> dict[str, Any]:
    """The pair as a row of :data:`tables.QA_PAIRS`."""
    identity = "\0".join([" ".join(pair.question.split()).lower(), *pair.segment_ids])
    hops = [
        {"hop_number": number, "segment_ids": sorted(hop.segment_ids), "summary": hop.summary.strip()}
        for number, hop in enumerate(pair.hops, start=1)
    ]
    return {
        "qa_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "batch": batch,
        "question": pair.question.strip(),
        "answer": pair.answer.strip(),
        "query_type": pair.query_type,
        "reasoning_type": pair.reasoning_type,
        "complexity": pair.complexity,
        "hop_count": len(pair.hops),
        "hops": hops,
        "segment_ids": pair.segment_ids,
        "style": pair.style,
        "document_ids": sorted({known[segment] for segment in pair.segment_ids}),
        **made_by,
    }


def reject_rows(rejects: Sequence[Reject], batch: str, made_by: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rejects as rows of :data:`tables.REJECTED_PAIRS`."""
    return [
        {
            "batch": batch,
            "segment_ids": sorted(reject.segment_ids),
            "reason": reject.reason,
            "detail": reject.detail,
            "raw": reject.raw,
            **made_by,
        }
        for reject in rejects
    ]


def form_problem(question: str, style: str = "question", language: str = AUTO) -> str | None:
    """The reason why ``question`` cannot stand alone; None where it can.

    A full question has a question's mark, and in English its first word; other styles need not.
    ``language`` is ``corpus.language``; auto: the question's own.

    The reasons: ``empty``, ``too_short``, ``too_long``, ``instruction``, ``not_a_question``, ``refers_to_text``,
    ``asks_the_model``, ``repeats_itself``, ``no_subject``.
    """
    language = detect_language(question) if language == AUTO else language
    content = subject_words(question, language)
    if language == ENGLISH:
        found = words(question)
        asks = question.rstrip().endswith("?") and bool(found) and found[0] in _LEADING_MARKS
    else:
        found = terms(question)
        asks = question.rstrip()[-1:] in _QUESTION_MARKS or language in WITHOUT_QUESTION_MARK
    full = style in FULL_QUESTIONS
    # The name of a function says by itself what is asked about.
    spared = 1 if names_code(question) else 0
    longest = MAX_QUESTION_WORDS * (_PAIRS_PER_WORD if is_unspaced(question) else 1)
    checks = (
        ("empty", not found),
        ("too_short", len(found) < (MIN_QUESTION_WORDS - spared if full else MIN_KEYWORDS)),
        ("too_long", len(found) > longest),
        ("instruction", gives_instructions(question)),
        ("not_a_question", full and not asks),
        ("refers_to_text", bool(_CONTEXT_PHRASES.search(question))),
        ("asks_the_model", bool(_CHAT_PHRASES.search(question))),
        ("repeats_itself", _repeats(content) or _repeats_a_phrase(found) or _compares_with_itself(question)),
        ("no_subject", len(set(content)) < 2 - spared),  # a subject and what is asked of it
    )
    return next((reason for reason, failed in checks if failed), None)


def subject_words(question: str, language: str) -> list[str]:
    """The words of a question that say what it is about: none of those that every question has."""
    return content_words(question) if language == ENGLISH else index_terms([question], language)[0]


def is_question(query: str, language: str = AUTO) -> bool:
    """True where a query that a person typed is a question: by its mark, or in English by its first word.

    ``language`` is ``corpus.language``; auto: the query's own.
    """
    language = detect_language(query) if language == AUTO else language
    if query.rstrip()[-1:] in _QUESTION_MARKS or language in WITHOUT_QUESTION_MARK:
        return True
    found = words(query) if language == ENGLISH else []
    return len(found) >= MIN_QUESTION_WORDS and found[0] in _ASKING_WORDS


def _repeats(content: list[str]) -> bool:
    """A word three times over is a loop; under seven different words of ten, a thing is compared with itself."""
    counts = Counter(content)
    return bool(counts) and (counts.most_common(1)[0][1] > 2 or len(counts) < _LEAST_DISTINCT * len(content))  # noqa: PLR2004


def _compares_with_itself(question: str) -> bool:
    """Of two things between which something is asked, one has the other's words and says besides only what it is."""
    compared = _BETWEEN.search(question)
    if compared is None:
        return False
    sides = [set(content_words(side)) for side in compared.groups()]
    return sides[0] ^ sides[1] <= _GENERIC and bool(sides[0] & sides[1])


def _repeats_a_phrase(said: list[str]) -> bool:
    """Two or more words that carry meaning, between words that carry none, stand there twice."""
    runs = groupby(said, key=lambda word: bool(content_words(word)))
    phrases = Counter(" ".join(run) for carries_meaning, run in runs if carries_meaning)
    return any(times > 1 and " " in phrase for phrase, times in phrases.items())
