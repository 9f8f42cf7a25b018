"""Files of a batch to documents: decoding, markup to Markdown, and what is set aside."""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from embed_pipeline import tables
from embed_pipeline.corpus.batches import Batch, BatchFile
from embed_pipeline.corpus.boilerplate import remove_boilerplate
from embed_pipeline.corpus.files import CorpusError, read_document
from embed_pipeline.corpus.readers import (
    OFFICE_SUFFIXES,
    ROW_SUFFIXES,
    OfficeReader,
    UnreadableError,
    rows_to_markdown,
)
from embed_pipeline.progress import progress
from embed_pipeline.settings import Settings

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_MAX_CONTROL_SHARE = 0.01
_MAX_HTML_CHARACTERS = 2_000_000
_PASSING = frozenset({"unreadable", "changed_since_batch"})
"""Reasons that say nothing about the text: the version before stays until a later batch knows better."""


def read_documents(batch: Batch, settings: Settings, *, only_batch: bool = False) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the files of ``batch``.

    A file that was a document before and is none any more leaves a tombstone, as a deleted one does.

    Returns:
        Frames of :data:`tables.DOCUMENTS` and :data:`tables.REJECTED_DOCUMENTS`, sorted by path. Files of the
        same text share a document id; they are cut into segments once and stand in the corpus once.

    Raises:
        CorpusError: ``only_batch`` and no file of it is usable.
    """
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    gone = list(batch.deleted)
    with OfficeReader(settings.corpus) as office, progress("Reading documents", len(batch.files), "files") as bar:
        for file in sorted(batch.files, key=lambda f: f.path):
            try:
                rows.append(_document(file, batch.name, settings, office))
            except UnreadableError as error:
                why = {"reason": error.reason, "detail": error.detail}
                rejected.append({"path": file.path, "batch": batch.name, **why})
                if file.replaces and error.reason not in _PASSING:
                    gone.append(file.path)
            bar.advance()
    if only_batch and batch.files and not rows:
        found = "; ".join(f"{row['path']}: {row['reason']} ({row['detail']})" for row in rejected[:5])
        message = f"documents folder {settings.paths.documents} has no usable document: {found}"
        raise CorpusError(message)
    rows += [_tombstone(path, batch.name) for path in gone]
    frame = tables.DOCUMENTS.frame(rows).sort("path")
    return frame, tables.REJECTED_DOCUMENTS.frame(rejected)


def clean_documents(documents: pl.DataFrame, batch: Batch, settings: Settings) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Take boilerplate out of the batch's documents: what many of them say, or what ``batch`` knows as such.

    Rows of CSV and JSON Lines are left alone: what recurs in them is data.

    Args:
        documents: frame of :data:`tables.DOCUMENTS`, as read from the files of ``batch``.
        batch: brings the lines that earlier batches found.
        settings: ``corpus.boilerplate_share`` and ``corpus.boilerplate_documents``.

    Returns:
        The documents, those that changed with the id of their new text, and a frame of :data:`tables.BOILERPLATE`.
    """
    is_prose = ~pl.col("deleted") & ~pl.col("path").str.to_lowercase().str.contains(rf"({'|'.join(ROW_SUFFIXES)})$")
    prose = documents.filter(is_prose).sort("path")
    cleaned = remove_boilerplate(prose["text"].to_list(), settings.corpus, batch.boilerplate)
    texts = pl.Series("text", cleaned.texts, pl.String)
    ids = pl.Series("document_id", [_hash(text) for text in texts], pl.String)
    rest = documents.filter(~is_prose)
    whole = pl.concat([prose.with_columns(texts, ids), rest]).sort("path")
    known = set(batch.boilerplate)
    lines = [
        {
            "batch": batch.name,
            "line_id": line.line_id,
            "text": line.text,
            "documents": line.documents,
            "removed_from": line.removed_from,
            "known": line.line_id in known,
        }
        for line in cleaned.lines
    ]
    return tables.validate(whole, tables.DOCUMENTS), tables.BOILERPLATE.frame(lines)


