"""The form of a question: whether it stands alone, as its style asks, before anything is measured."""

from __future__ import annotations

import re
from collections import Counter

from embed_pipeline.synthesis.injection import gives_instructions
from embed_pipeline.synthesis.words import content_words, words

_LEADING_TEXT = (
    "what how why when where which who whom whose is are was were do does did can could should would will may must "
    "in for if under on at by to from with has have"
)
_LEADING = frozenset(_LEADING_TEXT.split())
_CONTEXT = re.compile(
    r"\b(?:this|these|above|aforementioned|following)\b|"
    r"\b(?:the|given|first|last|next) (?:passage|text|code|document|example|section|paragraph|statement above|"
    r"sentence|expression above|table|author|question|answer|program|output)\b",
    re.IGNORECASE,
)
_CHAT = re.compile(r"\b(?:tell|help|show|give|explain to) me\b|\bplease\b|\bexplain (?:what|how|why)\b", re.IGNORECASE)

MIN_QUESTION_WORDS = 4
MIN_KEYWORDS = 2
MAX_QUESTION_WORDS = 40


def form_problem(question: str, style: str = "question") -> str | None:
    """What keeps ``question`` from being one that stands alone; None where nothing does.

    A full question has a question's first word and mark; keywords, symptoms and paraphrases need not.

    The reasons: ``empty``, ``too_short``, ``too_long``, ``instruction``, ``not_a_question``, ``refers_to_text``,
    ``asks_the_model``, ``repeats_itself``, ``no_subject``.
    """
    found = words(question)
    content = content_words(question)
    full = style == "question"
    checks = (
        ("empty", not found),
        ("too_short", len(found) < (MIN_QUESTION_WORDS if full else MIN_KEYWORDS)),
        ("too_long", len(found) > MAX_QUESTION_WORDS),
        ("instruction", gives_instructions(question)),
        ("not_a_question", full and not (question.rstrip().endswith("?") and found[0] in _LEADING)),
        ("refers_to_text", bool(_CONTEXT.search(question))),
        ("asks_the_model", bool(_CHAT.search(question))),
        ("repeats_itself", _repeats(content)),
        ("no_subject", len(set(content)) < 2),  # noqa: PLR2004 - a subject and what is asked of it
    )
    return next((reason for reason, failed in checks if failed), None)


def _repeats(content: list[str]) -> bool:
    """A word three times over, or every word twice, is a loop."""
    counts = Counter(content)
    return bool(counts) and (counts.most_common(1)[0][1] > 2 or len(content) >= 2 * len(counts) > 2)  # noqa: PLR2004
