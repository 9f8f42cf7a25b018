"""Prompts are files in ``llm/prompts``, versioned by their hash; documents in them are data, never instructions."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "prompts"
COMPLETION_PROMPTS = ("single_hop_completion.txt", "multi_hop_completion.txt")
STRUCTURED_PROMPTS = ("questions.md",)
JUDGE_PROMPTS = ("judge.md", "hops.md")
ARTIFACT_PROMPTS = ("artifacts.md",)
CROSS_CHECK_PROMPTS = ("answers.md",)
_MARK = re.compile(r"</?\s*segments\s*>|^\s*\[S\d+\]", re.IGNORECASE | re.MULTILINE)
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


@cache
def read_prompt(name: str) -> str:
    """Text of a prompt file, without its final newline."""
    return (_FOLDER / name).read_text(encoding="utf-8").removesuffix("\n")


def fill_prompt(name: str, **values: object) -> str:
    """Put ``values`` in the prompt's ``{name}`` places in one pass: braces inside a value stay text."""
    pattern = re.compile("|".join(re.escape("{" + key + "}") for key in values))
    return pattern.sub(lambda match: str(values[match[0][1:-1]]), read_prompt(name))


def shared_beginning(name: str) -> str:
    """What every prompt filled in from the file ``name`` begins with: all before its last paragraph."""
    return read_prompt(name).rpartition("\n\n")[0]


def prompt_version(*names: str) -> str:
    """Short hash of the named prompt files."""
    content = "\0".join(read_prompt(name) for name in sorted(names))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def delimit(labelled: dict[str, str]) -> str:
    """Segments as delimited data; neither a tag nor a label inside a text can end its segment."""
    body = "\n\n".join(f"[{label}]\n{_MARK.sub(_broken, text)}" for label, text in labelled.items())
    return f"<segments>\n{body}\n</segments>"


def _broken(mark: re.Match[str]) -> str:
    return f"{mark[0][:-1]}\u200b{mark[0][-1]}"


def plain_label(label: str) -> str:
    """A segment's label as a model repeats it, without the brackets that it has in the prompt."""
    return label.strip(" []")


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
