"""Documents to segments: cut at headings, then paragraphs, then sentence ends, never over the token limit.

Every character of a document is in exactly one segment: joined in order, the segments give the text back. A segment
that goes on with a table repeats the table's header before its rows; ``repeated`` counts those characters, which are no
part of the text.
"""

from __future__ import annotations

import hashlib
import logging
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import polars as pl
import regex

from embed_pipeline import tables
from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.enumerations import Context
from embed_pipeline.settings import Corpus
from embed_pipeline.text.blocks import Block, from_rows, table_head
from embed_pipeline.text.injections import split_instructions
from embed_pipeline.text.passages import PATH_SEPARATOR, context_of, with_context

logger = logging.getLogger(__name__)

TokenCounter = Callable[[Sequence[str]], list[int]]

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
_LINE_END = re.compile(r"\n")
# Marks that end a sentence before a space (Latin, Arabic, Devanagari, Armenian, Ethiopic, Burmese, Khmer), and those of
# Chinese and Japanese, which no space follows.
_SENTENCE_END = re.compile(
    r"(?<=[.!?:;\u2026\u061f\u061b\u06d4\u0964\u0965\u0589\u1362\u104b\u17d4])[\"')\]\u00bb\u201d\u2019]*\s+"
    r"|[\u3002\uff01\uff1f\uff61\uff0e]+[\u300d\u300f\u201d\u2019\uff09\u300b\u3011]*\s*|\n"
)
_WORD_END = re.compile(r"\s+|[\u3001\uff0c\uff1b\uff1a]\s*")
_GRAPHEME = regex.compile(r"\X")
_CHARACTERS_PER_PIECE = 16
_LEAST_TOKENS = 16
_IN_LINES = frozenset({"table", "code"})
_MOST_HEADER = 1 / 3


@dataclass(frozen=True)
class _Atom:
    """A piece that is never cut: its span, its tokens, and the heading path if a heading starts here.

    ``header`` is the table's that the piece goes on with, ``header_tokens`` its size.
    """

    start: int
    end: int
    tokens: int
    headings: tuple[str, ...] | None
    header: str = ""
    header_tokens: int = 0


@dataclass(frozen=True)
class _Span:
    """A segment: its place in the text, its heading path, and the table header put before it."""

    start: int
    end: int
    path: tuple[str, ...]
    header: str


@dataclass(frozen=True)
class _CutTable:
    """The rows of a table, which start after its header."""

    start: int
    end: int
    header: str
    tokens: int


def longest_segment(corpus: Corpus, max_tokens: int | None) -> int:
    """Most tokens of a segment: ``corpus.segment_tokens``, or what the encoder reads if that is less.

    Raises:
        CorpusError: the encoder reads too little.
    """
    longest = corpus.segment_tokens if max_tokens is None else min(corpus.segment_tokens, max_tokens)
    if longest < _LEAST_TOKENS:
        message = f"the encoder reads passages of {longest} tokens, fewer than {_LEAST_TOKENS}: choose another model"
        raise CorpusError(message)
    return longest


def split_segments(
    documents: pl.DataFrame,
    corpus: Corpus,
    count_tokens: TokenCounter,
    *,
    max_tokens: int | None,
    count_unknown: TokenCounter | None = None,
    context: Context = "none",
) -> pl.DataFrame:
    """Cut every document that is not deleted.

    A new segment starts at a heading unless what is before it is still short, and wherever the next piece
    would pass ``corpus.segment_tokens``, or what the encoder reads if that is less.

    Args:
        documents: frame of :data:`tables.DOCUMENTS`.
        corpus: ``segment_tokens`` bounds every segment.
        count_tokens: tokens of each text under the encoder's tokenizer, without special tokens.
        max_tokens: longest passage that the encoder reads whole, without prefix and special tokens; None: any.
        count_unknown: tokens of each text that stand for unknown words; None: the tokenizer knows every word.
        context: what is put before a segment's text in what is embedded; a segment leaves room for it.

    Returns:
        Frame of :data:`tables.SEGMENTS`, sorted by document id and position.

    Raises:
        CorpusError: the encoder reads too little.
    """
    limit = longest_segment(corpus, max_tokens)
    rows = []
    distinct = documents.filter(~pl.col("deleted")).unique("document_id", keep="first", maintain_order=True)
    for document in distinct.sort("document_id").iter_rows(named=True):
        text, blocks = document["text"], from_rows(document["blocks"])
        room = limit
        if context != "none" and max_tokens is not None:
            taken = _context_tokens(document["title"], blocks, context, count_tokens)
            room = min(limit, max(_LEAST_TOKENS, max_tokens - taken))
            if max_tokens - taken < _LEAST_TOKENS:
                logger.warning(
                    "%s: its title and headings leave fewer than %d of the %d tokens that the encoder reads; "
                    "the ends of its segments may not be read",
                    document["path"],
                    _LEAST_TOKENS,
                    max_tokens,
                )
        spans = _pack(_atoms(text, blocks, room, count_tokens), room)
        texts = [span.header + text[span.start : span.end] for span in spans]
        unknown = count_unknown(texts) if count_unknown else [0] * len(texts)
        counted = zip(texts, count_tokens(texts), unknown, spans, strict=True)
        for position, (piece, tokens, unknown_tokens, span) in enumerate(counted):
            identity = f"{document['document_id']}:{position}"
            rows.append(
                {
                    "segment_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
                    "document_id": document["document_id"],
                    "batch": document["batch"],
                    "position": position,
                    "heading_path": PATH_SEPARATOR.join(span.path),
                    "text": piece,
                    "token_count": tokens,
                    "unknown_tokens": unknown_tokens,
                    "repeated": len(span.header),
                    "withheld": "\n\n".join(split_instructions(piece)[1]),
                }
            )
    return tables.SEGMENTS.frame(rows)


