"""What people said of pairs: stored, read, folded to a verdict for each pair, exported and imported.

``tables/qa_reviews/`` holds a file for each session of the inspection page and for each import. Only the session that
made a file writes to it, so that nobody's corrections overwrite another's, on one machine or several.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import polars as pl
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.enumerations import REVIEW_ACTIONS
from embed_pipeline.lineage import stored_tables
from embed_pipeline.storage import list_folder, parse_table, read_all, table_path, write_whole

MAX_WORDS = 4000
"""Characters of an edited text or a comment."""
_ORDER = ("reviewed_at", "review_id")
_OPTIONAL = ("question", "answer", "segment_id")


class ReviewError(ValueError):
    """A review does not say what it has to, or a file of reviews cannot be read."""


@dataclass(frozen=True)
class ReviewVerdict:
    """What people's words on a pair come to, the newest before older ones.

    Attributes:
        accepted: whether they accept it; None: they leave that to the rules.
        question: the question as edited; None: as it was written.
        answer: the answer as edited; None: as it was written.
        positives: segments that answer the question as well.
        reviewer: who spoke last.
    """

    accepted: bool | None = None
    question: str | None = None
    answer: str | None = None
    positives: frozenset[str] = frozenset()
    reviewer: str = ""


def review_row(
    qa_id: str,
    action: str,
    reviewer: str,
    *,
    question: str | None = None,
    answer: str | None = None,
    segment_id: str | None = None,
    comment: str = "",
    reviewed_at: datetime | None = None,
) -> dict[str, Any]:
    """A row of :data:`tables.QA_REVIEWS`.

    Raises:
        ReviewError: it lacks what its action needs, or a text is too long.
    """
    row: dict[str, Any] = {
        "qa_id": qa_id.strip(),
        "reviewed_at": (reviewed_at or datetime.now(UTC)).astimezone(UTC),
        "reviewer": " ".join(reviewer.split()),
        "action": action,
        "question": _text(question),
        "answer": _text(answer),
        "segment_id": _text(segment_id),
        "comment": _text(comment) or "",
    }
    needed = {"edit": ("question", "answer"), "positive": ("segment_id",), "comment": ("comment",)}.get(action, ())
    if action not in REVIEW_ACTIONS:
        raise ReviewError(f"action is {action[:80]!r}, expected one of {', '.join(REVIEW_ACTIONS)}")
    for name in ("qa_id", "reviewer"):
        if not row[name]:
            raise ReviewError(f"{name} is empty; say {'which pair' if name == 'qa_id' else 'who'} it is")
    if needed and not any(row[name] for name in needed):
        raise ReviewError(f"action {action} needs {' or '.join(needed)}")
    for name in ("question", "answer", "comment"):
        if len(row[name] or "") > MAX_WORDS:
            raise ReviewError(f"{name} has {len(row[name])} characters, may have {MAX_WORDS}")
    said = json.dumps([str(row[name]) for name in sorted(row)])
    return {"review_id": hashlib.sha256(said.encode()).hexdigest()[:16], **row}


def _text(value: str | None) -> str | None:
    """A text as a form or a file gives it: line ends as line feeds, nothing for blanks."""
    stripped = (value or "").replace("\r\n", "\n").strip()
    return stripped or None


class ReviewJournal:
    """One writer of reviews: a session of the inspection page, or an import."""

    def __init__(self, root: UPath) -> None:
        """Write below ``root``; the file is made with the first review."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.parquet"
        self._path = table_path(root, tables.QA_REVIEWS.name).with_suffix("") / name
        self._rows: list[dict[str, Any]] = []
        self._lock = Lock()

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Store further rows of :data:`tables.QA_REVIEWS`.

        Raises:
            StorageError: they cannot be written; none of them is stored.
        """
        with self._lock:
            whole = [*self._rows, *rows]
            buffer = io.BytesIO()
            tables.QA_REVIEWS.frame(whole).write_parquet(buffer, compression="zstd")
            write_whole(self._path, buffer.getvalue())
            self._rows = whole


def read_reviews(root: UPath) -> pl.DataFrame | None:
    """Every review, oldest first; None: nobody has reviewed anything here.

    Raises:
        StorageError: a file is damaged, or its storage cannot be reached.
    """
    files = list_folder(table_path(root, tables.QA_REVIEWS.name).with_suffix(""), "*.parquet")
    if not files:
        return None
    contents = zip(files, read_all(files), strict=True)
    parts = [parse_table(path, content, tables.QA_REVIEWS) for path, content in contents]
    return pl.concat(parts).unique("review_id", maintain_order=True).sort(_ORDER)


def fold_reviews(reviews: pl.DataFrame | None) -> dict[str, ReviewVerdict]:
    """Pair to what people's words on it come to.

    Args:
        reviews: frame of :data:`tables.QA_REVIEWS`; None: there is none.
    """
    verdicts: dict[str, ReviewVerdict] = {}
    for row in [] if reviews is None else reviews.sort(_ORDER).iter_rows(named=True):
        verdicts[row["qa_id"]] = _after(verdicts.get(row["qa_id"], ReviewVerdict()), row)
    return verdicts


def _after(before: ReviewVerdict, row: Mapping[str, Any]) -> ReviewVerdict:
    who = row["reviewer"]
    match row["action"]:
        case "accept":
            return replace(before, accepted=True, reviewer=who)
        case "reject":
            return replace(before, accepted=False, reviewer=who)
        case "edit":
            question, answer = row["question"] or before.question, row["answer"] or before.answer
            return replace(before, accepted=True, question=question, answer=answer, reviewer=who)
        case "positive":
            return replace(before, positives=before.positives | {row["segment_id"]}, reviewer=who)
        case "withdraw":
            return ReviewVerdict(reviewer=who)
        case _:
            return before


def apply_edits(pairs: pl.DataFrame, verdicts: Mapping[str, ReviewVerdict]) -> pl.DataFrame:
    """``pairs`` (with qa_id, question and answer) in the words that people gave them."""
    edits = {
        name: {key: text for key, one in verdicts.items() if (text := getattr(one, name)) is not None}
        for name in ("question", "answer")
    }
    return pairs.with_columns(
        pl.col("qa_id").replace_strict(said, default=pl.col(name), return_dtype=pl.String).alias(name)
        for name, said in edits.items()
        if said
    )


def export_reviews(reviews: pl.DataFrame, path: Path) -> None:
    """Write reviews as JSON Lines, or as CSV where the name ends so.

    Raises:
        ReviewError: the name ends otherwise.
        StorageError: it cannot be written.
    """
    rows = reviews.with_columns(pl.col("reviewed_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    content = rows.write_csv() if _form(path) == "csv" else rows.write_ndjson()
    write_whole(path, content.encode())


@dataclass(frozen=True)
class Imported:
    """What became of a file of reviews: new ones, those that were stored before, and pairs that there are not."""

    new: int
    known: int
    unknown: list[str]


def import_reviews(path: Path, root: UPath, reviewer: str) -> Imported:
    """Add the reviews in a file to those stored below ``root``.

    Args:
        path: the file, as :func:`parse_reviews` has it.
        root: where the tables are.
        reviewer: who, where a row does not say.

    Raises:
        ReviewError: the file cannot be read, or none of its pairs is stored here.
        StorageError: the reviews cannot be stored.
    """
    rows = parse_reviews(path, reviewer)
    read = stored_tables(root)
    pairs = [frame.select("qa_id") for name in ("qa_pairs", "qa_dataset") if (frame := read(name)) is not None]
    here = set(pl.concat(pairs).unique().collect()["qa_id"]) if pairs else set()
    found = {row["review_id"]: row for row in rows if row["qa_id"] in here}
    unknown = list(dict.fromkeys(row["qa_id"] for row in rows if row["qa_id"] not in here))
    if unknown and not found:
        raise ReviewError(f"{path}: no pair of it is stored here, first {unknown[0]}; is it of another store?")
    stored = read_reviews(root)
    before = set() if stored is None else set(stored["review_id"])
    new = [row for key, row in found.items() if key not in before]
    if new:
        ReviewJournal(root).append(new)
    return Imported(len(new), len(found) - len(new), unknown)


def parse_reviews(path: Path, reviewer: str) -> list[dict[str, Any]]:
    """The reviews in a file of CSV or JSON Lines: ``qa_id`` and ``action``, and what the action needs.

    ``reviewer``, ``reviewed_at`` (ISO 8601) and ``comment`` may be missing; ``review_id`` is computed.

    Args:
        path: the file.
        reviewer: who, where a row does not say.

    Raises:
        ReviewError: naming file and row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReviewError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    found = csv.DictReader(io.StringIO(text)) if _form(path) == "csv" else _json_lines(path, text)
    rows = []
    for number, given in enumerate(found, start=1):
        try:
            rows.append(_parsed(given, reviewer))
        except ReviewError as error:
            raise ReviewError(f"{path}, row {number}: {error}") from error
    return rows


