"""Boilerplate: paragraphs that occur in many documents, such as navigation, page heads and feet, licence texts.

What a third of the documents say tells none of them apart: questions about it have no one right passage, and it makes
unlike passages alike. The unit is the paragraph, known by its lines, so that a menu whose order varies is still one.
Each line is kept where it occurs first and removed elsewhere: nothing that was written is lost to the corpus.
Headings, code, tables and what introduces something (``Returns:``) are never taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from operator import itemgetter

import polars as pl
from upath import UPath

from embed_pipeline.settings import Corpus
from embed_pipeline.storage import check_name, list_folder, read_all, write_whole
from embed_pipeline.text.blocks import Block, from_rows, without_spans

_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_PROSE = frozenset({"paragraph", "list", "quote"})
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+")
_LEAST_WORDS = 3
_LEAST_PAGES = 3
# A document that would lose more is a copy of others, not a page with the same frame.
_MOST_REMOVED = 0.5
_SAMPLED_DOCUMENTS = 1000
_FOLDER = "boilerplate"
_ALL_BATCHES = "corpus"


Document = tuple[str, tuple[Block, ...]]
"""A text and its blocks."""


@dataclass(frozen=True)
class RecurringLine:
    """A line of boilerplate: its text where it was met first, the documents that have it, and those it was taken from.

    ``line_id`` is the hash by which later batches know it.
    """

    line_id: str
    text: str
    documents: int
    removed_from: int


@dataclass(frozen=True)
class Cleaned:
    """Documents without their boilerplate, in the order given, and the lines that it was, most frequent first."""

    texts: tuple[str, ...]
    blocks: tuple[tuple[Block, ...], ...]
    lines: tuple[RecurringLine, ...]


@dataclass(frozen=True)
class _Paragraph:
    """A span of characters, white space behind it included, and the ids of its lines with their texts."""

    start: int
    end: int
    lines: dict[str, str]


def remove_boilerplate(documents: Sequence[Document], corpus: Corpus, known: Collection[str] = ()) -> Cleaned:
    """Remove paragraphs from ``documents`` all of whose lines are boilerplate and occur in an earlier text.

    A line is boilerplate where ``corpus.boilerplate_documents`` distinct texts have it and ``corpus.boilerplate_share``
    of all, or where ``known`` holds its id: an earlier batch found it. A text that would lose over half of itself is
    left whole and has no say in what is boilerplate.

    Args:
        documents: text and blocks of each, in an order that does not change.
        corpus: the two bounds; a share of ``off`` removes nothing.
        known: ids of lines that other documents keep.
    """
    if corpus.boilerplate_share == "off":
        return Cleaned(tuple(text for text, _ in documents), tuple(blocks for _, blocks in documents), ())
    blocks_of = dict(reversed(documents))
    read = {text: _paragraphs(text, blocks_of[text]) for text, _ in documents}
    counts = _count(read.values())
    whole = {text for text in read if _removed_share(text, read[text], _recurring(counts, len(read), corpus, known))}
    framed = [text for text in read if text not in whole]
    counts = _count(read[text] for text in framed)
    recurring = _recurring(counts, len(framed), corpus, known)
    kept, removed, shown = set(known), Counter[str](), dict[str, str]()
    left: dict[str, Document] = {}
    for text in framed:
        spans: list[tuple[int, int]] = []
        gone: set[str] = set()
        for paragraph in read[text]:
            if paragraph.lines.keys() <= recurring:
                if paragraph.lines.keys() <= kept:
                    spans.append((paragraph.start, paragraph.end))
                    gone |= paragraph.lines.keys()
                kept |= paragraph.lines.keys()
                for key, line in paragraph.lines.items():
                    shown.setdefault(key, line)
        left[text] = without_spans(text, blocks_of[text], spans)
        removed.update(gone)
    lines = [RecurringLine(key, shown[key], counts[key], removed[key]) for key in removed]
    lines.sort(key=lambda line: (-line.documents, line.text, line.line_id))
    cleaned = [left.get(text, (text, blocks_of[text])) for text, _ in documents]
    return Cleaned(tuple(text for text, _ in cleaned), tuple(blocks for _, blocks in cleaned), tuple(lines))


def find_boilerplate(documents: Mapping[str, pl.DataFrame], present: pl.DataFrame, corpus: Corpus) -> list[str]:
    """Ids of the lines that are boilerplate over all batches, sorted: what each batch alone is too small to show.

    Args:
        documents: frame of :data:`tables.DOCUMENTS` for each batch.
        present: document_id, path and batch of those that are still there; of very many, a sample decides (ids are
            hashes, so those that come first are a fair one).
        corpus: the bounds.
    """
    if corpus.boilerplate_share == "off":
        return []
    sample = present.sort("document_id", "path").unique("document_id", keep="first", maintain_order=True)
    sample = sample.head(_SAMPLED_DOCUMENTS).select("document_id", "path", "batch")
    rows = [
        documents[batch].join(own, on=["document_id", "path"]).select("document_id", "text", "blocks").rows()
        for (batch,), own in sample.group_by("batch")
    ]
    read = [(text, from_rows(blocks)) for _, text, blocks in sorted(chain.from_iterable(rows), key=itemgetter(0))]
    return sorted(line.line_id for line in remove_boilerplate(read, corpus).lines)


def learned_lines(root: UPath) -> tuple[str, ...]:
    """Ids of every line that was found to be boilerplate so far, sorted.

    Raises:
        StorageError: they cannot be read.
    """
    found = read_all(list_folder(root / _FOLDER, "*.json"))
    return tuple(sorted({line for content in found for line in json.loads(content)}))


def remember_lines(root: UPath, lines: Sequence[str], batch: str = _ALL_BATCHES) -> None:
    """Keep the ids of the lines that ``batch`` showed to be boilerplate, for batches that are cut from now on.

    Raises:
        StorageError: they cannot be written.
    """
    write_whole(root / _FOLDER / f"{check_name(batch)}.json", json.dumps(sorted(lines)).encode())


def _count(read: Collection[list[_Paragraph]] | Iterator[list[_Paragraph]]) -> Counter[str]:
    """In how many texts each line stands."""
    counts: Counter[str] = Counter()
    for paragraphs in read:
        counts.update({key for paragraph in paragraphs for key in paragraph.lines})
    return counts


def _recurring(counts: Counter[str], texts: int, corpus: Corpus, known: Collection[str]) -> set[str]:
    share = 0.0 if corpus.boilerplate_share == "off" else corpus.boilerplate_share
    least = max(corpus.boilerplate_documents, math.ceil(share * texts))
    return {key for key, count in counts.items() if count >= least} | set(known)


def _removed_share(text: str, paragraphs: list[_Paragraph], recurring: set[str]) -> bool:
    """True where more of the text is boilerplate than may be removed."""
    size = sum(p.end - p.start for p in paragraphs if p.lines.keys() <= recurring)
    return size > _MOST_REMOVED * len(text)


def _paragraphs(text: str, blocks: Sequence[Block]) -> list[_Paragraph]:
    """The paragraphs that may be boilerplate."""
    found = []
    for start, end in _spans(text, blocks):
        lines = text[start:end].strip("\n").split("\n")
        introduces = lines[-1].rstrip().endswith(":")
        is_drawn = any(line.lstrip().startswith(("|", "+-")) for line in lines)  # a table that is none to the parser
        few = len(_WORD.findall(text, start, end)) < _LEAST_WORDS
        if not (is_drawn or introduces or few):
            found.append((start, end, [" ".join(line.split()) for line in lines if line.strip()]))
    pages = _page_furniture([lines for _, _, lines in found])
    return [
        _Paragraph(start, end, {_line_id(pages.get(line, line)): line for line in lines}) for start, end, lines in found
    ]


def _spans(text: str, blocks: Sequence[Block]) -> Iterator[tuple[int, int]]:
    """Runs of lines of prose without a blank one between them, with the blank lines behind them."""
    for block in blocks:
        if block.kind in _PROSE:
            start = block.start
            for gap in [*_BLANK_LINE.finditer(text, block.start, block.end), None]:
                end = gap.end() if gap else block.end
                while end < len(text) and text[end] == "\n":
                    end += 1
                if text[start:end].strip():
                    yield start, end
                start = end


def _page_furniture(paragraphs: list[list[str]]) -> dict[str, str]:
    """Lines with a number that counts up by one from page to page, such as ``Page 3 of 20``, and what they share."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for line in (line for lines in paragraphs for line in lines):
        alike[_NUMBER.sub("#", line)].append(line)
    pages: dict[str, str] = {}
    for form, lines in alike.items():
        if "#" not in form or len(lines) < _LEAST_PAGES:
            continue
        numbers = [[int(number[:9]) for number in _NUMBER.findall(line)] for line in lines]
        for place, column in enumerate(zip(*numbers, strict=False)):
            if all(after == before + 1 for before, after in pairwise(column)):
                pages |= {line: _without_number(line, place) for line in lines}
                break
    return pages


def _without_number(line: str, place: int) -> str:
    """The line without the number that stands at ``place`` among its numbers."""
    number = list(_NUMBER.finditer(line))[place]
    return f"{line[: number.start()]}#{line[number.end() :]}"


def _line_id(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:16]
