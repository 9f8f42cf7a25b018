"""A segment as a small model reads it best: one line of plain words, without the rules of tables and markup."""

from __future__ import annotations

import re

from embed_pipeline.text.markdown import replace_headings

_CELL = re.compile(r" ?\| ?")
_MARKUP = re.compile(r"`+|\*\*|(?<![\w*])\*(?=\S)|(?<=\S)\*(?![\w*])")
_RUN = re.compile(r"([^\w\s])\1{3,}")
_LINK = re.compile(r"!?\[([^\[\]]{0,500})\]\([^()\s]{0,500}\)")
_WORD = re.compile(r"\w")


def readable(text: str, characters: int) -> str:
    """One line of at most ``characters``, cut at a word."""
    lines = []
    for line in replace_headings(text, keep=True).split("\n"):
        if _WORD.search(line):
            plain = _LINK.sub(r"\1", line)
            plain = _CELL.sub(" | ", plain).strip(" |")
            lines.append(_RUN.sub(r"\1\1\1", _MARKUP.sub("", plain)))
    joined = " ".join(" ".join(lines).split())
    return joined if len(joined) <= characters else joined[: characters + 1].rsplit(" ", 1)[0][:characters]
