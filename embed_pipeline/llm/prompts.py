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
_MARK = re.compile(r"</?[ \t]{0,9}segments[ \t]{0,9}>|^[ \t]*\[S\d+\]", re.IGNORECASE | re.MULTILINE)


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
