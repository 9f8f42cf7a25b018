"""What is kept of a forgotten document, hashes of its words alone, and where those words are still found.

A forgotten document's record lies in the folder ``forgotten`` where the tables are kept, so that every machine that
shares them can forget its own answers of the language model, forgetting can be repeated, and absence can be checked.
"""

import html
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import chain
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.corpus.batches import load_batches
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.orchestration.checks import all_checks
from embed_pipeline.orchestration.freshness import materializations_by_run
from embed_pipeline.settings import Paths, Settings
from embed_pipeline.storage import StorageError, list_folder, reaching, read_table, read_whole, table_path, write_whole
from embed_pipeline.tracking import Tracker

RUN_WORDS = 6
"""Words in a row that are hashed; of a shorter text, all of it."""
_LEAST_CHARACTERS = 12
"""Shorter texts occur in other documents by themselves."""
_FOLDER = "forgotten"
_APPLIED = "forgotten.applied.json"
_TEXT_SUFFIXES = frozenset({".md", ".html", ".json", ".jsonl", ".txt", ".csv", ".tsv", ".log", ".err", ".out", ""})
_MOST_CHECKS = 1000
_MOST_BYTES = 20_000_000
_SEARCHED_FOLDERS = ("reports", "exports", "vectors", "models", "release", "dagster/logs", "dagster/storage")
_PATH_COLUMNS = frozenset({"path", "duplicate_of"})
_WORD = re.compile(r"\w+")
_ESCAPES = re.compile(r"\\u([0-9a-fA-F]{4})|\\[nrtbf]|data:image/[^\"')\s]{1,}|<[^<>]{0,300}>")


@dataclass(frozen=True)
class WordHashes:
    """The words of a text as salted hashes, from which it cannot be read.

    Attributes:
        salt: makes equal words of two records differ.
        runs: length in words to the hashes of runs of so many; each of them alone speaks of the document.
        groups: hashes of short texts, such as the artifacts of a document, that speak of it only all together.
    """

    salt: str
    runs: Mapping[int, frozenset[str]]
    groups: tuple[frozenset[tuple[int, str]], ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str], groups: Iterable[Iterable[str]], salt: str | None = None) -> "WordHashes":
        """The hashes of ``texts``, and of groups of short ones."""
        hashes = cls(salt or secrets.token_hex(8), {})
        runs: dict[int, set[str]] = {}
        for text in set(texts):
            words = words_of(text)
            if words and len(" ".join(words)) >= _LEAST_CHARACTERS:
                length = min(len(words), RUN_WORDS)
                runs.setdefault(length, set()).update(hashes.hashed(words, length))
        kept = []
        for group in groups:
            named = [words_of(text) for text in group]
            kept.append(frozenset((len(words), next(hashes.hashed(words, len(words)))) for words in named if words))
        return cls(
            hashes.salt, {length: frozenset(found) for length, found in runs.items()},
            tuple(group for group in kept if len(group) > 1),
        )  # fmt: skip

    def hashed(self, words: list[str], length: int) -> Iterator[str]:
        """The hash of every run of ``length`` words."""
        key = bytes.fromhex(self.salt)
        for start in range(len(words) - length + 1):
            yield blake2b(" ".join(words[start : start + length]).encode(), digest_size=8, key=key).hexdigest()

    def are_in(self, text: str) -> bool:
        """Whether a text holds a run of the document's words, or all of a group."""
        words = words_of(text)
        if any(found in wanted for length, wanted in self.runs.items() for found in self.hashed(words, length)):
            return True
        lengths = {length for group in self.groups for length, _ in group}
        here = {(length, found) for length in lengths for found in self.hashed(words, length)}
        return any(group <= here for group in self.groups)

    def without(self, texts: Iterable[str]) -> "WordHashes":
        """Less the runs that other texts hold as well: only what is left speaks of the document."""
        left = {length: set(found) for length, found in self.runs.items()}
        for text in texts:
            words = words_of(text)
            for length, found in left.items():
                found.difference_update(self.hashed(words, length))
        return WordHashes(self.salt, {length: frozenset(found) for length, found in left.items()}, self.groups)

    def joined(self, other: "WordHashes") -> "WordHashes":
        """These and those of ``other``, which has the same salt."""
        lengths = self.runs.keys() | other.runs.keys()
        runs = {length: self.runs.get(length, frozenset()) | other.runs.get(length, frozenset()) for length in lengths}
        return WordHashes(self.salt, runs, tuple(dict.fromkeys((*self.groups, *other.groups))))


