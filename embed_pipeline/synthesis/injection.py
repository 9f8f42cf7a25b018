"""Documents that talk to the model instead of the reader.

A generator or judge is told that segments are data, and gets them between delimiters; that alone does not hold. So the
passages that give a model instructions are taken out of what models see, to the end of their paragraph: what was never
shown cannot come back in a question. The stored segments keep their text.
"""

from __future__ import annotations

import re

_PATTERNS = (
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.!?\n]{0,60}\b(?:instruction|prompt|guideline|direction)s?\b",
    r"\b(?:ignore|disregard|forget)\s+(?:everything|all|anything)\b[^.!?\n]{0,30}\b(?:above|before|previous|prior)\b",
    r"\b(?:new|updated|real|actual)\s+(?:system\s+)?(?:instruction|prompt)s?\s*:",
    r"\b(?:system|developer)\s+(?:prompt|message)\s*:",
    r"\byou\s+are\s+(?:now\s+)?(?:an?\s+|the\s+)?(?:\w+\s+)?(?:language\s+model|chatbot|llm|ai\s+assistant)\b",
    r"\b(?:respond|reply|answer|output|write|print)\s+(?:only|exactly|nothing\s+but)\b[^.!?\n]{0,20}[:\"“']",
    r"<\|?/?(?:im_start|im_end|system|endoftext|segments?)\|?>",
    r"\[/?INST\]",
    r"^#+\s*(?:instruction|system)s?\s*:?\s*$",
)
_INSTRUCTION = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.IGNORECASE | re.MULTILINE)
_SENTENCE_START = re.compile(r"(?:[.!?:]\s+|\n)(?=\S)")
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")


def gives_instructions(text: str) -> bool:
    """True where some of the text tells a model what to do."""
    return _INSTRUCTION.search(text) is not None


def remove_instructions(text: str) -> str:
    """The text without its instructions to a model: each is cut out from its sentence to the end of its paragraph."""
    while (found := _INSTRUCTION.search(text)) is not None:
        starts = (mark.end() for mark in _SENTENCE_START.finditer(text, 0, found.start() + 1))
        end = _PARAGRAPH_END.search(text, found.end())
        text = text[: max(starts, default=0)] + text[end.start() if end else len(text) :]
    return text