def decode(content: bytes) -> str:
    """Bytes to newline-normalised Unicode text (NFC).

    A byte order mark decides; else UTF-8; else the encoding that charset-normalizer detects.

    Raises:
        ValueError: the bytes are not text.
    """
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content:
        raise ValueError("it holds NUL bytes")
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise ValueError(f"its byte order mark says {encoding}, but {error.reason}") from error
        from charset_normalizer import from_bytes

        best = from_bytes(content).best()
        if best is None:
            raise ValueError(f"it is not UTF-8 ({error.reason} at byte {error.start}) nor another encoding") from error
        text = str(best)
    control = sum(unicodedata.category(c) == "Cc" and c not in "\n\r\t\f" for c in text)
    if control > _MAX_CONTROL_SHARE * max(len(text), 1):
        raise ValueError(f"{control} of its {len(text)} characters are control characters")
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n"))


def _document(file: BatchFile, batch: str, settings: Settings, office: OfficeReader) -> dict[str, Any]:
    limit = settings.corpus.max_file_bytes
    if file.size > limit:
        raise UnreadableError("too_large", f"{file.size} bytes, over corpus.max_file_bytes = {limit}")
    try:
        content = read_document(settings.paths.documents, file.path, limit)
    except OSError as error:
        raise UnreadableError("unreadable", error.strerror or str(error)) from error
    if len(content) > limit:
        raise UnreadableError("too_large", f"over corpus.max_file_bytes = {limit}")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise UnreadableError("changed_since_batch", "a later batch reads the new version")
    title, text = _title_and_text(file.path, content, office)
    if not text.strip():
        raise UnreadableError("empty", f"{file.size} bytes, no text")
    return {
        "document_id": _hash(text),
        "path": file.path,
        "title": find_title(text) or title or PurePosixPath(file.path).stem,
        "text": text,
        "bytes": file.size,
        "modified_at": datetime.fromtimestamp(file.mtime_ns / 1e9, tz=UTC),
        "batch": batch,
        "deleted": False,
    }


def _title_and_text(path: str, content: bytes, office: OfficeReader) -> tuple[str, str]:
    """The title that a file's format gives it (empty: none), and its text or Markdown."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in OFFICE_SUFFIXES:
        content = office.read(path, content).encode("utf-8", "replace")
    try:
        text = decode(content)
    except ValueError as error:
        raise UnreadableError("not_text", str(error)) from error
    if suffix in {".html", ".htm"}:
        return _html_to_markdown(text)
    return "", rows_to_markdown(path, text) if suffix in ROW_SUFFIXES else text


def _tombstone(path: str, batch: str) -> dict[str, Any]:
    gone = {"title": "", "text": "", "bytes": 0, "modified_at": datetime.fromtimestamp(0, tz=UTC), "deleted": True}
    return {"document_id": _hash(f"deleted {path} in {batch}"), "path": path, "batch": batch, **gone}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _html_to_markdown(text: str) -> tuple[str, str]:
    """Title and body as Markdown."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    if len(text) > _MAX_HTML_CHARACTERS:
        raise UnreadableError("too_large", f"{len(text)} characters of HTML, over the limit of {_MAX_HTML_CHARACTERS}")
    soup = BeautifulSoup(text, "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for element in soup(
        ["head", "title", "script", "style", "nav", "noscript", "template", "footer", "header", "aside"]
    ):
        element.decompose()
    body = soup.body or soup
    try:
        markdown = str(MarkdownConverter(heading_style="ATX").convert_soup(body))
    except RecursionError as error:
        raise UnreadableError("not_text", "its HTML is nested too deeply") from error
    return title, re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n"


def find_title(text: str) -> str:
    """The first heading of Markdown or reStructuredText, without its markup; empty where there is none."""
    from embed_pipeline.text.headings import find_headings

    headings = find_headings(text)
    return headings[0].text if headings else ""