def _form(path: Path) -> str:
    form = path.suffix.lower().removeprefix(".")
    if form not in {"csv", "jsonl"}:
        raise ReviewError(f"{path} ends in {path.suffix!r}; reviews are .csv or .jsonl")
    return form


def _json_lines(path: Path, text: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(filter(str.strip, text.split("\n")), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ReviewError(f"{path}, row {number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise ReviewError(f"{path}, row {number}: expected an object")
        yield row


def _parsed(given: Mapping[str, Any], reviewer: str) -> dict[str, Any]:
    unknown = sorted(str(name) for name in given.keys() - tables.QA_REVIEWS.schema.keys())
    if unknown:
        raise ReviewError(f"unknown columns {', '.join(unknown)}; known are {', '.join(tables.QA_REVIEWS.schema)}")
    said = {name: value for name, value in given.items() if value is not None and value != ""}
    wrong = [name for name, value in said.items() if not isinstance(value, str)]
    if wrong:
        raise ReviewError(f"{wrong[0]} is {said[wrong[0]]!r}, expected a text")
    when = said.get("reviewed_at")
    try:
        at = datetime.fromisoformat(when) if when else None
    except ValueError as error:
        raise ReviewError(f"reviewed_at is {when!r}, expected a time such as 2026-01-31T12:00:00Z") from error
    return review_row(
        said.get("qa_id", ""),
        said.get("action", ""),
        said.get("reviewer", reviewer),
        comment=said.get("comment", ""),
        reviewed_at=at.replace(tzinfo=at.tzinfo or UTC) if at else None,
        **{name: said.get(name) for name in _OPTIONAL},
    )
