"""The response store: what was asked before is answered from disk, so that no paid call is repeated.

One SQLite file in WAL mode, a row per answered request. Every complete answer is stored, usable or not, because it
was paid for and the same request would be judged the same way again; a failed request is never stored. A structured
answer that its length limit cut is stored under a key with that limit, any other under one without. A row is committed
before its answer is used, so a killed run repeats only what was in flight.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FAILED_REASONS = frozenset({"error", "abort", "aborted", "cancelled"})
SILENT_REASONS = frozenset({"length", "content_filter", "refusal"})
"""Why a model may stop without a word."""
EMBEDDED = "embedded"
"""The place of a call to an embedded server."""
COMPLETION = "completion"
"""Kind of a call that continues a text."""
BUSY_TIMEOUT_SECONDS = 60.0
_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    key TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    checksum TEXT NOT NULL,
    stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
) WITHOUT ROWID
"""
_ADDED_COLUMNS = {
    "source": "TEXT", "kind": "TEXT", "repeated": "INTEGER", "characters": "INTEGER", "seconds": "REAL",
    "ended": "REAL", "log_probability": "REAL",
}  # fmt: skip
"""Columns that files of earlier versions lack, null in their rows."""
_DECISIONS = "CREATE TABLE IF NOT EXISTS decisions (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_BATCHES = (
    (
        "CREATE TABLE IF NOT EXISTS batches (name TEXT PRIMARY KEY, place TEXT NOT NULL, path TEXT NOT NULL,"
        " owner TEXT NOT NULL, file TEXT, batch TEXT, begun REAL NOT NULL, ended REAL) WITHOUT ROWID"
    ),
    "CREATE TABLE IF NOT EXISTS batch_requests (request TEXT PRIMARY KEY, name TEXT NOT NULL, key TEXT NOT NULL)",
)
_MOST_CALLS = 2000


class ResponseStoreError(RuntimeError):
    """The response store cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Answer:
    """What a model said to one request.

    Attributes:
        text: the answer as it came.
        finish_reason: why the model stopped: ``stop``, ``length``, ``content_filter`` or ``refusal``.
        prompt_tokens: tokens of the request.
        completion_tokens: tokens of the answer.
        cached: True when it came from the store.
        log_probability: mean over its tokens of the natural logarithm of the probability that the model gave each; None
            where it was not asked for, or not told.
        seconds: how long the endpoint took; None where that was not measured.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool = False
    log_probability: float | None = None
    seconds: float | None = field(default=None, compare=False)

    @property
    def complete(self) -> bool:
        """False for what an earlier version stored and no model said: a provider's error, or nothing."""
        return self.finish_reason not in FAILED_REASONS and (bool(self.text) or self.finish_reason in SILENT_REASONS)


@dataclass(frozen=True)
class Call:
    """What a request was: stored with its answer, so that the next run can be estimated.

    Attributes:
        source: the model and the endpoint that it was asked at.
        kind: name of the answer's type, or :data:`COMPLETION`.
        repeated: True where an earlier answer to the same question could not be used.
        characters: length of the prompt.
    """

    source: str
    kind: str
    repeated: bool
    characters: int


@dataclass(frozen=True)
class TimedCall(Call):
    """A stored call and what came of it.

    Attributes:
        prompt_tokens: tokens of the request.
        completion_tokens: tokens of the answer.
        seconds: how long the endpoint took.
        ended: when the answer came, in seconds since the epoch.
        questions: pairs in the answer, where pairs were asked for.
    """

    prompt_tokens: int
    completion_tokens: int
    seconds: float
    ended: float
    questions: int


@dataclass(frozen=True)
class OpenBatch:
    """A batch whose answers are not stored yet.

    Attributes:
        name: ours.
        path: of the API.
        owner: machine and process that submit it.
        file: the endpoint's name for its file; None: it may not be there yet.
        batch: the endpoint's name for it; None: it may not be submitted yet.
    """

    name: str
    path: str
    owner: str
    file: str | None
    batch: str | None


def request_key(request: dict[str, Any]) -> str:
    """SHA-256 of a request's canonical JSON: model, messages or prompt, parameters, schema.

    Raises:
        ValueError: if a parameter is NaN or infinite, which JSON cannot say.
    """
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


