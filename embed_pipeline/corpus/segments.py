"""Documents to segments: cut at headings, then paragraphs, then sentence ends, never over the token limit.

Every character of a document is in exactly one segment: joined in order, the segments give the text back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from embed_pipeline import tables
from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.settings import Corpus
from embed_pipeline.text.headings import Heading, find_headings

TokenCounter = Callable[[Sequence[str]], list[int]]

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])[\"')\]]*\s+|\n")
_WORD_END = re.compile(r"\s+")
_CHARACTERS_PER_PIECE = 16
_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class _Atom:
    """A piece that is never cut: its span, its tokens, and the heading path if a heading starts here."""

    start: int
    end: int
    tokens: int
    headings: tuple[str, ...] | None


def split_segments(
    documents: pl.DataFrame, corpus: Corpus, count_tokens: TokenCounter, *, max_tokens: int | None = None
) -> pl.DataFrame:
    """Cut every document that is not deleted.

    A new segment starts at a heading unless what is before it is still short, and wherever the next piece
    would pass ``corpus.segment_tokens``.

    Args:
        documents: frame of :data:`tables.DOCUMENTS`.
        corpus: ``segment_tokens`` bounds every segment.
        count_tokens: tokens of each text under the encoder's tokenizer, without special tokens.
        max_tokens: longest text that the encoder reads whole, special tokens included; None: not checked.

    Returns:
        Frame of :data:`tables.SEGMENTS`, sorted by document id and position.

    Raises:
        CorpusError: ``corpus.segment_tokens`` is more than the encoder reads.
    """
    if max_tokens is not None and corpus.segment_tokens + _SPECIAL_TOKENS > max_tokens:
        message = f"corpus.segment_tokens is {corpus.segment_tokens}; the encoder reads {max_tokens} tokens, "
        message += f"{_SPECIAL_TOKENS} of them special: set it to at most {max_tokens - _SPECIAL_TOKENS}"
        raise CorpusError(message)
    rows = []
    distinct = documents.filter(~pl.col("deleted")).unique("document_id", keep="first", maintain_order=True)
    for document in distinct.sort("document_id").iter_rows(named=True):
        text = document["text"]
        atoms = _atoms(text, corpus.segment_tokens, count_tokens)
        spans = _pack(atoms, corpus.segment_tokens)
        texts = [text[start:end] for start, end, _ in spans]
        for position, (piece, tokens, (_, _, path)) in enumerate(zip(texts, count_tokens(texts), spans, strict=True)):
            identity = f"{document['document_id']}:{position}"
            rows.append(
                {
                    "segment_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
                    "document_id": document["document_id"],
                    "batch": document["batch"],
                    "position": position,
                    "heading_path": " > ".join(path),
                    "text": piece,
                    "token_count": tokens,
                }
            )
    return tables.SEGMENTS.frame(rows)


def _atoms(text: str, limit: int, count_tokens: TokenCounter) -> list[_Atom]:
    headings = {heading.start: heading for heading in find_headings(text)}
    cuts = sorted({0, *headings, *(m.end() for m in _PARAGRAPH_END.finditer(text)), len(text)})
    spans = list(pairwise(cuts))
    for pattern in (_SENTENCE_END, _WORD_END, None):
        counts = count_tokens([text[start:end] for start, end in spans])
        spans = [
            piece
            for (start, end), tokens in zip(spans, counts, strict=True)
            for piece in ([(start, end)] if tokens <= limit else _cut(text, start, end, pattern))
        ]
    counts = count_tokens([text[start:end] for start, end in spans])
    path: list[Heading] = []
    atoms = []
    for (start, end), tokens in zip(spans, counts, strict=True):
        if start in headings:
            path = [above for above in path if above.level < headings[start].level] + [headings[start]]
        names = tuple(heading.text for heading in path) if start in headings else None
        atoms.append(_Atom(start, end, tokens, names))
    return atoms


def _cut(text: str, start: int, end: int, pattern: re.Pattern[str] | None) -> list[tuple[int, int]]:
    if pattern is None:
        inner = list(range(start + _CHARACTERS_PER_PIECE, end, _CHARACTERS_PER_PIECE))
    else:
        inner = [m.end() for m in pattern.finditer(text, start, end) if m.end() < end]
    cuts = [start, *inner, end]
    return list(pairwise(cuts))


def _pack(atoms: list[_Atom], limit: int) -> list[tuple[int, int, tuple[str, ...]]]:
    """Join atoms into segments; the sum of the atoms' tokens bounds the segment's."""
    segments: list[tuple[int, int, tuple[str, ...]]] = []
    start, tokens = 0, 0
    own: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    for atom in atoms:
        full = tokens + atom.tokens > limit
        enough = atom.headings is not None and tokens > limit // 3
        if tokens and (full or enough):
            segments.append((start, atom.start, own))
            start, tokens, own = atom.start, 0, path
        if atom.headings is not None:
            path = atom.headings
            if tokens == 0:
                own = path
        tokens += atom.tokens
    if atoms:
        segments.append((start, atoms[-1].end, own))
    return segments
