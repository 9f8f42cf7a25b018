"""Prompts are files in ``synthesis/prompts``; their hash is the version stored with every row made from them."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "prompts"

COMPLETION_PROMPTS = ("single_hop_completion.txt", "multi_hop_completion.txt")
STRUCTURED_PROMPTS = ("questions.md",)
JUDGE_PROMPTS = ("judge.md", "hops.md")
ARTIFACT_PROMPTS = ("artifacts.md",)


@cache
def read_prompt(name: str) -> str:
    """Text of a prompt file, without its final newline."""
    return (_FOLDER / name).read_text(encoding="utf-8").removesuffix("\n")


def fill_prompt(name: str, **values: object) -> str:
    """Put ``values`` in the prompt's ``{name}`` places in one pass: braces inside a value stay text."""
    import re

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
    """Segments as delimited data; a closing tag inside a text cannot end the block."""
    safe = {label: text.replace("</segments>", "<\u200b/segments>") for label, text in labelled.items()}
    body = "\n\n".join(f"[{label}]\n{text}" for label, text in safe.items())
    return f"<segments>\n{body}\n</segments>"