class ResponseStore:
    """Answers by request key; a context manager that closes its file.

    Several processes and threads may use one file: writers wait for each other.

    Attributes:
        hits: answers found.
        misses: answers looked for and not found.
    """

    def __init__(self, path: Path) -> None:
        """Open the store, or make it with its folder.

        Raises:
            ResponseStoreError: if the file is not a whole SQLite database of this format, or cannot be written.
        """
        self.path = path
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False, isolation_level=None
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._database.close()
            raise self._unusable(error) from error
        except ResponseStoreError:
            self._database.close()
            raise

    def get(self, key: str) -> Answer | None:
        """The stored answer to a request, or None.

        Raises:
            ResponseStoreError: if the file turns out damaged.
        """
        row = self._execute(
            "SELECT text, finish_reason, prompt_tokens, completion_tokens, log_probability, checksum FROM responses"
            " WHERE key = ?",
            (key,),
        )
        with self._lock:
            self.hits += row is not None
            self.misses += row is None
        if row is None:
            return None
        if row[5] != _checksum(key, row[:5]):
            raise self._unusable(f"the row {key} does not match its checksum")
        return Answer(row[0], row[1], row[2], row[3], cached=True, log_probability=row[4])

    def put(self, key: str, answer: Answer, *, replace: bool = False, call: Call | None = None) -> Answer:
        """Store an answer so that it survives the death of this process; the first answer to a request stays.

        Args:
            key: the request's key.
            answer: what came.
            replace: have it take the place of an earlier answer.
            call: what the request was.

        Returns:
            The answer that stays: another process's, if that came first.

        Raises:
            ResponseStoreError: if the file cannot be written or turns out damaged.
        """
        counts = (answer.prompt_tokens, answer.completion_tokens)
        values = (answer.text, answer.finish_reason, *counts, answer.log_probability)
        about = (call.source, call.kind, call.repeated, call.characters) if call else (None,) * 4
        clash = "REPLACE" if replace else "IGNORE"
        stored = self._execute(
            f"INSERT OR {clash} INTO responses"  # noqa: S608 - one of two words
            " (key, text, finish_reason, prompt_tokens, completion_tokens, log_probability, checksum,"
            " source, kind, repeated, characters, seconds, ended)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING key",
            (key, *values, _checksum(key, values), *about, answer.seconds, time.time()),
        )
        return answer if stored else self.get(key) or answer

    def calls(self, source: str) -> list[TimedCall]:
        """The latest timed calls of a model at an endpoint, at most 2,000, in the order in which they ended.

        Raises:
            ResponseStoreError: if the file turns out damaged.
        """
        rows = self._rows(
            "SELECT source, kind, repeated, characters, prompt_tokens, completion_tokens, seconds, ended,"
            """ (length(text) - length(replace(text, '"question"', ''))) / length('"question"')"""
            " FROM responses WHERE source = ? AND seconds IS NOT NULL ORDER BY ended DESC, key LIMIT ?",
            (source, _MOST_CALLS),
        )
        return [TimedCall(row[0], row[1], bool(row[2]), *row[3:]) for row in reversed(rows)]

    def used(self, since: float) -> tuple[int, int, int]:
        """Calls answered since a moment (seconds since the epoch), and their prompt and completion tokens.

        Raises:
            ResponseStoreError: if the file turns out damaged.
        """
        query = "SELECT count(*), total(prompt_tokens), total(completion_tokens) FROM responses WHERE ended >= ?"
        [(calls, prompt, completion)] = self._rows(query, (since,))
        return int(calls), int(prompt), int(completion)

    def decision(self, key: str) -> str | None:
        """What was decided under a key, or None.

        Raises:
            ResponseStoreError: if the file turns out damaged.
        """
        row = self._execute("SELECT value FROM decisions WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def decide(self, key: str, value: str) -> str:
        """Keep a decision and return the one that holds: another process's, if that came first.

        Raises:
            ResponseStoreError: if the file cannot be written or turns out damaged.
        """
        self._execute("INSERT OR IGNORE INTO decisions (key, value) VALUES (?, ?)", (key, value))
        return self.decision(key) or value

    def open_batch(self, name: str, place: str, path: str, owner: str, requests: Sequence[tuple[str, str]]) -> set[str]:
        """Write a batch down before it is submitted.

        Args:
            name: ours.
            place: the endpoint.
            path: of the API.
            owner: machine and process.
            requests: the name of each request, which is its key where an answer is cut, and its key otherwise.

        Returns:
            The requests that are the batch's: those of other open batches are not.

        Raises:
            ResponseStoreError: if the file cannot be written or turns out damaged.
        """
        row = (name, place, path, owner, time.time())
        try:
            with self._lock:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute(
                    "INSERT INTO batches (name, place, path, owner, begun) VALUES (?, ?, ?, ?, ?)", row
                )
                self._database.executemany(
                    "INSERT OR IGNORE INTO batch_requests (request, name, key) VALUES (?, ?, ?)",
                    [(request, name, key) for request, key in requests],
                )
                self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return set(self.requests_of(name))

    def name_batch(self, name: str, *, file: str | None = None, batch: str | None = None) -> None:
        """Write down what the endpoint calls a batch's file, or the batch."""
        statement = "UPDATE batches SET file = coalesce(?, file), batch = coalesce(?, batch) WHERE name = ?"
        self._rows(statement, (file, batch, name))

    def close_batch(self, name: str) -> None:
        """Forget the requests of a batch: their answers are stored, or it was never submitted."""
        self._rows("DELETE FROM batch_requests WHERE name = ?", (name,))
        self._rows("UPDATE batches SET ended = ? WHERE name = ? AND ended IS NULL", (time.time(), name))

    def open_batches(self, place: str) -> list[OpenBatch]:
        """The open batches at an endpoint, oldest first."""
        rows = self._rows(
            "SELECT name, path, owner, file, batch FROM batches WHERE place = ? AND ended IS NULL ORDER BY begun",
            (place,),
        )
        return [OpenBatch(*row) for row in rows]

    def requests_of(self, name: str) -> dict[str, str]:
        """The requests of an open batch in the order of its file, each with the key of its answer."""
        return dict(self._rows("SELECT request, key FROM batch_requests WHERE name = ? ORDER BY rowid", (name,)))

    def batch_of(self, request: str) -> str | None:
        """The open batch that a request is in, or None."""
        row = self._execute("SELECT name FROM batch_requests WHERE request = ?", (request,))
        return None if row is None else str(row[0])

    def batch_seconds(self, place: str) -> list[float]:
        """How long the batches at an endpoint took that have ended."""
        rows = self._rows(
            "SELECT ended - begun FROM batches WHERE place = ? AND ended IS NOT NULL AND batch IS NOT NULL", (place,)
        )
        return [float(row[0]) for row in rows]

    def texts(self) -> list[str]:
        """Every stored answer.

        Raises:
            ResponseStoreError: if the file turns out damaged.
        """
        return [str(row[0]) for row in self._rows("SELECT text FROM responses", ())]

    def remove_where(self, is_meant: Callable[[str], bool]) -> int:
        """Remove every answer whose text ``is_meant``, and return how many. The file keeps no trace of them.

        Raises:
            ResponseStoreError: if the file cannot be written or turns out damaged.
        """
        try:
            with self._lock:
                rows = self._database.execute("SELECT key, text FROM responses").fetchall()
                keys = [(key,) for key, text in rows if is_meant(text)]
                self._database.execute("PRAGMA secure_delete = ON")
                self._database.executemany("DELETE FROM responses WHERE key = ?", keys)
                self._database.execute("VACUUM")
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return len(keys)

    def __len__(self) -> int:
        row = self._execute("SELECT count(*) FROM responses", ())
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Close the file; closing it twice does no harm."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        self._database.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
        problems = [row[0] for row in self._database.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise self._unusable("; ".join(str(problem) for problem in problems))
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version not in {0, _FORMAT}:
            raise self._unusable(f"its format is {version}, this version reads format {_FORMAT}")
        self._write_ahead()
        self._database.execute("PRAGMA synchronous = NORMAL")
        # At once, so that of two processes one alters the table.
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute(_SCHEMA)
        for statement in (_DECISIONS, *_BATCHES):
            self._database.execute(statement)
        self._add_columns()
        self._database.execute("COMMIT")
        self._database.execute(f"PRAGMA user_version = {_FORMAT}")

    def _add_columns(self) -> None:
        """Add the columns that a file of an earlier version lacks."""
        there = {row[1] for row in self._database.execute("PRAGMA table_info(responses)")}
        for name, kind in _ADDED_COLUMNS.items():
            if name not in there:
                self._database.execute(f"ALTER TABLE responses ADD COLUMN {name} {kind}")

    def _write_ahead(self) -> None:
        """Switch to WAL mode, which SQLite refuses at once, without its busy timeout, while another process writes."""
        deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _execute(self, statement: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        rows = self._rows(statement, values)
        return rows[0] if rows else None

    def _rows(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, problem: object) -> ResponseStoreError:
        what = " ".join(str(problem).split())
        message = (
            f"the response store {self.path} cannot be used: {what}. It was not used. If the disk is full or "
            "read-only, fix that first; if the file is damaged, move it away (its answers are then asked for again) or "
            "restore a copy; then run the same command again."
        )
        return ResponseStoreError(message)


def _checksum(key: str, values: tuple[Any, ...]) -> str:
    """Digest of a row, without a log-probability that it lacks: SQLite notices no flipped letter."""
    stored = values if values[-1] is not None else values[:-1]
    return hashlib.sha256(json.dumps([key, *stored]).encode()).hexdigest()[:16]
