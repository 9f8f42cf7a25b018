"""Every expression that sees a document is linear: 20,000 hostile characters take no second, whatever they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from embed_pipeline import tables
from embed_pipeline.corpus.boilerplate import remove_boilerplate
from embed_pipeline.corpus.decoding import decode, without_data
from embed_pipeline.corpus.formats import read_markdown, split_front_matter
from embed_pipeline.corpus.pages import read_html
from embed_pipeline.corpus.restructured import read_restructured
from embed_pipeline.corpus.rows import read_csv, read_json_lines
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.llm.prompts import delimit
from embed_pipeline.settings import Corpus
from embed_pipeline.text.blocks import as_rows, clean_text
from embed_pipeline.text.injections import split_instructions
from embed_pipeline.text.markdown import markdown_blocks, replace_headings
from embed_pipeline.text.words import content_words, readable, sentences, specific_terms

SIZE = 20_000
PIECES = (
    " ", "\n", "\t", "#", "# a ", "=", "-", "a", "_", "a_", "1.", "1", ".", "é", "\u0301", "[", "](", "![", "![](data:",
    "data:", "data:a/a;", "<", "<a ", "<!--", "<div>", "<b>", ">", "> ", "- ", "* ", "`", "```\n", "~~~\n", "|", "| a ",
    "|-", "*", "**a", "\\", "{", "{#", ":::\n", "::: a\n", '"', '""', "',", ";", ",\n", "&#55357;", "&", "a.b.", "A",
    "Aa", "---\n", "+++\n", "[a]: ", "(", "()", "a(", "\u201c", "word ", "\u3000", "\ufb01", "\ud83d",
)  # fmt: skip
SHAPES = [
    *((piece * SIZE)[:SIZE] for piece in PIECES),
    "# a" + " " * SIZE + "b",
    "a" + " " * SIZE + "|" + " " * SIZE,
    "title: " + "[" * SIZE,
    "---\n" + "a: " * (SIZE // 3) + "\n---\n",
    "[" * (SIZE // 2) + "]" * (SIZE // 2),
    "a\n" * (SIZE // 2) + "==",
    "> " * 9_000 + "\n" + "a\n" * 1000,
]


def _refused(reader: Callable[[str], object], text: str) -> None:
    try:
        reader(text)
    except (ValueError, RecursionError):
        return


def _segments(text: str) -> None:
    text = clean_text(text)
    place = {"document_id": "d", "path": "a.md", "title": "", "text": text, "bytes": 1, "batch": "b", "deleted": False}
    row = {
        **place,
        "text": text,
        "blocks": as_rows(markdown_blocks(text)),
        "modified_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    count = lambda texts: [-(-len(text) // 8) for text in texts]  # noqa: E731
    split_segments(tables.DOCUMENTS.frame([row]), Corpus(), count, max_tokens=None)


READERS: dict[str, Callable[[str], object]] = {
    "decode": lambda text: _refused(lambda said: decode(said.encode("utf-8", "replace") + b"\xe9"), text),
    "data": without_data,
    "clean": clean_text,
    "front matter": split_front_matter,
    "blocks": markdown_blocks,
    "markdown": read_markdown,
    "html": lambda text: read_html(clean_text(text)),
    "csv": lambda text: _refused(read_csv, text),
    "json lines": lambda text: _refused(read_json_lines, text),
    "boilerplate": lambda text: remove_boilerplate([(text, markdown_blocks(text))], Corpus()),
    "headings": lambda text: replace_headings(text, keep=True),
    "readable": lambda text: readable(text, 500),
    "sentences": sentences,
    "terms": specific_terms,
    "instructions": split_instructions,
    "prompt": lambda text: delimit({"S1": text}),
    "segments": _segments,
    "words": content_words,
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_hostile_text_takes_no_longer_than_other_text(reader: str) -> None:
    slow = {}
    for text in SHAPES:
        # A machine that does other work takes more processor time for the same: what is slow is tried again.
        taken = _seconds(READERS[reader], text)
        if taken > 1 and (taken := min(_seconds(READERS[reader], text) for _ in range(2))) > 1:
            slow[text[:20]] = round(taken, 1)
    assert slow == {}


def _seconds(reader: Callable[[str], object], text: str) -> float:
    started = time.process_time()
    reader(text)
    return time.process_time() - started


@pytest.mark.slow
def test_hostile_restructured_text_takes_time_by_its_length() -> None:
    """docutils takes up to 0.2 ms a line, and its expressions are kept to short pieces of a paragraph."""
    slow = {}
    for text in [*SHAPES, "`a <" * 5000, "+-" * 10_000, ".. a::\n" * 2800, "http://" * 2800]:
        taken = _seconds(lambda text: _refused(read_restructured, text), text)
        if taken > 5:
            slow[text[:20]] = round(taken, 1)
    assert slow == {}
