"""Headings of Markdown (ATX and underlined) and reStructuredText, outside code fences."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ATX = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r"([=\-~^\"'*+#.:_`])\1{2,}\s*$")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_MAX_TITLE = 200
_METADATA = re.compile(r"[\w-]+\s*:")
_MAX_FRONT_MATTER = 200
_METADATA_ENDS = frozenset({"---", "..."})


@dataclass(frozen=True)
class Heading:
    """A heading: where its first line starts (character offset), depth from 1, and its text without markup."""

    start: int
    level: int
    text: str


def find_headings(text: str) -> list[Heading]:
    """Every heading of ``text`` in order. Underline characters rank by first appearance, as in reST."""
    headings: list[Heading] = []
    underlines: list[str] = []
    fence = ""
    offset = 0
    lines = text.splitlines(keepends=True)
    skipped = _front_matter_lines(lines)
    for index, line in enumerate(lines):
        mark = _FENCE.match(line)
        if index < skipped:
            pass
        elif fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        elif mark:
            fence = mark[1]
        elif atx := _ATX.match(line):
            if atx[2]:
                headings.append(Heading(offset, len(atx[1]), _plain(atx[2])))
        elif index + 1 < len(lines) and (below := _underline_of(line, lines[index + 1])):
            if below not in underlines:
                underlines.append(below)
            headings.append(Heading(offset, underlines.index(below) + 1, _plain(line.strip())))
            skipped = index + 2
        offset += len(line)
    return headings


def _front_matter_lines(lines: list[str]) -> int:
    """Lines of YAML metadata between two ``---`` at the start, as static site generators have it."""
    if len(lines) < 2 or lines[0].rstrip() != "---" or not _METADATA.match(lines[1]):  # noqa: PLR2004 - mark and key
        return 0
    ends = (index for index, line in enumerate(lines[1:_MAX_FRONT_MATTER], start=2) if line.rstrip() in _METADATA_ENDS)
    return next(ends, 0)


def _underline_of(line: str, below: str) -> str:
    """The character that ``below`` underlines the title ``line`` with; empty where it does not."""
    title = line.strip()
    underline = _UNDERLINE.match(below)
    is_title = (
        underline is not None
        and bool(title)
        and not line[0].isspace()
        and len(below.strip()) >= min(len(title), 3)
        and len(title) <= _MAX_TITLE
        and not _UNDERLINE.match(title)
        and title[0] not in "|+>-"
    )
    return underline[1] if underline and is_title else ""


def _plain(title: str) -> str:
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[`*_]{1,3}(\S.*?)[`*_]{1,3}", r"\1", title).strip()