def _context_tokens(title: str, blocks: Sequence[Block], context: Context, count_tokens: TokenCounter) -> int:
    """Tokens of the longest context that a segment of a document can get."""
    path: list[Block] = []
    paths = {""}
    for heading in (block for block in blocks if block.kind == "heading"):
        path = [above for above in path if above.level < heading.level] + [heading]
        paths.add(PATH_SEPARATOR.join(block.text for block in path))
    contexts = {context_of(title, one, context) for one in paths}
    return max(count_tokens([with_context(one, "") for one in sorted(contexts)]))


def _atoms(text: str, blocks: Sequence[Block], limit: int, count_tokens: TokenCounter) -> list[_Atom]:
    headings = {block.start: block for block in blocks if block.kind == "heading"}
    tables_in = list(_tables(text, blocks, limit, count_tokens))
    gaps = (gap.end() for gap in _PARAGRAPH_END.finditer(text))
    edges = (edge for table in tables_in for edge in (table.start, table.end))
    cuts = sorted({0, *headings, *gaps, *edges, len(text)})
    spans = list(pairwise(cuts))
    starts = [block.start for block in blocks]
    table_starts = [table.start for table in tables_in]

    def in_lines(start: int) -> bool:
        place = bisect_right(starts, start) - 1
        return place >= 0 and blocks[place].kind in _IN_LINES and start < blocks[place].end

    def table_at(start: int) -> _CutTable | None:
        place = bisect_right(table_starts, start) - 1
        return tables_in[place] if place >= 0 and start < tables_in[place].end else None

    sized = _sized(text, spans, count_tokens)
    for pattern in (_LINE_END, _SENTENCE_END, _WORD_END, None):
        kept: list[tuple[int, int, int]] = []
        cut: list[tuple[int, int]] = []
        for start, end, tokens in sized:
            fits = tokens <= limit - _header_tokens(table_at(start))
            if fits or (pattern is _LINE_END and not in_lines(start)):
                kept.append((start, end, tokens))
            else:
                cut += _cut(text, start, end, pattern)
        sized = sorted([*kept, *_sized(text, cut, count_tokens)])
    path: list[Block] = []
    atoms = []
    for start, end, tokens in sized:
        if start in headings:
            path = [above for above in path if above.level < headings[start].level] + [headings[start]]
        names = tuple(heading.text for heading in path) if start in headings else None
        table = table_at(start)
        atoms.append(_Atom(start, end, tokens, names, table.header if table else "", _header_tokens(table)))
    return atoms


def _sized(text: str, spans: Sequence[tuple[int, int]], count_tokens: TokenCounter) -> list[tuple[int, int, int]]:
    """Spans with their tokens."""
    counts = count_tokens([text[start:end] for start, end in spans]) if spans else []
    return [(start, end, tokens) for (start, end), tokens in zip(spans, counts, strict=True)]


def _header_tokens(table: _CutTable | None) -> int:
    return table.tokens if table else 0


def _tables(text: str, blocks: Sequence[Block], limit: int, count_tokens: TokenCounter) -> Iterator[_CutTable]:
    """The tables that may be cut, with a header short enough to be repeated."""
    for block in blocks:
        header = table_head(text[block.start : block.end]) if block.kind == "table" else ""
        if header and block.start + len(header) < block.end:
            size, whole = count_tokens([header, text[block.start : block.end]])
            if size <= _MOST_HEADER * limit and whole > limit:
                yield _CutTable(block.start + len(header), block.end, header, size)


def _cut(text: str, start: int, end: int, pattern: re.Pattern[str] | None) -> list[tuple[int, int]]:
    if pattern is None:
        inner = list(_character_cuts(text, start, end))
    else:
        inner = [m.end() for m in pattern.finditer(text, start, end) if m.end() < end]
    cuts = [start, *inner, end]
    return list(pairwise(cuts))


def _character_cuts(text: str, start: int, end: int) -> Iterator[int]:
    """Places about every 16 characters, between the characters that a reader sees unless one is longer than that."""
    last = start
    for found in _GRAPHEME.finditer(text, start, end):
        if found.end() - last > _CHARACTERS_PER_PIECE and found.start() > last:
            last = found.start()
            yield last
        while found.end() - last > _CHARACTERS_PER_PIECE:
            last += _CHARACTERS_PER_PIECE
            yield last


def _pack(atoms: list[_Atom], limit: int) -> list[_Span]:
    """Join atoms into segments; the sum of the atoms' tokens bounds the segment's."""
    segments: list[_Span] = []
    start, tokens = 0, 0
    own: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    header = ""
    for atom in atoms:
        full = tokens + atom.tokens > limit
        enough = atom.headings is not None and tokens > limit // 3
        if tokens and (full or enough):
            segments.append(_Span(start, atom.start, own, header))
            start, tokens, own = atom.start, atom.header_tokens, path
            header = atom.header
        if atom.headings is not None:
            path = atom.headings
            if tokens == 0:
                own = path
        tokens += atom.tokens
    if atoms:
        segments.append(_Span(start, atoms[-1].end, own, header))
    return segments
