"""The block model: what a document is made of, and where each part is in the document's kept text.

A reader gives a document as text and blocks. All that depends on structure (titles, heading paths, segments,
boilerplate) is made from the blocks; no other code looks for headings, fences or tables. Kept text is Markdown whatever
the file's format was, so that the parser of :mod:`.markdown` reads a piece of it as well as the whole.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["heading", "paragraph", "list", "table", "code", "quote", "metadata"]

_FOLDED = re.compile("[\0\u00ad\u200b\u2060\ufeff\ufb00-\ufb06\ufffe\uffff\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LETTERS = dict(
    zip("\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06", ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True)
)
_TABLE_HEAD_LINES = 2


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a document.

    Attributes:
        kind: what it is. Code, tables and headings inside of lists are blocks of their own; ``metadata`` is text that
            no reader sees, such as the definitions of links.
        start: place of its first character in the kept text.
        end: place after its last character, the end of its last line.
        level: depth of a heading, from 1; 0 for the others.
        text: a heading without its markup; empty for the others.
    """

    kind: Kind
    start: int
    end: int
    level: int = 0
    text: str = ""


@dataclass(frozen=True)
class ParsedDocument:
    """What a reader makes of a file.

    Attributes:
        title: the title that the document gives itself; empty: none.
        text: the kept text.
        blocks: its blocks, in order, none inside of another.
        left_out: what could not be read, such as a damaged row; the rest could.
    """

    title: str
    text: str
    blocks: tuple[Block, ...]
    left_out: tuple[str, ...] = ()


@dataclass
class Draft:
    """A kept text that is being written, block by block, with a blank line between two."""

    _pieces: list[str] = field(default_factory=list)
    _blocks: list[Block] = field(default_factory=list)
    _length: int = 0

    def add(self, kind: Kind, text: str, *, level: int = 0, title: str = "") -> None:
        """Write a block; one without text is none."""
        text = clean_text(text).strip("\n")
        if text.strip():
            self._blocks.append(Block(kind, self._length, self._length + len(text) + 1, level, clean_title(title)))
            self._write(text)

    def add_heading(self, level: int, title: str) -> None:
        """Write a heading of plain text."""
        title = clean_title(title)
        self.add("heading", f"{'#' * min(level, 6)} {title}" if title else "", level=level, title=title)

    def add_code(self, code: str, language: str = "") -> None:
        """Write a fence around code."""
        longest = max((len(run) for run in re.findall("`+", code)), default=0)
        fence = "`" * max(3, longest + 1)
        if code.strip():
            self.add("code", f"{fence}{language}\n{code.strip(chr(10))}\n{fence}")

    def add_parsed(self, text: str, blocks: Iterable[Block], *, below: int = 0) -> None:
        """Write a text whose blocks are known, its headings ``below`` levels deeper; it is clean already."""
        for block in blocks:
            start, end = block.start + self._length, block.end + self._length
            level = block.level + below if block.kind == "heading" else 0
            self._blocks.append(replace(block, start=start, end=end, level=level))
        self._write(text.rstrip("\n"))

    @property
    def is_empty(self) -> bool:
        """True before anything was written."""
        return not self._pieces

    def reading(self, title: str = "", left_out: Iterable[str] = ()) -> ParsedDocument:
        """What was written."""
        text = "".join(self._pieces)[:-1]
        return ParsedDocument(clean_title(title), text, tuple(self._blocks), tuple(left_out))

    def _write(self, text: str) -> None:
        self._pieces.append(f"{text}\n\n")
        self._length += len(text) + 2


def clean_text(text: str) -> str:
    """Text in NFC, ligatures as letters, without soft hyphens and marks of no width; lone surrogates are U+FFFD."""
    if text.isascii() and "\0" not in text:
        return text
    return unicodedata.normalize("NFC", _FOLDED.sub(lambda found: _LETTERS.get(found[0], ""), whole_characters(text)))


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, marks of zero width and control characters alone."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def whole_characters(text: str) -> str:
    """The text with surrogate pairs as the characters that they stand for, and U+FFFD for half of a pair."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if _SURROGATE.search(text) else text


def clean_title(title: str) -> str:
    """A title on one line."""
    return " ".join(clean_text(title).split())


def first_heading(blocks: Iterable[Block]) -> str:
    """Text of the first heading; empty where there is none."""
    return next((block.text for block in blocks if block.kind == "heading"), "")


def table_head(text: str) -> str:
    """The header of a table with the rule below it; empty where it names nothing."""
    lines = text.split("\n", _TABLE_HEAD_LINES)
    return (
        "\n".join([*lines[:_TABLE_HEAD_LINES], ""]) if lines[0].strip(" |") and len(lines) > _TABLE_HEAD_LINES else ""
    )


def table_rows(rows: Iterable[Iterable[tuple[str, int, int]]]) -> list[list[str]]:
    """The cells of a table by row and column.

    A cell that spans rows is repeated in each, so that every row says all; one that spans columns is in the first.

    Args:
        rows: text of each cell, and how many columns and rows it spans.
    """
    held: dict[int, tuple[str, int]] = {}
    found = []
    for row in rows:
        cells: list[str] = []
        coming: dict[int, tuple[str, int]] = {}
        for text, columns, span in row:
            while len(cells) in held:
                cells.append(held[len(cells)][0])
            for part in [text, *[""] * (columns - 1)]:
                if span > 1:
                    coming[len(cells)] = (part, span - 1)
                cells.append(part)
        rest = range(len(cells), max(held, default=-1) + 1)
        cells += [held[column][0] if column in held else "" for column in rest]
        held = {column: (text, more - 1) for column, (text, more) in held.items() if more > 1} | coming
        found.append(cells)
    return found


def without_spans(
    text: str, blocks: Sequence[Block], spans: Sequence[tuple[int, int]]
) -> tuple[str, tuple[Block, ...]]:
    """The text without ``spans``, and the blocks that are left of it in their new places.

    Args:
        text: the kept text.
        blocks: its blocks.
        spans: start and end, in order and apart from each other.
    """
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    kept = "".join(text[end:start] for end, start in zip([0, *ends], [*starts, len(text)], strict=True))
    moved = list(_moved(blocks, spans))
    return kept, tuple(block for block in moved if kept[block.start : block.end].strip())


def _moved(blocks: Sequence[Block], spans: Sequence[tuple[int, int]]) -> Iterator[Block]:
    """Blocks with the characters of ``spans`` removed from their places."""
    points = sorted({place for block in blocks for place in (block.start, block.end)})
    new: dict[int, int] = {}
    gone, place = 0, 0
    for point in points:
        while place < len(spans) and spans[place][1] <= point:
            gone += spans[place][1] - spans[place][0]
            place += 1
        inside = max(0, point - spans[place][0]) if place < len(spans) else 0
        new[point] = point - gone - inside
    for block in blocks:
        yield replace(block, start=new[block.start], end=new[block.end])


def as_rows(blocks: Iterable[Block]) -> list[dict[str, Any]]:
    """Blocks as the table ``documents`` stores them."""
    return [{"kind": b.kind, "level": b.level, "start": b.start, "end": b.end, "text": b.text} for b in blocks]


def from_rows(rows: Iterable[dict[str, Any]]) -> tuple[Block, ...]:
    """Blocks as :func:`as_rows` gave them."""
    return tuple(Block(row["kind"], row["start"], row["end"], row["level"], row["text"]) for row in rows)
