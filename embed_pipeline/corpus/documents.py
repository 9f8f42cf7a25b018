"""Files of a batch to documents: text, title and blocks of each, and what is set aside."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from embed_pipeline import tables
from embed_pipeline.corpus.batches import Batch, BatchFile
from embed_pipeline.corpus.boilerplate import remove_boilerplate
from embed_pipeline.corpus.files import CorpusError, read_document
from embed_pipeline.corpus.formats import UnreadableError
from embed_pipeline.corpus.readers import ReadingProcess
from embed_pipeline.progress import progress
from embed_pipeline.settings import ROW_SUFFIXES, Settings
from embed_pipeline.text.blocks import ParsedDocument, as_rows, from_rows, is_blank

IN_PART = "in_part"
"""Reason under which the parts of a document are set aside that could not be read."""
_PARTS_SHOWN = 5
_PASSING = frozenset({"unreadable", "changed_since_batch"})
"""Reasons that say nothing about the text: the version before stays until a later batch knows better."""


def read_documents(batch: Batch, settings: Settings, *, only_batch: bool = False) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the files of ``batch``.

    A file that was a document before and is none any more leaves a tombstone, as a deleted one does. Of a document that
    was read in part, what was not is set aside under its path with the reason ``in_part``.

    Returns:
        Frames of :data:`tables.DOCUMENTS` and :data:`tables.REJECTED_DOCUMENTS`, sorted by path. Files of the
        same text share a document id; they are cut into segments once and are in the corpus once.

    Raises:
        CorpusError: ``only_batch`` and no file of it is usable.
    """
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    gone = list(batch.deleted)
    with ReadingProcess(settings.corpus) as process, progress("Reading documents", len(batch.files), "file") as bar:
        for file in sorted(batch.files, key=lambda f: f.path):
            try:
                read = _read(file, settings, process)
                rows.append(_document(file, batch.name, read))
                if read.left_out:
                    detail = _counted(read.left_out)
                    rejected.append({"path": file.path, "batch": batch.name, "reason": IN_PART, "detail": detail})
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
    read = [(row["text"], from_rows(row["blocks"])) for row in prose.select("text", "blocks").iter_rows(named=True)]
    cleaned = remove_boilerplate(read, settings.corpus, batch.boilerplate)
    texts = pl.Series("text", cleaned.texts, pl.String)
    blocks = pl.Series("blocks", [as_rows(left) for left in cleaned.blocks], tables.DOCUMENTS.schema["blocks"])
    ids = pl.Series("document_id", [_hash(text) for text in texts], pl.String)
    rest = documents.filter(~is_prose)
    whole = pl.concat([prose.with_columns(texts, blocks, ids), rest]).sort("path")
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


def _read(file: BatchFile, settings: Settings, process: ReadingProcess) -> ParsedDocument:
    limit = settings.corpus.max_file_bytes
    try:
        content = read_document(settings.paths.documents, file.path, limit)
    except OSError as error:
        raise UnreadableError("unreadable", error.strerror or str(error)) from error
    if len(content) > limit:
        raise UnreadableError("too_large", f"over corpus.max_file_bytes = {limit}")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise UnreadableError("changed_since_batch", "a later batch reads the new version")
    read = process.read(file.path, content)
    if is_blank(read.text):
        raise UnreadableError("empty", f"{file.size} bytes, no text")
    return read


def _document(file: BatchFile, batch: str, read: ParsedDocument) -> dict[str, Any]:
    return {
        "document_id": _hash(read.text),
        "path": file.path,
        "title": read.title or PurePosixPath(file.path).stem,
        "text": read.text,
        "blocks": as_rows(read.blocks),
        "bytes": file.size,
        "modified_at": datetime.fromtimestamp(file.mtime_ns / 1e9, tz=UTC),
        "batch": batch,
        "deleted": False,
    }


def _counted(parts: tuple[str, ...]) -> str:
    more = "; ..." if len(parts) > _PARTS_SHOWN else ""
    return f"{len(parts)} part{'s' * (len(parts) > 1)} left out: {'; '.join(parts[:_PARTS_SHOWN])}{more}"


def _tombstone(path: str, batch: str) -> dict[str, Any]:
    gone = {
        "title": "",
        "text": "",
        "blocks": [],
        "bytes": 0,
        "modified_at": datetime.fromtimestamp(0, tz=UTC),
        "deleted": True,
    }
    return {"document_id": _hash(f"deleted {path} in {batch}"), "path": path, "batch": batch, **gone}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
