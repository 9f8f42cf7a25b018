"""Headings of Markdown (ATX and underlined) and reStructuredText, outside code fences."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ATX = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r"([=\-~^\"'*+#.:_`])\1{2,}\s*$")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_MAX_TITLE = 200


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
    for index, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1][:3]
        elif not fence:
            atx = _ATX.match(line)
            title = line.strip()
            below = _UNDERLINE.match(lines[index + 1]) if index + 1 < len(lines) else None
            if atx and atx[2]:
                headings.append(Heading(offset, len(atx[1]), _plain(atx[2])))
            elif below and _may_be_title(line, title, lines[index + 1]):
                if below[1] not in underlines:
                    underlines.append(below[1])
                headings.append(Heading(offset, underlines.index(below[1]) + 1, _plain(title)))
        offset += len(line)
    return headings


def _may_be_title(line: str, title: str, underline: str) -> bool:
    starts_flush = bool(title) and not line[0].isspace()
    long_enough = len(underline.strip()) >= min(len(title), 3)
    return (
        starts_flush
        and long_enough
        and len(title) <= _MAX_TITLE
        and not _UNDERLINE.match(title)
        and title[0] not in "|+>-"
    )


def _plain(title: str) -> str:
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[`*_]{1,3}(\S.*?)[`*_]{1,3}", r"\1", title).strip()
