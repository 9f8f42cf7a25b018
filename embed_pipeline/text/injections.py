"""Text that addresses the model that reads it, in place of the reader of the document.

Only what speaks to a model counts. A section headed "Instructions" or "System" is content, as in recipes and manuals.
"""

from __future__ import annotations

import re

_PATTERNS = (
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.!?\n]{0,60}\b(?:instruction|prompt|guideline|direction)s?\b",
    r"\b(?:ignore|disregard|forget)\s+(?:everything|all|anything)\b[^.!?\n]{0,30}\b(?:above|before|previous|prior)\b",
    r"\b(?:new|updated|real|actual)\s+(?:system\s+)?(?:instruction|prompt)s?[ \t]*:",
    r"\b(?:system|developer)\s+(?:prompt|message)[ \t]*:",
    r"\byou\s+are\s+(?:now\s+)?(?:an?\s+|the\s+)?(?:\w+\s+)?(?:language\s+model|chatbot|llm|ai\s+assistant)\b",
    r"\b(?:respond|reply|answer|output|write|print)\s+(?:only|exactly|nothing\s+but)\b[^.!?\n]{0,20}[:\"“']",
    r"<\|?/?(?:im_start|im_end|system|endoftext|segments?)\|?>",
    r"\[/?INST\]",
)
_INSTRUCTION = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.IGNORECASE)
_SENTENCE_START = re.compile(r"(?:[.!?:]\s+|\n)(?=\S)")
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")


def gives_instructions(text: str) -> bool:
    """True where some of the text tells a model what to do."""
    return _INSTRUCTION.search(text) is not None


def remove_instructions(text: str) -> str:
    """The text without its instructions to a model."""
    return split_instructions(text)[0]


def split_instructions(text: str) -> tuple[str, tuple[str, ...]]:
    """The text without its instructions to a model, and what was removed.

    Each instruction is removed from the start of its sentence to the end of its paragraph.
    """
    kept: list[str] = []
    removed: list[str] = []
    place = 0
    while (found := _INSTRUCTION.search(text, place)) is not None:
        starts = (mark.end() for mark in _SENTENCE_START.finditer(text, place, found.start() + 1))
        start = max(starts, default=place)
        gap = _PARAGRAPH_END.search(text, found.end())
        end = gap.start() if gap else len(text)
        kept.append(text[place:start])
        removed.append(text[start:end])
        place = end
    return "".join([*kept, text[place:]]), tuple(removed)