@dataclass(frozen=True)
class Record:
    """A document that was forgotten.

    Attributes:
        paths: hashes of its paths.
        document_ids: its versions.
        segment_ids: their segments.
        qa_ids: pairs that needed them.
        words: its words, and those that were written about it.
        times: how often it was forgotten.
    """

    paths: frozenset[str]
    document_ids: frozenset[str]
    segment_ids: frozenset[str]
    qa_ids: frozenset[str]
    words: WordHashes
    times: int = 1

    def as_json(self) -> bytes:
        """What is stored of it."""
        ids = {name: sorted(getattr(self, name)) for name in ("paths", "document_ids", "segment_ids", "qa_ids")}
        runs = {str(length): sorted(found) for length, found in self.words.runs.items()}
        groups = [sorted(group) for group in self.words.groups]
        return json.dumps(
            {**ids, "salt": self.words.salt, "runs": runs, "groups": groups, "times": self.times}
        ).encode()

    @classmethod
    def parsed(cls, path: UPath, content: bytes) -> "Record":
        """The record stored at ``path``.

        Raises:
            StorageError: it is damaged.
        """
        try:
            values = json.loads(content)
            runs = {int(length): frozenset(found) for length, found in values["runs"].items()}
            groups = tuple(frozenset((length, found) for length, found in group) for group in values["groups"])
            ids = {name: frozenset(values[name]) for name in ("paths", "document_ids", "segment_ids", "qa_ids")}
            return cls(**ids, words=WordHashes(values["salt"], runs, groups), times=values["times"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{path} is no record of a forgotten document ({error}); restore it from a copy"
            raise StorageError(message) from error


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, whatever JSON or HTML it is written in."""

    def plain(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else " "

    return _WORD.findall(html.unescape(_ESCAPES.sub(plain, text)).lower())


def path_hash(path: str) -> str:
    """The name under which a path is remembered."""
    return sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def recall(root: UPath, name: str) -> Record | None:
    """The record of a forgotten document, by path or id; None: none of that name was forgotten."""
    wanted = path_hash(name)
    for record in _records(root).values():
        if wanted in record.paths or name in record.document_ids:
            return record
    return None


def remember(root: UPath, record: Record) -> None:
    """Store a record, in place of an earlier one of the same document."""
    for name, known in _records(root).items():
        if known.words.salt == record.words.salt:
            write_whole(root / _FOLDER / f"{name}.json", record.as_json())
            return
    write_whole(root / _FOLDER / f"{record.words.salt}.json", record.as_json())


def _records(root: UPath) -> dict[str, Record]:
    paths = list_folder(root / _FOLDER, "*.json")
    return {path.stem: Record.parsed(path, read_whole(path)) for path in paths}


def forget_answers(paths: Paths) -> int:
    """Remove this machine's stored answers about documents that were forgotten, here or on another machine.

    Each record is applied once on each machine: a document that came back may be asked about again.
    """
    marker, store = paths.store / _APPLIED, paths.responses
    try:
        applied: dict[str, int] = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        applied = {}
    due = {name: record for name, record in _records(paths.root).items() if applied.get(name) != record.times}
    if not due:
        return 0
    removed = 0
    if store.is_file():
        with ResponseStore(store) as responses:
            removed = responses.remove_where(lambda text: any(record.words.are_in(text) for record in due.values()))
    write_whole(marker, json.dumps(applied | {name: record.times for name, record in due.items()}).encode())
    return removed


def table_files(root: UPath, table: tables.Table) -> Iterator[tuple[UPath, str | None]]:
    """Where a table is stored: file and batch."""
    whole = table_path(root, table.name)
    with reaching(whole):
        exists = whole.is_file()
    if exists:
        yield whole, None
    for path in list_folder(whole.with_suffix(""), "*.parquet"):
        yield path, path.stem


def stored_texts(root: UPath) -> Iterator[str]:
    """Every row of every table as text."""
    for table in tables.TABLES.values():
        for path, _ in table_files(root, table):
            yield from rows_as_text(read_table(path, table))


def rows_as_text(frame: pl.DataFrame) -> list[str]:
    """Each row's texts, as JSON."""
    columns = [
        name for name, kind in frame.schema.items() if any(kind == one for one in (pl.String, pl.List, pl.Struct))
    ]
    return frame.select(columns).write_ndjson().splitlines() if columns else []


def find_remains(
    words: WordHashes, paths: Iterable[str], settings: Settings, instance: dg.DagsterInstance, tracker: Tracker
) -> Mapping[str, int]:
    """Every place of this machine, the shared tables, MLflow and Dagster's history where a document is still found.

    Args:
        words: its words.
        paths: hashes of its paths (:func:`path_hash`), which are looked for in the batch manifests and tables.
        settings: ``paths``.
        instance: Dagster's history: samples of rows, checks and logs.
        tracker: MLflow's artifacts.
    """
    texts = chain(
        _in_tables(settings.paths.root),
        _in_files(settings.paths),
        ((f"MLflow: {place}", text) for place, text in tracker.text_artifacts()),
        _in_history(instance),
    )
    found = Counter(place for place, text in texts if words.are_in(text))
    gone = set(paths)
    for batch in load_batches(settings.paths.root):
        named = {*(file.path for file in batch.files), *batch.deleted}
        found[f"manifest of batch {batch.name}"] += sum(path_hash(path) in gone for path in named)
    for table in tables.TABLES.values():
        for column in sorted(_PATH_COLUMNS & table.schema.keys()):
            for path, _ in table_files(settings.paths.root, table):
                cells = read_table(path, table)[column].drop_nulls()
                found[f"paths in table {table.name}"] += sum(path_hash(cell) in gone for cell in cells)
    return +found


def _in_tables(root: UPath) -> Iterator[tuple[str, str]]:
    for table in tables.TABLES.values():
        for path, _ in table_files(root, table):
            for text in rows_as_text(read_table(path, table)):
                yield f"table {table.name}", text


def _in_files(paths: Paths) -> Iterator[tuple[str, str]]:
    """Answers of the language model, reports, what lies next to models, and logs."""
    store = paths.store
    if paths.responses.is_file():
        with ResponseStore(paths.responses) as answers:
            for text in answers.texts():
                yield "stored answers of the language model", text
    for folder in _SEARCHED_FOLDERS:
        for path in sorted((store / folder).rglob("*")):
            if path.is_file() and path.suffix in _TEXT_SUFFIXES and path.stat().st_size <= _MOST_BYTES:
                yield str(path), path.read_text(encoding="utf-8", errors="replace")


def _in_history(instance: dg.DagsterInstance) -> Iterator[tuple[str, str]]:
    """What Dagster's UI shows of every materialization and check."""
    for key in instance.all_asset_keys():
        for run, event in materializations_by_run(instance, key):
            yield f"Dagster's history of {key.to_user_string()}{_in_run(run)}", _shown(event.metadata)
    for check in sorted({key for checks in all_checks for key in checks.check_keys}, key=str):
        for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=_MOST_CHECKS):
            logged = record.event.dagster_event if record.event else None
            evaluation = logged.event_specific_data if logged else None
            if isinstance(evaluation, dg.AssetCheckEvaluation):
                shown = f"{evaluation.description or ''}\n{_shown(evaluation.metadata)}"
                yield f"Dagster's history of check {check.name}{_in_run(record.run_id)}", shown


def _in_run(run: str) -> str:
    return f", run {run}" if run else ""


def _shown(metadata: Mapping[str, Any]) -> str:
    """What the UI shows of an event, as text."""
    parts = []
    for value in metadata.values():
        if isinstance(value, dg.TableMetadataValue):
            parts += [str(cell) for record in value.records for cell in record.data.values()]
        else:
            parts.append(str(value.value))
    return "\n".join(parts)
