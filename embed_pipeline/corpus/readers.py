"""Readers of files that are no plain text: PDF and Office through markitdown, rows of CSV and JSON Lines.

PDF and Office files are converted in a process of their own with a memory limit and a time limit, so that a hostile
one costs its own conversion and nothing else.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import select
import subprocess
import sys
import time
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.settings import Corpus

OFFICE_SUFFIXES = (".pdf", ".docx", ".pptx")
ROW_SUFFIXES = (".csv", ".jsonl")

_TITLE_COLUMNS = ("title", "name", "heading", "subject", "question", "id")
_MAX_TITLE = 120
_SNIFFED_CHARACTERS = 64_000


class UnreadableError(Exception):
    """A file that no text can be had from; ``reason`` is that of table ``rejected_documents``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class OfficeReader:
    """Converts PDF and Office files to Markdown; its process starts with the first one and ends with the block."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process."""
        self._end()

    def read(self, path: str, content: bytes) -> str:
        """The Markdown of a file whose name ends in one of :data:`OFFICE_SUFFIXES`.

        Raises:
            UnreadableError: it is damaged, protected, or takes more memory or time than the settings allow.
            CorpusError: the extra that converts such files is not installed.
        """
        suffix = PurePosixPath(path).suffix.lower()
        if importlib.util.find_spec("markitdown") is None:
            message = f"{path}: reading {suffix} needs markitdown; install embed-pipeline[documents]"
            raise CorpusError(message)
        answer = self._ask(suffix, content)
        if "markdown" not in answer:
            self._end()  # what a failed conversion left in memory does not count for the next
            raise UnreadableError(answer["reason"], answer["detail"])
        return answer["markdown"]

    def _ask(self, suffix: str, content: bytes) -> dict[str, str]:
        limit = self._corpus.conversion_seconds
        process = self._process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            message = "the conversion process has no streams"
            raise OSError(message)
        deadline = time.monotonic() + limit
        try:
            process.stdin.write(json.dumps({"suffix": suffix, "size": len(content)}).encode() + b"\n" + content)
            process.stdin.flush()
            line = b""
            while not line.endswith(b"\n"):
                ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
                piece = os.read(process.stdout.fileno(), 1 << 20) if ready else b""
                if not piece:
                    self._end()
                    return _unanswered(process, limit, in_time=bool(ready))
                line += piece
        except BrokenPipeError:
            self._end()
            return _unanswered(process, limit, in_time=True)
        answer: dict[str, str] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        limits = [str(self._corpus.conversion_megabytes), str(self._corpus.max_unpacked_bytes)]
        return subprocess.Popen(  # noqa: S603 - this interpreter and a module of this package
            [sys.executable, "-m", "embed_pipeline.corpus.conversion", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _unanswered(process: subprocess.Popen[bytes], limit: float, *, in_time: bool) -> dict[str, str]:
    if in_time:
        return {"reason": "not_text", "detail": f"its conversion ended the process (status {process.returncode})"}
    return {"reason": "too_large", "detail": f"its conversion takes over corpus.conversion_seconds = {limit:g}"}


def rows_to_markdown(path: str, text: str) -> str:
    """The rows of a CSV or JSON Lines file as Markdown: a section for each row, a line for each value that is there.

    A row's heading is its title, name, heading, subject, question or id, whichever column there is first.

    Raises:
        UnreadableError: it is not CSV, or a line is no JSON object.
    """
    rows = _csv_rows(text) if path.lower().endswith(".csv") else _json_rows(text)
    sections = []
    for number, row in enumerate(rows, start=1):
        values = {name: shown for name, value in row.items() if (shown := _shown(value))}
        named = next((name for name in values if name.strip().lower() in _TITLE_COLUMNS), None)
        title = " ".join(values[named].split())[:_MAX_TITLE] if named else f"Row {number}"
        lines = [f"{name}: {value}" for name, value in values.items() if name != named]
        sections.append(f"## {title}\n\n" + "\n".join(lines))
    return "\n\n".join(sections) + "\n" if sections else ""


def _csv_rows(text: str) -> list[dict[str, Any]]:
    try:
        dialect: Any = csv.Sniffer().sniff(text[:_SNIFFED_CHARACTERS], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    try:
        reader = csv.DictReader(io.StringIO(text), dialect=dialect, restkey="more", restval="", strict=True)
        return [{str(name): value for name, value in row.items()} for row in reader]
    except csv.Error as error:
        raise UnreadableError("not_text", f"it is not CSV: {error}") from error


def _json_rows(text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnreadableError("not_text", f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UnreadableError("not_text", f"line {number} is no JSON object")
        rows.append(row)
    return rows


def _shown(value: object) -> str:
    """A value as text; empty for what is not there."""
    if value is None or isinstance(value, str):
        return (value or "").strip()
    return json.dumps(value, ensure_ascii=False)
